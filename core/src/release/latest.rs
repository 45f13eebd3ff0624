//! Which release the network requires: `GET /update/latest` (protocol.md section 8).

use alloc::format;
use alloc::string::String;

use serde_json::Value;

use super::manifest::Manifest;
use crate::guard::Refused;
use crate::io::{Fetch, Finish, Outcome, Response};
use crate::registration::{failure_text, is_success, operator_request};
use crate::state::manifest_of_value;
use crate::text::printable;

/// The request.
///
/// # Errors
/// The server's URL is none.
pub fn request(server_url: &str) -> Result<Fetch, Refused> {
    operator_request(server_url, "GET", "/update/latest", None)
}

/// The required manifest of an answer; `None` where the network requires no certain release.
///
/// # Errors
/// What to end with: the server refused, or what it says is no manifest.
pub fn read(response: &Response) -> Result<Option<Manifest>, Finish> {
    let refused = |message: String| Finish { outcome: Outcome::Refused, message };
    if response.status == 404 {
        return Ok(None);
    }
    if !is_success(response) {
        return Err(refused(format!("the required release is unknown: {}", failure_text(response))));
    }
    manifest_of(&response.body).map(Some).map_err(|why| {
        refused(format!("what the network says of the required release is no manifest: {why}"))
    })
}

/// The manifest of an answer: bare, or as the member `manifest`.
pub(super) fn manifest_of(body: &[u8]) -> Result<Manifest, String> {
    let mut value: Value = serde_json::from_slice(body).map_err(|error| printable(&format!("{error}")))?;
    if value.get("product").is_none() {
        if let Some(inner) = value.get_mut("manifest") {
            value = inner.take();
        }
    }
    manifest_of_value(value).map_err(|error| printable(&format!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;
    use alloc::vec;
    use serde_json::json;

    fn answer(status: u16, body: &Value) -> Response {
        Response { status, reason: "R".into(), headers: vec![], body: body.to_string().into_bytes() }
    }

    #[test]
    fn a_manifest_is_read_bare_and_wrapped_and_404_is_none() {
        let manifest = Manifest::of_this_release("1.0.0", "abc", "linux-x64");
        let value = serde_json::to_value(&manifest).unwrap();
        assert_eq!(read(&answer(200, &value)), Ok(Some(manifest.clone())));
        let wrapped = json!({"manifest": value, "required": true});
        assert_eq!(read(&answer(200, &wrapped)), Ok(Some(manifest)));
        assert_eq!(read(&answer(404, &json!({"error": "none"}))), Ok(None));
    }

    #[test]
    fn anything_else_is_a_refusal_with_the_servers_words() {
        for (status, body, says) in [
            (500, json!({"error": "broken\u{1b}[2J"}), "HTTP 500: broken"),
            (200, json!([]), "no manifest"),
            (200, json!({"product": "x"}), "no manifest"),
        ] {
            let finish = read(&answer(status, &body)).unwrap_err();
            assert_eq!(finish.outcome, Outcome::Refused);
            assert!(
                finish.message.contains(says) && !finish.message.contains('\u{1b}'),
                "{}",
                finish.message
            );
        }
    }

    #[test]
    fn the_request_goes_to_the_server() {
        let fetch = request("https://api.example").unwrap();
        assert_eq!(
            (fetch.method.as_str(), fetch.target.url()),
            ("GET", "https://api.example/update/latest".into())
        );
    }
}
