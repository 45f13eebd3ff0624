//! What may be fetched for others: the guard against server-side request forgery (protocol.md section 11).
//!
//! Pure: it reads URLs and judges addresses. The shell resolves a name once, hands *all* its addresses to
//! [`permit`] and connects to the one that comes back, so that there is no second look-up to be fooled by.
//!
//! URLs are read by the WHATWG rules and by nothing else: the host that is judged, the host that is resolved and
//! the host that is sent are one value of one parse.

#[cfg(test)]
mod cases;

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use serde::{Deserialize, Serialize};
use url::{Host, Position, Url};

use crate::io::{Audience, Bounds, Fetch, FetchError, FetchErrorKind};
use crate::limits::{MAX_HTTP_HEAD, MAX_HTTP_HEADERS};

/// The longest URL that is read, in bytes. No browser or server of note takes a longer one in a request line.
pub const MAX_URL: usize = 16 * 1024;

/// The longest method that is sent. The longest registered one is `UPDATEREDIRECTREF` (17).
pub const MAX_METHOD: usize = 32;

/// How long a shell may keep what a name resolved to (protocol.md section 11).
pub const RESOLVED_FOR: Duration = Duration::from_secs(30);

/// How long a shell may keep that a name did not resolve (protocol.md section 11).
pub const UNRESOLVED_FOR: Duration = Duration::from_secs(5);

/// What a request says it comes from, unless it says something itself (protocol.md section 9).
pub const USER_AGENT: &str = "Consensus-Node/0.1";

/// Why something is not fetched. Displays in plain words, fit for a log and for the peer who asked: it never holds
/// the address a name resolved to, nor any part of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Over [`MAX_URL`].
    UrlTooLong,
    /// Not an absolute URL.
    Url,
    /// Neither `http` nor `https`.
    Scheme,
    /// Port 0.
    Port,
    /// An address that is not globally reachable: a literal one, or one of a name's.
    NotPublic,
    /// A name with no address.
    NoAddress,
    /// Not a method, or one that is not done for others.
    Method,
    /// A header name that is not a token, or a value with characters a header cannot hold.
    Header,
    /// More headers than [`MAX_HTTP_HEADERS`], or more text in them than [`MAX_HTTP_HEAD`].
    HeadersTooLarge,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UrlTooLong => "the URL is too long",
            Self::Url => "the URL is not valid",
            Self::Scheme => "only http and https URLs are fetched",
            Self::Port => "the URL's port is not one to connect to",
            Self::NotPublic => "the target is not on the public internet",
            Self::NoAddress => "the target's name has no address",
            Self::Method => "the request method is not valid or not allowed",
            Self::Header => "a request header has an invalid name or value",
            Self::HeadersTooLarge => "the request headers are too many or too large",
        })
    }
}

impl core::error::Error for Refused {}

impl From<Refused> for FetchError {
    fn from(refused: Refused) -> Self {
        let kind = match refused {
            Refused::NotPublic => FetchErrorKind::Forbidden,
            Refused::NoAddress => FetchErrorKind::Resolve,
            _ => FetchErrorKind::Url,
        };
        Self { kind, detail: refused.to_string() }
    }
}

/// The two schemes that are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port of a URL that names none.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where a request goes: what a URL says, without user name, password and fragment, which are never sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Plain or over TLS.
    pub scheme: Scheme,
    /// The name to resolve, and to check the certificate for: lower case, ASCII. For a literal address its text,
    /// without brackets.
    pub host: String,
    /// Where to connect; never 0.
    pub port: u16,
    /// What stands in the request line; ASCII without spaces, starts with `/`.
    pub path_and_query: String,
    /// The address, where the URL holds one: then there is nothing to resolve.
    pub literal: Option<IpAddr>,
}

