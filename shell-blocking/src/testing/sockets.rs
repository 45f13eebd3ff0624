//! Connections to targets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use consensus_core::io::{Audience, FetchErrorKind, Input, Output, SocketEnd, SocketId};

use super::{PATIENCE, Rig, nobody, pattern, read_all, server};

const SOCKET: SocketId = SocketId(3);

fn open(socket: SocketId, host: &str, port: u16) -> Output {
    let (audience, timeout) = (Audience::Operator, Duration::from_secs(10));
    Output::OpenSocket { socket, audience, host: host.to_owned(), port, timeout }
}

fn open_to(rig: &Rig, target: SocketAddr) {
    rig.wants(open(SOCKET, &target.ip().to_string(), target.port()));
    assert_eq!(rig.next(), Input::SocketOpened { socket: SOCKET });
}

fn send(rig: &Rig, data: Vec<u8>) {
    rig.wants(Output::SendSocket { socket: SOCKET, data });
}

fn read(rig: &Rig, most: usize) -> Result<Vec<u8>, SocketEnd> {
    rig.wants(Output::ReadSocket { socket: SOCKET, most });
    match rig.next_but_sent() {
        Input::SocketData { socket: SOCKET, data } => {
            assert!(!data.is_empty() && data.len() <= most, "{} of {most}", data.len());
            Ok(data)
        }
        Input::SocketEnded { socket: SOCKET, end } => Err(end),
        other => panic!("{other:?}"),
    }
}

/// All that the target sends, and its end.
fn read_to_end(rig: &Rig, most: usize) -> (Vec<u8>, SocketEnd) {
    let mut all = Vec::new();
    loop {
        match read(rig, most) {
            Ok(data) => all.extend(data),
            Err(end) => return (all, end),
        }
    }
}

#[test]
fn bytes_pass_both_ways_and_are_read_as_far_as_that_is_allowed() {
    let rig = Rig::new();
    let (target, thread) = server(|mut stream| {
        stream.write_all(&pattern(100)).unwrap();
        let mut all = vec![0; 60];
        stream.read_exact(&mut all).unwrap();
        stream.write_all(&pattern(300_000)).unwrap();
        all
    });
    // What is sent before it is open is kept.
    rig.wants(open(SOCKET, "localhost", target.port()));
    send(&rig, pattern(10));
    assert_eq!(rig.next(), Input::SocketOpened { socket: SOCKET });
    let mut first = Vec::new();
    while first.len() < 100 {
        first.extend(read(&rig, 7).unwrap());
    }
    assert_eq!(first, pattern(100));
    for _ in 0..5 {
        send(&rig, pattern(10));
    }
    assert_eq!(read_to_end(&rig, 1 << 20), (pattern(300_000), SocketEnd::Closed));
    assert_eq!(thread.join().unwrap(), pattern(10).repeat(6));
    assert_eq!(rig.finish(), []);
}

