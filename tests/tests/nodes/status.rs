//! What a node says of itself: figures for programs, a page for a browser, and `status` on a terminal.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use consensus_testbed::binaries::Shell;
use consensus_testbed::client;
use consensus_testbed::options::Options;
use consensus_testbed::process::{NodeProcess, free_address};
use serde_json::{Value, json};

use crate::lab::{LONG, Lab, line, stop, with_both_shells};

with_both_shells! {
    figures_move_while_traffic_runs_and_agree_wherever_they_are_told
    a_page_of_another_site_gets_nothing_by_pointing_its_name_here
    the_exit_code_of_status_says_whether_the_node_is_well
    promtool_finds_nothing_wrong_with_the_metrics
}

/// Starts a node with a local API, and waits until that answers.
fn start(lab: &Lab, arguments: &[&str]) -> NodeProcess {
    let listen = lab.network.local_api.to_string();
    let node = lab.start(&[arguments, &["--listen", &listen]].concat());
    line(&node, 0, "that it listens", |line| line.event() == "listening");
    node
}

fn get(lab: &Lab, path: &str) -> Value {
    let answer = client::get(&format!("http://{}{path}", lab.network.local_api), None).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

fn metrics(lab: &Lab) -> String {
    get(lab, "/metrics").as_str().unwrap().to_owned()
}

/// The value of a series.
fn value(text: &str, series: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series}: {text}")).parse().unwrap()
}

fn figures_move_while_traffic_runs_and_agree_wherever_they_are_told(shell: Shell) {
    let lab = Lab::new(shell);
    let node = start(&lab, &["run", "--allow-private-targets"]);
    lab.ready(&node, 1);
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                lab.assert_serves();
            }
        });
        // Figures that were seen, each higher than the one before; and one in the samples.
        let (mut seen, end) = (Vec::new(), Instant::now() + LONG);
        loop {
            let status = get(&lab, "/status");
            let requests = status["served"]["requests"].as_u64().unwrap();
            if seen.last().is_none_or(|last| requests > *last) {
                seen.push(requests);
            }
            let samples = status["samples"]["requests"].as_array().unwrap();
            if seen.len() >= 5 && samples.iter().any(|step| step.as_u64() > Some(0)) {
                break;
            }
            assert!(Instant::now() < end, "{seen:?} {status}");
        }
        stopped.store(true, Ordering::Relaxed);
    });
    lab.proxy(&json!({ "target_url": "ftp://127.0.0.1/" }));
    let (status, text, health) = (get(&lab, "/status"), metrics(&lab), get(&lab, "/health"));
    let served = &status["served"];
    assert_eq!(served["requests"].as_u64().unwrap(), lab.network.upstream.requests());
    assert_eq!(served["failed"], 1);
    for (member, series) in [
        ("requests", "requests_total"),
        ("failed", "request_failures_total"),
        ("bytes", "response_body_bytes_total"),
        ("streams", "streams_total"),
        ("connections", "data_plane_connections_total"),
        ("refused", "data_plane_refused_total"),
        ("over_limit", "over_limit_total"),
    ] {
        let count = value(&text, &format!("consensus_node_{series}"));
        assert_eq!(served[member], count, "{member}");
        assert_eq!(health["served"][member], count, "{member}");
    }
    let ended = value(&text, "consensus_node_request_duration_seconds_count");
    assert_eq!(served["requests"], ended);
    assert!(status["tunnel"]["sent_bytes"].as_u64() > served["bytes"].as_u64(), "{status}");
    let said = lab.run(&["status", "--listen", &lab.network.local_api.to_string()]);
    assert_eq!(said.code, Some(0), "{}", said.stderr());
    assert!(said.stdout.contains(&format!("{}, 1 failed", served["requests"])), "{}", said.stdout);
    stop(node);
}

