//! What a proxy session says (protocol.md section 9): each datum a request, each answer a datum.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::io::Response;
use crate::limits::MAX_ID;
use crate::wire::base64;
use crate::wire::message::{BodyEncoding, JoinedHeaders, decode_body, few_headers, joined_headers};

/// The asker's own name for a request, as JSON: text or a number, repeated in the answer.
pub(super) type Id = Box<RawValue>;

/// One request of a proxy session.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: Option<Id>,
    pub(super) url: String,
    pub(super) method: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Vec<u8>>,
}

/// Reads a datum of a proxy session. The error has the asker's `id`, where it could be read, and the message.
pub(super) fn request(data: &[u8], max_body: usize) -> Result<Request, (Option<Id>, String)> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Datum<'a> {
        url: Option<String>,
        method: Option<String>,
        #[serde(default, deserialize_with = "few_headers")]
        headers: Option<BTreeMap<String, String>>,
        #[serde(borrow)]
        body: Option<&'a RawValue>,
        #[serde(default)]
        body_encoding: BodyEncoding,
    }
    // Nothing of it becomes a tree: JSON in memory takes a hundred times its length.
    let not_json = |_| (None, "Message must be valid JSON".to_string());
    let text = core::str::from_utf8(data).map_err(|_| (None, "Message must be valid JSON".to_string()))?;
    let raw: &RawValue = serde_json::from_str(text).map_err(not_json)?;
    let is_name = |id: &&RawValue| {
        id.get().len() <= MAX_ID && id.get().starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit())
    };
    let id = serde_json::from_str::<Named<'_>>(raw.get()).ok().and_then(|named| named.id).filter(is_name);
    let invalid = |reason: String| (id.map(ToOwned::to_owned), reason);
    let datum: Datum<'_> = serde_json::from_str(raw.get()).map_err(|error| invalid(error.to_string()))?;
    let url = datum.url.ok_or_else(|| invalid("Missing required field: url".to_string()))?;
    // Text is the body itself, any other JSON is sent as it is written.
    let body = datum
        .body
        .map(|raw| serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_string()));
    let body = decode_body(body.map(Into::into), datum.body_encoding, max_body).map_err(invalid)?;
    let headers = datum.headers.unwrap_or_default().into_iter().collect();
    Ok(Request { id: id.map(ToOwned::to_owned), url, method: datum.method, headers, body })
}

/// The datum of a response in a proxy session.
pub(super) fn response(id: Option<&RawValue>, response: &Response) -> Vec<u8> {
    #[derive(Serialize)]
    struct Head<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        status: u16,
        headers: JoinedHeaders<'a>,
        body_encoding: BodyEncoding,
        meta: Meta,
    }
    #[derive(Serialize)]
    struct Meta {
        served_by: &'static str,
    }
    let head = Head {
        id,
        status: response.status,
        headers: joined_headers(&response.headers),
        body_encoding: BodyEncoding::Base64,
        meta: Meta { served_by: "node-control" },
    };
    // Serialising text and numbers cannot fail.
    let mut datum = serde_json::to_vec(&head).unwrap_or_default();
    datum.pop();
    datum.reserve_exact(response.body.len().div_ceil(3).saturating_mul(4).saturating_add(16));
    datum.extend_from_slice(b",\"body\":\"");
    base64::encode_into(&response.body, &mut datum);
    datum.extend_from_slice(b"\"}");
    datum
}

/// The datum of an error in a proxy session.
pub(super) fn error(id: Option<&RawValue>, error: &str, message: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Report<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
        error: &'a str,
        message: &'a str,
    }
    serde_json::to_vec(&Report { id, error, message }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};
    use serde_json::{Value, json};

    fn invalid(datum: &str) -> (Option<String>, String) {
        let (id, message) = request(datum.as_bytes(), 9).unwrap_err();
        (id.map(|id| id.get().to_string()), message)
    }

    #[test]
    fn a_request_is_read_with_its_name_and_body() {
        let datum = br#"{"id":"a","url":"http://x/","method":"PUT","headers":{"k":"v"},"body":"hi"}"#;
        let read = request(datum, 9).unwrap();
        assert_eq!(read.id.unwrap().get(), "\"a\"");
        assert_eq!((read.url.as_str(), read.method.as_deref()), ("http://x/", Some("PUT")));
        assert_eq!((read.body.as_deref(), read.headers.len()), (Some(&b"hi"[..]), 1));
        let json = request(br#"{"url":"u","body":{"a": 1}}"#, 9).unwrap();
        assert_eq!(json.body.as_deref(), Some(&b"{\"a\": 1}"[..]), "JSON is sent as it was written");
        assert_eq!(request(br#"{"url":"u","body":null}"#, 9).unwrap().body, None);
        let encoded = request(br#"{"id":-1,"url":"u","body":"aGk=","body_encoding":"base64"}"#, 2).unwrap();
        assert_eq!(encoded.body.as_deref(), Some(&b"hi"[..]));
    }

    #[test]
    fn what_is_not_a_request_is_told_by_its_name_where_it_has_one() {
        // The deployed node's own words.
        assert_eq!(invalid("{nope"), (None, "Message must be valid JSON".into()));
        assert_eq!(invalid(r#"{"id":"a"}"#), (Some("\"a\"".into()), "Missing required field: url".into()));
        assert_eq!(invalid(r#"{"id":7,"url":5}"#).0, Some("7".into()));
        assert_eq!(invalid(r#"{"id":[1],"url":5}"#).0, None, "a name is text or a number");
        assert_eq!(invalid(&format!(r#"{{"id":"{}"}}"#, "x".repeat(MAX_ID))).0, None, "and short");
        assert_eq!(invalid(r#"{"url":"u","body":"0123456789"}"#).0, None);
        assert!(request(b"\xff", 9).is_err() && request(b"[]", 9).is_err());
    }

    #[test]
    fn answers_are_the_data_that_the_wire_wants() {
        let id = RawValue::from_string("\"a\"".into()).unwrap();
        let headers = vec![("X-A".into(), "1".into())];
        let fetched = Response { status: 200, reason: "OK".into(), headers, body: b"\xff\x00".to_vec() };
        let value: Value = serde_json::from_slice(&response(Some(&id), &fetched)).unwrap();
        assert_eq!(
            value,
            json!({"id": "a", "status": 200, "headers": {"x-a": "1"}, "body": "/wA=", "body_encoding": "base64",
                "meta": {"served_by": "node-control"}})
        );
        let value: Value = serde_json::from_slice(&error(None, "fetch_failed", "no")).unwrap();
        assert_eq!(value, json!({"error": "fetch_failed", "message": "no"}));
    }
}
