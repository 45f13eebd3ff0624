//! Many streams on one tunnel: whether every byte is right, and how much memory a node takes for them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use consensus_core::peer::streams::StreamTarget;
use consensus_core::wire::mux::{MuxFrame, MuxKind, head};
use serde_json::{Value, json};
use smol::channel::{self, Receiver, Sender};
use smol::{Timer, future};

use super::Kind;
use super::bench::{Bench, all};
use crate::backlog::Backlog;
use crate::binaries::Shell;
use crate::memory::Memory;
use crate::network::NODE_ID;
use crate::orchestrator::{FromNode, Stream};
use crate::upstream::bytes;

/// What a node may take for all of it, in KiB.
const MAX_MEMORY: u64 = 64 * 1024;

/// Streams of the data plane under way at once, and the body of each.
const CLIENTS: usize = 1000;
const CLIENT_BODY: usize = 16 * 1024;

/// Times that all of them make a request.
const ROUNDS: usize = 5;

/// What lets a node have so many requests, and so many handshakes before the first is paid for, under way.
const CLIENT_OPTIONS: [&str; 4] = ["--max-requests", "1024", "--max-inits", "2000"];

/// Visitors of a public tunnel at once.
const VISITORS: usize = 50;

/// What each of them sends and gets, in bytes; less of it in a short run.
const VISIT: usize = 100 << 20;
const SHORT_VISIT: usize = 4 << 20;

/// Sent at once.
const CHUNK: usize = 64 * 1024;

/// Bytes under way in one direction: whoever sends waits above it, as sockets would have them wait.
const WINDOW: usize = 16 << 20;

/// Without a byte for so long, something hangs.
const STALLED: Duration = Duration::from_secs(60);

/// One row of the table.
pub(super) struct Row {
    shell: Shell,
    what: &'static str,
    streams: usize,
    /// Through the tunnel, both ways together, as the streams' ends count them.
    bytes: usize,
    took: Duration,
    node_cpu: Duration,
    memory: Memory,
}

impl Row {
    pub(super) const HEAD: &'static str = "\nshell     streams                          count       MiB   seconds   MiB/s    CPU s      RSS     peak";

    /// Whether the node kept to its memory.
    pub(super) fn is_within_bounds(&self) -> bool {
        self.memory.peak <= MAX_MEMORY
    }

    pub(super) fn print(&self) {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        println!(
            "{:<9} {:<30} {:>7} {mib:>9.0} {:>9.2} {:>7.1} {:>8.2} {:>8.2} {:>8.2}{}",
            self.shell.name(),
            self.what,
            self.streams,
            self.took.as_secs_f64(),
            mib / self.took.as_secs_f64(),
            self.node_cpu.as_secs_f64(),
            self.memory.resident as f64 / 1024.0,
            self.memory.peak as f64 / 1024.0,
            if self.is_within_bounds() { "" } else { "  OVER 64 MiB" },
        );
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "shell": self.shell.name(), "streams": self.what, "count": self.streams, "bytes": self.bytes,
            "seconds": self.took.as_secs_f64(), "node_cpu_seconds": self.node_cpu.as_secs_f64(),
            "rss_kib": self.memory.resident, "peak_rss_kib": self.memory.peak,
            "within_bounds": self.is_within_bounds(),
        })
    }
}

/// So many clients of the data plane at once: their target answers none until all of them have asked.
pub(super) fn data_plane(shell: Shell, program: &Path, short: bool) -> io::Result<Row> {
    let bench = Bench::start(program, &CLIENT_OPTIONS, CLIENT_BODY, CLIENTS)?;
    let rounds = if short { 1 } else { ROUNDS };
    let (begun, before) = (Instant::now(), bench.node_cpu()?);
    for _ in 0..rounds {
        smol::block_on(all((0..CLIENTS).map(|_| bench.once(Kind::DataPlane))))?;
    }
    Ok(Row {
        shell,
        what: "data plane, all at once",
        streams: CLIENTS,
        bytes: rounds * CLIENTS * CLIENT_BODY,
        took: begun.elapsed(),
        node_cpu: bench.node_cpu()?.saturating_sub(before),
        memory: bench.node_memory()?,
    })
}

