//! Connections of clients: to the network, and to nodes.

use std::io;
use std::path::{Path, PathBuf};

use async_tungstenite::tungstenite::Error as WsError;
use async_tungstenite::tungstenite::protocol::WebSocketConfig;
use async_tungstenite::{WebSocketStream, client_async_with_config};
use consensus_core::limits::MAX_MESSAGE;
use consensus_core::text::printable;
use http_types::Url;
use serde_json::Value;
use smol::Async;

use crate::client::{self, Answer};
use crate::conn::Conn;
use crate::tls;

/// A WebSocket, whichever end.
pub type Socket = WebSocketStream<Conn>;

/// How the WebSockets here are set up: each message is written at once, and none is longer than that.
#[must_use]
pub fn websocket_config(max_message: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(64 * 1024)
        .write_buffer_size(0)
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message))
}

/// A network's own interface.
#[derive(Clone, Debug)]
pub struct Server {
    url: Url,
    ca: Option<PathBuf>,
}

impl Server {
    /// The network at that URL; `ca` is the certificate to trust for `https`.
    ///
    /// # Errors
    /// It is not an `http` or `https` URL with a host.
    pub fn new(url: &str, ca: Option<PathBuf>) -> io::Result<Self> {
        let wrong = |reason: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: {reason}"));
        let parsed: Url = url.parse().map_err(|_| wrong("not a URL"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(wrong("not an http or https URL"));
        }
        Ok(Self { url: parsed, ca })
    }

    /// Tells the network something.
    ///
    /// # Errors
    /// No answer.
    pub async fn post(&self, path: &str, body: &Value) -> io::Result<Answer> {
        let url = self.url.join(path).map_err(io::Error::other)?;
        client::post_async(url, body, self.ca.as_deref()).await
    }

    /// Opens a WebSocket at a path of the network.
    ///
    /// # Errors
    /// There is nobody, or they do not want to.
    pub async fn websocket(&self, path: &str) -> io::Result<Socket> {
        self.websocket_as(self.url.host_str().unwrap_or_default(), path).await
    }

    /// Opens a WebSocket at a path of one of the network's names: they all lead to the same place.
    ///
    /// # Errors
    /// There is nobody, or they do not want to.
    pub async fn websocket_as(&self, host: &str, path: &str) -> io::Result<Socket> {
        let conn = connect(&self.url, self.ca.as_deref()).await?;
        let port = self.url.port_or_known_default().unwrap_or_default();
        upgrade(conn, &format!("ws://{host}:{port}{path}")).await
    }
}

/// Opens a WebSocket at a `ws://` URL.
///
/// # Errors
/// It is no such URL, there is nobody, or they do not want to.
pub async fn websocket(url: &str) -> io::Result<Socket> {
    let parsed: Url = url.parse().map_err(io::Error::other)?;
    if parsed.scheme() != "ws" {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: not a ws:// URL")));
    }
    upgrade(connect(&parsed, None).await?, url).await
}

async fn connect(url: &Url, ca: Option<&Path>) -> io::Result<Conn> {
    let host = url.host_str().ok_or(io::ErrorKind::InvalidInput)?;
    let port = url.port_or_known_default().ok_or(io::ErrorKind::InvalidInput)?;
    let stream = tcp(host.trim_matches(['[', ']']), port).await?;
    if url.scheme() != "https" {
        return Ok(Conn::plain(stream));
    }
    let ca = ca.ok_or_else(|| io::Error::other("https without a certificate to trust"))?;
    let name = host.to_owned().try_into().map_err(io::Error::other)?;
    Ok(Conn::tls(tls::connector(ca)?.connect(name, stream).await?))
}

/// A TCP connection to the first address of the host that takes it.
///
/// # Errors
/// No such name, or nobody there.
pub async fn tcp(host: &str, port: u16) -> io::Result<Async<std::net::TcpStream>> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("{host}: no address"));
    let resolved = smol::net::resolve((host, port)).await;
    for address in resolved.map_err(|error| io::Error::new(error.kind(), format!("{host}: {error}")))? {
        match Async::<std::net::TcpStream>::connect(address).await {
            Ok(stream) => {
                let _ = stream.get_ref().set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(failure)
}

async fn upgrade(conn: Conn, url: &str) -> io::Result<Socket> {
    match client_async_with_config(url, conn, Some(websocket_config(MAX_MESSAGE))).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            let said = String::from_utf8_lossy(body);
            let status = response.status();
            let why = if said.is_empty() && status.as_u16() == 502 {
                "no node of that name has a control tunnel"
            } else {
                said.trim()
            };
            Err(io::Error::other(format!("{url}: {status}: {}", printable(why))))
        }
        Err(error) => Err(io::Error::other(format!("{url}: {error}"))),
    }
}
