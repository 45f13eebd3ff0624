//! The Consensus node protocol as pure machines: bytes and events in, bytes and effects out.
//!
//! This crate has no clock, no randomness of its own, no file, socket, thread, environment or log call. It builds
//! without `std`. Two shells run it: `shell-blocking` (plain threads) and `shell-smol`; the testbed and the fuzz
//! targets drive the same machines in virtual time.
//!
//! # The contract of the run loop
//!
//! One type drives everything: [`node::Node`]. Its owner
//!
//! 1. hands it what happened, with the time: [`handle_input`](node::Node::handle_input), first of all an
//!    [`Input::Tick`](io::Input::Tick);
//! 2. drains [`poll_output`](node::Node::poll_output) until [`Output::Wait`](io::Output::Wait), and carries out each
//!    output in order;
//! 3. waits for the next thing to happen, at the longest until the deadline that `Wait` named, and begins again. A
//!    deadline that passed is an [`Input::Tick`](io::Input::Tick).
//!
//! `handle_input` never fails and never panics, whatever a peer, a file or an effect gave it. The same seed and the
//! same inputs give the same outputs. Outputs are matched without a wildcard arm, so that a new one breaks every
//! shell's build until it is carried out there.
//!
//! ```
//! use core::time::Duration;
//!
//! use consensus_core::crypto::pure::Pure;
//! use consensus_core::data_plane::replay::Before;
//! use consensus_core::io::{Input, LinkEnd, OpenStage, Output};
//! use consensus_core::limits::Limits;
//! use consensus_core::node::{Config, Node};
//! use consensus_core::release::manifest::Manifest;
//! use consensus_core::time::Now;
//! use consensus_core::tunnel::Mode;
//! use consensus_core::update::Settings;
//!
//! let config = Config {
//!     mode: Some(Mode::Eval),
//!     tunnel_url: "wss://network.example/node/tunnel".into(),
//!     server_key: None,
//!     identity_seed: [7; 32].into(),
//!     candidate_id: None,
//!     registration: None,
//!     manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
//!     limits: Limits::default(),
//!     allow_private_targets: false,
//!     spent_before: Before::Never,
//!     updates: Settings::default(),
//! };
//! // A virtual clock; a shell reads the system's two.
//! let mut now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_795_391_521) };
//! let mut node = Node::new(config, Pure, [9; 32], now);
//! let mut input = Input::Tick;
//! let finish = loop {
//!     node.handle_input(now, input);
//!     let mut happened = None;
//!     let mut finished = None;
//!     let deadline = loop {
//!         match node.poll_output() {
//!             Output::Wait(deadline) => break deadline,
//!             // This owner has no network to offer.
//!             Output::OpenLink { link, .. } => {
//!                 let detail = "no network in an example".into();
//!                 let end = LinkEnd::Unopened { stage: OpenStage::Connect, detail };
//!                 happened = Some(Input::LinkEnded { link, end });
//!             }
//!             Output::Event(event) => println!("{event}"),
//!             Output::Finish(finish) => finished = Some(finish),
//!             // One with more cores takes the job and runs it on another.
//!             Output::Compute { job } => node.compute(now, job),
//!             Output::Send { .. } | Output::HoldLink { .. } => {}
//!             Output::CloseLink { .. } | Output::DropLink { .. } => {}
//!             Output::OpenSocket { .. } | Output::SendSocket { .. } => {}
//!             Output::ReadSocket { .. } | Output::CloseSocket { .. } => {}
//!             Output::Respond { .. } | Output::SendLocal { .. } | Output::CloseLocal { .. } => {}
//!             Output::Perform { .. } | Output::Cancel { .. } => {}
//!         }
//!     };
//!     if let Some(finish) = finished {
//!         break finish;
//!     }
//!     input = happened.unwrap_or_else(|| {
//!         now.monotonic = deadline.map_or(now.monotonic, |deadline| deadline.at);
//!         Input::Tick
//!     });
//! };
//! assert_eq!(finish.outcome.exit_code(), 69);
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;
// The model of a disk, which a test and a fuzz body share, names this crate from outside.
#[cfg(any(test, feature = "fuzzing"))]
extern crate self as consensus_core;

mod api;
pub mod bench;
mod control;
mod counters;
pub mod crypto;
pub mod data_plane;
pub mod doctor;
pub mod eval;
pub mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod guard;
mod history;
pub mod holdings;
pub mod io;
pub mod limits;
pub mod node;
mod outbox;
pub mod peer;
pub mod proxy;
pub mod race;
pub mod registration;
pub mod release;
pub mod service;
pub mod setup;
pub mod state;
pub mod status;
pub mod text;
pub mod time;
pub mod trace;
pub mod tunnel;
pub mod update;
pub mod wire;
