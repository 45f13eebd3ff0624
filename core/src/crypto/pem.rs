//! Ed25519 keys as PEM: SPKI for the public key, PKCS#8 for the private one (RFC 8410; protocol.md section 1).
//!
//! Both are a fixed DER prefix before 32 bytes, so there is no DER parser: what has any other prefix is not a key
//! of this protocol.

use alloc::string::String;
use core::fmt;

use zeroize::Zeroizing;

use crate::wire::base64;

const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const PUBLIC: &str = "PUBLIC KEY";
const PRIVATE: &str = "PRIVATE KEY";

/// Longer text is not looked at. An Ed25519 key in PEM has under 130 bytes; the rest is room for white space.
const MAX_PEM: usize = 1024;

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PemError {
    /// No `-----BEGIN …-----` and `-----END …-----` of the wanted label, or something around them.
    Armor,
    /// The inside is not base64.
    Base64,
    /// A key of another algorithm or form.
    NotEd25519,
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Armor => "not a PEM block of the expected kind",
            Self::Base64 => "the PEM block is not base64",
            Self::NotEd25519 => "the PEM block is not an Ed25519 key",
        })
    }
}

impl core::error::Error for PemError {}

/// The PEM text of a public key.
#[must_use]
pub fn encode_public(key: &[u8; 32]) -> String {
    let mut der = [0; 44];
    der[..12].copy_from_slice(&SPKI);
    der[12..].copy_from_slice(key);
    armor(PUBLIC, &base64::encode(&der))
}

/// The public key of a PEM text.
///
/// # Errors
/// The text is not the SPKI PEM of an Ed25519 key.
pub fn decode_public(pem: &str) -> Result<[u8; 32], PemError> {
    let der = unarmor(PUBLIC, pem)?;
    match der.split_first_chunk::<12>() {
        Some((&SPKI, key)) => key.try_into().map_err(|_| PemError::NotEd25519),
        _ => Err(PemError::NotEd25519),
    }
}

/// The PEM text of a private key, from its seed.
#[must_use]
pub fn encode_private(seed: &[u8; 32]) -> Zeroizing<String> {
    let mut der = Zeroizing::new([0; 48]);
    der[..16].copy_from_slice(&PKCS8);
    der[16..].copy_from_slice(seed);
    let body = Zeroizing::new(base64::encode(&*der));
    Zeroizing::new(armor(PRIVATE, &body))
}

/// The seed of a private key in PEM.
///
/// # Errors
/// The text is not the PKCS#8 PEM of an Ed25519 key in its 48-byte form.
pub fn decode_private(pem: &str) -> Result<Zeroizing<[u8; 32]>, PemError> {
    let der = unarmor(PRIVATE, pem)?;
    match der.split_first_chunk::<16>() {
        Some((&PKCS8, seed)) => seed.try_into().map(Zeroizing::new).map_err(|_| PemError::NotEd25519),
        _ => Err(PemError::NotEd25519),
    }
}

fn armor(label: &str, body: &str) -> String {
    let mut out = String::with_capacity(body.len() + 2 * label.len() + 36);
    for part in ["-----BEGIN ", label, "-----\n", body, "\n-----END ", label, "-----\n"] {
        out.push_str(part);
    }
    out
}

fn unarmor(label: &str, pem: &str) -> Result<Zeroizing<alloc::vec::Vec<u8>>, PemError> {
    if pem.len() > MAX_PEM {
        return Err(PemError::Armor);
    }
    let inner = pem
        .trim()
        .strip_prefix("-----BEGIN ")
        .and_then(|rest| rest.strip_prefix(label)?.strip_prefix("-----"))
        .and_then(|rest| rest.strip_suffix("-----")?.strip_suffix(label)?.strip_suffix("-----END "))
        .ok_or(PemError::Armor)?;
    let body: Zeroizing<String> =
        Zeroizing::new(inner.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    base64::decode(&body).map(Zeroizing::new).ok_or(PemError::Base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `openssl genpkey -algorithm ed25519`.
    const OPENSSL_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_private_key_has_the_bytes_openssl_gives_it() {
        assert_eq!(*encode_private(&[7; 32]), OPENSSL_PRIVATE);
        assert_eq!(*decode_private(OPENSSL_PRIVATE).unwrap(), [7; 32]);
    }

    #[test]
    fn a_public_key_survives_the_round_trip_on_one_line_of_sixty() {
        let pem = encode_public(&[9; 32]);
        assert_eq!(pem.lines().nth(1).map(str::len), Some(60));
        assert!(pem.ends_with("-----END PUBLIC KEY-----\n"));
        assert_eq!(decode_public(&pem), Ok([9; 32]));
    }

    #[test]
    fn windows_line_ends_and_missing_last_newline_are_read() {
        let pem = encode_public(&[9; 32]).replace('\n', "\r\n");
        assert_eq!(decode_public(pem.trim_end()), Ok([9; 32]));
    }

    #[test]
    fn other_labels_other_keys_and_damage_are_told_apart() {
        assert_eq!(decode_public(OPENSSL_PRIVATE), Err(PemError::Armor));
        assert_eq!(decode_public("-----BEGIN PUBLIC KEY-----"), Err(PemError::Armor));
        assert_eq!(
            decode_public("-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n"),
            Err(PemError::Base64)
        );
        let short = armor(PUBLIC, &base64::encode(&SPKI));
        assert_eq!(decode_public(&short), Err(PemError::NotEd25519));
        assert_eq!(decode_public(&" ".repeat(MAX_PEM + 1)), Err(PemError::Armor));
    }
}
