//! Connections made by a thread that may block: look-up, TCP, TLS, each within one deadline and ended by a flag.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::{Audience, OpenStage};
use consensus_core::proxy::{Proxies, Proxy, Request};
use consensus_core::race::{self, HEAD_START};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType};
use rustls::ClientConnection;
use rustls::pki_types::CertificateDer;

use crate::dial::{
    DialError, candidates, check_proxied, is_quiet, known, not_let_through, unconnected, unheard, unresolved,
};
use crate::names::Names;
use crate::tls::{self, Tls};

/// How long a blocking call goes on before it looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(500);

/// When something must be over, and whether it is still wanted.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Then it is late.
    pub until: Instant,
    /// How long that was at first, for telling.
    pub time: Duration,
    /// Set by whoever no longer wants it.
    pub cancelled: Arc<AtomicBool>,
}

impl Limit {
    /// What begins now and may take `time`.
    #[must_use]
    pub fn new(time: Duration, cancelled: &Arc<AtomicBool>) -> Self {
        Self { until: Instant::now() + time, time, cancelled: Arc::clone(cancelled) }
    }

    /// Whether it is no longer wanted.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The error of a stage, or that the time was up in it.
    fn judge(&self, stage: OpenStage, error: DialError) -> DialError {
        if Instant::now() >= self.until { DialError::Late(stage, self.time) } else { error }
    }

    /// How long the next blocking call may take.
    fn slice(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if self.is_cancelled() {
            Err(io::Error::other("no longer wanted"))
        } else if left.is_zero() {
            Err(ErrorKind::TimedOut.into())
        } else {
            Ok(left.min(SLICE))
        }
    }
}

/// A TCP connection whose blocking reads and writes keep to a limit. Without one it is the plain connection.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    limit: Option<Limit>,
    /// What the system's read and write timeouts are set to; nothing at first.
    set: (Duration, Duration),
}

impl Tcp {
    fn new(stream: TcpStream, limit: Limit) -> Self {
        Self { stream, limit: Some(limit), set: (Duration::ZERO, Duration::ZERO) }
    }

    /// One whose reads and writes do not block.
    ///
    /// # Errors
    /// The system's.
    pub fn nonblocking(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, limit: None, set: (Duration::ZERO, Duration::ZERO) })
    }

    /// From here on reads and writes block for as long as `limit` says.
    pub fn keep_to(&mut self, limit: Limit) {
        self.limit = Some(limit);
    }

    /// From here on reads and writes do not block.
    fn set_nonblocking(&mut self) -> io::Result<()> {
        self.limit = None;
        self.stream.set_nonblocking(true)
    }

    /// Ends one direction, or both.
    pub fn shutdown(&self, how: Shutdown) {
        // One that is closed already is what was wanted.
        let _ = self.stream.shutdown(how);
    }
}

/// Whether an error says that a blocking call's time was up.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

