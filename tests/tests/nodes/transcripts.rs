//! The deployed network's transcripts against what these nodes really send. `CONSENSUS_TRANSCRIPTS` is the folder,
//! or `CONSENSUS_VECTORS` a folder beside it; without either the test says so and passes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use consensus_core::wire::message::Message;
use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use serde_json::{Value, json};

use crate::lab::{Lab, stop, with_both_shells};

with_both_shells! {
    what_the_node_sends_has_the_members_that_the_deployed_node_sends
}

/// Members that the deployed node has and this one has under a name of its own, or not at all, with the reason.
const KNOWN: [(&str, &str); 1] = [
    // The runtime's own version field: this runtime is another.
    ("/result/bun_version", "/result/rust_version"),
];

fn transcripts() -> Option<Vec<Value>> {
    let folder = match (std::env::var_os("CONSENSUS_TRANSCRIPTS"), std::env::var_os("CONSENSUS_VECTORS")) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some(vectors)) => PathBuf::from(vectors).join("../transcripts"),
        (None, None) => {
            println!("skipped: neither CONSENSUS_TRANSCRIPTS nor CONSENSUS_VECTORS is set");
            return None;
        }
    };
    let text = fs::read_to_string(folder.join("messages.jsonl")).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A message's shape: the path of every member with the kind of its value. What is inside a manifest, or a header
/// map, is the sender's own.
fn shape(message: &Value) -> BTreeMap<String, &'static str> {
    let mut out = BTreeMap::new();
    let mut open = vec![(String::new(), message)];
    while let Some((path, value)) = open.pop() {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if !path.is_empty() {
            out.insert(path.clone(), kind);
        }
        if let Value::Object(members) = value {
            let own = path.ends_with("/manifest") || path.ends_with("/headers");
            open.extend(
                members.iter().filter(|_| !own).map(|(name, value)| (format!("{path}/{name}"), value)),
            );
        }
        if let Value::Array(items) = value {
            open.extend(
                items.first().filter(|item| item.is_object()).map(|item| (format!("{path}/0"), item)),
            );
        }
    }
    for (deployed, ours) in KNOWN {
        if out.remove(deployed).is_some() {
            out.insert(String::from(ours), "string");
        }
    }
    out
}

/// What kind of message it is, finer than its type: an eval answer by its action, an error by its code.
fn sort(message: &Value) -> String {
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    let mode = if message["type"] == "hello" { text("mode") } else { String::new() };
    [text("type"), text("action"), text("code"), mode].join(" ").trim().to_owned()
}

fn what_the_node_sends_has_the_members_that_the_deployed_node_sends(shell: Shell) {
    let Some(lines) = transcripts() else { return };
    let mut deployed: BTreeMap<String, BTreeSet<BTreeMap<String, &str>>> = BTreeMap::new();
    for line in &lines {
        let message = &line["message"];
        // Both directions are read with the same parser: the node's half and the server's half share it.
        Message::parse(message.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}: {message}"));
        if line["direction"] == "node-to-server" {
            deployed.entry(sort(message)).or_default().insert(shape(message));
        }
    }

    let options = Options { speedtest_url: Some(String::from("/b/16384")), ..Options::default() };
    let lab = Lab::with(shell, options);
    let exit = lab.run(&["eval", "--allow-private-targets"]);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    lab.network.register_node().unwrap();
    let node = lab.start(&["control", "--allow-private-targets"]);
    lab.ready(&node, 2);
    lab.assert_serves();
    let failed = lab.proxy(&json!({ "target_url": "nonsense" }));
    assert_eq!(failed.status, 502);
    stop(node);

    let mut compared = BTreeSet::new();
    for message in lab.messages() {
        let sort = sort(&message);
        if let Some(shapes) = deployed.get(&sort) {
            let own = shape(&message);
            assert!(shapes.contains(&own), "{sort}:\n{own:#?}\nthe deployed node sends:\n{shapes:#?}");
            compared.insert(sort);
        }
    }
    for sort in [
        "hello  eval",
        "hello   control",
        "heartbeat",
        "eval_response capabilities",
        "eval_response integrity",
        "eval_response benchmark_system",
        "eval_response benchmark_event_loop",
        "eval_response benchmark_composite",
        "eval_response benchmark_sustained",
        "eval_response benchmark_multicore",
        "eval_response tunnel_echo",
        "eval_response speedtest_fetch",
        "proxy_response",
        "error  proxy_failed",
    ] {
        let sort = sort.split_whitespace().collect::<Vec<_>>();
        assert!(
            compared.iter().any(|seen| seen.split_whitespace().eq(sort.iter().copied())),
            "{sort:?} was not compared; compared: {compared:?}"
        );
    }
}