#[test]
fn what_was_sent_is_told_as_the_target_takes_it() {
    const PIECES: usize = 200;
    const SIZE: usize = 100_000;
    let rig = Rig::new();
    let (go, may_go) = channel::<()>();
    let (target, thread) = server(move |stream| {
        may_go.recv().unwrap();
        read_all(stream).unwrap()
    });
    open_to(&rig, target);
    for _ in 0..PIECES {
        send(&rig, pattern(SIZE));
    }
    let mut sent = 0;
    let mut inputs = 0;
    while sent < PIECES * SIZE {
        let Input::SocketSent { socket: SOCKET, bytes } = rig.next() else { panic!("something else") };
        assert!(bytes > 0);
        sent += bytes;
        if inputs == 0 {
            // More than the system's buffers hold was given: not all of it can be gone.
            assert!(sent < PIECES * SIZE);
            go.send(()).unwrap();
        }
        inputs += 1;
    }
    assert_eq!(sent, PIECES * SIZE);
    rig.wants(Output::CloseSocket { socket: SOCKET });
    assert!(thread.join().unwrap() == pattern(SIZE).repeat(PIECES));
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_socket_that_does_not_open_says_why() {
    let rig = Rig::new();
    let kind = |output| {
        rig.wants(output);
        match rig.next() {
            Input::SocketEnded { end: SocketEnd::Unopened(error), .. } => error.kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kind(open(SOCKET, "127.0.0.1", nobody().port())), FetchErrorKind::Connect);
    assert_eq!(kind(open(SocketId(4), "name.invalid", 80)), FetchErrorKind::Resolve);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for (number, host) in ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"].into_iter().enumerate() {
        let Output::OpenSocket { host, port, timeout, .. } = open(SOCKET, host, port) else { unreachable!() };
        let (socket, audience) = (SocketId(5 + number as u64), Audience::Stranger);
        let strange = Output::OpenSocket { socket, audience, host, port, timeout };
        assert_eq!(kind(strange), FetchErrorKind::Forbidden);
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(rig.finish(), []);
}

#[test]
fn closing_writes_what_is_unsent_and_ends_in_good_order() {
    const SIZE: usize = 20_000_000;
    let rig = Rig::new();
    let (target, thread) = server(|mut stream| {
        // Never read by the node: a connection closed with this unread would be reset.
        stream.write_all(&pattern(50_000)).unwrap();
        read_all(stream)
    });
    open_to(&rig, target);
    send(&rig, pattern(SIZE));
    rig.wants(Output::CloseSocket { socket: SOCKET });
    send(&rig, pattern(1));
    let read = thread.join().unwrap().expect("it must not be reset");
    assert!(read == pattern(SIZE));
    // Nothing was told of it any more.
    assert!(rig.finish().iter().all(|input| matches!(input, Input::SocketSent { .. })));
}

#[test]
fn the_end_of_the_node_writes_what_was_sent_first() {
    const SIZE: usize = 8_000_000;
    let rig = Rig::new();
    let (target, thread) = server(read_all);
    open_to(&rig, target);
    send(&rig, pattern(SIZE));
    rig.wants(Output::CloseSocket { socket: SOCKET });
    rig.finish();
    assert!(thread.join().unwrap().unwrap() == pattern(SIZE));
}

#[test]
fn a_target_that_ends_its_half_still_gets_what_was_sent() {
    const SIZE: usize = 8_000_000;
    let rig = Rig::new();
    let (target, thread) = server(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(stream)
    });
    open_to(&rig, target);
    send(&rig, pattern(SIZE));
    assert_eq!(read_to_end(&rig, 1000), (b"bye".to_vec(), SocketEnd::Closed));
    assert!(thread.join().unwrap().unwrap() == pattern(SIZE));
    assert!(rig.finish().is_empty());
}

#[test]
fn what_a_target_said_before_it_broke_off_is_told() {
    let rig = Rig::new();
    let (target, thread) = server(|mut stream| {
        stream.read_exact(&mut [0; 10]).unwrap();
        stream.write_all(b"too much").unwrap();
        // Closed with unread data: that resets it.
    });
    open_to(&rig, target);
    send(&rig, pattern(10));
    send(&rig, pattern(30_000_000));
    thread.join().unwrap();
    let (said, end) = read_to_end(&rig, 1000);
    assert_eq!(said, b"too much");
    assert!(matches!(end, SocketEnd::Failed { .. }), "{end:?}");
    assert!(rig.finish().is_empty());
}

#[test]
fn an_attempt_that_is_closed_or_late_ends() {
    let rig = Rig::new();
    // Whether it is there already or not, it is no more.
    let (target, _) = server(read_all);
    rig.wants(open(SOCKET, "127.0.0.1", target.port()));
    rig.wants(Output::CloseSocket { socket: SOCKET });
    let Output::OpenSocket { socket, audience, host, port, .. } = open(SocketId(9), "127.0.0.1", 9) else {
        unreachable!()
    };
    rig.wants(Output::OpenSocket { socket, audience, host, port, timeout: Duration::ZERO });
    match rig.next() {
        Input::SocketEnded { socket: SocketId(9), end: SocketEnd::Unopened(error) } => {
            assert!([FetchErrorKind::Timeout, FetchErrorKind::Connect].contains(&error.kind), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.finish(), []);
}

#[test]
fn many_sockets_are_served_side_by_side() {
    const COUNT: u64 = 600;
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        // All are open before any is answered.
        let mut streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        for stream in &mut streams {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut said = [0; 8];
            stream.read_exact(&mut said).unwrap();
            stream.write_all(&said).unwrap();
        }
        streams
    });
    for number in 0..COUNT {
        rig.wants(open(SocketId(number), "127.0.0.1", port));
    }
    let (mut opened, mut echoed, mut ended) = (0, 0, 0);
    while echoed < COUNT {
        match rig.next_but_sent() {
            Input::SocketOpened { socket } => {
                opened += 1;
                rig.wants(Output::SendSocket { socket, data: socket.0.to_be_bytes().to_vec() });
                rig.wants(Output::ReadSocket { socket, most: 100 });
            }
            Input::SocketData { socket, data } => {
                assert_eq!(data, socket.0.to_be_bytes());
                echoed += 1;
                rig.wants(Output::ReadSocket { socket, most: 100 });
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(opened, COUNT);
    drop(serving.join().unwrap());
    while ended < COUNT {
        match rig.next_but_sent() {
            Input::SocketEnded { end: SocketEnd::Closed, .. } => ended += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.finish(), []);
}
