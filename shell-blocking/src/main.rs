//! The node on plain threads.
fn main() {}
