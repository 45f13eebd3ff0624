//! One accepted connection, as the orchestrator handles it: plain or TLS, shared between the halves that libraries
//! want, and able to give bytes back that were read too early.

use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_rustls::TlsStream;
use smol::Async;
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

/// The longest request head taken: async-h1's own limit.
const MAX_HEAD: usize = 8 * 1024;

enum Transport {
    Plain(Async<TcpStream>),
    Tls(Box<TlsStream<Async<TcpStream>>>),
}

struct Inner {
    /// What was read and given back; read again before the transport.
    prefix: Vec<u8>,
    transport: Transport,
}

/// A connection; clones are the same connection. It ends when the last clone is dropped.
#[derive(Clone)]
pub struct Conn(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Conn")
    }
}

impl Conn {
    /// A connection without TLS.
    #[must_use]
    pub fn plain(stream: Async<TcpStream>) -> Self {
        Self::new(Transport::Plain(stream))
    }

    /// A connection whose TLS handshake is done.
    #[must_use]
    pub fn tls(stream: impl Into<TlsStream<Async<TcpStream>>>) -> Self {
        Self::new(Transport::Tls(Box::new(stream.into())))
    }

    fn new(transport: Transport) -> Self {
        Self(Arc::new(Mutex::new(Inner { prefix: Vec::new(), transport })))
    }

    /// Reads one request head without consuming it. `None` at a clean end before its first byte.
    ///
    /// # Errors
    /// The transport failed, ended within the head, or the head is too long or not plain ASCII (a byte over 127
    /// in a header makes async-h1 panic, so it never gets to see one).
    pub async fn peek_head(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = Vec::new();
        let mut chunk = [0; 2048];
        loop {
            let count = self.read(&mut chunk).await?;
            if count == 0 {
                return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            head.extend_from_slice(&chunk[..count]);
            // A client that speaks TLS to us waits for an answer, and must not wait in vain.
            if !head[0].is_ascii_uppercase() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not HTTP"));
            }
            if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                let complete = head[..end + 4].to_vec();
                self.with(|inner| {
                    head.append(&mut inner.prefix);
                    inner.prefix = head;
                });
                if complete.len() > MAX_HEAD {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
                }
                if !complete.is_ascii() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "request head is not ASCII"));
                }
                return Ok(Some(complete));
            }
            if head.len() > MAX_HEAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
            }
        }
    }

    /// Takes what was read and given back: from then on it is the caller's.
    #[must_use]
    pub fn take_back(&self) -> Vec<u8> {
        self.with(|inner| std::mem::take(&mut inner.prefix))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.with(|inner| {
            if !inner.prefix.is_empty() {
                let count = buf.len().min(inner.prefix.len());
                buf[..count].copy_from_slice(&inner.prefix[..count]);
                inner.prefix.drain(..count);
                return Poll::Ready(Ok(count));
            }
            match &mut inner.transport {
                Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
                Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            }
        })
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|inner| match &mut inner.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|inner| match &mut inner.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        })
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|inner| match &mut inner.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_close(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_close(cx),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::io::AsyncWriteExt as _;

    fn pair() -> (Async<TcpStream>, Conn) {
        smol::block_on(async {
            let listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
            let client = Async::<TcpStream>::connect(listener.get_ref().local_addr().unwrap()).await.unwrap();
            (client, Conn::plain(listener.accept().await.unwrap().0))
        })
    }

    #[test]
    fn a_peeked_head_is_read_again_with_what_follows_it() {
        let (mut client, mut conn) = pair();
        smol::block_on(async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nrest").await.unwrap();
            drop(client);
            let head = conn.peek_head().await.unwrap().unwrap();
            assert_eq!(head, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            let mut all = Vec::new();
            conn.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"GET / HTTP/1.1\r\nhost: a\r\n\r\nrest");
        });
    }

    #[test]
    fn a_head_that_would_make_the_http_library_panic_is_refused() {
        let (mut client, mut conn) = pair();
        smol::block_on(async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: \xff\r\n\r\n").await.unwrap();
            assert!(conn.peek_head().await.is_err());
        });
    }

    #[test]
    fn an_endless_head_is_refused() {
        let (mut client, mut conn) = pair();
        smol::block_on(async {
            client.write_all(&[b'A'; 3 * MAX_HEAD]).await.unwrap();
            assert!(conn.peek_head().await.is_err());
        });
    }
}
