//! Payout addresses (protocol.md section 7): whether a text can be one, so that a mistyped one is found before
//! money goes to it.

use alloc::string::String;
use core::fmt;

/// What is wrong with a payout address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Not `0x` and 40 hexadecimal digits.
    Evm,
    /// Not 32 to 44 characters of base58.
    SolanaText,
    /// Base58, but not of 32 bytes.
    SolanaLength,
    /// Not groups of five base32 characters with hyphens between.
    IcpText,
    /// The text of a principal with a typing error: its checksum does not fit.
    IcpChecksum,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evm => "an EVM address is 0x and 40 hexadecimal digits",
            Self::SolanaText => "a Solana address is 32 to 44 characters of base58 (no 0, O, I, l)",
            Self::SolanaLength => "not a Solana address: it does not decode to 32 bytes",
            Self::IcpText => {
                "an ICP principal is lower-case letters and digits 2-7 in groups of five with hyphens between"
            }
            Self::IcpChecksum => "not an ICP principal: its checksum does not fit, probably a typing error",
        })
    }
}

impl core::error::Error for AddressError {}

const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The longest principal, in bytes.
const MAX_PRINCIPAL: usize = 29;

/// `0x` and 40 hexadecimal digits, in either case.
///
/// # Errors
/// [`AddressError::Evm`].
pub fn validate_evm(text: &str) -> Result<(), AddressError> {
    let digits = text.strip_prefix("0x").ok_or(AddressError::Evm)?;
    if digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(())
    } else {
        Err(AddressError::Evm)
    }
}

/// Base58 of 32 bytes.
///
/// # Errors
/// [`AddressError::SolanaText`], [`AddressError::SolanaLength`].
pub fn validate_solana(text: &str) -> Result<(), AddressError> {
    if !(32..=44).contains(&text.len()) {
        return Err(AddressError::SolanaText);
    }
    // Little endian; grows only as far as the number needs.
    let mut number = [0_u8; 32];
    for c in text.bytes() {
        let digit = BASE58.iter().position(|b| *b == c).ok_or(AddressError::SolanaText)?;
        let mut carry = digit as u32;
        for byte in &mut number {
            carry += u32::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry != 0 {
            return Err(AddressError::SolanaLength);
        }
    }
    // Every leading 1 is a zero byte of its own; the rest is the number without leading zeros.
    let zeros = text.bytes().take_while(|b| *b == b'1').count();
    let rest = number.iter().rev().skip_while(|byte| **byte == 0).count();
    if zeros + rest == 32 { Ok(()) } else { Err(AddressError::SolanaLength) }
}

/// The text of a principal: base32 of a CRC-32 and at most 29 bytes, in groups of five.
///
/// # Errors
/// [`AddressError::IcpText`], [`AddressError::IcpChecksum`].
pub fn validate_icp(text: &str) -> Result<(), AddressError> {
    // 33 bytes are 53 characters and 10 hyphens.
    if text.len() > 63 {
        return Err(AddressError::IcpText);
    }
    let mut compact = String::new();
    let mut groups = text.split('-').peekable();
    while let Some(group) = groups.next() {
        let is_last = groups.peek().is_none();
        if group.len() > 5 || group.is_empty() || (group.len() < 5 && !is_last) {
            return Err(AddressError::IcpText);
        }
        compact.push_str(group);
    }
    let mut bytes = [0_u8; 4 + MAX_PRINCIPAL];
    let mut length = 0;
    let (mut bits, mut count) = (0_u32, 0);
    for c in compact.bytes() {
        let value = BASE32.iter().position(|b| *b == c).ok_or(AddressError::IcpText)?;
        bits = (bits << 5) | value as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            *bytes.get_mut(length).ok_or(AddressError::IcpText)? = (bits >> count) as u8;
            length += 1;
            bits &= (1 << count) - 1;
        }
    }
    // One text for one principal: whole bytes need less than five bits of padding, and these are zero.
    if count >= 5 {
        return Err(AddressError::IcpText);
    }
    if bits != 0 {
        return Err(AddressError::IcpChecksum);
    }
    match bytes.get(..length).and_then(|bytes| bytes.split_first_chunk::<4>()) {
        Some((checksum, principal)) if u32::from_be_bytes(*checksum) == crc32(principal) => Ok(()),
        Some(_) => Err(AddressError::IcpChecksum),
        None => Err(AddressError::IcpText),
    }
}

