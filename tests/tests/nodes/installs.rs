//! Releases made, and installed by an operator: the commands `release` and `install`, and `scripts/install-release.sh`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use consensus_core::crypto::Crypto as _;
use consensus_core::crypto::pure::Pure;
use consensus_core::wire::hex;
use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::process::{Exit, NodeProcess};
use consensus_testbed::release;
use serde_json::Value;

use crate::lab::{LONG, Lab, with_both_shells};

with_both_shells! {
    two_releases_of_one_commit_are_the_same_bytes
    the_first_release_comes_by_the_script_and_is_then_the_required_one
    the_script_says_what_is_wrong_and_leaves_nothing
    the_first_script_checks_the_hash_and_has_the_release_install_itself
    install_takes_its_settings_from_options_and_the_environment
    what_install_does_not_take_is_told_with_its_exit_code
}

/// A file of this project.
fn of_project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

struct World {
    lab: Lab,
    dir: PathBuf,
    tmp: PathBuf,
}

impl World {
    fn new(shell: Shell) -> Self {
        let lab = Lab::with(shell, Options::default());
        let (dir, tmp) = (lab.network.home.root().join("runtime"), lab.network.home.root().join("tmp"));
        fs::create_dir(&tmp).unwrap();
        Self { lab, dir, tmp }
    }

