//! The node on plain threads, for low-resource hosts, and all that is the same for both shells: the command line,
//! settings, files, logs, measurements, TLS and the HTTP driver.
//!
//! A shell owns sockets, timers, files, processes and randomness; it carries out what the core asks for and decides
//! nothing.
#![forbid(unsafe_code)]

pub mod budget;
pub mod command;
pub mod connect;
pub mod dial;
pub mod download;
pub mod effects;
#[cfg(feature = "fast-crypto")]
pub mod fast;
pub mod http;
pub mod install;
pub mod log;
pub mod measure;
pub mod names;
pub mod places;
pub mod release;
pub mod runtime_api;
pub mod service;
pub mod settings;
pub mod signals;
pub mod socket;
pub mod state_dir;
pub mod system;
pub mod tls;
pub mod trace;
pub mod updates;
pub mod websocket;
pub mod workers;

#[cfg(feature = "runtime")]
pub mod blocking;

// Tests that both shells share name this crate from outside.
#[cfg(test)]
#[cfg(feature = "runtime")]
extern crate self as shell_blocking;
#[cfg(test)]
#[cfg(feature = "runtime")]
use blocking::Blocking as Tested;
#[cfg(test)]
#[cfg(feature = "runtime")]
mod testing;
