//! What a shell's runtime gives to the part that both shells share.

use std::net::SocketAddr;
use std::sync::Arc;

use consensus_core::data_plane::job::{Computed, Job};
use consensus_core::io::{Fetch, FetchError, Finish, Input, JobId, Output, Response};
use consensus_core::node::Node;
use consensus_core::proxy::Proxies;
use consensus_core::time::Now;

use crate::log::Log;
use crate::state_dir::StateDir;
use crate::tls::Tls;
use crate::updates::Updates;

/// The crypto provider that the shells run.
#[cfg(feature = "fast-crypto")]
pub type Provider = crate::fast::Fast;
/// The crypto provider that the shells run.
#[cfg(not(feature = "fast-crypto"))]
pub type Provider = consensus_core::crypto::pure::Pure;

/// Everything a runtime needs beside the node itself.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Where the state files are; [`effects`](crate::effects) writes them.
    pub state_dir: StateDir,
    /// TLS settings for every outgoing connection; the roots are read when the first one needs them.
    pub tls: Tls,
    /// What the tunnel, downloads and [`Runtime::fetch`] go through. What a node fetches for others never does.
    pub proxies: Arc<Proxies>,
    /// Where the local API listens, if it does. Port 0 is any free one: the runtime logs the address it got.
    pub listen: Option<SocketAddr>,
    /// Where events go.
    pub log: Log,
    /// How another release is fetched and installed, for a node that the network can direct.
    pub updates: Option<Updates>,
}

/// What a runtime runs: a node, or whatever stands for one in a test.
pub trait Machine {
    /// As [`Node::handle_input`].
    fn handle_input(&mut self, now: Now, input: Input);

    /// As [`Node::poll_output`].
    fn poll_output(&mut self) -> Output;

    /// As [`Node::take_job`]; a machine that is no node has none.
    fn take_job(&mut self, job: JobId) -> Option<Job<Provider>> {
        let _ = job;
        None
    }

    /// As [`Node::handle_computed`].
    fn handle_computed(&mut self, now: Now, computed: Computed<Provider>) {
        let _ = (now, computed);
    }
}

impl Machine for Node<Provider> {
    fn handle_input(&mut self, now: Now, input: Input) {
        Self::handle_input(self, now, input);
    }

    fn poll_output(&mut self) -> Output {
        Self::poll_output(self)
    }

    fn take_job(&mut self, job: JobId) -> Option<Job<Provider>> {
        Self::take_job(self, job)
    }

    fn handle_computed(&mut self, now: Now, computed: Computed<Provider>) {
        Self::handle_computed(self, now, computed);
    }
}

/// A way to run a node. Each shell has one.
pub trait Runtime {
    /// The program's name: `consensus-node` or `consensus-node-blocking`.
    const PROGRAM: &'static str;
    /// The shell's name in `version`: `smol` or `blocking`.
    const SHELL: &'static str;

    /// Drives `node` to its end: carries out every output, feeds every input, ends on SIGTERM and SIGINT through
    /// `Input::Stop`. The time of every input is [`system::now`](crate::system::now): the node was made with it.
    ///
    /// # Errors
    /// What keeps the node from running at all, such as an address in use; one line that names the thing.
    fn drive(&self, node: impl Machine, environment: Environment) -> Result<Finish, String>;

    /// One HTTP exchange outside any node (registration, verification).
    ///
    /// # Errors
    /// Why there is no response.
    fn fetch(&self, environment: &Environment, request: &Fetch) -> Result<Response, FetchError>;
}
