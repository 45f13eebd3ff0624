//! What goes direct though there is a proxy: `NO_PROXY`.
//!
//! There is no standard. These are the forms that other programs read the same way: `*` for all; a host name, which
//! stands for its subdomains too; `.example.org` and `*.example.org`, which stand for these alone; an address; a network
//! (`10.0.0.0/8`). Each may have a port, but for a network.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::guard::Target;

/// How many entries are read.
const MAX_ENTRIES: usize = 1024;

/// The longest entry that is read, in bytes: a name and a port.
const MAX_ENTRY: usize = 270;

/// What goes direct.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bypass {
    entries: Vec<Entry>,
    /// Entries that are none of the forms and were passed over, a few of them: an operator wants to know.
    pub unread: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    what: What,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    All,
    /// A name and those below it, or those alone.
    Name {
        name: String,
        itself: bool,
    },
    /// Its first so many bits.
    Network(IpAddr, u32),
}

impl Bypass {
    /// Reads a list with commas or spaces between. What cannot be read is passed over, because other programs read the
    /// same list: [`unread`](Self::unread) has it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut all = Self::default();
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        for word in words.take(MAX_ENTRIES) {
            match entry(word) {
                Some(entry) => all.entries.push(entry),
                None if all.unread.len() < 8 => all.unread.push(word.chars().take(80).collect()),
                None => {}
            }
        }
        all
    }

    /// Whether a connection to `target` goes direct.
    #[must_use]
    pub fn covers(&self, target: &Target) -> bool {
        self.entries.iter().any(|entry| entry.covers(target))
    }
}

impl Entry {
    fn covers(&self, target: &Target) -> bool {
        self.port.is_none_or(|port| port == target.port)
            && match (&self.what, target.literal) {
                (What::All, _) => true,
                (What::Network(network, bits), Some(address)) => is_in(address, *network, *bits),
                (What::Name { name, itself }, None) => {
                    // A name may end with a dot and is the same.
                    let host = target.host.strip_suffix('.').unwrap_or(&target.host);
                    let above = host.strip_suffix(name.as_str());
                    above.is_some_and(|above| if above.is_empty() { *itself } else { above.ends_with('.') })
                }
                _ => false,
            }
    }
}

fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address.to_canonical(), network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (address.to_bits() ^ network.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            (address.to_bits() ^ network.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

fn entry(word: &str) -> Option<Entry> {
    if word.len() > MAX_ENTRY {
        return None;
    }
    let address = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let one = |address: IpAddr| What::Network(address, if address.is_ipv4() { 32 } else { 128 });
    if word == "*" {
        return Some(Entry { what: What::All, port: None });
    }
    if let Some((network, bits)) = word.split_once('/') {
        let network = network.parse::<IpAddr>().ok()?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = number(bits).map(u32::from).filter(|bits| *bits <= most)?;
        return Some(Entry { what: What::Network(network, bits), port: None });
    }
    // An IPv6 address without brackets has no port.
    if let Some(address) = address(word) {
        return Some(Entry { what: one(address), port: None });
    }
    let (host, port) = match word.rsplit_once(':') {
        Some((host, port)) => (host, Some(number(port).filter(|port| *port > 0)?)),
        None => (word, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(address) = address(bare.unwrap_or(host)) {
        return Some(Entry { what: one(address), port });
    }
    if host == "*" {
        return Some(Entry { what: What::All, port });
    }
    let (name, itself) = match host.strip_prefix('*').unwrap_or(host).strip_prefix('.') {
        Some(name) => (name, false),
        None => (host, true),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_name = !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    is_name.then_some(Entry { what: What::Name { name, itself }, port })
}

fn number(text: &str) -> Option<u16> {
    // `parse` takes a plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_cover_what_other_programs_take_them_for() {
        let host = |host: &str| Target::parse(&alloc::format!("https://{host}/")).unwrap();
        for (list, covered, not) in [
            ("*", &["a.example", "1.2.3.4", "[::1]"][..], &[][..]),
            (
                "example.org",
                &["example.org", "EXAMPLE.org", "a.example.org", "example.org."],
                &["notexample.org", "org"],
            ),
            (".example.org", &["a.example.org", "a.b.example.org"], &["example.org", "aexample.org"]),
            ("*.example.org", &["a.example.org"], &["example.org"]),
            ("a.example, b.example c.example", &["a.example", "b.example", "c.example"], &["d.example"]),
            ("example.org:8443", &["example.org:8443", "a.example.org:8443"], &["example.org"]),
            ("example.org:443", &["example.org"], &["example.org:8443"]),
            ("*:8443", &["a.example:8443"], &["a.example"]),
            ("10.0.0.0/8", &["10.255.0.1"], &["11.0.0.1", "name.example", "[::a00:1]"]),
            ("0.0.0.0/0", &["10.255.0.1"], &["[2001:db8::1]", "name.example"]),
            ("192.0.2.7", &["192.0.2.7", "192.0.2.7:8443", "[::ffff:192.0.2.7]"], &["192.0.2.8"]),
            ("192.0.2.7:8443", &["192.0.2.7:8443"], &["192.0.2.7"]),
            ("192.0.2.7/32", &["192.0.2.7"], &["192.0.2.6"]),
            ("2001:db8::/32", &["[2001:db8:1::7]"], &["[2001:db9::7]", "32.1.13.184"]),
            ("::/0", &["[2001:db8:1::7]"], &["1.2.3.4"]),
            ("::1", &["[::1]", "[::1]:8443"], &["[::2]"]),
            ("[::1]:8443", &["[::1]:8443"], &["[::1]"]),
            ("localhost", &["localhost"], &["127.0.0.1"]),
            ("", &[], &["a.example"]),
            (",, ,", &[], &["a.example"]),
        ] {
            let bypass = Bypass::parse(list);
            assert!(bypass.unread.is_empty(), "{list}: {:?}", bypass.unread);
            for name in covered {
                assert!(bypass.covers(&host(name)), "{list:?} covers {name}");
            }
            for name in not {
                assert!(!bypass.covers(&host(name)), "{list:?} does not cover {name}");
            }
        }
    }

    #[test]
    fn what_is_none_of_the_forms_is_passed_over_and_told() {
        let words =
            ["10.0.0.0/33", "169.254/16", "a.example:0", "a.example:+1", "a..b", "<local>", "::/129", "/8"];
        let bypass = Bypass::parse(&alloc::format!("{},good.example", words.join(",")));
        assert_eq!(bypass.unread, words);
        assert!(bypass.covers(&Target::parse("https://good.example/").unwrap()));
        let many = "<local>,".repeat(MAX_ENTRIES + 1) + "good.example";
        let bypass = Bypass::parse(&many);
        assert_eq!(bypass.unread.len(), 8);
        assert!(!bypass.covers(&Target::parse("https://good.example/").unwrap()), "it is bounded");
        assert_eq!(Bypass::parse(&"x".repeat(MAX_ENTRY + 1)).entries, []);
    }
}
