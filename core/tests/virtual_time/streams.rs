//! Streams and the data plane, in virtual time.

use std::time::Duration;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::data_plane::dedupe;
use consensus_core::data_plane::replay::Before;
use consensus_core::data_plane::ticket::{self, Claims};
use consensus_core::event::Event;
use consensus_core::guard::MAX_URL;
use consensus_core::io::{
    Audience, FetchError, FetchErrorKind, Input, LinkId, LocalId, LocalRequest, Output, SocketEnd, SocketId,
    StateFile,
};
use consensus_core::limits::{HOLD_ABOVE, MAX_RELAYED, MAX_SOCKET_READ, MAX_SOCKET_UNSENT};
use consensus_core::node::Config;
use consensus_core::peer::client::Connecting;
use consensus_core::peer::orchestrator;
use consensus_core::state::{Jwk, Registration};
use consensus_core::tunnel::Mode;
use consensus_core::wire::base64;
use consensus_core::wire::frame::{FrameBuf, FrameType};
use consensus_core::wire::message::{Message, StreamClose, StreamData, StreamOpen};
use consensus_core::wire::mux::{MuxKind, head};
use serde_json::{Value, json};

use super::world::{NODE_SEED, World, config};
use super::{SECOND, control, hello_reply};

pub(super) fn open(stream_id: &str, target: &str) -> FrameBuf {
    StreamOpen { stream_id: stream_id.into(), target: target.into() }.encode(1)
}

pub(super) fn data(stream_id: &str, bytes: &[u8]) -> FrameBuf {
    let encoding = Some("base64".into());
    StreamData { stream_id: stream_id.into(), data: base64::encode(bytes), encoding }.encode(1)
}

pub(super) fn send(world: &mut World, plaintext: FrameBuf) {
    world.server(orchestrator::Input::Send(plaintext));
    world.run_for(Duration::from_millis(200));
}

/// What the node sent on a stream so far: its data, and the reason it was closed with.
pub(super) fn stream(world: &World, id: &str) -> (Vec<Vec<u8>>, Option<String>) {
    let mut sent = (Vec::new(), None);
    for (_, event) in &world.server_events {
        let orchestrator::Event::Message(message) = event else { continue };
        match &**message {
            Message::StreamData(data) if data.stream_id == id => {
                sent.0.push(base64::decode(&data.data).unwrap());
            }
            Message::StreamClose(close) if close.stream_id == id => {
                sent.1 = Some(close.reason.clone().unwrap());
            }
            _ => {}
        }
    }
    sent
}

