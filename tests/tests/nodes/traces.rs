//! Traces of real nodes: they run again to the same outputs, and without `--trace-secrets` hold no secret.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use consensus_core::io::Output;
use consensus_core::trace::{Reader, Record, about};
use consensus_core::wire::base64;
use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::trace;
use serde_json::{Value, json};

use crate::lab::{CONTROL, LONG, Lab, stop, with_both_shells};
use crate::logs::{BODY, HEADER, QUERY};

with_both_shells! {
    the_trace_of_an_evaluation_and_of_a_service_runs_again_to_the_same_outputs
    a_trace_without_secrets_holds_none_in_any_form
    the_trace_of_a_killed_node_runs_again_as_far_as_it_goes
    a_trace_is_never_written_over_and_its_options_need_it
    a_trace_that_is_full_ends_and_the_node_serves_on
}

fn path(lab: &Lab, name: &str) -> PathBuf {
    lab.network.home.root().join(name)
}

/// Runs a node that serves a few requests; gives its trace.
fn service(lab: &Lab, name: &str, more: &[&str]) -> Vec<u8> {
    let path = path(lab, name);
    let arguments = [&CONTROL[..], &["--trace", path.to_str().unwrap()], more].concat();
    let node = lab.start(&arguments);
    lab.ready(&node, lab.connections() as u64 + 1);
    lab.assert_serves();
    let url = lab.network.upstream.url(&format!("/echo?{QUERY}"));
    let headers = json!({ "authorization": HEADER });
    let answer = lab.proxy(&json!({ "target_url": url, "method": "POST", "body": BODY, "headers": headers }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    stop(node);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::read(&path).unwrap()
}

fn the_trace_of_an_evaluation_and_of_a_service_runs_again_to_the_same_outputs(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    let file = path(&lab, "eval.trace");
    let eval = lab.run(&["eval", "--trace", file.to_str().unwrap(), "--trace-secrets"]);
    assert_eq!(eval.code, Some(0), "{}", eval.stderr());
    let text = trace::replay(&fs::read(&file).unwrap()).unwrap();
    assert!(text.contains("the node came to its end"), "{text}");

    let lab = Lab::new(shell);
    let whole = service(&lab, "control.trace", &["--trace-secrets"]);
    let text = trace::replay(&whole).unwrap();
    assert!(text.contains("the node came to its end"), "{text}");
    // What came over the wire is a seed for each fuzz target of the wire.
    let seeds = trace::seeds(&whole).unwrap();
    for (target, least) in [("handshake", 2), ("frame", 6), ("message", 6)] {
        assert!(seeds.iter().filter(|(name, _)| *name == target).count() >= least, "{target}");
    }
    // What the messages said is shown.
    let (entries, error) = trace::entries(Reader::new(&whole).unwrap());
    assert_eq!(error, None);
    for part in ["\"type\":\"proxy_request\"", "\"type\":\"heartbeat\"", "state: running, tunnel up"] {
        assert!(entries.iter().any(|entry| entry.text.contains(part)), "{part}");
    }
}

fn a_trace_without_secrets_holds_none_in_any_form(shell: Shell) {
    let lab = Lab::new(shell);
    // The same key and registration, recorded both ways: what is looked for is there to be found.
    let whole = service(&lab, "whole.trace", &["--trace-secrets"]);
    let lab = Lab::new(shell);
    let bare = service(&lab, "bare.trace", &[]);
    let pem = fs::read_to_string(lab.network.home.state_dir().join("keys/node.key")).unwrap();
    let seed = consensus_core::crypto::pem::decode_private(&pem).unwrap().to_vec();
    let config: Value =
        serde_json::from_slice(&fs::read(lab.network.home.state_dir().join("config.json")).unwrap()).unwrap();
    let mut secrets = vec![seed.clone(), pem.lines().nth(1).unwrap().as_bytes().to_vec()];
    for text in
        [BODY, HEADER, QUERY, config["machine_id"].as_str().unwrap(), config["ipv4"].as_str().unwrap()]
    {
        secrets.push(text.as_bytes().to_vec());
    }
    let has = |trace: &[u8], needle: &[u8]| trace.windows(needle.len()).any(|part| part == needle);
    for secret in &secrets {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![secret.clone(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        // Inside of other data a base64 text begins at any of three places, and its ends differ.
        for before in 0..3 {
            let padded = [&vec![0; before][..], secret].concat();
            for text in [base64::encode(&padded), base64::encode_url(&padded)] {
                let inner = text.trim_end_matches('=');
                forms.push(inner.as_bytes()[if before == 0 { 0 } else { 4 }..inner.len() - 2].to_vec());
            }
        }
        for form in forms {
            assert!(!has(&bare, &form), "{}", String::from_utf8_lossy(&form));
        }
    }
    for there in [&seed[..], HEADER.as_bytes(), config["machine_id"].as_str().unwrap().as_bytes()] {
        assert!(has(&whole, there), "{}", String::from_utf8_lossy(there));
    }
    let refused = trace::replay(&bare).unwrap_err();
    assert!(refused.contains("--trace-secrets"), "{refused}");
    let (entries, error) = trace::entries(Reader::new(&bare).unwrap());
    assert!(error.is_none() && entries.iter().any(|entry| entry.text.contains("connected for control")));
}

fn the_trace_of_a_killed_node_runs_again_as_far_as_it_goes(shell: Shell) {
    let lab = Lab::new(shell);
    let file = path(&lab, "killed.trace");
    let node = lab.start(&[&CONTROL[..], &["--trace", file.to_str().unwrap(), "--trace-secrets"]].concat());
    lab.heartbeat(&node, 1);
    lab.assert_serves();
    drop(node);
    let text = trace::replay(&fs::read(&file).unwrap()).unwrap_err();
    assert!(text.contains("cut off") && text.contains("led to the same"), "{text}");
}

fn a_trace_is_never_written_over_and_its_options_need_it(shell: Shell) {
    let lab = Lab::new(shell);
    let file = path(&lab, "there.trace");
    fs::write(&file, "mine").unwrap();
    let name = file.to_str().unwrap();
    for (arguments, part) in [
        (&["--trace", name][..], "not written over"),
        (&["--trace", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--trace-secrets"], "--trace FILE"),
        (&["--trace-limit", "1"], "--trace FILE"),
        (&["--trace", name, "--trace-limit", "0"], "1 to 1024"),
    ] {
        let exit = lab.run(&[&CONTROL[..], arguments].concat());
        assert_eq!(exit.code, Some(2), "{arguments:?}: {}", exit.stderr());
        assert!(exit.stderr().contains(part), "{arguments:?}: {}", exit.stderr());
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

fn a_trace_that_is_full_ends_and_the_node_serves_on(shell: Shell) {
    let lab = Lab::new(shell);
    let file = path(&lab, "full.trace");
    let more = ["--trace", file.to_str().unwrap(), "--trace-secrets", "--trace-limit", "1"];
    let node = lab.start(&[&CONTROL[..], &more].concat());
    lab.ready(&node, 1);
    let url = lab.network.upstream.url("/b/700000");
    let answer = lab.proxy(&json!({ "target_url": url, "method": "GET" }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(node.wait_for(0, LONG, |line| line.event() == "trace_ended").is_some());
    lab.assert_serves();
    stop(node);
    let trace = fs::read(&file).unwrap();
    assert!(trace.len() <= 1024 * 1024);
    let text = trace::replay(&trace).unwrap();
    assert!(text.contains("had its size"), "{text}");
}

/// What a node wanted, without what differs from run to run: numbers (random and of time: lengths of JSON with times in
/// it, ports, durations), waits (their moments are the system's), and when the writing of a file was done.
fn wanted(trace: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(trace).unwrap();
    let mut all = Vec::new();
    while let Some((_, record)) = reader.next_record().unwrap() {
        match record {
            Record::Output(Output::Wait(_)) => {}
            Record::Output(output) => {
                let line = about::output(&output);
                // The pings and heartbeats of a busy machine are no answers to the script.
                if line.contains("heartbeat") {
                    continue;
                }
                let mut text = String::new();
                for c in line.chars() {
                    match c {
                        c if !c.is_ascii_digit() => text.push(c),
                        _ if text.ends_with('#') => {}
                        _ => text.push('#'),
                    }
                }
                // The session's name is random hex.
                all.push(text.split(", session").next().unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }
    all
}

#[test]
fn both_shells_lead_a_node_through_the_same_outputs() {
    let [smol, blocking] = [Shell::Smol, Shell::Blocking].map(|shell| {
        let lab = Lab::new(shell);
        let path = path(&lab, "script.trace");
        // The pings at their default pace: none is due.
        let arguments =
            ["control", "--allow-private-targets", "--trace", path.to_str().unwrap(), "--trace-secrets"];
        let node = lab.start(&arguments);
        lab.heartbeat(&node, 1);
        lab.assert_serves();
        let answer = lab.proxy(&json!({ "target_url": "ftp://127.0.0.1/", "method": "GET" }));
        assert_ne!(answer.body["status"], 200);
        lab.assert_serves();
        stop(node);
        fs::read(&path).unwrap()
    });
    let (smol, blocking) = (wanted(&smol), wanted(&blocking));
    assert!(smol.len() > 12 && smol.iter().any(|line| line.starts_with("say: proxied")), "{smol:#?}");
    assert_eq!(smol, blocking);
}
