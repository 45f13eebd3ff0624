//! Exchanges with targets that are as simple, or as bad, as each case needs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::guard::Target;
use consensus_core::io::{
    Audience, Effect, EffectId, EffectResult, Fetch, FetchError, FetchErrorKind, Input, Output, Response,
};
use consensus_core::limits::Limits;
use consensus_core::proxy::{Proxies, Proxy};
use shell_blocking::runtime_api::Runtime as _;
use shell_blocking::state_dir::StateDir;
use shell_blocking::tls::Tls;

use super::{PATIENCE, Rig, environment, nobody, pattern, read_all, server, tls_pair};

/// A target that counts its connections.
struct Upstream {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// `serve` gets each connection with its number, from 0.
    fn start(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (Arc::clone(&connections), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, serve) = (stream.unwrap(), Arc::clone(&serve));
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || serve(number, stream));
            }
        });
        Self { address, connections }
    }

    /// Answers each request of each connection with what `answer` makes of it, until that is nothing.
    fn answering(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(move |_, mut stream| {
            while let Some(asked) = read_request(&mut stream) {
                let answer = answer(&asked);
                if answer.is_empty() || stream.write_all(&answer).is_err() {
                    return;
                }
            }
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A request: its head, and its body if there is one. Nothing where the other side has ended.
fn read_request(stream: &mut impl Read) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
        let digits = rest.split('\r').next().unwrap();
        digits.parse().unwrap()
    });
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn get(url: &str) -> Fetch {
    Fetch {
        audience: Audience::Operator,
        method: "GET".to_owned(),
        target: Target::parse(url).unwrap(),
        headers: vec![],
        body: None,
        bounds: Limits::default().bounds(1 << 20),
    }
}

fn post(url: &str, body: Vec<u8>) -> Fetch {
    Fetch { method: "POST".to_owned(), body: Some(body), ..get(url) }
}

fn begin(rig: &Rig, number: u64, fetch: Fetch) {
    rig.wants(Output::Perform { id: EffectId(number), effect: Effect::Fetch(fetch) });
}

fn done(rig: &Rig) -> (u64, Result<Response, FetchError>) {
    match rig.next() {
        Input::Done { effect, result: EffectResult::Fetched(result) } => (effect.0, result),
        other => panic!("{other:?}"),
    }
}

fn fetch(rig: &Rig, wanted: Fetch) -> Result<Response, FetchError> {
    begin(rig, 1, wanted);
    done(rig).1
}

/// What comes of one answer, with and without a run loop: each shell fetches for registrations without one.
fn answered(answer: &'static [u8]) -> Result<Response, FetchError> {
    answered_to("GET", answer)
}

fn answered_to(method: &str, answer: &'static [u8]) -> Result<Response, FetchError> {
    let upstream = Upstream::start(move |_, mut stream| {
        read_request(&mut stream).unwrap();
        let _ = stream.write_all(answer);
    });
    let wanted = Fetch { method: method.to_owned(), ..get(&upstream.url("/")) };
    let (environment, _) = environment(Tls::default(), StateDir::at(&std::env::temp_dir()));
    let alone = crate::Tested.fetch(&environment, &wanted);
    let rig = Rig::new();
    let result = fetch(&rig, wanted);
    assert_eq!(result, alone);
    assert_eq!(rig.finish(), []);
    result
}

fn kind(answer: &'static [u8]) -> FetchErrorKind {
    answered(answer).unwrap_err().kind
}

fn header<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    response.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

#[test]
fn a_request_is_sent_as_it_is_and_the_connection_serves_the_next() {
    let (tell, told) = channel();
    let upstream = Upstream::answering(move |asked| {
        tell.send(asked.to_owned()).unwrap();
        ok("hi")
    });
    let rig = Rig::new();
    let mut first = get(&upstream.url("/path?query"));
    first.headers = vec![("accept".to_owned(), "a/b".to_owned())];
    assert_eq!(fetch(&rig, first).unwrap().body, b"hi");
    assert_eq!(fetch(&rig, post(&upstream.url("/"), b"body".to_vec())).unwrap().body, b"hi");
    assert_eq!(fetch(&rig, get(&upstream.url("/"))).unwrap().body, b"hi");
    let address = upstream.address;
    assert_eq!(
        told.try_iter().collect::<Vec<_>>(),
        [
            format!("GET /path?query HTTP/1.1\r\nhost: {address}\r\naccept: a/b\r\n\r\n"),
            format!("POST / HTTP/1.1\r\nhost: {address}\r\ncontent-length: 4\r\n\r\nbody"),
            format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n"),
        ]
    );
    assert_eq!(upstream.connections(), 1);
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_connection_is_not_kept_where_that_is_not_safe() {
    for (answer, connections) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 1),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi", 2),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", 2),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi", 1),
        // Longer than it says: what follows is nobody's answer.
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", 2),
    ] {
        let upstream = Upstream::answering(move |_| answer.as_bytes().to_vec());
        let rig = Rig::new();
        for _ in 0..2 {
            assert_eq!(fetch(&rig, get(&upstream.url("/"))).unwrap().body, b"hi", "{answer}");
        }
        assert_eq!(upstream.connections(), connections, "{answer}");
    }
}