impl Read for Tcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(limit) = &self.limit else { return self.stream.read(buffer) };
        loop {
            let slice = limit.slice()?;
            if self.set.0 != slice {
                self.stream.set_read_timeout(Some(slice))?;
                self.set.0 = slice;
            }
            match self.stream.read(buffer) {
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Tcp {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(limit) = &self.limit else { return self.stream.write(buffer) };
        loop {
            let slice = limit.slice()?;
            if self.set.1 != slice {
                self.stream.set_write_timeout(Some(slice))?;
                self.set.1 = slice;
            }
            match self.stream.write(buffer) {
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection, plain or over TLS.
#[derive(Debug)]
pub enum Transport {
    /// As it is.
    Plain(Tcp),
    /// Over TLS.
    Tls(Box<TlsStream>),
}

/// TLS over TCP. Unlike rustls' own stream it reads while what it has to write does not go out: the other side may
/// wait for just that.
#[derive(Debug)]
pub struct TlsStream {
    tls: ClientConnection,
    tcp: Tcp,
}

impl TlsStream {
    fn shake_hands(tls: ClientConnection, tcp: Tcp) -> io::Result<Self> {
        let mut stream = Self { tls, tcp };
        while stream.tls.is_handshaking() {
            stream.tls.complete_io(&mut stream.tcp)?;
        }
        stream.flush()?;
        Ok(stream)
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            // An end is told by the reader, which knows whether it was in order.
            self.tls.read_tls(&mut self.tcp)?;
            if let Err(error) = self.tls.process_new_packets() {
                // The alert that says why, if it goes out.
                let _ = self.flush();
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // What was taken before must go out before more is taken: that is what bounds it.
        self.flush()?;
        let taken = self.tls.writer().write(buffer)?;
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut self.tcp)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Transport {
    /// The TCP connection below.
    pub fn tcp(&mut self) -> &mut Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(stream) => &mut stream.tcp,
        }
    }

    /// The certificates that the other side showed, its own first; `None` without TLS.
    #[must_use]
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.tls.peer_certificates(),
        }
    }

    /// From here on reads and writes do not block.
    ///
    /// # Errors
    /// The system's.
    pub fn set_nonblocking(&mut self) -> io::Result<()> {
        self.tcp().set_nonblocking()
    }

    /// Whether something that was written has yet to be [flushed](Write::flush).
    #[must_use]
    pub fn is_unflushed(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.tls.wants_write(),
        }
    }

    /// Whether nothing has come and nothing has ended since the last read.
    pub fn is_quiet(&mut self) -> bool {
        let nothing_read = match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => {
                let state = stream.tls.process_new_packets();
                state.is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed())
            }
        };
        nothing_read && is_quiet(self.as_fd())
    }

    /// Says that nothing more will be written.
    pub fn end_writing(&mut self) {
        if let Self::Tls(stream) = self {
            stream.tls.send_close_notify();
            // On a connection that takes no more, the other side learns it by the end of that.
            let _ = stream.flush();
        }
        self.tcp().shutdown(Shutdown::Write);
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(tcp) => tcp.stream.as_fd(),
            Self::Tls(stream) => stream.tcp.stream.as_fd(),
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Connects to a host on behalf of `audience`, without TLS. Reads and writes of what it gives do not block.
///
/// # Errors
/// How far it came.
pub fn dial_tcp(
    host: &str,
    port: u16,
    audience: Audience,
    names: &Names,
    limit: &Limit,
) -> Result<TcpStream, DialError> {
    let literal = host.parse().ok();
    let (host, path_and_query) = (host.to_owned(), String::new());
    let target = Target { scheme: Scheme::Http, host, port, path_and_query, literal };
    let (mut tcp, _) = connect(&target, &look_up(&target, audience, names, limit)?, limit)?;
    tcp.set_nonblocking().map_err(|error| unconnected(&target, &error))?;
    Ok(tcp.stream)
}

/// Connects to `target` for the node itself: through a proxy, where there is one for it. What others ask for never goes
/// this way.
///
/// # Errors
/// How far it came.
pub fn dial(
    target: &Target,
    audience: Audience,
    proxies: &Proxies,
    tls: &Tls,
    names: &Names,
    limit: &Limit,
) -> Result<Transport, DialError> {
    let connected = match proxies.of(target) {
        Some(proxy) => dial_through(proxy, target, audience, tls, names, limit),
        None => dial_at(target, &look_up(target, audience, names, limit)?, tls, limit),
    };
    connected.map(|(transport, _)| transport)
}

/// Connects to one of these addresses of `target`; which one it was.
///
/// # Errors
/// How far it came.
pub fn dial_at(
    target: &Target,
    addresses: &[SocketAddr],
    tls: &Tls,
    limit: &Limit,
) -> Result<(Transport, SocketAddr), DialError> {
    let (tcp, address) = connect(target, addresses, limit)?;
    Ok((secure(target, tcp, tls, limit)?, address))
}

/// Connects to `target` through `proxy`; at which address the proxy is.
///
/// # Errors
/// How far it came.
pub fn dial_through(
    proxy: &Proxy,
    target: &Target,
    audience: Audience,
    tls: &Tls,
    names: &Names,
    limit: &Limit,
) -> Result<(Transport, SocketAddr), DialError> {
    check_proxied(target, audience)?;
    let (tcp, address) = tunnel(proxy, target, names, limit).map_err(|error| error.at(proxy))?;
    Ok((secure(target, tcp, tls, limit)?, address))
}

fn tunnel(
    proxy: &Proxy,
    target: &Target,
    names: &Names,
    limit: &Limit,
) -> Result<(Tcp, SocketAddr), DialError> {
    let at = proxy.target();
    let (mut tcp, address) = connect(&at, &look_up(&at, Audience::Operator, names, limit)?, limit)?;
    let broken = |error: io::Error| limit.judge(OpenStage::Proxy, unheard(proxy, &error));
    let mut request = Request::new(proxy, target);
    while !request.to_write().is_empty() {
        let written = tcp.write(request.to_write()).map_err(broken)?;
        request.wrote(written);
    }
    let mut buffer = [0; 2048];
    loop {
        let count = tcp.read(&mut buffer).map_err(broken)?;
        match request.received(&buffer[..count]) {
            Ok(true) => return Ok((tcp, address)),
            Ok(false) => {}
            Err(refused) => return Err(not_let_through(&request, &refused)),
        }
    }
}

/// What the target's scheme wants on top of TCP.
fn secure(target: &Target, tcp: Tcp, tls: &Tls, limit: &Limit) -> Result<Transport, DialError> {
    match target.scheme {
        Scheme::Http => Ok(Transport::Plain(tcp)),
        Scheme::Https => {
            let (config, name) = tls.client(&target.host).map_err(DialError::Tls)?;
            let connection =
                ClientConnection::new(config, name).map_err(|error| DialError::Tls(error.to_string()))?;
            let stream = TlsStream::shake_hands(connection, tcp)
                .map_err(|error| limit.judge(OpenStage::Tls, DialError::Tls(tls::describe(&error))))?;
            Ok(Transport::Tls(Box::new(stream)))
        }
    }
}

/// TLS over a connection to `target` that is there and keeps to a limit, with the error as TLS has it: for who wants to
/// know what is wrong with a certificate.
///
/// # Errors
/// The handshake's.
pub fn secure_with(target: &Target, tcp: Tcp, tls: &Tls) -> io::Result<Transport> {
    let (config, name) = tls.client(&target.host).map_err(io::Error::other)?;
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    Ok(Transport::Tls(Box::new(TlsStream::shake_hands(connection, tcp)?)))
}

/// The addresses to try for `target`: one look-up, and the guard.
///
/// # Errors
/// How far it came.
pub fn look_up(
    target: &Target,
    audience: Audience,
    names: &Names,
    limit: &Limit,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Some(known) = known(target, audience, names) {
        return known;
    }
    let late = |error: io::Error| limit.judge(OpenStage::Resolve, unresolved(target, &error.to_string()));
    let (tell, told) = mpsc::sync_channel(1);
    // Whoever asked may have gone.
    names.look_up(&target.host, audience, move |answer| drop(tell.try_send(answer)));
    loop {
        match told.recv_timeout(limit.slice().map_err(late)?) {
            Ok(Ok(found)) => return candidates(target, audience, &found),
            Ok(Err(error)) => return Err(unresolved(target, &error)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(unresolved(target, "the resolver failed")),
        }
    }
}

fn connect(target: &Target, addresses: &[SocketAddr], limit: &Limit) -> Result<(Tcp, SocketAddr), DialError> {
    connect_any(addresses, limit)
        .map_err(|error| limit.judge(OpenStage::Connect, unconnected(target, &error)))
}

/// Tries the addresses, each with a head start before the next (RFC 8305); the first that takes a connection has it.
fn connect_any(addresses: &[SocketAddr], limit: &Limit) -> io::Result<(Tcp, SocketAddr)> {
    let mut untried = race::order(addresses).into_iter();
    let mut trying: Vec<(OwnedFd, SocketAddr)> = Vec::new();
    let mut next = Instant::now();
    let mut last = None;
    loop {
        let slice = limit.slice()?;
        let now = Instant::now();
        if trying.is_empty() || now >= next {
            if let Some(address) = untried.next() {
                match begin(address) {
                    Ok(socket) => {
                        trying.push((socket, address));
                        next = now + HEAD_START;
                    }
                    Err(error) => last = Some(error),
                }
                continue;
            }
        }
        if trying.is_empty() {
            return Err(last.unwrap_or_else(|| ErrorKind::AddrNotAvailable.into()));
        }
        let time = if untried.len() > 0 { slice.min(next.saturating_duration_since(now)) } else { slice };
        for at in ready(&trying, time)?.into_iter().rev() {
            let (socket, address) = trying.remove(at);
            match rustix::net::sockopt::socket_error(&socket)? {
                Ok(()) => {
                    let stream = TcpStream::from(socket);
                    stream.set_nonblocking(false)?;
                    // Small messages must not wait for the answers to earlier ones; where it cannot be set, they do.
                    let _ = stream.set_nodelay(true);
                    return Ok((Tcp::new(stream, limit.clone()), address));
                }
                Err(error) => {
                    last = Some(error.into());
                    // The next one need not wait for this.
                    next = now;
                }
            }
        }
    }
}

/// Begins to connect, without waiting for it.
fn begin(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Which of them are connected, or have failed; waits for the first one, but no longer than `time`.
fn ready(trying: &[(OwnedFd, SocketAddr)], time: Duration) -> io::Result<Vec<usize>> {
    let mut fds: Vec<_> = trying.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::OUT)).collect();
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    match poll(&mut fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok((0..fds.len()).filter(|at| !fds[*at].revents().is_empty()).collect())
}

#[cfg(test)]
#[cfg(feature = "runtime")]
mod tests {
    use super::*;
    use crate::testing::{PATIENCE, blackhole, nobody, server};

    #[test]
    fn an_address_that_works_is_reached_past_those_that_do_not() {
        let target = Target::parse("http://name.example/").unwrap();
        let (black, _held) = blackhole();
        let (good, accepted) = server(|_| ());
        // Every address alone gets longer than the whole: only beside the first one is the last one reached in time.
        let limit = Limit::new(PATIENCE, &Arc::default());
        let (_, address) = connect(&target, &[nobody(), black, nobody(), good], &limit).unwrap();
        assert_eq!(address, good);
        accepted.join().unwrap();
    }

    #[test]
    fn where_no_address_works_it_ends_with_the_last_error_or_the_time() {
        let target = Target::parse("http://name.example/").unwrap();
        let limit = Limit::new(PATIENCE, &Arc::default());
        let error = connect(&target, &[nobody(), nobody()], &limit).unwrap_err();
        assert!(
            matches!(error, DialError::Connect(ref text) if text.contains("name.example:80: ")),
            "{error:?}"
        );
        let (black, _held) = blackhole();
        let short = Duration::from_millis(600);
        let late = DialError::Late(OpenStage::Connect, short);
        let error = connect(&target, &[nobody(), black], &Limit::new(short, &Arc::default())).unwrap_err();
        assert_eq!(error, late);
        let limit = Limit::new(PATIENCE, &Arc::new(AtomicBool::new(true)));
        assert!(connect(&target, &[black], &limit).is_err(), "one that is no longer wanted");
    }
}
