//! The node as one machine: routes inputs to the machine they belong to, and has no protocol rule of its own.

use alloc::collections::VecDeque;
use alloc::string::String;

use zeroize::Zeroizing;

use crate::crypto::Crypto;
use crate::io::{Input, Output};
use crate::limits::Limits;
use crate::release::manifest::Manifest;
use crate::state::Registration;
use crate::time::Now;
use crate::tunnel::Mode;

/// What a node is told once, at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the tunnel is for; `None` for a node that only serves its local API.
    pub mode: Option<Mode>,
    /// `ws://…/node/tunnel` or `wss://…/node/tunnel`.
    pub tunnel_url: String,
    /// The server's signing key, where the operator pinned one.
    pub server_key: Option<[u8; 32]>,
    /// The Ed25519 seed in `keys/node.key`.
    pub identity_seed: Zeroizing<[u8; 32]>,
    /// An operator's own name for this candidate, told to the server.
    pub candidate_id: Option<String>,
    /// `config.json`, where the node is registered. Mode `Control` needs it.
    pub registration: Option<Registration>,
    /// The manifest of the running release.
    pub manifest: Manifest,
    /// Bounds.
    pub limits: Limits,
}

/// The node.
pub struct Node<C: Crypto> {
    crypto: C,
    outputs: VecDeque<Output>,
}

impl<C: Crypto> Node<C> {
    /// A node that has done nothing yet. `seed` is 32 bytes of the system's randomness.
    pub fn new(config: Config, crypto: C, seed: [u8; 32], now: Now) -> Self {
        let _ = (config, seed, now);
        Self { crypto, outputs: VecDeque::new() }
    }

    /// Never fails: a bad peer, a lost socket, a failed effect are inputs, and what follows is an output.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        let _ = (now, input, &self.crypto);
    }

    /// The next thing to do. Drain until [`Output::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or(Output::Wait(None))
    }
}
