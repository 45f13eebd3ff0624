//! The tunnel: one encrypted session with the server over a WebSocket (protocol.md sections 2 to 4).

pub(crate) mod connection;
pub(crate) mod down;
pub mod handshake;
pub(crate) mod reconnect;
pub mod session;

use core::fmt;

use serde::{Deserialize, Serialize};

/// What a tunnel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The machine is being evaluated; no registration needed.
    Eval,
    /// The node serves.
    Control,
}

impl Mode {
    /// As it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eval => "eval",
            Self::Control => "control",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
