//! `scripts/run-node.sh` around real nodes: releases that do not work, processes that outlive it, another supervisor.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use consensus_core::release::manifest::Manifest;
use consensus_testbed::binaries::Shell;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;
use consensus_testbed::release;

use crate::lab::{CONTROL, LONG, disconnected, line, said, stop, with_both_shells};
use crate::updates::{Installed, OWN, answer, apply, assert_failed, prepare, start_by, start_wrapped};

with_both_shells! {
    a_release_that_hangs_is_given_up_and_not_prepared_again
    a_release_for_another_machine_is_given_up_and_not_prepared_again
    a_release_that_cannot_connect_is_given_up_and_not_prepared_again
    a_release_that_says_that_its_state_directory_is_taken_is_given_up_in_the_end
    in_every_shell_a_release_that_crashes_is_given_up
    a_second_wrapper_ends_and_changes_nothing
    a_node_that_outlived_its_wrapper_is_ended_before_the_next_is_started
    a_hanging_release_that_outlived_its_wrapper_is_ended_and_given_up
    a_release_waits_while_another_node_has_the_state_directory
    a_good_release_that_was_given_up_while_the_network_was_away_is_taken_again
}

/// What makes the wrapper quick to judge.
const IMPATIENT: [(&str, &str); 3] =
    [("CONSENSUS_NODE_PROBATION", "4"), ("CONSENSUS_NODE_STARTS", "2"), ("CONSENSUS_NODE_STOP_SECONDS", "2")];

const HANGS: &[u8] = b"#!/bin/sh\nwhile :; do sleep 1; done\n";

fn wrapper() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/run-node.sh")
}

/// Publishes a release with that program.
fn offer(installed: &Installed, program: &[u8]) -> Manifest {
    let manifest = release::manifest("0.2.0");
    let tarball = release::tarball(&manifest, program).unwrap();
    installed.lab.network.orchestrator.publish_release(manifest, tarball)
}

/// Makes a release with that program the current one, on probation, as an installation does.
fn put_on_probation(installed: &Installed, program: &[u8]) -> String {
    let id = String::from("0.2.0-5-5");
    let bin = installed.dir.join("releases").join(&id).join("bin");
    fs::create_dir_all(&bin).unwrap();
    // Beside its place first: a program that is open for writing cannot be started.
    fs::write(bin.join("new"), program).unwrap();
    fs::set_permissions(bin.join("new"), fs::metadata(&installed.lab.program).unwrap().permissions())
        .unwrap();
    fs::rename(bin.join("new"), bin.join("consensus-node")).unwrap();
    installed.point("current", &id);
    id
}

fn own_program(installed: &Installed) -> Vec<u8> {
    fs::read(&installed.lab.program).unwrap()
}

/// The files that make the node who it is.
fn identity(installed: &Installed) -> Vec<Vec<u8>> {
    let state = installed.lab.network.home.state_dir();
    ["config.json", "keys/node.key", "keys/node.pub"]
        .iter()
        .map(|name| fs::read(state.join(name)).unwrap())
        .collect()
}

/// An update to that program is applied; the wrapper goes back, the network is told, and it is not taken again.
fn is_given_up(installed: &Installed, node: NodeProcess, program: &[u8], words: &str) {
    let lab = &installed.lab;
    let before = identity(installed);
    lab.ready(&node, 1);
    let manifest = offer(installed, program);
    let ready = answer(lab, &node, &prepare(lab, "u-1", manifest.clone()));
    assert_eq!(ready["type"], "update_ready", "{ready}");
    answer(lab, &node, &apply(lab, "u-1", 0));
    assert_eq!(lab.ended(&node, 1).0, Some(1012));
    lab.ready(&node, 2);
    let (_, failed) = lab.record(&node, 0, "the rollback", |record| match record {
        Record::Message { message, .. } if message["type"] == "update_failed" => Some(message.clone()),
        _ => None,
    });
    assert_failed(&failed, "apply_failed", words);
    assert_eq!(failed["update_id"], "u-1");
    assert!(installed.target("current").ends_with(OWN));
    assert!(installed.target("last-good").ends_with(OWN));
    assert_eq!(identity(installed), before);
    lab.assert_serves();
    let again = answer(lab, &node, &prepare(lab, "u-2", manifest));
    assert_failed(&again, "prepare_failed", "not tried again");
    stop(node);
}

