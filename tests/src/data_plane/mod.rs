//! Clients of the data plane (protocol.md section 10): a ticket, a channel that the node alone can read, one request.

pub mod command;

use std::fmt;
use std::future::Future;
use std::io;
use std::time::{Duration, SystemTime};

use async_tungstenite::tungstenite::Message as WsMessage;
use consensus_core::crypto::pem;
use consensus_core::crypto::{Crypto, Drbg};
use consensus_core::peer::client::{Answer, Connecting, Request};
use consensus_core::time::Now;
use consensus_core::tunnel::session::Session;
use consensus_core::wire::base64;
use consensus_core::wire::frame::FrameType;
use serde::Deserialize;
use serde_json::json;
use smol::future;
use smol::stream::StreamExt as _;

use crate::dial::{Server, Socket};
use crate::orchestrator::{FromNode, Stream};

/// No step of an exchange takes as long; nodes give up sooner.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What pays for one request at one node.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The ticket.
    pub token: String,
    /// The node it is for.
    pub node_id: String,
    /// The node's key, by which the client knows it.
    pub node_key: [u8; 32],
    /// The gateway to the node.
    pub connect_url: String,
    /// Unix seconds.
    pub expires_at: u64,
}

impl Ticket {
    /// Has the network issue a ticket for a request, at that node or at any.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], [`Failure::Refused`] or [`Failure::Malformed`].
    pub async fn mint(server: &Server, node_id: Option<&str>, request: &Request) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Minted {
            token: String,
            node_id: String,
            node_public_key_pem: String,
            connect_url: String,
            expires_at: u64,
        }
        let wanted = json!({
            "node_id": node_id, "target_url": request.target_url, "method": request.method,
            "headers": request.headers, "body": request.body.as_deref().map(base64::encode),
            "body_encoding": "base64",
        });
        let answer = server.post("/tickets", &wanted).await.map_err(Failure::unreachable)?;
        if answer.status != 200 {
            let text = |name: &str| answer.body[name].as_str().unwrap_or_default().to_owned();
            let what = format!("no ticket: {} {} ({})", answer.status, text("error"), text("message"));
            return Err(Failure::Refused(what));
        }
        let minted = serde_json::from_value::<Minted>(answer.body)
            .map_err(|error| Failure::Malformed(format!("the answer is no ticket: {error}")))?;
        let node_key = pem::decode_public(&minted.node_public_key_pem)
            .map_err(|error| Failure::Malformed(format!("node_public_key_pem: {error}")))?;
        Ok(Self {
            token: minted.token,
            node_id: minted.node_id,
            node_key,
            connect_url: minted.connect_url,
            expires_at: minted.expires_at,
        })
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is nobody, or the connection broke.
    Unreachable(String),
    /// The network does not want to.
    Refused(String),
    /// The node ended the connection before it answered.
    Ended {
        /// The WebSocket close code, where there was one.
        code: Option<u16>,
        /// The reason.
        reason: String,
    },
    /// What came is not of the protocol, or not of the node that was asked.
    Malformed(String),
}

impl Failure {
    fn unreachable(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(what) | Self::Refused(what) | Self::Malformed(what) => f.write_str(what),
            Self::Ended { code: Some(code), reason } => {
                write!(f, "the connection ended before an answer: {code} {reason}")
            }
            Self::Ended { code: None, reason } => {
                write!(f, "the connection ended before an answer: {reason}")
            }
        }
    }
}

impl std::error::Error for Failure {}

/// What carries the messages of a client.
#[derive(Debug)]
pub enum Carrier {
    /// A WebSocket, to a gateway or to the node itself.
    Socket(Box<Socket>),
    /// A stream of the node's session, without a gateway between: for those who run the orchestrator themselves.
    Stream(Stream),
}

enum Received {
    Data(Vec<u8>),
    Ended { code: Option<u16>, reason: String },
}

impl Carrier {
    /// Through the gateway of a network to a node.
    ///
    /// # Errors
    /// [`Failure::Unreachable`].
    pub async fn gateway(server: &Server, node_id: &str) -> Result<Self, Failure> {
        let socket = in_time(server.websocket_as(&format!("{node_id}.node.localhost"), "/connect")).await?;
        Ok(Self::Socket(Box::new(socket.map_err(Failure::unreachable)?)))
    }

    /// Directly to a node, at the URL of its `/connect`.
    ///
    /// # Errors
    /// [`Failure::Unreachable`].
    pub async fn direct(url: &str) -> Result<Self, Failure> {
        let socket = in_time(crate::dial::websocket(url)).await?;
        Ok(Self::Socket(Box::new(socket.map_err(Failure::unreachable)?)))
    }

