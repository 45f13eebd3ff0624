//! A client of the data plane: one request a connection, as cheap for this side as the protocol allows.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use async_tungstenite::tungstenite::Message;
use async_tungstenite::{WebSocketStream, client_async};
use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::data_plane::{dedupe, ticket};
use consensus_core::peer::client::Connecting;
use consensus_core::time::Now;
use consensus_core::wire::frame::{FrameBuf, FrameType};
use serde_json::json;
use smol::Async;
use smol::stream::StreamExt as _;

use crate::network::NODE_ID;

/// What carries the messages of one connection, each whole.
pub(super) trait Channel {
    /// Sends one.
    async fn send(&mut self, message: Vec<u8>) -> io::Result<()>;

    /// The next one; `None` when the node has closed the channel as it does after an answer.
    async fn receive(&mut self) -> io::Result<Option<Vec<u8>>>;
}

/// Issues tickets, as the network does.
pub(super) struct Issuer {
    key: <Pure as consensus_core::crypto::Crypto>::SigningKey,
    dedupe_key: String,
}

impl Issuer {
    /// Of the network whose key has this seed, for GETs of one URL.
    pub(super) fn new(seed: &[u8; 32], url: &str) -> io::Result<Self> {
        let dedupe_key = dedupe::key(&Pure, url, "GET", [], None);
        let dedupe_key = dedupe_key.ok_or_else(|| io::Error::other("not a URL"))?;
        Ok(Self { key: Pure.signing_key(seed), dedupe_key })
    }

    fn ticket(&self, number: u64, now: Now) -> String {
        let claims = ticket::Claims {
            iss: ticket::ISSUER.to_owned(),
            aud: NODE_ID.to_owned(),
            sub: self.dedupe_key.clone(),
            scope: ticket::SCOPE.to_owned(),
            iat: now.unix_seconds(),
            exp: now.unix_seconds() + 60,
            jti: format!("00000000-0000-4000-8000-{number:012}"),
        };
        ticket::issue(&Pure, &self.key, "0000000000000000", &claims)
    }
}

/// Makes one request. Its answer's base64 body must be what is expected, to the last byte.
pub(super) async fn request(
    channel: &mut impl Channel,
    node_key: &[u8; 32],
    issuer: &Issuer,
    number: u64,
    (url, expected): (&str, &str),
) -> io::Result<()> {
    let now = Now {
        monotonic: Duration::ZERO,
        unix: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
    };
    let early = || io::Error::other("the node closed the channel before its answer");
    let mut seed = [9; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    let mut rng = Drbg::new(seed);
    let (connecting, init) = Connecting::start(Pure, NODE_ID, &mut rng, now);
    channel.send(init).await?;
    let accept = channel.receive().await?.ok_or_else(early)?;
    let mut session = connecting.finish(&accept, node_key, rng.fork(), now).map_err(io::Error::other)?;
    let token = issuer.ticket(number, now);
    let request = json!({ "type": "proxy_request", "token": token, "target_url": url, "method": "GET" });
    let request = FrameBuf::from_plaintext(request.to_string().as_bytes());
    channel.send(session.seal(FrameType::Data, request)).await?;
    let mut answer = channel.receive().await?.ok_or_else(early)?;
    let (_, answer) =
        session.open(&mut answer).map_err(|error| io::Error::other(format!("the answer: {error}")))?;
    // Reading it as JSON would cost this side as much as the node.
    let answer = std::str::from_utf8(answer).map_err(io::Error::other)?;
    let body = answer.split_once("\"body\":\"").and_then(|(_, rest)| rest.get(..expected.len()));
    if body != Some(expected) || !answer.contains("\"status\":200") {
        let begin: String = answer.chars().take(200).collect();
        return Err(io::Error::other(format!("not what was asked for: {begin}")));
    }
    match channel.receive().await? {
        None => Ok(()),
        Some(_) => Err(io::Error::other("the node goes on after its answer")),
    }
}

/// A WebSocket at the node's own interface.
pub(super) struct Direct(WebSocketStream<Async<TcpStream>>);

impl Direct {
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = Async::<TcpStream>::connect(address).await?;
        stream.get_ref().set_nodelay(true)?;
        let (socket, _) =
            client_async(format!("ws://{address}/connect"), stream).await.map_err(io::Error::other)?;
        Ok(Self(socket))
    }
}

impl Channel for Direct {
    async fn send(&mut self, message: Vec<u8>) -> io::Result<()> {
        self.0.send(Message::binary(message)).await.map_err(io::Error::other)
    }

    async fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(data))) => return Ok(Some(data.into())),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().as_bytes().to_vec())),
                Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 1000 => {
                    // Lets the library send its answer.
                    let _ = self.0.next().await;
                    return Ok(None);
                }
                Some(Ok(Message::Close(frame))) => {
                    return Err(io::Error::other(format!("closed with {frame:?}")));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
