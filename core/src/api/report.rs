//! `GET /status`, for the status page and for `consensus-node status`, and `GET /ready`, for whoever sends work.

use alloc::string::ToString;

use serde_json::json;

use super::{Answer, Context};
use crate::control::Control;
use crate::crypto::Crypto;
use crate::status::{Served, State, Status, TunnelStatus};
use crate::time::iso8601;
use crate::tunnel::connection::Tunnel;
use crate::update::directed::Active;

/// 200 where the node serves the network, and 503 with the reason where it does not.
pub(super) fn ready<C: Crypto>(context: &Context<'_, C>) -> Answer {
    let state = state(context);
    let status = if state.is_ready() { 200 } else { 503 };
    Answer::Status(status, json!({"ready": state.is_ready(), "state": state, "reason": state.explain()}))
}

pub(super) fn state<C: Crypto>(context: &Context<'_, C>) -> State {
    let is_up = context.tunnel.is_some_and(Tunnel::is_up);
    match (context.registration, context.control) {
        _ if context.updates.is_draining() => State::Updating,
        _ if context.is_stopping => State::Stopping,
        (None, _) => State::NotRegistered,
        (Some(_), None) => State::LocalOnly,
        (Some(_), Some(_)) if is_up => State::Serving,
        (Some(_), Some(_)) => State::Connecting,
    }
}

pub(super) fn status<C: Crypto>(context: &Context<'_, C>) -> Status {
    let state = state(context);
    let registration = context.registration;
    let (warnings, errors) = context.history.alarms();
    Status {
        state,
        advice: state.explain().map(ToString::to_string),
        node_id: registration.map(|registration| registration.node_id.clone()),
        domain: registration.and_then(|registration| registration.domain.clone()),
        version: context.manifest.version.clone(),
        platform: context.manifest.platform.clone(),
        uptime: context.uptime(),
        timestamp: iso8601(context.now.unix),
        tunnel: tunnel(context),
        served: context.control.map(served),
        update: context.update(),
        warnings,
        errors,
        events: context.history.events(),
        samples: context.history.samples(),
    }
}

fn tunnel<C: Crypto>(context: &Context<'_, C>) -> Option<TunnelStatus> {
    let tunnel = context.tunnel?;
    let counts = tunnel.counts();
    let since = || context.now.monotonic.saturating_sub(counts.ready).as_secs();
    Some(TunnelStatus {
        connected: tunnel.is_up(),
        since: tunnel.is_up().then(since),
        sessions: counts.sessions,
        attempts: counts.attempts,
        received_bytes: counts.received,
        sent_bytes: counts.sent,
    })
}

fn served<C: Crypto>(control: &Control<C>) -> Served {
    let (counters, latency, limits) = (control.counters(), control.latency(), control.limits());
    let Active { requests, streams } = control.under_way();
    Served {
        requests: counters.requests,
        failed: counters.failed,
        bytes: counters.bytes,
        streams: counters.streams,
        connections: counters.connections,
        refused: counters.refused,
        over_limit: counters.over_limit,
        active_requests: requests,
        max_requests: limits.max_requests,
        active_streams: streams,
        max_streams: limits.max_streams,
        half_within_ms: latency.within_ms(50),
        most_within_ms: latency.within_ms(95),
    }
}
