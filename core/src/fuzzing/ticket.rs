//! Tickets, and the requests that they are bound to.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use arbitrary::Arbitrary;
use serde_json::{Value, json};
use url::Url;

use super::transparent::Transparent;
use super::{UNIX, read};
use crate::crypto::Crypto as _;
use crate::data_plane::dedupe::key;
use crate::data_plane::ticket::{CLOCK_TOLERANCE, Claims, ISSUER, MAX_TOKEN, SCOPE, Token, issue};
use crate::limits::MAX_ID;
use crate::wire::{canonical, hex};

/// The node that all of it happens at.
pub(super) const NODE_ID: &str = "node-1";

/// Who signs tickets.
pub(super) const ISSUER_SEED: [u8; 32] = [7; 32];

/// A claim that is as it should be, or anything.
#[derive(Clone, Debug, Default, Arbitrary)]
pub(super) struct Claim(Option<String>);

impl Claim {
    fn or(&self, right: &str) -> String {
        self.0.clone().unwrap_or_else(|| right.to_string())
    }
}

/// What an issuer may write.
#[derive(Clone, Debug, Default, Arbitrary)]
pub(super) struct Written {
    issuer: Claim,
    audience: Claim,
    scope: Claim,
    name: u8,
    nameless: bool,
    /// Seconds around now.
    issued: i8,
    expires: i8,
    /// The end of time, for both.
    extreme: bool,
    /// Of another issuer's key.
    foreign: bool,
}

impl Written {
    /// The claims, for the request of this key.
    pub(super) fn claims(&self, sub: &str, now: u64) -> Claims<'static> {
        let time =
            |offset: i8| if self.extreme { u64::MAX } else { now.saturating_add_signed(offset.into()) };
        Claims {
            iss: self.issuer.or(ISSUER).into(),
            aud: self.audience.or(NODE_ID).into(),
            sub: sub.to_string().into(),
            scope: self.scope.or(SCOPE).into(),
            iat: time(self.issued),
            exp: time(self.expires),
            jti: if self.nameless { "".into() } else { alloc::format!("t{}", self.name).into() },
        }
    }

    pub(super) fn token(&self, claims: &Claims<'_>) -> String {
        let seed = if self.foreign { [8; 32] } else { ISSUER_SEED };
        issue(&Transparent, &Transparent.signing_key(&seed), "k", claims)
    }

    /// Whether a node takes it, by section 10 read again. What it pays for is another question.
    pub(super) fn is_good(&self, claims: &Claims<'_>, token: &str, now: u64) -> bool {
        let in_time = claims.exp.saturating_add(CLOCK_TOLERANCE) >= now
            && claims.iat <= now.saturating_add(CLOCK_TOLERANCE);
        !self.foreign
            && claims.iss == ISSUER
            && claims.aud == NODE_ID
            && claims.scope == SCOPE
            && !claims.jti.is_empty()
            && claims.jti.len() <= MAX_ID
            && !claims.sub.is_empty()
            && in_time
            && token.len() <= MAX_TOKEN
    }
}

#[derive(Debug, Default, Arbitrary)]
struct Script {
    written: Written,
    sub: String,
    /// Changes to the token's text.
    damage: Vec<(u16, u8)>,
    /// Instead of all that.
    text: Option<String>,
}

/// A ticket is taken exactly if it is one, and nothing that was changed on its way is.
pub fn ticket(data: &[u8]) {
    let Script { written, sub, damage, text } = read(data);
    let issuer_key = Transparent.public_key(&ISSUER_SEED);
    let claims = written.claims(&sub, UNIX);
    let token = written.token(&claims);
    let taken = |token: &str| {
        let mut token = Token::parse(token).ok()?;
        let claims = token.verify(&Transparent, &issuer_key, NODE_ID, UNIX).ok()?;
        let owned = |text: Cow<'_, str>| text.into_owned();
        Some((owned(claims.iss), owned(claims.sub), owned(claims.jti), claims.iat, claims.exp))
    };
    let (iss, jti) = (claims.iss.clone().into_owned(), claims.jti.clone().into_owned());
    let expected = (iss, sub, jti, claims.iat, claims.exp);
    let is_good = written.is_good(&claims, &token, UNIX);
    assert_eq!(taken(&token), is_good.then(|| expected.clone()), "{claims:?}");
    let mut damaged = token.clone().into_bytes();
    for (at, with) in damage {
        let at = usize::from(at) % damaged.len();
        damaged[at] ^= with;
    }
    // The footer says which key, and is signed as well; the last letter of a part has bits that mean nothing, and
    // they are refused.
    if let Ok(damaged) = String::from_utf8(damaged) {
        if let Some(read) = taken(&damaged) {
            assert_eq!(read, expected, "{damaged}");
        }
    }
    if let Some(text) = text {
        let _ = taken(&text);
    }
}

/// What a client may want, of parts that meet the corners.
#[derive(Clone, Debug, Default, Arbitrary)]
pub(super) struct Wanted {
    url: Part,
    method: Option<Part>,
    headers: Vec<(Name, Part)>,
    pub(super) body: Option<Vec<u8>>,
}

#[derive(Clone, Debug, Default, Arbitrary)]
enum Name {
    #[default]
    Accept,
    ContentType,
    ApiKey,
    Upper,
    Other(String),
}

#[derive(Clone, Debug, Default, Arbitrary)]
enum Part {
    #[default]
    Usual,
    /// After the usual.
    After(String),
    Any(String),
}

