//! A fresh node: evaluated, registered, and what it has on disk afterwards.

use std::fs;
use std::path::Path;

use consensus_core::peer::orchestrator::BATTERY;
use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use serde_json::Value;

use crate::exit_codes::register_arguments;
use crate::lab::{LONG, Lab, said, stop, with_both_shells};

with_both_shells! {
    a_fresh_node_is_evaluated_registered_and_in_service
    a_code_that_comes_by_email_is_brought_in_a_second_run
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn a_code_that_comes_by_email_is_brought_in_a_second_run(shell: Shell) {
    let lab = Lab::with(shell, Options { no_dev_code: true, ..Options::default() });
    lab.network.admit_node().unwrap();
    // Nobody sits at a terminal, so the node cannot ask.
    let exit = lab.run(&register_arguments(&[]));
    assert_eq!(exit.code, Some(3), "{}", exit.stderr());
    let needed = exit.lines.iter().find(|line| line.event() == "code_needed").unwrap();
    let id = needed.value["verification_id"].as_str().unwrap();
    let code = lab.network.orchestrator.journal().wait(0, LONG, |record| match record {
        Record::EmailCode { code, .. } => Some(code.clone()),
        _ => None,
    });
    let code = code.unwrap().1;
    let arguments = register_arguments(&[]);
    let exit = lab.run(&[&arguments[..], &["--verification-id", id, "--code", &code]].concat());
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
}

fn a_fresh_node_is_evaluated_registered_and_in_service(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    let state = lab.network.home.state_dir();

    let exit = lab.run(&["eval"]);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    let done: Vec<&str> = exit
        .lines
        .iter()
        .filter(|line| line.event() == "eval_finished")
        .map(|line| line.value["action"].as_str().unwrap())
        .collect();
    // Nothing is fetched where the server has nothing to fetch.
    assert_eq!(done, BATTERY[..BATTERY.len() - 1]);
    let auth = json(&state.join("join-auth.json"));
    for member in ["join_id", "alg", "nonce", "signature", "expires_at", "saved_at"] {
        assert!(!auth[member].is_null(), "{auth}");
    }

    let exit = lab.run(&register_arguments(&[]));
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    let config = json(&state.join("config.json"));
    assert_eq!(config["orchestrator_pubkey"], lab.network.orchestrator.public_key_jwk());
    let node_id = config["node_id"].as_str().unwrap().to_owned();
    #[cfg(unix)]
    {
        for secret in ["keys/node.key", "config.json", "join-auth.json"] {
            // The authorisation is used up; whether it stays is the node's own affair.
            if state.join(secret).exists() {
                assert_eq!(mode(&state.join(secret)), 0o600, "{secret}");
            }
        }
    }
    let machine = json(&lab.network.home.root().join("machine/machine.json"));
    assert_eq!(machine["node_id"], Value::from(node_id.clone()));

    let node = lab.start(&["control", "--allow-private-targets"]);
    lab.ready(&node, 2);
    assert_eq!(lab.network.orchestrator.attached(), std::slice::from_ref(&node_id), "{}", said(&node));
    let status = lab.network.get(&format!("/node/status/{node_id}")).unwrap();
    assert_eq!(status.body["status"], "online");
    stop(node);

    // Once registered, twice is refused or harmless, and never another name.
    let exit = lab.run(&register_arguments(&["--email-verification-token", "token"]));
    assert_ne!(exit.code, Some(70), "{}", exit.stderr());
    assert_eq!(json(&state.join("config.json"))["node_id"], Value::from(node_id));
}
