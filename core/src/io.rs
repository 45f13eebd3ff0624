//! What goes into a [`Node`](crate::node::Node) and what comes out of it.
//!
//! Everything here is plain data: it can be printed, compared, serialised and replayed. Buffers are owned, so
//! that a frame is opened in the buffer it arrived in and a trace can hold what it saw.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bench::report::Report;
use crate::data_plane::replay;
use crate::event::Event;
use crate::guard::Target;
use crate::release::manifest::Manifest;
use crate::setup::MAX_PROGRESS;
use crate::state::MAX_STATE_FILE;
use crate::time::Deadline;
use crate::update::Install;

/// One attempt at a transport to the server, from [`Output::OpenLink`] to its end. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// One effect, from [`Output::Perform`] to [`Input::Done`]. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EffectId(pub u64);

/// One TCP connection to a target, from [`Output::OpenSocket`] to its end. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SocketId(pub u64);

/// One job of the data plane, from [`Output::Compute`] to
/// [`Node::handle_computed`](crate::node::Node::handle_computed). Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// One request to the local API, and the WebSocket that it may become; the shell numbers them and never reuses a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LocalId(pub u64);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// Time passed. Also the first input of all.
    Tick,
    /// The transport asked for by [`Output::OpenLink`] is open: the WebSocket upgrade succeeded.
    LinkOpened {
        /// Which.
        link: LinkId,
    },
    /// A binary WebSocket message arrived.
    LinkBinary {
        /// Where.
        link: LinkId,
        /// Its payload; opened in place.
        data: Vec<u8>,
    },
    /// A text WebSocket message arrived.
    LinkText {
        /// Where.
        link: LinkId,
        /// Its payload.
        text: String,
    },
    /// The transport took so many bytes of what [`Output::Send`] gave, in order. May be told for several messages
    /// together, but soon: streams wait for it.
    LinkSent {
        /// Which.
        link: LinkId,
        /// Payload bytes of whole messages since this was last told.
        bytes: usize,
    },
    /// The transport could not be opened, or has ended. Nothing of this link follows.
    LinkEnded {
        /// Which.
        link: LinkId,
        /// How.
        end: LinkEnd,
    },
    /// An effect came to its end. Every [`Output::Perform`] gets exactly one, cancelled or not.
    Done {
        /// Which.
        effect: EffectId,
        /// With what.
        result: EffectResult,
    },
    /// The TCP connection asked for by [`Output::OpenSocket`] is there.
    SocketOpened {
        /// Which.
        socket: SocketId,
    },
    /// What one [`Output::ReadSocket`] asked for.
    SocketData {
        /// Where.
        socket: SocketId,
        /// At least one byte, at most as many as were asked for.
        data: Vec<u8>,
    },
    /// The socket took so many bytes of what [`Output::SendSocket`] gave.
    SocketSent {
        /// Which.
        socket: SocketId,
        /// Since this was last told.
        bytes: usize,
    },
    /// The socket could not be opened, or has ended. Nothing of it follows. Not told after [`Output::CloseSocket`].
    SocketEnded {
        /// Which.
        socket: SocketId,
        /// How.
        end: SocketEnd,
    },
    /// A request to the local API.
    Local {
        /// Answered by one [`Output::Respond`].
        id: LocalId,
        /// The request, its framing already checked and its body complete.
        request: LocalRequest,
    },
    /// A message, binary or text, on a WebSocket of the local API: on a request that was answered with status 101.
    LocalMessage {
        /// Which.
        id: LocalId,
        /// Its payload, at most [`MAX_MESSAGE`](crate::limits::MAX_MESSAGE); opened in place.
        data: Vec<u8>,
    },
    /// A WebSocket of the local API has ended. Not told after [`Output::CloseLocal`].
    LocalEnded {
        /// Which.
        id: LocalId,
    },
    /// The operator (or the supervisor) asks the node to stop in good order.
    Stop,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// Nothing more now: call [`handle_input`](crate::node::Node::handle_input) when something happens, and with
    /// [`Input::Tick`] at the deadline if nothing did.
    Wait(Option<Deadline>),
    /// Open a WebSocket to `url`; answer with [`Input::LinkOpened`] or [`Input::LinkEnded`].
    OpenLink {
        /// Its name from here on.
        link: LinkId,
        /// `ws://…` or `wss://…`, whole.
        url: String,
    },
    /// Send one binary WebSocket message, after all that was sent before on this link.
    Send {
        /// Where.
        link: LinkId,
        /// The payload.
        data: Vec<u8>,
    },
    /// Send what is still unsent, then a close frame, then end the transport. No input of this link is expected
    /// any more; a shell must not wait long for the peer's own close frame.
    CloseLink {
        /// Which.
        link: LinkId,
        /// The WebSocket close code.
        code: u16,
        /// The WebSocket close reason, at most 123 bytes.
        reason: String,
    },
    /// End the transport at once, whatever state it is in: nobody answers at the other end.
    DropLink {
        /// Which.
        link: LinkId,
    },
    /// Read nothing of the link for now (`true`), or go on (`false`): more waits to be sent than the server takes.
    /// A message that was being read may still be told.
    HoldLink {
        /// Which.
        link: LinkId,
        /// Whether to hold.
        hold: bool,
    },
    /// Open a TCP connection on behalf of `audience`: one look-up, every address judged by
    /// [`guard`](crate::guard), the connection made to the address that was judged. Answer with
    /// [`Input::SocketOpened`] or [`Input::SocketEnded`].
    OpenSocket {
        /// Its name from here on.
        socket: SocketId,
        /// How far it may reach.
        audience: Audience,
        /// A name or a literal address, without brackets.
        host: String,
        /// Never 0.
        port: u16,
        /// For the look-up and the connection together.
        timeout: Duration,
    },
    /// Write to a socket, after all that was given before; tell [`Input::SocketSent`] as it goes.
    SendSocket {
        /// Where.
        socket: SocketId,
        /// At least one byte.
        data: Vec<u8>,
    },
    /// Read once from a socket, at most `most` bytes; answer with one [`Input::SocketData`], or with the end. Nothing
    /// is read of a socket without it: this is what holds up a target that is faster than the tunnel.
    ReadSocket {
        /// Which.
        socket: SocketId,
        /// Bytes.
        most: usize,
    },
    /// Write what is unsent, within a few seconds, then close. Also ends an attempt to open. Nothing of this socket is
    /// told any more.
    CloseSocket {
        /// Which.
        socket: SocketId,
    },
    /// Send one binary message on a WebSocket of the local API.
    SendLocal {
        /// Which.
        id: LocalId,
        /// The payload.
        data: Vec<u8>,
    },
    /// Send what is unsent, then a close frame, then end the WebSocket. Nothing of it is told any more.
    CloseLocal {
        /// Which.
        id: LocalId,
        /// The WebSocket close code.
        code: u16,
        /// The WebSocket close reason, at most 123 bytes.
        reason: String,
    },
    /// Take a job out of the node ([`Node::take_job`](crate::node::Node::take_job)), run it on any thread, and give what
    /// it made to [`Node::handle_computed`](crate::node::Node::handle_computed). Every job comes back exactly once.
    Compute {
        /// Which.
        job: JobId,
    },
    /// Do something that is not of the link; answer with [`Input::Done`].
    Perform {
        /// Its name in the answer.
        id: EffectId,
        /// What to do.
        effect: Effect,
    },
    /// The result of an effect is no longer wanted: end it soon if that is easy. [`Input::Done`] still follows.
    Cancel {
        /// Which.
        id: EffectId,
    },
    /// Answer a request to the local API. A status of 101 makes a WebSocket of it (RFC 6455): the request was checked
    /// to ask for one, and the shell adds the header fields of the handshake. From then on its messages are
    /// [`Input::LocalMessage`].
    Respond {
        /// Which.
        id: LocalId,
        /// With what.
        response: LocalResponse,
    },
    /// Tell the operator.
    Event(#[serde(with = "crate::trace::json")] Event),
    /// The node has come to its end: nothing but [`Output::Wait`] follows. Sends and closes that came before are
    /// still to be carried out.
    Finish(Finish),
}

