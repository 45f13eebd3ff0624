//! What a node does for others, seen from the server.

use std::time::Duration;

use consensus_core::wire::base64;
use consensus_testbed::binaries::Shell;
use consensus_testbed::client;
use consensus_testbed::process::free_address;
use serde_json::json;

use crate::lab::{CONTROL, LONG, Lab, line, stop, with_both_shells};

with_both_shells! {
    requests_are_fetched_as_they_were_asked_for
    what_cannot_be_fetched_is_an_error_and_not_the_end
    a_private_target_is_refused_unless_the_operator_allows_it
    many_requests_at_once_get_each_its_own_answer
    the_whole_node_serves_its_local_interface_beside_the_tunnel
    a_second_node_of_the_same_name_takes_the_place_of_the_first
}

fn requests_are_fetched_as_they_were_asked_for(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let body: Vec<u8> = (0..=255).collect();
    let answer = lab.proxy(&json!({
        "target_url": lab.network.upstream.url("/echo?q=1"), "method": "PUT", "body": base64::encode(&body),
        "body_encoding": "base64", "headers": { "content-type": "application/octet-stream", "connection": "x" },
    }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["status"], 200);
    assert_eq!(answer.body["body_encoding"], "base64");
    assert_eq!(base64::decode(answer.body["body"].as_str().unwrap()).unwrap(), body);
    assert_eq!(answer.body["headers"]["x-method"], "PUT");
    assert_eq!(answer.body["headers"]["x-user-agent"], "Consensus-Node/0.1");
    let answer = lab.proxy(&json!({ "target_url": lab.network.upstream.url("/nowhere") }));
    assert_eq!(answer.body["status"], 404);
    // A frame holds 16 MiB, and a body of 10 MiB fits.
    let size = 10 * 1024 * 1024;
    let answer = lab.proxy(&json!({ "target_url": lab.network.upstream.url(&format!("/b/{size}")) }));
    let body = base64::decode(answer.body["body"].as_str().unwrap()).unwrap();
    assert!(body == consensus_testbed::upstream::bytes(size));
    stop(node);
}

fn what_cannot_be_fetched_is_an_error_and_not_the_end(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let nobody = format!("http://{}/", free_address().unwrap());
    let too_large = lab.network.upstream.url("/b/20000000");
    for url in
        ["nonsense", "ftp://127.0.0.1/", "http://", "http://no-such-name.invalid/", &nobody, &too_large]
    {
        let answer = lab.proxy(&json!({ "target_url": url }));
        assert_eq!((answer.status, &answer.body["error"]), (502, &json!("proxy_failed")), "{url}");
        assert!(!answer.body["message"].as_str().unwrap().is_empty());
    }
    lab.assert_serves();
    assert_eq!(lab.connections(), 1);
    stop(node);
}

fn a_private_target_is_refused_unless_the_operator_allows_it(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&["control"]);
    lab.ready(&node, 1);
    let answer = lab.proxy(&json!({ "target_url": lab.network.upstream.url("/b/1") }));
    assert_eq!((answer.status, &answer.body["error"]), (502, &json!("proxy_failed")));
    assert_eq!(lab.network.upstream.requests(), 0);
    stop(node);
}

fn many_requests_at_once_get_each_its_own_answer(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let lab = &lab;
    std::thread::scope(|scope| {
        for number in 0..16 {
            scope.spawn(move || {
                let text = format!("request {number}");
                let url = lab.network.upstream.url("/echo");
                let answer = lab.proxy(&json!({ "target_url": url, "method": "POST", "body": text }));
                let body = answer.body["body"].as_str().and_then(base64::decode);
                assert_eq!(body.unwrap(), text.as_bytes(), "{}", answer.body);
            });
        }
    });
    stop(node);
}

fn the_whole_node_serves_its_local_interface_beside_the_tunnel(shell: Shell) {
    let lab = Lab::new(shell);
    let listen = lab.network.local_api.to_string();
    let node = lab.start(&["run", "--listen", &listen, "--allow-private-targets"]);
    lab.ready(&node, 1);
    let url = |path: &str| format!("http://{listen}{path}");
    // The tunnel may be quicker than the local interface.
    let end = std::time::Instant::now() + LONG;
    let health = loop {
        match client::get(&url("/health"), None) {
            Ok(answer) => break answer,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((health.status, &health.body["status"]), (200, &json!("healthy")));
    assert_eq!(health.body["registered"], true);
    let version = client::get(&url("/node/version"), None).unwrap();
    assert_eq!(version.body["runtime"], "rust");
    let capabilities = client::get(&url("/node/capabilities"), None).unwrap();
    assert_eq!(capabilities.status, 200);
    assert_eq!(client::get(&url("/nowhere"), None).unwrap().status, 404);
    assert_eq!(client::post(&url("/proxy"), &json!({}), None).unwrap().status, 400);
    let fetched =
        client::post(&url("/proxy"), &json!({ "target_url": lab.network.upstream.url("/b/10") }), None)
            .unwrap();
    assert_eq!((fetched.status, &fetched.body["status"]), (200, &json!(200)), "{}", fetched.body);
    // The local interface's own integrity payload is one that the server takes.
    let payload = client::get(&url("/node/integrity"), None).unwrap().body;
    let path = format!("/node/verify-integrity/{}", consensus_testbed::network::NODE_ID);
    let verdict = lab.network.post(&path, &payload).unwrap();
    assert_eq!(verdict.body["verified"], true, "{}", verdict.body);
    stop(node);
}

fn a_second_node_of_the_same_name_takes_the_place_of_the_first(shell: Shell) {
    let lab = Lab::new(shell);
    let first = lab.start(&CONTROL);
    lab.ready(&first, 1);
    // One state directory takes one process, so the second node has a copy of it.
    let copy = lab.network.home.root().join("copy");
    std::fs::create_dir_all(copy.join("keys")).unwrap();
    for file in ["config.json", "keys/node.key", "keys/node.pub"] {
        std::fs::copy(lab.network.home.state_dir().join(file), copy.join(file)).unwrap();
    }
    let refused = lab.run(&CONTROL);
    assert!(refused.stderr().contains("runs on this state directory"), "{}", refused.stderr());
    let second = lab.start(&[&CONTROL[..], &["--state-dir", copy.to_str().unwrap()]].concat());
    lab.ready(&second, 2);
    // The first is closed by the server and does what it does with every close.
    line(&first, 0, "a close", |line| line.event() == "disconnected" && line.text.contains("code 1000"));
}
