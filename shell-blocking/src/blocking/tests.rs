//! The runtime on real sockets, against servers that are as simple, or as bad, as each case needs.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::io::{Audience, Fetch, FetchErrorKind, Input, LinkEnd, LinkId, OpenStage, Outcome};
use consensus_core::limits::{Limits, MAX_MESSAGE};
use consensus_core::node::{Config, Node};
use consensus_core::release::manifest::Manifest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, WebSocket};

use super::link::{Link, Read, open};
use super::*;
use crate::budget::Budget;
use crate::log::{Format, Log};
use crate::state_dir::StateDir;
use crate::tls::Tls;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

const LINK: LinkId = LinkId(7);

/// A server for one connection.
fn server<T: Send + 'static>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        serve(stream)
    });
    (address, thread)
}

fn accept(stream: TcpStream) -> WebSocket<TcpStream> {
    tungstenite::accept(stream).unwrap()
}

fn connect(address: &str) -> Link {
    let socket = open(&format!("ws://{address}/node/tunnel"), &Tls::default(), &Arc::default()).unwrap();
    Link::new(LINK, socket, Budget::default())
}

/// Works a link as the run loop does, until it has something.
fn next(link: &mut Link) -> Read {
    let until = Instant::now() + PATIENCE;
    loop {
        if link.wants_to_write() {
            let _ = link.write();
        }
        match link.read() {
            Read::Nothing => {
                assert!(Instant::now() < until, "nothing came");
                thread::sleep(Duration::from_millis(1));
            }
            read => return read,
        }
    }
}

fn next_binary(link: &mut Link) -> Vec<u8> {
    match next(link) {
        Read::Input(Input::LinkBinary { link: LINK, data }) => data,
        other => panic!("{other:?}"),
    }
}

