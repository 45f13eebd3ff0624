//! Eval actions that take their time, or go out into the world.

use std::time::Duration;

use consensus_core::event::Event;
use consensus_core::io::{Fetch, Response};
use consensus_core::peer::orchestrator;
use consensus_core::tunnel::Mode;
use serde_json::{Value, json};

use crate::world::{World, config};

const SECOND: Duration = Duration::from_secs(1);

/// A node whose evaluation is over, and that waits for what comes of it.
fn evaluated() -> World {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.terms.admits = false;
    world.run_for(2 * SECOND);
    assert!(world.server_events.iter().any(|(_, e)| matches!(e, orchestrator::Event::Judged { .. })));
    world.server_events.clear();
    world
}

fn ask(world: &mut World, action: &str, params: Value) {
    world.server(orchestrator::Input::Evaluate { action: action.into(), params: Some(params) });
}

fn answers(world: &World) -> Vec<Result<Value, String>> {
    let outcome = |(_, event): &(Duration, orchestrator::Event)| match event {
        orchestrator::Event::Evaluated { outcome, .. } => Some(outcome.clone()),
        _ => None,
    };
    world.server_events.iter().filter_map(outcome).collect()
}

fn page(_: &Fetch) -> Option<Response> {
    let headers = vec![("Content-Type".to_string(), "text/html".to_string())];
    Some(Response { status: 301, reason: "Moved".into(), headers, body: vec![7; 1234] })
}

fn failure(_: &Fetch) -> Option<Response> {
    Some(Response { status: 404, reason: "No".into(), headers: vec![], body: vec![] })
}

#[test]
fn a_fetch_tells_what_came_of_it() {
    let mut world = evaluated();
    let params = json!({"target_url": "http://203.0.114.10/b/1", "method": "head", "timeout_ms": 700});
    world.reply = page;
    ask(&mut world, "speedtest_fetch", params.clone());
    world.run_for(SECOND);
    world.reply = failure;
    ask(&mut world, "speedtest_fetch", params);
    world.run_for(SECOND);
    assert_eq!(
        answers(&world),
        [
            Ok(json!({"ok": true, "status": 301, "bytes": 1234, "node_ms": 20, "content_type": "text/html"})),
            Ok(json!({"ok": false, "status": 404, "bytes": 0, "node_ms": 20})),
        ]
    );
    assert_eq!(
        (world.fetched[0].method.as_str(), world.fetched[0].bounds.whole),
        ("HEAD", Duration::from_millis(700))
    );
}

#[test]
fn a_fetch_reaches_what_a_stranger_may_reach() {
    let mut world = evaluated();
    for url in ["http://127.0.0.1/", "http://[::1]/", "ftp://203.0.114.10/", "nonsense"] {
        ask(&mut world, "speedtest_fetch", json!({ "target_url": url }));
    }
    world.run_for(SECOND);
    assert!(answers(&world).iter().all(Result::is_err) && answers(&world).len() == 4);
    assert!(world.fetched.is_empty());

    let mut config = config(Some(Mode::Eval));
    config.allow_private_targets = true;
    let mut world = World::new(config, 1);
    world.terms.admits = false;
    world.reply = page;
    world.run_for(2 * SECOND);
    ask(&mut world, "speedtest_fetch", json!({"target_url": "http://127.0.0.1/"}));
    world.run_for(SECOND);
    assert_eq!(world.fetched.len(), 1, "an operator may allow it");
}

#[test]
fn six_fetches_go_at_once_beside_a_measurement_and_a_seventh_is_refused() {
    let mut world = evaluated();
    world.measures = false;
    ask(&mut world, "benchmark_cpu", json!({}));
    for _ in 0..7 {
        ask(&mut world, "speedtest_fetch", json!({"target_url": "http://203.0.114.10/"}));
    }
    world.run_for(SECOND);
    assert_eq!((world.fetched.len(), answers(&world).len()), (6, 1));
    world.run_for(20 * SECOND);
    assert_eq!(world.cancelled.len(), 6, "a fetch has 20 s");
    world.run_for(10 * SECOND);
    assert_eq!(world.cancelled.len(), 7, "a measurement 30 s");
    assert!(world.finish.is_none(), "until then the node does not wait in vain");
    world.run_for(31 * SECOND);
    assert!(world.finish.is_some());
}

#[test]
fn a_sustained_measurement_has_its_own_time() {
    let mut world = evaluated();
    world.measures = false;
    ask(&mut world, "benchmark_sustained", json!({"duration_ms": 60_000}));
    world.run_for(74 * SECOND);
    assert!(world.cancelled.is_empty());
    world.run_for(2 * SECOND);
    assert_eq!(world.cancelled.len(), 1);
}

#[test]
fn a_lost_tunnel_takes_everything_with_it() {
    let mut world = evaluated();
    world.measures = false;
    ask(&mut world, "benchmark_cpu", json!({}));
    ask(&mut world, "speedtest_fetch", json!({"target_url": "http://203.0.114.10/"}));
    world.run_for(SECOND);
    world.cut();
    world.run_for(SECOND);
    assert_eq!(world.cancelled.len(), 2);
}

#[test]
fn a_registered_node_is_spot_checked_while_it_serves() {
    let mut world = World::new(config(Some(Mode::Control)), 1);
    world.run_for(SECOND);
    world.measures = false;
    ask(&mut world, "benchmark_sustained", json!({"duration_ms": 60_000}));
    world.run_for(SECOND);
    ask(&mut world, "integrity", json!({}));
    world.reply = page;
    world.server(crate::proxy("r", "http://203.0.114.10/"));
    world.run_for(SECOND);
    assert!(matches!(answers(&world).as_slice(), [Ok(payload)] if payload["signature"].is_string()));
    assert!(crate::outcomes(&world)[0].is_ok());
}

#[test]
fn an_admitted_node_tells_its_own_verdict_as_well() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.run_to_end();
    let told = world.events.iter().find_map(|(_, event)| match event {
        Event::EvalVerdict { admissible, missed, .. } => Some((*admissible, missed.len())),
        _ => None,
    });
    assert_eq!(told, Some((true, 0)));
}