fn a_release_that_hangs_is_given_up_and_not_prepared_again(shell: Shell) {
    let installed = Installed::new(shell);
    let node = start_wrapped(&installed, &IMPATIENT);
    is_given_up(&installed, node, HANGS, "did not reconnect within 4 s");
}

fn a_release_for_another_machine_is_given_up_and_not_prepared_again(shell: Shell) {
    let installed = Installed::new(shell);
    let node = start_wrapped(&installed, &IMPATIENT);
    // The machine in the header of an ELF file: one that nobody has.
    let mut program = own_program(&installed);
    program[18..20].copy_from_slice(&[0xfe, 0xca]);
    is_given_up(&installed, node, &program, "not for this machine");
}

fn a_release_that_cannot_connect_is_given_up_and_not_prepared_again(shell: Shell) {
    let installed = Installed::new(shell);
    let node = start_wrapped(&installed, &IMPATIENT);
    let real = installed.lab.program.display();
    let program = format!("#!/bin/sh\nexec '{real}' \"$@\" --server http://127.0.0.1:9\n");
    is_given_up(&installed, node, program.as_bytes(), "did not reconnect within 4 s");
}

fn a_release_that_says_that_its_state_directory_is_taken_is_given_up_in_the_end(shell: Shell) {
    let installed = Installed::new(shell);
    let node = start_wrapped(&installed, &IMPATIENT);
    is_given_up(&installed, node, b"#!/bin/sh\nexit 73\n", "started 2 times and did not reconnect");
}

fn in_every_shell_a_release_that_crashes_is_given_up(shell: Shell) {
    let path = wrapper();
    let path = path.to_str().unwrap();
    for interpreter in
        [&["dash", path][..], &["bash", path], &["bash", "--posix", path], &["busybox", "sh", path]]
    {
        let is_there = Command::new(interpreter[0]).args(["-c", ":"]).stdin(Stdio::null()).output();
        // busybox takes no `-c`, and says so: it is there all the same.
        if let Err(error) = is_there {
            let _ = writeln!(io::stderr(), "\nskipped: {} is not installed: {error}", interpreter[0]);
            continue;
        }
        let installed = Installed::new(shell);
        let arguments = [&interpreter[1..], &CONTROL[..]].concat();
        let node = start_by(&installed, Path::new(interpreter[0]), &arguments, &IMPATIENT);
        is_given_up(&installed, node, b"#!/bin/sh\nexit 9\n", "(last exit code 9)");
    }
}

fn a_second_wrapper_ends_and_changes_nothing(shell: Shell) {
    let installed = Installed::new(shell);
    put_on_probation(&installed, HANGS);
    let env = [("CONSENSUS_NODE_PROBATION", "1000"), ("CONSENSUS_NODE_STOP_SECONDS", "2")];
    let first = start_wrapped(&installed, &env);
    line(&first, 0, "a start", |line| line.text.contains("start 1 of 3"));
    await_file(&installed.dir.join("process"));
    let starts = fs::read(installed.dir.join("starts")).unwrap();
    let exit = start_wrapped(&installed, &env).wait(LONG).unwrap();
    assert_eq!(exit.code, Some(73), "{}", exit.stderr());
    assert!(exit.stderr().contains(&format!("process {} already runs", first.pid())), "{}", exit.stderr());
    assert_eq!(fs::read(installed.dir.join("starts")).unwrap(), starts);
    assert!(installed.target("current").ends_with("0.2.0-5-5"));
    first.terminate().unwrap();
    first.wait(LONG).unwrap();
}