/// CRC-32 of ISO-HDLC, bit by bit: for 29 bytes a table is not worth its size.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let lowest = crc & 1;
            crc = (crc >> 1) ^ (0xedb8_8320 * lowest);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_crc32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn evm_addresses_have_forty_digits() {
        assert_eq!(validate_evm("0x52908400098527886E0F7030069857D2E4169EE7"), Ok(()));
        assert_eq!(validate_evm("0x0000000000000000000000000000000000000000"), Ok(()));
        for bad in [
            "",
            "0x",
            "52908400098527886E0F7030069857D2E4169EE7",
            "0X52908400098527886E0F7030069857D2E4169EE7",
            "0x52908400098527886E0F7030069857D2E4169EE",
            "0x52908400098527886E0F7030069857D2E4169EE70",
            "0x52908400098527886E0F7030069857D2E4169EEg",
            " 0x52908400098527886E0F7030069857D2E4169EE7",
        ] {
            assert_eq!(validate_evm(bad), Err(AddressError::Evm), "{bad:?}");
        }
    }

    #[test]
    fn solana_addresses_decode_to_thirty_two_bytes() {
        for good in [
            "11111111111111111111111111111111",
            "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA",
            "So11111111111111111111111111111111111111112",
            "JEKNVnkbo3jma5nREBBJCDoXFVeKkD56V3xKrvRmWxFG",
        ] {
            assert_eq!(validate_solana(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "abc",
            "0enkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DAxx",
            "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss62-VQ5DA",
        ] {
            assert_eq!(validate_solana(bad), Err(AddressError::SolanaText), "{bad:?}");
        }
        for bad in [
            "111111111111111111111111111111111",            // 33 zero bytes
            "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", // over 2²⁵⁶
            "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",             // 24 bytes
        ] {
            assert_eq!(validate_solana(bad), Err(AddressError::SolanaLength), "{bad:?}");
        }
    }

    #[test]
    fn icp_principals_carry_their_checksum() {
        for good in ["aaaaa-aa", "2vxsx-fae", "ryjl3-tyaaa-aaaaa-aaaba-cai", "rrkah-fqaaa-aaaaa-aaaaq-cai"] {
            assert_eq!(validate_icp(good), Ok(()), "{good}");
        }
        for bad in ["ryjl3-tyaaa-aaaaa-aaaba-caj", "aaaab-aa", "rrkah-fqaaa-aaaaa-aaaba-cai"] {
            assert!(validate_icp(bad).is_err(), "{bad}");
        }
        assert_eq!(validate_icp("rrkah-fqaaa-aaaaa-aaaba-cai"), Err(AddressError::IcpChecksum));
        for bad in [
            "",
            "-",
            "aaaaaaa",
            "aaaa-aaa",
            "aaaaa-aa-",
            "RYJL3-TYAAA-AAAAA-AAABA-CAI",
            "ryjl3tyaaaaaaaaaaabacai",
            "ryjl3-tyaaa-aaaaa-aaaba-ca1",
            "aaaaa-a",
            "aaaaa",
            &"aaaaa-".repeat(11),
        ] {
            assert_eq!(validate_icp(bad), Err(AddressError::IcpText), "{bad:?}");
        }
    }

    #[test]
    fn no_text_makes_them_panic() {
        let mut state = 7_u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let length = (state >> 57) as usize;
            let text: String = (0..length)
                .map(|i| char::from(b"0x1zaA2-7l\xe9"[(state.rotate_left(i as u32) % 11) as usize]))
                .collect();
            let _ = (validate_evm(&text), validate_solana(&text), validate_icp(&text));
        }
    }
}
