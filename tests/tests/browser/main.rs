//! The pages of a node in a headless Chromium. Run by the step `browser` of `.ci/run`, which has it installed; without
//! it these tests fail. So `cargo test` leaves them out unless it is asked: `cargo test -p consensus-testbed --test
//! browser -- --ignored`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics and says where")]

mod driver;
mod page;
mod setup;