impl Target {
    /// Reads a URL by the WHATWG rules. A literal address is not judged here, because the operator's own URLs may
    /// have any: see [`Target::check_literal`].
    ///
    /// # Errors
    /// Not an absolute `http` or `https` URL with a host.
    pub fn parse(url: &str) -> Result<Self, Refused> {
        if url.len() > MAX_URL {
            return Err(Refused::UrlTooLong);
        }
        let url = Url::parse(url).map_err(|_| Refused::Url)?;
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(Refused::Scheme),
        };
        let (host, literal) = match url.host().ok_or(Refused::Url)? {
            Host::Domain(name) => (name.to_string(), None),
            Host::Ipv4(address) => (address.to_string(), Some(IpAddr::V4(address))),
            Host::Ipv6(address) => (address.to_string(), Some(IpAddr::V6(address))),
        };
        // A name of dots alone, or over what DNS can hold, is nothing a resolver should be bothered with.
        if host.len() > 254 || host.bytes().all(|b| b == b'.') {
            return Err(Refused::Url);
        }
        let port = url.port().unwrap_or(scheme.default_port());
        if port == 0 {
            return Err(Refused::Port);
        }
        let path_and_query = url[Position::BeforePath..Position::AfterQuery].to_string();
        Ok(Self { scheme, host, port, path_and_query, literal })
    }

    /// Refuses a literal address that is not public.
    ///
    /// # Errors
    /// [`Refused::NotPublic`].
    pub fn check_literal(&self) -> Result<(), Refused> {
        match self.literal {
            Some(address) if !is_globally_reachable(address) => Err(Refused::NotPublic),
            _ => Ok(()),
        }
    }

    /// The value of the `Host` header: the host, in brackets where it is an IPv6 address, and the port where it
    /// is not the scheme's own.
    #[must_use]
    pub fn host_header(&self) -> String {
        let (open, close) = if matches!(self.literal, Some(IpAddr::V6(_))) { ("[", "]") } else { ("", "") };
        if self.port == self.scheme.default_port() {
            format!("{open}{}{close}", self.host)
        } else {
            format!("{open}{}{close}:{}", self.host, self.port)
        }
    }

    /// Scheme, host and port: what a log may say about where a request went.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme.as_str(), self.host_header())
    }

    /// The URL, whole, as it is sent.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}{}", self.origin(), self.path_and_query)
    }
}

/// Of the addresses a name resolved to, the one to connect to: the first, if every one of them is public.
///
/// One that is not spoils all: a name that answers with both is probing, and a resolver that reorders would decide.
///
/// # Errors
/// [`Refused::NoAddress`], [`Refused::NotPublic`].
pub fn permit(addresses: &[IpAddr]) -> Result<IpAddr, Refused> {
    let first = addresses.first().ok_or(Refused::NoAddress)?;
    if addresses.iter().all(|address| is_globally_reachable(*address)) {
        Ok(*first)
    } else {
        Err(Refused::NotPublic)
    }
}

