//! A whole network for one node: orchestrator, upstream, and a home for the node's state.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::client::{self, Answer};
use crate::options::Options;
use crate::orchestrator::{Journal, Orchestrator};
use crate::process::{Home, free_address};
use crate::upstream::Upstream;

/// Where nodes of the testbed are paid: addresses of the right form that belong to nobody here.
pub const PAYOUT_OPTIONS: [&str; 6] = [
    "--evm-address",
    "0x0000000000000000000000000000000000000001",
    "--solana-address",
    "11111111111111111111111111111112",
    "--icp-address",
    "ryjl3-tyaaa-aaaaa-aaaba-cai",
];

/// The network.
#[derive(Debug)]
pub struct Network {
    /// The network's own interface.
    pub orchestrator: Orchestrator,
    /// Something to fetch from.
    pub upstream: Upstream,
    /// The node's state.
    pub home: Home,
    /// A free address for the node's local interface.
    pub local_api: SocketAddr,
}

impl Network {
    /// A well-behaved network.
    ///
    /// # Errors
    /// No port, no file, no thread to be had.
    pub fn start(tls: bool) -> io::Result<Self> {
        Self::with(Options { tls, ..Options::default() })
    }

    /// A network of these options. It listens at a free port, and its authority's certificate is in the home.
    ///
    /// # Errors
    /// No port, no file, no thread to be had.
    pub fn with(mut options: Options) -> io::Result<Self> {
        let home = Home::new()?;
        options.ca_out = home.root().join("ca.pem");
        Ok(Self {
            orchestrator: Orchestrator::start(options, Journal::new(false))?,
            upstream: Upstream::start()?,
            local_api: free_address()?,
            home,
        })
    }

    /// A command that runs a node of this network.
    #[must_use]
    pub fn node<A: AsRef<OsStr>>(&self, program: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.home.command(program, arguments);
        command.env("CONSENSUS_SERVER_URL", self.orchestrator.url());
        if let Some(ca) = self.orchestrator.ca_file() {
            command.env("CONSENSUS_CA_FILE", ca);
        }
        command
    }

    /// Asks the network's own interface.
    ///
    /// # Errors
    /// No answer.
    pub fn get(&self, path: &str) -> io::Result<Answer> {
        let ca = self.orchestrator.ca_file();
        client::get(&format!("{}{path}", self.orchestrator.url()), ca.as_deref())
    }

    /// Tells the network's own interface.
    ///
    /// # Errors
    /// No answer.
    pub fn post(&self, path: &str, body: &Value) -> io::Result<Answer> {
        let ca = self.orchestrator.ca_file();
        client::post(&format!("{}{path}", self.orchestrator.url()), body, ca.as_deref())
    }
}
