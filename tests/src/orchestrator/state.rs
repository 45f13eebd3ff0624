//! What the orchestrator knows: its key, its nodes, and what is on the way to become one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use consensus_core::peer::offer::Offer;
use consensus_core::release::manifest::Manifest;
use consensus_core::wire::hex;
use serde::{Deserialize, Serialize};
use smol::channel::Sender;

use super::tunnel::Command;
use crate::backlog::Backlog;

/// A registered node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its key, as it registered.
    pub public_key_pem: String,
    /// What it said at `POST /node/join`.
    pub ipv4: String,
    /// The same.
    pub ipv6: Option<String>,
    /// The same.
    pub port: u16,
    /// The verified address.
    pub contact: String,
    /// Unix seconds.
    pub registered_at: u64,
}

/// An address that is being verified.
pub(super) struct EmailCheck {
    pub(super) email: String,
    pub(super) code: String,
    pub(super) expires_at: u64,
}

/// The control session of a node.
pub(super) struct Attached {
    pub(super) connection: u64,
    pub(super) commands: Sender<Command>,
    /// Bytes that the node has not taken.
    pub(super) unsent: Backlog,
}

/// A public tunnel that has an owner.
pub(super) struct PublicTunnel {
    pub(super) node_id: String,
    /// Bytes that the owner has not taken.
    pub(super) queued: Backlog,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) emails: BTreeMap<String, EmailCheck>,
    /// Verification tokens and the address each stands for.
    pub(super) tokens: BTreeMap<String, String>,
    pub(super) offers: BTreeMap<String, Offer>,
    pub(super) nodes: BTreeMap<String, NodeRecord>,
    pub(super) required: Option<Manifest>,
    pub(super) attached: BTreeMap<String, Attached>,
    pub(super) tunnels: BTreeMap<String, PublicTunnel>,
    /// What is served at `/artifacts/`, by name.
    pub(super) artifacts: BTreeMap<String, Arc<Vec<u8>>>,
}

/// What `--state FILE` keeps.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The seed of the server's signing key, hex.
    seed: String,
    nodes: BTreeMap<String, NodeRecord>,
    #[serde(default)]
    required: Option<Manifest>,
}

impl Saved {
    pub(super) fn of(seed: &[u8; 32], state: &State) -> Self {
        Self { seed: hex::encode(seed), nodes: state.nodes.clone(), required: state.required.clone() }
    }

    /// The server's seed and state; `None` where there is no file yet.
    pub(super) fn load(path: &Path) -> io::Result<Option<([u8; 32], State)>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let saved: Self = serde_json::from_slice(&text)?;
        let seed = hex::decode(&saved.seed).and_then(|seed| seed.try_into().ok());
        let seed =
            seed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "seed: not 64 hex digits"))?;
        Ok(Some((seed, State { nodes: saved.nodes, required: saved.required, ..State::default() })))
    }

    pub(super) fn store(&self, path: &Path) -> io::Result<()> {
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        fs::rename(partial, path)
    }
}
