//! The way to the network, step by step, and what the network says.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde_json::Value;

use super::machine::Registered;
use super::{Check, Findings, Line, Verdict, http_date, plural};
use crate::io::{FetchError, LinkEnd, Response};
use crate::limits::HANDSHAKE_CLOCK_TOLERANCE;
use crate::registration::{failure_text, is_success};
use crate::release::latest;
use crate::release::manifest::{Manifest, differences};
use crate::text::printable;
use crate::time::iso8601;
use crate::tunnel::down::Down;
use crate::tunnel::handshake::HandshakeError;

/// A certificate that runs out within this, in seconds, is to be renewed: whoever does that by hand needs some days.
pub const CERTIFICATE_SOON: u64 = 14 * 24 * 3600;

/// A clock that is so far off, in seconds, is to be mended before it keeps the node out.
const CLOCK_WARNING: u64 = 30;

/// How many addresses a name has, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// IPv4.
    pub v4: usize,
    /// IPv6.
    pub v6: usize,
}

/// What is wrong with a certificate, or with TLS as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It is for another name.
    WrongName,
    /// Its issuer is not known here.
    UnknownIssuer,
    /// What answers does not speak TLS.
    NotTls,
    /// Anything else.
    Other,
}

/// A TLS handshake that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insecure {
    /// The kind.
    pub problem: Certificate,
    /// In words.
    pub detail: String,
}

/// Why no handshake was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// A node runs and is connected: a second session would end the first.
    Connected,
    /// A node runs, and nobody says whether it is connected.
    Unsure,
    /// There is no key.
    NoKey,
}

/// How the tunnel's handshake went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shaken {
    /// It was not made.
    Left(Left),
    /// The server accepted; its clock, in unix seconds.
    Done(u64),
    /// It refused, or what it said is no answer.
    Refused(HandshakeError),
    /// The connection ended before.
    Ended(LinkEnd),
}

/// The way to the tunnel. A step that was not made is `None`; after one that failed none is made.
#[derive(Clone, Debug)]
pub struct Route {
    /// Host and port of the tunnel.
    pub target: String,
    /// The proxy that it goes through.
    pub proxy: Option<String>,
    /// The host looked up is an address.
    pub is_literal: bool,
    /// Whether the tunnel is `wss`.
    pub is_tls: bool,
    /// The look-up of the server's name, or the proxy's.
    pub resolved: Option<Result<Resolved, LinkEnd>>,
    /// The connection to it, and through the proxy; where it leads, in words.
    pub connected: Option<Result<String, LinkEnd>>,
    /// TLS; with it when the certificate runs out, in unix seconds, where that is within [`CERTIFICATE_SOON`].
    pub secured: Option<Result<Option<u64>, Insecure>>,
    /// The upgrade.
    pub upgraded: Option<Result<(), LinkEnd>>,
    /// The handshake.
    pub shaken: Option<Shaken>,
}

/// An answer of the server's HTTP interface, and this machine's clock when it came, in unix seconds.
pub type Answer = (Result<Response, FetchError>, u64);

/// What the server's HTTP interface answered; `None` is what was not asked.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// `GET /node/status/<id>`.
    pub status: Option<Answer>,
    /// `GET /update/latest`.
    pub latest: Option<Answer>,
    /// Why the operator's keys do not take the required release, if they do not.
    pub unsigned: Option<String>,
}

impl Answers {
    /// The manifest that the network requires, where it said one.
    #[must_use]
    pub fn required(&self) -> Option<Manifest> {
        let (Ok(response), _) = self.latest.as_ref()? else { return None };
        latest::read(response).ok()?
    }

    /// The server's clock and this machine's, in unix seconds, by the first answer with a date.
    fn clocks(&self) -> Option<(u64, u64)> {
        [&self.status, &self.latest].into_iter().flatten().find_map(|(answer, here)| {
            let response = answer.as_ref().ok()?;
            let (_, date) = response.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("date"))?;
            Some((http_date(date)?, *here))
        })
    }
}

/// The lines from [`Check::Dns`] to [`Check::Release`].
pub(super) fn examine(found: &Findings, lines: &mut Vec<Line>) {
    const ROUTE: [Check; 5] = [Check::Dns, Check::Tcp, Check::Tls, Check::WebSocket, Check::Handshake];
    let Some(route) = &found.route else {
        let rest = [Check::Clock, Check::Registration, Check::Release];
        lines.extend(ROUTE.into_iter().chain(rest).map(|check| Line::because_of(check, Check::Settings)));
        return;
    };
    let mut cause = None;
    for check in ROUTE {
        let line = match check {
            Check::Dns => dns(route),
            Check::Tcp => tcp(route),
            Check::Tls => tls(found, route),
            Check::WebSocket => websocket(route),
            _ => handshake(found, route),
        };
        let line = line.unwrap_or_else(|| match cause {
            Some(cause) => Line::because_of(check, cause),
            None => Line::skipped(check, "there was no time left for it"),
        });
        if line.verdict == Verdict::Failed {
            cause = Some(check);
        }
        lines.push(line);
    }
    lines.extend([clock(found, route, cause), registration(found, cause), release(found, cause)]);
}

