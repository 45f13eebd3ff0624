//! Connections: resolve, connect, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::Audience;
use futures_rustls::TlsConnector;
use shell_blocking::dial::{CONNECT_TIMEOUT, DialError, LookUp, candidates, unconnected, unresolved};
use shell_blocking::tls::Tls;
use smol::io::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;
use smol::{Timer, future};

/// A connection, plain or over TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(crate) type Transport = Box<dyn Duplex>;

/// Connects to `target` on behalf of `audience`.
pub(crate) async fn dial(target: &Target, audience: Audience, tls: &Tls) -> Result<Transport, DialError> {
    let found = match target.literal {
        Some(address) => vec![address],
        None => resolve(target, audience).await?,
    };
    let stream = connect(target, &candidates(target, audience, &found)?).await?;
    // Small messages must not wait for the answers to earlier ones; where it cannot be set, they do.
    let _ = stream.set_nodelay(true);
    match target.scheme {
        Scheme::Http => Ok(Box::new(stream)),
        Scheme::Https => {
            let (config, name) = tls.client(&target.host).map_err(DialError::Tls)?;
            match TlsConnector::from(config).connect(name, stream).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(DialError::Tls(shell_blocking::tls::describe(&error))),
            }
        }
    }
}

/// Connects to a host on behalf of `audience`, without TLS.
pub(crate) async fn dial_tcp(host: &str, port: u16, audience: Audience) -> Result<TcpStream, DialError> {
    let literal = host.parse().ok();
    let (host, path_and_query) = (host.to_owned(), String::new());
    let target = Target { scheme: Scheme::Http, host, port, path_and_query, literal };
    let found = match target.literal {
        Some(address) => vec![address],
        None => resolve(&target, audience).await?,
    };
    let stream = connect(&target, &candidates(&target, audience, &found)?).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn resolve(target: &Target, audience: Audience) -> Result<Vec<IpAddr>, DialError> {
    let place = LookUp::begin(audience)?;
    let (host, port) = (target.host.clone(), target.port);
    // Not `smol::net::resolve`: the place must be held until the resolver is done, whoever still waits for it.
    let found = smol::unblock(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        drop(place);
        found.map(|found| found.map(|address| address.ip()).collect())
    });
    found.await.map_err(|error| unresolved(target, &error))
}

async fn connect(target: &Target, addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut last = None;
    for address in addresses {
        let timeout = async {
            Timer::after(CONNECT_TIMEOUT).await;
            Err(io::ErrorKind::TimedOut.into())
        };
        match future::or(TcpStream::connect(address), timeout).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    let last = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
    Err(unconnected(target, &last))
}
