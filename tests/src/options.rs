//! What the local orchestrator is told: what it demands, and how it misbehaves.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use argh::FromArgs;

/// Run a local orchestrator until it is stopped.
///
/// Example: consensus-testbed serve --listen 127.0.0.1:9800
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "serve")]
pub struct Options {
    /// address to listen at; port 0 takes a free one (default 127.0.0.1:9800)
    #[argh(option, default = "SocketAddr::from(([127, 0, 0, 1], 9800))")]
    pub listen: SocketAddr,

    /// serve https and wss with a certificate of a new authority of its own
    #[argh(switch)]
    pub tls: bool,

    /// where to write the authority's certificate, for a node's --ca (default consensus-testbed-ca.pem)
    #[argh(option, default = "PathBuf::from(\"consensus-testbed-ca.pem\")")]
    pub ca_out: PathBuf,

    /// name or address in the server's certificate; may be repeated (default localhost and 127.0.0.1)
    #[argh(option)]
    pub cert_name: Vec<String>,

    /// give the server a certificate that has "expired", that is not valid yet: "future", or not for long: "soon"
    #[argh(option)]
    pub cert_dates: Option<CertDates>,

    /// file that keeps the server's key and its nodes, so that a restarted server knows them
    #[argh(option)]
    pub state: Option<PathBuf>,

    /// what x-admin-key must say (default admin)
    #[argh(option, default = "String::from(\"admin\")")]
    pub admin_key: String,

    /// send verification codes by "email" alone (they are printed here), and not to the node as well
    #[argh(switch)]
    pub no_dev_code: bool,

    /// ask for payment before a node may join
    #[argh(switch)]
    pub require_payment: bool,

    /// tell nothing of messages and requests: for measurements
    #[argh(switch)]
    pub quiet: bool,

    /// never admit a node, whatever it measures
    #[argh(switch)]
    pub refuse_eval: bool,

    /// memory a node must have, in MiB (default 512)
    #[argh(option, default = "512")]
    pub min_memory_mb: u64,

    /// longest 99th percentile of a node's event loop, in milliseconds (default 50)
    #[argh(option, default = "50.0")]
    pub max_event_loop_p99_ms: f64,

    /// how long a node is measured without a pause, in milliseconds (default 30000)
    #[argh(option, default = "30_000")]
    pub sustained_ms: u32,

    /// the windows of that, in milliseconds (default 5000)
    #[argh(option, default = "5_000")]
    pub window_ms: u32,

    /// take a node whatever it sustains: for a machine that has other work
    #[argh(switch)]
    pub lenient: bool,

    /// measure what decides nothing for a moment only
    #[argh(switch)]
    pub quick: bool,

    /// what a node is to fetch when it is evaluated; without it, nothing
    #[argh(option)]
    pub speedtest_url: Option<String>,

    /// how to misbehave on the tunnel: drop[=N] stall no-accept no-ready silent half-open wrong-signature unsigned
    /// reject[=CODE] stale-clock junk oversize replay reorder close=CODE
    #[argh(option)]
    pub bad: Option<Bad>,

    /// misbehave on that many connections only, then serve well
    #[argh(option)]
    pub bad_connections: Option<u64>,
}

impl Default for Options {
    /// A well-behaved server at a free port, for tests: what it asks for takes a moment, and says nothing of a machine
    /// that has other work.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            ca_out: PathBuf::new(),
            cert_name: Vec::new(),
            cert_dates: None,
            state: None,
            admin_key: String::from("admin"),
            no_dev_code: false,
            require_payment: false,
            quiet: false,
            refuse_eval: false,
            min_memory_mb: 512,
            max_event_loop_p99_ms: 50.0,
            sustained_ms: 1000,
            window_ms: 250,
            lenient: true,
            quick: true,
            speedtest_url: None,
            bad: None,
            bad_connections: None,
        }
    }
}

/// When a certificate is valid that is not valid now, or not for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertDates {
    /// It was.
    Expired,
    /// It will be.
    Future,
    /// For some days more.
    Soon,
}

impl FromStr for CertDates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "expired" => Ok(Self::Expired),
            "future" => Ok(Self::Future),
            "soon" => Ok(Self::Soon),
            _ => Err(format!("{text}: allowed: expired, future, soon")),
        }
    }
}

