//! `GET /metrics`: the figures of a node in the text format of Prometheus, version 0.0.4.
//!
//! The names are a promise to those who keep them: they stand in the README. Nothing that a peer chose is in a name or a
//! label, so that there are as many series as this file has, whatever comes.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt::{Display, Write as _};

use super::{Context, report};
use crate::control::Control;
use crate::counters::Latency;
use crate::crypto::Crypto;
use crate::io::LocalResponse;
use crate::text::printable;
use crate::update::directed::STATES;

pub(super) fn response<C: Crypto>(context: &Context<'_, C>) -> LocalResponse {
    let header = |name: &str, value: &str| (name.to_string(), value.to_string());
    let headers = Vec::from([
        header("content-type", "text/plain; version=0.0.4; charset=utf-8"),
        header("cache-control", "no-store"),
        header("x-content-type-options", "nosniff"),
    ]);
    LocalResponse { status: 200, headers, body: text(context).into_bytes() }
}

fn text<C: Crypto>(context: &Context<'_, C>) -> String {
    let mut page = Page(String::new());
    let (version, platform) = (&context.manifest.version, &context.manifest.platform);
    page.head("build_info", "gauge", "Which release runs; always 1.");
    let labels =
        [("version", version.as_str()), ("platform", platform), ("commit", &context.manifest.commit)];
    page.labelled("build_info", &labels, 1);
    page.gauge("uptime_seconds", "Since the start of the process.", context.uptime());
    let is_registered = context.registration.is_some();
    page.gauge("registered", "Whether the network knows this node: 1 or 0.", u8::from(is_registered));
    let is_ready = report::state(context).is_ready();
    page.gauge(
        "ready",
        "Whether the node serves the network: 1 or 0, as /ready says it.",
        u8::from(is_ready),
    );
    let (warnings, errors) = context.history.alarms();
    page.head("events_total", "counter", "Warnings and errors that the node told.");
    page.labelled("events_total", &[("level", "warn")], warnings);
    page.labelled("events_total", &[("level", "error")], errors);
    if let Some(tunnel) = context.tunnel {
        let (counts, is_up) = (tunnel.counts(), tunnel.is_up());
        page.gauge(
            "tunnel_connected",
            "Whether there is a session with the network: 1 or 0.",
            u8::from(is_up),
        );
        page.counter("tunnel_attempts_total", "Connections to the network that were tried.", counts.attempts);
        page.counter("tunnel_sessions_total", "Sessions with the network.", counts.sessions);
        page.counter("tunnel_received_bytes_total", "Bytes that came through the tunnel.", counts.received);
        page.counter("tunnel_sent_bytes_total", "Bytes that went through the tunnel.", counts.sent);
    }
    if let Some(control) = context.control {
        served(&mut page, control);
        held(&mut page, context);
        page.head("update_state", "gauge", "How it stands with updates: 1 at the state, 0 at the others.");
        let state = context.updates.state_name();
        for one in STATES {
            page.labelled("update_state", &[("state", one)], u8::from(one == state));
        }
        let is_on_probation = u8::from(context.updates.is_on_probation());
        page.gauge(
            "release_on_probation",
            "Whether the release has to prove itself: 1 or 0.",
            is_on_probation,
        );
    }
    page.0
}

fn served<C: Crypto>(page: &mut Page, control: &Control<C>) {
    let (counters, limits) = (control.counters(), control.limits());
    for (name, help, count) in [
        ("requests_total", "Requests fetched for others.", counters.requests),
        (
            "request_failures_total",
            "Requests that failed, those that were not fetched among them.",
            counters.failed,
        ),
        ("response_body_bytes_total", "Bytes of response bodies passed on.", counters.bytes),
        ("streams_total", "Streams that were opened.", counters.streams),
        (
            "data_plane_connections_total",
            "Data-plane connections, on streams and at /connect.",
            counters.connections,
        ),
        (
            "data_plane_refused_total",
            "Those that were turned away for want of handshake or ticket.",
            counters.refused,
        ),
        ("over_limit_total", "What was turned away because a limit was reached.", counters.over_limit),
    ] {
        page.counter(name, help, count);
    }
    page.histogram(
        "request_duration_seconds",
        "How long requests took, from the request to its answer or error.",
        control.latency(),
    );
    let active = control.under_way();
    page.gauge("requests_active", "Requests under way.", active.requests);
    page.gauge("requests_limit", "As many as may be.", limits.max_requests);
    page.gauge("streams_active", "Streams and connections at /connect that are open.", active.streams);
    page.gauge("streams_limit", "As many as may be.", limits.max_streams);
}