    async fn send(&mut self, data: Vec<u8>) -> Result<(), Failure> {
        match self {
            Self::Socket(socket) => {
                let sent = socket.send(WsMessage::binary(data)).await;
                sent.map_err(|error| Failure::Unreachable(format!("the connection broke: {error}")))
            }
            Self::Stream(stream) => {
                stream.room().await;
                stream.send(data);
                Ok(())
            }
        }
    }

    async fn receive(&mut self) -> Received {
        let ended = |code, reason: &str| Received::Ended { code, reason: reason.to_owned() };
        match self {
            Self::Socket(socket) => loop {
                match socket.next().await {
                    Some(Ok(WsMessage::Binary(data))) => return Received::Data(data.into()),
                    Some(Ok(WsMessage::Text(text))) => {
                        return Received::Data(text.as_str().as_bytes().to_vec());
                    }
                    Some(Ok(WsMessage::Close(frame))) => {
                        // Lets the library send its answer.
                        let _ = socket.next().await;
                        return frame.map_or_else(
                            || ended(Some(1005), ""),
                            |frame| ended(Some(frame.code.into()), frame.reason.as_str()),
                        );
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return ended(None, &error.to_string()),
                    None => return ended(None, "the connection ended"),
                }
            },
            Self::Stream(stream) => match stream.next().await {
                FromNode::Data(data) => {
                    stream.taken(data.len());
                    Received::Data(data)
                }
                FromNode::Closed { reason, .. } => ended(None, &reason),
            },
        }
    }
}

/// A channel to a node that has proved who it is.
#[derive(Debug)]
pub struct Connection<C: Crypto> {
    carrier: Carrier,
    session: Session<C>,
}

/// An answer, and how the node ended the connection after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The answer.
    pub answer: Answer,
    /// The WebSocket close code, where the carrier has one.
    pub code: Option<u16>,
    /// The reason.
    pub reason: String,
}

impl<C: Crypto> Connection<C> {
    /// Does the handshake, and checks that it is the node of that name and key at the other end.
    ///
    /// # Errors
    /// [`Failure`]: the carrier broke, the node ended it, or it is not that node.
    pub async fn open(
        crypto: C,
        mut carrier: Carrier,
        node_id: &str,
        node_key: &[u8; 32],
    ) -> Result<Self, Failure> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| Failure::Malformed(error.to_string()))?;
        let mut rng = Drbg::new(seed);
        let (connecting, init) = Connecting::start(crypto, node_id, &mut rng, now());
        carrier.send(init).await?;
        let accept = match in_time(carrier.receive()).await? {
            Received::Data(data) => data,
            Received::Ended { code, reason } => return Err(Failure::Ended { code, reason }),
        };
        let session = connecting
            .finish(&accept, node_key, rng.fork(), now())
            .map_err(|error| Failure::Malformed(format!("not the node that was asked for: {error}")))?;
        Ok(Self { carrier, session })
    }

    /// Makes the one request that a connection is for, and waits for the answer and the end.
    ///
    /// # Errors
    /// [`Failure`]: there is no answer.
    pub async fn request(mut self, token: &str, request: &Request) -> Result<Exchange, Failure> {
        let frame = self.session.seal(FrameType::Data, request.encode(token));
        self.carrier.send(frame).await?;
        let mut frame = match in_time(self.carrier.receive()).await? {
            Received::Data(data) => data,
            Received::Ended { code, reason } => return Err(Failure::Ended { code, reason }),
        };
        let answer = match self.session.open(&mut frame) {
            Ok((FrameType::Data, plaintext)) => Answer::parse(plaintext),
            Ok((kind, _)) => return Err(Failure::Malformed(format!("a frame of type {kind:?}"))),
            Err(error) => return Err(Failure::Malformed(format!("the answer: {error}"))),
        };
        let answer = answer.ok_or_else(|| Failure::Malformed(String::from("the answer is none")))?;
        match in_time(self.carrier.receive()).await? {
            Received::Ended { code, reason } => Ok(Exchange { answer, code, reason }),
            Received::Data(_) => Err(Failure::Malformed(String::from("more than one answer"))),
        }
    }
}

fn now() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // A client has no deadlines of its own.
    Now { monotonic: Duration::ZERO, unix }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let too_late = async {
        smol::Timer::after(TIMEOUT).await;
        Err(Failure::Unreachable(format!("nothing came within {} s", TIMEOUT.as_secs())))
    };
    future::or(async { Ok(work.await) }, too_late).await
}