/// IANA IPv4 Special-Purpose Address Registry,
/// <https://www.iana.org/assignments/iana-ipv4-special-registry/>, last changed 2025-10-09, compared row by row with
/// its CSV of 2026-07-18: block, prefix length, "globally reachable" (N/A and nothing count as no). The most specific
/// entry decides. The last one is not of it: the multicast block of RFC 5771.
const SPECIAL_V4: [(Ipv4Addr, u32, bool); 26] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, false),          // this network, RFC 791
    (Ipv4Addr::new(0, 0, 0, 0), 32, false),         // this host, RFC 1122
    (Ipv4Addr::new(10, 0, 0, 0), 8, false),         // private use, RFC 1918
    (Ipv4Addr::new(100, 64, 0, 0), 10, false),      // shared address space, RFC 6598
    (Ipv4Addr::new(127, 0, 0, 0), 8, false),        // loopback, RFC 1122
    (Ipv4Addr::new(169, 254, 0, 0), 16, false),     // link local, RFC 3927
    (Ipv4Addr::new(172, 16, 0, 0), 12, false),      // private use, RFC 1918
    (Ipv4Addr::new(192, 0, 0, 0), 24, false),       // IETF protocol assignments, RFC 6890
    (Ipv4Addr::new(192, 0, 0, 0), 29, false),       // IPv4 service continuity, RFC 7335
    (Ipv4Addr::new(192, 0, 0, 8), 32, false),       // dummy address, RFC 7600
    (Ipv4Addr::new(192, 0, 0, 9), 32, true),        // port control protocol anycast, RFC 7723
    (Ipv4Addr::new(192, 0, 0, 10), 32, true),       // TURN anycast, RFC 8155
    (Ipv4Addr::new(192, 0, 0, 170), 31, false),     // NAT64/DNS64 discovery (two /32 entries), RFC 8880
    (Ipv4Addr::new(192, 0, 2, 0), 24, false),       // documentation, RFC 5737
    (Ipv4Addr::new(192, 31, 196, 0), 24, true),     // AS112-v4, RFC 7535
    (Ipv4Addr::new(192, 52, 193, 0), 24, true),     // AMT, RFC 7450
    (Ipv4Addr::new(192, 88, 99, 0), 24, false),     // deprecated 6to4 relay anycast (N/A), RFC 7526
    (Ipv4Addr::new(192, 168, 0, 0), 16, false),     // private use, RFC 1918
    (Ipv4Addr::new(192, 175, 48, 0), 24, true),     // direct delegation AS112 service, RFC 7534
    (Ipv4Addr::new(198, 18, 0, 0), 15, false),      // benchmarking, RFC 2544
    (Ipv4Addr::new(198, 51, 100, 0), 24, false),    // documentation, RFC 5737
    (Ipv4Addr::new(203, 0, 113, 0), 24, false),     // documentation, RFC 5737
    (Ipv4Addr::new(240, 0, 0, 0), 4, false),        // reserved, RFC 1112
    (Ipv4Addr::new(255, 255, 255, 255), 32, false), // limited broadcast, RFC 919
    (Ipv4Addr::new(192, 88, 99, 2), 32, false),     // 6a44 relay anycast, RFC 6751
    (Ipv4Addr::new(224, 0, 0, 0), 4, false),        // multicast, RFC 5771
];

/// IANA IPv6 Special-Purpose Address Registry,
/// <https://www.iana.org/assignments/iana-ipv6-special-registry/>, as of the same days, in the same form. The first two
/// entries are the IPv6 address space registry's: what is not global unicast (2000::/3) is reserved, unless an entry
/// says otherwise. Blocks with an embedded IPv4 address are judged by it, in [`embedded`], before this table.
const SPECIAL_V6: [(Ipv6Addr, u32, bool); 23] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 0, false), // reserved, and multicast and all local scopes, RFC 4291
    (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3, true), // global unicast, RFC 4291
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 1), 128, false), // loopback, RFC 4291
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 128, false), // unspecified, RFC 4291
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, false), // local translation, RFC 8215
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, false), // discard only, RFC 6666
    (Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 0), 64, false), // dummy prefix, RFC 9780
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, false), // IETF protocol assignments, RFC 2928
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1), 128, true), // port control protocol anycast, RFC 7723
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 2), 128, true), // TURN anycast, RFC 8155
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 3), 128, true), // DNS-SD registration anycast, RFC 9665
    (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48, false), // benchmarking, RFC 5180
    (Ipv6Addr::new(0x2001, 3, 0, 0, 0, 0, 0, 0), 32, true), // AMT, RFC 7450
    (Ipv6Addr::new(0x2001, 4, 0x112, 0, 0, 0, 0, 0), 48, true), // AS112-v6, RFC 7535
    (Ipv6Addr::new(0x2001, 0x10, 0, 0, 0, 0, 0, 0), 28, false), // deprecated ORCHID (N/A), RFC 4843
    (Ipv6Addr::new(0x2001, 0x20, 0, 0, 0, 0, 0, 0), 28, true), // ORCHIDv2, RFC 7343
    (Ipv6Addr::new(0x2001, 0x30, 0, 0, 0, 0, 0, 0), 28, true), // drone remote identification, RFC 9374
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, false), // documentation, RFC 3849
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48, true), // direct delegation AS112, RFC 7534
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, false), // documentation, RFC 9637
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, false), // segment routing identifiers, RFC 9602
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, false), // unique local, RFC 4193
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, false), // link local, RFC 4291
];

