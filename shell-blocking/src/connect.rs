//! Connections made by a thread that may block: look-up, TCP, TLS, each within one deadline and ended by a flag.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::{Audience, OpenStage};
use rustls::ClientConnection;

use crate::dial::{ADDRESS_TIMEOUT, DialError, candidates, is_quiet, known, unconnected, unresolved};
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

/// Connects to `target` on behalf of `audience`.
///
/// # Errors
/// How far it came.
pub fn dial(
    target: &Target,
    audience: Audience,
    tls: &Tls,
    names: &Names,
    limit: &Limit,
) -> Result<Transport, DialError> {
    dial_at(target, &look_up(target, audience, names, limit)?, tls, limit).map(|(transport, _)| transport)
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
    let transport = match target.scheme {
        Scheme::Http => Transport::Plain(tcp),
        Scheme::Https => {
            let (config, name) = tls.client(&target.host).map_err(DialError::Tls)?;
            let connection =
                ClientConnection::new(config, name).map_err(|error| DialError::Tls(error.to_string()))?;
            let stream = TlsStream::shake_hands(connection, tcp)
                .map_err(|error| limit.judge(OpenStage::Tls, DialError::Tls(tls::describe(&error))))?;
            Transport::Tls(Box::new(stream))
        }
    };
    Ok((transport, address))
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

fn connect_any(addresses: &[SocketAddr], limit: &Limit) -> io::Result<(Tcp, SocketAddr)> {
    let mut last = None;
    for (at, address) in addresses.iter().enumerate() {
        // The slice is only asked whether there is any time: the system's own connect cannot be interrupted.
        limit.slice()?;
        let left = limit.until.saturating_duration_since(Instant::now());
        let most = if at + 1 < addresses.len() { ADDRESS_TIMEOUT } else { left };
        let timeout = left.min(most).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(address, timeout) {
            Ok(stream) => {
                // Small messages must not wait for the answers to earlier ones; where it cannot be set, they do.
                let _ = stream.set_nodelay(true);
                return Ok((Tcp::new(stream, limit.clone()), *address));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ErrorKind::AddrNotAvailable.into()))
}
