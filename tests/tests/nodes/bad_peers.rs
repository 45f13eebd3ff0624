//! Servers that break the rules: the node lives, says what happened, and comes back.

use std::time::Duration;

use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Bad;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;

use crate::lab::{CONTROL, Lab, disconnected, line, said, stop, with_both_shells};

with_both_shells! {
    a_server_that_signs_with_another_key_than_the_pinned_one_is_left
    without_a_pin_signatures_do_not_matter
    a_server_that_does_not_sign_is_left_where_a_key_is_pinned
    a_rejected_node_tells_the_code_and_tries_again
    a_server_with_another_clock_is_told_from_one_that_does_not_want_us
    garbage_is_answered_and_the_session_goes_on
    a_message_of_a_gigabyte_is_refused_by_its_header
    replayed_frames_are_refused_and_the_session_goes_on
    frames_in_the_wrong_order_are_refused_and_the_session_goes_on
    a_server_that_falls_silent_is_given_up
    a_server_that_vanished_is_given_up
    a_cut_connection_is_opened_again
    a_server_that_never_answers_is_given_up_at_each_stage
    every_close_code_leads_to_another_connection
}

/// The node said why the first connection failed, waited as the schedule says, and serves on the second.
fn comes_back(lab: &Lab, mut node: NodeProcess, words: &str) {
    let line = disconnected(&node, 0, words);
    let wait = line.value["retry_in_ms"].as_u64().unwrap();
    assert!((1000..=1500).contains(&wait), "{}", line.text);
    lab.ready(&node, 2);
    assert!(node.is_running());
    lab.assert_serves();
    stop(node);
}

fn with_pin(lab: &Lab) -> NodeProcess {
    let key = lab.network.orchestrator.public_key_pem().to_owned();
    lab.start(&[&CONTROL[..], &["--server-key", &key]].concat())
}

fn without_a_pin_signatures_do_not_matter(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::WrongSignature);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    stop(node);
}

fn a_server_that_signs_with_another_key_than_the_pinned_one_is_left(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::WrongSignature);
    comes_back(&lab, with_pin(&lab), "not signed by the pinned server key");
}

fn a_server_that_does_not_sign_is_left_where_a_key_is_pinned(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Unsigned);
    comes_back(&lab, with_pin(&lab), "did not sign");
}

fn a_rejected_node_tells_the_code_and_tries_again(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Reject(String::from("under_maintenance")));
    comes_back(&lab, lab.start(&CONTROL), "under_maintenance");
}

fn a_server_with_another_clock_is_told_from_one_that_does_not_want_us(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::StaleClock);
    comes_back(&lab, lab.start(&CONTROL), "behind the server's");
}

fn garbage_is_answered_and_the_session_goes_on(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Junk);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    // Every piece of it gets its answer.
    let mut count = 0;
    lab.record(&node, 0, "an answer to each piece of garbage", |record| match record {
        Record::Message { message, .. } if message["code"] == "decode_failed" => {
            count += 1;
            (count == 19).then_some(())
        }
        _ => None,
    });
    line(&node, 0, "a bad frame", |line| line.event() == "bad_frame");
    lab.assert_serves();
    assert_eq!(lab.connections(), 1, "{}", said(&node));
    stop(node);
}

fn a_message_of_a_gigabyte_is_refused_by_its_header(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Oversize);
    let node = lab.start(&CONTROL);
    assert_eq!(lab.ended(&node, 1).0, Some(1009));
    lab.ready(&node, 2);
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 64 * 1024, "{peak} KiB were taken");
    }
    comes_back(&lab, node, "16777216 bytes");
}

fn replayed_frames_are_refused_and_the_session_goes_on(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Replay);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    lab.record(&node, 0, "a refusal", |record| match record {
        Record::Message { message, .. } if message["code"] == "decode_failed" => Some(()),
        _ => None,
    });
    lab.assert_serves();
    // Asked twice by frames, once by right.
    assert_eq!(lab.network.upstream.requests(), 1);
    assert_eq!(lab.connections(), 1);
    stop(node);
}

fn frames_in_the_wrong_order_are_refused_and_the_session_goes_on(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Reorder);
    let node = lab.start(&CONTROL);
    lab.record(&node, 0, "the later ping's pong", |record| {
        matches!(record, Record::Pong { .. }).then_some(())
    });
    lab.record(&node, 0, "a refusal of the earlier ping", |record| match record {
        Record::Message { message, .. } if message["code"] == "decode_failed" => Some(()),
        _ => None,
    });
    lab.assert_serves();
    assert_eq!(lab.connections(), 1);
    stop(node);
}

fn a_server_that_falls_silent_is_given_up(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Silent);
    comes_back(&lab, lab.start(&CONTROL), "silent for too long");
}

fn a_server_that_vanished_is_given_up(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::HalfOpen);
    comes_back(&lab, lab.start(&CONTROL), "silent for too long");
}

fn a_cut_connection_is_opened_again(shell: Shell) {
    // After the handshake, the hello and the first heartbeat.
    let lab = Lab::bad_once(shell, Bad::Drop(3));
    comes_back(&lab, lab.start(&CONTROL), "");
}

fn a_server_that_never_answers_is_given_up_at_each_stage(shell: Shell) {
    // At once, because each takes as long as the node's patience.
    std::thread::scope(|scope| {
        for (bad, words) in [
            // "did not open the tunnel in time", or the shell's own "timed out": whichever clock is first.
            (Bad::Stall, "time"),
            (Bad::NoAccept, "did not answer the handshake in time"),
            (Bad::NoReady, "did not say ready in time"),
        ] {
            scope.spawn(move || {
                let lab = Lab::bad_once(shell, bad);
                comes_back(&lab, lab.start(&CONTROL), words);
            });
        }
    });
}

fn every_close_code_leads_to_another_connection(shell: Shell) {
    let lab = Lab::bad_once(shell, Bad::Close(1000));
    let node = lab.start(&CONTROL);
    let mut mark = 0;
    for (code, next) in [(1000, Some(1008)), (1008, Some(1012)), (1012, Some(4321)), (4321, None)] {
        let line = disconnected(&node, mark, &format!("code {code}"));
        lab.network.orchestrator.misbehave(next.map(Bad::Close), Some(1));
        mark = node.mark_after(&line, mark);
        // A session was up each time, so the schedule begins anew each time.
        assert!(line.value["retry_in_ms"].as_u64().unwrap() <= 1500, "{}", line.text);
    }
    let ready = lab.ready(&node, 5);
    let beat = lab.heartbeat(&node, 5);
    assert!(beat.duration_since(ready) < Duration::from_secs(1));
    lab.assert_serves();
    stop(node);
}