fn linger(mut link: Link) -> Duration {
    let begun = Instant::now();
    while link.linger() {
        thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

fn ended(link: &mut Link) -> LinkEnd {
    match next(link) {
        Read::End(end) => end,
        other => panic!("{other:?}"),
    }
}

/// A certificate for 127.0.0.1, as the server needs it and as a client that trusts it does.
fn tls_pair() -> (Arc<rustls::ServerConfig>, Tls) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let path = temporary("ca");
    std::fs::write(&path, certificate.pem()).unwrap();
    let tls = Tls::new(Some(&path)).unwrap();
    std::fs::remove_file(path).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (Arc::new(config), tls)
}

fn temporary(name: &str) -> PathBuf {
    let thread = thread::current().name().unwrap_or_default().replace(':', "-");
    std::env::temp_dir().join(format!("consensus-blocking-{}-{thread}-{name}", std::process::id()))
}

#[test]
fn messages_of_any_size_pass_both_ways_at_once() {
    // More than the system's buffers hold, so that both ends must write while they read.
    const COUNT: usize = 6;
    const SIZE: usize = 3 << 20;
    let (address, thread) = server(|stream| {
        let mut reader = accept(stream);
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
    let mut link = connect(&address);
    for number in 0..COUNT {
        link.send(vec![number as u8; SIZE]).unwrap();
    }
    for number in 0..COUNT {
        assert_eq!(next_binary(&mut link), vec![number as u8; SIZE]);
    }
    while link.wants_to_write() {
        link.write().unwrap();
    }
    for (number, data) in thread.join().unwrap().into_iter().enumerate() {
        assert_eq!(data, vec![number as u8; SIZE]);
    }
}

#[test]
fn over_tls_a_burst_is_read_whole_and_the_end_is_clean() {
    const COUNT: usize = 300;
    let (config, tls) = tls_pair();
    let (address, thread) = server(move |stream| {
        let connection = rustls::ServerConnection::new(config).unwrap();
        let mut socket = tungstenite::accept(rustls::StreamOwned::new(connection, stream)).unwrap();
        for number in 0..COUNT {
            socket.write(Message::Binary(vec![number as u8; 3].into())).unwrap();
        }
        socket.flush().unwrap();
        let echoed = socket.read().unwrap();
        let closed = socket.read().unwrap();
        let _ = socket.flush();
        // The connection ends here without a close_notify, as it does with many servers.
        (echoed, closed)
    });
    let url = format!("wss://{address}/node/tunnel");
    let socket = open(&url, &tls, &Arc::default()).unwrap();
    let mut link = Link::new(LINK, socket, Budget::default());
    // All of the burst may sit decrypted in the TLS machine after one wake-up.
    for number in 0..COUNT {
        assert_eq!(next_binary(&mut link), vec![number as u8; 3]);
    }
    link.send(b"heard".to_vec()).unwrap();
    link.close(1000, "control stopped");
    assert!(linger(link) < Duration::from_secs(2));
    let (echoed, closed) = thread.join().unwrap();
    assert_eq!(echoed, Message::Binary(b"heard"[..].into()));
    let frame = CloseFrame { code: CloseCode::Normal, reason: "control stopped".into() };
    assert_eq!(closed, Message::Close(Some(frame)));
}

#[test]
fn pings_are_answered_and_text_is_passed_on() {
    let (address, thread) = server(|stream| {
        let mut socket = accept(stream);
        socket.send(Message::Ping(b"are you there"[..].into())).unwrap();
        let pong = socket.read().unwrap();
        socket.send(Message::Text("t\u{e9}xt".into())).unwrap();
        let _ = socket.read();
        pong
    });
    let mut link = connect(&address);
    assert!(matches!(next(&mut link), Read::Input(Input::LinkText { text, .. }) if text == "t\u{e9}xt"));
    drop(link);
    assert_eq!(thread.join().unwrap(), Message::Pong(b"are you there"[..].into()));
}

#[test]
fn a_link_that_does_not_open_says_how_far_it_came() {
    let cancelled = Arc::<AtomicBool>::default;
    let failed = |url: &str| match open(url, &Tls::default(), &cancelled()).unwrap_err() {
        LinkEnd::Unopened { stage, .. } => stage,
        other => panic!("{other:?}"),
    };
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    assert_eq!(failed(&format!("ws://{gone}/")), OpenStage::Connect);
    assert_eq!(failed("ws://name.invalid/"), OpenStage::Resolve);
    let (address, _) = server(|mut stream| stream.write_all(b"220 mail.example ESMTP\r\n\r\n").unwrap());
    assert_eq!(failed(&format!("ws://{address}/")), OpenStage::Upgrade);
    let (address, _) = server(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        stream.write_all(b"HTTP/1.1 400 plain HTTP\r\n\r\n").unwrap();
    });
    assert_eq!(failed(&format!("wss://{address}/")), OpenStage::Tls);
    let (address, _) = server(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let refused = open(&format!("ws://{address}/"), &Tls::default(), &cancelled()).unwrap_err();
    assert_eq!(refused, LinkEnd::NotUpgraded { status: 403 });
}

#[test]
fn an_attempt_that_is_not_wanted_any_more_ends_soon() {
    let (address, thread) = server(|mut stream| {
        let mut request = Vec::new();
        let _ = stream.read_to_end(&mut request);
    });
    let cancelled = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancelled);
    let opening = thread::spawn(move || open(&format!("ws://{address}/"), &Tls::default(), &stop));
    thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    cancelled.store(true, Ordering::Relaxed);
    assert!(opening.join().unwrap().is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));
    thread.join().unwrap();
}

/// What the client makes of raw bytes after the upgrade, and the close code the server gets for them.
fn after_upgrade(bytes: &'static [u8]) -> (LinkEnd, Option<u16>) {
    let (address, thread) = server(move |stream| {
        let mut socket = accept(stream);
        socket.get_mut().write_all(bytes).unwrap();
        loop {
            match socket.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    });
    let mut link = connect(&address);
    let end = ended(&mut link);
    linger(link);
    (end, thread.join().unwrap())
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
    let (address, thread) = server(|stream| drop(accept(stream)));
    let mut link = connect(&address);
    assert!(matches!(ended(&mut link), LinkEnd::Lost { .. }));
    thread.join().unwrap();
}

#[test]
fn what_was_sent_goes_out_before_the_close() {
    let (address, thread) = server(|stream| {
        let mut socket = accept(stream);
        thread::sleep(Duration::from_millis(100));
        let mut sizes = Vec::new();
        loop {
            match socket.read() {
                Ok(Message::Binary(data)) => sizes.push(data.len()),
                Ok(Message::Close(frame)) => return (sizes, frame.unwrap()),
                other => panic!("{other:?}"),
            }
        }
    });
    let mut link = connect(&address);
    for _ in 0..8 {
        link.send(vec![0; 1 << 20]).unwrap();
    }
    // Too long a reason is cut between two characters.
    link.close(1012, &"\u{e9}".repeat(100));
    linger(link);
    let (sizes, frame) = thread.join().unwrap();
    assert_eq!(sizes, [1 << 20; 8]);
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1012, "\u{e9}".repeat(61).as_str()));
}

