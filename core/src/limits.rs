//! Every bound of the node, with its value and why.
//!
//! The constants are the protocol's or this implementation's own and are the same everywhere; [`Limits`] holds
//! those that an operator may set.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::io::Bounds;

/// One WebSocket message, whichever way (protocol.md section 2). A shell hands it to its WebSocket library,
/// which refuses a larger one by its header, before memory is taken for it.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A message that carries nobody's bytes: everything but requests, responses, stream data and eval. Real ones are
/// under 4 KiB.
pub const MAX_SMALL_MESSAGE: usize = 64 * 1024;

/// A handshake message. The largest legal one is under 1 KiB.
pub const MAX_HANDSHAKE: usize = 16 * 1024;

/// Text of a peer in an event, a log line or an error message, in characters.
pub const MAX_PEER_TEXT: usize = 300;

/// An identifier that a peer chose (`id`, `reply_to`, `stream_id`, `update_id`), in bytes. The deployed network
/// uses UUIDs (36).
pub const MAX_ID: usize = 128;

/// A release's tarball, in bytes. Real ones have a few MiB.
pub const MAX_TARBALL: u64 = 256 * 1024 * 1024;

/// How far a clock may be off before the server refuses a handshake (protocol.md section 3).
pub const HANDSHAKE_CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

/// The transport, from the first look-up to the end of the WebSocket upgrade.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// From `handshake_init` to `handshake_accept`, and again from `hello` to `ready`.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two heartbeats (protocol.md section 4).
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// The first wait before a reconnect (protocol.md section 9).
pub const RECONNECT_FIRST: Duration = Duration::from_secs(1);

/// The longest wait before a reconnect, jitter not counted.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// Random addition to each wait, so that a fleet does not come back in one instant.
pub const RECONNECT_JITTER: Duration = Duration::from_millis(500);

/// One eval action (protocol.md section 5).
pub const EVAL_ACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// A sustained measurement has its own duration and this (protocol.md section 5).
pub const EVAL_SUSTAINED_GRACE: Duration = Duration::from_secs(15);

/// An eval action that is a fetch (protocol.md section 5).
pub const EVAL_FETCH_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest sustained measurement, in milliseconds: ten times that of the protocol's default.
pub const MAX_SUSTAINED_MS: u32 = 600_000;

/// The shortest window of one, in milliseconds: a few dozen requests on a slow machine, and a result of all windows
/// that fits in a frame.
pub const MIN_WINDOW_MS: u32 = 100;

/// Eval actions waiting their turn. The server asks mostly one at a time.
pub const MAX_EVAL_QUEUE: usize = 16;

/// Fetches of an evaluation at once (protocol.md section 5).
pub const MAX_EVAL_FETCHES: usize = 6;

/// How long an evaluated node waits for the next action or for `join_ready`. On a failure the server sends
/// nothing (protocol.md section 5), so this is when the node gives its own verdict.
pub const EVAL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// After so long without a new action the operator is told that the network is being waited for.
pub const EVAL_PATIENCE: Duration = Duration::from_secs(3);

/// The decoded payload of `tunnel_echo` (protocol.md section 5).
pub const MAX_ECHO: usize = 512 * 1024;

/// A proxied request, from its arrival to its answer (protocol.md section 9).
pub const PROXY_TIMEOUT: Duration = Duration::from_secs(30);

/// A request of the local API that has to wait for an effect. `/benchmark/all` is the longest.
pub const LOCAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests of the local API under way at once.
pub const MAX_LOCAL_REQUESTS: usize = 64;

/// The body of a request to the local API. Its largest legal user is `/proxy`.
pub const MAX_LOCAL_BODY: usize = 10 * 1024 * 1024;

/// A response of the network's own HTTP interface (registration, manifest, status). Real ones are a few KiB.
pub const MAX_SERVER_RESPONSE: usize = 256 * 1024;

/// Bodies of proxied requests held at once, decoded, in bytes.
pub const MAX_REQUEST_BODIES: usize = 64 * 1024 * 1024;

/// What the data plane's jobs hold at once, in bytes: frames to open, bodies to seal. Cores that fall behind the network
/// must not gather what they have no time for.
pub const MAX_JOB_BYTES: usize = 128 * 1024 * 1024;

/// Jobs of the data plane there are when no further handshake is taken: as many as there can be clients. A client that
/// goes leaves its job behind, so that the clients alone do not bound them.
pub const MAX_JOBS: usize = 4096;

/// One exchange with the network's own HTTP interface. It may take its time to answer: it mails codes.
pub const SERVER_BOUNDS: Bounds = Bounds {
    connect: CONNECT_TIMEOUT,
    first_byte: Duration::from_secs(30),
    whole: Duration::from_secs(30),
    max_head: MAX_HTTP_HEAD,
    max_body: MAX_SERVER_RESPONSE,
};

/// From the begin of a look-up to a connection, TLS included. A target far away takes one second; what does not answer
/// in ten does not answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The head (status line and headers) of any HTTP message, in bytes.
pub const MAX_HTTP_HEAD: usize = 64 * 1024;

/// Header fields of any HTTP message.
pub const MAX_HTTP_HEADERS: usize = 128;

