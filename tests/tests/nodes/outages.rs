//! Servers that are down: at the start, in the middle, and back again.

use std::time::Duration;

use consensus_testbed::binaries::Shell;

use crate::lab::{CONTROL, LONG, Lab, disconnected, line, stop, with_both_shells};

with_both_shells! {
    a_restarted_server_gets_its_node_back_with_a_heartbeat_at_once
    a_node_that_starts_before_its_server_waits_for_it_by_the_schedule
    a_stopped_node_takes_its_leave_also_while_it_waits
    a_stop_that_comes_as_several_signals_at_once_is_one_stop
}

fn a_restarted_server_gets_its_node_back_with_a_heartbeat_at_once(shell: Shell) {
    let mut lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.heartbeat(&node, 1);
    let mark = node.mark();
    lab.network.orchestrator.go_down();
    let line = disconnected(&node, mark, "");
    let mark = node.mark_after(&line, mark);
    // One attempt finds nobody.
    disconnected(&node, mark, "cannot be reached");
    lab.network.orchestrator.come_back().unwrap();
    let ready = lab.ready(&node, 2);
    let beat = lab.heartbeat(&node, 2);
    assert!(beat.duration_since(ready) < Duration::from_secs(1), "{:?}", beat.duration_since(ready));
    lab.assert_serves();
    stop(node);
}

fn a_node_that_starts_before_its_server_waits_for_it_by_the_schedule(shell: Shell) {
    let mut lab = Lab::new(shell);
    lab.network.orchestrator.go_down();
    let mut node = lab.start(&CONTROL);
    let mut mark = 0;
    let mut last = None;
    for seconds in [1, 2, 4] {
        let line = disconnected(&node, mark, "cannot be reached");
        mark = node.mark_after(&line, mark);
        let wait = line.value["retry_in_ms"].as_u64().unwrap();
        assert!((seconds * 1000..=seconds * 1000 + 500).contains(&wait), "{}", line.text);
        // It does what it said: at least that long between the attempts.
        if let Some((at, wait)) = last.replace((line.at, wait)) {
            let passed = line.at.duration_since(at) + Duration::from_millis(50);
            assert!(passed >= Duration::from_millis(wait), "{passed:?} of {wait} ms");
        }
    }
    lab.network.orchestrator.come_back().unwrap();
    lab.ready(&node, 1);
    assert!(node.is_running());
    lab.assert_serves();
    stop(node);
}

fn a_stopped_node_takes_its_leave_also_while_it_waits(shell: Shell) {
    let mut lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    stop(node);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 2);
    lab.network.orchestrator.go_down();
    disconnected(&node, 0, "");
    line(&node, 0, "a planned attempt", |line| line.value["retry_in_ms"].is_u64());
    stop(node);
}

fn a_stop_that_comes_as_several_signals_at_once_is_one_stop(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    node.terminate_and_interrupt().unwrap();
    let exit = node.wait(LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert!(exit.stderr().contains("stopped by the operator"), "{}", exit.stderr());
}