#[test]
fn a_kept_connection_that_has_ended_is_replaced() {
    // The first connection answers once, and ends when it is asked again: nobody can see that before.
    let (tell, told) = channel();
    let upstream = Upstream::start(move |number, mut stream| {
        let mut left = if number == 0 { 1 } else { usize::MAX };
        while let Some(asked) = read_request(&mut stream) {
            tell.send(asked.split(' ').next().unwrap().to_owned()).unwrap();
            if left == 0 {
                return;
            }
            left -= 1;
            stream.write_all(&ok("hi")).unwrap();
        }
    });
    let rig = Rig::new();
    for _ in 0..3 {
        assert_eq!(fetch(&rig, get(&upstream.url("/"))).unwrap().body, b"hi");
    }
    assert_eq!(upstream.connections(), 2);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["GET"; 4], "once more, and no more often");
    assert_eq!(rig.finish(), []);
}

#[test]
fn what_may_have_been_done_is_not_asked_for_again() {
    // Every connection answers once and ends when it is asked again.
    let upstream = Upstream::start(|_, mut stream| {
        read_request(&mut stream).unwrap();
        stream.write_all(&ok("hi")).unwrap();
        let _ = read_request(&mut stream);
    });
    let rig = Rig::new();
    fetch(&rig, get(&upstream.url("/"))).unwrap();
    let error = fetch(&rig, post(&upstream.url("/"), vec![])).unwrap_err();
    assert_eq!(error.kind, FetchErrorKind::Protocol, "{error:?}");
    assert_eq!(upstream.connections(), 1);

    // A new connection that ends without an answer is no old one.
    let upstream = Upstream::start(|_, mut stream| drop(read_request(&mut stream)));
    let error = fetch(&rig, get(&upstream.url("/"))).unwrap_err();
    assert_eq!(error.kind, FetchErrorKind::Protocol, "{error:?}");
    assert!(error.detail.contains("without an answer"), "{error:?}");
    assert_eq!(upstream.connections(), 1);
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_connection_that_the_target_has_closed_is_not_written_to() {
    let (tell, told) = channel();
    let upstream = Upstream::start(move |_, mut stream| {
        read_request(&mut stream).unwrap();
        stream.write_all(&ok("hi")).unwrap();
        drop(stream);
        tell.send(()).unwrap();
    });
    let rig = Rig::new();
    fetch(&rig, get(&upstream.url("/"))).unwrap();
    told.recv().unwrap();
    // Not even what must not be written twice has anything to fear.
    assert_eq!(fetch(&rig, post(&upstream.url("/"), b"once".to_vec())).unwrap().body, b"hi");
    assert_eq!(upstream.connections(), 2);
    assert_eq!(rig.finish(), []);
}

#[test]
fn chunks_are_joined_and_codings_of_the_content_are_left() {
    let upstream = Upstream::answering(|asked| {
        if asked.contains("/chunks") {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
              5;name=\"val;ue\"\r\nhello\r\n1 \r\n \r\n0a\r\nbig world!\r\n0;last\r\nx-sum: 1\r\nx-b: 2\r\n\r\n"
                .to_vec()
        } else {
            // Nobody looks whether it is gzip at all.
            [
                &b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\n"[..],
                b"\x1f\x8b\x08\0\xff\n",
            ]
            .concat()
        }
    });
    let rig = Rig::new();
    assert_eq!(fetch(&rig, get(&upstream.url("/chunks"))).unwrap().body, b"hello big world!");
    let packed = fetch(&rig, get(&upstream.url("/gzip"))).unwrap();
    assert_eq!(packed.body, b"\x1f\x8b\x08\0\xff\n");
    assert_eq!(header(&packed, "content-encoding"), ["gzip"]);
    assert_eq!(upstream.connections(), 1);
    assert_eq!(rig.finish(), []);
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    let upstream = Upstream::answering(|asked| {
        let status = asked.split(['/', ' ']).nth(2).unwrap();
        format!("HTTP/1.1 {status} x\r\ncontent-length: 1000\r\n\r\n").into_bytes()
    });
    let rig = Rig::new();
    let head = Fetch { method: "HEAD".to_owned(), ..get(&upstream.url("/200")) };
    for (wanted, status) in
        [(head, 200), (get(&upstream.url("/204")), 204), (get(&upstream.url("/304")), 304)]
    {
        let response = fetch(&rig, wanted).unwrap();
        assert_eq!((response.status, response.body.len()), (status, 0));
        assert_eq!(header(&response, "content-length"), ["1000"]);
    }
    assert_eq!(upstream.connections(), 1);
    assert_eq!(rig.finish(), []);
}

#[test]
fn interim_answers_are_passed_over_and_redirects_passed_on() {
    let response = answered(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
          HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\nset-cookie: a\r\nSet-Cookie: b\r\n\r\n",
    )
    .unwrap();
    assert_eq!((response.status, response.reason.as_str()), (302, "Found"));
    assert_eq!(header(&response, "location"), ["http://10.0.0.1/"]);
    assert!(header(&response, "link").is_empty());
    assert_eq!((header(&response, "set-cookie"), header(&response, "Set-Cookie")), (vec!["a"], vec!["b"]));
}

#[test]
fn an_answer_that_is_not_one_is_an_error() {
    for answer in [
        &b""[..],
        b"220 mail.example ESMTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: y",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ] {
        assert_eq!(kind(answer), FetchErrorKind::Protocol, "{}", answer.escape_ascii());
    }
    // Without a length it is whole when the connection ends.
    assert_eq!(answered(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").unwrap().body, b"until the end");
    assert_eq!(answered_to("POST", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap().body, b"hi");
}

#[test]
fn what_does_not_end_is_cut() {
    let rig = Rig::new();
    for (head, piece) in [
        ("HTTP/1.1 200 OK\r\n", "x: y\r\n"),
        ("HTTP/1.1 200 OK\r\nx: ", "y"),
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("", "\r\n"),
        ("HTTP/1.1 200 OK\r\n\r\n", "body"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "4\r\nbody\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4;", "extension"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", "trailer: 1\r\n"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1048577\r\n\r\n", ""),
    ] {
        let upstream = Upstream::start(move |_, mut stream| {
            read_request(&mut stream).unwrap();
            let pieces = piece.repeat(10_000);
            let mut more = stream.write_all(head.as_bytes());
            while more.is_ok() && !pieces.is_empty() {
                more = stream.write_all(pieces.as_bytes());
            }
            let _ = read_all(stream);
        });
        let error = fetch(&rig, get(&upstream.url("/"))).unwrap_err();
        assert_eq!(error.kind, FetchErrorKind::TooLarge, "{head:?} {piece:?}: {error:?}");
    }
    // The bound of a head may be lower.
    let upstream =
        Upstream::answering(|_| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(999)).into());
    let mut small = get(&upstream.url("/"));
    small.bounds.max_head = 1000;
    assert_eq!(fetch(&rig, small).unwrap_err().kind, FetchErrorKind::TooLarge);
    assert_eq!(rig.finish(), []);
}

#[test]
fn an_answer_before_the_body_was_read_counts() {
    const SIZE: usize = 16 << 20;
    let (done, over) = channel::<()>();
    let over = std::sync::Mutex::new(over);
    let (config, tls) = tls_pair();
    let upstream = Upstream::start(move |number, mut stream| {
        let refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
        let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        if number == 0 {
            let _ = stream.read(&mut [0; 100]).unwrap();
            stream.write_all(refusal).unwrap();
        } else {
            let mut secure = rustls::Stream::new(&mut connection, &mut stream);
            let _ = secure.read(&mut [0; 100]).unwrap();
            secure.write_all(refusal).unwrap();
        }
        // Nothing more is read while the other side waits: the body can never be written whole.
        let _ = over.lock().unwrap().recv();
    });
    let rig = Rig::with_tls(tls);
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{}/", upstream.address);
        let response = fetch(&rig, post(&url, vec![0; SIZE])).unwrap();
        assert_eq!((response.status, response.body.as_slice()), (413, &b"no"[..]));
        done.send(()).unwrap();
    }
    assert_eq!(upstream.connections(), 2, "one that takes no more is not kept");
    assert_eq!(rig.finish(), []);
}

/// Sends back what it reads, as it reads it.
fn echo(mut stream: impl Read + Write, length: usize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").unwrap();
    let (mut left, mut buffer) = (length, vec![0; 65_536]);
    while left > 0 {
        let count = stream.read(&mut buffer).unwrap();
        stream.write_all(&buffer[..count]).unwrap();
        left -= count;
    }
    stream.flush().unwrap();
}

#[test]
fn a_target_may_answer_while_it_reads() {
    // More than the system's buffers hold: whoever only writes, or only reads, stands still.
    const SIZE: usize = 24 << 20;
    let (config, tls) = tls_pair();
    let (plain, plain_thread) = server(|stream| echo(stream, SIZE));
    let (secure, secure_thread) = server(move |stream| {
        let connection = rustls::ServerConnection::new(config).unwrap();
        echo(rustls::StreamOwned::new(connection, stream), SIZE);
    });
    let rig = Rig::with_tls(tls);
    for url in [format!("http://{plain}/"), format!("https://{secure}/")] {
        let mut wanted = post(&url, pattern(SIZE));
        wanted.bounds.max_body = SIZE;
        assert!(fetch(&rig, wanted).unwrap().body == pattern(SIZE), "{url}");
    }
    plain_thread.join().unwrap();
    secure_thread.join().unwrap();
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_connection_over_tls_is_kept_and_its_end_tells_whole_from_cut_off() {
    let (config, tls) = tls_pair();
    let upstream = Upstream::start(move |_, stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        while let Some(asked) = read_request(&mut stream) {
            if asked.contains("/kept") {
                stream.write_all(&ok("hi")).unwrap();
                continue;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").unwrap();
            if asked.contains("/whole") {
                stream.conn.send_close_notify();
            }
            return stream.flush().unwrap();
        }
    });
    let rig = Rig::with_tls(tls.clone());
    let url = |path: &str| format!("https://{}{path}", upstream.address);
    for _ in 0..3 {
        assert_eq!(fetch(&rig, get(&url("/kept"))).unwrap().body, b"hi");
    }
    assert_eq!(upstream.connections(), 1);
    assert_eq!(fetch(&rig, get(&url("/whole"))).unwrap().body, b"until the end");
    assert_eq!(upstream.connections(), 1);
    let error = fetch(&rig, get(&url("/cut"))).unwrap_err();
    assert_eq!(error.kind, FetchErrorKind::Protocol, "{error:?}");
    assert_eq!(rig.finish(), []);
    // And without a run loop.
    let (environment, _) = environment(tls, StateDir::at(&std::env::temp_dir()));
    assert_eq!(crate::Tested.fetch(&environment, &get(&url("/kept"))).unwrap().body, b"hi");
}

#[test]
fn what_cannot_be_reached_says_why() {
    let rig = Rig::new();
    let failed = |wanted| fetch(&rig, wanted).unwrap_err();
    assert_eq!(failed(get("http://name.invalid/")).kind, FetchErrorKind::Resolve);
    assert_eq!(failed(get(&format!("http://{}/", nobody()))).kind, FetchErrorKind::Connect);
    let (address, _) = server(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        stream.write_all(b"HTTP/1.1 400 plain HTTP\r\n\r\n").unwrap();
    });
    assert_eq!(failed(get(&format!("https://{address}/"))).kind, FetchErrorKind::Tls);
    let mut unfit = get("http://127.0.0.1/");
    unfit.method = "CONNECT".to_owned();
    assert_eq!(failed(unfit).kind, FetchErrorKind::Url);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "[::ffff:127.0.0.1]", "localhost"] {
        let mut strange = get(&format!("http://{host}:{port}/"));
        strange.audience = Audience::Stranger;
        let error = failed(strange);
        assert_eq!(error.kind, FetchErrorKind::Forbidden, "{host}: {error:?}");
        assert!(!error.detail.contains("127."), "{error:?}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nothing may have connected");
    assert_eq!(rig.finish(), []);
}

#[test]
fn each_time_that_is_up_is_told_by_its_name() {
    let upstream = Upstream::start(|_, mut stream| {
        let asked = read_request(&mut stream).unwrap_or_default();
        if asked.contains("/begin") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
        }
        let _ = read_all(stream);
    });
    let rig = Rig::new();
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(30));
    for (url, times, words) in [
        (upstream.url("/silent"), [long, short, long], "the target did not answer within 0.1 s"),
        (upstream.url("/silent"), [long, long, short], "the target did not answer within 0.1 s"),
        (upstream.url("/begin"), [long, long, short], "the answer was not complete within 0.1 s"),
        (
            format!("https://{}/", upstream.address),
            [short, long, long],
            "no connection within 0.1 s: the other side",
        ),
        (format!("https://{}/", upstream.address), [long, long, short], "no connection within 0.1 s"),
    ] {
        let mut wanted = get(&url);
        [wanted.bounds.connect, wanted.bounds.first_byte, wanted.bounds.whole] = times;
        let (environment, _) = environment(Tls::default(), StateDir::at(&std::env::temp_dir()));
        let alone = crate::Tested.fetch(&environment, &wanted).unwrap_err();
        for error in [fetch(&rig, wanted).unwrap_err(), alone] {
            assert_eq!(error.kind, FetchErrorKind::Timeout, "{error:?}");
            assert!(error.detail.starts_with(words), "{words}: {error:?}");
        }
    }
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_target_that_stalls_costs_nobody_else_anything_and_can_be_given_up() {
    const STALLING: u64 = 200;
    let stalling = Upstream::start(|_, stream| drop(read_all(stream)));
    let upstream = Upstream::answering(|_| ok("hi"));
    let rig = Rig::new();
    for number in 0..STALLING {
        begin(&rig, 100 + number, get(&stalling.url("/")));
    }
    let begun = Instant::now();
    while stalling.connections() < STALLING as usize {
        assert!(begun.elapsed() < PATIENCE, "{} connections", stalling.connections());
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..3 {
        assert_eq!(fetch(&rig, get(&upstream.url("/"))).unwrap().body, b"hi");
    }
    for number in 0..STALLING {
        rig.wants(Output::Cancel { id: EffectId(100 + number) });
        let (id, result) = done(&rig);
        assert_eq!((id, result.unwrap_err().kind), (100 + number, FetchErrorKind::Cancelled));
    }
    // Whatever is left is ended with the node.
    begin(&rig, 1, get(&stalling.url("/")));
    assert_eq!(rig.finish(), []);
}

#[test]
fn one_that_is_given_up_while_it_connects_is_heard_of_once() {
    let silent = Upstream::start(|_, stream| drop(read_all(stream)));
    let rig = Rig::new();
    begin(&rig, 1, get(&format!("https://{}/", silent.address)));
    rig.wants(Output::Cancel { id: EffectId(1) });
    assert_eq!(done(&rig).1.unwrap_err().kind, FetchErrorKind::Cancelled);
    rig.wants(Output::Cancel { id: EffectId(1) });
    assert_eq!(rig.finish(), []);
}

#[test]
fn many_at_once_get_each_its_own_answer() {
    const COUNT: u64 = 100;
    let upstream = Upstream::answering(|asked| {
        let path = asked.split(' ').nth(1).unwrap();
        ok(&path.repeat(5000))
    });
    let rig = Rig::new();
    for _ in 0..2 {
        for number in 0..COUNT {
            begin(&rig, number, get(&upstream.url(&format!("/{number}"))));
        }
        for _ in 0..COUNT {
            let (number, result) = done(&rig);
            assert_eq!(result.unwrap().body, format!("/{number}").repeat(5000).as_bytes());
        }
    }
    assert!(upstream.connections() < 2 * COUNT as usize, "some were kept");
    assert_eq!(rig.finish(), []);
}

#[test]
fn a_proxy_that_says_nothing_ends_with_the_time_for_a_connection() {
    let (held, hold) = channel::<()>();
    let (address, serving) = server(move |mut stream| {
        let head = read_request(&mut stream);
        // Until the other side has given up.
        let _ = hold.recv();
        head
    });
    let proxy = Proxy::parse(&format!("http://{address}"), "HTTP_PROXY").unwrap();
    let (mut environment, _) = environment(Tls::default(), StateDir::at(&std::env::temp_dir()));
    environment.proxies = Arc::new(Proxies { http: Some(proxy), ..Proxies::default() });
    let mut wanted = get("http://server.invalid/");
    wanted.bounds.connect = Duration::from_millis(500);
    let error = crate::Tested.fetch(&environment, &wanted).unwrap_err();
    assert_eq!(error.kind, FetchErrorKind::Connect);
    assert!(
        error.detail.contains("did not answer") && error.detail.contains("HTTP_PROXY"),
        "{}",
        error.detail
    );
    drop(held);
    assert!(serving.join().unwrap().unwrap().starts_with("CONNECT server.invalid:80 HTTP/1.1\r\n"));
}