/// So many visitors of one public tunnel at once. All send and get the same number of bytes; one of them reads nothing
/// until the others are done.
pub(super) fn public_tunnel(shell: Shell, program: &Path, short: bool) -> io::Result<Row> {
    let bench = Bench::start(program, &[], 0, 1)?;
    let size = if short { SHORT_VISIT } else { VISIT };
    let tunnel = Tunnel::open(&bench, size)?;
    let (begun, before) = (Instant::now(), bench.node_cpu()?);
    let mut works: Vec<Pin<Box<dyn Future<Output = io::Result<()>> + '_>>> = Vec::new();
    works.push(Box::pin(tunnel.own()));
    works.push(Box::pin(tunnel.answer()));
    for number in 0..VISITORS {
        works.push(Box::pin(tunnel.visit(number)));
    }
    let done = async { all(works).await.map(|_| ()) };
    smol::block_on(future::or(done, tunnel.watch()))?;
    Ok(Row {
        shell,
        what: "public tunnel, one reads slowly",
        streams: VISITORS,
        bytes: 2 * VISITORS * size,
        took: begun.elapsed(),
        node_cpu: bench.node_cpu()?.saturating_sub(before),
        memory: bench.node_memory()?,
    })
}

/// A public tunnel whose owner and visitors are all here, without a gateway between: what they do costs less than what
/// is measured.
struct Tunnel<'a> {
    bench: &'a Bench,
    size: usize,
    /// Two rounds of what everybody sends, each from a place of its own.
    pattern: Vec<u8>,
    owner: Stream,
    /// The owner's streams, by their numbers in the tunnel.
    open: RefCell<BTreeMap<u32, Visitor>>,
    opened: (Sender<u32>, Receiver<u32>),
    /// A message for each visitor that is done.
    done: (Sender<()>, Receiver<()>),
    up: Backlog,
    down: Backlog,
    /// Bytes that arrived anywhere.
    moved: Cell<usize>,
}

/// A visitor, as the owner sees it.
struct Visitor {
    number: usize,
    got: usize,
    sent: usize,
}

const TUNNEL_ID: &str = "load";

/// The visitor that reads nothing until the others are done.
const SLOW: usize = 0;

/// How far apart the places are that two streams begin at.
const APART: usize = 1031;

fn fault(what: String) -> io::Error {
    io::Error::other(what)
}

impl<'a> Tunnel<'a> {
    fn open(bench: &'a Bench, size: usize) -> io::Result<Self> {
        let target = StreamTarget::TunnelOwner { tunnel_id: String::from(TUNNEL_ID) };
        let owner = bench.orchestrator().open(NODE_ID, target).ok_or_else(no_session)?;
        Ok(Self {
            bench,
            size,
            pattern: bytes(2 * CHUNK),
            owner,
            open: RefCell::default(),
            opened: channel::unbounded(),
            done: channel::unbounded(),
            up: Backlog::new(WINDOW),
            down: Backlog::new(WINDOW),
            moved: Cell::new(0),
        })
    }

    /// What a stream carries from there on, at most a chunk.
    fn piece(&self, stream: usize, at: usize, most: usize) -> &[u8] {
        let begin = (stream * APART + at) % CHUNK;
        &self.pattern[begin..begin + most.min(CHUNK).min(self.size - at)]
    }

    /// Checks what arrived of a stream; gives how much it is.
    fn check(&self, stream: usize, mut at: usize, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.size - at {
            return Err(fault(format!("stream {stream}: more than was sent")));
        }
        for piece in data.chunks(CHUNK) {
            if piece != self.piece(stream, at, piece.len()) {
                return Err(fault(format!("stream {stream}: other bytes than were sent, from {at} on")));
            }
            at += piece.len();
        }
        self.moved.set(self.moved.get() + data.len());
        Ok(data.len())
    }

