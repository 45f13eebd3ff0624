//! What targets answer, and what of it arrives at the other end of the tunnel.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use consensus_core::wire::base64;
use consensus_testbed::binaries::Shell;
use serde_json::{Value, json};

use crate::lab::{CONTROL, LONG, Lab, stop, with_both_shells};

with_both_shells! {
    connections_to_a_target_are_kept
    headers_are_one_string_a_name_and_cookies_are_kept_apart
    bodies_come_as_they_are_coded
    answers_without_a_body_are_whole
    targets_that_lie_about_lengths_are_told_from_those_that_do_not
    a_target_that_stalls_costs_its_own_time_alone
    a_target_may_answer_before_it_has_read_all
}

/// A target that answers every request by its path, and counts its connections.
struct Target {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Target {
    fn start(answer: fn(&str, &mut TcpStream) -> Option<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    while let Some(path) = read_path(&mut stream) {
                        let Some(answer) = answer(&path, &mut stream) else { return };
                        if stream.write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, connections }
    }

    fn get(&self, lab: &Lab, path: &str) -> Value {
        let answer = self.ask(lab, path, "GET");
        assert_eq!(answer.0, 200, "{}", answer.1);
        answer.1
    }

    fn ask(&self, lab: &Lab, path: &str, method: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.address);
        let answer = lab.proxy(&json!({ "target_url": url, "method": method }));
        (answer.status, answer.body)
    }
}

/// The path of a request without a body.
fn read_path(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned())
}

fn body(answer: &Value) -> Vec<u8> {
    base64::decode(answer["body"].as_str().unwrap()).unwrap()
}

fn connections_to_a_target_are_kept(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let target = Target::start(|path, _| {
        Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()).into_bytes())
    });
    for number in 0..20 {
        let path = format!("/{number}");
        assert_eq!(body(&target.get(&lab, &path)), path.as_bytes());
    }
    assert_eq!(target.connections.load(Ordering::SeqCst), 1);
    stop(node);
}

fn headers_are_one_string_a_name_and_cookies_are_kept_apart(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let target = Target::start(|_, _| {
        Some(
            b"HTTP/1.1 200 Fine\r\nVary: a\r\nSet-Cookie: a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT\r\nvary: b\r\n\
              set-cookie: b=2\r\nSET-COOKIE: c=3, d\r\nset-cookie: e=4\r\nX-Latin: caf\xe9\r\nContent-Length: 0\r\n\r\n"
                .to_vec(),
        )
    });
    let answer = target.get(&lab, "/");
    assert_eq!((&answer["status"], &answer["status_text"]), (&json!(200), &json!("Fine")));
    assert_eq!(
        answer["headers"],
        json!({
            "vary": "a, b", "x-latin": "caf\u{e9}", "content-length": "0",
            "set-cookie": "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
            "Set-cookie": "b=2", "sEt-cookie": "c=3, d", "SEt-cookie": "e=4",
        })
    );
    stop(node);
}

fn bodies_come_as_they_are_coded(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let target = Target::start(|path, _| {
        Some(match path {
            "/chunked" => b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n\
                  HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                  6;a=b\r\nhello \r\n5\r\nworld\r\n0\r\nx-sum: 1\r\n\r\n"
                .to_vec(),
            _ => b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\n\x1f\x8b\0\xff\n"
                .to_vec(),
        })
    });
    let answer = target.get(&lab, "/chunked");
    assert_eq!((&answer["status"], body(&answer)), (&json!(200), b"hello world".to_vec()));
    // The coding that was taken off is not named, and no interim answer has left anything.
    assert_eq!(answer["headers"], json!({ "trailer": "x-sum" }));
    let answer = target.get(&lab, "/gzip");
    assert_eq!(body(&answer), b"\x1f\x8b\0\xff\n");
    assert_eq!(answer["headers"]["content-encoding"], "gzip");
    assert_eq!(target.connections.load(Ordering::SeqCst), 1);
    stop(node);
}