/// How a transport ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkEnd {
    /// It never opened.
    Unopened {
        /// What was being done.
        stage: OpenStage,
        /// What the system or library said; the operator's eyes only.
        detail: String,
    },
    /// The server refused the WebSocket upgrade with an HTTP response.
    NotUpgraded {
        /// Its HTTP status.
        status: u16,
    },
    /// The server sent a close frame.
    Closed {
        /// Its code; 1005 when it had none (RFC 6455, 7.1.5).
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// The server sent a message over [`limits::MAX_MESSAGE`](crate::limits::MAX_MESSAGE). The shell has sent
    /// close code 1009.
    TooLarge,
    /// The server broke the WebSocket protocol. The shell has sent close code 1002.
    BadWebSocket {
        /// What the library said.
        detail: String,
    },
    /// The connection broke, or ended without a close frame.
    Lost {
        /// What the system said.
        detail: String,
    },
}

/// How a socket ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketEnd {
    /// It never opened; the kind is one of those of a connection.
    Unopened(FetchError),
    /// The target has closed it in good order, and all that it sent was told.
    Closed,
    /// It broke.
    Failed {
        /// What the system said.
        detail: String,
    },
}

/// How far the opening of a transport came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenStage {
    /// The server's name did not resolve.
    Resolve,
    /// No address took a TCP connection.
    Connect,
    /// TLS failed: certificate, name or protocol.
    Tls,
    /// The HTTP upgrade failed.
    Upgrade,
    /// The operator's [proxy](crate::proxy) was not reached, or makes no tunnel to the server.
    Proxy,
}

