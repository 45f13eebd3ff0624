//! Whole nodes against a whole server, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod evaluation;
mod jobs;
mod status;
mod streams;
mod updates;
mod world;

use std::time::Duration;

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::event::Event;
use consensus_core::io::{Audience, Fetch, Input, LocalId, Outcome, Response, StateFile};
use consensus_core::peer::orchestrator::{self, ProxyFailure};
use consensus_core::state::JoinAuth;
use consensus_core::tunnel::Mode;
use consensus_core::wire::base64;
use consensus_core::wire::frame::FrameBuf;
use consensus_core::wire::message::{BodyEncoding, EvalRequest, Message, ProxyRequest, UpdateApply};
use serde_json::Value;
use streams::{open, send};
use world::{NODE_SEED, Weather, World, config};

const SECOND: Duration = Duration::from_secs(1);

fn control() -> World {
    World::new(config(Some(Mode::Control)), 1)
}

fn proxy(id: &str, url: &str) -> orchestrator::Input {
    orchestrator::Input::Proxy(ProxyRequest {
        id: id.into(),
        target_url: url.into(),
        method: None,
        headers: None,
        body: None,
        body_encoding: BodyEncoding::Utf8,
    })
}

fn hello_reply(_: &Fetch) -> Option<Response> {
    let headers = vec![("Content-Type".to_string(), "text/plain".to_string())];
    Some(Response { status: 203, reason: "Fine".into(), headers, body: b"hello".to_vec() })
}

fn outcomes(world: &World) -> Vec<Result<String, ProxyFailure>> {
    let outcome = |(_, event): &(Duration, orchestrator::Event)| match event {
        orchestrator::Event::Proxied { outcome, .. } => Some(outcome.clone().map(|response| response.body)),
        _ => None,
    };
    world.server_events.iter().filter_map(outcome).collect()
}

#[test]
fn an_evaluation_earns_an_authorisation_that_the_server_takes() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    let finish = world.run_to_end();
    assert_eq!(finish.outcome, Outcome::Done, "{}", finish.message);
    assert_eq!(world.closes, [(1000, "eval complete".to_string())]);

    let auth = JoinAuth::parse(&world.files[&StateFile::JoinAuth]).unwrap();
    let offer = world.server_events.iter().find_map(|(_, event)| match event {
        orchestrator::Event::Offered(offer) => Some(offer.clone()),
        _ => None,
    });
    let key = *Identity::from_seed(Pure, &NODE_SEED).public_key();
    let offer = offer.unwrap();
    assert_eq!(auth.join_id, offer.join_id);
    assert_eq!(offer.verify(&Pure, &key, &auth.signature, world.node_now()), Ok(()));
    assert_eq!(world.count(|event| matches!(event, Event::EvalFinished { ok: true, .. })), 12);
}

#[test]
fn a_node_that_is_not_admitted_says_which_threshold_it_missed() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.memory_bytes = 256 << 20;
    let finish = world.run_to_end();
    assert_eq!(finish.outcome, Outcome::Refused);
    assert!(finish.message.contains("memory: 256 MiB, needed is at least 512 MiB"), "{}", finish.message);
    assert!(!world.files.contains_key(&StateFile::JoinAuth));
}

#[test]
fn a_good_node_that_is_not_admitted_says_that_its_own_results_are_good() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.terms.admits = false;
    let finish = world.run_to_end();
    assert_eq!(finish.outcome, Outcome::Refused);
    assert!(finish.message.contains("passes what was measured"), "{}", finish.message);
    assert!(world.elapsed() < 60 * SECOND, "it does not wait for ever: {:?}", world.elapsed());
}

#[test]
fn an_evaluation_that_loses_its_server_ends_as_unreachable() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.weather = Weather::Refusing;
    let finish = world.run_to_end();
    assert_eq!(finish.outcome, Outcome::Unreachable);
    assert!(finish.message.starts_with("not evaluated: "), "nobody refused it: {}", finish.message);

    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.run_for(Duration::from_millis(150));
    assert!(world.is_connected());
    world.cut();
    assert_eq!(world.run_to_end().outcome, Outcome::Unreachable);
}