/// Whether an address is one of the public internet: globally reachable by the IANA special-purpose registries, and
/// not multicast. An IPv6 address that leads to an IPv4 one is judged by that.
#[must_use]
pub fn is_globally_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_reachable_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Embedded::None => is_reachable_v6(address),
            Embedded::Refuse => false,
            Embedded::One(inner) => is_reachable_v4(inner),
            Embedded::Two(a, b) => is_reachable_v4(a) && is_reachable_v4(b),
        },
    }
}

fn is_reachable_v4(address: Ipv4Addr) -> bool {
    let bits = address.to_bits();
    SPECIAL_V4
        .iter()
        .filter(|(block, length, _)| (bits ^ block.to_bits()).leading_zeros() >= *length)
        .max_by_key(|(_, length, _)| *length)
        .is_none_or(|(_, _, reachable)| *reachable)
}

fn is_reachable_v6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    SPECIAL_V6
        .iter()
        .filter(|(block, length, _)| (bits ^ block.to_bits()).leading_zeros() >= *length)
        .max_by_key(|(_, length, _)| *length)
        .is_some_and(|(_, _, reachable)| *reachable)
}

/// The IPv4 addresses that packets to an IPv6 address may end up at.
enum Embedded {
    None,
    Refuse,
    One(Ipv4Addr),
    Two(Ipv4Addr, Ipv4Addr),
}

fn embedded(address: Ipv6Addr) -> Embedded {
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        // ISATAP (RFC 5214) hides in the interface identifier of any prefix and tunnels inside a site: no public
        // server has one.
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Embedded::Refuse,
        [0, 0, 0, 0, 0, 0xffff, a, b] => Embedded::One(v4(a, b)), // IPv4-mapped, RFC 4291
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => Embedded::One(v4(a, b)), // NAT64, RFC 6052
        [0x2002, a, b, ..] => Embedded::One(v4(a, b)),            // 6to4, RFC 3056
        // Teredo, RFC 4380: the server in clear, the client inverted.
        [0x2001, 0, a, b, _, _, c, d] => Embedded::Two(v4(a, b), v4(!c, !d)),
        // IPv4-compatible (deprecated, RFC 4291) falls to the table, where ::/3 is not global unicast.
        _ => Embedded::None,
    }
}

/// Header fields that are not passed on: hop-by-hop ones (RFC 9110, 7.6.1) and those of protocol.md section 11.
const STRIPPED: [&str; 26] = [
    "connection",
    "content-length",
    "forwarded",
    "host",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-cache-ttl",
    "x-direct",
    "x-forwarded-for",
    "x-idempotency-key",
    "x-node-domain",
    "x-node-exclude",
    "x-node-region",
    "x-payment",
    "x-real-ip",
    "x-verbose",
];

/// The header fields to send of those that a stranger asked for: names in lower case, values trimmed, without the
/// hop-by-hop ones, those that `Connection` names and those that protocol.md section 11 lists, and with
/// [`USER_AGENT`] where no user agent is given.
///
/// # Errors
/// A name that is not a token; a value that holds CR, LF, NUL, another control character or anything outside
/// ISO 8859-1; too many, or too much. A damaged field is not left out: the request would not be the one asked for.
pub fn request_headers(
    pairs: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>, Refused> {
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut named_by_connection: Vec<String> = Vec::new();
    let mut size = 0_usize;
    for (name, value) in pairs {
        size = size.saturating_add(name.len()).saturating_add(value.len());
        if headers.len() >= MAX_HTTP_HEADERS || size > MAX_HTTP_HEAD {
            return Err(Refused::HeadersTooLarge);
        }
        let name = name.to_ascii_lowercase();
        if !is_token(&name) || !value.chars().all(is_field_char) {
            return Err(Refused::Header);
        }
        if name == "connection" {
            let options = value.split(',').map(|option| option.trim().to_ascii_lowercase());
            named_by_connection.extend(options.filter(|option| !option.is_empty()));
        }
        headers.push((name, value.trim_matches([' ', '\t']).to_string()));
    }
    headers.retain(|(name, _)| !STRIPPED.contains(&name.as_str()) && !named_by_connection.contains(name));
    if !headers.iter().any(|(name, _)| name == "user-agent") {
        headers.push(("user-agent".to_string(), USER_AGENT.to_string()));
    }
    Ok(headers)
}

/// The method to send: the common ones in upper case however they were written, others as they are.
///
/// # Errors
/// Not a token of RFC 9110, over [`MAX_METHOD`], or one that is not done for others: `CONNECT` asks for a tunnel,
/// `TRACE` (and `TRACK`) shows what the path added.
pub fn method(text: &str) -> Result<String, Refused> {
    let upper = text.to_ascii_uppercase();
    if text.len() > MAX_METHOD || !is_token(text) || matches!(upper.as_str(), "CONNECT" | "TRACE" | "TRACK") {
        return Err(Refused::Method);
    }
    Ok(match upper.as_str() {
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH" => upper,
        _ => text.to_string(),
    })
}

/// What somebody asks to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// As received.
    pub url: &'a str,
    /// `GET` where there is none.
    pub method: Option<&'a str>,
    /// As received.
    pub headers: Vec<(String, String)>,
    /// Decoded.
    pub body: Option<Vec<u8>>,
}

