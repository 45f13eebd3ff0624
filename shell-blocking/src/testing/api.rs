//! The local API: HTTP, and WebSockets that come of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Instant;

use consensus_core::data_plane::replay::Before;
use consensus_core::io::{Input, LocalId, LocalRequest, LocalResponse, Outcome, Output};
use consensus_core::limits::Limits;
use consensus_core::node::{Config, Node};
use consensus_core::release::manifest::Manifest;
use shell_blocking::places::{MAX_CONNECTIONS, MAX_REQUESTS, MAX_WEBSOCKETS};
use shell_blocking::runtime_api::{Provider, Runtime as _};
use shell_blocking::state_dir::StateDir;
use shell_blocking::system;
use shell_blocking::tls::Tls;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, WebSocket};

use super::{PATIENCE, Rig, environment};

const UPGRADE: &str = "GET /connect HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A binary message `hi` of a client, masked with zeros.
const HI: &[u8] = &[0x82, 0x82, 0, 0, 0, 0, b'h', b'i'];

fn connect(rig: &Rig) -> TcpStream {
    let stream = TcpStream::connect(rig.api).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn next_request(rig: &Rig) -> (LocalId, LocalRequest) {
    match rig.next() {
        Input::Local { id, request } => (id, request),
        other => panic!("{other:?}"),
    }
}

fn respond(rig: &Rig, id: LocalId, status: u16) {
    let response = LocalResponse { status, headers: vec![], body: b"body".to_vec() };
    rig.wants(Output::Respond { id, response });
}

/// A head; nothing when the connection ends.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A client's WebSocket, as the node knows it and as the client does.
fn websocket(rig: &Rig) -> (LocalId, WebSocket<TcpStream>) {
    let mut stream = connect(rig);
    stream.write_all(UPGRADE.as_bytes()).unwrap();
    let (id, request) = next_request(rig);
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/connect"));
    respond(rig, id, 101);
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    (id, WebSocket::from_raw_socket(stream, Role::Client, None))
}

/// One on which the client has said something.
fn spoken(rig: &Rig) -> (LocalId, WebSocket<TcpStream>) {
    let (id, mut socket) = websocket(rig);
    socket.get_mut().write_all(HI).unwrap();
    assert_eq!(rig.next(), Input::LocalMessage { id, data: b"hi".to_vec() });
    (id, socket)
}

fn close(rig: &Rig, id: LocalId) {
    let reason = "data-plane complete".to_owned();
    rig.wants(Output::CloseLocal { id, code: 1000, reason });
}

fn next_close(socket: &mut WebSocket<TcpStream>) -> Option<CloseFrame> {
    loop {
        match socket.read() {
            Ok(Message::Close(frame)) => return frame,
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_request_becomes_a_websocket_and_is_closed_after_what_was_sent() {
    const SIZE: usize = 12 << 20;
    let rig = Rig::new();
    let (id, mut socket) = websocket(&rig);
    socket.send(Message::Binary(b"binary"[..].into())).unwrap();
    assert_eq!(rig.next(), Input::LocalMessage { id, data: b"binary".to_vec() });
    socket.send(Message::Text("text".into())).unwrap();
    assert_eq!(rig.next(), Input::LocalMessage { id, data: b"text".to_vec() });
    socket.send(Message::Ping(b"there?"[..].into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(b"there?"[..].into()));
    // One that has spoken may send what a tunnel may.
    socket.send(Message::Binary(vec![7; SIZE].into())).unwrap();
    assert_eq!(rig.next(), Input::LocalMessage { id, data: vec![7; SIZE] });
    for byte in [1, 2] {
        rig.wants(Output::SendLocal { id, data: vec![byte; SIZE] });
    }
    close(&rig, id);
    rig.wants(Output::SendLocal { id, data: b"too late".to_vec() });
    for byte in [1, 2] {
        assert_eq!(socket.read().unwrap(), Message::Binary(vec![byte; SIZE].into()));
    }
    let frame = CloseFrame { code: CloseCode::Normal, reason: "data-plane complete".into() };
    assert_eq!(next_close(&mut socket), Some(frame));
    assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)), "in good order");
    assert_eq!(rig.finish(), [], "nothing is told of it after its close");
}

#[test]
fn what_came_with_the_request_is_its_first_message() {
    let rig = Rig::new();
    let mut stream = connect(&rig);
    stream.write_all(&[UPGRADE.as_bytes(), HI].concat()).unwrap();
    let (id, _) = next_request(&rig);
    respond(&rig, id, 101);
    assert_eq!(rig.next(), Input::LocalMessage { id, data: b"hi".to_vec() });
}

#[test]
fn a_client_that_leaves_is_told_to_the_node() {
    let rig = Rig::new();
    let (id, mut socket) = websocket(&rig);
    let frame = CloseFrame { code: CloseCode::Away, reason: "bye".into() };
    socket.close(Some(frame.clone())).unwrap();
    assert_eq!(rig.next(), Input::LocalEnded { id });
    assert_eq!(next_close(&mut socket), Some(frame), "the close is answered");
    let (id, socket) = websocket(&rig);
    drop(socket);
    assert_eq!(rig.next(), Input::LocalEnded { id });
    // One that has gone before it was answered.
    let mut stream = connect(&rig);
    stream.write_all(UPGRADE.as_bytes()).unwrap();
    let (id, _) = next_request(&rig);
    drop(stream);
    respond(&rig, id, 101);
    assert_eq!(rig.next(), Input::LocalEnded { id });
    // One that never asked.
    let mut stream = connect(&rig);
    stream.write_all(b"GET /connect HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let (id, _) = next_request(&rig);
    respond(&rig, id, 101);
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 500 "));
    assert_eq!(rig.next(), Input::LocalEnded { id });
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_client_that_breaks_the_rules_is_told() {
    let rig = Rig::new();
    let told = |bytes: &[u8]| {
        let (id, mut socket) = websocket(&rig);
        // It may be refused before all of it is written.
        let _ = socket.get_mut().write_all(bytes);
        assert_eq!(rig.next(), Input::LocalEnded { id });
        u16::from(next_close(&mut socket).unwrap().code)
    };
    assert_eq!(told(&[0x82, 0x02, b'h', b'i']), 1002, "unmasked");
    assert_eq!(told(&[0x83, 0x80, 0, 0, 0, 0]), 1002, "a reserved kind");
    let mut large = vec![0x82, 0xff, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    large.resize(large.len() + 66_000, 0);
    assert_eq!(told(&large), 1009, "nothing so large is taken of a client that has not said anything");
    let larger = &[0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0];
    let (id, mut socket) = spoken(&rig);
    socket.get_mut().write_all(larger).unwrap();
    assert_eq!(rig.next(), Input::LocalEnded { id });
    assert_eq!(u16::from(next_close(&mut socket).unwrap().code), 1009);
}

#[test]
fn the_end_of_the_node_answers_and_closes_first() {
    let rig = Rig::new();
    let (id, mut socket) = websocket(&rig);
    let mut plain = connect(&rig);
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let (asked, _) = next_request(&rig);
    rig.wants(Output::SendLocal { id, data: vec![1; 1 << 20] });
    close(&rig, id);
    respond(&rig, asked, 200);
    let reading = thread::spawn(move || {
        assert_eq!(socket.read().unwrap().len(), 1 << 20);
        next_close(&mut socket).unwrap().code
    });
    rig.finish();
    assert_eq!(reading.join().unwrap(), CloseCode::Normal);
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("body"), "{answer}");
}

#[test]
fn requests_and_websockets_do_not_keep_one_another_out() {
    let rig = Rig::new();
    let sockets: Vec<_> = (0..MAX_WEBSOCKETS).map(|_| spoken(&rig)).collect();
    let busy = |bytes: &[u8]| {
        let mut stream = connect(&rig);
        stream.write_all(bytes).unwrap();
        read_head(&mut stream).starts_with("HTTP/1.1 503 ")
    };
    assert!(busy(UPGRADE.as_bytes()));
    let request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n1234";
    let mut slow: Vec<_> = (0..MAX_REQUESTS).map(|_| connect(&rig)).collect();
    for (number, stream) in slow.iter_mut().enumerate() {
        stream.write_all(request).unwrap();
        if number % 2 == 0 {
            stream.write_all(b"5").unwrap();
        }
    }
    let asked: Vec<_> = (0..MAX_REQUESTS / 2).map(|_| next_request(&rig).0).collect();
    // The others' bodies take a place as well, as soon as their heads are read.
    let begun = Instant::now();
    while !busy(request) {
        assert!(begun.elapsed() < PATIENCE, "{MAX_REQUESTS} requests must be the most");
    }
    for id in asked {
        respond(&rig, id, 200);
    }
    assert!(read_head(&mut slow[0]).starts_with("HTTP/1.1 200 "));
    drop(slow);
    drop(sockets);
    for _ in 0..MAX_WEBSOCKETS {
        assert!(matches!(rig.next(), Input::LocalEnded { .. }));
    }
    assert_eq!(rig.finish(), []);
}

#[test]
fn silent_websockets_keep_nobody_out() {
    let rig = Rig::new();
    let (first, mut spoke) = spoken(&rig);
    let silent: Vec<_> = (1..MAX_WEBSOCKETS).map(|_| websocket(&rig)).collect();
    let mut stream = connect(&rig);
    stream.write_all(UPGRADE.as_bytes()).unwrap();
    let (mut asked, mut ended) = (None, None);
    while asked.is_none() || ended.is_none() {
        match rig.next() {
            Input::Local { id, .. } => asked = Some(id),
            Input::LocalEnded { id } => ended = Some(id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ended, Some(silent[0].0), "the one that was silent longest");
    respond(&rig, asked.unwrap(), 101);
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
    spoke.get_mut().write_all(HI).unwrap();
    assert_eq!(rig.next(), Input::LocalMessage { id: first, data: b"hi".to_vec() });
}

#[test]
fn silent_connections_keep_nobody_out() {
    let rig = Rig::new();
    let mut silent: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(&rig)).collect();
    for stream in silent.iter_mut().skip(1) {
        // Half a head is no more than silence.
        stream.write_all(b"GET / HT").unwrap();
    }
    let mut client = connect(&rig);
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let (id, _) = next_request(&rig);
    respond(&rig, id, 200);
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "));
    assert_eq!(silent[0].read(&mut [0; 10]).unwrap(), 0, "the oldest had to go");
    silent[1].write_all(b"TP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let (id, _) = next_request(&rig);
    respond(&rig, id, 200);
    assert!(read_head(&mut silent[1]).starts_with("HTTP/1.1 200 "), "the others are there");
}

fn exchange(rig: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(rig).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_node_serves_its_api_until_a_signal_ends_it_all() {
    let state_dir = std::env::temp_dir().join(format!("consensus-api-{}", std::process::id()));
    let (environment, lines) = environment(Tls::default(), StateDir::open(&state_dir).unwrap());
    let config = Config {
        mode: None,
        tunnel_url: "ws://127.0.0.1:1/node/tunnel".to_owned(),
        server_key: None,
        identity_seed: [7; 32].into(),
        candidate_id: None,
        registration: None,
        manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
        limits: Limits::default(),
        spent_before: Before::Never,
        updates: consensus_core::update::Settings::default(),
        allow_private_targets: false,
    };
    let driving = thread::spawn(move || {
        let node = Node::new(config, Provider::default(), [9; 32], system::now());
        crate::Tested.drive(node, environment)
    });
    let address = lines.address();
    let health = format!("GET /health HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let answer = exchange(address, health.repeat(3).as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answer}");
    assert_eq!(answer.matches(r#""healthy""#).count(), 3, "{answer}");
    let answer = exchange(address, b"GET / HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let turns = format!("POST /benchmark/event-loop HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let answer = exchange(address, turns.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ns_per_op"), "{answer}");

    signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
    let finish = driving.join().unwrap().unwrap();
    assert_eq!(finish.outcome, Outcome::Done);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    std::fs::remove_dir_all(state_dir).unwrap();
}
