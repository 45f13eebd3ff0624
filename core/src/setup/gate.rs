//! Who may ask for the page of a setup, and for what.
//!
//! The page is served on loopback, where any program of this machine can send requests, and any page in a browser can
//! have some sent. So whatever is asked for, the page's own files included, is asked for below a path that begins with
//! a random token, which the operator alone was told. A name that was made to point here (DNS rebinding) is not the
//! address in `Host`; another site is told by `Origin` and `Sec-Fetch-Site`. No answer allows another site anything.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::QuestionId;
use crate::api::page;
use crate::crypto::constant_time_eq;
use crate::io::{LocalRequest, LocalResponse};
use crate::wire::base64;

/// What the token is made of, in bytes.
pub const TOKEN_BYTES: usize = 32;

/// What an operator types to agree.
pub const AGREE_WORDS: &str = "I AGREE";

/// The largest body of a request to the page, in bytes: no answer comes near it.
pub const MAX_POSTED: usize = 16 * 1024;

/// The longest name, in bytes.
const MAX_NAME: usize = 200;

const HTML: &str = include_str!("page/page.html");
/// The status page's style, and what this page has of its own.
const CSS: &str = concat!(include_str!("../api/page/page.css"), include_str!("page/page.css"));
const JS: &str = include_str!("page/page.js");

/// Lets the operator in, and nobody else.
pub struct Gate {
    token: Zeroizing<String>,
    /// Address and port.
    authority: String,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// What somebody who was let in asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A file of the page: here it is.
    File(LocalResponse),
    /// What the page shows, once it is another than the one of that number.
    View {
        /// Which the page has.
        after: Option<u64>,
    },
    /// An answer.
    Answer(Posted),
}

/// An answer as the page sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Posted {
    /// The question's [number](super::view::Asked::number).
    pub number: u64,
    /// The answer, as on a terminal.
    pub text: String,
    /// Who agrees; of [`QuestionId::Agreement`].
    #[serde(default)]
    pub name: String,
    /// [`AGREE_WORDS`], as they were typed; of [`QuestionId::Agreement`].
    #[serde(default)]
    pub words: String,
}

impl Posted {
    /// Whether it can be an answer to a question, as far as a page has more to say than a terminal.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, question: &str) -> Result<(), &'static str> {
        let agrees = question == QuestionId::Agreement.as_str()
            && !matches!(self.text.trim().to_ascii_lowercase().as_str(), "n" | "no");
        let name = self.name.trim();
        if agrees && (name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control)) {
            return Err("type your name, on one line");
        }
        if agrees && self.words.trim() != AGREE_WORDS {
            return Err("type the words I AGREE, in capital letters");
        }
        Ok(())
    }
}

impl Gate {
    /// A gate at that address and port, for a token of 32 random bytes.
    #[must_use]
    pub fn new(token: &[u8; TOKEN_BYTES], authority: String) -> Self {
        Self { token: Zeroizing::new(base64::encode_url(token)), authority }
    }

    /// The page's address: for the operator alone.
    #[must_use]
    pub fn url(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("http://{}/{}/", self.authority, *self.token))
    }

    /// What is asked for.
    ///
    /// # Errors
    /// The refusal, which says nothing of the setup.
    pub fn let_in(&self, request: &LocalRequest) -> Result<Asked, LocalResponse> {
        if request.header("host") != Some(&self.authority) {
            return Err(refusal(421, "wrong_host", "this page has another address"));
        }
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let inside = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        let Some((_, path)) =
            inside.filter(|(token, _)| constant_time_eq(token.as_bytes(), self.token.as_bytes()))
        else {
            return Err(refusal(403, "no_token", "open the whole address that setup printed"));
        };
        if request.header("sec-fetch-site").is_some_and(|site| !matches!(site, "none" | "same-origin")) {
            return Err(refusal(403, "foreign_site", "requests from other sites are refused"));
        }
        let origin = request.header("origin");
        let is_own =
            origin.and_then(|origin| origin.strip_prefix("http://")) == Some(self.authority.as_str());
        if !is_own && (origin.is_some() || request.method != "GET") {
            return Err(refusal(403, "foreign_origin", "requests from other sites are refused"));
        }
        match (request.method.as_str(), path) {
            ("GET", "") => Ok(Asked::File(page::file("text/html", HTML))),
            ("GET", "page.css") => Ok(Asked::File(page::file("text/css", CSS))),
            ("GET", "page.js") => Ok(Asked::File(page::file("text/javascript", JS))),
            ("GET", "view") => {
                Ok(Asked::View { after: query.strip_prefix("after=").and_then(|number| number.parse().ok()) })
            }
            ("POST", "answer") => posted(request).map(Asked::Answer),
            (_, "" | "page.css" | "page.js" | "view" | "answer") => {
                Err(refusal(405, "method_not_allowed", "this path takes another method"))
            }
            _ => Err(refusal(404, "not_found", "there is nothing at this path")),
        }
    }
}

