//! Where clients come in: the gateway to a node's data plane, proxy sessions, raw tunnels, and public tunnels with their
//! owners and visitors. Each is a stream of a node's control session.

use std::sync::Arc;
use std::time::Duration;

use async_tungstenite::tungstenite::Message as WsMessage;
use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream, accept_async_with_config};
use consensus_core::limits::MAX_MESSAGE;
use consensus_core::peer::streams::StreamTarget;
use http_types::Url;
use serde_json::json;
use smol::future;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::stream::StreamExt as _;

use super::Shared;
use super::state::PublicTunnel;
use super::stream::{FromNode, Stream};
use crate::conn::Conn;
use crate::dial;

/// What a client may send in one message: it travels as base64 in a frame of the tunnel.
const MAX_DATUM: usize = (MAX_MESSAGE - 64 * 1024) / 4 * 3;

/// Read at once from a visitor.
const READ: usize = 64 * 1024;

/// How long a client has to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a stream ends whose client has gone.
const CLIENT_CLOSED: &str = "client closed";

/// What a request head asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// `/connect` of `<node_id>.node.localhost`: a client of the node's data plane.
    Gateway { node_id: String },
    /// `/ws`: a proxy session on that node, or on any.
    Session { node_id: Option<String> },
    /// `/raw?node=ID&host=H&port=P`: a raw tunnel.
    Raw { node_id: String, host: String, port: u16 },
    /// `/tunnel?node=ID`: an owner of a public tunnel.
    Owner { node_id: Option<String> },
    /// Anything of `<tunnel_id>.tunnel.localhost`: a visitor of a public tunnel.
    Visitor { tunnel_id: String },
}

impl Door {
    /// `None` where the head is for the network's own interface.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.split("\r\n");
        let target = lines.next()?.split(' ').nth(1)?;
        let header = |wanted: &str| {
            lines.clone().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_ascii_lowercase())
            })
        };
        let host = header("host").unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        if let Some(tunnel_id) = host.strip_suffix(".tunnel.localhost") {
            return Some(Self::Visitor { tunnel_id: tunnel_id.to_owned() });
        }
        if header("upgrade").as_deref() != Some("websocket") {
            return None;
        }
        let url = Url::parse("http://localhost").ok()?.join(target).ok()?;
        let query =
            |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        match url.path() {
            "/connect" => {
                let node_id = host.strip_suffix(".node.localhost")?.to_owned();
                Some(Self::Gateway { node_id })
            }
            "/ws" => Some(Self::Session { node_id: query("node") }),
            "/raw" => {
                let port = query("port")?.parse().ok()?;
                Some(Self::Raw { node_id: query("node")?, host: query("host")?, port })
            }
            "/tunnel" => Some(Self::Owner { node_id: query("node") }),
            _ => None,
        }
    }
}

/// Serves a client to its end.
pub(super) async fn serve(shared: &Arc<Shared>, conn: Conn, door: Door) {
    let (node_id, target) = match door {
        Door::Visitor { tunnel_id } => return visit(shared, conn, tunnel_id).await,
        Door::Owner { node_id } => return own(shared, conn, node_id.as_deref()).await,
        Door::Gateway { node_id } => (Some(node_id), StreamTarget::DataPlane),
        Door::Session { node_id } => (node_id, StreamTarget::ProxySession),
        Door::Raw { node_id, host, port } => (Some(node_id), StreamTarget::RawTunnel { host, port }),
    };
    // A proxy session speaks JSON, the others bytes.
    let texts = target == StreamTarget::ProxySession;
    let Some(stream) = shared.open_stream(node_id.as_deref(), target, CLIENT_CLOSED) else {
        return refuse(conn, "502 Bad Gateway", "the node has no control tunnel").await;
    };
    if let Some(socket) = upgrade(conn).await {
        let (sender, receiver) = socket.split();
        relay(sender, receiver, stream, texts).await;
    }
}

async fn upgrade(conn: Conn) -> Option<WebSocketStream<Conn>> {
    accept_async_with_config(conn, Some(dial::websocket_config(MAX_DATUM))).await.ok()
}