/// Work outside the link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Effect {
    /// One HTTP exchange; answered by [`EffectResult::Fetched`].
    Fetch(Fetch),
    /// One measurement of this machine; answered by [`EffectResult::Measured`].
    Measure(Measurement),
    /// Replace a file of the state directory as a whole and durably; answered by [`EffectResult::Written`].
    Write {
        /// Which.
        file: StateFile,
        /// The new content.
        data: Vec<u8>,
    },
    /// Remove a file of the state directory; one that is not there is removed already. Answered by
    /// [`EffectResult::Written`].
    Remove {
        /// Which.
        file: StateFile,
    },
    /// Download the tarball of a manifest, of which [`Artifact::of`](crate::release::artifact::Artifact::of) makes the
    /// request, and check its hash; answered by [`EffectResult::Downloaded`]. What came before it was cancelled, or
    /// failed, is kept and gone on with.
    Download(#[serde(with = "crate::trace::json")] Box<Manifest>),
    /// Look whether a file is a well-formed release; answered by [`EffectResult::Inspected`].
    Inspect {
        /// Its path.
        artifact: String,
    },
    /// Make a release the one that the supervisor starts next; answered by [`EffectResult::Installed`].
    Install(Install),
    /// Write down that the running release has passed its probation; answered by [`EffectResult::Installed`].
    ConfirmRelease,
    /// Write down that the network knows of the rollback; answered by [`EffectResult::Installed`].
    AcknowledgeRollback {
        /// The release may be tried again.
        is_excused: bool,
    },
}

/// The end of an effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EffectResult {
    /// Of [`Effect::Fetch`].
    Fetched(Result<Response, FetchError>),
    /// Of [`Effect::Measure`]; the error is for people.
    Measured(#[serde(with = "crate::trace::json")] Result<Report, String>),
    /// Of [`Effect::Write`] and [`Effect::Remove`]; the error is for people and names the file.
    Written(Result<(), String>),
    /// Of [`Effect::Download`]: the path of the file; the error is for people.
    Downloaded(Result<String, String>),
    /// Of [`Effect::Inspect`]: the manifest in the archive; the error is for people.
    Inspected(#[serde(with = "crate::trace::json")] Result<Box<Manifest>, String>),
    /// Of [`Effect::Install`], [`Effect::ConfirmRelease`] and [`Effect::AcknowledgeRollback`]; the error is for people.
    Installed(Result<(), String>),
}

/// An HTTP request to make. Redirects are not followed; the response is not decompressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Who wants it, and so how far it may reach.
    pub audience: Audience,
    /// A token of RFC 9110, upper case as sent.
    pub method: String,
    /// The URL, parsed by the WHATWG rules, once: what was judged is what is asked for.
    pub target: Target,
    /// Already cleaned: no hop-by-hop field, no `host`, no length. Values are ISO 8859-1, as HTTP has it.
    pub headers: Vec<(String, String)>,
    /// Absent on GET and HEAD.
    pub body: Option<Vec<u8>>,
    /// How long it may take, and how much may come of it.
    pub bounds: Bounds,
}

/// The bounds of one [`Fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// From the begin of the look-up to a connection, TLS included.
    pub connect: Duration,
    /// From the connection to the first byte of an answer, the sending of the request included.
    pub first_byte: Duration,
    /// From the look-up to the last byte. The other two are never longer in effect.
    pub whole: Duration,
    /// The largest head of a response, interim responses before it included, in bytes.
    pub max_head: usize,
    /// The largest body to take, in bytes without the transfer coding.
    pub max_body: usize,
}

/// For whom something is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// The network's own interface, which the operator configured: any address.
    Operator,
    /// Somebody else: only globally reachable addresses, each checked by [`guard`](crate::guard) before the
    /// connection, and the connection goes to a checked one (protocol.md section 11).
    Stranger,
}

/// An HTTP response, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// 200…999; interim responses are not reported.
    pub status: u16,
    /// The reason phrase as received, possibly empty.
    pub reason: String,
    /// In the order received, names as received, values as ISO 8859-1.
    pub headers: Vec<(String, String)>,
    /// With the transfer coding removed and the content coding kept.
    pub body: Vec<u8>,
}

/// Why an HTTP exchange came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchError {
    /// The kind, for decisions.
    pub kind: FetchErrorKind,
    /// The detail, for people; no secret, no resolved address of a stranger's target.
    pub detail: String,
}

