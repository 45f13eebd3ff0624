//! The Consensus node protocol as pure machines: bytes and events in, bytes and effects out.
//!
//! This crate has no clock, no randomness of its own, no file, socket, thread, environment or log call. It builds
//! without `std`. Two shells run it: `shell-blocking` (plain threads) and `shell-smol`; the testbed and the fuzz
//! targets drive the same machines in virtual time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod bench;
pub mod crypto;
pub mod event;
pub mod guard;
pub mod io;
pub mod limits;
pub mod node;
pub mod peer;
pub mod registration;
pub mod release;
pub mod state;
pub mod text;
pub mod time;
pub mod tunnel;
pub mod wire;