    /// What a visitor sends is the stream of its number; what it gets is one of those behind them all.
    async fn visit(&self, number: usize) -> io::Result<()> {
        let name = u32::try_from(number).unwrap_or_default().to_be_bytes().to_vec();
        let target = StreamTarget::TunnelVisitor { tunnel_id: String::from(TUNNEL_ID), initial_data: name };
        let stream = self.bench.orchestrator().open(NODE_ID, target).ok_or_else(no_session)?;
        let send = async {
            let mut sent = 0;
            while sent < self.size {
                stream.room().await;
                self.up.room().await;
                let piece = self.piece(number, sent, CHUNK);
                sent += piece.len();
                self.up.add(piece.len());
                stream.send(piece.to_vec());
            }
            Ok(())
        };
        let read = async {
            if number == SLOW {
                for _ in 1..VISITORS {
                    self.done.1.recv().await.map_err(io::Error::other)?;
                }
            }
            let mut got = 0;
            loop {
                match stream.next().await {
                    FromNode::Data(data) => {
                        got += self.check(VISITORS + number, got, &data)?;
                        stream.taken(data.len());
                        if number != SLOW {
                            self.down.remove(data.len());
                        }
                    }
                    FromNode::Closed { failed: false, .. } if got == self.size => return Ok(()),
                    FromNode::Closed { reason, .. } => {
                        return Err(fault(format!("visitor {number} ended after {got} bytes: {reason}")));
                    }
                }
            }
        };
        future::try_zip(send, read).await?;
        self.done.0.try_send(()).map_err(io::Error::other)
    }

    /// Takes what visitors send, until all of it has come.
    async fn own(&self) -> io::Result<()> {
        let mut complete = 0;
        while complete < VISITORS {
            let datum = match self.owner.next().await {
                FromNode::Data(datum) => datum,
                FromNode::Closed { reason, .. } => return Err(fault(format!("the owner: {reason}"))),
            };
            self.owner.taken(datum.len());
            let MuxFrame { kind, stream, payload } =
                MuxFrame::parse(&datum).map_err(|error| fault(format!("the owner: {error}")))?;
            match kind {
                MuxKind::Open => {
                    let number = <[u8; 4]>::try_from(payload).map_err(io::Error::other)?;
                    let number = usize::try_from(u32::from_be_bytes(number)).map_err(io::Error::other)?;
                    self.open.borrow_mut().insert(stream, Visitor { number, got: 0, sent: 0 });
                    self.opened.0.try_send(stream).map_err(io::Error::other)?;
                }
                MuxKind::Data => {
                    let mut open = self.open.borrow_mut();
                    let visitor =
                        open.get_mut(&stream).ok_or_else(|| fault(format!("no stream {stream}")))?;
                    visitor.got += self.check(visitor.number, visitor.got, payload)?;
                    self.up.remove(payload.len());
                    complete += usize::from(visitor.got == self.size);
                    self.end_if_complete(stream, visitor);
                }
                MuxKind::Ping | MuxKind::Pong => {}
                MuxKind::End | MuxKind::Reset => return Err(fault(format!("{kind:?} of stream {stream}"))),
            }
        }
        Ok(())
    }

    /// Sends visitors what they are to get, one piece for each in turn.
    async fn answer(&self) -> io::Result<()> {
        let mut streams = Vec::new();
        while streams.len() < VISITORS {
            streams.push(self.opened.1.recv().await.map_err(io::Error::other)?);
        }
        for at in (0..self.size).step_by(CHUNK) {
            for stream in &streams {
                self.owner.room().await;
                self.down.room().await;
                let mut open = self.open.borrow_mut();
                let Some(visitor) = open.get_mut(stream) else { continue };
                let piece = self.piece(VISITORS + visitor.number, at, CHUNK);
                if visitor.number != SLOW {
                    self.down.add(piece.len());
                }
                self.owner.send([&head(MuxKind::Data, *stream)[..], piece].concat());
                visitor.sent += piece.len();
                self.end_if_complete(*stream, visitor);
            }
        }
        Ok(())
    }

    fn end_if_complete(&self, stream: u32, visitor: &Visitor) {
        if visitor.got == self.size && visitor.sent == self.size {
            self.owner.send(head(MuxKind::End, stream).to_vec());
        }
    }

    /// Ends only when nothing arrives any more.
    async fn watch(&self) -> io::Result<()> {
        loop {
            let before = self.moved.get();
            Timer::after(STALLED).await;
            if self.moved.get() == before {
                return Err(fault(format!(
                    "nothing arrived for {} s, after {before} bytes",
                    STALLED.as_secs()
                )));
            }
        }
    }
}

fn no_session() -> io::Error {
    io::Error::other("the node has no session any more")
}
