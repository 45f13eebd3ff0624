//! The data plane: end-to-end encrypted connections of clients, one request each (protocol.md section 10).

pub mod dedupe;
pub mod job;
pub mod replay;
pub mod responder;
pub mod ticket;