/// The words that a node has for the end of a link, as a failed check.
fn ended(check: Check, end: &LinkEnd) -> Line {
    let down = Down::of_link(end);
    Line::failed(
        check,
        &down.reason,
        down.advice.as_deref().unwrap_or("try again; the server may be in trouble"),
    )
}

fn dns(route: &Route) -> Option<Line> {
    let check = Check::Dns;
    Some(match route.resolved.as_ref()? {
        Ok(_) if route.is_literal => Line::ok(check, "an address, which needs no look-up"),
        Ok(Resolved { v4, v6 }) => {
            let whose = if route.proxy.is_some() { "the proxy's name: " } else { "" };
            Line::ok(check, &format!("{whose}{}, {v6} of IPv6", addresses(v4 + v6)))
        }
        Err(end) => ended(check, end),
    })
}

fn addresses(count: usize) -> String {
    if count == 1 { "1 address".to_string() } else { format!("{count} addresses") }
}

fn tcp(route: &Route) -> Option<Line> {
    Some(match route.connected.as_ref()? {
        Ok(text) => Line::ok(Check::Tcp, text),
        Err(end) => ended(Check::Tcp, end),
    })
}

fn tls(found: &Findings, route: &Route) -> Option<Line> {
    let check = Check::Tls;
    if !route.is_tls {
        // Where the way ends before, nothing is said of what comes after.
        return matches!(route.connected, Some(Ok(_)))
            .then(|| Line::ok(check, "not used: the URL is ws, for a lab"));
    }
    let Insecure { problem, detail } = match route.secured.as_ref()? {
        Ok(None) => return Some(Line::ok(check, "the certificate is valid for this name")),
        Ok(Some(end)) => {
            let end = iso8601(core::time::Duration::from_secs(*end));
            let text = format!("the server's certificate is valid, and runs out at {end}");
            let fix = "ask the server's operator whether it is being renewed: after that no node connects";
            return Some(Line::warning(check, &text, fix));
        }
        Err(insecure) => insecure,
    };
    let now = iso8601(core::time::Duration::from_secs(found.unix_seconds));
    let fix = match problem {
        Certificate::Expired => format!(
            "compare this machine's clock, {now}: where it is ahead, set it (NTP); else the server's operator has to renew the certificate"
        ),
        Certificate::NotYetValid => {
            format!("set this machine's clock (NTP): it says {now}; if that is right, ask the server's operator")
        }
        Certificate::WrongName => {
            "name the server by a name that its certificate has (--server, --tunnel-url); or something in between answers in its place"
                .to_string()
        }
        Certificate::UnknownIssuer => {
            "for a network of your own: --ca FILE (or CONSENSUS_CA_FILE) with its authority; else install the system's ca-certificates, or find out what reads TLS in between"
                .to_string()
        }
        Certificate::NotTls => "the server speaks no TLS there: check scheme and port of --server (or --tunnel-url)".to_string(),
        Certificate::Other => {
            "check scheme and port of the server's URL, and this machine's clock; else ask the server's operator".to_string()
        }
    };
    Some(Line::failed(check, detail, &fix))
}

fn websocket(route: &Route) -> Option<Line> {
    Some(match route.upgraded.as_ref()? {
        Ok(()) => Line::ok(Check::WebSocket, &format!("{} opens one at the tunnel's path", route.target)),
        Err(end) => ended(Check::WebSocket, end),
    })
}

fn handshake(found: &Findings, route: &Route) -> Option<Line> {
    let check = Check::Handshake;
    Some(match route.shaken.as_ref()? {
        Shaken::Left(Left::Connected) => {
            Line::skipped(check, "a node runs here and is connected: another handshake might end its session")
        }
        Shaken::Left(Left::Unsure) => Line::skipped(
            check,
            "a node runs here, and it is not known whether it is connected: a handshake might end its session",
        ),
        Shaken::Left(Left::NoKey) => Line::because_of(check, Check::Identity),
        Shaken::Done(_) => match &found.registered {
            Registered::As(node) => Line::ok(check, &format!("the server accepts node {node}")),
            _ => Line::ok(check, "the server accepts this machine for an evaluation"),
        },
        Shaken::Refused(error) => {
            let down = Down::of_handshake(error, found.unix_seconds);
            Line::failed(check, &down.reason, down.advice.as_deref().unwrap_or_default())
        }
        Shaken::Ended(end) => ended(check, end),
    })
}

