//! Answers, and what can be one.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::check;
use super::{Invalid, Kind, QuestionId};
use crate::guard::{Scheme, Target};
use crate::registration::{AddressError, MAX_CONTACT, validate_evm, validate_icp, validate_solana};

/// The longest text that can be an answer, in bytes.
pub const MAX_ANSWER: usize = 1024;

/// The longest code, in bytes.
const MAX_CODE: usize = 64;

/// What stands for no IPv6 address.
pub(super) const NONE: &str = "none";

/// What has another code sent.
pub(super) const AGAIN: &str = "again";

/// Answers by question; only of those that are kept for another setup.
pub type Answers = BTreeMap<QuestionId, String>;

/// The questions that [`Answers`] has, in the order in which they are asked.
pub(super) const VALUES: [QuestionId; 10] = [
    QuestionId::Server,
    QuestionId::Ipv4,
    QuestionId::Ipv6,
    QuestionId::Port,
    QuestionId::Email,
    QuestionId::Contact,
    QuestionId::EvmAddress,
    QuestionId::SolanaAddress,
    QuestionId::IcpAddress,
    QuestionId::Service,
];

/// The answer that a text is, in one form; or why it is none.
pub(super) fn read(id: QuestionId, text: &str, allow_private: bool) -> Result<String, Invalid> {
    let invalid = |reason: &str| Invalid { id, reason: reason.to_string(), example: example(id.kind()) };
    let text = text.trim();
    if text.is_empty() {
        return Err(invalid("an answer is needed"));
    }
    if text.len() > MAX_ANSWER || text.chars().any(char::is_control) {
        return Err(invalid("not one short line of text"));
    }
    let payout = |result: Result<(), AddressError>| match result {
        Ok(()) => Ok(text.to_string()),
        Err(error) => Err(invalid(&error.to_string())),
    };
    let host =
        |address: IpAddr| check(address, allow_private).map_err(&invalid).map(|()| address.to_string());
    match id.kind() {
        Kind::YesNo => match text.to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok("yes".to_string()),
            "n" | "no" => Ok("no".to_string()),
            _ => Err(invalid("neither yes nor no")),
        },
        Kind::Url => server(text).ok_or_else(|| {
            invalid("a server's address is https:// (in a lab http://) and its name, without a path")
        }),
        Kind::Ipv4 => match text.parse::<Ipv4Addr>() {
            Ok(address) => host(address.into()),
            Err(_) => Err(invalid("not an IPv4 address")),
        },
        Kind::Ipv6 if text.eq_ignore_ascii_case(NONE) => Ok(NONE.to_string()),
        Kind::Ipv6 => match text.parse::<Ipv6Addr>() {
            Ok(address) => host(address.into()),
            Err(_) => Err(invalid("neither an IPv6 address nor the word none")),
        },
        Kind::Port => match text.parse::<u16>() {
            // `parse` takes a plus sign.
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port.to_string()),
            _ => Err(invalid("not a port from 1 to 65535")),
        },
        Kind::Email if is_email(text) => Ok(text.to_string()),
        Kind::Email => Err(invalid("not an email address")),
        Kind::Code if text.len() <= MAX_CODE && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(text.to_string())
        }
        Kind::Code => Err(invalid("not a code")),
        Kind::Text if text.len() <= MAX_CONTACT => Ok(text.to_string()),
        Kind::Text => Err(invalid(&format!("over {MAX_CONTACT} bytes"))),
        Kind::EvmAddress => payout(validate_evm(text)),
        Kind::SolanaAddress => payout(validate_solana(text)),
        Kind::IcpAddress => payout(validate_icp(text)),
    }
}

/// One that could be an answer of that kind.
pub(super) const fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::YesNo => "yes",
        Kind::Url => "https://network.example",
        Kind::Ipv4 => "198.51.100.7",
        Kind::Ipv6 => "2001:db8::7",
        Kind::Port => "9090",
        Kind::Email | Kind::Text => "you@example.org",
        Kind::Code => "123456",
        Kind::EvmAddress => "0x52908400098527886E0F7030069857D2E4169EE7",
        Kind::SolanaAddress => "4fYNw3dojWmQ4dXtSGE9epjRGy9pFSx62YypT7avPYvA",
        Kind::IcpAddress => "rrkah-fqaaa-aaaaa-aaaaq-cai",
    }
}

