//! Where a connection may go, and what is said when there is none: the same for both shells.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use consensus_core::guard::{self, Target};
use consensus_core::io::{Audience, FetchError, FetchErrorKind, LinkEnd, OpenStage};

/// For one address; there may be another.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

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
        };
        LinkEnd::Unopened { stage, detail }
    }

    /// As the end of a fetch.
    #[must_use]
    pub fn into_fetch_error(self) -> FetchError {
        let (kind, detail) = match self {
            Self::Forbidden(refused) => return refused.into(),
            Self::Resolve(detail) => (FetchErrorKind::Resolve, detail),
            Self::Connect(detail) => (FetchErrorKind::Connect, detail),
            Self::Tls(detail) => (FetchErrorKind::Tls, detail),
        };
        FetchError { kind, detail }
    }
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

/// Look-ups of strangers' names at once. Each holds a thread until the system's resolver is done with it, which may be
/// long after nobody waits for it any more.
const MAX_LOOK_UPS: usize = 32;

static LOOK_UPS: AtomicUsize = AtomicUsize::new(0);

/// The place of one look-up, given back when dropped; to be held until the resolver has answered.
#[derive(Debug)]
pub struct LookUp {
    counts: bool,
}

impl LookUp {
    /// A place for a look-up. The operator's own names always get one.
    ///
    /// # Errors
    /// Too many of strangers' names are being looked up.
    pub fn begin(audience: Audience) -> Result<Self, DialError> {
        let counts = audience == Audience::Stranger;
        let place = Self { counts };
        if counts && LOOK_UPS.fetch_add(1, Ordering::Relaxed) >= MAX_LOOK_UPS {
            return Err(DialError::Resolve("too many names are being looked up".to_owned()));
        }
        Ok(place)
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        if self.counts {
            LOOK_UPS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What the system says of a server that takes no connection, with the server.
#[must_use]
pub fn unconnected(target: &Target, error: &io::Error) -> DialError {
    DialError::Connect(format!("{}:{}: {error}", target.host, target.port))
}

/// What the system says of a name that does not resolve, with the name.
#[must_use]
pub fn unresolved(target: &Target, error: &io::Error) -> DialError {
    DialError::Resolve(format!("{}: {error}", target.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_names_are_looked_up_a_bounded_number_at_a_time() {
        let places: Vec<_> = (0..MAX_LOOK_UPS).map(|_| LookUp::begin(Audience::Stranger).unwrap()).collect();
        assert!(LookUp::begin(Audience::Stranger).is_err());
        assert!(LookUp::begin(Audience::Operator).is_ok(), "the tunnel's own name is not kept out");
        drop(places);
        assert!(LookUp::begin(Audience::Stranger).is_ok());
    }

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
