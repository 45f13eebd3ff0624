//! A complete local Consensus network, for people who want to see a node at work and for tests that need one.
//!
//! It is made of `consensus_core::peer` (the protocol), smol (the runtime) and async-h1 (HTTP): another HTTP
//! implementation than the node's own, so that the two check each other. It is no server for strangers.
#![forbid(unsafe_code)]

pub mod admission;
pub mod background;
pub mod backlog;
pub mod binaries;
pub mod chaos;
pub mod client;
pub mod conn;
pub mod connect_proxy;
pub mod data_plane;
pub mod demo;
pub mod dial;
pub mod dns;
pub mod fleet;
pub mod floor;
pub mod footprint;
pub mod load;
mod memory;
pub mod namespace;
pub mod network;
pub mod options;
pub mod orchestrator;
mod primitives;
pub mod process;
pub mod pty;
pub mod release;
pub mod supervised;
pub mod tls;
pub mod trace;
pub mod tunnel;
pub mod upstream;
pub mod webdriver;