impl Part {
    fn or(&self, usual: &str) -> String {
        match self {
            Self::Usual => usual.into(),
            Self::After(rest) => [usual, rest].concat(),
            Self::Any(text) => text.clone(),
        }
    }
}

impl Wanted {
    pub(super) fn url(&self) -> String {
        self.url.or("http://target.example/a?b=1&a=2")
    }

    pub(super) fn method(&self) -> Option<String> {
        self.method.as_ref().map(|method| method.or("POST"))
    }

    pub(super) fn headers(&self) -> Vec<(String, String)> {
        let name = |name: &Name| match name {
            Name::Accept => "accept".to_string(),
            Name::ContentType => "content-type".to_string(),
            Name::ApiKey => "x-api-key".to_string(),
            Name::Upper => "ACCEPT".to_string(),
            Name::Other(text) => text.clone(),
        };
        self.headers.iter().map(|(n, value)| (name(n), value.or("text/plain"))).collect()
    }

    /// Its header fields as a JSON object has them: in the order of their names, of two of one name the last.
    pub(super) fn keep_last_headers(&mut self) {
        let fields: BTreeMap<String, String> = self.headers().into_iter().collect();
        self.headers =
            fields.into_iter().map(|(name, value)| (Name::Other(name), Part::Any(value))).collect();
    }

    /// Its name, by the definition.
    pub(super) fn defined(&self) -> Option<String> {
        let headers = self.headers();
        let method = self.method().unwrap_or_else(|| "GET".into());
        defined(&self.url(), &method, &headers, self.body.as_deref())
    }
}

/// The name of a request is the hash of its canonical JSON, whatever its texts, and does not depend on how the same is
/// spelt.
pub fn dedupe(data: &[u8]) {
    let wanted: Wanted = read(data);
    let (url, headers) = (wanted.url(), wanted.headers());
    let method = wanted.method().unwrap_or_else(|| "GET".into());
    let pairs = || headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let named = key(&Transparent, &url, &method, pairs(), wanted.body.as_deref());
    assert_eq!(named, wanted.defined(), "{wanted:?}");
    // What does not count: the fragment, the method's case.
    if named.is_some() && !url.contains('#') && url.len() < 10_000 {
        let again = [&url, "#f"].concat();
        // A URL that ends in blanks loses them, and none before a fragment.
        if url.trim_end_matches(|c: char| c <= ' ') == url && method.is_ascii() {
            let lower = method.to_ascii_lowercase();
            assert_eq!(key(&Transparent, &again, &lower, pairs(), wanted.body.as_deref()), named);
        }
    }
    // Names whose order depends on what of them is counted.
    const NAMES: [&str; 8] =
        ["a", "%7f", "%c3%a9", "%ed%9f%bf", "%ee%80%80", "%ef%bf%bd", "%f0%90%80%80", "%F4%8F%BF%BF"];
    let name = |at: usize| NAMES[data.get(at).map_or(0, |byte| usize::from(byte % 8))];
    let query = alloc::format!("http://target.example/?{}=1&{}=2&{}=3", name(0), name(1), name(2));
    assert_eq!(key(&Transparent, &query, "GET", [], None), defined(&query, "GET", &[], None), "{query}");
    let longer = [wanted.body.as_deref().unwrap_or_default(), b"x"].concat();
    let other = key(&Transparent, &url, &method, pairs(), Some(&longer));
    assert!(other.is_none() || other != named, "the body counts");
}

/// The key by its definition.
fn defined(url: &str, method: &str, headers: &[(String, String)], body: Option<&[u8]>) -> Option<String> {
    let hash = |bytes: &[u8]| hex::encode(&Transparent.sha256(&[bytes]));
    let mut scope = "global".to_string();
    let mut kept = serde_json::Map::new();
    for (name, value) in headers {
        match &*name.to_ascii_lowercase() {
            "x-api-key" => scope = hash(value.as_bytes()),
            name @ ("accept" | "content-type") => {
                let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
                if !value.is_empty() {
                    kept.insert(name.to_string(), value.into());
                }
            }
            _ => {}
        }
    }
    let named: Value = json!({
        "v": 1, "scope": scope, "method": method.to_uppercase(), "url": plain_url(url)?, "headers": kept,
        "body_hash": body.map_or("no-body".to_string(), hash),
    });
    Some(hash(canonical::to_canonical(&named).as_bytes()))
}

/// A URL with its query sorted: decoded, compared and encoded letter by letter.
fn plain_url(url: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_fragment(None);
    let Some(query) = url.query() else { return Some(url.into()) };
    let decode = |text: &str| {
        let (mut out, bytes) = (Vec::new(), text.as_bytes());
        let mut at = 0;
        while at < bytes.len() {
            let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            match (bytes[at], digit(at + 1), digit(at + 2)) {
                (b'%', Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                }
                (b'+', ..) => out.push(b' '),
                (byte, ..) => out.push(byte),
            }
            at += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let mut pairs: Vec<(Vec<u16>, Vec<u16>)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name).encode_utf16().collect(), decode(value).encode_utf16().collect()))
        .collect();
    pairs.sort();
    let encode = |text: &[u16]| {
        let mut out = String::new();
        for byte in String::from_utf16_lossy(text).into_bytes() {
            match byte {
                b'*' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => out.push(byte.into()),
                b' ' => out.push('+'),
                _ => out.push_str(&alloc::format!("%{byte:02X}")),
            }
        }
        out
    };
    let query: Vec<String> =
        pairs.iter().map(|(name, value)| [&encode(name), "=", &encode(value)].concat()).collect();
    url.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
    Some(url.into())
}
