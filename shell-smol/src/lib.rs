//! The node on smol, for servers: one thread owns the node, each core has one for sockets and for the node's jobs, and
//! what blocks runs on smol's pool. On a machine with one core it is all one thread.
#![forbid(unsafe_code)]

mod alarms;
mod api;
mod channel;
mod dial;
mod fetch;
mod link;
mod runtime;
mod sockets;
#[cfg(test)]
#[path = "../../shell-blocking/src/testing/mod.rs"]
mod testing;

#[cfg(test)]
use Smol as Tested;

use std::sync::Arc;

use consensus_core::io::{Fetch, FetchError, Finish, Response};
use shell_blocking::runtime_api::{Environment, Machine, Runtime};

/// The smol runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smol;

impl Runtime for Smol {
    const PROGRAM: &'static str = "consensus-node";
    const SHELL: &'static str = "smol";

    fn drive(&self, node: impl Machine, environment: Environment) -> Result<Finish, String> {
        runtime::drive(node, environment)
    }

    fn fetch(&self, environment: &Environment, request: &Fetch) -> Result<Response, FetchError> {
        let means = fetch::Means::own(environment.tls.clone(), Arc::clone(&environment.proxies));
        let late = async { match means.alarms.clone().run().await {} };
        smol::block_on(smol::future::or(means.fetch(request.clone()), late))
    }
}