    fn write(&self, name: &str, data: &[u8]) -> String {
        let path = self.lab.network.home.root().join(name);
        fs::write(&path, data).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    fn run(&self, program: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Exit {
        let mut command = self.lab.network.node(program, arguments);
        command.env("TMPDIR", &self.tmp).envs(env.iter().copied());
        NodeProcess::run(command, LONG).unwrap()
    }

    fn script(&self, arguments: &[&str], env: &[(&str, &str)]) -> Exit {
        self.run(&of_project("scripts/install-release.sh"), arguments, env)
    }

    /// The version that is started next.
    fn current(&self) -> Option<String> {
        let target = fs::read_link(self.dir.join("current")).ok()?;
        Some(target.file_name()?.to_str()?.split('-').next()?.to_string())
    }
}

fn sha256(data: &[u8]) -> String {
    hex::encode(&Pure.sha256(&[data]))
}

/// A release of a program, with the scripts that a release has.
pub(crate) fn tarball(version: &str, program: &[u8]) -> Vec<u8> {
    let manifest = serde_json::to_vec_pretty(&release::manifest(version)).unwrap();
    let script = |name| fs::read(of_project(name)).unwrap();
    release::pack(&[
        ("bin/consensus-node", 0o755, program),
        ("release-manifest.json", 0o644, &manifest),
        ("scripts/install-release.sh", 0o755, &script("scripts/install-release.sh")),
        ("scripts/run-node.sh", 0o755, &script("scripts/run-node.sh")),
    ])
    .unwrap()
}

/// A release whose program does nothing.
fn idle(version: &str) -> Vec<u8> {
    tarball(version, b"#!/bin/sh\nexit 7\n")
}

#[track_caller]
fn assert_ended(exit: &Exit, code: i32, words: &str) {
    assert_eq!(exit.code, Some(code), "{words}: {}{}", exit.stdout, exit.stderr());
    assert!(exit.stdout.contains(words) || exit.stderr().contains(words), "{words}: {}", exit.stderr());
}

fn two_releases_of_one_commit_are_the_same_bytes(shell: Shell) {
    let world = World::new(shell);
    let program = world.write("program", b"#!/bin/sh\n");
    let scripts = of_project("scripts");
    let mut made = Vec::new();
    for out in ["a", "b/c"] {
        let exit = world.run(
            &world.lab.program,
            &[
                "release",
                "--binary",
                &program,
                "--scripts",
                scripts.to_str().unwrap(),
                "--commit",
                "0123abc",
                "--version",
                "1.2.3",
                "--platform",
                "linux-x64",
                "--download-url",
                "https://releases.example/x.tgz",
                "--out",
                out,
            ],
            &[],
        );
        assert_ended(&exit, 0, "not signed");
        let out = world.lab.network.home.root().join(out);
        let read = |name: &str| fs::read(out.join(name)).unwrap();
        let tarball = read("consensus-node-1.2.3-linux-x64.tgz");
        let manifest = read("consensus-node-1.2.3-linux-x64.manifest.json");
        let said: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(said["tarball_sha256"], format!("sha256:{}", sha256(&tarball)));
        made.push((tarball, manifest, read("consensus-node-1.2.3-linux-x64.publish.json")));
        // The same program at another time.
        fs::write(&program, b"#!/bin/sh\n").unwrap();
    }
    assert_eq!(made[0], made[1]);
}

fn the_first_release_comes_by_the_script_and_is_then_the_required_one(shell: Shell) {
    let world = World::new(shell);
    let first = tarball("0.3.0", &fs::read(&world.lab.program).unwrap());
    let artifact = world.write("first.tgz", &first);
    let dir = world.dir.to_str().unwrap();
    let hash = sha256(&first).to_uppercase();
    let exit = world.script(&[&artifact, "--install-dir", dir, "--sha256", &hash], &[]);
    assert_ended(&exit, 0, "release 0.3.0 is installed");
    assert!(exit.stdout.contains(&format!("{dir}/run-node.sh run")), "{}", exit.stdout);
    assert_eq!(world.current().as_deref(), Some("0.3.0"));
    assert!(world.dir.join("run-node.sh").exists());
    assert_eq!(fs::read_dir(&world.tmp).unwrap().count(), 0, "the private folder is gone");

    // The installed program knows which release it is, down to the hash of the tarball.
    let program = world.dir.join("current/bin/consensus-node");
    let exit = world.run(&program, &["version"], &[]);
    assert_ended(&exit, 0, "0.3.0 (commit 0123456789abcdef");
    let orchestrator = &world.lab.network.orchestrator;
    let published = orchestrator.publish_release(release::manifest("0.3.0"), first);
    orchestrator.require(published);
    assert_ended(&world.run(&program, &["update"], &[]), 0, "this is the required release, 0.3.0");
    let exit = world.run(&world.lab.program, &["update"], &[]);
    assert_ended(&exit, 6, "tarball_sha256: required");

    // What is downloaded next is installed by the release that runs: the new one's program cannot.
    let next = orchestrator.publish_release(release::manifest("0.4.0"), idle("0.4.0"));
    orchestrator.require(next);
    let exit = world.run(&program, &["update", "--download"], &[]);
    assert_ended(&exit, 0, &format!(".tgz --version 0.4.0 --sha256 {}", sha256(&idle("0.4.0"))));
    let artifact = exit.stdout.lines().last().unwrap().to_string();
    let env = [("CONSENSUS_NODE_ARTIFACT_PATH", artifact.as_str()), ("CONSENSUS_NODE_INSTALL_DIR", dir)];
    assert_ended(&world.script(&[], &env), 0, "release 0.4.0 is installed");
    assert_eq!(world.current().as_deref(), Some("0.4.0"));
}

fn the_first_script_checks_the_hash_and_has_the_release_install_itself(shell: Shell) {
    let world = World::new(shell);
    let release = tarball("0.3.0", &fs::read(&world.lab.program).unwrap());
    let artifact = world.write("first.tgz", &release);
    let dir = world.dir.to_str().unwrap();
    let install = |arguments: &[&str]| world.run(&of_project("scripts/install.sh"), arguments, &[]);
    let right = sha256(&release);
    let wrong = sha256(b"something else");
    let none =
        world.write("none.tgz", &release::pack(&[("bin/consensus-node", 0o755, b"#!/bin/sh\n")]).unwrap());
    let of_none = sha256(&fs::read(&none).unwrap());
    for (arguments, code, words) in [
        (&["--sha256", &*right][..], 2, "which release?"),
        (&[&*artifact], 2, "--sha256 is missing"),
        (&[&*artifact, "--sha256", "abc"], 2, "64 hexadecimal digits"),
        (&[&*artifact, "--sha256"], 2, "needs a value"),
        (&[&*artifact, &*none, "--sha256", &*right], 2, "one release at a time"),
        (&["no-such-file", "--sha256", &*right], 2, "no such file"),
        (&["http://releases.example/a.tgz", "--sha256", &*right], 2, "only https://"),
        (&[&*artifact, "--install-dir", dir, "--sha256", &*wrong], 4, "nothing was installed"),
        (&[&*none, "--install-dir", dir, "--sha256", &*of_none], 4, "is no release"),
        (&[&*artifact, "--install-dir", dir, "--sha256", &*right, "--version", "9.9.9"], 4, "9.9.9"),
    ] {
        assert_ended(&install(arguments), code, words);
        assert!(world.current().is_none());
        assert_eq!(fs::read_dir(&world.tmp).unwrap().count(), 0, "the private folder is gone");
    }
    assert_ended(&install(&["--help"]), 0, "--sha256 HEX");
    let exit =
        install(&[&artifact, "--install-dir", dir, &format!("--sha256=sha256:{}", right.to_uppercase())]);
    assert_ended(&exit, 0, "release 0.3.0 is installed");
    let next = format!("'{dir}/current/bin/consensus-node' setup --server");
    assert!(
        exit.stderr().contains("the hash is right") && exit.stderr().contains(&next),
        "{}",
        exit.stderr()
    );
    assert_eq!(world.current().as_deref(), Some("0.3.0"));
    assert_eq!(fs::read_dir(&world.tmp).unwrap().count(), 0, "the private folder is gone");
}

fn the_script_says_what_is_wrong_and_leaves_nothing(shell: Shell) {
    let world = World::new(shell);
    let dir = world.dir.to_str().unwrap();
    let good = world.write("good.tgz", &idle("0.3.0"));
    let text = world.write("text.tgz", b"<html>404</html>");
    let empty = world.write("empty.tgz", &release::pack(&[("README", 0o644, b"nothing")]).unwrap());
    let mut elf = fs::read(&world.lab.program).unwrap()[..4096].to_vec();
    elf[18] ^= 0xff;
    let foreign = world.write("foreign.tgz", &tarball("0.3.0", &elf));
    let cases: [(&[&str], i32, &str); 10] = [
        (&[], 2, "CONSENSUS_NODE_ARTIFACT_PATH"),
        (&["no.tgz"], 2, "no.tgz: there is no such file"),
        (&["/dev/null"], 2, "not an ordinary file"),
        (&[&good, "--sha256"], 2, "--sha256 needs a value"),
        (&[&good, "--sha256", "00"], 4, "not 00"),
        (&[&text], 4, "it is not a tar archive with gzip"),
        (&[&empty], 4, "it is not a tar archive with gzip that has bin/consensus-node"),
        (&[&foreign], 4, "is for another machine"),
        (&[&good], 4, "its program does not run on this machine, or cannot install"),
        (&[&good, "--install-dir=/dev/null/x"], 70, "/dev/null is not a folder"),
    ];
    for (arguments, code, words) in cases {
        assert_ended(&world.script(arguments, &[("CONSENSUS_NODE_INSTALL_DIR", dir)]), code, words);
    }
    // A machine that lacks a tool.
    let tools = world.lab.network.home.root().join("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["id", "dirname", "rm", "mktemp", "cp", "sed", "uname"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(tool))
            .find(|path| path.exists());
        symlink(found.unwrap(), tools.join(tool)).unwrap();
    }
    let env = [("PATH", tools.to_str().unwrap()), ("CONSENSUS_NODE_INSTALL_DIR", dir)];
    assert_ended(&world.script(&[&good], &env), 70, "there is no tar on this machine");
    assert!(!world.dir.exists());
    assert_eq!(fs::read_dir(&world.tmp).unwrap().count(), 0);
    assert_ended(&world.script(&["--help"], &[]), 0, "CONSENSUS_NODE_RELEASE_RETENTION");
}

fn install_takes_its_settings_from_options_and_the_environment(shell: Shell) {
    let world = World::new(shell);
    let program = &world.lab.program;
    let artifact = world.write("a.tgz", &idle("0.3.0"));
    let hash = sha256(&idle("0.3.0"));
    let dir = world.dir.to_str().unwrap();
    let options =
        ["install", "a.tgz", "--version=0.3.0", "--sha256", &hash, "--install-dir", dir, "--probation", "77"];
    let exit = world.run(program, &options, &[]);
    assert_ended(&exit, 0, &format!("release 0.3.0 is installed, sha256:{hash}"));
    let release = exit.stdout.lines().next().unwrap();
    let record = fs::read_to_string(Path::new(release).join("install-record")).unwrap();
    assert!(record.contains("probation=77\n") && record.contains(&hash), "{record}");
    // As an update command is run, over and over: only as many stay as are to be kept.
    for version in ["0.4.0", "0.5.0", "0.6.0"] {
        let artifact = world.write("b.tgz", &idle(version));
        let env = [
            ("CONSENSUS_NODE_ARTIFACT_PATH", artifact.as_str()),
            ("CONSENSUS_NODE_TARGET_VERSION", version),
            ("CONSENSUS_NODE_UPDATE_ID", "u-1"),
            ("CONSENSUS_NODE_INSTALL_DIR", dir),
            ("CONSENSUS_NODE_RELEASE_RETENTION", "2"),
        ];
        assert_ended(&world.run(program, &["install"], &env), 0, "given up if it does not reconnect");
        let record = fs::read_to_string(world.dir.join("current/install-record")).unwrap();
        assert!(record.contains("probation=180\n"), "{record}");
        assert!(record.contains(&format!("update={}\n", hex::encode(b"u-1"))), "{record}");
    }
    assert_eq!(world.current().as_deref(), Some("0.6.0"));
    assert_eq!(fs::read_dir(world.dir.join("releases")).unwrap().count(), 2);
    // The default place.
    assert_ended(
        &world.run(program, &["install", &artifact], &[]),
        0,
        ".consensus/node-runtime/releases/0.3.0-",
    );
}

fn what_install_does_not_take_is_told_with_its_exit_code(shell: Shell) {
    let world = World::new(shell);
    let program = &world.lab.program;
    let good = idle("0.3.0");
    let file = |name: &str, data: &[u8]| world.write(name, data);
    let artifact = file("good.tgz", &good);
    let cut = file("cut.tgz", &good[..good.len() / 2]);
    let twice = file("twice.tgz", &[good.clone(), good].concat());
    let empty = file("empty.tgz", &release::pack(&[("README", 0o644, b"nothing")]).unwrap());
    let other = "00".repeat(32);
    let cases: [(&[&str], i32, &str); 12] = [
        (&[], 2, "ARTIFACT (or CONSENSUS_NODE_ARTIFACT_PATH)"),
        (&["no.tgz"], 2, "no.tgz: there is no such file"),
        (&[&artifact, "--version", "latest"], 2, "--version: \"latest\""),
        (&[&artifact, "--sha256", "00"], 2, "--sha256"),
        (&[&artifact, "--retention", "1"], 2, "--retention: \"1\""),
        (&[&artifact, "--probation", "0"], 2, "--probation"),
        (&[&artifact, "--sha256", &other], 4, &other),
        (&[&artifact, "--version", "0.3.1"], 4, "\"0.3.0\", not \"0.3.1\""),
        (&[&cut], 4, "the file is truncated"),
        (&[&twice], 4, "something after the end of the compressed data"),
        (&[&empty], 4, "release-manifest.json"),
        (&["/dev"], 70, "not an ordinary file"),
    ];
    for (arguments, code, words) in cases {
        let dir = world.dir.to_str().unwrap();
        let exit =
            world.run(program, &[&["install"], arguments].concat(), &[("CONSENSUS_NODE_INSTALL_DIR", dir)]);
        assert_ended(&exit, code, words);
        assert_eq!(exit.lines.len(), 1, "{}", exit.stderr());
        assert_eq!(world.current(), None);
    }
    fs::remove_dir_all(&world.dir).unwrap();
    fs::write(&world.dir, "a file").unwrap();
    let env = [("CONSENSUS_NODE_INSTALL_DIR", world.dir.to_str().unwrap())];
    assert_ended(&world.run(program, &["install", &artifact], &env), 70, "runtime");
}
