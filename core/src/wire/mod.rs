//! What goes over the wire: bounded parse and emit, no rule of any machine.

pub mod base64;
pub mod canonical;
pub mod frame;
pub mod hex;
pub(crate) mod json;
pub mod message;
pub mod mux;
