//! The data plane's jobs, done late and in any order.

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::io::{Input, LocalId, Output};
use consensus_core::limits::{MAX_HANDSHAKE, MAX_JOB_BYTES, MAX_JOBS, MAX_MESSAGE};
use consensus_core::peer::client::Connecting;
use consensus_core::release::manifest::Manifest;
use consensus_core::tunnel::session::Session;
use consensus_core::wire::frame::{FrameBuf, FrameType};
use consensus_core::wire::message::StreamClose;
use serde_json::{Value, json};

use super::streams::{TARGET, connect, data, json, open, paid, paid_config, run, send, serving, stream};
use super::world::{NODE_SEED, World};
use super::{SECOND, updates};

/// What a client has said so far.
struct Client {
    connecting: Connecting<Pure>,
    rng: Drbg,
}

/// A node whose jobs wait to be run.
fn waiting() -> World {
    let mut world = serving();
    world.jobs = Some(Vec::new());
    world
}

fn begin(world: &World, number: u8) -> (Client, Vec<u8>) {
    let mut rng = Drbg::new([number; 32]);
    let (connecting, init) = Connecting::start(Pure, "node-1", &mut rng, world.node_now());
    (Client { connecting, rng }, init)
}

fn begin_on_stream(world: &mut World, number: u8) -> Client {
    let (client, init) = begin(world, number);
    let name = number.to_string();
    send(world, open(&name, "{\"kind\":\"data-plane\"}"));
    send(world, data(&name, &init));
    client
}

/// The client's session, and its request.
fn ask(world: &World, client: Client, accept: &[u8], token: &str) -> (Session<Pure>, Vec<u8>) {
    let Client { connecting, mut rng } = client;
    let key = *Identity::from_seed(Pure, &NODE_SEED).public_key();
    let mut session = connecting.finish(accept, &key, rng.fork(), world.node_now()).unwrap();
    let request = json!({"type": "proxy_request", "token": token, "target_url": TARGET});
    let frame = session.seal(FrameType::Data, FrameBuf::from_plaintext(request.to_string().as_bytes()));
    (session, frame)
}

fn ask_on_stream(world: &mut World, client: Client, number: u8, token: &str) -> Session<Pure> {
    let name = number.to_string();
    let accept = stream(world, &name).0[0].clone();
    let (session, frame) = ask(world, client, &accept, token);
    send(world, data(&name, &frame));
    session
}

fn waiting_jobs(world: &World) -> usize {
    world.jobs.as_ref().unwrap().len()
}

fn answer(world: &World, session: &mut Session<Pure>, number: u8) -> Value {
    let (mut sent, closed) = stream(world, &number.to_string());
    assert_eq!((sent.len(), closed.as_deref()), (2, Some("data-plane complete")));
    json(session.open(&mut sent[1]).unwrap().1)
}

#[test]
fn jobs_come_back_in_any_order_and_each_client_gets_its_own_answer() {
    let mut world = waiting();
    let clients = [1, 2, 3].map(|number| begin_on_stream(&mut world, number));
    assert_eq!(waiting_jobs(&world), 3);
    for at in [2, 0, 0] {
        world.run_job(at);
    }
    world.run_for(SECOND);
    let mut sessions = Vec::new();
    for (number, client) in (1..).zip(clients) {
        let token = paid(&world, &number.to_string(), TARGET);
        sessions.push((number, ask_on_stream(&mut world, client, number, &token)));
    }
    for at in [1, 1, 0] {
        world.run_job(at);
    }
    world.run_for(SECOND);
    assert_eq!(waiting_jobs(&world), 3, "an answer to be sealed for each");
    for at in [1, 0, 0] {
        world.run_job(at);
    }
    world.run_for(SECOND);
    for (number, mut session) in sessions {
        assert_eq!(answer(&world, &mut session, number)["type"], "proxy_response");
    }
}

#[test]
fn what_is_done_for_a_client_that_has_gone_spends_nothing() {
    let mut world = waiting();
    let token = paid(&world, "once", TARGET);
    let client = begin_on_stream(&mut world, 1);
    world.run_job(0);
    world.run_for(SECOND);
    drop(ask_on_stream(&mut world, client, 1, &token));
    send(&mut world, StreamClose { stream_id: "1".into(), reason: None }.encode(1));
    world.run_job(0);
    world.run_for(SECOND);
    assert!(world.fetched.is_empty());
    // Nor does an accept that nobody waits for come to anything.
    let client = begin_on_stream(&mut world, 2);
    let gone = begin_on_stream(&mut world, 3);
    send(&mut world, StreamClose { stream_id: "3".into(), reason: None }.encode(1));
    world.run_job(1);
    drop(gone);
    world.jobs.as_mut().unwrap().truncate(1);
    world.run_job(0);
    world.run_for(SECOND);
    assert!(stream(&world, "3").0.is_empty());
    let mut session = ask_on_stream(&mut world, client, 2, &token);
    world.run_job(0);
    world.run_for(SECOND);
    world.run_job(0);
    world.run_for(SECOND);
    assert_eq!(answer(&world, &mut session, 2)["type"], "proxy_response", "the ticket was not spent");
}

