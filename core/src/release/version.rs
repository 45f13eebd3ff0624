//! Versions of releases (Semantic Versioning 2.0.0), as far as an order of them is needed.

use alloc::string::{String, ToString as _};
use core::cmp::Ordering;
use core::fmt;

/// The longest text of a version.
pub const MAX_VERSION: usize = 64;

/// A version. Ordered by precedence: build metadata do not count, and are kept in its text.
#[derive(Clone, Debug)]
pub struct Version {
    numbers: [u64; 3],
    pre: String,
    text: String,
}

/// A text that is no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAVersion;

impl fmt::Display for NotAVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a version; a version looks like 1.2.3 or 1.2.3-rc.1")
    }
}

impl core::error::Error for NotAVersion {}

impl Version {
    /// Reads a version.
    ///
    /// # Errors
    /// It is none, or longer than [`MAX_VERSION`].
    pub fn parse(text: &str) -> Result<Self, NotAVersion> {
        if text.len() > MAX_VERSION {
            return Err(NotAVersion);
        }
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
        let mut parts = core.split('.');
        let mut numbers = [0; 3];
        for number in &mut numbers {
            *number = parts.next().and_then(number_of).ok_or(NotAVersion)?;
        }
        let is_word =
            |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let leads_with_zero = |word: &str| is_number(word) && number_of(word).is_none();
        if parts.next().is_some()
            || pre.is_some_and(|pre| !pre.split('.').all(|word| is_word(word) && !leads_with_zero(word)))
            || build.is_some_and(|build| !build.split('.').all(is_word))
        {
            return Err(NotAVersion);
        }
        Ok(Self { numbers, pre: pre.unwrap_or_default().to_string(), text: text.to_string() })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

fn number_of(word: &str) -> Option<u64> {
    (is_number(word) && (word == "0" || !word.starts_with('0'))).then(|| word.parse().ok()).flatten()
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let pre = match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let key = |word: &str| match number_of(word) {
                    Some(number) => (0, number, String::new()),
                    None => (1, 0, word.to_string()),
                };
                self.pre.split('.').map(key).cmp(other.pre.split('.').map(key))
            }
        };
        self.numbers.cmp(&other.numbers).then(pre)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_precedence() {
        let order =
            ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-rc.2", "1.0.0-rc.11", "1.0.0"];
        for pair in order.windows(2) {
            assert!(Version::parse(pair[0]).unwrap() < Version::parse(pair[1]).unwrap(), "{pair:?}");
        }
        assert_eq!(Version::parse("1.2.3+a"), Version::parse("1.2.3+b"));
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in
            ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3", "1.2.3/../x"]
        {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }
}
