//! The network's own name, in a network of the test's own: it may lead elsewhere at any time.

use consensus_core::tunnel::Mode;
use consensus_testbed::binaries::{self, Shell};
use consensus_testbed::dns::Dns;
use consensus_testbed::namespace::{self, RESOLVER};
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;

use crate::lab::{CONTROL, Lab, disconnected, stop};

#[test]
fn a_servers_name_is_looked_up_anew_for_every_attempt_with_smol() {
    let test = "names::a_servers_name_is_looked_up_anew_for_every_attempt_with_smol";
    alone(test, Shell::Smol);
}

#[test]
fn a_servers_name_is_looked_up_anew_for_every_attempt_with_threads() {
    let test = "names::a_servers_name_is_looked_up_anew_for_every_attempt_with_threads";
    alone(test, Shell::Blocking);
}

fn alone(test: &str, shell: Shell) {
    // Built where there is still a network to build with.
    binaries::build(shell).unwrap();
    namespace::run(test, || moves(shell)).unwrap();
}

/// A server that moves: its old address takes no connection, and its name leads to the new one from the next look-up on.
fn moves(shell: Shell) {
    let lab = Lab::new(shell);
    let address = lab.network.orchestrator.address();
    let dns = Dns::start(RESOLVER).unwrap();
    dns.change("server.test", &[&["10.1.2.3".parse().unwrap()], &[address.ip()]]);
    let mut command = lab.network.node(&lab.program, CONTROL);
    command.env("CONSENSUS_SERVER_URL", format!("http://server.test:{}", address.port()));
    let node = NodeProcess::spawn(command).unwrap();
    disconnected(&node, 0, "server.test");
    lab.record(&node, 0, "a session at the new address", |record| {
        matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
    });
    assert!(dns.look_ups("server.test") >= 2);
    stop(node);
}