#[test]
fn a_server_that_leaves_right_after_admitting_has_admitted() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    let is_offered = |world: &World| {
        world.server_events.iter().any(|(_, event)| matches!(event, orchestrator::Event::Offered(_)))
    };
    while !is_offered(&world) {
        world.run_for(Duration::from_millis(1));
    }
    world.cut();
    let finish = world.run_to_end();
    assert_eq!(finish.outcome, Outcome::Done, "{}", finish.message);
    assert!(world.files.contains_key(&StateFile::JoinAuth));
}

#[test]
fn a_heartbeat_goes_out_at_once_and_every_thirty_seconds() {
    let mut world = control();
    world.run_for(600 * SECOND);
    let beats: Vec<_> = world
        .server_events
        .iter()
        .filter_map(|(at, event)| match event {
            orchestrator::Event::Heartbeat(beat) => Some((*at, beat.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(beats.len(), 20);
    assert!(beats[0].0 < Duration::from_millis(1000 * 1000 + 500));
    for pair in beats.windows(2) {
        assert_eq!(pair[1].0 - pair[0].0, 30 * SECOND);
        assert_eq!(pair[1].1.uptime_seconds - pair[0].1.uptime_seconds, 30);
    }
    assert_eq!(beats[0].1.node_id, "node-1");
}

#[test]
fn a_silent_peer_is_given_up_after_a_minute_and_pings_keep_a_quiet_one() {
    let mut world = control();
    world.run_for(3600 * SECOND);
    assert_eq!(world.opened.len(), 1, "an idle hour is not silence");
    world.weather = Weather::BlackHole;
    // The last pong may be as old as a ping interval.
    world.run_for(39 * SECOND);
    assert!(world.is_connected());
    world.run_for(22 * SECOND);
    assert!(!world.is_connected());
    world.weather = Weather::Clear;
    world.run_for(62 * SECOND);
    assert!(world.is_connected(), "{:?}", world.events.last());
}

#[test]
fn after_an_outage_the_node_comes_back_by_the_schedule_and_beats_within_a_second() {
    let mut world = control();
    world.run_for(10 * SECOND);
    world.weather = Weather::Refusing;
    world.opened.clear();
    world.cut();
    world.run_for(200 * SECOND);
    let waits: Vec<_> = world.opened.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    for (wait, expected) in waits.iter().zip([2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]) {
        assert!((expected..expected + 0.6).contains(wait), "{waits:?}");
    }
    world.weather = Weather::Clear;
    world.server_events.clear();
    world.run_for(31 * SECOND);
    let at = |wanted: fn(&orchestrator::Event) -> bool| {
        world.server_events.iter().find(|(_, event)| wanted(event)).map(|(at, _)| *at).unwrap()
    };
    let ready = at(|event| matches!(event, orchestrator::Event::Ready(_)));
    let beat = at(|event| matches!(event, orchestrator::Event::Heartbeat(_)));
    assert!(beat - ready < SECOND);
}

#[test]
fn a_server_that_takes_the_connection_and_says_nothing_is_left_after_ten_seconds() {
    let mut world = control();
    world.run_for(Duration::from_millis(30));
    world.weather = Weather::BlackHole;
    world.run_for(12 * SECOND);
    let reasons: Vec<_> = world.events.iter().map(|(_, event)| event.to_string()).collect();
    assert!(reasons.iter().any(|text| text.contains("did not answer the handshake in time")), "{reasons:?}");
}

#[test]
fn a_clock_that_is_off_is_named_as_the_reason() {
    let mut world = control();
    world.node_clock_off = -3600;
    world.run_for(5 * SECOND);
    let text = world.events.iter().map(|(_, event)| event.to_string()).find(|text| text.contains("clock"));
    assert!(text.unwrap().contains("3600 s behind the server's: set it (NTP)"));
    world.node_clock_off = 0;
    world.run_for(10 * SECOND);
    assert!(world.is_connected(), "once the clock is set it connects by itself");
}

#[test]
fn a_server_other_than_the_pinned_one_gets_no_session_and_the_node_lives() {
    let mut config = config(Some(Mode::Control));
    config.server_key = Some(*Identity::from_seed(Pure, &[9; 32]).public_key());
    let mut world = World::new(config, 1);
    world.run_for(20 * SECOND);
    assert!(!world.is_connected());
    assert!(world.events.iter().any(|(_, event)| event.to_string().contains("not signed by the pinned")));
    assert!(world.closes.iter().all(|(code, _)| *code == 1008));
    world.signer = [9; 32];
    world.run_for(31 * SECOND);
    assert!(world.is_connected());
}

#[test]
fn a_request_is_fetched_for_strangers_and_its_answer_goes_back_whole() {
    let mut world = control();
    world.reply = hello_reply;
    world.run_for(SECOND);
    world.server(proxy("r1", "http://203.0.114.10/path?q=secret"));
    world.run_for(SECOND);
    assert_eq!(outcomes(&world), [Ok(base64::encode(b"hello"))]);
    let fetch = &world.fetched[0];
    assert_eq!((fetch.audience, fetch.method.as_str()), (Audience::Stranger, "GET"));
    assert!(fetch.headers.contains(&("user-agent".into(), "Consensus-Node/0.1".into())));
    let told: Vec<_> = world.events.iter().map(|(_, event)| format!("{event} {event:?}")).collect();
    assert!(told.iter().all(|text| !text.contains("secret")), "a query reached an event: {told:?}");
}

#[test]
fn a_request_into_the_operators_network_is_refused_before_anything_is_fetched() {
    let mut world = control();
    world.run_for(SECOND);
    for url in ["http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "file:///etc/passwd", "x"] {
        world.server(proxy(url, url));
    }
    world.run_for(SECOND);
    assert!(world.fetched.is_empty());
    assert_eq!(outcomes(&world).len(), 5);
    assert!(
        outcomes(&world).iter().all(
            |outcome| matches!(outcome, Err(ProxyFailure::Refused { code, .. }) if code == "proxy_failed")
        )
    );
}

#[test]
fn a_request_that_is_never_answered_fails_after_thirty_seconds_and_is_cancelled() {
    let mut world = control();
    world.run_for(SECOND);
    world.server(proxy("r", "http://203.0.114.10/"));
    world.run_for(31 * SECOND);
    assert_eq!(world.cancelled.len(), 1);
    let Err(ProxyFailure::Refused { message, .. }) = &outcomes(&world)[0] else { panic!() };
    assert!(message.contains("30 s"), "{message}");
}

#[test]
fn more_requests_than_the_limit_are_refused_and_not_queued() {
    let mut config = config(Some(Mode::Control));
    config.limits.max_requests = 3;
    let mut world = World::new(config, 1);
    world.run_for(SECOND);
    for id in ["1", "2", "3", "4", "5"] {
        world.server(proxy(id, "http://203.0.114.10/"));
    }
    world.run_for(SECOND);
    assert_eq!(world.fetched.len(), 3);
    assert_eq!(outcomes(&world).len(), 2);
}

#[test]
fn when_the_tunnel_drops_what_was_under_way_is_cancelled() {
    let mut world = control();
    world.run_for(SECOND);
    world.server(proxy("r", "http://203.0.114.10/"));
    world.run_for(SECOND);
    world.cut();
    world.run_for(Duration::from_millis(100));
    assert_eq!(world.cancelled.len(), 1);
    world.run_for(60 * SECOND);
    assert!(world.is_connected());
    let last_beat = world.server_events.iter().rev().find_map(|(_, event)| match event {
        orchestrator::Event::Heartbeat(beat) => Some(beat.active_requests),
        _ => None,
    });
    assert_eq!(last_beat, Some(0));
}

#[test]
fn junk_replays_and_reordering_are_answered_and_the_session_goes_on() {
    let mut world = control();
    world.run_for(SECOND);
    world.server(orchestrator::Input::Ping);
    world.server(orchestrator::Input::Ping);
    world.run_for(SECOND);
    let old = world.frames_to_node.clone();
    world.inject(b"junk".to_vec());
    for frame in old {
        world.inject(frame);
    }
    world.run_for(SECOND);
    assert!(world.is_connected());
    let errors = world.server_events.iter().filter(|(_, event)| {
        matches!(event, orchestrator::Event::Message(message)
            if matches!(&**message, Message::ErrorMessage(error) if error.code == "decode_failed"))
    });
    assert_eq!(errors.count(), 1 + world.frames_to_node.len());
    // One line at 1, 2, 4 … bad frames: a flood does not fill a disk.
    assert_eq!(world.count(|event| matches!(event, Event::BadFrame { .. })), 3);
    world.reply = hello_reply;
    world.server(proxy("r", "http://203.0.114.10/"));
    world.run_for(SECOND);
    assert!(outcomes(&world)[0].is_ok());
}

#[test]
fn what_this_release_does_not_do_is_answered_by_the_codes_of_the_protocol() {
    let mut world = control();
    world.run_for(SECOND);
    let apply = UpdateApply { id: "u".into(), update_id: "u".into(), restart_after_ms: 0 };
    send(&mut world, apply.encode(1));
    send(&mut world, open("s", "{\"kind\":\"no\"}"));
    send(&mut world, EvalRequest { id: "e".into(), action: "benchmark_cpu".into(), params: None }.encode(1));
    send(&mut world, FrameBuf::from_plaintext(br#"{"type":"http_request","timestamp":1,"id":"h"}"#));
    send(&mut world, FrameBuf::from_plaintext(br#"{"type":"dance","timestamp":1}"#));
    world.run_for(SECOND);
    let codes: Vec<_> = world
        .server_events
        .iter()
        .filter_map(|(_, event)| match event {
            orchestrator::Event::Message(message) => match &**message {
                Message::ErrorMessage(error) => Some(error.code.clone()),
                Message::UpdateFailed(failed) => Some(failed.code.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(
        codes,
        [
            "update_not_prepared",
            "unsupported_stream_target",
            "eval_action_not_allowed",
            "unsupported",
            "decode_failed"
        ]
    );
}

#[test]
fn an_operators_stop_says_goodbye() {
    let mut world = control();
    world.run_for(SECOND);
    world.feed(Input::Stop);
    assert_eq!(world.closes, [(1000, "control stopped".to_string())]);
    assert!(world.finish.is_none(), "what was spent is written first");
    world.run_for(SECOND);
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Done);
    world.run_for(600 * SECOND);
    assert_eq!(world.opened.len(), 1, "a stopped node stays stopped");
}

#[test]
fn the_local_api_tells_health_and_refuses_what_a_web_page_could_send() {
    let mut world = control();
    world.run_for(SECOND);
    world.local(1, "GET", "/health?x=1", "127.0.0.1:9090", "");
    world.local(2, "GET", "/health", "rebinding.example:9090", "");
    world.local(3, "DELETE", "/health", "localhost:9090", "");
    world.local(4, "GET", "/nothing", "[::1]:9090", "");
    world.local(5, "POST", "/proxy", "localhost", r#"{"method":"GET"}"#);
    world.local(6, "POST", "/proxy", "localhost", r#"{"target_url":"http://10.0.0.1/"}"#);
    world.local(7, "POST", "/benchmark/all", "localhost", "");
    world.local(8, "POST", "/benchmark/cpu", "localhost", "");
    world.local(9, "POST", "/benchmark/memory-pressure", "localhost", r#"{"rounds":9}"#);
    world.run_for(SECOND);
    let status = |id: u64| world.responses[&LocalId(id)].status;
    assert_eq!((1..=9).map(status).collect::<Vec<_>>(), [200, 421, 405, 404, 400, 403, 200, 409, 400]);
    let body = |id: u64| serde_json::from_slice::<Value>(&world.responses[&LocalId(id)].body).unwrap();
    assert_eq!(body(1)["status"], "healthy");
    assert_eq!(body(1)["node_id"], "node-1");
    assert_eq!(body(1)["tunnel"], "connected");
    let all = body(7);
    for name in ["system", "cpu", "crypto", "memory", "event_loop"] {
        assert!(all[name].is_object(), "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(config(Some(Mode::Control)), seed);
        world.run_for(100 * SECOND);
        world.cut();
        world.run_for(100 * SECOND);
        (world.events, world.frames_to_node)
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).1, run(4).1);
}

#[test]
fn whatever_the_weather_the_node_is_back_within_two_minutes_of_a_clear_sky() {
    for seed in 0..24 {
        let mut world = World::new(config(Some(Mode::Control)), seed);
        let mut rng = Drbg::new([seed; 32]);
        for _ in 0..40 {
            world.weather = match rng.below(4) {
                0 => Weather::BlackHole,
                1 => Weather::Refusing,
                _ => Weather::Clear,
            };
            if rng.below(3) == 0 {
                world.cut();
            }
            world.run_for(Duration::from_millis(rng.below(90_000)));
        }
        world.weather = Weather::Clear;
        world.run_for(120 * SECOND);
        assert!(world.is_connected(), "seed {seed}: {:?}", world.events.last());
        assert!(world.finish.is_none());
    }
}