/// A way to misbehave on the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Cut the TCP connection, without a word, after this many messages of the node; the handshake is the first.
    Drop(u64),
    /// Take the connection and never answer the upgrade.
    Stall,
    /// Answer the upgrade and never the handshake.
    NoAccept,
    /// Answer the handshake and never `hello`.
    NoReady,
    /// After `ready`, read everything and send nothing, no pong either.
    Silent,
    /// After `ready`, neither read nor send: as if the machine had vanished.
    HalfOpen,
    /// Sign the handshake with another key than the server's.
    WrongSignature,
    /// Do not sign the handshake.
    Unsigned,
    /// Reject the handshake with this code.
    Reject(String),
    /// Have a clock that is ten minutes off, and so reject.
    StaleClock,
    /// After `ready`, send garbage of every kind, then go on as if nothing had happened.
    Junk,
    /// After `ready`, announce a WebSocket frame of 1 GiB.
    Oversize,
    /// Send every frame twice.
    Replay,
    /// Send a pair of frames after `ready` in the wrong order.
    Reorder,
    /// After `ready`, close with this WebSocket code.
    Close(u16),
}

impl FromStr for Bad {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let number = |what: &str| {
            value.map(|v| v.parse().map_err(|_| format!("{name}={v}: {what} is not a number"))).transpose()
        };
        let bad = match name {
            "drop" => Self::Drop(number("N")?.unwrap_or(1)),
            "stall" => Self::Stall,
            "no-accept" => Self::NoAccept,
            "no-ready" => Self::NoReady,
            "silent" => Self::Silent,
            "half-open" => Self::HalfOpen,
            "wrong-signature" => Self::WrongSignature,
            "unsigned" => Self::Unsigned,
            "reject" => Self::Reject(value.unwrap_or("not_welcome").to_owned()),
            "stale-clock" => Self::StaleClock,
            "junk" => Self::Junk,
            "oversize" => Self::Oversize,
            "replay" => Self::Replay,
            "reorder" => Self::Reorder,
            "close" => match number("CODE")?.map_or(Ok(1012), u16::try_from) {
                // The codes an endpoint may send (RFC 6455, 7.4).
                Ok(code @ (1000..=1003 | 1007..=1014 | 3000..=4999)) => Self::Close(code),
                _ => return Err(format!("{text}: not a close code that can be sent")),
            },
            _ => return Err(format!("{text}: no such misbehaviour; see --help")),
        };
        if value.is_some() && !matches!(bad, Self::Drop(_) | Self::Reject(_) | Self::Close(_)) {
            return Err(format!("{text}: {name} takes no value"));
        }
        Ok(bad)
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop(count) => write!(f, "drop={count}"),
            Self::Stall => f.write_str("stall"),
            Self::NoAccept => f.write_str("no-accept"),
            Self::NoReady => f.write_str("no-ready"),
            Self::Silent => f.write_str("silent"),
            Self::HalfOpen => f.write_str("half-open"),
            Self::WrongSignature => f.write_str("wrong-signature"),
            Self::Unsigned => f.write_str("unsigned"),
            Self::Reject(code) => write!(f, "reject={code}"),
            Self::StaleClock => f.write_str("stale-clock"),
            Self::Junk => f.write_str("junk"),
            Self::Oversize => f.write_str("oversize"),
            Self::Replay => f.write_str("replay"),
            Self::Reorder => f.write_str("reorder"),
            Self::Close(code) => write!(f, "close={code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_misbehaviour_is_read_as_it_is_written() {
        for text in [
            "drop=3",
            "stall",
            "no-accept",
            "no-ready",
            "silent",
            "half-open",
            "wrong-signature",
            "unsigned",
            "reject=banned",
            "stale-clock",
            "junk",
            "oversize",
            "replay",
            "reorder",
            "close=1012",
        ] {
            assert_eq!(text.parse::<Bad>().unwrap().to_string(), text);
        }
        for text in ["", "close=1005", "close=70000", "drop=x", "junk=1", "polite"] {
            assert!(text.parse::<Bad>().is_err(), "{text}");
        }
    }
}
