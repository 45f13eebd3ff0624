//! Owners of public tunnels: visitors of a URL of the network are led to a TCP address here, through a node.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argh::FromArgs;
use async_tungstenite::tungstenite::{Bytes, Message as WsMessage};
use async_tungstenite::{WebSocketReceiver, WebSocketSender};
use consensus_core::wire::mux::{MuxFrame, MuxKind, head};
use serde::Deserialize;
use smol::channel::{self, Receiver, Sender};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::stream::StreamExt as _;
use smol::{Async, Executor, Task, future};

use crate::backlog::Backlog;
use crate::conn::Conn;
use crate::dial::{self, Server};

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Without a word for so long, the tunnel is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Above this, no target is read until the tunnel has taken most of it.
const HIGH_UNSENT: usize = 1024 * 1024;

/// Bytes that a slow target has not taken. The tunnel has no way to slow one visitor down, and must not be held up by
/// one target, so over it the visitor is reset.
const MAX_QUEUED: usize = 128 * 1024 * 1024;

/// A target that has not taken so much is behind. While many are, it is not for one of them that the tunnel would be
/// held up, and it is.
const BEHIND: usize = 1024 * 1024;

/// As many may be behind.
const MANY: usize = 32;

/// Messages in a row that are taken of the node before targets get their turn.
const IN_A_ROW: usize = 32;

/// Read at once from a target.
const READ: usize = 64 * 1024;

/// Lead visitors of a public URL to an address of this machine, through a node of a running network.
///
/// Example: consensus-testbed tunnel --to 127.0.0.1:8000
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "tunnel")]
pub struct TunnelCommand {
    /// where visitors are led, HOST:PORT
    #[argh(option)]
    pub to: String,

    /// the network (default http://127.0.0.1:9800)
    #[argh(option, default = "String::from(\"http://127.0.0.1:9800\")")]
    pub server: String,

    /// certificate to trust for an https network
    #[argh(option)]
    pub ca: Option<PathBuf>,

    /// the node to go through (default any that is connected)
    #[argh(option)]
    pub node: Option<String>,
}

/// Serves until the tunnel ends; never `true`, because a tunnel is not meant to.
#[must_use]
pub fn run(command: &TunnelCommand) -> bool {
    let served = smol::block_on(async {
        let server = Server::new(&command.server, command.ca.clone())?;
        let target = Target::parse(&command.to)?;
        let owner = Owner::connect(&server, command.node.as_deref()).await?;
        println!("{} leads to {}", owner.url(), command.to);
        owner.serve(target).await
    });
    match served {
        Ok(reason) => eprintln!("consensus-testbed: the tunnel ended: {reason}"),
        Err(error) => eprintln!("consensus-testbed: {error}"),
    }
    false
}

/// Where visitors are led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
}

impl Target {
    /// Reads `HOST:PORT`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> io::Result<Self> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_matches(['[', ']']);
            (!host.is_empty()).then_some(())?;
            Some(Self { host: host.to_owned(), port: port.parse().ok()? })
        });
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{text}: not HOST:PORT")))
    }
}

/// The owner of a public tunnel.
#[derive(Debug)]
pub struct Owner {
    tunnel_id: String,
    url: String,
    sender: WebSocketSender<Conn>,
    receiver: WebSocketReceiver<Conn>,
}

impl Owner {
    /// Has the network make a tunnel through that node, or through any.
    ///
    /// # Errors
    /// The network cannot be reached, or does not want to.
    pub async fn connect(server: &Server, node_id: Option<&str>) -> io::Result<Self> {
        #[derive(Deserialize)]
        struct Told {
            tunnel_id: String,
            url: String,
        }
        let path = node_id.map_or_else(|| String::from("/tunnel"), |id| format!("/tunnel?node={id}"));
        let (sender, mut receiver) = server.websocket(&path).await?.split();
        let told = match receiver.next().await {
            Some(Ok(WsMessage::Text(text))) => serde_json::from_str::<Told>(text.as_str())?,
            Some(Ok(other)) => return Err(io::Error::other(format!("no tunnel: the network says {other}"))),
            Some(Err(error)) => return Err(io::Error::other(format!("no tunnel: {error}"))),
            None => return Err(io::Error::other("no tunnel: the connection ended")),
        };
        Ok(Self { tunnel_id: told.tunnel_id, url: told.url, sender, receiver })
    }

