//! What was told and wanted, in a line that holds no secret: sizes, numbers, states, and names that the protocol or this
//! program fixes. No byte of a message, no URL, no header, no text of a peer that the log would not have either.
//!
//! Exhaustive on purpose: whoever adds an input or an output says here what of it may be told.

use alloc::format;
use alloc::string::{String, ToString as _};

use crate::event::Event;
use crate::io::{
    Audience, Effect, EffectResult, Fetch, FetchError, Input, LinkEnd, Measurement, OpenStage, Output,
    SocketEnd,
};
use crate::text::printable;

/// Methods that are named; another one is a peer's own text.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT"];

fn method(text: &str) -> &'static str {
    METHODS.into_iter().find(|method| *method == text).unwrap_or("another method")
}

/// What an input was.
#[must_use]
pub fn input(input: &Input) -> String {
    match input {
        Input::Tick => "tick".to_string(),
        Input::LinkOpened { link } => format!("link {} opened", link.0),
        Input::LinkBinary { link, data } => format!("link {}: a message of {} bytes", link.0, data.len()),
        Input::LinkText { link, text } => format!("link {}: a text of {} bytes", link.0, text.len()),
        Input::LinkSent { link, bytes } => format!("link {}: {bytes} bytes were sent", link.0),
        Input::LinkEnded { link, end } => format!("link {} {}", link.0, link_end(end)),
        Input::Done { effect, result } => format!("effect {} is done: {}", effect.0, effect_result(result)),
        Input::SocketOpened { socket } => format!("socket {} opened", socket.0),
        Input::SocketData { socket, data } => format!("socket {}: {} bytes", socket.0, data.len()),
        Input::SocketSent { socket, bytes } => format!("socket {}: {bytes} bytes were sent", socket.0),
        Input::SocketEnded { socket, end } => match end {
            SocketEnd::Unopened(error) => format!("socket {} did not open: {}", socket.0, fetch_error(error)),
            SocketEnd::Closed => format!("socket {} was closed", socket.0),
            SocketEnd::Failed { .. } => format!("socket {} broke", socket.0),
        },
        Input::Local { id, request } => {
            format!("local request {}: {}, {} bytes", id.0, method(&request.method), request.body.len())
        }
        Input::LocalMessage { id, data } => format!("client {}: a message of {} bytes", id.0, data.len()),
        Input::LocalEnded { id } => format!("client {} has gone", id.0),
        Input::Stop => "stop".to_string(),
    }
}

/// What an output was.
#[must_use]
pub fn output(output: &Output) -> String {
    match output {
        Output::Wait(None) => "wait".to_string(),
        Output::Wait(Some(deadline)) => {
            format!("wait until {:.3} s: {}", deadline.at.as_secs_f64(), deadline.reason)
        }
        Output::OpenLink { link, .. } => format!("open link {}", link.0),
        Output::Send { link, data } => format!("link {}: send {} bytes", link.0, data.len()),
        Output::CloseLink { link, code, .. } => format!("close link {} with {code}", link.0),
        Output::DropLink { link } => format!("drop link {}", link.0),
        Output::HoldLink { link, hold: true } => format!("hold link {}", link.0),
        Output::HoldLink { link, hold: false } => format!("go on with link {}", link.0),
        Output::OpenSocket { socket, audience, timeout, .. } => {
            let audience = for_whom(*audience);
            format!("open socket {} for {audience}, within {} ms", socket.0, timeout.as_millis())
        }
        Output::SendSocket { socket, data } => format!("socket {}: send {} bytes", socket.0, data.len()),
        Output::ReadSocket { socket, most } => format!("socket {}: read at most {most} bytes", socket.0),
        Output::CloseSocket { socket } => format!("close socket {}", socket.0),
        Output::SendLocal { id, data } => format!("client {}: send {} bytes", id.0, data.len()),
        Output::CloseLocal { id, code, .. } => format!("close client {} with {code}", id.0),
        Output::Compute { job } => format!("compute job {}", job.0),
        Output::Perform { id, effect: wanted } => format!("effect {}: {}", id.0, effect(wanted)),
        Output::Cancel { id } => format!("cancel effect {}", id.0),
        Output::Respond { id, response } => {
            format!("answer local request {} with {}, {} bytes", id.0, response.status, response.body.len())
        }
        Output::Event(told) => format!("say: {}", event(told)),
        Output::Finish(finish) => {
            format!("finish with {}: {}", finish.outcome.exit_code(), printable(&finish.message))
        }
    }
}

