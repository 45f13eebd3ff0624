//! Connections: resolve, connect, TLS.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::{Audience, OpenStage};
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use shell_blocking::dial::{
    ADDRESS_TIMEOUT, DialError, candidates, is_quiet, known, unconnected, unresolved,
};
use shell_blocking::names::Names;
use shell_blocking::tls::Tls;
use smol::io::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;
use smol::{Timer, future};

/// A connection, plain or over TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(crate) type Transport = Box<dyn Duplex>;

/// A connection to a target.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Whether nothing has come and nothing has ended since the last read.
    pub(crate) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(tcp) => is_quiet(tcp.as_fd()),
            Self::Tls(stream) => {
                let (tcp, tls) = stream.get_mut();
                let state = tls.process_new_packets();
                let nothing_read =
                    state.is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed());
                nothing_read && !tls.wants_write() && is_quiet(tcp.as_fd())
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_close(context),
            Self::Tls(stream) => Pin::new(stream).poll_close(context),
        }
    }
}

/// When a connection must be there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) until: Instant,
    /// How long that was at first, for telling.
    pub(crate) time: Duration,
}

impl Limit {
    /// What begins now and may take `time`.
    pub(crate) fn new(time: Duration) -> Self {
        Self { until: Instant::now() + time, time }
    }

    /// What comes of one stage, if it comes in time.
    async fn hold<T>(
        self,
        stage: OpenStage,
        work: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        let late = async {
            Timer::at(self.until).await;
            Err(DialError::Late(stage, self.time))
        };
        future::or(work, late).await
    }
}

/// Connects to `target` on behalf of `audience`.
pub(crate) async fn dial(
    target: &Target,
    audience: Audience,
    tls: &Tls,
    names: &Names,
    limit: Limit,
) -> Result<Wire, DialError> {
    let addresses = look_up(target, audience, names, limit).await?;
    dial_at(target, &addresses, tls, limit).await.map(|(wire, _)| wire)
}

/// Connects to one of these addresses of `target`; which one it was.
pub(crate) async fn dial_at(
    target: &Target,
    addresses: &[SocketAddr],
    tls: &Tls,
    limit: Limit,
) -> Result<(Wire, SocketAddr), DialError> {
    let (stream, address) = limit.hold(OpenStage::Connect, connect(target, addresses)).await?;
    let wire = match target.scheme {
        Scheme::Http => Wire::Plain(stream),
        Scheme::Https => {
            let (config, name) = tls.client(&target.host).map_err(DialError::Tls)?;
            let shake_hands = async {
                let shaken = TlsConnector::from(config).connect(name, stream).await;
                shaken.map_err(|error| DialError::Tls(shell_blocking::tls::describe(&error)))
            };
            Wire::Tls(Box::new(limit.hold(OpenStage::Tls, shake_hands).await?))
        }
    };
    Ok((wire, address))
}

/// Connects to a host on behalf of `audience`, without TLS.
pub(crate) async fn dial_tcp(
    host: &str,
    port: u16,
    audience: Audience,
    names: &Names,
    limit: Limit,
) -> Result<TcpStream, DialError> {
    let literal = host.parse().ok();
    let (host, path_and_query) = (host.to_owned(), String::new());
    let target = Target { scheme: Scheme::Http, host, port, path_and_query, literal };
    let addresses = look_up(&target, audience, names, limit).await?;
    limit.hold(OpenStage::Connect, connect(&target, &addresses)).await.map(|(stream, _)| stream)
}

/// The addresses to try for `target`: one look-up, and the guard.
pub(crate) async fn look_up(
    target: &Target,
    audience: Audience,
    names: &Names,
    limit: Limit,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Some(known) = known(target, audience, names) {
        return known;
    }
    let (tell, told) = smol::channel::bounded(1);
    // Whoever asked may have gone.
    names.look_up(&target.host, audience, move |answer| drop(tell.try_send(answer)));
    let answer = async { told.recv().await.map_err(|_| unresolved(target, "the resolver failed")) };
    match limit.hold(OpenStage::Resolve, answer).await? {
        Ok(found) => candidates(target, audience, &found),
        Err(error) => Err(unresolved(target, &error)),
    }
}

async fn connect(target: &Target, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut last = None;
    for (at, address) in addresses.iter().enumerate() {
        let connected = if at + 1 < addresses.len() {
            let timeout = async {
                Timer::after(ADDRESS_TIMEOUT).await;
                Err(io::ErrorKind::TimedOut.into())
            };
            future::or(TcpStream::connect(address), timeout).await
        } else {
            TcpStream::connect(address).await
        };
        match connected {
            Ok(stream) => {
                // Small messages must not wait for the answers to earlier ones; where it cannot be set, they do.
                let _ = stream.set_nodelay(true);
                return Ok((stream, *address));
            }
            Err(error) => last = Some(error),
        }
    }
    let last = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
    Err(unconnected(target, &last))
}