/// The effect that fetches it, by all rules of protocol.md section 11.
///
/// For [`Audience::Stranger`] a literal address is judged here already; the shell judges every address again before
/// it connects. A body on GET or HEAD is left out.
///
/// # Errors
/// [`Refused`].
pub fn fetch(request: Request<'_>, audience: Audience, bounds: Bounds) -> Result<Fetch, Refused> {
    let target = Target::parse(request.url)?;
    if audience == Audience::Stranger {
        target.check_literal()?;
    }
    let method = match request.method {
        Some(text) => method(text)?,
        None => "GET".to_string(),
    };
    let body = request.body.filter(|_| !matches!(method.as_str(), "GET" | "HEAD"));
    let headers = request_headers(request.headers)?;
    Ok(Fetch { audience, method, target, headers, body, bounds })
}

/// Where a raw tunnel goes: a host, by the same rules as in a URL, and a port.
///
/// # Errors
/// [`Refused`].
pub fn socket_target(host: &str, port: u16, audience: Audience) -> Result<Target, Refused> {
    // An IPv6 address may stand without the brackets that it needs in a URL.
    let host = match host.parse::<Ipv6Addr>() {
        Ok(address) => Host::Ipv6(address),
        Err(_) if host.len() > MAX_URL => return Err(Refused::UrlTooLong),
        Err(_) => Host::parse(host).map_err(|_| Refused::Url)?,
    };
    let target = Target::parse(&format!("http://{host}:{port}/"))?;
    if audience == Audience::Stranger {
        target.check_literal()?;
    }
    Ok(target)
}

