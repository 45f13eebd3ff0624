//! How a node ends: the code for programs, the words for people.

use std::fs;

use consensus_core::state::JoinAuth;
use consensus_testbed::binaries::Shell;
use consensus_testbed::network::PAYOUT_OPTIONS;
use consensus_testbed::options::{Bad, Options};
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, free_address};

use crate::lab::{Lab, with_both_shells};

with_both_shells! {
    a_node_that_is_not_registered_says_what_to_do
    a_registration_without_an_evaluation_says_what_to_do
    a_network_that_wants_to_be_paid_is_told_apart
    a_join_request_that_the_network_does_not_know_is_a_refusal
    a_server_that_is_not_there_is_unreachable
    a_server_that_rejects_the_evaluation_is_a_refusal
    a_node_that_is_never_admitted_gives_its_own_verdict
    a_wrong_release_is_a_refusal_that_names_the_differences
}

fn assert_code(exit: &Exit, code: i32) {
    assert_eq!(exit.code, Some(code), "{}\n{}", exit.stderr(), exit.stdout);
}

/// What a registration takes, without a question asked.
pub(crate) fn register_arguments(extra: &[&'static str]) -> Vec<&'static str> {
    let mut all = vec!["register", "--email", "operator@example.org", "--contact", "operator@example.org"];
    all.extend(["--ipv4", "203.0.113.7", "--port", "9090"]);
    all.extend(PAYOUT_OPTIONS);
    all.extend(extra);
    all
}

/// An authorisation as an evaluation leaves it, but one that no server gave.
pub(crate) fn write_join_auth(lab: &Lab) {
    let auth = JoinAuth {
        join_id: String::from("a-join-request"),
        alg: String::from("ed25519"),
        nonce: String::from("AAAA"),
        signature: consensus_core::wire::base64::encode(&[1; 64]),
        expires_at: 4_000_000_000,
        saved_at: 1_790_000_000,
    };
    let state = lab.network.home.state_dir();
    fs::create_dir_all(&state).unwrap();
    consensus_testbed::network::write_secret(
        &state.join("join-auth.json"),
        &String::from_utf8(auth.emit()).unwrap(),
    )
    .unwrap();
}

/// A home with a key and an authorisation, and no registration.
fn evaluated(shell: Shell, options: Options) -> Lab {
    let lab = Lab::registered(shell, options);
    fs::remove_file(lab.network.home.state_dir().join("config.json")).unwrap();
    write_join_auth(&lab);
    lab
}

fn a_node_that_is_not_registered_says_what_to_do(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    for command in ["control", "run", "verify"] {
        let exit = lab.run(&[command]);
        assert_code(&exit, 3);
        assert!(exit.stderr().contains("register"), "{command}: {}", exit.stderr());
    }
}

fn a_registration_without_an_evaluation_says_what_to_do(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    let exit = lab.run(&register_arguments(&["--email-verification-token", "token"]));
    assert_code(&exit, 3);
    assert!(exit.stderr().contains("eval"), "{}", exit.stderr());
}

fn a_network_that_wants_to_be_paid_is_told_apart(shell: Shell) {
    let lab = evaluated(shell, Options { require_payment: true, ..Options::default() });
    let exit = lab.run(&register_arguments(&["--email-verification-token", "token"]));
    assert_code(&exit, 5);
    assert!(exit.stderr().contains("Joining this network costs 1.00 USDC"), "{}", exit.stderr());
}

fn a_join_request_that_the_network_does_not_know_is_a_refusal(shell: Shell) {
    let lab = evaluated(shell, Options::default());
    let exit = lab.run(&register_arguments(&["--email-verification-token", "token"]));
    assert_code(&exit, 4);
    // The server's own words, verbatim.
    assert!(exit.stderr().contains("email_verification_token is not known"), "{}", exit.stderr());
}

fn a_server_that_is_not_there_is_unreachable(shell: Shell) {
    let lab = evaluated(shell, Options::default());
    let nowhere = format!("http://{}", free_address().unwrap());
    let exit = lab.run(&["eval", "--server", &nowhere]);
    assert_code(&exit, 69);
    assert!(exit.stderr().contains("cannot be reached"), "{}", exit.stderr());
    let mut arguments = register_arguments(&["--email-verification-token", "token", "--server"]);
    arguments.push(Box::leak(nowhere.into_boxed_str()));
    let exit = lab.run(&arguments);
    assert_code(&exit, 69);
}

fn a_server_that_rejects_the_evaluation_is_a_refusal(shell: Shell) {
    let bad = Some(Bad::Reject(String::from("region_full")));
    let lab = Lab::with(shell, Options { bad, ..Options::default() });
    let exit = lab.run(&["eval"]);
    assert_code(&exit, 4);
    assert!(exit.stderr().contains("region_full"), "{}", exit.stderr());
    assert!(!lab.network.home.state_dir().join("join-auth.json").exists());
}

fn a_node_that_is_never_admitted_gives_its_own_verdict(shell: Shell) {
    let lab = Lab::with(shell, Options { refuse_eval: true, ..Options::default() });
    let command = lab.network.node(&lab.program, ["eval"]);
    // The battery, and the node's patience after it.
    let exit = consensus_testbed::process::NodeProcess::run(command, crate::lab::LONG * 2).unwrap();
    assert_code(&exit, 4);
    assert!(exit.lines.iter().any(|line| line.event() == "eval_verdict"), "{}", exit.stderr());
    assert!(exit.stderr().contains("not admitted"), "{}", exit.stderr());
    let records = lab.network.orchestrator.journal().since(0);
    assert!(records.iter().any(|(_, record)| matches!(record, Record::Judged { .. })));
}

fn a_wrong_release_is_a_refusal_that_names_the_differences(shell: Shell) {
    let lab = Lab::new(shell);
    let exit = lab.run(&["verify"]);
    assert_code(&exit, 0);
    let manifest = serde_json::json!({
        "product": "consensus-node", "version": "99.0.0", "artifact": "native-tarball", "platform": "linux-x64",
        "commit": "abc", "routes_hash": "sha256:0", "capabilities": [],
    });
    let url = format!("{}/admin/manifest", lab.network.orchestrator.url());
    let body = serde_json::json!({ "manifest": manifest, "required": true });
    let set = |key| {
        let headers = [("x-admin-key", key)];
        consensus_testbed::client::send(http_types::Method::Post, &url, Some(&body), &headers, None).unwrap()
    };
    assert_eq!(set("guess").status, 401);
    assert_eq!(set("admin").status, 200);
    let exit = lab.run(&["verify"]);
    assert_code(&exit, 4);
    let said = format!("{}\n{}", exit.stderr(), exit.stdout);
    assert!(said.contains("99.0.0") && said.contains("version"), "{said}");
}
