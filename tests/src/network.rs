//! A whole network for one node: orchestrator, upstream, and a home for the node's state.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::state::JoinAuth;
use consensus_core::wire::base64;
use serde_json::{Value, json};

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

/// The name of the node that [`Network::register_node`] makes.
pub const NODE_ID: &str = "b1c604f617c0";

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

    /// A network of these options. It listens at a free port, and its authority's certificate is in the home. A
    /// `speedtest_url` that is a path is one of the network's own upstream.
    ///
    /// # Errors
    /// No port, no file, no thread to be had.
    pub fn with(mut options: Options) -> io::Result<Self> {
        let home = Home::new()?;
        options.ca_out = home.root().join("ca.pem");
        let upstream = Upstream::start()?;
        options.speedtest_url = options.speedtest_url.map(|url| match url.strip_prefix('/') {
            Some(_) => upstream.url(&url),
            None => url,
        });
        Ok(Self {
            orchestrator: Orchestrator::start(options, Journal::new(false))?,
            upstream,
            local_api: free_address()?,
            home,
        })
    }

    /// Makes the state directory of a node that registered long ago, in the form that the deployed node writes, and
    /// makes the network know it: for what is not about registering.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn register_node(&self) -> io::Result<()> {
        let identity = self.identify_node()?;
        let config = json!({
            "node_id": NODE_ID, "machine_id": "0b0e7a52-3a6c-4a6e-9f0e-6f6d8e2b7a11",
            "domain": format!("{NODE_ID}.node.example.org"), "region": "eu-central", "ipv4": "203.0.113.7",
            "ipv6": null, "port": 9090, "registered_at": "2026-03-01T12:00:00.000Z",
            "commissioned_at": "2026-03-01T12:00:05.000Z", "benchmark_score": 812.5,
            "orchestrator_pubkey": self.orchestrator.public_key_jwk(),
        });
        fs::write(self.home.state_dir().join("config.json"), format!("{config:#}"))?;
        self.orchestrator.adopt(NODE_ID, identity.public_key_pem());
        Ok(())
    }

    /// Makes the state directory of a node that has just passed its evaluation: for what is about registering alone.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn admit_node(&self) -> io::Result<()> {
        let identity = self.identify_node()?;
        let offer = self.orchestrator.offer(*identity.public_key());
        let auth = JoinAuth {
            join_id: offer.join_id,
            alg: String::from("ed25519"),
            nonce: base64::encode_url(&offer.nonce),
            signature: identity.sign(&offer.nonce),
            expires_at: offer.expires_at,
            saved_at: offer.expires_at - 600,
        };
        write_secret(&self.home.state_dir().join("join-auth.json"), &String::from_utf8_lossy(&auth.emit()))
    }

    fn identify_node(&self) -> io::Result<Identity<Pure>> {
        let (identity, key) = Identity::generate(Pure, &mut Drbg::new([7; 32]));
        let keys = self.home.state_dir().join("keys");
        fs::create_dir_all(&keys)?;
        write_secret(&keys.join("node.key"), &key)?;
        fs::write(keys.join("node.pub"), identity.public_key_pem())?;
        Ok(identity)
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

/// Writes a file that only its owner may read.
///
/// # Errors
/// It cannot be written.
pub fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)?.write_all(text.as_bytes())
}
