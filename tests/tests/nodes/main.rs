//! Real nodes, each in a process of its own, against a real server: every test with both shells.
//!
//! Nothing here waits for a fixed time: a test waits for what the node says or what the server sees, and gives up
//! after a time that no healthy machine needs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics and says where")]

mod lab;

mod bad_peers;
mod completions;
mod doctor;
mod exit_codes;
mod first_steps;
mod installs;
mod logs;
mod measuring;
mod names;
mod outages;
mod proxies;
mod services;
mod serving;
mod settings;
mod setup;
mod setup_page;
mod state;
mod status;
mod streams;
mod tls;
mod traces;
mod transcripts;
mod tuf;
mod updates;
mod upstreams;
mod wrapper;
