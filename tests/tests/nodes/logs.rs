//! What must never reach a log: secrets, tokens, query strings, bodies, header values.

use std::fs;

use consensus_testbed::binaries::Shell;
use consensus_testbed::client;
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::Line;
use serde_json::{Value, json};

use crate::exit_codes::register_arguments;
use crate::lab::{Lab, with_both_shells};

with_both_shells! {
    no_secret_and_nothing_of_a_users_request_reaches_the_log
    every_line_is_one_json_object_that_says_when_who_and_what
}

pub(crate) const QUERY: &str = "q=QUERYSECRET8123";
pub(crate) const BODY: &str = "BODYSECRET9177";
pub(crate) const HEADER: &str = "HEADERSECRET4410";
const PATH: &str = "PATHSECRET3355";

/// A whole life at the most talkative level: everything it said, and what it must not have said.
fn life(shell: Shell) -> (Vec<Line>, Vec<(String, String)>) {
    let lab = Lab::with(shell, Options::default());
    let mut lines = Vec::new();
    let eval = lab.run(&["eval"]);
    assert_eq!(eval.code, Some(0), "{}", eval.stderr());
    lines.extend(eval.lines);
    // The registration uses the authorisation up.
    let auth: Value =
        serde_json::from_slice(&fs::read(lab.network.home.state_dir().join("join-auth.json")).unwrap())
            .unwrap();
    let register = lab.run(&register_arguments(&[]));
    assert_eq!(register.code, Some(0), "{}", register.stderr());
    lines.extend(register.lines);
    let config: Value =
        serde_json::from_slice(&fs::read(lab.network.home.state_dir().join("config.json")).unwrap()).unwrap();
    let node_id = config["node_id"].as_str().unwrap();

    let listen = lab.network.local_api.to_string();
    let node = lab.start(&["run", "--allow-private-targets", "--listen", &listen]);
    lab.ready(&node, 2);
    let request = |url: String| json!({ "target_url": url, "method": "POST", "body": BODY, "headers": { "authorization": HEADER } });
    let good = request(lab.network.upstream.url(&format!("/echo?{QUERY}")));
    let lost = request(lab.network.upstream.url(&format!("/{PATH}?{QUERY}")));
    let refused = request(format!("http://user:{HEADER}@127.0.0.1:1/{PATH}?{QUERY}"));
    let nonsense = request(format!("nonsense {QUERY}"));
    for request in [&good, &lost, &refused, &nonsense] {
        let path = format!("/node/tunnel/proxy/{node_id}");
        lab.network.post(&path, request).unwrap();
        // The local interface may still be on its way up; what it says then is also looked at.
        let _ = client::post(&format!("http://{listen}/proxy?{QUERY}"), request, None);
    }
    let exit = crate::lab::stop(node);
    lines.extend(exit.lines);
    let verify = lab.run(&["verify"]);
    lines.extend(verify.lines);

    let mut secrets = vec![
        (String::from("the query"), String::from("QUERYSECRET")),
        (String::from("the body"), String::from(BODY)),
        (String::from("the body in base64"), consensus_core::wire::base64::encode(BODY.as_bytes())),
        (String::from("a header"), String::from(HEADER)),
        (String::from("the path"), String::from(PATH)),
    ];
    let key = fs::read_to_string(lab.network.home.state_dir().join("keys/node.key")).unwrap();
    secrets.push((String::from("the private key"), key.lines().nth(1).unwrap().to_owned()));
    for member in ["nonce", "signature"] {
        secrets.push((format!("join-auth {member}"), auth[member].as_str().unwrap().to_owned()));
    }
    for (_, record) in lab.network.orchestrator.journal().since(0) {
        if let Record::EmailCode { code, email } = record {
            // Six digits may stand in a figure by chance; as a word they do not.
            secrets.push((String::from("the code"), format!("\"{code}\"")));
            secrets.push((String::from("the code"), format!(" {code}")));
            secrets.push((String::from("the email address"), email));
        }
    }
    (lines, secrets)
}

fn no_secret_and_nothing_of_a_users_request_reaches_the_log(shell: Shell) {
    let (lines, secrets) = life(shell);
    assert!(lines.len() > 10);
    for line in &lines {
        for (what, secret) in &secrets {
            assert!(!line.text.contains(secret.as_str()), "{what} is in: {}", line.text);
        }
    }
}

fn every_line_is_one_json_object_that_says_when_who_and_what(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&["control"]);
    lab.heartbeat(&node, 1);
    let exit = crate::lab::stop(node);
    assert!(exit.lines.iter().any(|line| line.event() == "connected"));
    for line in exit.lines {
        for member in ["ts", "level", "scope", "event"] {
            assert!(line.value[member].is_string(), "{}", line.text);
        }
    }
}