/// What takes memory.
fn held<C: Crypto>(page: &mut Page, context: &Context<'_, C>) {
    let held = &context.holdings;
    for (name, help, value) in [
        ("request_body_bytes", "Bytes of the bodies of requests under way.", held.request_bytes),
        ("sockets_active", "Connections of raw tunnels.", held.sockets),
        ("socket_unsent_bytes", "Bytes that these have not taken.", held.socket_bytes),
        ("public_tunnels_active", "Public tunnels that have an owner.", held.public_tunnels),
        ("data_plane_clients_active", "Data-plane clients that are being served.", held.clients),
        ("data_plane_jobs_active", "Handshakes and tickets that are being computed.", held.jobs),
        ("spent_tickets", "Tickets that are known to be spent.", held.spent_tickets),
    ] {
        page.gauge(name, help, value);
    }
}

/// The text, as far as it is written.
struct Page(String);

impl Page {
    fn write(&mut self, line: core::fmt::Arguments<'_>) {
        // A string takes everything.
        let _ = self.0.write_fmt(line);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!(
            "# HELP consensus_node_{name} {help}\n# TYPE consensus_node_{name} {kind}\n"
        ));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.write(format_args!("consensus_node_{name} {value}\n"));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.write(format_args!("consensus_node_{name} {value}\n"));
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.write(format_args!("consensus_node_{name}{{"));
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = printable(text).replace('\\', "\\\\").replace('"', "\\\"");
            let comma = if at == 0 { "" } else { "," };
            self.write(format_args!("{comma}{label}=\"{text}\""));
        }
        self.write(format_args!("}} {value}\n"));
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &Latency) {
        self.head(name, "histogram", help);
        for (bound_ms, within) in latency.cumulative() {
            let bound = seconds(u128::from(bound_ms) * 1000);
            self.write(format_args!("consensus_node_{name}_bucket{{le=\"{bound}\"}} {within}\n"));
        }
        let (count, sum) = (latency.count(), seconds(latency.sum().as_micros()));
        self.write(format_args!(
            "consensus_node_{name}_bucket{{le=\"+Inf\"}} {count}\nconsensus_node_{name}_sum {sum}\n\
             consensus_node_{name}_count {count}\n"
        ));
    }
}

/// Microseconds as seconds in the fewest digits that say them.
fn seconds(micros: u128) -> String {
    let text = alloc::format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[test]
    fn labels_are_escaped_and_hold_no_line_end() {
        let mut page = Page(String::new());
        page.labelled("x", &[("a", "q\"b\\\n"), ("b", "")], 1);
        assert_eq!(page.0, "consensus_node_x{a=\"q\\\"b\\\\ \",b=\"\"} 1\n");
    }

    #[test]
    fn a_histogram_has_every_bound_in_seconds_and_ends_with_all_of_them() {
        let mut latency = Latency::default();
        latency.observe(Duration::from_millis(7));
        latency.observe(Duration::from_secs(40));
        let mut page = Page(String::new());
        page.histogram("t_seconds", "Help.", &latency);
        let lines: Vec<&str> = page.0.lines().collect();
        assert_eq!(lines[2], "consensus_node_t_seconds_bucket{le=\"0.005\"} 0");
        assert_eq!(lines[3], "consensus_node_t_seconds_bucket{le=\"0.01\"} 1");
        assert_eq!(
            lines[13..],
            [
                "consensus_node_t_seconds_bucket{le=\"30\"} 1",
                "consensus_node_t_seconds_bucket{le=\"+Inf\"} 2",
                "consensus_node_t_seconds_sum 40.007",
                "consensus_node_t_seconds_count 2",
            ]
        );
        assert_eq!((seconds(0), seconds(10_000_000)), ("0".to_string(), "10".to_string()));
    }
}
