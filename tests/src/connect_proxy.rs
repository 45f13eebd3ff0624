//! A proxy that makes tunnels (CONNECT), or refuses, or says nothing: for nodes that are to go through one.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::{Async, future};

use crate::background::Background;

/// The longest head it reads.
const MAX_HEAD: usize = 16 * 1024;

/// What it does with a request.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Makes the tunnel. The names of the table lead where it says; others are looked up.
    Tunnel(BTreeMap<String, SocketAddr>),
    /// Answers this and closes.
    Answer(String),
    /// Reads and never answers.
    Silent,
}

/// A running proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct ConnectProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _background: Background,
}

impl ConnectProxy {
    /// Starts one at a free port of this machine.
    ///
    /// # Errors
    /// No port to be had.
    pub fn start(manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        let background = Background::start("connect-proxy", listener, move |stream| {
            let (seen, manner) = (Arc::clone(&seen), manner.clone());
            async move {
                // A connection that breaks is over.
                let _ = serve(stream, &seen, &manner).await;
            }
        })?;
        Ok(Self { address, heads, _background: background })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The heads of the requests so far, whole.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(mut client: Async<TcpStream>, seen: &Mutex<Vec<String>>, manner: &Manner) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).await?;
        head.push(byte[0]);
        if head.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let authority = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let authority = authority.unwrap_or_default().to_owned();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    match manner {
        Manner::Silent => future::pending().await,
        Manner::Answer(answer) => {
            client.write_all(answer.as_bytes()).await?;
            client.close().await
        }
        Manner::Tunnel(names) => {
            let name = authority.rsplit_once(':').map_or("", |(name, _)| name);
            let address = match names.get(name) {
                Some(address) => *address,
                None => {
                    let found = smol::net::resolve(authority.as_str()).await?;
                    *found.first().ok_or(io::ErrorKind::AddrNotAvailable)?
                }
            };
            let server = Async::<TcpStream>::connect(address).await?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\nProxy-Agent: testbed\r\n\r\n").await?;
            future::try_zip(pass(&client, &server), pass(&server, &client)).await.map(|_| ())
        }
    }
}

/// Passes bytes one way until there are no more, and then says so.
async fn pass(mut from: &Async<TcpStream>, mut to: &Async<TcpStream>) -> io::Result<()> {
    smol::io::copy(&mut from, &mut to).await?;
    // The other direction may still be under way.
    to.get_ref().shutdown(std::net::Shutdown::Write)
}