/// Waits until a file is there, with something in it.
fn await_file(path: &Path) -> String {
    let end = std::time::Instant::now() + LONG;
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(std::time::Instant::now() < end, "{} is not written", path.display()),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The process that a wrapper wrote down, once it is another one than before.
fn child_of(wrapper: &NodeProcess, installed: &Installed) -> String {
    let pid = wrapper.pid().to_string();
    let end = std::time::Instant::now() + LONG;
    loop {
        let text = await_file(&installed.dir.join("process"));
        if let Some((child, _)) = text.trim().split_once(' ').filter(|(_, keeper)| *keeper == pid) {
            return child.to_owned();
        }
        assert!(std::time::Instant::now() < end, "the wrapper started nothing; it said:\n{}", said(wrapper));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Whether it does: one that has ended, and that nobody took note of, has no command line.
fn runs(pid: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn a_node_that_outlived_its_wrapper_is_ended_before_the_next_is_started(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let first = start_wrapped(&installed, &[]);
    lab.ready(&first, 1);
    let orphan = child_of(&first, &installed);
    // SIGKILL.
    drop(first);
    assert!(runs(&orphan), "the node lives on");
    lab.assert_serves();
    let second = start_wrapped(&installed, &[]);
    lab.ready(&second, 2);
    assert!(said(&second).contains(&format!("still runs, process {orphan}: ending it")), "{}", said(&second));
    assert_ne!(child_of(&second, &installed), orphan);
    lab.assert_serves();
    stop(second);
}

fn a_hanging_release_that_outlived_its_wrapper_is_ended_and_given_up(shell: Shell) {
    let installed = Installed::new(shell);
    // Not even the stop signal ends it.
    put_on_probation(&installed, b"#!/bin/sh\ntrap '' TERM INT HUP\nwhile :; do sleep 1; done\n");
    let first = start_wrapped(&installed, &IMPATIENT);
    line(&first, 0, "a start", |line| line.text.contains("start 1 of 2"));
    let orphan = child_of(&first, &installed);
    drop(first);
    let second = start_wrapped(&installed, &IMPATIENT);
    line(&second, 0, "a start", |line| line.text.contains("start 2 of 2"));
    assert!(!runs(&orphan));
    line(&second, 0, "a rollback", |line| line.text.contains("is given up"));
    installed.lab.ready(&second, 1);
    assert!(installed.target("current").ends_with(OWN));
    stop(second);
}

fn a_release_waits_while_another_node_has_the_state_directory(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let by_hand = lab.start(&CONTROL);
    lab.ready(&by_hand, 1);
    let id = put_on_probation(&installed, &own_program(&installed));
    let env = [("CONSENSUS_NODE_PROBATION", "60"), ("CONSENSUS_NODE_STARTS", "1")];
    let wrapped = start_wrapped(&installed, &env);
    line(&wrapped, 0, "why it waits", |line| {
        line.text.contains("waits until it can have its state directory")
    });
    let mark = wrapped.mark();
    line(&wrapped, mark, "a second attempt", |line| line.text.contains("runs on this state directory"));
    stop(by_hand);
    lab.ready(&wrapped, 2);
    line(&wrapped, 0, "a confirmation", |line| line.event() == "update_confirmed");
    assert!(installed.target("current").ends_with(&id));
    assert_eq!(installed.target("last-good"), installed.target("current"));
    assert!(!said(&wrapped).contains("given up"), "{}", said(&wrapped));
    stop(wrapped);
}

fn a_good_release_that_was_given_up_while_the_network_was_away_is_taken_again(shell: Shell) {
    let mut installed = Installed::new(shell);
    let env = [("CONSENSUS_NODE_PROBATION", "8"), ("CONSENSUS_NODE_STOP_SECONDS", "2")];
    let node = start_wrapped(&installed, &env);
    installed.lab.ready(&node, 1);
    let manifest = offer(&installed, &own_program(&installed));
    let lab = &installed.lab;
    assert_eq!(answer(lab, &node, &prepare(lab, "u-1", manifest.clone()))["type"], "update_ready");
    assert_eq!(answer(lab, &node, &apply(lab, "u-1", 1000))["type"], "ack");
    installed.lab.network.orchestrator.go_down();
    let given_up = line(&node, 0, "a rollback", |line| line.text.contains("did not reconnect within 8 s"));
    // The one that is known to work finds nobody either.
    disconnected(&node, node.mark_after(&given_up, 0), "cannot be reached");
    installed.lab.network.orchestrator.come_back().unwrap();
    let lab = &installed.lab;
    lab.ready(&node, 2);
    let (_, failed) = lab.record(&node, 0, "the rollback", |record| match record {
        Record::Message { message, .. } if message["type"] == "update_failed" => Some(message.clone()),
        _ => None,
    });
    assert_failed(&failed, "apply_failed", "may be tried again");
    assert!(installed.target("current").ends_with(OWN));
    assert_eq!(answer(lab, &node, &prepare(lab, "u-2", manifest))["type"], "update_ready");
    assert_eq!(answer(lab, &node, &apply(lab, "u-2", 0))["type"], "ack");
    line(&node, 0, "a confirmation", |line| line.event() == "update_confirmed");
    assert_eq!(installed.target("last-good"), installed.target("current"));
    assert!(!installed.target("current").ends_with(OWN));
    stop(node);
}

/// An install directory of shell scripts: one that is good, and one on probation. It is removed with the value.
struct Bare(PathBuf);

impl Bare {
    fn new(name: &str, good: &str, new: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("consensus-wrapper-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for (id, body) in [("1.0.0-1-1", good), ("2.0.0-2-2", new)] {
            let bin = dir.join("releases").join(id).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("consensus-node"), format!("#!/bin/sh\n{body}")).unwrap();
            fs::set_permissions(bin.join("consensus-node"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        symlink("releases/1.0.0-1-1", dir.join("last-good")).unwrap();
        symlink("releases/2.0.0-2-2", dir.join("current")).unwrap();
        fs::copy(wrapper(), dir.join("run-node.sh")).unwrap();
        Self(dir)
    }

    /// The wrapper in it, by that shell; a quit is not ignored, whatever started these tests.
    fn wrapper(&self, interpreter: &str) -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal=QUIT", interpreter]).arg(self.0.join("run-node.sh"));
        command.env("CONSENSUS_NODE_INSTALL_DIR", &self.0).stderr(Stdio::null());
        command
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a release does that proves itself after a while, and ends.
const PROVES: &str =
    "sleep 2; ln -sfn releases/2.0.0-2-2 \"$CONSENSUS_NODE_INSTALL_DIR/last-good\"; exit 3\n";

#[test]
fn a_count_or_a_time_that_makes_no_sense_costs_a_release_nothing() {
    for interpreter in ["dash", "bash"] {
        let bare = Bare::new(&format!("count-{interpreter}"), "exit 0\n", PROVES);
        // Octal, to a shell that reckons with it.
        fs::write(bare.0.join("starts"), "2.0.0-2-2 08\n").unwrap();
        let mut command = bare.wrapper(interpreter);
        command.env("CONSENSUS_NODE_PROBATION", "0").env("CONSENSUS_NODE_STARTS", "9");
        assert_eq!(command.status().unwrap().code(), Some(3), "{interpreter}");
        assert_eq!(fs::read_to_string(bare.0.join("starts")).unwrap(), "2.0.0-2-2 1\n");
    }
}

#[test]
fn a_release_that_is_gone_is_not_held_to_have_failed() {
    for gone in ["2.0.0-2-2", "-rf"] {
        let bare = Bare::new("gone", "exit 4\n", PROVES);
        fs::remove_file(bare.0.join("current")).unwrap();
        symlink(format!("releases/{gone}"), bare.0.join("current")).unwrap();
        fs::remove_dir_all(bare.0.join("releases/2.0.0-2-2")).unwrap();
        assert_eq!(bare.wrapper("sh").status().unwrap().code(), Some(4));
        assert_eq!(fs::read_link(bare.0.join("current")).unwrap(), Path::new("releases/1.0.0-1-1"));
        assert!(!bare.0.join("rolled-back").exists(), "{gone}");
    }
}

#[test]
fn folders_that_the_shell_is_told_to_look_in_do_not_count() {
    for interpreter in ["dash", "bash"] {
        let bare = Bare::new(&format!("cdpath-{interpreter}"), "exit 0\n", PROVES);
        let elsewhere = bare.0.join("elsewhere");
        fs::create_dir_all(elsewhere.join("runtime")).unwrap();
        symlink(&bare.0, bare.0.join("runtime")).unwrap();
        let mut command = Command::new(interpreter);
        command.arg("runtime/run-node.sh").current_dir(&bare.0).env("CDPATH", &elsewhere);
        command.env_remove("CONSENSUS_NODE_INSTALL_DIR").env("HOME", &elsewhere);
        assert_eq!(command.status().unwrap().code(), Some(3), "{interpreter}");
    }
}

#[test]
fn a_wrapper_that_is_told_to_quit_leaves_no_node_behind() {
    for interpreter in ["dash", "bash"] {
        let waits =
            "trap 'exit 5' TERM\necho $$ >\"$CONSENSUS_NODE_INSTALL_DIR/pid\"\nwhile :; do sleep 1; done\n";
        let bare = Bare::new(&format!("quit-{interpreter}"), "exit 0\n", waits);
        let mut wrapper = bare.wrapper(interpreter).spawn().unwrap();
        let node = await_file(&bare.0.join("pid"));
        let quit = Command::new("kill").args(["-QUIT", &wrapper.id().to_string()]).status().unwrap();
        assert!(quit.success());
        assert_eq!(wrapper.wait().unwrap().code(), Some(5), "{interpreter}");
        assert!(!runs(node.trim()));
    }
}
