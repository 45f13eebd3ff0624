//! Connections: resolve, connect, TLS.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::{Audience, OpenStage};
use consensus_core::proxy::{Proxies, Proxy, Request};
use consensus_core::race::{self, HEAD_START};
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use shell_blocking::dial::{
    DialError, candidates, check_proxied, is_quiet, known, not_let_through, unconnected, unheard, unresolved,
};
use shell_blocking::names::Names;
use shell_blocking::tls::Tls;
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
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

/// Connects to `target` for the node itself: through a proxy, where there is one for it. What others ask for never goes
/// this way.
pub(crate) async fn dial(
    target: &Target,
    audience: Audience,
    proxies: &Proxies,
    tls: &Tls,
    names: &Names,
    limit: Limit,
) -> Result<Wire, DialError> {
    let connected = match proxies.of(target) {
        Some(proxy) => dial_through(proxy, target, audience, tls, names, limit).await,
        None => dial_at(target, &look_up(target, audience, names, limit).await?, tls, limit).await,
    };
    connected.map(|(wire, _)| wire)
}

/// Connects to one of these addresses of `target`; which one it was.
pub(crate) async fn dial_at(
    target: &Target,
    addresses: &[SocketAddr],
    tls: &Tls,
    limit: Limit,
) -> Result<(Wire, SocketAddr), DialError> {
    let (stream, address) = limit.hold(OpenStage::Connect, connect(target, addresses)).await?;
    Ok((secure(target, stream, tls, limit).await?, address))
}

/// Connects to `target` through `proxy`; at which address the proxy is.
pub(crate) async fn dial_through(
    proxy: &Proxy,
    target: &Target,
    audience: Audience,
    tls: &Tls,
    names: &Names,
    limit: Limit,
) -> Result<(Wire, SocketAddr), DialError> {
    check_proxied(target, audience)?;
    let tunnel = limit.hold(OpenStage::Proxy, tunnel(proxy, target, names, limit)).await;
    let (stream, address) = tunnel.map_err(|error| error.at(proxy))?;
    Ok((secure(target, stream, tls, limit).await?, address))
}

async fn tunnel(
    proxy: &Proxy,
    target: &Target,
    names: &Names,
    limit: Limit,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let at = proxy.target();
    let addresses = look_up(&at, Audience::Operator, names, limit).await?;
    let (mut stream, address) = connect(&at, &addresses).await?;
    let broken = |error: io::Error| unheard(proxy, &error);
    let mut request = Request::new(proxy, target);
    while !request.to_write().is_empty() {
        let written = stream.write(request.to_write()).await.map_err(broken)?;
        request.wrote(written);
    }
    let mut buffer = [0; 2048];
    loop {
        let count = stream.read(&mut buffer).await.map_err(broken)?;
        match request.received(&buffer[..count]) {
            Ok(true) => return Ok((stream, address)),
            Ok(false) => {}
            Err(refused) => return Err(not_let_through(&request, &refused)),
        }
    }
}

/// What the target's scheme wants on top of TCP.
async fn secure(target: &Target, stream: TcpStream, tls: &Tls, limit: Limit) -> Result<Wire, DialError> {
    match target.scheme {
        Scheme::Http => Ok(Wire::Plain(stream)),
        Scheme::Https => {
            let (config, name) = tls.client(&target.host).map_err(DialError::Tls)?;
            let shake_hands = async {
                let shaken = TlsConnector::from(config).connect(name, stream).await;
                shaken.map_err(|error| DialError::Tls(shell_blocking::tls::describe(&error)))
            };
            Ok(Wire::Tls(Box::new(limit.hold(OpenStage::Tls, shake_hands).await?)))
        }
    }
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

type Trying = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Tries the addresses, each with a head start before the next (RFC 8305); the first that takes a connection has it.
async fn connect(target: &Target, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut untried = race::order(addresses).into_iter();
    let mut trying: Vec<(SocketAddr, Trying)> = Vec::new();
    let mut next = Timer::after(HEAD_START);
    let mut last = None;
    let first = poll_fn(|context| {
        loop {
            let mut at = 0;
            while let Some((address, connecting)) = trying.get_mut(at) {
                match connecting.as_mut().poll(context) {
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok((stream, *address))),
                    Poll::Ready(Err(error)) => {
                        last = Some(error);
                        drop(trying.remove(at));
                        // The next one need not wait for this.
                        next.set_at(Instant::now());
                    }
                    Poll::Pending => at += 1,
                }
            }
            if untried.len() > 0 && (trying.is_empty() || Pin::new(&mut next).poll(context).is_ready()) {
                if let Some(address) = untried.next() {
                    trying.push((address, Box::pin(TcpStream::connect(address))));
                    next.set_after(HEAD_START);
                }
            } else if trying.is_empty() {
                return Poll::Ready(Err(last.take()));
            } else {
                return Poll::Pending;
            }
        }
    });
    match first.await {
        Ok((stream, address)) => {
            // Small messages must not wait for the answers to earlier ones; where it cannot be set, they do.
            let _ = stream.set_nodelay(true);
            Ok((stream, address))
        }
        Err(last) => {
            let last = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
            Err(unconnected(target, &last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PATIENCE, blackhole, nobody, server};

    #[test]
    fn an_address_that_works_is_reached_past_those_that_do_not() {
        let target = Target::parse("http://name.example/").unwrap();
        let (black, _held) = blackhole();
        let (good, accepted) = server(|_| ());
        let addresses = [nobody(), black, nobody(), good];
        let connected = Limit::new(PATIENCE).hold(OpenStage::Connect, connect(&target, &addresses));
        let (_, address) = smol::block_on(connected).unwrap();
        assert_eq!(address, good);
        accepted.join().unwrap();
    }

    #[test]
    fn where_no_address_works_it_ends_with_the_last_error_or_the_time() {
        let target = Target::parse("http://name.example/").unwrap();
        let error = smol::block_on(connect(&target, &[nobody(), nobody()])).unwrap_err();
        assert!(
            matches!(error, DialError::Connect(ref text) if text.contains("name.example:80: ")),
            "{error:?}"
        );
        let (black, _held) = blackhole();
        let short = Duration::from_millis(600);
        let addresses = [nobody(), black];
        let connected = Limit::new(short).hold(OpenStage::Connect, connect(&target, &addresses));
        assert_eq!(smol::block_on(connected).unwrap_err(), DialError::Late(OpenStage::Connect, short));
    }
}
