#![no_main]
//! The shells' reader of archives, without the shell around it.

#[path = "../../shell-blocking/src/install/fuzzing.rs"]
mod fuzzing;
#[expect(dead_code, reason = "what only the installer needs")]
#[path = "../../shell-blocking/src/install/unpack.rs"]
mod unpack;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::artifact(data));
