//! Where a connection may go, and what is said when there is none: the same for both shells.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use consensus_core::guard::{self, Target};
use consensus_core::io::{Audience, FetchError, FetchErrorKind, LinkEnd, OpenStage};
use consensus_core::proxy::{Proxy, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::http::times::seconds;
use crate::names::Names;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialError {
    /// The name did not resolve.
    Resolve(String),
    /// The guard refused the target.
    Forbidden(guard::Refused),
    /// No address took a connection.
    Connect(String),
    /// TLS failed.
    Tls(String),
    /// There is no way through the operator's proxy.
    Proxy(String),
    /// There was none in time; how far it came.
    Late(OpenStage, Duration),
}

impl DialError {
    /// As the end of a link.
    #[must_use]
    pub fn into_link_end(self) -> LinkEnd {
        let (stage, detail) = match self {
            Self::Resolve(detail) => (OpenStage::Resolve, detail),
            Self::Forbidden(refused) => (OpenStage::Resolve, refused.to_string()),
            Self::Connect(detail) => (OpenStage::Connect, detail),
            Self::Tls(detail) => (OpenStage::Tls, detail),
            Self::Proxy(detail) => (OpenStage::Proxy, detail),
            Self::Late(stage, time) => (stage, late(stage, time)),
        };
        LinkEnd::Unopened { stage, detail }
    }

    /// As the end of a fetch.
    #[must_use]
    pub fn into_fetch_error(self) -> FetchError {
        let (kind, detail) = match self {
            Self::Forbidden(refused) => return refused.into(),
            Self::Resolve(detail) => (FetchErrorKind::Resolve, detail),
            Self::Connect(detail) | Self::Proxy(detail) => (FetchErrorKind::Connect, detail),
            Self::Tls(detail) => (FetchErrorKind::Tls, detail),
            Self::Late(stage, time) => (FetchErrorKind::Timeout, late(stage, time)),
        };
        FetchError { kind, detail }
    }

    /// What went wrong on the way to a proxy, or with it, and not with what is behind it.
    #[must_use]
    pub fn at(self, proxy: &Proxy) -> Self {
        Self::Proxy(match self {
            Self::Late(_, time) => proxy.silent(&seconds(time)),
            Self::Resolve(detail) | Self::Connect(detail) | Self::Tls(detail) => proxy.unreachable(&detail),
            Self::Forbidden(refused) => proxy.unreachable(&refused.to_string()),
            Self::Proxy(detail) => detail,
        })
    }
}

/// That the connection to a proxy broke, with what the system says.
#[must_use]
pub fn unheard(proxy: &Proxy, error: &io::Error) -> DialError {
    DialError::Proxy(proxy.unreachable(&format!("{proxy}: {error}")))
}

/// That the proxy makes no tunnel.
#[must_use]
pub fn not_let_through(request: &Request<'_>, refused: &consensus_core::proxy::Refused) -> DialError {
    DialError::Proxy(request.explain(refused))
}

/// Whether a target may be named to a proxy at all. The proxy looks its name up, so that a name is judged there; an
/// address is judged here.
///
/// # Errors
/// The guard refuses.
pub fn check_proxied(target: &Target, audience: Audience) -> Result<(), DialError> {
    match audience {
        Audience::Operator => Ok(()),
        Audience::Stranger => target.check_literal().map_err(DialError::Forbidden),
    }
}

fn late(stage: OpenStage, time: Duration) -> String {
    let why = match stage {
        OpenStage::Resolve => "the name was still being looked up",
        OpenStage::Connect => "nothing answered at its address",
        OpenStage::Proxy => "the proxy did not answer",
        OpenStage::Tls | OpenStage::Upgrade => "the other side did not finish the TLS handshake",
    };
    format!("no connection within {}: {why}", seconds(time))
}

/// The addresses to try, of those that the target's name resolved to (or that the URL holds).
///
/// For a stranger every address must be public, and only the first is tried: there is no second look-up, and no
/// second try that an attacker could steer (protocol.md section 11).
///
/// # Errors
/// There is none, or the guard refuses.
pub fn candidates(
    target: &Target,
    audience: Audience,
    found: &[IpAddr],
) -> Result<Vec<SocketAddr>, DialError> {
    let at = |ip: IpAddr| SocketAddr::new(ip, target.port);
    match audience {
        Audience::Operator if found.is_empty() => {
            Err(DialError::Resolve("the name has no address".to_owned()))
        }
        Audience::Operator => Ok(found.iter().copied().map(at).collect()),
        Audience::Stranger => guard::permit(found).map(|ip| vec![at(ip)]).map_err(DialError::Forbidden),
    }
}

/// The addresses to try for `target`, if there is nothing to wait for: a literal address, or a name that was looked up
/// a short time ago. The guard judges them here as after any look-up.
#[must_use]
pub fn known(
    target: &Target,
    audience: Audience,
    names: &Names,
) -> Option<Result<Vec<SocketAddr>, DialError>> {
    if let Some(address) = target.literal {
        return Some(candidates(target, audience, &[address]));
    }
    Some(match names.known(&target.host, audience)? {
        Ok(found) => candidates(target, audience, &found),
        Err(error) => Err(unresolved(target, &error)),
    })
}

/// Whether a connection has nothing to read and has not ended.
#[must_use]
pub fn is_quiet(connection: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(connection, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// What the system says of a server that takes no connection, with the server.
#[must_use]
pub fn unconnected(target: &Target, error: &io::Error) -> DialError {
    DialError::Connect(format!("{}:{}: {error}", target.host, target.port))
}

/// What the system says of a name that does not resolve, with the name.
#[must_use]
pub fn unresolved(target: &Target, error: &str) -> DialError {
    DialError::Resolve(format!("{}: {error}", target.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_gets_the_first_address_and_only_if_all_are_public() {
        let target = Target::parse("http://name.example:81/").unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (public, other, private) = (ip("8.8.8.8"), ip("1.1.1.1"), ip("10.0.0.1"));
        let dial = |audience, found: &[IpAddr]| candidates(&target, audience, found);
        assert_eq!(dial(Audience::Stranger, &[public, other]), Ok(vec![SocketAddr::new(public, 81)]));
        assert_eq!(
            dial(Audience::Stranger, &[public, private]),
            Err(DialError::Forbidden(guard::Refused::NotPublic))
        );
        assert_eq!(dial(Audience::Operator, &[private, public]).unwrap().len(), 2);
        assert!(dial(Audience::Operator, &[]).is_err());
    }
}