fn clock(found: &Findings, route: &Route, cause: Option<Check>) -> Line {
    let check = Check::Clock;
    let by_handshake = match &route.shaken {
        Some(
            Shaken::Done(server) | Shaken::Refused(HandshakeError::Rejected { server_time: server, .. }),
        ) => Some((*server, found.unix_seconds)),
        _ => None,
    };
    let Some((server, here)) = found.answers.clocks().or(by_handshake) else {
        return match cause {
            Some(cause) => Line::because_of(check, cause),
            None => Line::skipped(check, "the server does not say what time it is"),
        };
    };
    let off = here.abs_diff(server);
    let direction = if here > server { "ahead of" } else { "behind" };
    let text = format!("{off} s {direction} the server's");
    let fix = "set this machine's clock, and keep it right by NTP (`timedatectl set-ntp true`)";
    if off > HANDSHAKE_CLOCK_TOLERANCE.as_secs() {
        let most = HANDSHAKE_CLOCK_TOLERANCE.as_secs();
        Line::failed(check, &format!("{text}; at {most} s handshakes are rejected"), fix)
    } else if off > CLOCK_WARNING {
        Line::warning(check, &text, fix)
    } else {
        Line::ok(check, &text)
    }
}

/// What is said of an answer that did not come, or of a question that was not asked.
fn unanswered(check: Check, answer: Option<&Answer>, cause: Option<Check>) -> Line {
    match (answer, cause) {
        (Some((Err(error), _)), _) => Line::failed(
            check,
            &format!("the server's HTTP interface cannot be asked: {}", printable(&error.detail)),
            "check --server, and what stands between; the tunnel may be elsewhere (--tunnel-url)",
        ),
        (_, Some(cause)) => Line::because_of(check, cause),
        (_, None) => Line::skipped(check, "there was no time left for it"),
    }
}

fn registration(found: &Findings, cause: Option<Check>) -> Line {
    let check = Check::Registration;
    let program = &found.program;
    let node = match &found.registered {
        Registered::Unknown if found.files.is_none() => return Line::because_of(check, Check::Settings),
        Registered::Unknown => return Line::because_of(check, Check::Files),
        Registered::No => {
            let fix =
                format!("`{program} setup` does all of it; or `{program} eval`, then `{program} register`");
            return Line::failed(check, "no node is registered in this state directory", &fix);
        }
        Registered::As(node) => node,
    };
    let response = match &found.answers.status {
        Some((Ok(response), _)) => response,
        other => return unanswered(check, other.as_ref(), cause),
    };
    if is_success(response) {
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let status = body.get("status").and_then(Value::as_str).map(printable);
        let status = status.map_or_else(String::new, |status| format!(", {status}"));
        return Line::ok(check, &format!("the network knows node {node}{status}"));
    }
    let said = failure_text(response);
    if response.status == 404 {
        let fix = format!(
            "check that --server is the network that it registered with; else move config.json away and run `{program} setup`"
        );
        return Line::failed(check, &format!("the network does not know node {node}: {said}"), &fix);
    }
    let fix = if response.status >= 500 {
        "the server is in trouble; nothing is wrong here"
    } else {
        "check that --server is a Consensus server's URL"
    };
    Line::failed(check, &format!("the network does not say whether it knows node {node}: {said}"), fix)
}

fn release(found: &Findings, cause: Option<Check>) -> Line {
    let check = Check::Release;
    let program = &found.program;
    let response = match &found.answers.latest {
        Some((Ok(response), _)) => response,
        // What failed is told once, where something was asked before.
        Some((Err(_), _)) if matches!(found.answers.status, Some((Err(_), _))) => {
            return Line::because_of(check, Check::Registration);
        }
        None if matches!(found.answers.status, Some((Err(_), _))) => {
            return Line::because_of(check, Check::Registration);
        }
        other => return unanswered(check, other.as_ref(), cause),
    };
    let required = match latest::read(response) {
        Ok(Some(required)) => required,
        Ok(None) => return Line::ok(check, "the network requires no certain release"),
        Err(finish) => {
            return Line::failed(check, &finish.message, "ask the network's operator: nothing is wrong here");
        }
    };
    let name = printable(&required.version);
    let running = match &found.running {
        Ok(running) => running,
        Err(cause) => return Line::because_of(check, *cause),
    };
    if let Some(why) = &found.answers.unsigned {
        let text = format!("the required release, {name}, is not taken: {why}");
        return Line::failed(check, &text, "check --release-key; else ask the network's operator");
    }
    let differs = differences(&required, running);
    if differs.is_empty() {
        return Line::ok(check, &format!("this is the required release, {name}"));
    }
    let which: Vec<String> = differs.iter().map(alloc::string::ToString::to_string).collect();
    let text = format!(
        "the network requires another release, {name} ({}: {})",
        plural(which.len(), "difference"),
        which.join("; ")
    );
    let fix = format!("`{program} update --download`, then the `install` that it names");
    Line::failed(check, &text, &fix)
}