/// The kinds of [`FetchError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchErrorKind {
    /// The URL is not one that can be fetched.
    Url,
    /// The guard refused the target.
    Forbidden,
    /// The name did not resolve.
    Resolve,
    /// No connection.
    Connect,
    /// TLS failed.
    Tls,
    /// The time was up.
    Timeout,
    /// The other side broke HTTP, or ended the connection early.
    Protocol,
    /// The response was larger than allowed.
    TooLarge,
    /// Cancelled by [`Output::Cancel`].
    Cancelled,
    /// The node has as much under way as it may.
    Busy,
}

/// What can be measured (protocol.md section 5). Sizes and times of each are fixed by [`bench`](crate::bench).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measurement {
    /// The machine's own description.
    System,
    /// SHA-256.
    Cpu,
    /// ChaCha20-Poly1305.
    Crypto,
    /// Memory copies.
    Memory,
    /// Turns of the shell's own scheduler.
    EventLoop,
    /// Taking, touching and returning memory.
    MemoryPressure {
        /// 1…512.
        test_size_mb: u32,
        /// 1…8.
        rounds: u32,
    },
    /// The data plane's work for one request, stage by stage, at three sizes.
    Composite {
        /// A quarter of a second each, and not a whole one.
        quick: bool,
    },
    /// The same at 16 KiB for long, in windows.
    Sustained {
        /// Of all.
        duration_ms: u32,
        /// Of a window.
        window_ms: u32,
    },
    /// What several cores do at once.
    Multicore {
        /// For each number of them.
        duration_ms: u32,
    },
}

/// A file of the state directory (protocol.md section 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateFile {
    /// The registration.
    Config,
    /// The private key, PKCS#8 PEM.
    NodeKey,
    /// The public key, SPKI PEM.
    NodePub,
    /// What the evaluation earned.
    JoinAuth,
    /// The manifest of the installed release.
    ReleaseManifest,
    /// The tickets that were spent, for the time after a restart.
    SpentTickets,
    /// How far setup came.
    SetupProgress,
}

impl StateFile {
    /// Its path below the state directory, with `/`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Config => "config.json",
            Self::NodeKey => "keys/node.key",
            Self::NodePub => "keys/node.pub",
            Self::JoinAuth => "join-auth.json",
            Self::ReleaseManifest => "release-manifest.json",
            Self::SpentTickets => "spent-tickets.json",
            Self::SetupProgress => "setup-progress.json",
        }
    }

    /// The largest that is read, in bytes.
    #[must_use]
    pub const fn max_size(self) -> usize {
        match self {
            Self::SpentTickets => replay::MAX_FILE,
            Self::SetupProgress => MAX_PROGRESS,
            Self::Config | Self::NodeKey | Self::NodePub | Self::JoinAuth | Self::ReleaseManifest => {
                MAX_STATE_FILE
            }
        }
    }

    /// Whether it holds a secret, and so gets mode 0600.
    #[must_use]
    pub const fn is_secret(self) -> bool {
        match self {
            Self::Config | Self::NodeKey | Self::JoinAuth | Self::SetupProgress => true,
            Self::NodePub | Self::ReleaseManifest | Self::SpentTickets => false,
        }
    }
}

/// A request to the local API, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRequest {
    /// As received.
    pub method: String,
    /// The request target: path and query.
    pub target: String,
    /// Names in lower case, values as ISO 8859-1.
    pub headers: Vec<(String, String)>,
    /// Empty when there is none.
    pub body: Vec<u8>,
}

impl LocalRequest {
    /// The first header field of that (lower-case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The answer of the local API. The shell adds `content-length`, `date` and `connection`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalResponse {
    /// The HTTP status.
    pub status: u16,
    /// Fields to send, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// How the node ended: decides the exit code of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// The kind.
    pub outcome: Outcome,
    /// One sentence for the operator.
    pub message: String,
}

/// The ends a run can come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that was asked was done.
    Done,
    /// Another release is installed: whatever supervises this process is to start it.
    Updating,
    /// Something that must come first is missing: no registration, no evaluation.
    NotRegistered,
    /// The network said no.
    Refused,
    /// The network wants to be paid first.
    PaymentRequired,
    /// The network requires another release than the one that runs.
    Outdated,
    /// The network could not be reached.
    Unreachable,
    /// This program or this machine failed.
    Internal,
    /// Another process has the state directory: `scripts/run-node.sh` knows this code, and waits.
    Occupied,
}

impl Outcome {
    /// The exit code of the program. 2, a usage error, is decided before there is a node.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::Updating => 0,
            Self::NotRegistered => 3,
            Self::Refused => 4,
            Self::PaymentRequired => 5,
            Self::Outdated => 6,
            Self::Unreachable => 69,
            Self::Internal => 70,
            Self::Occupied => 73,
        }
    }
}
