//! The way to the tunnel, step by step, up to the handshake. What it opens it closes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::doctor::{CERTIFICATE_SOON, Insecure, Left, Resolved, Route, Shaken};
use consensus_core::guard::{Scheme, Target};
use consensus_core::io::{Audience, LinkEnd, OpenStage};
use consensus_core::proxy::{Proxies, Proxy};
use consensus_core::tunnel::Mode;
use consensus_core::tunnel::handshake::{Claims, Handshake};
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, Utf8Bytes, WebSocket};
use zeroize::Zeroizing;

use super::Time;
use crate::connect::{Limit, Transport, dial_at, dial_through, look_up, secure_with};
use crate::dial::DialError;
use crate::names::Names;
use crate::runtime_api::Provider;
use crate::settings::{Tunnel, authority};
use crate::tls::{self, Tls};
use crate::{system, websocket};

/// How long the server may take to answer the last close frame.
const CLOSING: Duration = Duration::from_secs(1);

/// What a handshake is made with.
pub(super) struct Hand {
    pub(super) seed: Zeroizing<[u8; 32]>,
    pub(super) node_id: Option<String>,
    pub(super) version: String,
}

/// Goes as far as it leads. `hand` is what to shake hands with, or why not to.
pub(super) fn go(
    tunnel: &Tunnel,
    proxies: &Proxies,
    tls: &Tls,
    time: Time,
    hand: Result<Hand, Left>,
) -> Route {
    let url = tunnel.url.as_str();
    let mut route = Route {
        target: authority(url),
        proxy: None,
        is_literal: false,
        is_tls: url.starts_with("wss"),
        resolved: None,
        connected: None,
        secured: None,
        upgraded: None,
        shaken: None,
    };
    // Each step writes down what came of it; `None` is that there is no next one.
    let _ = walk(tunnel, proxies, tls, time, hand, &mut route);
    route
}

fn walk(
    tunnel: &Tunnel,
    proxies: &Proxies,
    tls: &Tls,
    time: Time,
    hand: Result<Hand, Left>,
    route: &mut Route,
) -> Option<()> {
    let url = tunnel.url.as_str();
    let target = match websocket::target(url) {
        Ok(target) => target,
        Err(end) => {
            route.resolved = Some(Err(end));
            return None;
        }
    };
    let limit = || time.step().map(|time| Limit::new(time, &Arc::default()));
    let names = Names::default();
    let proxy = proxies.of(&target);
    route.proxy = proxy.map(ToString::to_string);
    let first = proxy.map_or_else(|| target.clone(), Proxy::target);
    route.is_literal = first.literal.is_some();
    let addresses = look_up(&first, Audience::Operator, &names, &limit()?);
    let addresses = match (addresses, proxy) {
        (Ok(addresses), _) => addresses,
        (Err(error), proxy) => {
            let error = proxy.map_or_else(|| error.clone(), |proxy| error.clone().at(proxy));
            route.resolved = Some(Err(error.into_link_end()));
            return None;
        }
    };
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    route.resolved = Some(Ok(Resolved { v4, v6: addresses.len() - v4 }));

    // TCP alone at first: the scheme says what comes on top.
    let plain = Target { scheme: Scheme::Http, ..target.clone() };
    let connected = match proxy {
        Some(proxy) => dial_through(proxy, &plain, Audience::Operator, tls, &names, &limit()?)
            .map(|(transport, at)| (transport, format!("{} through the proxy {proxy} ({at})", route.target))),
        None => by_family(&plain, &addresses, tls, &limit()?),
    };
    let mut transport = match connected {
        Ok((transport, text)) => {
            route.connected = Some(Ok(text));
            transport
        }
        Err(error) => {
            route.connected = Some(Err(error.into_link_end()));
            return None;
        }
    };

    if route.is_tls {
        let step = limit()?;
        let Transport::Plain(mut tcp) = transport else { return None };
        tcp.keep_to(step);
        transport = match secure_with(&target, tcp, tls) {
            Ok(transport) => transport,
            Err(error) => {
                let detail = match error.kind() {
                    ErrorKind::TimedOut => "the server did not finish the TLS handshake in time".to_owned(),
                    _ => tls::describe(&error),
                };
                route.secured = Some(Err(Insecure { problem: tls::problem(&error), detail }));
                return None;
            }
        };
        let soon = Duration::from_secs(system::now().unix_seconds().saturating_add(CERTIFICATE_SOON));
        route.secured =
            Some(Ok(tls.runs_out_before(&target.host, transport.certificates().unwrap_or_default(), soon)));
    }

    transport.tcp().keep_to(limit()?);
    let mut socket = match upgrade(url, &target, transport) {
        Ok(socket) => socket,
        Err(end) => {
            route.upgraded = Some(Err(end));
            return None;
        }
    };
    route.upgraded = Some(Ok(()));
    route.shaken = Some(match hand {
        Err(left) => Shaken::Left(left),
        Ok(hand) => {
            socket.get_mut().tcp().keep_to(limit()?);
            shake(tunnel, &hand, &mut socket)
        }
    });
    close(&mut socket);
    Some(())
}

