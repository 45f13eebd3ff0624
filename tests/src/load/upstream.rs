//! What nodes fetch from while they are measured: as little work as an HTTP/1.1 server can do.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use consensus_core::io::Response;
use smol::Async;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::lock::Barrier;

use crate::background::Background;
use crate::upstream::bytes;

/// The longest head of a request that is read.
const MAX_HEAD: usize = 8 * 1024;

/// A server that answers every request of a connection with the same bytes, in one write.
#[derive(Debug)]
pub(super) struct Upstream {
    address: SocketAddr,
    size: usize,
    _background: Background,
}

impl Upstream {
    /// Starts one, in a thread of its own, that gives `size` bytes: to nobody until `together` have asked for them.
    pub(super) fn start(size: usize, together: usize) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let Response { status, reason, headers, body } = response(size);
        let mut response = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
        for (name, value) in headers {
            response.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        response.extend(b"\r\n");
        response.extend(body);
        let response = Arc::<[u8]>::from(response);
        let gate = Arc::new(Barrier::new(together));
        let background = Background::start("load-upstream", listener, move |stream| {
            let (response, gate) = (Arc::clone(&response), Arc::clone(&gate));
            async move {
                // A node that closes a connection is no failure of the measurement.
                let _ = serve(stream, &response, &gate).await;
            }
        })?;
        Ok(Self { address, size, _background: background })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What it answers.
    pub(super) fn response(&self) -> Response {
        response(self.size)
    }
}

fn response(size: usize) -> Response {
    let headers =
        [("content-type", String::from("application/octet-stream")), ("content-length", size.to_string())];
    Response {
        status: 200,
        reason: String::from("OK"),
        headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        body: bytes(size),
    }
}

async fn serve(mut stream: Async<TcpStream>, response: &[u8], gate: &Barrier) -> io::Result<()> {
    let mut head = [0; MAX_HEAD];
    let mut length = 0;
    loop {
        let count = stream.read(&mut head[length..]).await?;
        if count == 0 {
            return Ok(());
        }
        length += count;
        // Requests here have no body, and none follows before the answer to the one before.
        if head[..length].ends_with(b"\r\n\r\n") {
            gate.wait().await;
            stream.write_all(response).await?;
            length = 0;
        }
    }
}
