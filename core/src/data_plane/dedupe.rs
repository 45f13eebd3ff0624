//! The dedupe key: what names a request, so that a ticket can be bound to it (protocol.md section 10).

use alloc::string::String;
use alloc::vec::Vec;

use url::Url;
use url::form_urlencoded::Serializer;

use crate::crypto::Crypto;
use crate::wire::hex;
use crate::wire::json::{Bytes, Object};

/// The key of a request: 64 hex digits. `None` where the URL is not one.
pub fn key<'h, C: Crypto>(
    crypto: &C,
    url: &str,
    method: &str,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
    body: Option<&[u8]>,
) -> Option<String> {
    Some(hex::encode(&digest(crypto, url, method, headers, body, Vec::new())?))
}

/// The key as bytes. `scratch` is memory that may be used, whatever is in it.
pub(crate) fn digest<'h, C: Crypto>(
    crypto: &C,
    url: &str,
    method: &str,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
    body: Option<&[u8]>,
    mut scratch: Vec<u8>,
) -> Option<[u8; 32]> {
    let url = canonical_url(url)?;
    let (mut accept, mut content_type, mut api_key) = (None, None, None);
    for (name, value) in headers {
        let is_empty = value.split_whitespace().next().is_none();
        if name.eq_ignore_ascii_case("x-api-key") {
            api_key = Some(value);
        } else if name.eq_ignore_ascii_case("accept") && !is_empty {
            accept = Some(value);
        } else if name.eq_ignore_ascii_case("content-type") && !is_empty {
            content_type = Some(value);
        }
    }
    let (mut body_hash, mut scope) = ([0; 64], [0; 64]);
    let body_hash = match body {
        Some(body) => hex::encode_to(&crypto.sha256(&[body]), &mut body_hash),
        None => "no-body",
    };
    let scope = match api_key {
        Some(key) => hex::encode_to(&crypto.sha256(&[key.as_bytes()]), &mut scope),
        None => "global",
    };
    let length = |value: Option<&str>| value.map_or(0, str::len);
    scratch.clear();
    scratch.reserve(url.len() + length(accept) + length(content_type) + 320);
    let mut named = Bytes(scratch);
    // In canonical order.
    let mut object = Object::open(&mut named);
    object.text("body_hash", body_hash);
    let mut kept = object.object("headers");
    for (name, value) in [("accept", accept), ("content-type", content_type)] {
        if let Some(value) = value {
            kept.chars(name, words(value));
        }
    }
    kept.close();
    object.chars("method", method.chars().flat_map(char::to_uppercase));
    object.text("scope", scope);
    object.text("url", &url);
    object.number("v", 1);
    object.close();
    Some(crypto.sha256(&[&named.0]))
}

/// The words of a value, with one space between.
fn words(value: &str) -> impl Iterator<Item = char> + '_ {
    value.split_whitespace().flat_map(|word| core::iter::once(' ').chain(word.chars())).skip(1)
}

/// The URL without its fragment, its query decoded as form data, sorted by name and then value (UTF-16 code units),
/// and encoded again.
fn canonical_url(url: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_fragment(None);
    if url.query().is_none() {
        return Some(url.into());
    }
    let mut pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    // `cmp_by` of the two UTF-16 sequences; the sort keeps equal pairs as they are.
    pairs.sort_by(|a, b| utf16_cmp(&a.0, &b.0).then_with(|| utf16_cmp(&a.1, &b.1)));
    if pairs.is_empty() {
        url.set_query(None);
    } else {
        let query = Serializer::new(String::new()).extend_pairs(pairs).finish();
        url.set_query(Some(&query));
    }
    Some(url.into())
}

