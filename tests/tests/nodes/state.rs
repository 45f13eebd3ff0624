//! State directories: those of the deployed node work, damaged ones are named and left alone.

use std::fs;

use consensus_testbed::binaries::Shell;
use consensus_testbed::network::{NODE_ID, write_secret};
use consensus_testbed::options::Options;

use crate::exit_codes::{register_arguments, write_join_auth};
use crate::lab::{CONTROL, Lab, stop, with_both_shells};

with_both_shells! {
    a_state_directory_of_the_deployed_node_keeps_working_and_keeps_its_content
    a_damaged_file_is_named_and_never_overwritten
    a_machine_takes_one_node_and_both_are_named
}

fn a_state_directory_of_the_deployed_node_keeps_working_and_keeps_its_content(shell: Shell) {
    let lab = Lab::new(shell);
    let state = lab.network.home.state_dir();
    let read = |file: &str| fs::read(state.join(file)).unwrap();
    // What a newer or older release wrote beside what this one knows.
    let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["of_another_release"] = serde_json::json!({ "a": [1, 2] });
    fs::write(state.join("config.json"), config.to_string()).unwrap();
    fs::write(state.join("setup-progress.json"), "{\"step\":\"done\"}").unwrap();
    let before = (read("config.json"), read("keys/node.key"), read("keys/node.pub"));
    let node = lab.start(&CONTROL);
    lab.heartbeat(&node, 1);
    assert_eq!(lab.network.orchestrator.attached(), [NODE_ID]);
    stop(node);
    assert_eq!(before, (read("config.json"), read("keys/node.key"), read("keys/node.pub")));
}

fn a_damaged_file_is_named_and_never_overwritten(shell: Shell) {
    for (file, damage, arguments) in [
        ("config.json", "{\"node_id\": \"b1c6", vec!["control"]),
        ("config.json", "", vec!["run"]),
        ("config.json", "{\"node_id\": 7}", vec!["verify"]),
        ("keys/node.key", "-----BEGIN PRIVATE KEY-----\nMC4CAQ", vec!["control"]),
        ("keys/node.key", "", vec!["eval"]),
        ("join-auth.json", "{]", register_arguments(&["--email-verification-token", "token"])),
    ] {
        let lab = Lab::new(shell);
        let state = lab.network.home.state_dir();
        if file == "join-auth.json" {
            write_join_auth(&lab);
            fs::remove_file(state.join("config.json")).unwrap();
        }
        let path = state.join(file);
        write_secret(&path, damage).unwrap();
        let exit = lab.run(&arguments);
        assert!(!matches!(exit.code, Some(0 | 2) | None), "{file}: {:?} {}", exit.code, exit.stderr());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(exit.stderr().contains(name), "{file}: {}", exit.stderr());
        assert_eq!(fs::read_to_string(&path).unwrap(), damage, "{file}");
    }
}

fn a_machine_takes_one_node_and_both_are_named(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    lab.network.admit_node().unwrap();
    let exit = lab.run(&register_arguments(&[]));
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    // A second state directory on the same machine.
    let other = lab.network.home.root().join("other-state");
    fs::create_dir_all(other.join("keys")).unwrap();
    for file in ["join-auth.json", "keys/node.key", "keys/node.pub"] {
        let from = lab.network.home.state_dir().join(file);
        if from.exists() {
            fs::copy(from, other.join(file)).unwrap();
        }
    }
    let other = other.to_str().unwrap();
    let mut arguments: Vec<&str> = register_arguments(&["--email-verification-token", "token"]);
    arguments.extend(["--state-dir", other]);
    let exit = lab.run(&arguments);
    assert_eq!(exit.code, Some(4), "{}", exit.stderr());
    assert!(exit.stderr().contains("other-state"), "{}", exit.stderr());
}
