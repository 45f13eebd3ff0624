//! Outbound proxies: which one a connection of the node's own goes through, and how it is asked for a tunnel (CONNECT,
//! RFC 9110, 9.3.6).
//!
//! For what the node does for itself: its tunnel, registration, manifests, downloads. What it fetches for others never
//! goes through a proxy: a stranger would get to wherever that one can, past the [guard](crate::guard).
//!
//! Pure: the shell says what `HTTPS_PROXY` and its kin hold, connects to what [`Proxies::of`] names, and drives a
//! [`Request`] over the connection before anything else.

mod bypass;

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use url::{Host, Url};
use zeroize::Zeroizing;

pub use self::bypass::Bypass;
use crate::guard::{Scheme, Target, USER_AGENT};
use crate::text::printable;
use crate::wire::base64;

/// The longest URL of a proxy, in bytes.
pub const MAX_PROXY_URL: usize = 2048;

/// What a proxy's answer may have before its empty line, in bytes, interim answers included.
pub const MAX_PROXY_HEAD: usize = 16 * 1024;

/// What is shorter, in bytes, is in every text: it is not looked for in what a proxy says.
const SHORTEST_SECRET: usize = 4;

/// A proxy that connections are made through.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: Host<String>,
    port: u16,
    /// The value of `Proxy-Authorization`. Never shown.
    authorization: Option<Zeroizing<String>>,
    /// The setting that named it: what an operator has to look at.
    setting: String,
}