    /// Names the tunnel.
    #[must_use]
    pub fn tunnel_id(&self) -> &str {
        &self.tunnel_id
    }

    /// Where visitors come in.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Leads visitors to the target until the tunnel ends; gives the reason.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn serve(self, target: Target) -> io::Result<String> {
        let Self { sender, mut receiver, .. } = self;
        let (out, outgoing) = channel::unbounded();
        let sink = Sink { out, unsent: Backlog::new(HIGH_UNSENT) };
        let heard = Mutex::new(Instant::now());
        let writing = write_all(sender, outgoing, sink.unsent.clone());
        let pinging = ping(&sink, &heard);
        let executor = Executor::new();
        let behind = Backlog::new(MANY);
        let mut visitors = Visitors {
            executor: &executor,
            sink: &sink,
            behind: behind.clone(),
            target,
            open: BTreeMap::new(),
        };
        let reading = async {
            let mut in_a_row = 0;
            loop {
                // A node that has always one more must not keep targets from being written to.
                in_a_row += 1;
                if in_a_row == IN_A_ROW {
                    in_a_row = 0;
                    future::yield_now().await;
                }
                behind.room().await;
                let message = match receiver.next().await {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => return Err(io::Error::other(error)),
                    None => return Ok(String::from("the connection ended")),
                };
                *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                match message {
                    WsMessage::Binary(datum) => visitors.datum(&datum),
                    WsMessage::Close(frame) => {
                        // Lets the library send its answer.
                        let _ = receiver.next().await;
                        return Ok(frame.map_or_else(String::new, |frame| frame.reason.as_str().to_owned()));
                    }
                    WsMessage::Text(_) | WsMessage::Ping(_) | WsMessage::Pong(_) | WsMessage::Frame(_) => {}
                }
            }
        };
        // Visitors run while this does, and end with it.
        executor.run(future::or(future::or(writing, pinging), reading)).await
    }
}

/// The way to the tunnel, which all visitors share.
#[derive(Clone)]
struct Sink {
    out: Sender<Vec<u8>>,
    unsent: Backlog,
}

impl Sink {
    fn send(&self, kind: MuxKind, stream: u32, payload: &[u8]) {
        let frame = [&head(kind, stream)[..], payload].concat();
        self.unsent.add(frame.len());
        // Fails only when the tunnel has ended, and everything with it.
        let _ = self.out.try_send(frame);
    }
}

async fn write_all(
    mut sender: WebSocketSender<Conn>,
    outgoing: Receiver<Vec<u8>>,
    unsent: Backlog,
) -> io::Result<String> {
    while let Ok(frame) = outgoing.recv().await {
        let length = frame.len();
        sender.send(WsMessage::binary(frame)).await.map_err(io::Error::other)?;
        unsent.remove(length);
    }
    Ok(String::from("nobody writes any more"))
}

