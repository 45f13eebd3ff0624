//! What the local API tells of a node's figures.

use consensus_core::io::LocalResponse;
use consensus_core::node::Config;
use consensus_core::status::{State, Status};

use super::*;

fn ask(world: &mut World, target: &str) -> LocalResponse {
    let id = world.responses.len() as u64 + 1000;
    world.local(id, "GET", target, "localhost:9090", "");
    world.responses[&LocalId(id)].clone()
}

fn status(world: &mut World) -> Status {
    serde_json::from_slice(&ask(world, "/status").body).unwrap()
}

fn metrics(world: &mut World) -> String {
    String::from_utf8(ask(world, "/metrics").body).unwrap()
}

/// The value of a series.
fn value(text: &str, series: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series}: {text}")).parse().unwrap()
}

#[test]
fn figures_move_with_what_is_done_and_agree_wherever_they_are_told() {
    let mut world = control();
    world.reply = hello_reply;
    world.run_for(5 * SECOND);
    for id in 0..3 {
        world.server(proxy(&id.to_string(), "http://93.184.216.34/"));
        world.run_for(SECOND);
    }
    world.server(proxy("bad", "ftp://nowhere/"));
    world.run_for(5 * SECOND);
    let status = status(&mut world);
    let served = status.served.clone().unwrap();
    assert_eq!((served.requests, served.failed, served.bytes), (3, 1, 15));
    assert_eq!((status.state, status.warnings, status.errors), (State::Serving, 1, 0));
    let samples = &status.samples;
    assert_eq!(samples.requests.iter().sum::<u64>(), 3);
    assert_eq!(samples.failed.iter().sum::<u64>(), 1);
    assert_eq!(samples.ended.iter().sum::<u64>(), 3);
    assert_eq!(samples.bytes.iter().sum::<u64>(), 15);
    assert!(samples.requests.iter().filter(|step| **step > 0).count() >= 2, "{samples:?}");
    let tunnel = status.tunnel.clone().unwrap();
    assert!(samples.tunnel_bytes.iter().sum::<u64>() <= tunnel.sent_bytes + tunnel.received_bytes);
    assert!(tunnel.received_bytes > 0 && tunnel.connected && tunnel.sessions == 1);
    let text = metrics(&mut world);
    for (series, expected) in [
        ("requests_total", 3),
        ("request_failures_total", 1),
        ("response_body_bytes_total", 15),
        ("request_duration_seconds_count", 3),
        ("request_duration_seconds_bucket{le=\"+Inf\"}", 3),
        ("tunnel_received_bytes_total", tunnel.received_bytes),
        ("tunnel_sent_bytes_total", tunnel.sent_bytes),
        ("events_total{level=\"warn\"}", 1),
        ("update_state{state=\"none\"}", 1),
        ("update_state{state=\"draining\"}", 0),
        ("ready", 1),
    ] {
        assert_eq!(value(&text, &format!("consensus_node_{series}")), expected, "{series}");
    }
    let told: Vec<&str> = status.events.iter().map(|told| told.event.as_str()).collect();
    assert_eq!(told, ["connecting", "connected", "proxy_failed"]);
}

#[test]
fn a_node_is_ready_while_it_has_a_session_and_says_why_not_otherwise() {
    let mut world = control();
    world.feed(Input::Tick);
    let before = ask(&mut world, "/ready");
    assert_eq!(before.status, 503);
    let body: Value = serde_json::from_slice(&before.body).unwrap();
    assert_eq!((&body["ready"], &body["state"]), (&false.into(), &"connecting".into()));
    assert!(body["reason"].as_str().is_some_and(|reason| reason.contains("session")), "{body}");
    world.run_for(SECOND);
    let after = ask(&mut world, "/ready");
    assert_eq!(after.status, 200);
    assert_eq!(ask(&mut world, "/health").status, 200);

    let registration = config(Some(Mode::Control)).registration;
    let mut alone = World::new(Config { registration, ..config(None) }, 1);
    assert_eq!(status(&mut alone).state, State::LocalOnly);
    assert_eq!(ask(&mut alone, "/ready").status, 503);
    let mut unregistered = World::new(config(None), 1);
    assert_eq!(status(&mut unregistered).state, State::NotRegistered);
    let text = metrics(&mut unregistered);
    assert_eq!(value(&text, "consensus_node_registered"), 0);
    assert!(!text.contains("requests_total"), "it serves nobody: {text}");
}

#[test]
fn there_are_as_many_series_whatever_the_network_says_and_names_follow_the_conventions() {
    let series = |world: &mut World| {
        let text = metrics(world);
        assert!(text.ends_with('\n'));
        let mut names = Vec::new();
        let mut kind = (String::new(), String::new());
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                let (name, of) = head.split_once(' ').unwrap();
                kind = (name.to_string(), of.to_string());
                assert_eq!(of == "counter", name.ends_with("_total"), "{name}");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (name, _) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&kind.0), "{name} without its type");
            names.push(name.to_string());
        }
        names
    };
    let mut world = control();
    world.run_for(SECOND);
    let before = series(&mut world);
    for id in 0..50 {
        world.server(proxy(&format!("id-{id}"), &format!("http://10.0.0.{id}/")));
    }
    world.run_for(10 * SECOND);
    assert_eq!(series(&mut world), before);
    let mut sorted = before.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), before.len(), "each once");
}

#[test]
fn the_page_is_for_browsers_at_this_machine_alone() {
    let mut config = config(Some(Mode::Control));
    config.registration.as_mut().unwrap().domain = Some("node-1.example".to_string());
    let mut world = World::new(config, 1);
    world.run_for(SECOND);
    let mut ask_as = |target: &str, headers: &[(&str, &str)]| {
        let id = LocalId(world.responses.len() as u64 + 1000);
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let request = consensus_core::io::LocalRequest {
            method: "GET".into(),
            target: target.into(),
            headers,
            body: Vec::new(),
        };
        world.feed(Input::Local { id, request });
        world.responses[&id].clone()
    };
    let html = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
    let page = ask_as("/", &[("host", "localhost:9090"), html]);
    assert_eq!(page.status, 200);
    let header = |name: &str| page.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!(header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(header("referrer-policy"), Some("no-referrer"));
    assert_eq!(header("x-content-type-options"), Some("nosniff"));
    let policy = header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // Others find there what they always did.
    for accept in [("accept", "*/*"), ("accept", "application/json")] {
        assert_eq!(ask_as("/", &[("host", "localhost:9090"), accept]).status, 404);
    }
    assert_eq!(ask_as("/", &[("host", "localhost:9090")]).status, 404);
    for path in ["/", "/page.css", "/page.js", "/status"] {
        for host in ["127.0.0.1:9090", "[::1]:9090", "LOCALHOST", "192.0.2.1:9090"] {
            assert_eq!(ask_as(path, &[("host", host), html]).status, 200, "{path} at {host}");
        }
        // The node's own name is the network's to point here.
        for host in ["rebinding.example", "localhost.example:9090", "node-1.example", "127.0.0.1.example"] {
            assert_eq!(ask_as(path, &[("host", host), html]).status, 421, "{path} at {host}");
        }
        let foreign = [("host", "localhost:9090"), ("origin", "http://elsewhere.example"), html];
        assert_eq!(ask_as(path, &foreign).status, 403, "{path}");
    }
    for path in ["/metrics", "/ready", "/health"] {
        assert_eq!(ask_as(path, &[("host", "node-1.example")]).status, 200, "{path}");
        assert_eq!(ask_as(path, &[("host", "rebinding.example")]).status, 421, "{path}");
    }
}
