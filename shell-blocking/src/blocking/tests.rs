//! The runtime on real sockets, against servers that are as simple, or as bad, as each case needs.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consensus_core::io::{Audience, Fetch, FetchErrorKind, Input, LinkId};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use super::*;
use crate::budget::Budget;
use crate::testing::{Rig, server};
use crate::tls::Tls;

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
    let rig = Rig::with_tls(tls);
    let link = LinkId(7);
    rig.wants(Output::OpenLink { link, url: format!("wss://{address}/node/tunnel") });
    assert_eq!(rig.next(), Input::LinkOpened { link });
    // All of the burst may sit decrypted in the TLS machine after one wake-up.
    for number in 0..COUNT {
        assert_eq!(rig.next(), Input::LinkBinary { link, data: vec![number as u8; 3] });
    }
    rig.wants(Output::Send { link, data: b"heard".to_vec() });
    rig.wants(Output::CloseLink { link, code: 1000, reason: "control stopped".to_owned() });
    rig.finish();
    let (echoed, closed) = thread.join().unwrap();
    assert_eq!(echoed, Message::Binary(b"heard"[..].into()));
    let frame = CloseFrame { code: CloseCode::Normal, reason: "control stopped".into() };
    assert_eq!(closed, Message::Close(Some(frame)));
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

fn answering(answer: &'static [u8]) -> (std::net::SocketAddr, JoinHandle<String>) {
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