/// The body of a proxied response that travels in one tunnel frame: base64 makes 4 bytes of 3, and the rest of
/// the message (at most a head of [`MAX_HTTP_HEAD`], escaped) must fit beside it in [`MAX_MESSAGE`].
pub const MAX_TUNNEL_BODY: usize = (MAX_MESSAGE - 512 * 1024) / 4 * 3;

/// The body of a response that travels in a stream's datum: it is base64 inside JSON inside base64 inside JSON, which
/// makes 16 bytes of 9.
pub const MAX_STREAM_BODY: usize = (MAX_MESSAGE - 1024 * 1024) / 16 * 9;

/// Streams that an operator may allow at once, at the most.
pub const MAX_STREAMS: usize = 4096;

/// Names of streams that have ended, kept so that what was on its way for them is not taken for something new.
pub const MAX_ENDED_STREAMS: usize = 1024;

/// From one step of a data-plane client to its next: `data_init`, then the request.
pub const DATA_PLANE_STEP: Duration = Duration::from_secs(10);

/// Bytes of streams that wait to be taken by the server, above which the tunnel is not read: what relays bring in must
/// not come faster than it goes out. Low, so that the server's answers to pings do not wait long behind them.
pub const HOLD_ABOVE: usize = 1024 * 1024;

/// Below this the tunnel is read again.
pub const HOLD_BELOW: usize = 256 * 1024;

/// Read at once from a target of a raw tunnel, at the most; the next is read when the tunnel has taken it.
pub const MAX_SOCKET_READ: usize = 64 * 1024;

/// What all raw tunnels together may have on its way to the server: with many of them each reads less at once.
pub const MAX_SOCKET_READS: usize = 4 * 1024 * 1024;

/// Bytes for one target of a raw tunnel that it has not taken. The protocol has no way to slow a stream down, and a
/// slow target must not hold up the tunnel, so over it the stream ends.
pub const MAX_SOCKET_UNSENT: usize = 16 * 1024 * 1024;

/// The same for all targets together.
pub const MAX_SOCKETS_UNSENT: usize = 32 * 1024 * 1024;

/// A frame of a public tunnel carries no more than this; a larger datum is cut into several, because what was base64
/// on its way in has grown by a head when it goes out.
pub const MAX_RELAYED: usize = 1024 * 1024;

/// A release that the network directs, from `update_prepare` to its answer. What was downloaded of it is kept.
pub const PREPARE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The longest `restart_after_ms` that is waited: nothing new is taken on meanwhile.
pub const MAX_RESTART_AFTER: Duration = Duration::from_secs(60);

/// After that, what still runs gets so long to end before an update is installed: as long as a request may take.
pub const DRAIN_LIMIT: Duration = PROXY_TIMEOUT;

/// The installer, or the operator's command. Nothing new is taken on meanwhile.
pub const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// A clean stop waits no longer for the spent tickets to be on the disk.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Bounds that an operator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Between two pings of the node to the server.
    pub ping_interval: Duration,
    /// Without one authentic frame for this long, the session is given up.
    pub silence_limit: Duration,
    /// Requests fetched for others at once; one more is answered with an error.
    pub max_requests: usize,
    /// Streams of the tunnel and connections at `/connect` open at once; one more is refused. Never more than
    /// [`MAX_STREAMS`].
    pub max_streams: usize,
    /// `data_init`s that lead to no paid request, a second: each costs the node a key agreement and a signature. As
    /// many may come at once.
    pub max_inits: u32,
    /// The body of a request to be proxied, decoded, in bytes.
    pub max_request_body: usize,
    /// The body of a proxied response, in bytes; where it has to fit in a frame never more than [`MAX_TUNNEL_BODY`].
    pub max_response_body: usize,
    /// The head of a response that is fetched for others, in bytes. Never more than [`MAX_HTTP_HEAD`].
    pub max_head: usize,
    /// From the begin of a look-up to a connection, TLS included.
    pub connect_timeout: Duration,
    /// From there to the first byte of the answer.
    pub first_byte_timeout: Duration,
    /// A proxied request, from its arrival to its answer. Never more than [`PROXY_TIMEOUT`].
    pub request_timeout: Duration,
}

impl Limits {
    /// What a fetch for others may take, where its body may have that many bytes.
    #[must_use]
    pub fn bounds(&self, max_body: usize) -> Bounds {
        Bounds {
            connect: self.connect_timeout.min(self.request_timeout),
            first_byte: self.first_byte_timeout.min(self.request_timeout),
            whole: self.request_timeout,
            max_head: self.max_head.min(MAX_HTTP_HEAD),
            max_body: max_body.min(self.max_response_body),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(20),
            silence_limit: Duration::from_secs(60),
            max_requests: 256,
            max_streams: 1024,
            max_inits: 500,
            max_request_body: 10 * 1024 * 1024,
            max_response_body: 50 * 1024 * 1024,
            max_head: MAX_HTTP_HEAD,
            connect_timeout: CONNECT_TIMEOUT,
            first_byte_timeout: PROXY_TIMEOUT,
            request_timeout: PROXY_TIMEOUT,
        }
    }
}
