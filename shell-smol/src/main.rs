//! The node on smol.

use std::process::ExitCode;

fn main() -> ExitCode {
    shell_blocking::command::main(&shell_smol::Smol)
}