fn answers_without_a_body_are_whole(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let target = Target::start(|path, _| {
        let status = path.trim_start_matches('/');
        let more =
            if status == "302" { "location: http://127.0.0.1:1/\r\ncontent-length: 0\r\n" } else { "" };
        let length = if status == "302" { "" } else { "content-length: 123\r\n" };
        Some(format!("HTTP/1.1 {status} x\r\n{more}{length}\r\n").into_bytes())
    });
    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 302)] {
        let (_, answer) = target.ask(&lab, &format!("/{status}"), method);
        assert_eq!((&answer["status"], &answer["body"]), (&json!(status), &json!("")), "{answer}");
        let length = if status == 302 { "0" } else { "123" };
        assert_eq!(answer["headers"]["content-length"], length);
        // Handed back, and not followed.
        assert!(status != 302 || answer["headers"]["location"] == "http://127.0.0.1:1/");
    }
    assert_eq!(target.connections.load(Ordering::SeqCst), 1);
    stop(node);
}

fn targets_that_lie_about_lengths_are_told_from_those_that_do_not(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let target = Target::start(|path, stream| {
        let answer: &[u8] = match path {
            "/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "/two" => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
            "/both" => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "/cut" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            "/none" => b"",
            "/junk" => b"\0\x01\x02\r\n\r\n",
            "/long" => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
            _ => b"HTTP/1.1 200 OK\r\n\r\nab",
        };
        stream.write_all(answer).unwrap();
        None
    });
    for path in ["/short", "/two", "/both", "/cut", "/none", "/junk"] {
        let (status, answer) = target.ask(&lab, path, "GET");
        assert_eq!((status, &answer["error"]), (502, &json!("proxy_failed")), "{path}: {answer}");
        assert!(answer["message"].as_str().unwrap().starts_with("the target broke HTTP"), "{path}: {answer}");
    }
    for path in ["/long", "/until-the-end", "/long"] {
        assert_eq!(body(&target.get(&lab, path)), b"ab", "{path}");
    }
    assert_eq!(lab.connections(), 1);
    stop(node);
}

fn a_target_that_stalls_costs_its_own_time_alone(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&[&CONTROL[..], &["--first-byte-seconds", "1", "--request-seconds", "2"]].concat());
    lab.ready(&node, 1);
    let target = Target::start(|path, stream| match path {
        "/silent" => {
            let _ = stream.read(&mut [0]);
            None
        }
        "/half" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
            let _ = stream.read(&mut [0]);
            None
        }
        _ => Some(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec()),
    });
    let (lab, target) = (&lab, &target);
    thread::scope(|scope| {
        let stalled: Vec<_> = (0..100)
            .map(|number| {
                let path = if number % 2 == 0 { "/silent" } else { "/half" };
                scope.spawn(move || (path, target.ask(lab, path, "GET")))
            })
            .collect();
        let begun = std::time::Instant::now();
        while target.connections.load(Ordering::SeqCst) < 100 {
            assert!(begun.elapsed() < LONG);
            thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(body(&target.get(lab, "/")), b"hi");
        assert!(stalled.iter().any(|thread| !thread.is_finished()), "the others are still being waited for");
        for thread in stalled {
            let (path, (status, answer)) = thread.join().unwrap();
            let message = answer["message"].as_str().unwrap();
            // The node's own clock may be the one that is first when the whole time is up.
            let words: &[&str] = match path {
                "/silent" => &["the target did not answer within 1 s"],
                _ => &["the answer was not complete within 2 s", "no answer within 2 s"],
            };
            assert_eq!(status, 502, "{answer}");
            assert!(words.iter().any(|words| message.contains(words)), "{path}: {answer}");
        }
    });
    stop(node);
}

fn a_target_may_answer_before_it_has_read_all(shell: Shell) {
    let lab = Lab::new(shell);
    // A message of that size takes a debug build longer than a server may be silent in the other tests.
    let node = lab.start(&["control", "--allow-private-targets"]);
    lab.ready(&node, 1);
    let target = Target::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").unwrap();
        // Reads no more, for as long as this process lives.
        loop {
            thread::park();
        }
    });
    let url = format!("http://{}/", target.address);
    let large = "x".repeat(6 << 20);
    let answer = lab.proxy(&json!({ "target_url": url, "method": "POST", "body": large }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!((&answer.body["status"], body(&answer.body)), (&json!(413), b"no".to_vec()));
    stop(node);
}
