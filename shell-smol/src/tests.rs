//! The runtime on real sockets, against servers that are as simple, or as bad, as each case needs. The blocking
//! runtime has the same tests: what they share is not tested twice, what each wrote for itself is.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_tungstenite::tungstenite::protocol::{Role, WebSocket};
use async_tungstenite::tungstenite::{self, Message};
use consensus_core::event::Level;
use consensus_core::io::{Audience, Fetch, FetchErrorKind, Input, LinkEnd, LinkId, OpenStage, Outcome};
use consensus_core::limits::Limits;
use consensus_core::node::{Config, Node};
use consensus_core::release::manifest::Manifest;
use shell_blocking::budget::Budget;
use shell_blocking::log::{Format, Log};
use shell_blocking::runtime_api::{Environment, Provider, Runtime as _};
use shell_blocking::state_dir::StateDir;
use shell_blocking::system;
use shell_blocking::tls::Tls;
use smol::channel::Receiver;
use smol::{Executor, Timer, future};

use crate::Smol;
use crate::link::Link;
use crate::runtime::Happened;

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
        serve(stream)
    });
    (address, thread)
}

fn accept(stream: TcpStream) -> WebSocket<TcpStream> {
    tungstenite::accept(stream).unwrap()
}

/// Runs `work` with a link to `url` and with what happens to it.
fn with_link<F: Future>(url: &str, work: impl FnOnce(Link, Receiver<Happened>) -> F) -> F::Output {
    let executor = Executor::new();
    let (happened, incoming) = smol::channel::bounded(64);
    let link = Link::open(&executor, LINK, url.to_owned(), Tls::default(), happened, Budget::default());
    let limit = async {
        Timer::after(PATIENCE).await;
        panic!("it took too long");
    };
    smol::block_on(executor.run(future::or(work(link, incoming), limit)))
}

fn on_server<F: Future>(address: &str, work: impl FnOnce(Link, Receiver<Happened>) -> F) -> F::Output {
    with_link(&format!("ws://{address}/node/tunnel"), work)
}

async fn next(incoming: &Receiver<Happened>) -> Input {
    match incoming.recv().await.unwrap() {
        Happened::Input(input) => input,
        Happened::Local { .. } => panic!("nobody listens"),
    }
}

async fn opened(incoming: &Receiver<Happened>) {
    assert_eq!(next(incoming).await, Input::LinkOpened { link: LINK });
}

async fn ended(incoming: &Receiver<Happened>) -> LinkEnd {
    match next(incoming).await {
        Input::LinkEnded { link: LINK, end } => end,
        other => panic!("{other:?}"),
    }
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
    on_server(&address, async |link, incoming| {
        opened(&incoming).await;
        for number in 0..COUNT {
            assert!(link.send(vec![number as u8; SIZE]));
        }
        for number in 0..COUNT {
            let data = vec![number as u8; SIZE];
            assert_eq!(next(&incoming).await, Input::LinkBinary { link: LINK, data });
        }
        link.close(1000, String::new()).await;
    });
    for (number, data) in thread.join().unwrap().into_iter().enumerate() {
        assert_eq!(data, vec![number as u8; SIZE]);
    }
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
    on_server(&address, async |link, incoming| {
        opened(&incoming).await;
        let text = "t\u{e9}xt".to_owned();
        assert_eq!(next(&incoming).await, Input::LinkText { link: LINK, text });
        drop(link);
    });
    assert_eq!(thread.join().unwrap(), Message::Pong(b"are you there"[..].into()));
}

#[test]
fn a_link_that_does_not_open_says_how_far_it_came() {
    let failed = |url: String| with_link(&url, async |_link, incoming| ended(&incoming).await);
    let stage = |url: String| match failed(url) {
        LinkEnd::Unopened { stage, .. } => stage,
        other => panic!("{other:?}"),
    };
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(stage(format!("ws://{gone}/")), OpenStage::Connect);
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

/// What the client makes of raw bytes after the upgrade, and the close code the server gets for them. The server
/// leaves its end open.
fn after_upgrade(bytes: &'static [u8]) -> (LinkEnd, Option<u16>) {
    let (address, thread) = server(move |stream| {
        let mut socket = accept(stream);
        socket.get_mut().write_all(bytes).unwrap();
        loop {
            match socket.read() {
                Ok(Message::Close(frame)) => return (socket, frame.map(|frame| frame.code.into())),
                Ok(_) => {}
                Err(_) => return (socket, None),
            }
        }
    });
    let end = on_server(&address, async |link, incoming| {
        opened(&incoming).await;
        let begun = Instant::now();
        let end = ended(&incoming).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "the node waits for nobody to hear it");
        link.ended().await;
        end
    });
    let (_socket, code) = thread.join().unwrap();
    (end, code)
}

