//! Tickets: PASETO `v4.public` tokens that pay for exactly one request (protocol.md section 10).

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use serde::{Deserialize, Serialize};

use crate::crypto::Crypto;
use crate::limits::MAX_ID;
use crate::wire::base64;

/// Who issues tickets.
pub const ISSUER: &str = "consensus-orchestrator";
/// What a ticket of the data plane is good for.
pub const SCOPE: &str = "proxy";
/// How far the issuer's clock may be off, in seconds.
pub const CLOCK_TOLERANCE: u64 = 5;
/// A longer token is not looked at. A real one has about 500 bytes.
pub const MAX_TOKEN: usize = 4096;

const HEADER: &str = "v4.public.";

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims<'a> {
    /// [`ISSUER`].
    #[serde(borrow)]
    pub iss: Cow<'a, str>,
    /// The node it is for.
    #[serde(borrow)]
    pub aud: Cow<'a, str>,
    /// The dedupe key of the request it pays for.
    #[serde(borrow)]
    pub sub: Cow<'a, str>,
    /// [`SCOPE`].
    #[serde(borrow)]
    pub scope: Cow<'a, str>,
    /// Issued at, unix seconds.
    pub iat: u64,
    /// Expires at, unix seconds.
    pub exp: u64,
    /// Names the ticket; spent once.
    #[serde(borrow)]
    pub jti: Cow<'a, str>,
}

/// Why a ticket is not taken. The same to a client whatever it is: `unauthorized`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketError {
    /// Not a `v4.public` token.
    Malformed,
    /// Not signed by the issuer's key, or for another node: the node's name is part of what is signed.
    BadSignature,
    /// Another issuer.
    Issuer,
    /// Another node.
    Audience,
    /// Good for something else.
    Scope,
    /// Too late.
    Expired,
    /// From the future.
    Future,
    /// Without a name or a request.
    Empty,
}

impl fmt::Display for TicketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "not a ticket",
            Self::BadSignature => "bad signature",
            Self::Issuer => "wrong issuer",
            Self::Audience => "wrong audience",
            Self::Scope => "wrong scope",
            Self::Expired => "expired",
            Self::Future => "from the future",
            Self::Empty => "without a name or a request",
        })
    }
}

impl core::error::Error for TicketError {}

/// A token taken apart, in the one buffer that its signature is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The pre-authentication encoding but for its last piece, which is the node's name.
    signed: Vec<u8>,
    message: Range<usize>,
    signature: [u8; 64],
}

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// It is not a `v4.public` token.
    pub fn parse(token: &str) -> Result<Self, TicketError> {
        if token.len() > MAX_TOKEN {
            return Err(TicketError::Malformed);
        }
        let parts = token.strip_prefix(HEADER).ok_or(TicketError::Malformed)?;
        let (payload, footer) = parts.split_once('.').unwrap_or((parts, ""));
        let mut signed = Vec::with_capacity(token.len() + 8 * 5 + MAX_ID);
        begin(&mut signed);
        let message = signed.len() + 8;
        // Its length is known when it is there.
        signed.extend_from_slice(&[0; 8]);
        if !base64::decode_into(payload, &mut signed) {
            return Err(TicketError::Malformed);
        }
        let signature = *signed[message..].last_chunk::<64>().ok_or(TicketError::Malformed)?;
        let end = signed.len() - signature.len();
        signed.truncate(end);
        set_length(&mut signed, message);
        let at = end + 8;
        signed.extend_from_slice(&[0; 8]);
        if !base64::decode_into(footer, &mut signed) {
            return Err(TicketError::Malformed);
        }
        set_length(&mut signed, at);
        Ok(Self { signed, message: message..end, signature })
    }

    /// The memory of a token that is done with.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.signed)
    }

    /// The claims, if `issuer_key` signed them for `node_id`, all checks of section 10 passed but those that need more
    /// than the token: its request, and whether it was spent.
    ///
    /// # Errors
    /// [`TicketError`], by the first check that fails.
    pub fn verify<C: Crypto>(
        &mut self,
        crypto: &C,
        issuer_key: &[u8; 32],
        node_id: &str,
        unix_seconds: u64,
    ) -> Result<Claims<'_>, TicketError> {
        let length = self.signed.len();
        push(&mut self.signed, node_id.as_bytes());
        let is_signed = crypto.verify(issuer_key, &self.signed, &self.signature);
        self.signed.truncate(length);
        if !is_signed {
            return Err(TicketError::BadSignature);
        }
        let message = self.signed.get(self.message.clone()).unwrap_or_default();
        let claims: Claims<'_> = serde_json::from_slice(message).map_err(|_| TicketError::Malformed)?;
        check(&claims, node_id, unix_seconds)?;
        Ok(claims)
    }
}