async fn ping(sink: &Sink, heard: &Mutex<Instant>) -> io::Result<String> {
    loop {
        sink.send(MuxKind::Ping, 0, &[]);
        smol::Timer::after(PING_INTERVAL).await;
        let last = *heard.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() > SILENCE {
            let text = format!("the tunnel has been silent for {} s", SILENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
    }
}

/// One visitor, as the reader of the tunnel sees it. Dropping it closes the connection to the target.
struct Visitor {
    to_target: Sender<Bytes>,
    queued: Queued,
    _task: Task<()>,
}

/// What waits for one target.
#[derive(Clone)]
struct Queued {
    bytes: Backlog,
    /// How many targets are behind.
    behind: Backlog,
}

impl Queued {
    fn add(&self, bytes: usize) {
        if self.bytes.add(bytes) {
            self.behind.add(1);
        }
    }

    fn remove(&self, bytes: usize) {
        if self.bytes.remove(bytes) {
            self.behind.remove(1);
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        // Nothing waits for it any more.
        self.queued.remove(usize::MAX);
    }
}

struct Visitors<'a> {
    executor: &'a Executor<'static>,
    sink: &'a Sink,
    behind: Backlog,
    target: Target,
    open: BTreeMap<u32, Visitor>,
}

impl Visitors<'_> {
    fn datum(&mut self, datum: &Bytes) {
        // What is no frame is the node's mistake, and nothing that a visitor has to suffer for.
        let Ok(frame) = MuxFrame::parse(datum) else { return };
        let payload = datum.slice_ref(frame.payload);
        match frame.kind {
            MuxKind::Open => {
                // Of a visitor whose target went first, nothing more may come that would tell.
                self.open.retain(|_, visitor| !visitor.to_target.is_closed());
                self.open(frame.stream);
                self.data(frame.stream, payload);
            }
            MuxKind::Data => self.data(frame.stream, payload),
            MuxKind::End | MuxKind::Reset => drop(self.open.remove(&frame.stream)),
            MuxKind::Ping => self.sink.send(MuxKind::Pong, frame.stream, &[]),
            MuxKind::Pong => {}
        }
    }

    fn open(&mut self, stream: u32) {
        let (to_target, incoming) = channel::unbounded();
        let queued = Queued { bytes: Backlog::new(BEHIND), behind: self.behind.clone() };
        let work = visit(self.target.clone(), stream, self.sink.clone(), incoming, queued.clone());
        let visitor = Visitor { to_target, queued, _task: self.executor.spawn(work) };
        self.open.insert(stream, visitor);
    }

    fn data(&mut self, stream: u32, payload: Bytes) {
        let Some(visitor) = self.open.get(&stream) else { return };
        if visitor.queued.bytes.bytes().saturating_add(payload.len()) > MAX_QUEUED {
            self.open.remove(&stream);
            return self.sink.send(MuxKind::Reset, stream, &[]);
        }
        visitor.queued.add(payload.len());
        if visitor.to_target.try_send(payload).is_err() {
            // The target has gone, which the node was told.
            self.open.remove(&stream);
        }
    }
}

/// Passes bytes between a visitor and its target, until either goes.
async fn visit(target: Target, stream: u32, sink: Sink, incoming: Receiver<Bytes>, queued: Queued) {
    let kind = match dial::tcp(&target.host, target.port).await {
        Ok(connection) => pump(connection, stream, &sink, &incoming, &queued).await,
        Err(error) => {
            eprintln!("consensus-testbed: a visitor was turned away: {error}");
            MuxKind::Reset
        }
    };
    incoming.close();
    queued.remove(usize::MAX);
    sink.send(kind, stream, &[]);
}

async fn pump(
    connection: Async<TcpStream>,
    stream: u32,
    sink: &Sink,
    incoming: &Receiver<Bytes>,
    queued: &Queued,
) -> MuxKind {
    let (mut reading, mut writing) = (&connection, &connection);
    let from_target = async {
        let mut chunk = vec![0; READ];
        loop {
            sink.unsent.room().await;
            match reading.read(&mut chunk).await {
                Ok(0) => return MuxKind::End,
                Ok(count) => sink.send(MuxKind::Data, stream, &chunk[..count]),
                Err(_) => return MuxKind::Reset,
            }
        }
    };
    let to_target = async {
        while let Ok(data) = incoming.recv().await {
            if writing.write_all(&data).await.is_err() {
                // What the target said before it went is still to be read.
                break;
            }
            queued.remove(data.len());
        }
        future::pending().await
    };
    future::or(from_target, to_target).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for (text, host, port) in
            [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:8", "::1", 8), ("a.b:65535", "a.b", 65535)]
        {
            assert_eq!(Target::parse(text).unwrap(), Target { host: String::from(host), port });
        }
        for text in ["", ":80", "a", "a:", "a:65536", "80"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
