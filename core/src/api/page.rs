//! The status page: a document, its style and its program, each of them a file that is part of this one. It reads
//! `GET /status`; whatever the network had a say in becomes text there, and never markup.

use alloc::string::ToString as _;
use alloc::vec::Vec;

use crate::io::{LocalRequest, LocalResponse};

/// Where the style is.
pub(super) const CSS: &str = "/page.css";

/// Where the program is.
pub(super) const JS: &str = "/page.js";

/// Nothing but its own two files and the local API: no other host, no script or style inside the document, no frame
/// around it, no form in it. The empty icon is a `data:` URL.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether it is a browser that asks.
pub(super) fn is_wanted(request: &LocalRequest) -> bool {
    request.header("accept").is_some_and(|accept| accept.to_ascii_lowercase().contains("text/html"))
}

pub(super) fn response(path: &str) -> LocalResponse {
    let (kind, text) = match path {
        CSS => ("text/css", include_str!("page/page.css")),
        JS => ("text/javascript", include_str!("page/page.js")),
        _ => ("text/html", include_str!("page/page.html")),
    };
    file(kind, text)
}

/// A file of a page, with what its browser is told about it.
pub(crate) fn file(kind: &str, text: &str) -> LocalResponse {
    let header = |name: &str, value: &str| (name.to_string(), value.to_string());
    let headers = Vec::from([
        header("content-type", &[kind, "; charset=utf-8"].concat()),
        header("cache-control", "no-store"),
        header("content-security-policy", POLICY),
        header("cross-origin-opener-policy", "same-origin"),
        header("cross-origin-resource-policy", "same-origin"),
        header("referrer-policy", "no-referrer"),
        header("x-content-type-options", "nosniff"),
    ]);
    LocalResponse { status: 200, headers, body: text.as_bytes().to_vec() }
}

/// Looks for what a page must not have.
#[cfg(test)]
pub(crate) fn assert_needs_nothing(texts: &[&str; 3], most: usize) {
    assert!(texts.iter().map(|text| text.len()).sum::<usize>() < most);
    for text in texts {
        for bad in
            ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "@import", "url(", "//"]
        {
            // The name of the SVG language is no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(bad), "{bad}");
        }
    }
    for bad in [" style=", " onclick=", "<style", "<script>"] {
        assert!(!texts[0].contains(bad), "{bad}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_needs_nothing_from_elsewhere() {
        let texts =
            [include_str!("page/page.html"), include_str!("page/page.css"), include_str!("page/page.js")];
        assert_needs_nothing(&texts, 24 * 1024);
    }
}