fn check(claims: &Claims<'_>, node_id: &str, now: u64) -> Result<(), TicketError> {
    let refusals = [
        (claims.iss != ISSUER, TicketError::Issuer),
        (claims.aud != node_id, TicketError::Audience),
        (claims.scope != SCOPE, TicketError::Scope),
        (now > claims.exp.saturating_add(CLOCK_TOLERANCE), TicketError::Expired),
        (claims.iat > now.saturating_add(CLOCK_TOLERANCE), TicketError::Future),
        (claims.jti.is_empty() || claims.sub.is_empty() || claims.jti.len() > MAX_ID, TicketError::Empty),
    ];
    match refusals.into_iter().find(|(refused, _)| *refused) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// The issuer's half: a token of these claims.
pub fn issue<C: Crypto>(crypto: &C, key: &C::SigningKey, kid: &str, claims: &Claims<'_>) -> String {
    // Serialising strings and numbers cannot fail.
    let message = serde_json::to_vec(claims).unwrap_or_default();
    let footer = serde_json::to_vec(&serde_json::json!({ "kid": kid })).unwrap_or_default();
    let signature = crypto.sign(key, &pre_authentication(&message, &footer, &claims.aud));
    let payload = [&message[..], &signature].concat();
    [HEADER, &base64::encode_url(&payload), ".", &base64::encode_url(&footer)].concat()
}

/// PASETO's PAE: a count, then each piece behind its length, all of 64 bits and little-endian.
fn pre_authentication(message: &[u8], footer: &[u8], implicit: &str) -> Vec<u8> {
    let mut out = Vec::new();
    begin(&mut out);
    for piece in [message, footer, implicit.as_bytes()] {
        push(&mut out, piece);
    }
    out
}

/// The count of pieces, and the first of them.
fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&4_u64.to_le_bytes());
    push(out, HEADER.as_bytes());
}

fn push(out: &mut Vec<u8>, piece: &[u8]) {
    out.extend_from_slice(&(piece.len() as u64).to_le_bytes());
    out.extend_from_slice(piece);
}

