//! The bodies of the fuzz targets. They live here so that ordinary tests compile them and run them over the committed
//! corpus; `fuzz/` only hands them bytes. Each panics where an invariant does not hold.
//!
//! [`parsers`] and their neighbours read what a peer or a file may hold. The machines are driven by scripts that a
//! fuzzer writes (`arbitrary`), with [`transparent`] cryptography, and are held against small models of what they
//! promise.

mod api;
mod control;
mod data_plane;
mod guard;
mod install;
mod node;
mod parsers;
mod registration;
mod replay;
mod script;
mod session;
mod setup;
mod ticket;
mod transparent;
mod update;
mod wire;

use core::time::Duration;

use arbitrary::{Arbitrary, Unstructured};

pub use self::api::api;
pub use self::control::control;
pub use self::data_plane::data_plane;
pub use self::guard::guard;
pub use self::install::install;
pub use self::node::node;
pub use self::parsers::{gunzip, manifest, pem_key, state, trace_file};
pub use self::registration::registration;
pub use self::replay::replay;
pub use self::session::session;
pub use self::setup::setup;
pub use self::ticket::{dedupe, ticket};
pub use self::update::update;
pub use self::wire::{canonical_json, frame, handshake, message, mux};

use crate::time::Now;

/// When all of it begins, in unix seconds.
const UNIX: u64 = 1_795_391_521;

/// When all of it begins.
const START: Now = Now { monotonic: Duration::from_secs(5), unix: Duration::from_secs(UNIX) };

/// Reads a script; bytes that are none are the empty one.
fn read<'a, T: Arbitrary<'a> + Default>(data: &'a [u8]) -> T {
    T::arbitrary_take_rest(Unstructured::new(data)).unwrap_or_default()
}

/// A body by the name of its target.
pub type Body = fn(&[u8]);

/// All of them, by the names that their targets and corpora have.
pub const BODIES: [(&str, Body); 23] = [
    ("api", api),
    ("canonical_json", canonical_json),
    ("control", control),
    ("data_plane", data_plane),
    ("dedupe", dedupe),
    ("frame", frame),
    ("guard", guard),
    ("gunzip", gunzip),
    ("handshake", handshake),
    ("install", install),
    ("manifest", manifest),
    ("message", message),
    ("mux", mux),
    ("node", node),
    ("pem", pem_key),
    ("registration", registration),
    ("replay", replay),
    ("session", session),
    ("setup", setup),
    ("state", state),
    ("ticket", ticket),
    ("trace_file", trace_file),
    ("update", update),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::{eprintln, fs, path::Path, string::String, vec::Vec};

    fn folder(of: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(of)
    }

    #[test]
    fn every_corpus_holds() {
        for (target, body) in BODIES {
            let mut count = 0;
            let corpus = folder("corpus").join(target);
            let entries = fs::read_dir(&corpus)
                .unwrap_or_else(|error| panic!("{target} needs inputs in {}: {error}", corpus.display()));
            for entry in entries {
                let path = entry.unwrap().path();
                // Shown where it panics.
                eprintln!("{}", path.display());
                body(&fs::read(&path).unwrap());
                count += 1;
            }
            assert!(count > 0, "no corpus of {target}");
        }
    }

    #[test]
    fn every_body_has_a_target_and_every_target_a_body() {
        let mut targets: Vec<String> = fs::read_dir(folder("fuzz_targets"))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().into())
            .collect();
        let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
        for target in &targets {
            let bin = std::format!("[[bin]]\nname = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"\n");
            assert!(manifest.contains(&bin), "fuzz/Cargo.toml has no\n{bin}");
        }
        // The reader of archives is the shells'.
        targets.retain(|target| target != "artifact");
        targets.sort();
        let bodies: Vec<&str> = BODIES.iter().map(|(name, _)| *name).collect();
        assert_eq!(targets, bodies);
    }

    #[test]
    fn what_is_no_script_does_no_harm() {
        for (_, body) in BODIES {
            for length in 0..40 {
                body(&std::vec![0; length]);
                body(&std::vec![0xff; length]);
                body(&(0..length).map(|at| (at * 37) as u8).collect::<Vec<_>>());
            }
        }
    }
}
