//! The tunnel's WebSocket, against servers that are as simple, or as bad, as each case needs.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consensus_core::io::{Input, LinkEnd, LinkId, LocalResponse, OpenStage, Output};
use consensus_core::limits::MAX_MESSAGE;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use super::{PATIENCE, Rig, nobody, server};

const LINK: LinkId = LinkId(7);

fn accept(stream: TcpStream) -> WebSocket<TcpStream> {
    tungstenite::accept(stream).unwrap()
}

/// A WebSocket server for one connection.
fn socket_server<T: Send + 'static>(
    serve: impl FnOnce(WebSocket<TcpStream>) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    server(|stream| serve(accept(stream)))
}

/// A runtime with a link to a server.
fn connected(server: SocketAddr) -> Rig {
    let rig = Rig::new();
    rig.wants(Output::OpenLink { link: LINK, url: format!("ws://{server}/node/tunnel") });
    assert_eq!(rig.next(), Input::LinkOpened { link: LINK });
    rig
}

fn send(rig: &Rig, data: Vec<u8>) {
    rig.wants(Output::Send { link: LINK, data });
}

fn next_binary(rig: &Rig) -> Vec<u8> {
    match rig.next_but_sent() {
        Input::LinkBinary { link: LINK, data } => data,
        other => panic!("{other:?}"),
    }
}

fn ended(rig: &Rig) -> LinkEnd {
    match rig.next_but_sent() {
        Input::LinkEnded { link: LINK, end } => end,
        other => panic!("{other:?}"),
    }
}

fn close(rig: &Rig, code: u16, reason: &str) {
    rig.wants(Output::CloseLink { link: LINK, code, reason: reason.to_owned() });
}

#[test]
fn messages_of_any_size_pass_both_ways_at_once() {
    // More than the system's buffers hold, so that both ends must write while they read.
    const COUNT: usize = 6;
    const SIZE: usize = 3 << 20;
    let (address, thread) = socket_server(|mut reader| {
        let writer = reader.get_ref().try_clone().unwrap();
        let writing = thread::spawn(move || {
            let mut writer = WebSocket::from_raw_socket(writer, Role::Server, None);
            for number in 0..COUNT {
                writer.send(Message::Binary(vec![number as u8; SIZE].into())).unwrap();
            }
        });
        let got: Vec<_> = (0..COUNT).map(|_| reader.read().unwrap().into_data()).collect();
        writing.join().unwrap();
        got
    });
    let rig = connected(address);
    for number in 0..COUNT {
        send(&rig, vec![number as u8; SIZE]);
    }
    for number in 0..COUNT {
        assert_eq!(next_binary(&rig), vec![number as u8; SIZE]);
    }
    for (number, data) in thread.join().unwrap().into_iter().enumerate() {
        assert_eq!(data, vec![number as u8; SIZE]);
    }
}

