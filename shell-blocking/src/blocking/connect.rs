//! Connections made by a thread that may block: look-up, TCP, TLS, each within one deadline and ended by a flag.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::Audience;
use rustls::{ClientConnection, StreamOwned};

use crate::dial::{CONNECT_TIMEOUT, DialError, LookUp, candidates, unconnected, unresolved};
use crate::tls::{self, Tls};

/// How long a blocking call goes on before it looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(500);

/// A resolver's needs.
const LOOK_UP_STACK: usize = 256 * 1024;

/// When something must be over, and whether it is still wanted.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub(super) until: Instant,
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Limit {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
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
pub(super) struct Tcp {
    stream: TcpStream,
    limit: Option<Limit>,
    /// What the system's read and write timeouts are set to.
    set: (Duration, Duration),
}

impl Tcp {
    pub(super) fn new(stream: TcpStream, limit: Limit) -> io::Result<Self> {
        stream.set_read_timeout(Some(SLICE))?;
        stream.set_write_timeout(Some(SLICE))?;
        Ok(Self { stream, limit: Some(limit), set: (SLICE, SLICE) })
    }

    /// One whose reads and writes do not block.
    pub(super) fn nonblocking(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, limit: None, set: (SLICE, SLICE) })
    }

    /// From here on reads and writes do not block.
    fn set_nonblocking(&mut self) -> io::Result<()> {
        self.limit = None;
        self.stream.set_nonblocking(true)
    }

    pub(super) fn shutdown(&self, how: Shutdown) {
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
pub(super) enum Transport {
    Plain(Tcp),
    Tls(Box<StreamOwned<ClientConnection, Tcp>>),
}

impl Transport {
    pub(super) fn tcp(&mut self) -> &mut Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    pub(super) fn set_nonblocking(&mut self) -> io::Result<()> {
        self.tcp().set_nonblocking()
    }

    /// Says that nothing more will be written.
    pub(super) fn end_writing(&mut self) {
        if let Self::Tls(stream) = self {
            stream.conn.send_close_notify();
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
            Self::Tls(stream) => stream.sock.stream.as_fd(),
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
pub(super) fn dial_tcp(
    host: &str,
    port: u16,
    audience: Audience,
    limit: &Limit,
) -> Result<TcpStream, DialError> {
    let literal = host.parse().ok();
    let (host, path_and_query) = (host.to_owned(), String::new());
    let target = Target { scheme: Scheme::Http, host, port, path_and_query, literal };
    let found = match target.literal {
        Some(address) => vec![address],
        None => look_up(&target, audience, limit)?,
    };
    let tcp = connect(&candidates(&target, audience, &found)?, limit);
    let stream = tcp.and_then(|mut tcp| tcp.set_nonblocking().map(|()| tcp.stream));
    stream.map_err(|error| unconnected(&target, &error))
}

/// Connects to `target` on behalf of `audience`.
pub(super) fn dial(
    target: &Target,
    audience: Audience,
    tls: &Tls,
    limit: &Limit,
) -> Result<Transport, DialError> {
    let found = match target.literal {
        Some(address) => vec![address],
        None => look_up(target, audience, limit)?,
    };
    let stream = connect(&candidates(target, audience, &found)?, limit)
        .map_err(|error| unconnected(target, &error))?;
    match target.scheme {
        Scheme::Http => Ok(Transport::Plain(stream)),
        Scheme::Https => {
            let (config, name) = tls.client(&target.host).map_err(DialError::Tls)?;
            let connection =
                ClientConnection::new(config, name).map_err(|error| DialError::Tls(error.to_string()))?;
            let mut stream = StreamOwned::new(connection, stream);
            while stream.conn.is_handshaking() {
                let done = stream.conn.complete_io(&mut stream.sock);
                done.map_err(|error| DialError::Tls(tls::describe(&error)))?;
            }
            Ok(Transport::Tls(Box::new(stream)))
        }
    }
}

/// Asks the system's resolver, on a thread of its own: it cannot be told to hurry or to stop. One that is given up
/// ends when the resolver does.
fn look_up(target: &Target, audience: Audience, limit: &Limit) -> Result<Vec<IpAddr>, DialError> {
    limit.slice().map_err(|error| unresolved(target, &error))?;
    let place = LookUp::begin(audience)?;
    let (tell, told) = mpsc::sync_channel(1);
    let (host, port) = (target.host.clone(), target.port);
    let ask = move || {
        let found = (host.as_str(), port).to_socket_addrs();
        drop(place);
        // Whoever asked may have gone.
        let _ = tell.send(found.map(|found| found.map(|address| address.ip()).collect()));
    };
    let builder = thread::Builder::new().name("look-up".to_owned()).stack_size(LOOK_UP_STACK);
    builder.spawn(ask).map_err(|error| unresolved(target, &error))?;
    loop {
        let slice = limit.slice().map_err(|error| unresolved(target, &error))?;
        match told.recv_timeout(slice) {
            Ok(found) => return found.map_err(|error| unresolved(target, &error)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(unresolved(target, &io::Error::other("the resolver failed")));
            }
        }
    }
}

fn connect(addresses: &[SocketAddr], limit: &Limit) -> io::Result<Tcp> {
    let mut last = None;
    for address in addresses {
        // The slice is only asked whether there is any time: the system's own connect cannot be interrupted.
        limit.slice()?;
        let left = limit.until.saturating_duration_since(Instant::now());
        let timeout = left.min(CONNECT_TIMEOUT).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(address, timeout) {
            Ok(stream) => {
                // Small messages must not wait for the answers to earlier ones; where it cannot be set, they do.
                let _ = stream.set_nodelay(true);
                return Tcp::new(stream, limit.clone());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ErrorKind::AddrNotAvailable.into()))
}
