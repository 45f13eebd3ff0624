//! A complete local Consensus network.
fn main() {}
