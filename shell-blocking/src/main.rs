//! The node on plain threads.

use std::process::ExitCode;

fn main() -> ExitCode {
    shell_blocking::command::main(&shell_blocking::blocking::Blocking)
}