/// Writes the length of the piece that goes from `at` to the end, before it.
fn set_length(out: &mut [u8], at: usize) {
    let length = (out.len() - at) as u64;
    out[at - 8..at].copy_from_slice(&length.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use crate::wire::canonical::tests::vectors;
    use alloc::string::ToString as _;

    const NOW: u64 = 1_700_000_010;

    fn claims() -> Claims<'static> {
        Claims {
            iss: ISSUER.into(),
            aud: "node-1".into(),
            sub: "key".into(),
            scope: SCOPE.into(),
            iat: NOW - 10,
            exp: NOW + 50,
            jti: "t1".into(),
        }
    }

    fn verify(
        token: &str,
        issuer_key: &[u8; 32],
        node_id: &str,
        now: u64,
    ) -> Result<Claims<'static>, TicketError> {
        let mut token = Token::parse(token)?;
        let Claims { iss, aud, sub, scope, iat, exp, jti } = token.verify(&Pure, issuer_key, node_id, now)?;
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        let (iss, aud, sub) = (owned(iss), owned(aud), owned(sub));
        Ok(Claims { iss, aud, sub, scope: owned(scope), iat, exp, jti: owned(jti) })
    }

    fn verify_claims(claims: &Claims<'_>, now: u64) -> Result<Claims<'static>, TicketError> {
        let key = Pure.signing_key(&[7; 32]);
        verify(&issue(&Pure, &key, "k", claims), &Pure.public_key(&key), "node-1", now)
    }

    #[test]
    fn the_deployed_networks_tickets_hold() {
        let Some(file) = vectors("tickets") else { return };
        let key = base64::decode_array(file["publicJwk"]["x"].as_str().unwrap()).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let (how, expect) = (&vector["verify"], &vector["expect"]);
            let node_id = how["expectedNodeId"].as_str().unwrap();
            let now = how["now"].as_u64().unwrap();
            let result = verify(vector["token"].as_str().unwrap(), &key, node_id, now);
            match result {
                Ok(claims) => {
                    assert_eq!(expect["ok"], true, "{}", vector["name"]);
                    for member in ["aud", "sub", "scope", "jti"] {
                        assert_eq!(serde_json::to_value(&claims).unwrap()[member], expect["claims"][member]);
                    }
                }
                Err(error) => {
                    let wanted = expect["error"].as_str().unwrap();
                    assert!(error.to_string().contains(wanted), "{}: {error}, not {wanted}", vector["name"]);
                }
            }
        }
    }

    #[test]
    fn a_ticket_issued_is_a_ticket_taken_within_its_time() {
        assert_eq!(verify_claims(&claims(), NOW), Ok(claims()));
        assert!(verify_claims(&claims(), NOW + 55).is_ok());
        assert_eq!(verify_claims(&claims(), NOW + 56), Err(TicketError::Expired));
        assert!(verify_claims(&claims(), NOW - 15).is_ok());
        assert_eq!(verify_claims(&claims(), NOW - 16), Err(TicketError::Future));
    }

    #[test]
    fn each_claim_is_checked() {
        let with = |change: fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            verify_claims(&claims, NOW).unwrap_err()
        };
        assert_eq!(with(|c| c.iss = "me".into()), TicketError::Issuer);
        assert_eq!(with(|c| c.aud = "node-2".into()), TicketError::BadSignature);
        assert_eq!(with(|c| c.scope = "admin".into()), TicketError::Scope);
        assert_eq!(with(|c| c.jti = "".into()), TicketError::Empty);
        assert_eq!(with(|c| c.jti = "x".repeat(MAX_ID + 1).into()), TicketError::Empty);
        assert_eq!(with(|c| c.sub = "".into()), TicketError::Empty);
        assert_eq!(with(|c| c.exp = 0), TicketError::Expired);
        assert_eq!(with(|c| c.iat = u64::MAX), TicketError::Future);
        let mut forever = claims();
        forever.exp = u64::MAX;
        assert!(verify_claims(&forever, NOW).is_ok());
    }

    #[test]
    fn another_key_and_every_damaged_byte_are_refused() {
        let key = Pure.signing_key(&[7; 32]);
        let public = Pure.public_key(&key);
        let token = issue(&Pure, &key, "k", &claims());
        assert_eq!(verify(&token, &[9; 32], "node-1", NOW), Err(TicketError::BadSignature));
        for at in (0..token.len()).step_by(7) {
            let mut damaged = token.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(verify(&damaged, &public, "node-1", NOW).is_err(), "byte {at}");
        }
        for junk in
            ["", "v4.public.", "v4.local.AAAA", "v4.public.AAAA.AAAA", "v4.public.....", &"x".repeat(9999)]
        {
            assert_eq!(verify(junk, &public, "node-1", NOW), Err(TicketError::Malformed));
        }
    }

    /// A token of that message, in that alphabet.
    fn signed(message: &str, footer: &str, encode: fn(&[u8]) -> String) -> String {
        let signature = Pure.sign(
            &Pure.signing_key(&[7; 32]),
            &pre_authentication(message.as_bytes(), footer.as_bytes(), "node-1"),
        );
        let payload = [message.as_bytes(), &signature].concat();
        [HEADER, &encode(&payload), ".", &encode(footer.as_bytes())].concat()
    }

    fn verify_text(token: &str) -> Result<Claims<'static>, TicketError> {
        verify(token, &Pure.public_key(&Pure.signing_key(&[7; 32])), "node-1", NOW)
    }

    #[test]
    fn claims_mean_the_same_however_their_json_is_written() {
        let plain = serde_json::to_string(&claims()).unwrap();
        let escaped = plain
            .replace("\"sub\":\"key\"", "\"s\\u0075b\":\"\\u006be\\u0079\"")
            .replace("node-1", "n\\u006fde-1")
            .replace(":\"t1\"", ":\"\\u00741\"");
        assert_ne!(plain, escaped);
        let more = plain.replace('{', "{\"x\":[{\"y\":null}],");
        for message in [&*plain, &escaped, &more, &[" ", &plain, "\n"].concat()] {
            assert_eq!(verify_text(&signed(message, "{}", base64::encode_url)), Ok(claims()), "{message}");
        }
        for (from, to) in [
            ("\"sub\":\"key\"", "\"sub\":\"key\",\"sub\":\"key\""),
            ("\"sub\":\"key\"", "\"sub\":\"key\",\"s\\u0075b\":\"other\""),
            ("\"sub\":\"key\"", "\"sub\":null"),
            ("\"sub\":\"key\"", "\"sub\":[\"key\"]"),
            ("\"sub\":\"key\"", "\"sub\":\"\\ud800\""),
            ("\"exp\":1700000060", "\"exp\":1700000060.0"),
            ("\"exp\":1700000060", "\"exp\":1.70000006e9"),
            ("\"exp\":1700000060", "\"exp\":-1"),
            ("\"exp\":1700000060", "\"exp\":18446744073709551616"),
            ("\"exp\":1700000060", "\"exp\":\"1700000060\""),
            ("}", "}}"),
            ("}", ""),
        ] {
            let message = plain.replace(from, to);
            assert_ne!(message, plain, "{from}");
            let token = signed(&message, "{}", base64::encode_url);
            assert_eq!(verify_text(&token), Err(TicketError::Malformed), "{message}");
        }
    }

    #[test]
    fn the_parts_of_a_token_are_base64_of_either_kind_and_nothing_else() {
        // The lengths that want no padding, one sign of it, and two; a jti whose encoding has signs of one alphabet alone.
        for jti in ["t", "t?", "t?>", "\u{3fe}\u{3ff}"] {
            let message = serde_json::to_string(&Claims { jti: jti.into(), ..claims() }).unwrap();
            for footer in ["", "{", "{}", "\u{3ff}?>"] {
                let (url, standard) =
                    (signed(&message, footer, base64::encode_url), signed(&message, footer, base64::encode));
                for token in [&url, &standard, &standard.replace('=', "")] {
                    assert_eq!(verify_text(token).map(|claims| claims.jti), Ok(jti.into()), "{token}");
                }
                for token in [
                    url.replacen('.', "..", 3),
                    [&url, "."].concat(),
                    [&url, "!"].concat(),
                    ["v4.public.+-", &url[HEADER.len()..]].concat(),
                    ["v4.public. ", &url[HEADER.len()..]].concat(),
                ] {
                    assert_eq!(verify_text(&token), Err(TicketError::Malformed), "{token}");
                }
                // Whatever is cut off, it is refused and nothing worse; without its footer it is another token.
                for length in 0..url.len() - usize::from(footer.is_empty()) {
                    assert!(verify_text(&url[..length]).is_err(), "{}", &url[..length]);
                }
            }
        }
    }
}