/// A token of RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A character of a field value as ISO 8859-1 (RFC 9110, 5.5): printable, space, tab, or one of the upper half.
fn is_field_char(c: char) -> bool {
    matches!(c, '\t' | ' '..='~' | '\u{80}'..='\u{ff}')
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::cases::{ALLOWED, BLOCKED};
    use super::*;
    use crate::limits::Limits;

    fn check(url: &str) -> Result<Target, Refused> {
        let target = Target::parse(url)?;
        target.check_literal()?;
        Ok(target)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pairs(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn request<'a>(url: &'a str, method: Option<&'a str>) -> Request<'a> {
        Request { url, method, headers: vec![], body: Some(b"b".to_vec()) }
    }

    fn fetched(request: Request<'_>) -> Result<Fetch, Refused> {
        fetch(request, Audience::Stranger, Limits::default().bounds(10))
    }

    #[test]
    fn no_spelling_of_a_private_address_is_let_through() {
        assert!(BLOCKED.len() > 150, "{}", BLOCKED.len());
        for host in BLOCKED {
            for scheme in ["http", "https"] {
                let url = format!("{scheme}://{host}/");
                assert!(check(&url).is_err(), "{url:?} became {:?}", check(&url));
            }
        }
    }

    #[test]
    fn the_first_and_last_address_of_every_block_is_among_the_cases() {
        let cases: Vec<IpAddr> =
            BLOCKED.iter().filter_map(|host| host.trim_matches(['[', ']']).parse().ok()).collect();
        for (block, length, _) in SPECIAL_V4.iter().filter(|(_, _, reachable)| !reachable) {
            let last = block.to_bits() | u32::MAX.checked_shr(*length).unwrap_or(0);
            assert!(cases.contains(&IpAddr::V4(*block)), "{block}/{length}");
            assert!(cases.contains(&IpAddr::V4(last.into())), "the last of {block}/{length}");
        }
        for (block, length, _) in SPECIAL_V6.iter().filter(|(_, _, reachable)| !reachable) {
            let last = block.to_bits() | u128::MAX.checked_shr(*length).unwrap_or(0);
            assert!(cases.contains(&IpAddr::V6(*block)), "{block}/{length}");
            assert!(cases.contains(&IpAddr::V6(last.into())), "the last of {block}/{length}");
        }
    }

    #[test]
    fn public_addresses_and_names_are_let_through() {
        for host in ALLOWED {
            let url = format!("http://{host}/");
            assert!(check(&url).is_ok(), "{url:?}: {:?}", check(&url));
        }
    }

    #[test]
    fn only_http_and_https_are_fetched() {
        for url in [
            "ftp://8.8.8.8/",
            "file:///etc/passwd",
            "gopher://8.8.8.8/",
            "ws://8.8.8.8/",
            "data:,x",
            "javascript:1",
            "unix:/run/x",
            "view-source:http://8.8.8.8/",
            "blob:http://8.8.8.8/x",
        ] {
            assert_eq!(check(url), Err(Refused::Scheme), "{url}");
        }
        for url in ["not-a-url", "", "/path", "//8.8.8.8/", "8.8.8.8", "http:", "http://", "https:///"] {
            assert_eq!(check(url), Err(Refused::Url), "{url}");
        }
        // The special schemes take any number of slashes of either kind.
        for url in [
            "http:127.0.0.1",
            "http:/127.0.0.1",
            "http:\\\\127.0.0.1",
            "hTTp:////127.0.0.1",
            "\thttp://127.1",
        ] {
            assert_eq!(check(url), Err(Refused::NotPublic), "{url}");
        }
    }

    #[test]
    fn what_is_sent_is_what_was_judged() {
        let target = check("HTTPS://User:Secret@Example.COM:443/a b/../c?q=é#fragment").unwrap();
        assert_eq!(target.host, "example.com");
        assert_eq!((target.scheme, target.port, target.literal), (Scheme::Https, 443, None));
        assert_eq!(target.path_and_query, "/c?q=%C3%A9");
        assert_eq!(target.host_header(), "example.com");
        assert_eq!(target.origin(), "https://example.com");
        assert_eq!(target.url(), "https://example.com/c?q=%C3%A9");
        assert_eq!(check(&target.url()), Ok(target));
    }

    #[test]
    fn literal_addresses_and_ports_stand_in_the_host_header_as_http_wants_them() {
        let target = check("http://[2606:4700::1111]:8080").unwrap();
        assert_eq!(target.host, "2606:4700::1111");
        assert_eq!(target.literal, Some(address("2606:4700::1111")));
        assert_eq!(target.host_header(), "[2606:4700::1111]:8080");
        assert_eq!(target.url(), "http://[2606:4700::1111]:8080/");
        assert_eq!(check("http://134744072:443/").unwrap().host_header(), "8.8.8.8:443");
        assert_eq!(check("http://8.8.8.8/?").unwrap().path_and_query, "/?");
    }

    #[test]
    fn one_private_address_spoils_a_name() {
        let public = address("8.8.8.8");
        let also = address("2606:4700::1111");
        assert_eq!(permit(&[also, public]), Ok(also));
        for private in ["127.0.0.1", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"] {
            assert_eq!(permit(&[public, address(private)]), Err(Refused::NotPublic), "{private}");
            assert_eq!(permit(&[address(private), public]), Err(Refused::NotPublic), "{private}");
        }
        assert_eq!(permit(&[]), Err(Refused::NoAddress));
    }

    #[test]
    fn the_deployed_networks_vectors_hold() {
        let Some(vectors) = crate::wire::canonical::tests::vectors("ssrf") else { return };
        let cases = vectors["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let url = case["url"].as_str().unwrap();
            let verdict = if check(url).is_ok() { "allow" } else { "block" };
            assert_eq!(verdict, case["expect"], "{url}");
        }
    }

    #[test]
    fn headers_that_are_the_connections_or_the_networks_are_not_passed_on() {
        let mut asked = pairs(&[
            ("Accept", " text/html\t"),
            ("CONNECTION", "close, X-Private , ,upgrade"),
            ("x-private", "1"),
            ("X-Other", "caf\u{e9}"),
            ("accept", "*/*"),
        ]);
        asked.extend(STRIPPED.map(|name| (name.to_ascii_uppercase(), "x".to_string())));
        assert_eq!(
            request_headers(asked).unwrap(),
            pairs(&[
                ("accept", "text/html"),
                ("x-other", "caf\u{e9}"),
                ("accept", "*/*"),
                ("user-agent", USER_AGENT),
            ])
        );
    }

    #[test]
    fn a_user_agent_of_ones_own_stays() {
        assert_eq!(request_headers(pairs(&[("User-Agent", "me")])), Ok(pairs(&[("user-agent", "me")])));
    }

    #[test]
    fn headers_that_could_split_a_request_are_refused() {
        for (name, value) in [
            ("", "x"),
            ("a b", "x"),
            ("a:", "x"),
            ("a\r\nb", "x"),
            ("é", "x"),
            ("a", "x\r\nHost: y"),
            ("a", "x\ny"),
            ("a", "x\0"),
            ("a", "\u{7f}"),
            ("a", "\u{100}"),
            ("a", "\u{10d}\u{10a}"),
            ("a", "x\r"),
        ] {
            assert_eq!(request_headers(pairs(&[(name, value)])), Err(Refused::Header), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn headers_are_bounded() {
        let many = (0..=MAX_HTTP_HEADERS).map(|i| (format!("a{i}"), String::new()));
        assert_eq!(request_headers(many), Err(Refused::HeadersTooLarge));
        let large = [("a".to_string(), "x".repeat(MAX_HTTP_HEAD))];
        assert_eq!(request_headers(large), Err(Refused::HeadersTooLarge));
        let url = format!("http://8.8.8.8/{}", "x".repeat(MAX_URL));
        assert_eq!(check(&url), Err(Refused::UrlTooLong));
    }

    #[test]
    fn methods_are_tokens_and_none_opens_a_tunnel() {
        for (given, sent) in
            [("get", "GET"), ("Patch", "PATCH"), ("PROPFIND", "PROPFIND"), ("m-search", "m-search")]
        {
            assert_eq!(method(given).as_deref(), Ok(sent));
        }
        for bad in
            ["", "GET ", "G\r\nX", "CONNECT", "connect", "Trace", "TRACK", "é", &"A".repeat(MAX_METHOD + 1)]
        {
            assert_eq!(method(bad), Err(Refused::Method), "{bad:?}");
        }
    }

    #[test]
    fn get_and_head_have_no_body() {
        for (method, has_body) in [
            (None, false),
            (Some("get"), false),
            (Some("HEAD"), false),
            (Some("post"), true),
            (Some("DELETE"), true),
        ] {
            let fetch = fetched(request("http://8.8.8.8/", method)).unwrap();
            assert_eq!(fetch.body.is_some(), has_body, "{method:?}");
        }
    }

    #[test]
    fn a_stranger_does_not_reach_what_the_operator_may() {
        let private = || request("http://127.0.0.1/", None);
        assert_eq!(fetched(private()), Err(Refused::NotPublic));
        let fetch = fetch(private(), Audience::Operator, Limits::default().bounds(10)).unwrap();
        assert_eq!(fetch.target.url(), "http://127.0.0.1/");
    }

    #[test]
    fn a_refusal_is_a_fetch_error_of_its_kind_and_names_no_address() {
        for (refused, kind) in [
            (Refused::NotPublic, FetchErrorKind::Forbidden),
            (Refused::NoAddress, FetchErrorKind::Resolve),
            (Refused::Scheme, FetchErrorKind::Url),
        ] {
            let error = FetchError::from(refused);
            assert_eq!(error.kind, kind);
            assert!(!error.detail.is_empty() && !error.detail.contains(|c: char| c.is_ascii_digit()));
        }
    }
}
