//! The guard: a URL's spelling goes in, and no address outside the public internet ever comes out.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::Arbitrary;

use super::read;
use crate::guard::{MAX_URL, Request, Target, fetch, is_globally_reachable, permit, socket_target};
use crate::io::Audience;
use crate::limits::Limits;

#[derive(Debug, Default, Arbitrary)]
struct Script {
    spelling: Spelling,
    method: Option<String>,
    headers: Vec<(String, String)>,
    addresses: Vec<Address>,
}

/// Where it goes, as somebody may write it.
#[derive(Debug, Default, Arbitrary)]
enum Spelling {
    #[default]
    Nothing,
    Any(String),
    /// A host behind what hosts stand behind.
    Host {
        before: Before,
        host: String,
        after: String,
    },
    /// An IPv4 address in one of the ways that some library reads.
    Numbers {
        before: Before,
        parts: Vec<(u32, u8)>,
        dot: bool,
    },
    Six {
        before: Before,
        address: Address,
    },
    Socket {
        host: String,
        port: u16,
    },
}

#[derive(Debug, Default, Arbitrary)]
enum Before {
    #[default]
    Http,
    Https,
    User,
    Backslashes,
    Slashes(u8),
}

impl Before {
    fn text(&self) -> String {
        match self {
            Self::Http => "http://".into(),
            Self::Https => "HTTPS://".into(),
            Self::User => "http://public.example@".into(),
            Self::Backslashes => "http:\\\\".into(),
            Self::Slashes(count) => ["http:", &"/".repeat(usize::from(count % 5))].concat(),
        }
    }
}

/// An address, of the kinds where something may go wrong.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Address {
    Four(u32),
    Six(u128),
    /// An IPv4 address in an IPv6 one.
    Mapped(u32),
    Nat64(u32),
    SixToFour(u32, u64),
    Isatap(u64, u32),
}

impl Address {
    fn ip(self) -> IpAddr {
        let six = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(bits));
        match self {
            Self::Four(bits) => IpAddr::V4(Ipv4Addr::from_bits(bits)),
            Self::Six(bits) => six(bits),
            Self::Mapped(four) => six(0xffff << 32 | u128::from(four)),
            Self::Nat64(four) => six(0x64_ff9b << 96 | u128::from(four)),
            Self::SixToFour(four, rest) => six(0x2002 << 112 | u128::from(four) << 80 | u128::from(rest)),
            Self::Isatap(prefix, four) => six(u128::from(prefix) << 64 | 0x5efe << 32 | u128::from(four)),
        }
    }
}

/// What std knows to be no place of the public internet. The registries have more of them.
fn is_surely_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            four.is_private()
                || four.is_loopback()
                || four.is_link_local()
                || four.is_multicast()
                || four.is_broadcast()
                || four.is_documentation()
                || four.octets()[0] == 0
                || four.octets()[0] >= 224
        }
        IpAddr::V6(six) => {
            six.is_loopback()
                || six.is_unspecified()
                || six.is_multicast()
                || six.is_unique_local()
                || six.is_unicast_link_local()
                || six.to_ipv4_mapped().is_some_and(|four| is_surely_private(IpAddr::V4(four)))
                || carried(six).is_some_and(|four| is_surely_private(IpAddr::V4(four)))
        }
    }
}

/// The IPv4 address at the end of a translated or tunnelled one.
fn carried(six: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = six.to_bits();
    let at = |shift: u32| Some(Ipv4Addr::from_bits((bits >> shift) as u32));
    if bits >> 32 == 0x64_ff9b << 64 {
        at(0)
    } else if bits >> 112 == 0x2002 {
        at(80)
    } else {
        None
    }
}

/// What C's `inet_aton` makes of a host: one to four numbers, in three notations.
fn inet_aton(host: &str) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = host.split('.').collect();
    let number = |text: &str| {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("0x") {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(digits, 16).ok()
            }
            None if lower.len() > 1
                && lower.starts_with('0')
                && lower.bytes().all(|b| (b'0'..b'8').contains(&b)) =>
            {
                u64::from_str_radix(&lower, 8).ok()
            }
            None if !lower.is_empty() && lower.bytes().all(|b| b.is_ascii_digit()) => lower.parse().ok(),
            _ => None,
        }
    };
    let (last, first) = parts.split_last()?;
    if first.len() > 3 {
        return None;
    }
    let mut bits = 0_u64;
    for part in first {
        bits = bits << 8 | number(part).filter(|n| *n < 256)?;
    }
    let room = 32 - 8 * first.len() as u32;
    let last = number(last).filter(|n| *n < 1 << room)?;
    Some(Ipv4Addr::from_bits((bits << room | last) as u32))
}

