//! A small HTTP server for nodes to fetch from.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_h1::server::{ConnectionStatus, Server};
use http_types::{Request, Response, StatusCode};

use crate::background::Background;
use crate::conn::Conn;

/// The largest body it makes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// A running upstream: `/b/<bytes>` gives that many bytes, `/echo` what it was sent, with `x-method` and
/// `x-user-agent` saying how.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    _background: Background,
}

impl Upstream {
    /// Starts one at a free port of this machine.
    ///
    /// # Errors
    /// No port to be had.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        let background = Background::start("upstream", listener, move |stream| {
            connection(Conn::plain(stream), Arc::clone(&counter))
        })?;
        Ok(Self { address, requests, _background: background })
    }

    /// The URL of a path of it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How many requests it answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// The first `count` bytes of what `/b/` gives: letters in an order that shows what is missing or twice.
#[must_use]
pub fn bytes(count: usize) -> Vec<u8> {
    static LETTERS: OnceLock<Vec<u8>> = OnceLock::new();
    let letters =
        LETTERS.get_or_init(|| (0u32..8192).flat_map(|n| format!("{n:07x}.").into_bytes()).collect());
    letters.iter().copied().cycle().take(count).collect()
}

async fn connection(mut conn: Conn, counter: Arc<AtomicU64>) {
    while let Ok(Some(_)) = conn.peek_head().await {
        let mut server = Server::new(conn.clone(), |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            answer(request)
        });
        match server.accept_one().await {
            Ok(ConnectionStatus::KeepAlive) => {}
            Ok(ConnectionStatus::Close) | Err(_) => return,
        }
    }
}

async fn answer(mut request: Request) -> http_types::Result<Response> {
    let path = request.url().path().to_owned();
    let mut response = Response::new(StatusCode::Ok);
    response.insert_header("content-type", "application/octet-stream");
    if let Some(count) = path.strip_prefix("/b/").and_then(|count| count.parse::<usize>().ok()) {
        response.set_body(bytes(count.min(MAX_BYTES)));
    } else if path == "/echo" {
        response.insert_header("x-method", request.method().as_ref());
        if let Some(agent) = request.header("user-agent") {
            response.insert_header("x-user-agent", agent.last().as_str());
        }
        response.set_body(request.body_bytes().await?);
    } else {
        response.set_status(StatusCode::NotFound);
        response.set_body("no such path");
    }
    Ok(response)
}