#[test]
fn a_server_that_breaks_the_rules_is_told() {
    // 16 MiB and a byte, by its header alone.
    let (end, code) = after_upgrade(&[0x82, 127, 0, 0, 0, 0, 1, 0, 0, 1]);
    assert_eq!((end, code), (LinkEnd::TooLarge, Some(1009)));
    for bytes in [&[0x82, 0x81, 0, 0, 0, 0, 1][..], &[0x83, 0]] {
        let (end, code) = after_upgrade(bytes);
        assert!(matches!(end, LinkEnd::BadWebSocket { .. }), "{bytes:?}: {end:?}");
        assert_eq!(code, Some(1002), "{bytes:?}");
    }
}

#[test]
fn the_servers_own_end_is_told_apart() {
    let (end, code) = after_upgrade(&[0x88, 6, 0x0f, 0xa0, b'w', b'h', b'y', b'!']);
    assert_eq!((end, code), (LinkEnd::Closed { code: 4000, reason: "why!".to_owned() }, Some(4000)));
    let (address, thread) = server(|stream| drop(accept(stream)));
    let end = on_server(&address, async |_link, incoming| {
        opened(&incoming).await;
        ended(&incoming).await
    });
    assert!(matches!(end, LinkEnd::Lost { .. }), "{end:?}");
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
    on_server(&address, async |link, incoming| {
        opened(&incoming).await;
        for _ in 0..8 {
            assert!(link.send(vec![0; 1 << 20]));
        }
        link.close(1012, "restart".to_owned()).await;
    });
    let (sizes, frame) = thread.join().unwrap();
    assert_eq!(sizes, [1 << 20; 8]);
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1012, "restart"));
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
fn a_flood_of_pings_leaves_time_for_everybody_else() {
    let (address, thread) = server(flood);
    on_server(&address, async |link, incoming| {
        opened(&incoming).await;
        for _ in 0..3 {
            Timer::after(Duration::from_millis(50)).await;
        }
        assert!(!thread.is_finished(), "nothing else ran while the flood lasted");
        drop(link);
        drop(thread);
    });
}

#[test]
fn a_server_that_does_not_read_is_given_up() {
    let (address, thread) = server(|stream| {
        let socket = accept(stream);
        thread::sleep(Duration::from_secs(3));
        drop(socket);
    });
    on_server(&address, async |link, incoming| {
        opened(&incoming).await;
        let mut sent = 0;
        while link.send(vec![0; 1 << 20]) {
            sent += 1;
            assert!(sent < 300, "it must not queue for ever");
            future::yield_now().await;
        }
    });
    thread.join().unwrap();
}

fn fetched(change: impl FnOnce(&mut Fetch), url: String) -> Result<Vec<u8>, FetchErrorKind> {
    let mut request = Fetch {
        audience: Audience::Operator,
        method: "GET".to_owned(),
        url,
        headers: vec![],
        body: None,
        timeout: Duration::from_secs(10),
        max_body: 1 << 20,
    };
    change(&mut request);
    let fetched = smol::block_on(crate::fetch::fetch(&Tls::default(), request, &Budget::default()));
    fetched.map(|response| response.body).map_err(|error| error.kind)
}

#[test]
fn a_fetch_brings_what_the_server_says_or_why_it_does_not() {
    let answered = |answer: &'static [u8]| {
        let (address, _) = server(move |mut stream| {
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer).unwrap();
        });
        fetched(|_| {}, format!("http://{address}/"))
    };
    let chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert_eq!(answered(chunks), Ok(b"hi".to_vec()));
    assert_eq!(answered(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), Ok(b"until the end".to_vec()));
    assert_eq!(answered(b""), Err(FetchErrorKind::Protocol));
    assert_eq!(answered(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell"), Err(FetchErrorKind::Protocol));
    let large = b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n";
    assert_eq!(answered(large), Err(FetchErrorKind::TooLarge));
    assert_eq!(fetched(|_| {}, "http://name.invalid/".to_owned()), Err(FetchErrorKind::Resolve));
    assert_eq!(fetched(|_| {}, "ftp://127.0.0.1/".to_owned()), Err(FetchErrorKind::Url));
    let strange = |request: &mut Fetch| request.audience = Audience::Stranger;
    assert_eq!(fetched(strange, "http://localhost/".to_owned()), Err(FetchErrorKind::Forbidden));
    assert_eq!(fetched(strange, "http://[::1]/".to_owned()), Err(FetchErrorKind::Forbidden));

    let (address, _) = server(|mut stream| stream.read_to_end(&mut Vec::new()));
    let short = |request: &mut Fetch| request.timeout = Duration::from_millis(100);
    assert_eq!(fetched(short, format!("http://{address}/")), Err(FetchErrorKind::Timeout));
}

#[test]
fn an_answer_before_the_body_was_read_counts() {
    let (address, thread) = server(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").unwrap();
        // Nothing more is read: the body can never be written whole.
        thread::sleep(Duration::from_millis(300));
    });
    let upload = |request: &mut Fetch| {
        request.method = "POST".to_owned();
        request.body = Some(vec![0; 16 << 20]);
    };
    assert_eq!(fetched(upload, format!("http://{address}/")), Ok(b"no".to_vec()));
    thread.join().unwrap();
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
    let state_dir = std::env::temp_dir().join(format!("consensus-smol-{}", std::process::id()));
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
        Smol.drive(node, environment)
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
