//! Fetches on real sockets. The blocking runtime has the same tests: what each wrote for itself is tested in both.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::Duration;

use consensus_core::io::{Audience, Fetch, FetchErrorKind};
use shell_blocking::budget::Budget;
use shell_blocking::tls::Tls;

use crate::testing::server;

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