impl Proxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]`; the scheme may be left out. `setting` is what the text comes from.
    ///
    /// # Errors
    /// It is not one of that form. What is said holds nothing of the text: it may have a password.
    pub fn parse(text: &str, setting: &str) -> Result<Self, String> {
        if text.len() > MAX_PROXY_URL {
            return Err("it is too long".to_string());
        }
        let whole = if text.contains("://") { text.to_string() } else { format!("http://{text}") };
        let url = Url::parse(&whole).map_err(|error| error.to_string())?;
        match url.scheme() {
            "http" => {}
            "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
                return Err("SOCKS is not spoken here".to_string());
            }
            "https" => return Err("proxies are not spoken to over TLS here".to_string()),
            _ => return Err("it has another scheme".to_string()),
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("it has a path, query or fragment".to_string());
        }
        let host = url.host().ok_or("it has no host")?.to_owned();
        let port = url.port().unwrap_or(Scheme::Http.default_port());
        if port == 0 {
            return Err("its port is 0".to_string());
        }
        let authorization = if url.username().is_empty() && url.password().is_none() {
            None
        } else {
            let mut user = Zeroizing::new(unescaped(url.username()));
            if user.contains(&b':') {
                return Err("a user name with a colon cannot be sent".to_string());
            }
            user.push(b':');
            user.extend_from_slice(&Zeroizing::new(unescaped(url.password().unwrap_or_default())));
            Some(Zeroizing::new(format!("Basic {}", base64::encode(&user))))
        };
        Ok(Self { host, port, authorization, setting: setting.to_string() })
    }

    /// Where to connect. It is the operator's own choice, so it may be at any address.
    #[must_use]
    pub fn target(&self) -> Target {
        let (host, literal) = match &self.host {
            Host::Domain(name) => (name.clone(), None),
            Host::Ipv4(address) => (address.to_string(), Some((*address).into())),
            Host::Ipv6(address) => (address.to_string(), Some((*address).into())),
        };
        Target { scheme: Scheme::Http, host, port: self.port, path_and_query: "/".to_string(), literal }
    }

    /// Whether the URL holds a user name or password.
    #[must_use]
    pub const fn has_credentials(&self) -> bool {
        self.authorization.is_some()
    }

    /// What it is let in by, in each form that somebody may say back: to be hidden.
    #[must_use]
    pub fn secrets(&self) -> Vec<Zeroizing<String>> {
        let Some(sent) = self.authorization.as_ref().and_then(|value| value.strip_prefix("Basic ")) else {
            return Vec::new();
        };
        let pair = Zeroizing::new(base64::decode(sent).unwrap_or_default());
        let pair = Zeroizing::new(String::from_utf8_lossy(&pair).into_owned());
        let (user, password) = pair.split_once(':').unwrap_or((&pair, ""));
        [sent, user, password].map(|text| Zeroizing::new(text.to_string())).into()
    }

    /// That there is no connection to the proxy itself, and what to do.
    #[must_use]
    pub fn unreachable(&self, detail: &str) -> String {
        format!("the proxy cannot be reached: {detail}; is {} right?", self.setting)
    }

    /// That the proxy did not answer, within a time in words.
    #[must_use]
    pub fn silent(&self, time: &str) -> String {
        format!("no connection within {time}: the proxy {self} did not answer; is {} right?", self.setting)
    }
}

/// `HOST:PORT`, without what it is let in by.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// `%41` is `A`; what is no such triple stays.
fn unescaped(text: &str) -> Vec<u8> {
    let digit =
        |byte: Option<&u8>| char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Which connections go through which proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `https` and `wss`.
    pub https: Option<Proxy>,
    /// For `http` and `ws`.
    pub http: Option<Proxy>,
    /// For those of the two that have none of their own.
    pub all: Option<Proxy>,
    /// What goes direct all the same.
    pub bypass: Bypass,
}

impl Proxies {
    /// The proxy for a connection of the node's own, if it goes through one.
    #[must_use]
    pub fn of(&self, target: &Target) -> Option<&Proxy> {
        let own = match target.scheme {
            Scheme::Https => &self.https,
            Scheme::Http => &self.http,
        };
        own.as_ref().or(self.all.as_ref()).filter(|_| !self.bypass.covers(target))
    }
}

/// Why a proxy makes no tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It said no, in its own words.
    Status(u16, String),
    /// What it says is not HTTP.
    NotHttp,
    /// Its answer is over [`MAX_PROXY_HEAD`].
    TooLong,
    /// It says something of its own in the tunnel, where the other side speaks when it was asked.
    Early,
    /// It ended the connection.
    Ended,
}

/// A tunnel being asked for: write [`to_write`](Self::to_write) until it is empty, then read and hand over what comes
/// until [`received`](Self::received) says that the tunnel is there. From then on the connection is one to the target.
pub struct Request<'a> {
    proxy: &'a Proxy,
    /// `HOST:PORT` of the target.
    authority: String,
    head: Zeroizing<Vec<u8>>,
    written: usize,
    answer: Vec<u8>,
    /// Bytes of interim answers that were passed over.
    passed: usize,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    /// Asks `proxy` for a tunnel to `target`.
    #[must_use]
    pub fn new(proxy: &'a Proxy, target: &Target) -> Self {
        let authority = match target.literal {
            Some(core::net::IpAddr::V6(address)) => format!("[{address}]:{}", target.port),
            _ => format!("{}:{}", target.host, target.port),
        };
        let mut head = Zeroizing::new(Vec::with_capacity(512));
        for part in
            ["CONNECT ", &authority, " HTTP/1.1\r\nHost: ", &authority, "\r\nUser-Agent: ", USER_AGENT]
        {
            head.extend_from_slice(part.as_bytes());
        }
        if let Some(authorization) = &proxy.authorization {
            head.extend_from_slice(b"\r\nProxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
        }
        head.extend_from_slice(b"\r\n\r\n");
        Self { proxy, authority, head, written: 0, answer: Vec::new(), passed: 0 }
    }

    /// What is still to be written.
    #[must_use]
    pub fn to_write(&self) -> &[u8] {
        self.head.get(self.written..).unwrap_or_default()
    }

    /// So many bytes of [`to_write`](Self::to_write) were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Takes what came; nothing is the end of the connection. Whether the tunnel is there.
    ///
    /// # Errors
    /// There is none. [`explain`](Self::explain) says it to the operator.
    pub fn received(&mut self, bytes: &[u8]) -> Result<bool, Refused> {
        if bytes.is_empty() {
            return Err(Refused::Ended);
        }
        let room = MAX_PROXY_HEAD.saturating_sub(self.passed + self.answer.len());
        self.answer.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        while let Some(end) = head_end(&self.answer) {
            let (status, reason) = status_line(&self.answer).ok_or(Refused::NotHttp)?;
            match status {
                // It changes to no protocol that was asked for.
                101 => return Err(Refused::Status(status, reason)),
                100..=199 => {
                    self.passed += end;
                    self.answer.drain(..end);
                }
                // A length or coding of such an answer means nothing (RFC 9110, 9.3.6).
                200..=299 if bytes.len() <= room && self.answer.len() == end => return Ok(true),
                200..=299 => return Err(Refused::Early),
                _ => return Err(Refused::Status(status, reason)),
            }
        }
        let is_http = b"HTTP/1.".iter().zip(&self.answer).all(|(wanted, byte)| wanted == byte);
        match bytes.len() {
            _ if !is_http => Err(Refused::NotHttp),
            length if length >= room => Err(Refused::TooLong),
            _ => Ok(false),
        }
    }

    /// What was refused, in the proxy's own words, and what to do: one line, fit for a log.
    #[must_use]
    pub fn explain(&self, refused: &Refused) -> String {
        let Proxy { authorization, setting, .. } = self.proxy;
        let (said, advice) = match refused {
            Refused::Status(status, reason) => {
                let advice = match status {
                    // Some proxies say 401 for it.
                    401 | 407 if authorization.is_none() => format!(
                        "put the user name and password that it wants into {setting}: http://USER:PASSWORD@HOST:PORT"
                    ),
                    401 | 407 => format!("it does not take the user name and password in {setting}"),
                    403 => "have this destination and port allowed there, or name the host in NO_PROXY"
                        .to_string(),
                    400 | 404 | 405 | 501 => format!("is {setting} a proxy that makes tunnels (CONNECT)?"),
                    429 | 500..=599 => "it does not reach the server: look there, or try later".to_string(),
                    _ => format!("is {setting} right?"),
                };
                // What it was sent is no more for a log when it comes back.
                let hide = |text: String, secret: &Zeroizing<String>| match secret.len() {
                    0..SHORTEST_SECRET => text,
                    _ => text.replace(secret.as_str(), "(not shown)"),
                };
                let reason = self.proxy.secrets().iter().fold(reason.clone(), hide);
                let space = if reason.is_empty() { "" } else { " " };
                (format!("answers {status}{space}{reason}"), advice)
            }
            Refused::NotHttp => ("does not answer in HTTP".to_string(), format!("is {setting} a proxy's?")),
            Refused::TooLong => ("answers with too much".to_string(), format!("is {setting} a proxy's?")),
            Refused::Early => {
                ("puts words of its own into the tunnel".to_string(), "it cannot be used".to_string())
            }
            Refused::Ended => {
                ("closes the connection without an answer".to_string(), format!("is {setting} right?"))
            }
        };
        format!("the proxy {} {said} to CONNECT {}; {advice}", self.proxy, self.authority)
    }
}

/// Where a head ends, its empty line included. A line may end without a carriage return (RFC 9112, 2.2).
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut begin = 0;
    while let Some(length) = bytes.get(begin..)?.iter().position(|byte| *byte == b'\n') {
        let line = &bytes[begin..begin + length];
        if begin > 0 && (line.is_empty() || line == b"\r") {
            return Some(begin + length + 1);
        }
        begin += length + 1;
    }
    None
}

fn status_line(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
    let rest = line.strip_prefix("HTTP/1.")?.strip_prefix(|c: char| c.is_ascii_digit())?.strip_prefix(' ')?;
    let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_status = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    let status = code.parse().ok().filter(|status| is_status && (100..=599).contains(status))?;
    Some((status, printable(reason).trim().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    fn proxy(text: &str) -> Proxy {
        Proxy::parse(text, "HTTPS_PROXY").unwrap()
    }

    fn asked(proxy: &Proxy, url: &str) -> String {
        String::from_utf8(Request::new(proxy, &target(url)).to_write().to_vec()).unwrap()
    }

    #[test]
    fn a_proxy_is_read_with_and_without_scheme_port_and_credentials() {
        for (text, shown, credentials) in [
            ("http://proxy.example:3128", "proxy.example:3128", false),
            ("http://proxy.example/", "proxy.example:80", false),
            ("PROXY.example:3128", "proxy.example:3128", false),
            ("10.0.0.1:3128", "10.0.0.1:3128", false),
            ("http://[::1]:3128", "[::1]:3128", false),
            ("user:secret@proxy.example:1", "proxy.example:1", true),
            ("http://user@proxy.example:1", "proxy.example:1", true),
        ] {
            let proxy = proxy(text);
            assert_eq!((proxy.to_string().as_str(), proxy.has_credentials()), (shown, credentials), "{text}");
            assert!(!format!("{proxy:?}").contains("secret"));
        }
        assert_eq!(proxy("http://[::1]:3128").target().literal, Some("::1".parse().unwrap()));
        assert_eq!(proxy("p:1").target().literal, None);
        for text in [
            "",
            "http://",
            "socks5://secret@proxy:1",
            "https://user:secret@proxy:1",
            "ftp://user:secret@proxy",
            "http://user:secret@proxy/path",
            "http://user:secret@proxy:0",
            "http://user:secret@proxy:99999",
            "http://us%3Aer:secret@proxy",
            "http://user:secret@pro xy",
            "http://user:secret@",
        ] {
            let error = Proxy::parse(text, "HTTPS_PROXY").unwrap_err();
            assert!(!error.is_empty() && !error.contains("secret"), "{text}: {error}");
        }
        assert!(Proxy::parse(&"x".repeat(MAX_PROXY_URL + 1), "").is_err());
    }

    #[test]
    fn the_request_names_the_target_and_carries_what_the_proxy_lets_in_by() {
        let plain = proxy("http://proxy.example:3128");
        assert_eq!(
            asked(&plain, "https://server.example/x"),
            "CONNECT server.example:443 HTTP/1.1\r\nHost: server.example:443\r\n\
             User-Agent: Consensus-Node/0.1\r\n\r\n"
        );
        assert!(asked(&plain, "http://[::1]:8080/").starts_with("CONNECT [::1]:8080 HTTP/1.1\r\n"));
        // RFC 7617, section 2; an escaped sign is sent as itself.
        let with = asked(&proxy("http://Aladdin:open%20sesame@proxy.example"), "https://server.example/");
        assert!(
            with.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"),
            "{with}"
        );
        assert_eq!(unescaped("a%2Fb%zz%4"), b"a/b%zz%4");
    }

    #[test]
    fn what_a_proxy_lets_in_by_is_known_in_every_form_that_it_may_say_back() {
        let secrets = proxy("http://op%2Fer:s3%2Fcr%20et@proxy.example").secrets();
        let secrets: Vec<&str> = secrets.iter().map(|secret| secret.as_str()).collect();
        assert_eq!(secrets, ["b3AvZXI6czMvY3IgZXQ=", "op/er", "s3/cr et"]);
        assert!(proxy("http://proxy.example").secrets().is_empty());
    }

    #[test]
    fn the_scheme_decides_then_all_then_nothing() {
        let (https, http, all) = (proxy("a:1"), proxy("b:1"), proxy("c:1"));
        let mut proxies = Proxies { https: Some(https), all: Some(all), ..Proxies::default() };
        let of = |proxies: &Proxies, url| proxies.of(&target(url)).map(ToString::to_string);
        assert_eq!(of(&proxies, "https://x/").as_deref(), Some("a:1"));
        assert_eq!(of(&proxies, "http://x/").as_deref(), Some("c:1"));
        proxies.http = Some(http);
        assert_eq!(of(&proxies, "http://x/").as_deref(), Some("b:1"));
        proxies.bypass = Bypass::parse("x");
        assert_eq!(of(&proxies, "https://x/"), None);
        assert_eq!(of(&Proxies::default(), "https://x/"), None);
    }

    #[test]
    fn an_answer_is_the_same_whole_and_byte_by_byte() {
        let proxy = proxy("p:1");
        let target = target("https://server.example/");
        let cases: &[(&str, Result<bool, Refused>)] = &[
            ("HTTP/1.1 200 Connection established\r\n\r\n", Ok(true)),
            ("HTTP/1.0 200\n\n", Ok(true)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nVia: x\r\n\r\n", Ok(true)),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\n", Ok(true)),
            ("HTTP/1.1 200 OK\r\nVia: x\r\n", Ok(false)),
            ("HTTP/1.1 403 Filtered\r\n\r\n", Err(Refused::Status(403, "Filtered".to_string()))),
            ("HTTP/1.1 407 \u{1b}[31mred\r\n\r\n", Err(Refused::Status(407, " [31mred".trim().to_string()))),
            ("HTTP/1.1 101 x\r\n\r\n", Err(Refused::Status(101, "x".to_string()))),
            ("HTTP/1.1 20 OK\r\n\r\n", Err(Refused::NotHttp)),
            ("HTTP/1.1 +20 OK\r\n\r\n", Err(Refused::NotHttp)),
            ("SSH-2.0-OpenSSH", Err(Refused::NotHttp)),
            ("\r\n", Err(Refused::NotHttp)),
        ];
        for (answer, expected) in cases {
            let whole = Request::new(&proxy, &target).received(answer.as_bytes());
            assert_eq!(&whole, expected, "{answer:?}");
            let mut request = Request::new(&proxy, &target);
            let mut pieces = Ok(false);
            for byte in answer.as_bytes() {
                pieces = request.received(&[*byte]);
                if pieces.is_err() {
                    break;
                }
            }
            assert_eq!(&pieces, expected, "{answer:?}");
        }
        assert_eq!(Request::new(&proxy, &target).received(b""), Err(Refused::Ended));
        let early = b"HTTP/1.1 200 OK\r\n\r\nx";
        assert_eq!(Request::new(&proxy, &target).received(early), Err(Refused::Early));
    }

    #[test]
    fn an_answer_without_end_ends_at_its_bound() {
        let proxy = proxy("p:1");
        let target = target("https://server.example/");
        let begin = b"HTTP/1.1 200 OK\r\nX: ";
        let long = [&begin[..], &vec![b'x'; MAX_PROXY_HEAD]].concat();
        assert_eq!(Request::new(&proxy, &target).received(&long), Err(Refused::TooLong));
        let mut request = Request::new(&proxy, &target);
        let fed = long.iter().position(|byte| request.received(&[*byte]).is_err());
        assert_eq!(fed, Some(MAX_PROXY_HEAD - 1));
        let interim = b"HTTP/1.1 100 x\r\n\r\n".repeat(MAX_PROXY_HEAD);
        let mut request = Request::new(&proxy, &target);
        assert!(interim.chunks(1000).any(|part| request.received(part).is_err()));
    }

    #[test]
    fn a_refusal_is_told_with_the_proxys_words_and_what_to_do_and_no_secret() {
        let (open, closed) = (proxy("proxy.example:3128"), proxy("http://op:s3cret@proxy.example:3128"));
        let told = |proxy: &Proxy, refused: Refused| {
            let target = target("https://server.example/");
            let text = Request::new(proxy, &target).explain(&refused);
            assert!(text.contains("proxy.example:3128") && text.contains("server.example:443"), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
            text
        };
        let status = |status, reason: &str| Refused::Status(status, reason.to_string());
        let text = told(&open, status(407, "Proxy Authentication Required"));
        assert!(
            text.contains("407 Proxy Authentication Required") && text.contains("USER:PASSWORD"),
            "{text}"
        );
        // s3cret and the header that it was sent in, said back.
        let text = told(&closed, status(407, "no s3cret b3A6czNjcmV0"));
        assert!(text.contains("407 no (not shown) (not shown) to CONNECT"), "{text}");
        let text = told(&closed, status(407, "No"));
        assert!(text.contains("does not take") && text.contains("HTTPS_PROXY"), "{text}");
        assert!(told(&open, status(403, "Filtered")).contains("403 Filtered"));
        assert!(told(&open, status(403, "Filtered")).contains("NO_PROXY"));
        assert!(told(&open, status(502, "")).contains("answers 502 to"));
        for refused in [Refused::NotHttp, Refused::TooLong, Refused::Early, Refused::Ended] {
            told(&open, refused);
        }
    }
}
