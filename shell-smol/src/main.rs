//! The node on smol.
fn main() {}