/// A server's address without a slash at its end. `http` is for labs, and shown as that by whoever connects.
fn server(text: &str) -> Option<String> {
    let target = Target::parse(text).ok()?;
    let rest = text.split_once("://")?.1;
    // Credentials, queries and fragments have no place in it.
    let is_bare = target.path_and_query == "/" && !rest.contains(['@', '?', '#']);
    let scheme = match target.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    is_bare.then(|| format!("{scheme}://{}", target.host_header()))
}

/// Whether a text can be an email address; whether it is one, the verification tells.
fn is_email(text: &str) -> bool {
    text.len() <= MAX_CONTACT
        && !text.chars().any(char::is_whitespace)
        && text.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty() && !domain.contains('@') && domain.split('.').all(|label| !label.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_example_that_is_public_is_an_answer() {
        for id in QuestionId::ALL {
            // Those of addresses are of the ranges for documentation.
            let text = example(id.kind());
            assert!(read(id, text, true).is_ok(), "{id:?}");
        }
    }

    #[test]
    fn answers_have_one_form() {
        for (id, text, expected) in [
            (QuestionId::Confirm, " Y ", "yes"),
            (QuestionId::Resume, "NO", "no"),
            (QuestionId::Server, "https://Network.Example/", "https://network.example"),
            (QuestionId::Server, "http://[::1]:9800", "http://[::1]:9800"),
            (QuestionId::Server, "https://network.example:443", "https://network.example"),
            (QuestionId::Ipv6, "None", "none"),
            (QuestionId::Ipv6, "2606:4700:0:0::1", "2606:4700::1"),
            (QuestionId::Port, "0080", "80"),
            (QuestionId::Email, " a@b.example\n", "a@b.example"),
        ] {
            assert_eq!(read(id, text, false).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_an_answer_comes_back_with_the_reason_and_an_example() {
        let long = "1".repeat(MAX_ANSWER + 1);
        let cases: [(QuestionId, &[&str]); 11] = [
            (QuestionId::Confirm, &["", "yess", "ja", "0"]),
            (
                QuestionId::Server,
                &[
                    "network.example",
                    "ftp://a",
                    "https://",
                    "https://a/b",
                    "https://u:p@a",
                    "https://a/?q",
                    "https://a#f",
                    "https://a:0",
                ],
            ),
            (
                QuestionId::Ipv4,
                &["", "none", "1.2.3", "8.8.8.8/32", "10.1.1.1", "127.0.0.1", "224.0.0.1", "::1"],
            ),
            (QuestionId::Ipv6, &["8.8.8.8", "::1", "fe80::1", "ff02::1", "::", "::ffff:10.0.0.1"]),
            (QuestionId::Port, &["0", "65536", "+80", "-1", "http", "80.0"]),
            (QuestionId::Email, &["nobody", "@b", "a@", "a@b@c", "a b@c", "a@b..c", "a@.b"]),
            (QuestionId::Code, &["12 34", "\u{e9}", &long[..MAX_CODE + 1]]),
            (QuestionId::Contact, &["", "a\u{1b}b", &long[..MAX_CONTACT + 1]]),
            (QuestionId::EvmAddress, &["0x12", "52908400098527886E0F7030069857D2E4169EE7"]),
            (QuestionId::SolanaAddress, &["abc", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"]),
            (QuestionId::IcpAddress, &["abc", "rrkah-fqaaa-aaaaa-aaaba-cai"]),
        ];
        for (id, texts) in cases {
            let all: Vec<&str> = texts.iter().copied().chain([long.as_str(), " \t "]).collect();
            for text in all {
                let invalid = read(id, text, false).unwrap_err();
                assert_eq!((invalid.id, invalid.example), (id, example(id.kind())), "{text:?}");
                assert!(!invalid.reason.is_empty() && !invalid.reason.contains('\u{1b}'), "{text:?}");
            }
        }
    }
}