/// Connects to each family's addresses beside the other's: the first family that connects, and in words where that
/// leads and what became of the other.
fn by_family(
    target: &Target,
    addresses: &[SocketAddr],
    tls: &Tls,
    limit: &Limit,
) -> Result<(Transport, String), DialError> {
    let (v4, v6): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.iter().partition(|address| address.is_ipv4());
    let dial =
        |addresses: &[SocketAddr]| (!addresses.is_empty()).then(|| dial_at(target, addresses, tls, limit));
    let (v4, v6) = thread::scope(|scope| {
        let other = scope.spawn(|| dial(&v6));
        (dial(&v4), other.join().ok().flatten())
    });
    match (v4, v6) {
        (Some(Ok((transport, at))), None) | (None, Some(Ok((transport, at)))) => {
            Ok((transport, format!("connected to {at}")))
        }
        (Some(Ok((transport, at))), Some(Ok((_, other)))) => {
            Ok((transport, format!("connected to {at} and {other}")))
        }
        (Some(Ok((transport, at))), Some(Err(error))) => {
            Ok((transport, format!("connected to {at}; its IPv6 addresses take none: {}", words(error))))
        }
        (Some(Err(error)), Some(Ok((transport, at)))) => {
            Ok((transport, format!("connected to {at}; its IPv4 addresses take none: {}", words(error))))
        }
        (Some(Err(error)), _) | (None, Some(Err(error))) => Err(error),
        (None, None) => Err(DialError::Resolve("the name has no address".to_owned())),
    }
}

fn words(error: DialError) -> String {
    error.into_fetch_error().detail
}

fn upgrade(url: &str, target: &Target, transport: Transport) -> Result<WebSocket<Transport>, LinkEnd> {
    let request = websocket::request(url, target)?;
    match tungstenite::client::client_with_config(request, transport, Some(websocket::config())) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(tungstenite::Error::Io(error)))
            if error.kind() == ErrorKind::TimedOut =>
        {
            Err(unanswered())
        }
        Err(HandshakeError::Failure(error)) => Err(websocket::not_upgraded(&error)),
        Err(HandshakeError::Interrupted(_)) => Err(unanswered()),
    }
}

fn unanswered() -> LinkEnd {
    let detail = "the server did not answer in time".to_owned();
    LinkEnd::Unopened { stage: OpenStage::Upgrade, detail }
}

/// The handshake of a session that is not begun: no `hello` follows, so the server attaches nothing.
fn shake(tunnel: &Tunnel, hand: &Hand, socket: &mut WebSocket<Transport>) -> Shaken {
    let mut rng = match system::seed() {
        Ok(seed) => Drbg::new(seed),
        Err(detail) => return Shaken::Ended(LinkEnd::Lost { detail }),
    };
    let nonces = match system::seed() {
        Ok(seed) => Drbg::new(seed),
        Err(detail) => return Shaken::Ended(LinkEnd::Lost { detail }),
    };
    let identity = Identity::from_seed(Provider::default(), &hand.seed);
    let claims = Claims {
        mode: if hand.node_id.is_some() { Mode::Control } else { Mode::Eval },
        node_id: hand.node_id.as_deref(),
        candidate_id: tunnel.candidate_id.as_deref(),
        release_version: Some(&hand.version),
    };
    let (handshake, init) =
        Handshake::start(Provider::default(), &identity, claims, tunnel.server_key, &mut rng, system::now());
    if let Err(error) = socket.send(Message::binary(init)) {
        return Shaken::Ended(websocket::failed(&error).0);
    }
    loop {
        let answer = match socket.read() {
            Ok(Message::Binary(data)) => data.to_vec(),
            Ok(Message::Text(text)) => text.as_bytes().to_vec(),
            Ok(Message::Close(frame)) => return Shaken::Ended(websocket::closed(frame.as_ref())),
            Ok(_) => continue,
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::TimedOut => {
                let detail = "the server did not answer the handshake in time".to_owned();
                return Shaken::Ended(LinkEnd::Lost { detail });
            }
            Err(error) => return Shaken::Ended(websocket::failed(&error).0),
        };
        return match handshake.finish(&answer, nonces) {
            Ok((_, server_seconds)) => Shaken::Done(server_seconds),
            Err(error) => Shaken::Refused(error),
        };
    }
}

/// Ends the connection in good order, as far as the server goes along.
fn close(socket: &mut WebSocket<Transport>) {
    socket.get_mut().tcp().keep_to(Limit::new(CLOSING, &Arc::default()));
    let frame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("doctor") };
    // What does not go out in order ends with the connection.
    if socket.close(Some(frame)).is_ok() {
        while socket.read().is_ok() {}
    }
}
