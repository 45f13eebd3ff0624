//! Which public addresses this machine has: asked of services that answer with the address they see.
//!
//! Their answers are a stranger's text: bounded, read strictly, shown to the operator, and theirs to type over.

use alloc::format;
use alloc::string::{String, ToString as _};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use crate::guard::{Refused, Target, USER_AGENT, is_globally_reachable};
use crate::io::{Audience, Bounds, Fetch, FetchError, Response};
use crate::text::printable;

/// Services that are asked where the operator names none; each answers over both families. The next is asked where one
/// does not answer.
pub const ADDRESS_SERVICES: [&str; 3] =
    ["https://icanhazip.com/", "https://ident.me/", "https://ifconfig.co/ip"];

/// Services that an operator can name.
pub const MAX_SERVICES: usize = 8;

/// An address and a line end are 47 bytes.
const MAX_BODY: usize = 128;

const BOUNDS: Bounds = Bounds {
    connect: Duration::from_secs(5),
    first_byte: Duration::from_secs(5),
    whole: Duration::from_secs(10),
    max_head: 16 * 1024,
    max_body: MAX_BODY,
};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Whether an address is of it.
    #[must_use]
    pub const fn has(self, address: IpAddr) -> bool {
        matches!((self, address), (Self::V4, IpAddr::V4(_)) | (Self::V6, IpAddr::V6(_)))
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The request to a service.
pub(super) fn request(service: &str) -> Result<Fetch, Refused> {
    let headers = [("accept", "text/plain"), ("accept-encoding", "identity"), ("user-agent", USER_AGENT)];
    Ok(Fetch {
        // The operator chose the service, or left it to the list above.
        audience: Audience::Operator,
        method: "GET".to_string(),
        target: Target::parse(service)?,
        headers: headers.map(|(name, value)| (name.to_string(), value.to_string())).to_vec(),
        body: None,
        bounds: BOUNDS,
    })
}

/// The address in an answer; the error says what came instead.
pub(super) fn read(
    family: Family,
    answer: &Result<Response, FetchError>,
    allow_private: bool,
) -> Result<String, String> {
    let response = answer.as_ref().map_err(|error| printable(&error.detail))?;
    if response.status != 200 {
        return Err(format!("HTTP {}", response.status));
    }
    let text = core::str::from_utf8(&response.body).unwrap_or_default().trim();
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err("the answer is no address".to_string());
    };
    if !family.has(address) {
        return Err(format!("the answer is not an {} address", family.name()));
    }
    check(address, allow_private).map_err(|why| format!("{address}: {why}"))?;
    Ok(address.to_string())
}

/// Whether an address can be a node's.
pub(super) fn check(address: IpAddr, allow_private: bool) -> Result<(), &'static str> {
    let is_one_host = match address {
        IpAddr::V4(ip) => ip != Ipv4Addr::BROADCAST && ip != Ipv4Addr::UNSPECIFIED && !ip.is_multicast(),
        IpAddr::V6(ip) => ip != Ipv6Addr::UNSPECIFIED && !ip.is_multicast(),
    };
    if !is_one_host {
        return Err("not the address of one host");
    }
    if !allow_private && !is_globally_reachable(address) {
        return Err("not a public address: nobody outside your network can reach it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FetchErrorKind;

    fn read_text(family: Family, status: u16, body: &[u8], allow_private: bool) -> Result<String, String> {
        let response = Response { status, reason: String::new(), headers: [].into(), body: body.to_vec() };
        read(family, &Ok(response), allow_private)
    }

    #[test]
    fn a_plain_public_address_of_the_right_family_is_taken() {
        assert_eq!(read_text(Family::V4, 200, b"8.8.4.4\n", false).unwrap(), "8.8.4.4");
        assert_eq!(read_text(Family::V6, 200, b" 2606:4700::1111\r\n", false).unwrap(), "2606:4700::1111");
        assert_eq!(read_text(Family::V4, 200, b"10.0.0.7", true).unwrap(), "10.0.0.7", "in a lab");
    }

    #[test]
    fn anything_else_is_told_and_not_taken() {
        let bodies: [(Family, u16, &[u8], &str); 12] = [
            (Family::V4, 200, b"", "no address"),
            (Family::V4, 200, b"\xff\xfe", "no address"),
            (Family::V4, 200, b"<html>8.8.4.4</html>", "no address"),
            (Family::V4, 200, b"8.8.4.4 8.8.8.8", "no address"),
            (Family::V4, 200, b"8.8.4.4:80", "no address"),
            (Family::V4, 200, b"2606:4700::1111", "not an IPv4"),
            (Family::V6, 200, b"8.8.4.4", "not an IPv6"),
            (Family::V4, 503, b"8.8.4.4", "HTTP 503"),
            (Family::V4, 200, b"192.168.1.7", "not a public"),
            (Family::V4, 200, b"255.255.255.255", "one host"),
            (Family::V6, 200, b"fe80::1", "not a public"),
            (Family::V6, 200, b"ff02::1", "one host"),
        ];
        for (family, status, body, says) in bodies {
            let error = read_text(family, status, body, false).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(read_text(Family::V4, 200, b"0.0.0.0", true).is_err(), "not in a lab either");
        let error = FetchError { kind: FetchErrorKind::Connect, detail: "refused\u{1b}[2J".into() };
        assert_eq!(read(Family::V4, &Err(error), false).unwrap_err(), "refused [2J");
    }

    #[test]
    fn every_service_of_the_list_can_be_asked_over_tls() {
        for service in ADDRESS_SERVICES {
            assert!(request(service).unwrap().target.url().starts_with("https://"));
        }
        assert!(request("ftp://x").is_err());
    }
}
