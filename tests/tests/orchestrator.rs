//! The local orchestrator's own manners, without a node.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use consensus_core::crypto::pure::Pure;
use consensus_core::data_plane::ticket;
use consensus_core::peer::client::Request;
use consensus_core::wire::base64;
use consensus_testbed::network::{NODE_ID, Network};
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::{Journal, Orchestrator, Record};
use consensus_testbed::process::Home;
use consensus_testbed::upstream::Upstream;
use serde_json::json;

#[test]
fn an_address_is_verified_once_and_only_with_its_code() {
    let network = Network::start(false).unwrap();
    let started = network.post("/node/email/start", &json!({ "email": "a@example.org" })).unwrap();
    assert_eq!(started.status, 200);
    let id = started.body["verification_id"].as_str().unwrap();
    let code = started.body["dev_code"].as_str().unwrap();
    let verify = |code: &str| {
        let body = json!({ "email": "a@example.org", "verification_id": id, "code": code });
        network.post("/node/email/verify", &body).unwrap()
    };
    assert_eq!(verify("nonsense").status, 401);
    let verified = verify(code);
    assert_eq!(verified.status, 200);
    assert!(verified.body["email_verification_token"].is_string());
    assert_eq!(verify(code).status, 404);
    assert_eq!(network.post("/node/email/start", &json!({ "email": "nobody" })).unwrap().status, 400);
    let journal = network.orchestrator.journal();
    let sent = journal.wait(0, Duration::ZERO, |record| match record {
        Record::EmailCode { code, .. } => Some(code.clone()),
        _ => None,
    });
    assert_eq!(sent.unwrap().1, code);
}

#[test]
fn what_is_not_known_is_said_so() {
    let network = Network::start(true).unwrap();
    assert_eq!(network.get("/node/region/192.0.2.1").unwrap().body["region"], "local-1");
    assert_eq!(network.get("/node/region/somewhere").unwrap().status, 400);
    assert_eq!(network.get("/node/status/nobody").unwrap().status, 404);
    assert_eq!(network.get("/update/latest").unwrap().status, 404);
    assert_eq!(network.get("/config").unwrap().body["free_mode"], true);
    assert_eq!(network.get("/node/tunnel").unwrap().status, 426);
    assert_eq!(network.get("/elsewhere").unwrap().status, 404);
    let proxy = network.post("/node/tunnel/proxy/nobody", &json!({ "target_url": "http://a/" })).unwrap();
    assert_eq!((proxy.status, &proxy.body["error"]), (502, &json!("node_offline")));
    let keys = network.get("/orchestrator/pubkey").unwrap();
    assert_eq!(keys.body["keys"][0], network.orchestrator.public_key_jwk());
    assert_eq!(network.post("/node/join", &json!({})).unwrap().status, 400);
}