#[test]
fn what_was_sent_is_told_as_the_transport_takes_it() {
    const COUNT: usize = 30;
    const SIZE: usize = 1 << 20;
    let (go, may_go) = channel::<()>();
    let (address, thread) = socket_server(move |mut socket| {
        may_go.recv().unwrap();
        let heard: usize = (0..COUNT).map(|_| socket.read().unwrap().into_data().len()).sum();
        // It ends when all was told: after the end nothing is.
        (heard, socket)
    });
    let rig = connected(address);
    send(&rig, vec![0; 10]);
    assert_eq!(rig.next(), Input::LinkSent { link: LINK, bytes: 10 });
    for _ in 1..COUNT {
        send(&rig, vec![0; SIZE]);
    }
    let mut sent = 0;
    while sent < (COUNT - 1) * SIZE {
        let Input::LinkSent { link: LINK, bytes } = rig.next() else { panic!("something else") };
        assert_eq!(bytes % SIZE, 0, "whole messages");
        if sent == 0 {
            // More than the system's buffers hold was given.
            assert!(bytes < (COUNT - 1) * SIZE);
            go.send(()).unwrap();
        }
        sent += bytes;
    }
    assert_eq!(sent, (COUNT - 1) * SIZE);
    let (heard, socket) = thread.join().unwrap();
    assert_eq!(heard, sent + 10);
    drop(socket);
    let end = ended(&rig);
    assert!(matches!(end, LinkEnd::Lost { .. }), "{end:?}");
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_link_that_is_held_is_written_but_not_read() {
    const SIZE: usize = 100_000;
    let (begin, may_begin) = channel::<()>();
    let (held, was_held) = channel::<usize>();
    let (address, thread) = socket_server(move |socket| {
        let stream = socket.get_ref().try_clone().unwrap();
        let mut stream = WebSocket::from_raw_socket(stream, Role::Server, None);
        may_begin.recv().unwrap();
        // Until nobody takes any more: the connection is full, and a message of it half written.
        stream.get_mut().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut count = 0;
        loop {
            count += 1;
            assert!(count < 1000, "the link is read though it is held");
            match stream.send(Message::Binary(vec![count as u8; SIZE].into())) {
                Ok(()) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        held.send(count).unwrap();
        let mut reader = socket;
        let heard = reader.read().unwrap();
        stream.get_mut().set_write_timeout(Some(PATIENCE)).unwrap();
        stream.flush().unwrap();
        // The node closes it.
        let _ = reader.read();
        heard
    });
    let rig = connected(address);
    let hold = |hold| rig.wants(Output::HoldLink { link: LINK, hold });
    for held in [false, true, true, false, true] {
        hold(held);
    }
    // The order is kept, so that this is carried out after those.
    send(&rig, b"held".to_vec());
    assert_eq!(rig.next(), Input::LinkSent { link: LINK, bytes: 4 });
    begin.send(()).unwrap();
    let count = was_held.recv_timeout(PATIENCE).unwrap();
    let told: Vec<_> = rig.told.try_iter().collect();
    assert!(told.len() <= 1, "at most the one that was being read: {}", told.len());
    hold(false);
    hold(true);
    hold(false);
    for number in told.len() + 1..=count {
        assert_eq!(next_binary(&rig), vec![number as u8; SIZE]);
    }
    close(&rig, 1000, "");
    assert_eq!(thread.join().unwrap(), Message::Binary(b"held"[..].into()));
}

#[test]
fn a_held_link_whose_server_is_gone_ends_when_it_is_written_to() {
    let (address, thread) = socket_server(|socket| {
        // Unread data makes a reset of the close.
        socket.get_ref().peek(&mut [0]).unwrap();
        drop(socket);
    });
    let rig = connected(address);
    rig.wants(Output::HoldLink { link: LINK, hold: true });
    send(&rig, vec![0; 1000]);
    thread.join().unwrap();
    let begun = Instant::now();
    let end = loop {
        send(&rig, vec![0; 1000]);
        match rig.next() {
            Input::LinkSent { .. } => assert!(begun.elapsed() < PATIENCE),
            Input::LinkEnded { link: LINK, end } => break end,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(end, LinkEnd::Lost { .. }), "{end:?}");
}

#[test]
fn pings_are_answered_and_text_is_passed_on() {
    let (address, thread) = socket_server(|mut socket| {
        socket.send(Message::Ping(b"are you there"[..].into())).unwrap();
        let pong = socket.read().unwrap();
        socket.send(Message::Text("t\u{e9}xt".into())).unwrap();
        let _ = socket.read();
        pong
    });
    let rig = connected(address);
    assert_eq!(rig.next(), Input::LinkText { link: LINK, text: "t\u{e9}xt".to_owned() });
    rig.wants(Output::DropLink { link: LINK });
    assert_eq!(thread.join().unwrap(), Message::Pong(b"are you there"[..].into()));
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_link_that_does_not_open_says_how_far_it_came() {
    let rig = Rig::new();
    let failed = |url: String| {
        rig.wants(Output::OpenLink { link: LINK, url });
        ended(&rig)
    };
    let stage = |url: String| match failed(url) {
        LinkEnd::Unopened { stage, .. } => stage,
        other => panic!("{other:?}"),
    };
    assert_eq!(stage(format!("ws://{}/", nobody())), OpenStage::Connect);
    assert_eq!(stage("ws://name.invalid/".to_owned()), OpenStage::Resolve);
    let (address, _) = server(|mut stream| stream.write_all(b"220 mail.example ESMTP\r\n\r\n").unwrap());
    assert_eq!(stage(format!("ws://{address}/")), OpenStage::Upgrade);
    let (address, _) = server(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        stream.write_all(b"HTTP/1.1 400 plain HTTP\r\n\r\n").unwrap();
    });
    assert_eq!(stage(format!("wss://{address}/")), OpenStage::Tls);
    let (address, _) = server(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    assert_eq!(failed(format!("ws://{address}/")), LinkEnd::NotUpgraded { status: 403 });
}

#[test]
fn an_attempt_that_is_not_wanted_any_more_ends_soon() {
    let (connected, is_connected) = channel::<()>();
    let (address, thread) = server(move |mut stream| {
        connected.send(()).unwrap();
        stream.read_to_end(&mut Vec::new())
    });
    let rig = Rig::new();
    rig.wants(Output::OpenLink { link: LINK, url: format!("ws://{address}/") });
    is_connected.recv_timeout(PATIENCE).unwrap();
    rig.wants(Output::DropLink { link: LINK });
    thread.join().unwrap().expect("the connection must end long before the node's own time is up");
    assert_eq!(rig.finish(), []);
}

/// What the client makes of raw bytes after the upgrade, and the close code the server gets for them. The server
/// leaves its end open.
fn after_upgrade(bytes: &'static [u8]) -> (LinkEnd, Option<u16>) {
    let (address, thread) = socket_server(move |mut socket| {
        socket.get_mut().write_all(bytes).unwrap();
        loop {
            match socket.read() {
                Ok(Message::Close(frame)) => return (socket, frame.map(|frame| frame.code.into())),
                Ok(_) => {}
                Err(_) => return (socket, None),
            }
        }
    });
    let rig = connected(address);
    let end = ended(&rig);
    let (_socket, code) = thread.join().unwrap();
    (end, code)
}

#[test]
fn a_server_that_breaks_the_rules_is_told() {
    // 16 MiB and a byte, by its header alone.
    let (end, code) = after_upgrade(&[0x82, 127, 0, 0, 0, 0, 1, 0, 0, 1]);
    assert_eq!((end, code), (LinkEnd::TooLarge, Some(1009)));
    assert_eq!(MAX_MESSAGE, 0x0100_0000);
    for bytes in [&[0x82, 0x81, 0, 0, 0, 0, 1][..], &[0xf2, 0], &[0x83, 0], &[0x80, 0], &[0x81, 1, 0xff]] {
        let (end, code) = after_upgrade(bytes);
        assert!(matches!(end, LinkEnd::BadWebSocket { .. }), "{bytes:?}: {end:?}");
        assert_eq!(code, Some(1002), "{bytes:?}");
    }
}

#[test]
fn the_servers_own_end_is_told_apart() {
    let (end, code) = after_upgrade(&[0x88, 6, 0x0f, 0xa0, b'w', b'h', b'y', b'!']);
    assert_eq!((end, code), (LinkEnd::Closed { code: 4000, reason: "why!".to_owned() }, Some(4000)));
    let (end, _) = after_upgrade(&[0x88, 0]);
    assert_eq!(end, LinkEnd::Closed { code: 1005, reason: String::new() });
    let (address, _) = socket_server(drop);
    let end = ended(&connected(address));
    assert!(matches!(end, LinkEnd::Lost { .. }), "{end:?}");
}

#[test]
fn what_was_sent_goes_out_before_the_close_and_before_the_end_of_the_node() {
    let (go, may_go) = channel::<()>();
    let (address, thread) = socket_server(move |mut socket| {
        may_go.recv().unwrap();
        let mut sizes = Vec::new();
        loop {
            match socket.read() {
                Ok(Message::Binary(data)) => sizes.push(data.len()),
                Ok(Message::Close(frame)) => return (sizes, frame.unwrap()),
                other => panic!("{other:?}"),
            }
        }
    });
    let rig = connected(address);
    for _ in 0..8 {
        send(&rig, vec![0; 1 << 20]);
    }
    close(&rig, 1012, "restart");
    go.send(()).unwrap();
    rig.finish();
    let (sizes, frame) = thread.join().unwrap();
    assert_eq!(sizes, [1 << 20; 8]);
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1012, "restart"));
}

#[test]
fn a_flood_of_pings_leaves_time_for_everybody_else() {
    let (stop, stopped) = channel::<()>();
    let (address, thread) = socket_server(move |mut socket| {
        let pings = [0x89, 0x00].repeat(8192);
        while stopped.try_recv().is_err() && socket.get_mut().write_all(&pings).is_ok() {
            // Its answers are read over, so that the flood does not end for want of room.
            let mut buffer = [0; 65536];
            socket.get_mut().set_nonblocking(true).unwrap();
            while matches!(socket.get_mut().read(&mut buffer), Ok(count) if count > 0) {}
            socket.get_mut().set_nonblocking(false).unwrap();
        }
    });
    let rig = connected(address);
    let mut client = TcpStream::connect(rig.api).unwrap();
    for _ in 0..20 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let Input::Local { id, .. } = rig.next() else { panic!("something else") };
        let response = LocalResponse { status: 204, headers: vec![], body: vec![] };
        rig.wants(Output::Respond { id, response });
        assert!(client.read(&mut [0; 1000]).unwrap() > 0);
    }
    assert!(!thread.is_finished(), "nothing else ran while the flood lasted");
    stop.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_server_that_does_not_read_is_given_up() {
    let (done, is_done) = channel::<()>();
    let (address, thread) = socket_server(move |socket| {
        let _ = is_done.recv();
        drop(socket);
    });
    let rig = connected(address);
    for _ in 0..300 {
        send(&rig, vec![0; 1 << 20]);
    }
    let end = ended(&rig);
    assert!(matches!(end, LinkEnd::Lost { .. }), "{end:?}");
    drop(done);
    thread.join().unwrap();
}
