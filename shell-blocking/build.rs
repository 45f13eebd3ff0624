//! Tells the program which compiler built it, for `benchmark_system`.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(compiler).arg("--version").output();
    // `rustc 1.85.0 (4d91de4e4 2025-02-17)`
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = said.split_whitespace().nth(1).unwrap_or("unknown");
    println!("cargo:rustc-env=CONSENSUS_NODE_RUSTC={version}");
}