#[test]
fn a_ticket_is_for_one_request_at_one_node() {
    let network = Network::start(false).unwrap();
    let mint = |body| network.post("/tickets", &body).unwrap();
    let refused = |body| {
        let answer = mint(body);
        (answer.status, answer.body["error"].as_str().unwrap().to_owned())
    };
    let url = "http://a.example/?b=2&a=1";
    assert_eq!(refused(json!({ "target_url": url })), (503, "no_node".into()));
    assert_eq!(refused(json!({ "target_url": url, "node_id": "nobody" })), (404, "node_not_found".into()));
    assert_eq!(refused(json!({ "target_url": "a", "node_id": "n1" })), (400, "invalid_request".into()));
    assert_eq!(refused(json!({ "node_id": "n1" })), (400, "invalid_request".into()));
    let not_base64 = json!({ "target_url": url, "node_id": "n1", "body": "?", "body_encoding": "base64" });
    assert_eq!(refused(not_base64), (400, "invalid_request".into()));

    network.register_node().unwrap();
    let body = json!({ "target_url": url, "node_id": NODE_ID, "method": "put", "body": "hi" });
    let answer = mint(body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let published = network.get("/orchestrator/pubkey").unwrap().body["keys"][0].clone();
    let key = base64::decode_array(published["x"].as_str().unwrap()).unwrap();
    let expires_at = answer.body["expires_at"].as_u64().unwrap();
    let token = answer.body["token"].as_str().unwrap();
    let mut token = ticket::Token::parse(token).unwrap();
    let claims = token.verify(&Pure, &key, NODE_ID, expires_at).unwrap();
    let request = Request {
        target_url: String::from("http://a.example/?a=1&b=2"),
        method: Some(String::from("PUT")),
        body: Some(b"hi".to_vec()),
        ..Request::default()
    };
    assert_eq!(Some(claims.sub.into_owned()), request.dedupe_key(&Pure));
    let again = mint(json!({ "target_url": url, "node_id": NODE_ID }));
    assert_ne!(again.body["token"], answer.body["token"]);
}

#[test]
fn a_door_that_leads_nowhere_says_so() {
    let network = Network::start(false).unwrap();
    for (target, host, expected) in [
        ("/connect", "nobody.node.localhost", "502 Bad Gateway"),
        ("/connect", "localhost", "404 Not Found"),
        ("/ws", "localhost", "502 Bad Gateway"),
        ("/raw?node=nobody&host=h&port=1", "localhost", "502 Bad Gateway"),
        ("/tunnel", "localhost", "502 Bad Gateway"),
        ("/", "nobody.tunnel.localhost", "404 Not Found"),
    ] {
        let mut stream = TcpStream::connect(network.orchestrator.address()).unwrap();
        let head = format!(
            "GET {target} HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 32];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{target} of {host}: {answer}");
    }
    assert_eq!(network.get("/config").unwrap().status, 200);
}

#[test]
fn a_quiet_server_tells_nothing_of_requests() {
    let network = Network::with(Options { quiet: true, ..Options::default() }).unwrap();
    assert_eq!(network.get("/config").unwrap().status, 200);
    assert_eq!(network.orchestrator.journal().mark(), 0);
    let network = Network::start(false).unwrap();
    assert_eq!(network.get("/config").unwrap().status, 200);
    assert_eq!(network.orchestrator.journal().mark(), 1);
}

#[test]
fn a_request_that_is_none_is_answered_and_does_not_harm() {
    let network = Network::start(false).unwrap();
    for request in
        [&b"GET / HTTP/1.1\r\nhost: \xff\r\n\r\n"[..], b"\x16\x03\x01nonsense\r\n\r\n", &[b'A'; 20_000]]
    {
        let mut stream = TcpStream::connect(network.orchestrator.address()).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is fine as well.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"));
    }
    assert_eq!(network.get("/config").unwrap().status, 200);
}

#[test]
fn a_server_with_a_state_file_knows_its_key_and_its_nodes_again() {
    let home = Home::new().unwrap();
    let options = Options { state: Some(home.root().join("server.json")), ..Options::default() };
    let first = Orchestrator::start(options.clone(), Journal::new(false)).unwrap();
    first.adopt("n1", "-----BEGIN PUBLIC KEY-----");
    let key = first.public_key_pem().to_owned();
    drop(first);
    let second = Orchestrator::start(options, Journal::new(false)).unwrap();
    assert_eq!(second.public_key_pem(), key);
    let status = consensus_testbed::client::get(&format!("{}/node/status/n1", second.url()), None).unwrap();
    assert_eq!(status.body["status"], "offline");
}

#[test]
fn a_server_that_goes_down_is_gone_and_comes_back_at_the_same_address() {
    let mut network = Network::start(false).unwrap();
    let url = network.orchestrator.url();
    network.orchestrator.go_down();
    assert!(TcpStream::connect(network.orchestrator.address()).is_err());
    network.orchestrator.come_back().unwrap();
    assert_eq!(network.orchestrator.url(), url);
    assert_eq!(network.get("/config").unwrap().status, 200);
}

#[test]
fn the_upstream_gives_what_was_asked_for() {
    let upstream = Upstream::start().unwrap();
    let answer = consensus_testbed::client::get(&upstream.url("/b/16"), None).unwrap();
    assert_eq!(answer.body, "0000000.0000001.");
    assert_eq!(consensus_testbed::upstream::bytes(16), b"0000000.0000001.");
    let body = json!({ "a": 1 });
    assert_eq!(consensus_testbed::client::post(&upstream.url("/echo"), &body, None).unwrap().body, body);
    assert_eq!(consensus_testbed::client::get(&upstream.url("/x"), None).unwrap().status, 404);
    assert_eq!(upstream.requests(), 3);
}
