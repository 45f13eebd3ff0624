//! The other half of every exchange: what orchestrators and clients do.
//!
//! The local orchestrator of the testbed is made of this, and so are the tests and fuzz targets that need somebody
//! to talk to. Machines here have the shape of the node's own: inputs and time go in, outputs come out, and nothing a
//! peer sends (here: the node) ends in a panic.

pub mod client;
pub mod handshake;
pub mod integrity;
pub mod offer;
pub mod orchestrator;
pub mod streams;