pub(super) fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn a_proxy_session_answers_each_datum_even_before_the_open() {
    let mut world = control();
    world.reply = hello_reply;
    world.run_for(SECOND);
    send(&mut world, data("s", b"{nope"));
    send(&mut world, open("s", "proxy-session"));
    send(&mut world, data("s", br#"{"id":"a"}"#));
    send(&mut world, data("s", br#"{"id":"b","url":"http://203.0.114.10/"}"#));
    send(&mut world, data("s", br#"{"id":7,"url":"http://127.0.0.1/"}"#));
    let (sent, closed) = stream(&world, "s");
    let answers: Vec<Value> = sent.iter().map(|bytes| json(bytes)).collect();
    assert_eq!(answers[0], json!({"error": "invalid_request", "message": "Message must be valid JSON"}));
    assert_eq!(
        answers[1],
        json!({"id": "a", "error": "invalid_request", "message": "Missing required field: url"})
    );
    assert_eq!(
        answers[2],
        json!({"id": "b", "status": 203, "headers": {"content-type": "text/plain"}, "body": "aGVsbG8=",
            "body_encoding": "base64", "meta": {"served_by": "node-control"}})
    );
    assert_eq!((&answers[3]["id"], &answers[3]["error"]), (&json!(7), &json!("fetch_failed")));
    assert_eq!((answers.len(), closed), (4, None));
}

#[test]
fn closing_a_stream_cancels_what_is_fetched_for_it() {
    let mut world = control();
    world.run_for(SECOND);
    send(&mut world, open("s", "proxy-session"));
    send(&mut world, data("s", br#"{"url":"http://203.0.114.10/"}"#));
    let close = StreamClose { stream_id: "s".into(), reason: None };
    send(&mut world, close.encode(1));
    assert_eq!(world.cancelled.len(), 1);
    assert!(stream(&world, "s").0.is_empty());
}

const ISSUER: [u8; 32] = [7; 32];
pub(super) const TARGET: &str = "http://203.0.114.10/paid";

/// The configuration of a node that was told who issues tickets.
pub(super) fn paid_config() -> Config {
    let mut config = config(Some(Mode::Control));
    let key = Pure.public_key(&Pure.signing_key(&ISSUER));
    let file = json!({"node_id": "node-1", "orchestrator_pubkey": Jwk::of_key(key, "k").to_value()});
    config.registration = Some(Registration::parse(file.to_string().as_bytes()).unwrap());
    config
}

pub(super) fn serving() -> World {
    run(paid_config())
}

pub(super) fn run(config: Config) -> World {
    let mut world = World::new(config, 1);
    world.reply = hello_reply;
    world.run_for(SECOND);
    world
}

pub(super) fn paid(world: &World, jti: &str, url: &str) -> String {
    let now = world.node_now().unix_seconds();
    let claims = Claims {
        iss: ticket::ISSUER.into(),
        aud: "node-1".into(),
        sub: dedupe::key(&Pure, url, "GET", [], None).unwrap().into(),
        scope: ticket::SCOPE.into(),
        iat: now,
        exp: now + 60,
        jti: jti.into(),
    };
    ticket::issue(&Pure, &Pure.signing_key(&ISSUER), "k", &claims)
}

/// One data-plane connection over a stream: what the client reads in the end.
fn exchange(world: &mut World, stream_id: &str, token: &str, url: &str) -> Value {
    send(world, open(stream_id, "{\"kind\":\"data-plane\"}"));
    let mut rng = Drbg::new([3; 32]);
    let (connecting, init) = Connecting::start(Pure, "node-1", &mut rng, world.node_now());
    send(world, data(stream_id, &init));
    let key = *Identity::from_seed(Pure, &NODE_SEED).public_key();
    let accept = stream(world, stream_id).0[0].clone();
    let mut session = connecting.finish(&accept, &key, rng.fork(), world.node_now()).unwrap();
    let request = json!({"type": "proxy_request", "token": token, "target_url": url});
    let frame = session.seal(FrameType::Data, FrameBuf::from_plaintext(request.to_string().as_bytes()));
    send(world, data(stream_id, &frame));
    let (mut sent, closed) = stream(world, stream_id);
    assert_eq!((sent.len(), closed.as_deref()), (2, Some("data-plane complete")));
    json(session.open(&mut sent[1]).unwrap().1)
}

#[test]
fn a_ticket_pays_for_one_request_over_the_data_plane_and_is_spent_once() {
    let mut world = serving();
    let token = paid(&world, "t1", TARGET);
    let answer = exchange(&mut world, "s1", &token, TARGET);
    assert_eq!((&answer["type"], &answer["status"]), (&json!("proxy_response"), &json!(203)));
    assert_eq!(answer["body"], base64::encode(b"hello"));
    let again = exchange(&mut world, "s2", &token, TARGET);
    assert_eq!(again["code"], "unauthorized");
    assert_eq!(world.fetched.len(), 1);
    // Not over another session either.
    world.cut();
    world.run_for(10 * SECOND);
    assert_eq!(exchange(&mut world, "s3", &token, TARGET)["code"], "unauthorized");
    let told: Vec<_> = world.events.iter().map(|(_, event)| format!("{event} {event:?}")).collect();
    assert!(told.iter().all(|text| !text.contains("v4.public") && !text.contains("paid")), "{told:?}");
}

#[test]
fn a_refusal_does_not_burn_the_ticket_and_a_private_target_does_not_get_fetched() {
    let mut world = serving();
    let token = paid(&world, "t1", TARGET);
    assert_eq!(exchange(&mut world, "s1", &token, "http://203.0.114.10/other")["code"], "unauthorized");
    assert_eq!(exchange(&mut world, "s2", &token, TARGET)["type"], "proxy_response");
    let private = "http://10.0.0.1/";
    let token = paid(&world, "t2", private);
    assert_eq!(exchange(&mut world, "s3", &token, private)["code"], "upstream_error");
    assert_eq!(world.fetched.len(), 1);
}

#[test]
fn a_data_plane_client_that_does_not_go_on_is_closed_and_leaves_nothing() {
    let mut world = serving();
    send(&mut world, open("s", "{\"kind\":\"data-plane\"}"));
    world.run_for(11 * SECOND);
    assert_eq!(stream(&world, "s").1.as_deref(), Some("the client took too long"));
    send(&mut world, open("s", "{\"kind\":\"data-plane\"}"));
    send(&mut world, data("s", b"junk"));
    assert_eq!(stream(&world, "s").1.as_deref(), Some("handshake failed"));
    world.run_for(31 * SECOND);
    let beat = world.server_events.iter().rev().find_map(|(_, event)| match event {
        orchestrator::Event::Heartbeat(beat) => Some(beat.active_streams),
        _ => None,
    });
    assert_eq!(beat, Some(0));
}

fn close(stream_id: &str) -> FrameBuf {
    StreamClose { stream_id: stream_id.into(), reason: None }.encode(1)
}

/// The codes of errors that the node sent about a stream.
fn errors(world: &World, id: &str) -> Vec<String> {
    let code = |(_, event): &(Duration, orchestrator::Event)| match event {
        orchestrator::Event::Message(message) => match &**message {
            Message::ErrorMessage(error) if error.reply_to.as_deref() == Some(id) => Some(error.code.clone()),
            _ => None,
        },
        _ => None,
    };
    world.server_events.iter().filter_map(code).collect()
}

const RAW: &str = r#"{"kind":"raw-tunnel","host":"target.example","port":7000}"#;

/// A raw tunnel whose target is connected.
fn raw(world: &mut World, stream_id: &str) -> SocketId {
    send(world, open(stream_id, RAW));
    let Some(Output::OpenSocket { socket, .. }) = world.wanted.last() else { panic!("{:?}", world.wanted) };
    let socket = *socket;
    world.feed(Input::SocketOpened { socket });
    socket
}

#[test]
fn a_raw_tunnel_passes_bytes_both_ways_and_ends_with_its_target() {
    let mut world = control();
    world.run_for(SECOND);
    send(&mut world, open("r", RAW));
    // What comes before the connection is there waits for it.
    send(&mut world, data("r", b"early "));
    send(&mut world, data("r", b"bird"));
    let socket = SocketId(0);
    world.feed(Input::SocketOpened { socket });
    world.feed(Input::SocketSent { socket, bytes: 10 });
    world.feed(Input::SocketData { socket, data: b"welcome".to_vec() });
    world.run_for(SECOND);
    send(&mut world, data("r", b"more"));
    world.feed(Input::SocketEnded { socket, end: SocketEnd::Closed });
    world.run_for(SECOND);
    assert_eq!(stream(&world, "r"), (vec![b"welcome".to_vec()], Some("target closed".into())));
    let read = Output::ReadSocket { socket, most: MAX_SOCKET_READ };
    let write = |data: &[u8]| Output::SendSocket { socket, data: data.to_vec() };
    let Output::OpenSocket { audience, host, port, .. } = &world.wanted[0] else { panic!() };
    assert_eq!((*audience, host.as_str(), *port), (Audience::Stranger, "target.example", 7000));
    assert_eq!(world.wanted[1..], [write(b"early bird"), read.clone(), read, write(b"more")]);
    // What was on its way is nobody's, and nothing is left.
    send(&mut world, data("r", b"late"));
    assert_eq!((stream(&world, "r").0.len(), errors(&world, "r").len()), (1, 0));
}

#[test]
fn a_raw_tunnel_that_fails_says_why_and_ends() {
    let mut world = control();
    world.run_for(SECOND);
    for (number, (target, word)) in [
        (r#"{"kind":"raw-tunnel","host":"127.0.0.1","port":22}"#, "not on the public internet"),
        (r#"{"kind":"raw-tunnel","host":"::1","port":22}"#, "not on the public internet"),
        (r#"{"kind":"raw-tunnel","host":"0x7f.1","port":22}"#, "not on the public internet"),
        (r#"{"kind":"raw-tunnel","host":"a/../@b","port":22}"#, "not valid"),
        (r#"{"kind":"raw-tunnel","host":"fe80::1%eth0","port":22}"#, "not valid"),
        (r#"{"kind":"raw-tunnel","host":"a.example","port":0}"#, "port"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = number.to_string();
        send(&mut world, open(&id, target));
        let (_, closed) = stream(&world, &id);
        assert!(closed.as_deref().is_some_and(|reason| reason.contains(word)), "{target}: {closed:?}");
        assert_eq!(errors(&world, &id), ["raw_tunnel_failed"]);
    }
    assert_eq!(world.wanted, [], "nothing is dialled");
    send(&mut world, open("u", RAW));
    let error = FetchError { kind: FetchErrorKind::Connect, detail: "refused".into() };
    world.feed(Input::SocketEnded { socket: SocketId(0), end: SocketEnd::Unopened(error) });
    let socket = raw(&mut world, "f");
    world.feed(Input::SocketEnded { socket, end: SocketEnd::Failed { detail: "reset".into() } });
    world.run_for(SECOND);
    assert_eq!(stream(&world, "u").1.as_deref(), Some("cannot connect: refused"));
    assert_eq!(stream(&world, "f").1.as_deref(), Some("reset"));
    assert_eq!((errors(&world, "u").len(), errors(&world, "f").len()), (1, 1));
}

#[test]
fn closing_a_raw_tunnel_closes_its_socket_and_so_does_losing_the_tunnel() {
    let mut world = control();
    world.run_for(SECOND);
    let (first, second) = (raw(&mut world, "a"), raw(&mut world, "b"));
    send(&mut world, close("a"));
    assert_eq!(world.wanted.last(), Some(&Output::CloseSocket { socket: first }));
    world.cut();
    world.run_for(SECOND);
    assert_eq!(world.wanted.last(), Some(&Output::CloseSocket { socket: second }));
    // The shell may still have had something to say of it.
    world.feed(Input::SocketData { socket: second, data: b"late".to_vec() });
    world.run_for(10 * SECOND);
    assert!(world.is_connected() && stream(&world, "b").0.is_empty());
}

#[test]
fn a_target_is_read_no_faster_than_the_server_takes_it() {
    let mut world = control();
    world.run_for(SECOND);
    let socket = raw(&mut world, "r");
    world.takes = false;
    let reads = |world: &World| {
        world.wanted.iter().filter(|wanted| matches!(wanted, Output::ReadSocket { .. })).count()
    };
    assert_eq!(reads(&world), 1);
    world.feed(Input::SocketData { socket, data: vec![7; MAX_SOCKET_READ] });
    world.run_for(10 * SECOND);
    assert_eq!(reads(&world), 1, "nothing more while the first waits");
    let bytes = world.untaken;
    world.feed(Input::LinkSent { link: LinkId(0), bytes });
    assert_eq!(reads(&world), 2);
}

#[test]
fn a_target_that_does_not_read_ends_its_own_stream_and_no_other() {
    let mut world = control();
    world.run_for(SECOND);
    let (slow, good) = (raw(&mut world, "slow"), raw(&mut world, "good"));
    let piece = vec![1; MAX_SOCKET_UNSENT / 4];
    for _ in 0..5 {
        send(&mut world, data("slow", &piece));
        send(&mut world, data("good", &piece));
        world.feed(Input::SocketSent { socket: good, bytes: piece.len() });
    }
    assert_eq!(stream(&world, "slow").1.as_deref(), Some("the target reads more slowly than it is sent to"));
    assert_eq!(errors(&world, "slow"), ["raw_tunnel_failed"]);
    assert!(world.wanted.contains(&Output::CloseSocket { socket: slow }));
    assert_eq!(stream(&world, "good").1, None);
    assert_eq!(world.count(|event| matches!(event, Event::OverLimit { .. })), 1);
}

fn frame(kind: MuxKind, number: u32, payload: &[u8]) -> Vec<u8> {
    [&head(kind, number)[..], payload].concat()
}

const OWNER: &str = r#"{"kind":"public-tunnel-owner","tunnel_id":"full-spit"}"#;

/// A `target` of somebody who comes through the tunnel, with the first bytes of a request.
fn visitor(initial: &[u8]) -> String {
    json!({"kind": "public-tunnel-stream", "tunnel_id": "full-spit", "initial_data": base64::encode(initial)})
        .to_string()
}

#[test]
fn a_public_tunnel_passes_bytes_between_its_owner_and_its_visitors() {
    let mut world = control();
    world.run_for(SECOND);
    send(&mut world, open("early", &visitor(b"GET")));
    assert_eq!(stream(&world, "early").1.as_deref(), Some("tunnel owner unavailable"));
    send(&mut world, open("o", OWNER));
    send(&mut world, open("v1", &visitor(b"GET /1")));
    send(&mut world, open("v2", &visitor(b"GET /2")));
    send(&mut world, data("v2", b"more"));
    send(&mut world, data("o", &frame(MuxKind::Data, 1, b"200 OK")));
    send(&mut world, data("o", &frame(MuxKind::Data, 9, b"nobody's")));
    send(&mut world, data("o", &frame(MuxKind::Ping, 0, b"?")));
    send(&mut world, data("o", b"junk"));
    send(&mut world, data("o", &frame(MuxKind::End, 1, b"")));
    send(&mut world, data("o", &frame(MuxKind::Reset, 2, b"")));
    assert_eq!(stream(&world, "v1"), (vec![b"200 OK".to_vec()], Some("target closed".into())));
    assert_eq!(stream(&world, "v2"), (vec![], Some("target reset".into())));
    assert_eq!(errors(&world, "o"), ["decode_failed"]);
    // Numbers are not used again at once, and a visitor that leaves is reset.
    send(&mut world, open("v3", &visitor(b"")));
    send(&mut world, close("v3"));
    send(&mut world, open("v4", &visitor(b"GET /4")));
    let to_owner = stream(&world, "o").0;
    assert_eq!(
        to_owner,
        [
            frame(MuxKind::Open, 1, b"GET /1"),
            frame(MuxKind::Open, 2, b"GET /2"),
            frame(MuxKind::Data, 2, b"more"),
            frame(MuxKind::Pong, 0, b""),
            frame(MuxKind::Open, 3, b""),
            frame(MuxKind::Reset, 3, b""),
            frame(MuxKind::Open, 4, b"GET /4"),
        ]
    );
    send(&mut world, close("o"));
    assert_eq!(stream(&world, "v4").1.as_deref(), Some("tunnel owner closed"));
    send(&mut world, open("v5", &visitor(b"")));
    assert_eq!(stream(&world, "v5").1.as_deref(), Some("tunnel owner unavailable"));
}

#[test]
fn another_owner_takes_the_tunnel_and_what_came_through_the_first_ends() {
    let mut world = control();
    world.run_for(SECOND);
    send(&mut world, open("o1", OWNER));
    send(&mut world, open("v1", &visitor(b"")));
    send(&mut world, open("o2", OWNER));
    assert_eq!(stream(&world, "o1").1.as_deref(), Some("another owner took the tunnel"));
    assert_eq!(stream(&world, "v1").1.as_deref(), Some("tunnel owner closed"));
    send(&mut world, close("o1"));
    send(&mut world, open("v2", &visitor(b"hi")));
    assert_eq!(stream(&world, "o2").0, [frame(MuxKind::Open, 1, b"hi")], "the end of the first ends nothing");
}

#[test]
fn a_large_datum_is_cut_into_frames_that_fit() {
    let mut world = control();
    world.run_for(SECOND);
    send(&mut world, open("o", OWNER));
    let large: Vec<u8> = (0..MAX_RELAYED * 5 / 2).map(|i| u8::try_from(i % 251).unwrap()).collect();
    send(&mut world, open("v", &visitor(&large)));
    send(&mut world, data("v", &large));
    send(&mut world, data("o", &frame(MuxKind::Data, 1, &large)));
    let to_owner = stream(&world, "o").0;
    let bytes: Vec<u8> = to_owner.iter().flat_map(|frame| frame[5..].iter().copied()).collect();
    assert!(bytes == [&large[..], &large].concat());
    assert!(to_owner.iter().chain(&stream(&world, "v").0).all(|datum| datum.len() <= MAX_RELAYED + 5));
    assert!(stream(&world, "v").0.concat() == large);
}

#[test]
fn a_server_that_does_not_take_what_is_relayed_is_not_read_and_given_up_in_the_end() {
    let mut world = control();
    world.run_for(SECOND);
    send(&mut world, open("o", OWNER));
    send(&mut world, open("v", &visitor(b"")));
    world.takes = false;
    let held = |world: &World| {
        let hold = |wanted: &Output| match wanted {
            Output::HoldLink { hold, .. } => Some(*hold),
            _ => None,
        };
        world.wanted.iter().filter_map(hold).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        send(&mut world, data("v", &vec![0; HOLD_ABOVE / 2]));
    }
    assert_eq!(held(&world), [true]);
    let bytes = core::mem::take(&mut world.untaken);
    world.feed(Input::LinkSent { link: LinkId(0), bytes });
    assert_eq!(held(&world), [true, false]);
    for _ in 0..3 {
        send(&mut world, data("v", &vec![0; HOLD_ABOVE / 2]));
    }
    assert_eq!(held(&world), [true, false, true]);
    // It takes a little now and then: slow, but there.
    for _ in 0..6 {
        world.run_for(30 * SECOND);
        world.feed(Input::LinkSent { link: LinkId(0), bytes: 1000 });
    }
    assert!(world.is_connected() && world.opened.len() == 1);
    world.run_for(62 * SECOND);
    assert_eq!(world.opened.len(), 2, "nothing taken for a minute is a dead server");
}

#[test]
fn answers_to_an_owners_pings_count_as_what_they_take() {
    let mut world = serving();
    send(&mut world, open("o", r#"{"kind":"public-tunnel-owner","tunnel_id":"t"}"#));
    world.takes = false;
    for _ in 0..HOLD_ABOVE / 128 {
        world.server(orchestrator::Input::Send(data("o", &frame(MuxKind::Ping, 0, &[]))));
    }
    world.run_for(SECOND);
    assert!(matches!(world.wanted.last(), Some(Output::HoldLink { hold: true, .. })));
}

#[test]
fn an_open_stream_is_not_told_to_be_unknown_whatever_is_opened_under_its_name() {
    let mut world = serving();
    send(&mut world, open("s", "proxy-session"));
    send(&mut world, open("s", r#"{"kind":"dance"}"#));
    assert_eq!(
        errors(&world, "s"),
        ["stream_exists"],
        "`unsupported_stream_target` would end it at the server"
    );
}

#[test]
fn streams_over_the_limit_are_refused_and_counted() {
    let mut config = paid_config();
    config.limits.max_streams = 2;
    let mut world = run(config);
    send(&mut world, open("1", "proxy-session"));
    send(&mut world, open("1", "proxy-session"));
    send(&mut world, open("2", "{\"kind\":\"data-plane\"}"));
    send(&mut world, open("3", RAW));
    assert_eq!((errors(&world, "1"), errors(&world, "2")), (vec!["stream_exists".to_string()], vec![]));
    assert_eq!(errors(&world, "3"), ["too_many_streams"]);
    assert!(stream(&world, "3").1.is_some(), "whoever waits for it is told");
    world.local(1, "GET", "/health", "localhost", "");
    let health = json(&world.responses[&LocalId(1)].body);
    assert_eq!((&health["served"]["over_limit"], &health["served"]["streams"]), (&json!(1), &json!(2)));
    send(&mut world, close("1"));
    send(&mut world, open("4", "proxy-session"));
    assert_eq!(errors(&world, "4"), [""; 0]);
}

#[test]
fn inits_without_a_paid_request_are_bounded_by_the_second() {
    let mut config = paid_config();
    config.limits.max_inits = 3;
    let mut world = run(config);
    let init = Connecting::start(Pure, "node-1", &mut Drbg::new([1; 32]), world.node_now()).1;
    for number in 0..5 {
        let id = number.to_string();
        world.server(orchestrator::Input::Send(open(&id, "{\"kind\":\"data-plane\"}")));
        world.server(orchestrator::Input::Send(data(&id, &init)));
    }
    world.run_for(SECOND / 10);
    let ends: Vec<_> = (0..5).map(|number| stream(&world, &number.to_string()).1).collect();
    let busy = Some("this node is busy".to_string());
    assert_eq!(ends, [None, None, None, busy.clone(), busy]);
    world.run_for(2 * SECOND);
    for number in 0..20 {
        let token = paid(&world, &format!("t{number}"), TARGET);
        let answer = exchange(&mut world, &format!("p{number}"), &token, TARGET);
        assert_eq!(answer["type"], "proxy_response", "those who pay are not counted");
    }
}

#[test]
fn a_ticket_that_was_spent_pays_for_no_more_inits() {
    let mut config = paid_config();
    config.limits.max_inits = 3;
    let mut world = run(config);
    let token = paid(&world, "t", TARGET);
    assert_eq!(exchange_local(&mut world, 0, &token, SECOND)["type"], "proxy_response");
    for id in 1..4 {
        // No time passes, in which more inits might come.
        assert_eq!(exchange_local(&mut world, id, &token, Duration::ZERO)["code"], "unauthorized");
    }
    assert_eq!(connect(&mut world, 4, |_| {}), 101);
    let init = Connecting::start(Pure, "node-1", &mut Drbg::new([1; 32]), world.node_now()).1;
    world.feed(Input::LocalMessage { id: LocalId(4), data: init });
    let end = Output::CloseLocal { id: LocalId(4), code: 1013, reason: "this node is busy".into() };
    assert_eq!(world.wanted.last(), Some(&end));
}

#[test]
fn a_url_that_is_never_fetched_is_not_compared_with_the_ticket() {
    let mut world = serving();
    let token = paid(&world, "t", TARGET);
    let url = format!("{TARGET}?{}", "&a".repeat(MAX_URL));
    assert_eq!(exchange(&mut world, "s", &token, &url)["code"], "bad_request");
    assert_eq!(exchange(&mut world, "t", &token, TARGET)["type"], "proxy_response");
}

#[test]
fn what_still_comes_for_a_refused_stream_is_nobodys() {
    let mut world = serving();
    let request = br#"{"id":"a","url":"http://203.0.114.10/"}"#;
    let refused = [
        r#"{"kind":"raw-tunnel","host":"127.0.0.1","port":22}"#,
        r#"{"kind":"public-tunnel-stream","tunnel_id":"t"}"#,
        "dance",
    ];
    for target in refused {
        send(&mut world, open(target, target));
        send(&mut world, data(target, request));
        assert!(stream(&world, target).0.is_empty(), "{target}");
    }
    assert!(world.fetched.is_empty());
}

#[test]
fn clients_that_are_turned_away_do_not_fill_the_log() {
    let mut world = serving();
    for id in 0..20 {
        assert_eq!(connect(&mut world, id, |_| {}), 101);
        world.feed(Input::LocalMessage { id: LocalId(id), data: b"junk".to_vec() });
    }
    let told: Vec<u64> = world
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::ClientRefused { count, .. } => Some(*count),
            _ => None,
        })
        .collect();
    assert_eq!(told, [1, 2, 4, 8, 16]);
    assert_eq!(world.count(|event| matches!(event, Event::ProxyFailed { .. })), 0);
}

#[test]
fn a_ticket_for_a_target_that_is_not_fetched_is_not_burnt() {
    let mut config = paid_config();
    config.limits.max_requests = 1;
    let mut world = run(config);
    world.reply = |_| None;
    send(&mut world, open("s", "proxy-session"));
    send(&mut world, data("s", br#"{"url":"http://203.0.114.10/"}"#));
    let token = paid(&world, "t", TARGET);
    assert_eq!(exchange(&mut world, "busy", &token, TARGET)["code"], "upstream_error");
    send(&mut world, close("s"));
    world.reply = hello_reply;
    assert_eq!(exchange(&mut world, "free", &token, TARGET)["type"], "proxy_response");
}

/// A request for a WebSocket at the local API.
pub(super) fn connect(world: &mut World, id: u64, change: impl FnOnce(&mut LocalRequest)) -> u16 {
    let headers = [
        ("host", "203.0.113.7:9090"),
        ("origin", "https://elsewhere.example"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    let (method, target) = ("GET".to_string(), "/connect".to_string());
    let mut request = LocalRequest { method, target, headers, body: Vec::new() };
    change(&mut request);
    world.feed(Input::Local { id: LocalId(id), request });
    world.responses[&LocalId(id)].status
}

fn last_local(world: &World) -> Vec<u8> {
    let sent = |wanted: &Output| match wanted {
        Output::SendLocal { data, .. } => Some(data.clone()),
        _ => None,
    };
    world.wanted.iter().rev().find_map(sent).unwrap()
}

fn exchange_local(world: &mut World, id: u64, token: &str, time: Duration) -> Value {
    assert_eq!(connect(world, id, |_| {}), 101);
    let mut rng = Drbg::new([3; 32]);
    let (connecting, init) = Connecting::start(Pure, "node-1", &mut rng, world.node_now());
    world.feed(Input::LocalMessage { id: LocalId(id), data: init });
    let key = *Identity::from_seed(Pure, &NODE_SEED).public_key();
    let mut session = connecting.finish(&last_local(world), &key, rng.fork(), world.node_now()).unwrap();
    let request = json!({"type": "proxy_request", "token": token, "target_url": TARGET});
    let frame = session.seal(FrameType::Data, FrameBuf::from_plaintext(request.to_string().as_bytes()));
    world.feed(Input::LocalMessage { id: LocalId(id), data: frame });
    world.run_for(time);
    json(session.open(&mut last_local(world)).unwrap().1)
}

#[test]
fn a_client_at_the_local_api_is_served_without_the_tunnel_and_tickets_are_the_same_everywhere() {
    let mut world = serving();
    let (spent, other) = (paid(&world, "t1", TARGET), paid(&world, "t2", TARGET));
    assert_eq!(exchange(&mut world, "s", &spent, TARGET)["type"], "proxy_response");
    world.weather = super::world::Weather::Refusing;
    world.cut();
    world.run_for(SECOND);
    assert_eq!(exchange_local(&mut world, 1, &spent, SECOND)["code"], "unauthorized");
    assert_eq!(exchange_local(&mut world, 2, &other, SECOND)["type"], "proxy_response");
    let end = Output::CloseLocal { id: LocalId(2), code: 1000, reason: "data-plane complete".into() };
    assert_eq!(world.wanted.last(), Some(&end));
}

#[test]
fn a_client_at_the_local_api_that_does_not_go_on_or_speaks_something_else_is_closed() {
    let mut world = serving();
    assert_eq!(connect(&mut world, 1, |_| {}), 101);
    assert_eq!(connect(&mut world, 2, |_| {}), 101);
    world.feed(Input::LocalMessage { id: LocalId(2), data: b"hello?".to_vec() });
    let end = |id, code, reason: &str| Output::CloseLocal { id: LocalId(id), code, reason: reason.into() };
    assert_eq!(world.wanted.last(), Some(&end(2, 1008, "handshake failed")));
    world.run_for(11 * SECOND);
    assert_eq!(world.wanted.last(), Some(&end(1, 1008, "the client took too long")));
    assert_eq!(connect(&mut world, 3, |_| {}), 101);
    world.feed(Input::LocalEnded { id: LocalId(3) });
    assert_eq!(connect(&mut world, 4, |_| {}), 101);
    world.feed(Input::Stop);
    assert_eq!(world.wanted.last(), Some(&end(4, 1001, "this node stops")));
    // What it spent would not be in the file that was written for the next process.
    assert_eq!(world.finish, None);
    assert_eq!(connect(&mut world, 5, |_| {}), 101);
    assert_eq!(world.wanted.last(), Some(&end(5, 1001, "this node stops")));
}

#[test]
fn only_a_whole_websocket_request_becomes_one() {
    let mut world = serving();
    let without = |name: &'static str| {
        move |request: &mut LocalRequest| request.headers.retain(|(header, _)| header != name)
    };
    assert_eq!(connect(&mut world, 1, without("upgrade")), 426);
    assert_eq!(connect(&mut world, 2, without("connection")), 426);
    assert_eq!(connect(&mut world, 3, without("sec-websocket-version")), 426);
    assert_eq!(connect(&mut world, 4, without("sec-websocket-key")), 400);
    assert_eq!(connect(&mut world, 5, |request| request.method = "POST".into()), 405);
    assert_eq!(connect(&mut world, 6, |request| request.headers[0].1 = "rebound.example".into()), 421);
}

#[test]
fn a_node_that_does_not_serve_says_so_at_connect() {
    for (registration, code) in [(None, 1011), (Some(Registration::new("node-1")), 1013)] {
        let mut config = config(None);
        config.registration = registration;
        let mut world = World::new(config, 1);
        world.run_for(SECOND);
        assert_eq!(connect(&mut world, 1, |_| {}), 101);
        let Some(Output::CloseLocal { code: closed, .. }) = world.wanted.last() else { panic!() };
        assert_eq!(*closed, code);
    }
}

#[test]
fn a_restart_does_not_open_the_replay_window_again() {
    let mut first = serving();
    let (spent, unspent) = (paid(&first, "t1", TARGET), paid(&first, "t2", TARGET));
    assert_eq!(exchange(&mut first, "s1", &spent, TARGET)["type"], "proxy_response");
    let killed = first.files[&StateFile::SpentTickets].clone();
    first.feed(Input::Stop);
    first.run_for(SECOND);
    assert!(first.finish.is_some());
    let stopped = first.files[&StateFile::SpentTickets].clone();

    let restarted = |file: &[u8]| run(Config { spent_before: Before::from_file(file), ..paid_config() });
    let mut world = restarted(&stopped);
    assert_eq!(exchange(&mut world, "s1", &spent, TARGET)["code"], "unauthorized");
    assert_eq!(exchange(&mut world, "s2", &unspent, TARGET)["type"], "proxy_response");

    let mut world = restarted(&killed);
    assert_eq!(exchange(&mut world, "s1", &spent, TARGET)["code"], "unauthorized");
    assert_eq!(exchange(&mut world, "s2", &unspent, TARGET)["code"], "unauthorized", "nobody knows");
    world.run_for(10 * SECOND);
    let fresh = paid(&world, "t3", TARGET);
    assert_eq!(exchange(&mut world, "s3", &fresh, TARGET)["type"], "proxy_response");
}