/// What the log says, but for what somebody had fetched: the log names its host.
fn event(event: &Event) -> String {
    match event {
        Event::Proxied { origin: _, status, bytes, duration_ms } => {
            format!("proxied: {status}, {bytes} bytes, {duration_ms} ms")
        }
        // The reason may have the host in it, and the answer to its name.
        Event::ProxyFailed { origin: _, reason: _ } => "proxying failed".to_string(),
        event => printable(&event.to_string()),
    }
}

const fn for_whom(audience: Audience) -> &'static str {
    match audience {
        Audience::Operator => "the operator",
        Audience::Stranger => "a stranger",
    }
}

fn link_end(end: &LinkEnd) -> String {
    match end {
        LinkEnd::Unopened { stage, .. } => {
            let stage = match stage {
                OpenStage::Resolve => "look-up",
                OpenStage::Connect => "connecting",
                OpenStage::Tls => "TLS",
                OpenStage::Upgrade => "the upgrade",
                OpenStage::Proxy => "the proxy",
            };
            format!("did not open: {stage} failed")
        }
        LinkEnd::NotUpgraded { status } => format!("was refused with HTTP {status}"),
        LinkEnd::Closed { code, .. } => format!("was closed with {code}"),
        LinkEnd::TooLarge => "ended: a message was too large".to_string(),
        LinkEnd::BadWebSocket { .. } => "ended: not the WebSocket protocol".to_string(),
        LinkEnd::Lost { .. } => "was lost".to_string(),
    }
}

fn fetch_error(error: &FetchError) -> String {
    format!("{:?}", error.kind)
}

fn effect_result(result: &EffectResult) -> String {
    let outcome = |what: &str, is_ok: bool| format!("{what}{}", if is_ok { "" } else { ", failed" });
    match result {
        EffectResult::Fetched(Ok(response)) => {
            format!("status {}, {} bytes", response.status, response.body.len())
        }
        EffectResult::Fetched(Err(error)) => format!("not fetched: {}", fetch_error(error)),
        EffectResult::Measured(result) => outcome("measured", result.is_ok()),
        EffectResult::Written(result) => outcome("written", result.is_ok()),
        EffectResult::Downloaded(result) => outcome("downloaded", result.is_ok()),
        EffectResult::Inspected(result) => outcome("inspected", result.is_ok()),
        EffectResult::Installed(result) => outcome("installed", result.is_ok()),
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Fetch(Fetch { audience, method: name, body, .. }) => {
            let length = body.as_ref().map_or(0, alloc::vec::Vec::len);
            format!("fetch for {}, {}, a body of {length} bytes", for_whom(*audience), method(name))
        }
        Effect::Measure(measurement) => format!("measure {}", measured(measurement)),
        Effect::Write { file, data } => format!("write {}, {} bytes", file.path(), data.len()),
        Effect::Remove { file } => format!("remove {}", file.path()),
        Effect::Download(_) => "download a release".to_string(),
        Effect::Inspect { .. } => "look into a release".to_string(),
        Effect::Install(_) => "install a release".to_string(),
        Effect::ConfirmRelease => "confirm the release".to_string(),
        Effect::AcknowledgeRollback { is_excused: false } => "acknowledge the rollback".to_string(),
        Effect::AcknowledgeRollback { is_excused: true } => "acknowledge the rollback, excused".to_string(),
    }
}

const fn measured(measurement: &Measurement) -> &'static str {
    match measurement {
        Measurement::System => "the machine",
        Measurement::Cpu => "SHA-256",
        Measurement::Crypto => "ChaCha20-Poly1305",
        Measurement::Memory => "memory",
        Measurement::EventLoop => "the event loop",
        Measurement::MemoryPressure { .. } => "memory under pressure",
        Measurement::Composite { .. } => "the composite workload",
        Measurement::Sustained { .. } => "the sustained workload",
        Measurement::Multicore { .. } => "several cores",
    }
}