#[test]
fn a_node_that_stops_takes_no_ticket_from_a_job_that_comes_late() {
    let mut world = waiting();
    let token = paid(&world, "late", TARGET);
    let client = begin_on_stream(&mut world, 1);
    world.run_job(0);
    world.run_for(SECOND);
    drop(ask_on_stream(&mut world, client, 1, &token));
    world.feed(Input::Stop);
    world.run_job(0);
    world.run_for(SECOND);
    assert!(world.fetched.is_empty() && world.finish.is_some());
}

#[test]
fn what_comes_faster_than_it_is_opened_is_turned_away() {
    let mut world = waiting();
    let most = MAX_JOB_BYTES / MAX_MESSAGE;
    for number in 0..=most {
        let id = LocalId(number as u64);
        assert_eq!(connect(&mut world, id.0, |_| {}), 101);
        let (_, init) = begin(&world, 1);
        world.feed(Input::LocalMessage { id, data: init });
        world.run_job(world.jobs.as_ref().unwrap().len() - 1);
        world.wanted.clear();
        world.feed(Input::LocalMessage { id, data: vec![0; MAX_MESSAGE] });
        let busy = Output::CloseLocal { id, code: 1013, reason: "this node is busy".into() };
        assert_eq!(world.wanted.contains(&busy), number == most, "{number}");
    }
    // Once they are done there is room again.
    for _ in 0..most {
        world.run_job(0);
    }
    let id = LocalId(most as u64 + 1);
    assert_eq!(connect(&mut world, id.0, |_| {}), 101);
    let (_, init) = begin(&world, 1);
    world.feed(Input::LocalMessage { id, data: init });
    world.run_job(0);
    world.feed(Input::LocalMessage { id, data: vec![0; MAX_MESSAGE] });
    assert_eq!(waiting_jobs(&world), 1);
}

#[test]
fn an_update_waits_for_a_job_and_goes_on_with_its_end() {
    let mut world = waiting();
    world.archive = Ok(Box::new(Manifest::of_this_release("0.2.0", "def", "linux-x64")));
    updates::prepare(&mut world, "p", "u", updates::manifest("0.2.0"));
    let token = paid(&world, "t", TARGET);
    let client = begin_on_stream(&mut world, 1);
    world.run_job(0);
    world.run_for(SECOND);
    let mut session = ask_on_stream(&mut world, client, 1, &token);
    world.run_job(0);
    world.run_for(SECOND);
    updates::apply(&mut world, "a", "u", 0);
    world.run_for(5 * SECOND);
    assert!(updates::installs(&world).is_empty(), "an answer is still to be sealed");
    world.run_job(0);
    assert_eq!(updates::installs(&world).len(), 1, "nothing else has to happen first");
    world.run_for(SECOND);
    assert_eq!(answer(&world, &mut session, 1)["type"], "proxy_response");
}

#[test]
fn an_init_that_is_too_long_does_not_wait_for_a_core() {
    let mut world = waiting();
    for (number, length) in [(0, MAX_HANDSHAKE + 1), (1, MAX_MESSAGE)] {
        let id = LocalId(number);
        assert_eq!(connect(&mut world, number, |_| {}), 101);
        world.feed(Input::LocalMessage { id, data: vec![b' '; length] });
        let end = Output::CloseLocal { id, code: 1008, reason: "handshake failed".into() };
        assert_eq!((world.wanted.last(), waiting_jobs(&world)), (Some(&end), 0));
    }
    world.local(2, "GET", "/health", "localhost", "");
    assert_eq!(json(&world.responses[&LocalId(2)].body)["served"]["refused"], 2);
}

#[test]
fn clients_that_go_at_once_do_not_gather_jobs_without_end() {
    let mut config = paid_config();
    config.limits.max_inits = 100_000;
    let mut world = run(config);
    world.jobs = Some(Vec::new());
    let (_, init) = begin(&world, 1);
    let most = MAX_JOBS as u64;
    let come = |world: &mut World, number| {
        assert_eq!(connect(world, number, |_| {}), 101);
        world.feed(Input::LocalMessage { id: LocalId(number), data: init.clone() });
    };
    for number in 0..most {
        come(&mut world, number);
        world.feed(Input::LocalEnded { id: LocalId(number) });
    }
    assert_eq!(waiting_jobs(&world), MAX_JOBS);
    come(&mut world, most);
    let busy = Output::CloseLocal { id: LocalId(most), code: 1013, reason: "this node is busy".into() };
    assert_eq!((world.wanted.last(), waiting_jobs(&world)), (Some(&busy), MAX_JOBS));
    world.run_job(0);
    come(&mut world, most + 1);
    assert_eq!(waiting_jobs(&world), MAX_JOBS, "one is done, one has come");
}