/// Passes messages both ways until either end goes.
async fn relay(
    mut sender: WebSocketSender<Conn>,
    mut receiver: WebSocketReceiver<Conn>,
    stream: Stream,
    texts: bool,
) {
    let receiver = &mut receiver;
    let up = async {
        loop {
            stream.room().await;
            match receiver.next().await {
                Some(Ok(WsMessage::Binary(data))) => stream.send(data.into()),
                Some(Ok(WsMessage::Text(text))) => stream.send(text.as_str().as_bytes().to_vec()),
                Some(Ok(WsMessage::Close(_))) => {
                    // Lets the library send its answer.
                    let _ = receiver.next().await;
                    return None;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    };
    let down = async {
        loop {
            match stream.next().await {
                FromNode::Data(data) => {
                    let length = data.len();
                    let message = match String::from_utf8(data) {
                        Ok(text) if texts => WsMessage::text(text),
                        Ok(text) => WsMessage::binary(text.into_bytes()),
                        Err(error) => WsMessage::binary(error.into_bytes()),
                    };
                    if sender.send(message).await.is_err() {
                        return None;
                    }
                    stream.taken(length);
                }
                FromNode::Closed { reason, failed } => {
                    let code = if failed { CloseCode::Error } else { CloseCode::Normal };
                    let reason = reason.chars().take(40).collect::<String>().into();
                    return sender.close(Some(CloseFrame { code, reason })).await.ok();
                }
            }
        }
    };
    if future::or(up, down).await.is_some() {
        let answered = async { while let Some(Ok(_)) = receiver.next().await {} };
        future::or(answered, too_late()).await;
    }
}

/// Serves the owner of a public tunnel.
async fn own(shared: &Arc<Shared>, conn: Conn, node_id: Option<&str>) {
    let node_id = node_id.map(String::from).or_else(|| shared.state().attached.keys().next().cloned());
    let tunnel_id = shared.random_hex::<5>();
    let target = StreamTarget::TunnelOwner { tunnel_id: tunnel_id.clone() };
    let stream = shared.open_stream(node_id.as_deref(), target, "owner websocket closed");
    let (Some(stream), Some(node_id)) = (stream, node_id) else {
        return refuse(conn, "502 Bad Gateway", "the node has no control tunnel").await;
    };
    let Some(socket) = upgrade(conn).await else { return };
    let tunnel = PublicTunnel { node_id, queued: stream.queued().clone() };
    shared.state().tunnels.insert(tunnel_id.clone(), tunnel);
    let (mut sender, receiver) = socket.split();
    let scheme = if shared.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{tunnel_id}.tunnel.localhost:{}", shared.address.port());
    let told = json!({ "tunnel_id": tunnel_id, "url": url }).to_string();
    if sender.send(WsMessage::text(told)).await.is_ok() {
        relay(sender, receiver, stream, false).await;
    }
    shared.state().tunnels.remove(&tunnel_id);
}

/// Serves a visitor of a public tunnel: bytes, from the first of its request on.
async fn visit(shared: &Arc<Shared>, conn: Conn, tunnel_id: String) {
    let found =
        shared.state().tunnels.get(&tunnel_id).map(|tunnel| (tunnel.node_id.clone(), tunnel.queued.clone()));
    let Some((node_id, owner)) = found else {
        return refuse(conn, "404 Not Found", "no such tunnel").await;
    };
    let target = StreamTarget::TunnelVisitor { tunnel_id, initial_data: conn.take_back() };
    let Some(stream) = shared.open_stream(Some(&node_id), target, CLIENT_CLOSED) else {
        return refuse(conn, "502 Bad Gateway", "the node has no control tunnel").await;
    };
    let (mut reading, mut writing) = (conn.clone(), conn.clone());
    let up = async {
        let mut chunk = vec![0; READ];
        loop {
            stream.room().await;
            // All visitors of a tunnel wait while its owner does not keep up with them.
            owner.room().await;
            match reading.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => stream.send(chunk[..count].to_vec()),
            }
        }
    };
    let down = async {
        let mut passed = false;
        loop {
            match stream.next().await {
                FromNode::Data(data) => {
                    if writing.write_all(&data).await.is_err() {
                        return None;
                    }
                    stream.taken(data.len());
                    passed = true;
                }
                FromNode::Closed { reason, .. } => return Some((passed, reason)),
            }
        }
    };
    match future::or(up, down).await {
        Some((false, reason)) => refuse(conn, "502 Bad Gateway", &reason).await,
        Some((true, _)) => leave(conn).await,
        None => {}
    }
}

/// Answers a request that nobody can serve, and ends the connection.
async fn refuse(mut conn: Conn, status: &str, reason: &str) {
    let length = reason.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    let _ = conn.write_all([head.as_bytes(), reason.as_bytes()].concat().as_slice()).await;
    leave(conn).await;
}

/// Ends a connection so that what was written arrives: a socket that is closed with something unread would take it
/// back.
async fn leave(mut conn: Conn) {
    let _ = conn.flush().await;
    let _ = conn.close().await;
    let mut rest = [0; 4096];
    let read = async { while let Ok(1..) = conn.read(&mut rest).await {} };
    future::or(read, too_late()).await;
}

async fn too_late() {
    smol::Timer::after(CLOSE_TIMEOUT).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(target: &str, host: &str, upgrade: bool) -> Option<Door> {
        let upgrade = if upgrade { "Upgrade: WebSocket\r\n" } else { "" };
        Door::of(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n").as_bytes())
    }

    #[test]
    fn each_door_is_found_by_its_name_and_path() {
        let id = || String::from("abc");
        let gateway = Door::Gateway { node_id: id() };
        assert_eq!(door("/connect", "abc.node.localhost:9800", true), Some(gateway));
        assert_eq!(door("/connect", "localhost", true), None);
        assert_eq!(door("/connect", "abc.node.localhost", false), None);
        let visitor = || Some(Door::Visitor { tunnel_id: id() });
        assert_eq!(door("/any?thing", "ABC.tunnel.localhost:1", false), visitor());
        assert_eq!(door("/connect", "abc.tunnel.localhost", true), visitor());
        assert_eq!(door("/ws", "localhost", true), Some(Door::Session { node_id: None }));
        assert_eq!(door("/ws?node=abc", "h", true), Some(Door::Session { node_id: Some(id()) }));
        assert_eq!(door("/tunnel?node=abc", "h", true), Some(Door::Owner { node_id: Some(id()) }));
        let raw = Door::Raw { node_id: id(), host: String::from("::1"), port: 22 };
        assert_eq!(door("/raw?node=abc&host=%3A%3A1&port=22", "h", true), Some(raw));
        assert_eq!(door("/raw?node=abc&host=a&port=65536", "h", true), None);
        assert_eq!(door("/config", "h", false), None);
    }
}