fn utf16_cmp(a: &str, b: &str) -> core::cmp::Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use crate::wire::canonical;
    use crate::wire::canonical::tests::vectors;
    use alloc::string::ToString as _;
    use serde_json::Value;

    fn key_of(url: &Value, method: &Value, headers: &Value, body: Option<&[u8]>) -> Option<String> {
        let headers = headers.as_object().cloned().unwrap_or_default();
        let headers: Vec<(String, String)> =
            headers.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_string())).collect();
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        key(&Pure, url.as_str().unwrap(), method.as_str().unwrap(), headers, body)
    }

    #[test]
    fn the_deployed_networks_keys_hold() {
        let Some(file) = vectors("dedupe") else { return };
        for vector in file["vectors"].as_array().unwrap() {
            let input = &vector["input"];
            // A body that is not text is hashed as its canonical JSON.
            let body = match &input["body"] {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                value => Some(canonical::to_canonical(value)),
            };
            let key = key_of(
                &input["target_url"],
                &input["method"],
                &input["headers"],
                body.as_deref().map(str::as_bytes),
            );
            assert_eq!(key.as_deref(), vector["key"].as_str(), "{}", vector["name"]);
        }
        let file = vectors("dedupe-more").unwrap();
        for vector in file["urls"].as_array().unwrap() {
            let url = vector["url"].as_str().unwrap();
            assert_eq!(canonical_url(url).as_deref(), vector["canonical_url"].as_str(), "{url}");
            let key = key_of(&vector["url"], &"GET".into(), &Value::Null, None);
            assert_eq!(key.as_deref(), vector["key_get"].as_str(), "{url}");
        }
        for vector in file["requests"].as_array().unwrap() {
            let body = vector["body_hex"].as_str().map(|text| hex::decode(text).unwrap());
            let key = key_of(&vector["target_url"], &vector["method"], &vector["headers"], body.as_deref());
            assert_eq!(key.as_deref(), vector["key"].as_str(), "{}", vector["target_url"]);
        }
    }

    #[test]
    fn requests_that_differ_in_what_counts_have_other_keys() {
        let base = |url, method, headers: &[(&'static str, &'static str)], body: Option<&[u8]>| {
            key(&Pure, url, method, headers.iter().copied(), body).unwrap()
        };
        let one = base("http://a.example/?b=1&a=2#f", "get", &[("Accept", " a  b ")], None);
        assert_eq!(
            one,
            base("http://a.example/?a=2&b=1", "GET", &[("accept", "a b"), ("x-other", "y")], None)
        );
        for other in [
            base("http://a.example/?a=2&b=2", "GET", &[("accept", "a b")], None),
            base("http://a.example/?a=2&b=1", "PUT", &[("accept", "a b")], None),
            base("http://a.example/?a=2&b=1", "GET", &[], None),
            base("http://a.example/?a=2&b=1", "GET", &[("accept", "a b")], Some(b"")),
            base("http://a.example/?a=2&b=1", "GET", &[("accept", "a b"), ("x-api-key", "k")], None),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(key(&Pure, "not a url", "GET", [], None), None);
    }

    /// The key by its definition: the hash of the canonical JSON of a value.
    fn defined(url: &str, method: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Option<String> {
        let hash = |bytes: &[u8]| hex::encode(&Pure.sha256(&[bytes]));
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
        let named = serde_json::json!({
            "v": 1, "scope": scope, "method": method.to_uppercase(), "url": canonical_url(url)?, "headers": kept,
            "body_hash": body.map_or("no-body".to_string(), hash),
        });
        Some(hash(canonical::to_canonical(&named).as_bytes()))
    }

    #[test]
    fn the_key_is_the_hash_of_canonical_json_whatever_the_texts() {
        let texts = [
            "",
            " ",
            "get",
            "stra\u{df}e",
            "\u{149}",
            "\u{130}\u{3c3}\u{3c2}\u{fb03}",
            "\u{2028}\u{2029}",
            "\u{1f600}\u{10428}",
            "\0\u{1}\u{8}\u{b}\u{c}\u{1f}\u{7f}\u{85}",
            "\"\\/",
            "\ta \u{a0}\u{3000} b\r\n",
        ];
        let names = [
            "accept",
            "Accept",
            "ACCEPT",
            "content-type",
            "Content-Type",
            "x-api-key",
            "X-Api-Key",
            "\u{212a}ey",
            "acc\u{e9}pt",
        ];
        let urls = [
            "http://a.example",
            "http://a.example/?",
            "http://a.example/?&#",
            "http://a.example/?a=%ff&a",
            "data:x  #f",
            "data:x  ?#f",
            "http://a.example/\u{2028}\"\\?\u{1f600}=\"",
            "x",
        ];
        let mut number = 0_usize;
        let mut next = |most: usize| {
            number = number.wrapping_mul(0x5851_f42d).wrapping_add(0x1405_7b7f) & 0xffff_ffff;
            (number >> 8) % most
        };
        for _ in 0..5000 {
            let (url, method) = (urls[next(urls.len())], texts[next(texts.len())]);
            let headers: Vec<_> =
                (0..next(5)).map(|_| (names[next(names.len())], texts[next(texts.len())])).collect();
            let body = [None, Some(&b""[..]), Some(b"\xff{}")][next(3)];
            let key = key(&Pure, url, method, headers.iter().copied(), body);
            assert_eq!(key, defined(url, method, &headers, body), "{url:?} {method:?} {headers:?}");
        }
    }
}
