//! TLS: whose certificates are trusted, and what is said of others.

use consensus_core::tunnel::Mode;
use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;

use crate::lab::{CONTROL, LONG, Lab, disconnected, stop, with_both_shells};

with_both_shells! {
    an_authority_that_the_operator_added_is_trusted
    an_unknown_authority_is_refused_with_words
    a_certificate_for_another_name_is_refused_with_words
    plain_text_where_tls_is_expected_is_refused_with_words
}

fn with_tls(shell: Shell, names: &[&str]) -> Lab {
    let cert_name = names.iter().map(|name| (*name).to_owned()).collect();
    Lab::registered(shell, Options { tls: true, cert_name, ..Options::default() })
}

fn nobody_got_in(lab: &Lab) {
    let records = lab.network.orchestrator.journal().since(0);
    assert!(!records.iter().any(|(_, record)| matches!(record, Record::Init { .. })));
}

fn an_authority_that_the_operator_added_is_trusted(shell: Shell) {
    let lab = with_tls(shell, &[]);
    let node = lab.start(&CONTROL);
    lab.record(&node, 0, "a session over TLS", |record| {
        matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
    });
    lab.assert_serves();
    stop(node);
    // HTTP as well.
    let exit = lab.run(&["verify"]);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
}

fn an_unknown_authority_is_refused_with_words(shell: Shell) {
    let lab = with_tls(shell, &[]);
    let mut command = lab.network.node(&lab.program, CONTROL);
    command.env_remove("CONSENSUS_CA_FILE");
    let mut node = NodeProcess::spawn(command).unwrap();
    let line = disconnected(&node, 0, "TLS");
    assert!(line.text.contains("--ca"), "{}", line.text);
    assert!(node.is_running());
    nobody_got_in(&lab);
    let mut command = lab.network.node(&lab.program, ["verify"]);
    command.env_remove("CONSENSUS_CA_FILE");
    let exit = NodeProcess::run(command, LONG).unwrap();
    assert_eq!(exit.code, Some(69), "{}", exit.stderr());
}

fn a_certificate_for_another_name_is_refused_with_words(shell: Shell) {
    let lab = with_tls(shell, &["orchestrator.example.org"]);
    let node = lab.start(&CONTROL);
    disconnected(&node, 0, "TLS");
    nobody_got_in(&lab);
}

fn plain_text_where_tls_is_expected_is_refused_with_words(shell: Shell) {
    let lab = Lab::new(shell);
    let server = lab.network.orchestrator.url().replace("http://", "https://");
    let node = lab.start(&[&CONTROL[..], &["--server", &server]].concat());
    disconnected(&node, 0, "TLS");
}
