//! Tickets: PASETO `v4.public` tokens that pay for exactly one request (protocol.md section 10).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

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
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// The node it is for.
    pub aud: String,
    /// The dedupe key of the request it pays for.
    pub sub: String,
    /// [`SCOPE`].
    pub scope: String,
    /// Issued at, unix seconds.
    pub iat: u64,
    /// Expires at, unix seconds.
    pub exp: u64,
    /// Names the ticket; spent once.
    pub jti: String,
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

/// The claims of a token that `issuer_key` signed for `node_id`, all checks of section 10 passed but those that
/// need more than the token: its request, and whether it was spent.
///
/// # Errors
/// [`TicketError`], by the first check that fails.
pub fn verify<C: Crypto>(
    crypto: &C,
    token: &str,
    issuer_key: &[u8; 32],
    node_id: &str,
    unix_seconds: u64,
) -> Result<Claims, TicketError> {
    if token.len() > MAX_TOKEN {
        return Err(TicketError::Malformed);
    }
    let parts = token.strip_prefix(HEADER).ok_or(TicketError::Malformed)?;
    let (payload, footer) = parts.split_once('.').unwrap_or((parts, ""));
    let payload = base64::decode(payload).ok_or(TicketError::Malformed)?;
    let footer = base64::decode(footer).ok_or(TicketError::Malformed)?;
    let (message, signature) = payload.split_last_chunk::<64>().ok_or(TicketError::Malformed)?;
    if !crypto.verify(issuer_key, &pre_authentication(message, &footer, node_id), signature) {
        return Err(TicketError::BadSignature);
    }
    let claims: Claims = serde_json::from_slice(message).map_err(|_| TicketError::Malformed)?;
    check(&claims, node_id, unix_seconds)?;
    Ok(claims)
}

fn check(claims: &Claims, node_id: &str, now: u64) -> Result<(), TicketError> {
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
pub fn issue<C: Crypto>(crypto: &C, key: &C::SigningKey, kid: &str, claims: &Claims) -> String {
    // Serialising strings and numbers cannot fail.
    let message = serde_json::to_vec(claims).unwrap_or_default();
    let footer = serde_json::to_vec(&serde_json::json!({ "kid": kid })).unwrap_or_default();
    let signature = crypto.sign(key, &pre_authentication(&message, &footer, &claims.aud));
    let payload = [&message[..], &signature].concat();
    [HEADER, &base64::encode_url(&payload), ".", &base64::encode_url(&footer)].concat()
}

/// PASETO's PAE: a count, then each piece behind its length, all of 64 bits and little-endian.
fn pre_authentication(message: &[u8], footer: &[u8], implicit: &str) -> Vec<u8> {
    let pieces = [HEADER.as_bytes(), message, footer, implicit.as_bytes()];
    let mut out = Vec::with_capacity(8 * 5 + pieces.iter().map(|piece| piece.len()).sum::<usize>());
    out.extend_from_slice(&(pieces.len() as u64).to_le_bytes());
    for piece in pieces {
        out.extend_from_slice(&(piece.len() as u64).to_le_bytes());
        out.extend_from_slice(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use crate::wire::canonical::tests::vectors;
    use alloc::string::ToString as _;

    const NOW: u64 = 1_700_000_010;

    fn claims() -> Claims {
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

    fn verify_claims(claims: &Claims, now: u64) -> Result<Claims, TicketError> {
        let key = Pure.signing_key(&[7; 32]);
        verify(&Pure, &issue(&Pure, &key, "k", claims), &Pure.public_key(&key), "node-1", now)
    }

    #[test]
    fn the_deployed_networks_tickets_hold() {
        let Some(file) = vectors("tickets") else { return };
        let key = base64::decode_array(file["publicJwk"]["x"].as_str().unwrap()).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let (how, expect) = (&vector["verify"], &vector["expect"]);
            let node_id = how["expectedNodeId"].as_str().unwrap();
            let now = how["now"].as_u64().unwrap();
            let result = verify(&Pure, vector["token"].as_str().unwrap(), &key, node_id, now);
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
        assert_eq!(with(|c| c.jti = String::new()), TicketError::Empty);
        assert_eq!(with(|c| c.jti = "x".repeat(MAX_ID + 1)), TicketError::Empty);
        assert_eq!(with(|c| c.sub = String::new()), TicketError::Empty);
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
        assert_eq!(verify(&Pure, &token, &[9; 32], "node-1", NOW), Err(TicketError::BadSignature));
        for at in (0..token.len()).step_by(7) {
            let mut damaged = token.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(verify(&Pure, &damaged, &public, "node-1", NOW).is_err(), "byte {at}");
        }
        for junk in
            ["", "v4.public.", "v4.local.AAAA", "v4.public.AAAA.AAAA", "v4.public.....", &"x".repeat(9999)]
        {
            assert_eq!(verify(&Pure, junk, &public, "node-1", NOW), Err(TicketError::Malformed));
        }
    }
}
