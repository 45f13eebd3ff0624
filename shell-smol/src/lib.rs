//! The node on smol, for servers.
#![forbid(unsafe_code)]