/// What a raw request is answered: the head and the body.
fn raw(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn a_page_of_another_site_gets_nothing_by_pointing_its_name_here(shell: Shell) {
    let lab = Lab::new(shell);
    let node = start(&lab, &["run"]);
    let ask = |path: &str, host: &str| {
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/html\r\nconnection: close\r\n\r\n");
        raw(lab.network.local_api, &head)
    };
    let port = lab.network.local_api.port();
    for path in ["/", "/page.css", "/page.js", "/status", "/metrics", "/ready", "/health"] {
        for host in ["rebinding.example".to_owned(), format!("127.0.0.1.rebinding.example:{port}")] {
            let (head, body) = ask(path, &host);
            assert!(head.starts_with("HTTP/1.1 421 "), "{path}: {head}");
            assert!(body.contains("wrong_host") && !body.contains("serving"), "{path}: {body}");
        }
    }
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let (head, body) = ask(path, &format!("localhost:{port}"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        assert!(head.contains(&format!("content-type: {kind}; charset=utf-8\r\n")), "{path}: {head}");
        assert!(head.contains("content-security-policy: default-src 'none';"), "{path}: {head}");
        assert!(!body.is_empty(), "{path}");
    }
    // Whoever is no browser finds there what it always did.
    let other = format!("GET / HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n");
    assert!(raw(lab.network.local_api, &other).0.starts_with("HTTP/1.1 404 "));
    stop(node);
}

fn the_exit_code_of_status_says_whether_the_node_is_well(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    let listen = lab.network.local_api.to_string();
    let asked = |code: i32, words: &[&str]| {
        let text = lab.run(&["status", "--listen", &listen]);
        assert_eq!(text.code, Some(code), "{}{}", text.stdout, text.stderr());
        for word in words {
            assert!(text.stdout.contains(word), "{word}: {}", text.stdout);
        }
        assert!(text.stdout.lines().count() <= 12, "{}", text.stdout);
        let json = lab.run(&["status", "--json", "--listen", &listen]);
        assert_eq!(json.code, Some(code), "{}{}", json.stdout, json.stderr());
        let value: Value = serde_json::from_str(&json.stdout).unwrap();
        value["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(asked(70, &["nothing answers at", &listen, "run`", "--listen"]), "no_answer");
    let node = start(&lab, &["start"]);
    assert_eq!(asked(3, &["not registered", "run `setup`"]), "not_registered");
    stop(node);
    lab.network.register_node().unwrap();
    let node = start(&lab, &["start"]);
    assert_eq!(asked(0, &["local API alone"]), "local_only");
    stop(node);
    let node = start(&lab, &["run"]);
    lab.ready(&node, 1);
    // The server says that it is ready before the node has heard it.
    line(&node, 0, "that it is connected", |line| line.event() == "connected");
    assert_eq!(asked(0, &["serving", "connected for", "of 256 requests"]), "serving");
    let ready = client::get(&format!("http://{listen}/ready"), None).unwrap();
    assert_eq!((ready.status, &ready.body["ready"]), (200, &json!(true)));
    stop(node);
    let nobody = format!("http://{}", free_address().unwrap());
    let node = start(&lab, &["run", "--server", &nobody]);
    line(&node, 0, "that it is not connected", |line| line.event() == "disconnected");
    assert_eq!(asked(69, &["connecting", "not connected", "no session with the network"]), "connecting");
    assert_eq!(client::get(&format!("http://{listen}/ready"), None).unwrap().status, 503);
    stop(node);
    let upstream = lab.network.upstream.url("");
    let stranger = lab.run(&["status", "--listen", upstream.strip_prefix("http://").unwrap()]);
    assert_eq!(stranger.code, Some(70));
    assert!(stranger.stdout.contains("no node of this release"), "{}", stranger.stdout);
    let wrong = lab.run(&["status", "--listen", "nowhere"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr());
}

fn promtool_finds_nothing_wrong_with_the_metrics(shell: Shell) {
    let lab = Lab::new(shell);
    let node = start(&lab, &["run", "--allow-private-targets"]);
    lab.ready(&node, 1);
    lab.assert_serves();
    let text = metrics(&lab);
    stop(node);
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in the README");
    }
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = match command.spawn() {
        Ok(promtool) => promtool,
        Err(error) => {
            let _ = writeln!(io::stderr(), "\nskipped: promtool is not installed: {error}");
            return;
        }
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}