fn posted(request: &LocalRequest) -> Result<Posted, LocalResponse> {
    // A form of another site cannot have this type.
    if request.header("content-type") != Some("application/json") {
        return Err(refusal(415, "unsupported_media_type", "an answer is application/json"));
    }
    serde_json::from_slice(&request.body).map_err(|_| refusal(400, "bad_request", "this is no answer"))
}

/// An answer of JSON, with the page's own headers.
#[must_use]
pub fn json_response(status: u16, body: Vec<u8>) -> LocalResponse {
    LocalResponse { status, body, ..page::file("application/json", "") }
}

/// Why something is not done: `{error, message}`.
#[must_use]
pub fn refusal(status: u16, error: &str, message: &str) -> LocalResponse {
    json_response(status, json!({ "error": error, "message": message }).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Kind;

    const AUTHORITY: &str = "127.0.0.1:4711";

    fn gate() -> Gate {
        Gate::new(&[7; TOKEN_BYTES], AUTHORITY.to_string())
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> LocalRequest {
        let url = gate().url();
        let token = url.rsplit('/').nth(1).unwrap();
        LocalRequest {
            method: method.to_string(),
            target: path.replace("TOKEN", token),
            headers: headers.iter().map(|(n, v)| ((*n).to_string(), (*v).to_string())).collect(),
            body: br#"{"number":3,"text":"x"}"#.to_vec(),
        }
    }

    const HOST: (&str, &str) = ("host", AUTHORITY);
    const ORIGIN: (&str, &str) = ("origin", "http://127.0.0.1:4711");
    const JSON: (&str, &str) = ("content-type", "application/json");

    fn status(method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let refused = gate().let_in(&request(method, path, headers)).unwrap_err();
        assert!(refused.headers.iter().all(|(name, _)| !name.starts_with("access-control")));
        refused.status
    }

    #[test]
    fn the_operators_browser_is_let_in() {
        let ask = |method, path, headers: &[_]| gate().let_in(&request(method, path, headers)).unwrap();
        for path in ["/TOKEN/", "/TOKEN/page.css", "/TOKEN/page.js"] {
            let Asked::File(file) = ask("GET", path, &[HOST, ("sec-fetch-site", "none")]) else { panic!() };
            assert!(file.status == 200 && !file.body.is_empty());
            for (name, value) in [
                ("content-security-policy", "default-src 'none'"),
                ("content-security-policy", "frame-ancestors 'none'"),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
            ] {
                assert!(file.headers.iter().any(|(n, v)| n == name && v.contains(value)), "{value}");
            }
        }
        assert_eq!(ask("GET", "/TOKEN/view?after=12", &[HOST, ORIGIN]), Asked::View { after: Some(12) });
        assert_eq!(ask("GET", "/TOKEN/view?after=x", &[HOST]), Asked::View { after: None });
        let posted = ask("POST", "/TOKEN/answer", &[HOST, ORIGIN, JSON, ("sec-fetch-site", "same-origin")]);
        assert_eq!(posted, Asked::Answer(Posted { number: 3, text: "x".into(), ..Posted::default() }));
    }

    #[test]
    fn nobody_else_is() {
        for path in ["/", "", "/view", "/TOKEN", "/TOKENx/", "/xTOKEN/", "//TOKEN/", "/?TOKEN/", "/AAAA/view"]
        {
            assert_eq!(status("GET", path, &[HOST]), 403, "{path}");
            assert_eq!(status("POST", path, &[HOST, ORIGIN, JSON]), 403, "{path}");
        }
        for host in [
            "evil.example:4711",
            "localhost:4711",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.1:47110",
            "[::1]:4711",
        ] {
            assert_eq!(status("GET", "/TOKEN/", &[("host", host)]), 421, "{host}");
            let own = alloc::format!("http://{host}");
            assert_eq!(status("POST", "/TOKEN/answer", &[("host", host), ("origin", &own), JSON]), 421);
        }
        assert_eq!(status("GET", "/TOKEN/", &[]), 421, "of HTTP/1.0");
        for site in ["cross-site", "same-site", "", "NONE"] {
            assert_eq!(status("GET", "/TOKEN/", &[HOST, ("sec-fetch-site", site)]), 403, "{site}");
        }
        for origin in
            ["null", "http://evil.example", "https://127.0.0.1:4711", "http://127.0.0.1", "127.0.0.1:4711"]
        {
            let foreign = ("origin", origin);
            assert_eq!(status("GET", "/TOKEN/view", &[HOST, foreign]), 403, "{origin}");
            assert_eq!(status("POST", "/TOKEN/answer", &[HOST, foreign, JSON]), 403, "{origin}");
        }
        assert_eq!(status("POST", "/TOKEN/answer", &[HOST, JSON]), 403, "a browser says where it comes from");
        assert_eq!(status("OPTIONS", "/TOKEN/answer", &[HOST, ORIGIN]), 405);
        assert_eq!(status("POST", "/TOKEN/view", &[HOST, ORIGIN, JSON]), 405);
        assert_eq!(status("GET", "/TOKEN/other", &[HOST]), 404);
        assert_eq!(status("POST", "/TOKEN/answer", &[HOST, ORIGIN]), 415);
        assert_eq!(status("POST", "/TOKEN/answer", &[HOST, ORIGIN, ("content-type", "text/plain")]), 415);
        for body in ["", "x", "{}", r#"{"number":"1","text":""}"#, r#"{"number":-1,"text":""}"#] {
            let mut request = request("POST", "/TOKEN/answer", &[HOST, ORIGIN, JSON]);
            request.body = body.as_bytes().to_vec();
            assert_eq!(gate().let_in(&request).unwrap_err().status, 400, "{body}");
        }
    }

    #[test]
    fn the_token_is_shown_by_nothing_but_the_address() {
        let url = gate().url();
        let token = url.rsplit('/').nth(1).unwrap();
        assert_eq!((url.len(), token.len()), ("http://127.0.0.1:4711//".len() + 43, 43));
        assert!(!alloc::format!("{:?}", gate()).contains(token));
    }

    #[test]
    fn to_agree_takes_a_name_and_the_words() {
        let check = |text: &str, name: &str, words: &str| {
            Posted { number: 1, text: text.into(), name: name.into(), words: words.into() }.check("agreement")
        };
        assert_eq!(check("yes", " Jo ", " I AGREE "), Ok(()));
        assert_eq!(check("No", "", ""), Ok(()));
        for (name, words) in
            [("", "I AGREE"), (" ", "I AGREE"), ("a\nb", "I AGREE"), ("Jo", "i agree"), ("Jo", "")]
        {
            assert!(check("yes", name, words).is_err(), "{name} {words}");
        }
        assert!(check("", "", "").is_err() && check("yes", &"x".repeat(MAX_NAME + 1), "I AGREE").is_err());
        assert_eq!(Posted::default().check("port"), Ok(()));
    }

    #[test]
    fn the_page_has_words_for_every_yes_and_no() {
        let asked = QuestionId::ALL.into_iter().filter(|id| id.kind() == Kind::YesNo);
        for id in asked.filter(|id| *id != QuestionId::Agreement) {
            assert!(JS.contains(&alloc::format!("    {}: [['", id.as_str())), "{id:?}");
        }
    }

    #[test]
    fn the_page_is_small_and_needs_nothing_from_elsewhere() {
        page::assert_needs_nothing(&[HTML, CSS, JS], 48 * 1024);
        for file in ["page.css", "page.js"] {
            assert!(HTML.contains(&alloc::format!("=\"{file}\"")), "beside it, wherever that is");
        }
    }
}