/// What a guarded target may be.
fn check(target: &Target) {
    assert!(target.port != 0 && !target.host.is_empty() && target.host.len() <= 254);
    assert!(target.path_and_query.starts_with('/'), "{target:?}");
    let is_sent = |b: u8| b.is_ascii_graphic();
    assert!(target.path_and_query.bytes().all(is_sent) && target.host.bytes().all(is_sent), "{target:?}");
    assert!(!target.host.contains(['@', '/', '\\', '?', '#', '[', ']', '%']), "{target:?}");
    // Whatever some resolver would take for an address was judged as one.
    let as_address = target.host.parse::<IpAddr>().ok();
    assert_eq!(as_address, target.literal, "{target:?}");
    let unrooted = target.host.strip_suffix('.').unwrap_or(&target.host);
    if let Some(four) = inet_aton(unrooted) {
        assert_eq!(target.literal, Some(IpAddr::V4(four)), "{target:?}");
    }
    if let Some(address) = target.literal {
        assert!(is_globally_reachable(address) && !is_surely_private(address), "{target:?}");
    }
    // What is asked for is read as what was judged.
    let again = Target::parse(&target.url());
    assert_eq!(again.as_ref(), Ok(target));
}

/// Nothing private comes out, whatever goes in.
pub fn guard(data: &[u8]) {
    let Script { spelling, method, headers, addresses } = read(data);
    let url = match spelling {
        Spelling::Nothing => return addresses_alone(&addresses),
        Spelling::Any(text) => text,
        Spelling::Host { before, host, after } => [before.text(), host, after].concat(),
        Spelling::Numbers { before, parts, dot } => {
            let part = |(number, base): &(u32, u8)| match base % 6 {
                0 => alloc::format!("{number:#x}"),
                1 => alloc::format!("0{number:o}"),
                2 => alloc::format!("{}", number % 256),
                3 => alloc::format!("{number:#X}"),
                4 => alloc::format!("%3{}", number % 10),
                _ => alloc::format!("{number}"),
            };
            let parts: Vec<String> = parts.iter().take(6).map(part).collect();
            [&*before.text(), &parts.join("."), if dot { "./" } else { "/" }].concat()
        }
        Spelling::Six { before, address } => {
            let text = match address.ip() {
                IpAddr::V4(four) => alloc::format!("[::{four}]"),
                IpAddr::V6(six) => alloc::format!("[{six}]"),
            };
            [before.text(), text].concat()
        }
        Spelling::Socket { host, port } => {
            if let Ok(target) = socket_target(&host, port, Audience::Stranger) {
                check(&target);
                assert_eq!(target.port, port);
            }
            return;
        }
    };
    addresses_alone(&addresses);
    let bounds = Limits::default().bounds(1024);
    let body = Some(Vec::from(*b"body"));
    let request = Request { url: &url, method: method.as_deref(), headers, body };
    let Ok(fetch) = fetch(request, Audience::Stranger, bounds) else { return };
    assert!(url.len() <= MAX_URL);
    check(&fetch.target);
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    assert!(!fetch.method.is_empty() && fetch.method.bytes().all(is_token));
    assert!(!["CONNECT", "TRACE", "TRACK"].contains(&&*fetch.method.to_ascii_uppercase()));
    assert_eq!(fetch.body.is_none(), ["GET", "HEAD"].contains(&&*fetch.method));
    assert!(fetch.headers.iter().any(|(name, _)| name == "user-agent"));
    for (name, value) in &fetch.headers {
        assert!(
            !name.is_empty() && name.bytes().all(is_token) && !name.bytes().any(|b| b.is_ascii_uppercase())
        );
        assert!(
            !value.contains(['\r', '\n', '\0']) && value.chars().all(|c| u32::from(c) < 256),
            "{value:?}"
        );
        assert_eq!(value.trim_matches([' ', '\t']), value);
        let of_the_hop =
            ["connection", "host", "content-length", "transfer-encoding", "te", "trailer", "upgrade"];
        assert!(!of_the_hop.contains(&name.as_str()), "{name}");
    }
}

fn addresses_alone(addresses: &[Address]) {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.ip()).collect();
    for address in &addresses {
        assert!(!is_globally_reachable(*address) || !is_surely_private(*address), "{address}");
    }
    match permit(&addresses) {
        Ok(chosen) => {
            assert_eq!(Some(&chosen), addresses.first());
            assert!(!addresses.iter().any(|address| is_surely_private(*address)), "{addresses:?}");
        }
        Err(_) => {
            assert!(addresses.is_empty() || addresses.iter().any(|address| !is_globally_reachable(*address)));
        }
    }
}