/// Sends pings for as long as the other side takes them, ten seconds at most.
fn flood(stream: TcpStream) {
    use std::io::Write as _;
    let mut socket = accept(stream);
    let pings = [0x89, 0x00].repeat(8192);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) && socket.get_mut().write_all(&pings).is_ok() {
        // Its answers are read over, so that the flood does not end for want of room.
        let mut buffer = [0; 65536];
        socket.get_mut().set_nonblocking(true).unwrap();
        while matches!(std::io::Read::read(socket.get_mut(), &mut buffer), Ok(count) if count > 0) {}
        socket.get_mut().set_nonblocking(false).unwrap();
    }
}

#[test]
fn a_flood_of_pings_ends_the_turn_and_does_not_keep_the_loop() {
    let (address, thread) = server(flood);
    let mut link = connect(&address);
    let until = Instant::now() + PATIENCE;
    for _ in 0..3 {
        link.begin_turn();
        loop {
            assert!(Instant::now() < until, "the flood kept the loop");
            match link.read() {
                Read::Nothing if link.is_unread() => break,
                Read::Nothing => thread::sleep(Duration::from_millis(1)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(!thread.is_finished(), "the flood ended before the turns");
    drop(link);
    thread.join().unwrap();
}

#[test]
fn a_server_that_does_not_read_or_answer_is_given_up() {
    let (address, thread) = server(|stream| {
        let socket = accept(stream);
        thread::sleep(Duration::from_secs(3));
        drop(socket);
    });
    let mut link = connect(&address);
    let mut sent = 0;
    let end = loop {
        match link.send(vec![0; 1 << 20]) {
            Ok(()) => sent += 1,
            Err(end) => break end,
        }
        assert!(sent < 300, "it must not queue for ever");
    };
    assert!(matches!(end, LinkEnd::Lost { .. }));
    let begun = Instant::now();
    link.close(1000, "");
    linger(link);
    assert!(begun.elapsed() < Duration::from_millis(2500));
    thread.join().unwrap();
}

fn request(url: String) -> Fetch {
    Fetch {
        audience: Audience::Operator,
        method: "GET".to_owned(),
        url,
        headers: vec![],
        body: None,
        timeout: Duration::from_secs(10),
        max_body: 1 << 20,
    }
}

fn fetched(request: Fetch) -> Result<Response, FetchError> {
    fetch::fetch(&Tls::default(), request, &Arc::default(), &Budget::default())
}

fn answering(answer: &'static [u8]) -> (String, JoinHandle<String>) {
    server(move |mut stream| {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        stream.write_all(answer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    })
}

#[test]
fn a_fetch_brings_what_the_server_says() {
    let (address, thread) =
        answering(b"HTTP/1.1 200 Fine\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    let response = fetched(request(format!("http://{address}/path?query"))).unwrap();
    assert_eq!((response.status, response.reason.as_str()), (200, "Fine"));
    assert_eq!(response.body, b"hi");
    let asked = thread.join().unwrap();
    assert_eq!(asked, format!("GET /path?query HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"));
}

#[test]
fn an_answer_before_the_body_was_read_counts() {
    let (address, thread) = server(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").unwrap();
        // Reads on a little, as servers do that want their answer to be read.
        let mut left = 4 << 20;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            match stream.read(&mut buffer) {
                Ok(length) if length > 0 => left -= length.min(left),
                _ => break,
            }
        }
    });
    let mut upload = request(format!("http://{address}/"));
    upload.method = "POST".to_owned();
    upload.body = Some(vec![0; 4 << 20]);
    let response = fetched(upload).unwrap();
    assert_eq!((response.status, response.body.as_slice()), (413, &b"no"[..]));
    thread.join().unwrap();
}

#[test]
fn a_fetch_that_fails_says_why() {
    let kind = |answer: &'static [u8]| {
        let (address, _) = answering(answer);
        fetched(request(format!("http://{address}/"))).unwrap_err().kind
    };
    assert_eq!(kind(b""), FetchErrorKind::Protocol);
    assert_eq!(kind(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell"), FetchErrorKind::Protocol);
    assert_eq!(kind(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n"), FetchErrorKind::TooLarge);
    assert_eq!(
        fetched(request("http://name.invalid/".to_owned())).unwrap_err().kind,
        FetchErrorKind::Resolve
    );
    assert_eq!(fetched(request("ftp://127.0.0.1/".to_owned())).unwrap_err().kind, FetchErrorKind::Url);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(fetched(request(format!("http://{gone}/"))).unwrap_err().kind, FetchErrorKind::Connect);
    let (address, _) = answering(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(fetched(request(format!("https://{address}/"))).unwrap_err().kind, FetchErrorKind::Tls);
}

#[test]
fn a_body_cut_off_under_tls_is_an_error_and_one_ended_in_order_is_whole() {
    for clean in [true, false] {
        let (config, tls) = tls_pair();
        let (address, thread) = server(move |stream| {
            let connection = rustls::ServerConnection::new(config).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").unwrap();
            if clean {
                stream.conn.send_close_notify();
            }
            stream.flush().unwrap();
        });
        let result =
            fetch::fetch(&tls, request(format!("https://{address}/")), &Arc::default(), &Budget::default());
        match result {
            Ok(response) => assert!(clean && response.body == b"until the end"),
            Err(error) => assert!(!clean && error.kind == FetchErrorKind::Protocol, "{error:?}"),
        }
        thread.join().unwrap();
    }
}

#[test]
fn a_fetch_ends_when_its_time_is_up_or_it_is_not_wanted() {
    let silent = || server(|mut stream| stream.read_to_end(&mut Vec::new()));
    let (address, _) = silent();
    let begun = Instant::now();
    let mut short = request(format!("http://{address}/"));
    short.timeout = Duration::from_millis(200);
    assert_eq!(fetched(short).unwrap_err().kind, FetchErrorKind::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(1));

    let (address, _) = silent();
    let cancelled = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancelled);
    let fetching = thread::spawn(move || {
        fetch::fetch(&Tls::default(), request(format!("http://{address}/")), &stop, &Budget::default())
    });
    thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    cancelled.store(true, Ordering::Relaxed);
    assert_eq!(fetching.join().unwrap().unwrap_err().kind, FetchErrorKind::Cancelled);
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_stranger_does_not_reach_this_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "[::ffff:127.0.0.1]"] {
        let mut strange = request(format!("http://{host}:{port}/"));
        strange.audience = Audience::Stranger;
        let error = fetched(strange).unwrap_err();
        assert_eq!(error.kind, FetchErrorKind::Forbidden, "{host}: {error:?}");
        assert!(!error.detail.contains("127."), "{error:?}");
    }
    assert!(listener.accept().is_err(), "nothing may have connected");
}

/// A log that can be read.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn the_local_api_serves_many_clients_and_a_signal_ends_it_all() {
    let lines = Lines::default();
    let log = Log::to_writer(Box::new(lines.clone()), Format::Json, Level::Debug);
    let state_dir = temporary("state");
    let config = Config {
        mode: None,
        tunnel_url: "ws://127.0.0.1:1/node/tunnel".to_owned(),
        server_key: None,
        identity_seed: [7; 32].into(),
        candidate_id: None,
        registration: None,
        manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
        limits: Limits::default(),
        allow_private_targets: false,
    };
    let environment = Environment {
        state_dir: StateDir::open(&state_dir).unwrap(),
        tls: Tls::default(),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        log,
    };
    let driving = thread::spawn(move || {
        let node = Node::new(config, Provider::default(), [9; 32], system::now());
        Blocking.drive(node, environment)
    });
    let begun = Instant::now();
    let address = loop {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        if let Some(rest) = text.split(r#""address":""#).nth(1) {
            break rest.split('"').next().unwrap().to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "{text}");
        thread::sleep(Duration::from_millis(1));
    };

    let health = format!("GET /health HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let answer = exchange(&address, health.repeat(3).as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answer}");
    assert_eq!(answer.matches(r#""healthy""#).count(), 3, "{answer}");
    let answer = exchange(&address, b"GET / HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let turns = format!("POST /benchmark/event-loop HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let answer = exchange(&address, turns.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ns_per_op"), "{answer}");

    // All places taken: one more is told so, and there is a place again when one leaves.
    let mut held: Vec<_> = (0..32).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let begun = Instant::now();
    while !exchange(&address, health.as_bytes()).contains("503 Service Unavailable") {
        assert!(begun.elapsed() < PATIENCE, "32 connections must be the most");
    }
    held.clear();
    let begun = Instant::now();
    while !exchange(&address, health.as_bytes()).contains("200 OK") {
        assert!(begun.elapsed() < PATIENCE, "a place must be free again");
        thread::sleep(Duration::from_millis(5));
    }

    signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
    let finish = driving.join().unwrap().unwrap();
    assert_eq!(finish.outcome, Outcome::Done);
    assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
    std::fs::remove_dir_all(state_dir).unwrap();
}
