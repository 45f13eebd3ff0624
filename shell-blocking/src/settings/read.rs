//! Texts to values: what each kind of setting takes.

use std::path::PathBuf;
use std::str::FromStr;

use consensus_core::crypto::pem;
use consensus_core::registration::AddressError;
use consensus_core::state::Jwk;
use consensus_core::wire::base64;
use url::Url;

/// A file that holds a public key has under 1 KiB; a JWKS a few.
const MAX_KEY_FILE: u64 = 64 * 1024;

pub(super) fn read_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') { Err(String::new()) } else { Ok(PathBuf::from(text)) }
}

pub(super) fn read_url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    if !text.contains("://") {
        return Err(format!("there is no {}:// in front", schemes.first().unwrap_or(&"https")));
    }
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !schemes.contains(&url.scheme()) {
        return Err(format!("the scheme is {}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it has a user name or password".to_string());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it has a query or fragment".to_string());
    }
    Ok(url)
}

pub(super) fn read_number<T: FromStr + PartialOrd>(text: &str, least: T, most: T) -> Result<T, String> {
    // `parse` takes a plus sign; a setting with one is more likely a slip.
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(String::new());
    }
    match text.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(String::new()),
    }
}

pub(super) fn read_text(text: &str, max: usize) -> Result<String, String> {
    if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
        return Err(String::new());
    }
    Ok(text.to_string())
}

pub(super) fn read_token(text: &str, max: usize) -> Result<String, String> {
    if text.is_empty() || text.len() > max || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(String::new());
    }
    Ok(text.to_string())
}

pub(super) fn is_word(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// The server sends a code there, which is the real check; this one catches slips.
pub(super) fn read_email(text: &str) -> Option<String> {
    let (local, domain) = text.split_once('@')?;
    let fine = !local.is_empty()
        && text.len() <= 254
        && !domain.contains('@')
        && domain.split('.').all(|label| !label.is_empty())
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    fine.then(|| text.to_string())
}

pub(super) fn read_server_key(text: &str) -> Result<[u8; 32], String> {
    if let Some(key) = key_of_text(text) {
        return key;
    }
    let path = read_path(text)?;
    let mut content = String::new();
    std::fs::File::open(&path)
        .and_then(|file| {
            std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_KEY_FILE), &mut content)
        })
        .map_err(|error| format!("no key, and as a file: {error}"))?;
    key_of_text(content.trim()).unwrap_or_else(|| Err("the file holds no key".to_string()))
}

/// `None` where the text is none of the forms of a key, and so may be a path.
fn key_of_text(text: &str) -> Option<Result<[u8; 32], String>> {
    if text.starts_with("-----BEGIN") {
        // Files of variables cannot hold line ends, and often have them written out.
        let pem = text.replace("\\n", "\n");
        return Some(pem::decode_public(&pem).map_err(|error| error.to_string()));
    }
    if text.starts_with('{') {
        let key = serde_json::from_str::<serde_json::Value>(text).ok().and_then(|value| {
            // A set, as `GET /orchestrator/pubkey` gives it, is fine where there is no choice to make.
            let one = match value.get("keys").and_then(serde_json::Value::as_array).map(Vec::as_slice) {
                Some([key]) => key,
                Some(_) => return None,
                None => &value,
            };
            Jwk::from_value(one).map(|jwk| *jwk.key())
        });
        return Some(key.ok_or_else(|| "not an Ed25519 JWK, nor a set of one".to_string()));
    }
    base64::decode_array(text).map(Ok)
}

/// A payout address that the core finds nothing wrong with.
pub(super) fn read_address(
    text: &str,
    check: fn(&str) -> Result<(), AddressError>,
) -> Result<String, String> {
    check(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

/// The URL of a service that is asked with one GET.
pub(super) fn read_service(text: &str) -> Result<(), String> {
    match Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "https" | "http") => {
            Err(format!("the scheme is {}", url.scheme()))
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Err("it has a user name or password".to_string())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_scheme_is_told_what_is_missing() {
        for text in ["network.example", "network.example:443", "localhost:9800/"] {
            assert_eq!(
                read_url(text, &["https", "http"]).unwrap_err(),
                "there is no https:// in front",
                "{text}"
            );
        }
        assert_eq!(read_url("ftp://a", &["https"]).unwrap_err(), "the scheme is ftp");
    }
}
