//! The attacks on updates that The Update Framework names (its specification, section 1.5.2), as far as a node without
//! mirrors and delegations knows them: each by its name, against the real program.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::thread;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::release::manifest::Manifest;
use consensus_core::release::signature::sign;
use consensus_core::wire::hex;
use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::process::{Exit, NodeProcess};
use consensus_testbed::release;

use crate::lab::{LONG, Lab, with_both_shells};

with_both_shells! {
    rollback_attack
    indefinite_freeze_attack
    mix_and_match_attack
    endless_data_attack
    wrong_software_installation
}

struct World {
    lab: Lab,
}

impl World {
    fn new(shell: Shell) -> Self {
        Self { lab: Lab::with(shell, Options::default()) }
    }

    fn run(&self, arguments: &[&str]) -> Exit {
        let mut command = self.lab.network.node(&self.lab.program, arguments);
        command.env("CONSENSUS_NODE_INSTALL_DIR", self.lab.network.home.root().join("runtime"));
        NodeProcess::run(command, LONG).unwrap()
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], words: &str) {
        let exit = self.run(arguments);
        assert_eq!(exit.code, Some(4), "{}{}", exit.stdout, exit.stderr());
        assert!(exit.stderr().contains(words), "{words}: {}", exit.stderr());
    }

    /// Has the network require a release, and the node asked to fetch it refuse.
    #[track_caller]
    fn refuses_required(&self, manifest: Manifest, options: &[&str], words: &str) {
        self.lab.network.orchestrator.require(manifest);
        self.refuses(&[&["update", "--download"], options].concat(), words);
        let downloads = fs::read_dir(self.lab.network.home.state_dir().join("downloads"));
        let left: Vec<_> = downloads.into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains(".tgz")), "{left:?}");
    }

    fn publish(&self, version: &str) -> Manifest {
        let manifest = release::manifest(version);
        self.lab.network.orchestrator.publish_release(manifest, tarball(version))
    }

    fn write(&self, name: &str, data: &[u8]) {
        fs::write(self.lab.network.home.root().join(name), data).unwrap();
    }
}

fn tarball(version: &str) -> Vec<u8> {
    let program = format!("#!/bin/sh\n# {version}\n");
    release::tarball(&release::manifest(version), program.as_bytes()).unwrap()
}

/// An older release than what ran here, with holes that are known by now.
fn rollback_attack(shell: Shell) {
    let world = World::new(shell);
    world.refuses_required(world.publish("0.0.9"), &[], "0.0.9 is older than 0.1.0");
    world.write("new.tgz", &tarball("2.0.0"));
    world.write("old.tgz", &tarball("1.9.9"));
    assert_eq!(world.run(&["install", "new.tgz"]).code, Some(0));
    // It proved itself.
    world.write("runtime/floor", b"2.0.0\n");
    world.refuses(&["install", "old.tgz"], "release 1.9.9 is older than 2.0.0");
    let exit = world.run(&["install", "old.tgz", "--allow-older"]);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
}

/// Who holds newer releases back shows an old statement for ever: it holds until it expires.
fn indefinite_freeze_attack(shell: Shell) {
    let world = World::new(shell);
    let key = Identity::from_seed(Pure, &[42; 32]);
    let pinned = hex::encode(key.public_key());
    let mut manifest = world.publish("0.2.0");
    manifest.set_expires(1);
    assert!(sign(&Pure, &key, &mut manifest));
    world.refuses_required(manifest.clone(), &["--release-key", &pinned], "expired");
    // Nor can the expiry be put off without the key.
    manifest.set_expires(1 << 40);
    world.refuses_required(manifest.clone(), &["--release-key", &pinned], "signature");
    // Not even that all is well is taken from it.
    let mut same = Manifest { version: "0.1.0".into(), ..manifest };
    same.set_expires(1);
    assert!(sign(&Pure, &key, &mut same));
    world.lab.network.orchestrator.require(same);
    world.refuses(&["update", "--release-key", &pinned], "expired");
}

/// Parts of two releases, each genuine.
fn mix_and_match_attack(shell: Shell) {
    let world = World::new(shell);
    let (a, b) = (world.publish("0.2.0"), world.publish("0.3.0"));
    let key = Identity::from_seed(Pure, &[42; 32]);
    let pinned = hex::encode(key.public_key());
    // The manifest of one with the tarball of the other: where it lies is not signed, what it hashes to is.
    let mut mixed = Manifest { download_url: b.download_url.clone(), ..a.clone() };
    mixed.extra.remove("tarball_size");
    world.refuses_required(mixed, &[], "SHA-256");
    let hash = a.tarball_sha256.clone().unwrap();
    let mut signed = a;
    signed.set_expires(1 << 40);
    assert!(sign(&Pure, &key, &mut signed));
    signed.download_url = b.download_url;
    signed.tarball_sha256 = b.tarball_sha256;
    world.refuses_required(signed, &["--release-key", &pinned], "signature");
    // And where nothing is signed, what is inside has to be what it was called.
    world.write("b.tgz", &tarball("0.3.0"));
    world.refuses(&["install", "b.tgz", "--version", "0.2.0"], "\"0.3.0\", not \"0.2.0\"");
    world.refuses(&["install", "b.tgz", "--sha256", &hash], "its SHA-256 is");
}

/// A download that never ends.
fn endless_data_attack(shell: Shell) {
    let world = World::new(shell);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/endless", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            // Until the node goes.
            while stream.write_all(&[0; 4096]).is_ok() {}
        }
    });
    let manifest = Manifest { download_url: Some(url), ..world.publish("0.2.0") };
    let size = manifest.tarball_size().unwrap();
    world.refuses_required(manifest, &["--allow-private-targets"], &format!("more than {size} bytes"));
}

/// A release that is genuine, and not what was asked for.
fn wrong_software_installation(shell: Shell) {
    let world = World::new(shell);
    let good = world.publish("0.2.0");
    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest
    };
    for (change, words) in [
        (
            &(|said: &mut Manifest| said.platform = "plan9-mips".into()) as &dyn Fn(&mut Manifest),
            "plan9-mips",
        ),
        (&|said: &mut Manifest| said.product = "consensus-gateway".into(), "another product"),
        (&|said: &mut Manifest| said.artifact = "npm-tarball".into(), "npm-tarball"),
        (&|said: &mut Manifest| said.implementation = Some("bun".into()), "bun"),
    ] {
        world.refuses_required(with(change), &[], words);
        // The same said inside.
        let mut inside = release::manifest("0.2.0");
        change(&mut inside);
        world.write("other.tgz", &release::tarball(&inside, b"#!/bin/sh\n").unwrap());
        let words = words.strip_prefix("another ").unwrap_or(words);
        world.refuses(&["install", "other.tgz"], words);
    }
    world.write("good.tgz", &tarball("0.2.0"));
    world.refuses(&["install", "good.tgz", "--version", "0.2.1"], "\"0.2.0\", not \"0.2.1\"");
}
