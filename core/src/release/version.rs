//! Versions of releases: Semantic Versioning 2.0.0, compared by its precedence (section 11 of that text).

use alloc::format;
use alloc::string::{String, ToString as _};
use core::cmp::Ordering;
use core::fmt;
use core::str::FromStr;

use semver::{BuildMetadata, Prerelease};

/// The longest text of a version, in bytes. What stands in a manifest has the same bound.
pub const MAX_VERSION: usize = 64;

/// A version. Two that differ in their build metadata alone are equal: neither is newer.
#[derive(Clone, Debug)]
pub struct Version(semver::Version);

/// Why a text is not a version, or a version has no successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionError {
    /// Over [`MAX_VERSION`] bytes.
    TooLong,
    /// Not `MAJOR.MINOR.PATCH[-PRERELEASE][+BUILD]`.
    Malformed,
    /// A number of it is the largest there is.
    Overflow,
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "a version has at most 64 bytes",
            Self::Malformed => "not a version such as 1.2.3 or 1.2.3-rc.1",
            Self::Overflow => "the version has no successor of that kind",
        })
    }
}

impl core::error::Error for VersionError {}

/// How a version is followed by the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bump {
    /// `1.2.3` to `2.0.0`, and `2.0.0-rc.1` to `2.0.0`.
    Major,
    /// `1.2.3` to `1.3.0`, and `1.3.0-rc.1` to `1.3.0`.
    Minor,
    /// `1.2.3` to `1.2.4`, and `1.2.4-rc.1` to `1.2.4`.
    Patch,
    /// `1.2.3` to `1.2.4-0`, `1.2.4-0` to `1.2.4-1`, and `1.2.4-rc` to `1.2.4-rc.0`.
    Prerelease,
    /// This one.
    To(Version),
}

impl FromStr for Bump {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        Ok(match text {
            "major" => Self::Major,
            "minor" => Self::Minor,
            "patch" => Self::Patch,
            "prerelease" => Self::Prerelease,
            version => Self::To(version.parse()?),
        })
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.len() > MAX_VERSION {
            return Err(VersionError::TooLong);
        }
        semver::Version::parse(text).map(Self).map_err(|_| VersionError::Malformed)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp_precedence(&other.0)
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

impl Version {
    /// The version after this one. Build metadata does not go over to it. [`Bump::To`] may give an older one: whether
    /// that is wanted, the caller knows.
    ///
    /// # Errors
    /// [`VersionError::Overflow`] and [`VersionError::TooLong`].
    pub fn bump(&self, bump: &Bump) -> Result<Self, VersionError> {
        let semver::Version { major, minor, patch, ref pre, .. } = self.0;
        let is_final = pre.is_empty();
        let next = |number: u64| number.checked_add(1).ok_or(VersionError::Overflow);
        let version = match bump {
            Bump::To(version) => return Ok(version.clone()),
            // What came before 2.0.0 is followed by it.
            Bump::Major if !is_final && minor == 0 && patch == 0 => semver::Version::new(major, 0, 0),
            Bump::Major => semver::Version::new(next(major)?, 0, 0),
            Bump::Minor if !is_final && patch == 0 => semver::Version::new(major, minor, 0),
            Bump::Minor => semver::Version::new(major, next(minor)?, 0),
            Bump::Patch if !is_final => semver::Version::new(major, minor, patch),
            Bump::Patch => semver::Version::new(major, minor, next(patch)?),
            Bump::Prerelease => {
                let (patch, pre) = if is_final {
                    (next(patch)?, "0".to_string())
                } else {
                    (patch, next_prerelease(pre.as_str())?)
                };
                let pre = Prerelease::new(&pre).map_err(|_| VersionError::Overflow)?;
                semver::Version { major, minor, patch, pre, build: BuildMetadata::EMPTY }
            }
        };
        if version.to_string().len() > MAX_VERSION {
            return Err(VersionError::TooLong);
        }
        Ok(Self(version))
    }
}

/// The last number of it and one, or `.0` behind it.
fn next_prerelease(pre: &str) -> Result<String, VersionError> {
    let (before, last) = pre.rsplit_once('.').map_or(("", pre), |(before, last)| (before, last));
    if !last.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(format!("{pre}.0"));
    }
    let number = last.parse::<u64>().ok().and_then(|number| number.checked_add(1));
    let number = number.ok_or(VersionError::Overflow)?;
    let dot = if before.is_empty() { "" } else { "." };
    Ok(format!("{before}{dot}{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_ordered_by_the_precedence_of_the_standard() {
        // The example of section 11.
        let ordered = [
            "0.9.10",
            "0.10.0",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
        ];
        for pair in ordered.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
        assert_eq!(version("1.0.0+a"), version("1.0.0+b"));
        assert_eq!(version("1.0.0-rc.1+a").to_string(), "1.0.0-rc.1+a");
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in
            ["", "1", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.2.3-01", "1.2.3-", " 1.2.3", "1.2.3/../x"]
        {
            assert_eq!(text.parse::<Version>(), Err(VersionError::Malformed), "{text:?}");
        }
        assert_eq!("99999999999999999999.0.0".parse::<Version>(), Err(VersionError::Malformed));
        let long = format!("1.0.0-{}", "a".repeat(MAX_VERSION));
        assert_eq!(long.parse::<Version>(), Err(VersionError::TooLong));
    }

    #[test]
    fn each_kind_of_bump_gives_the_version_that_follows() {
        for (from, bump, to) in [
            ("1.2.3", "major", "2.0.0"),
            ("2.0.0-rc.1", "major", "2.0.0"),
            ("2.1.0-rc.1", "major", "3.0.0"),
            ("1.2.3", "minor", "1.3.0"),
            ("1.3.0-rc.1", "minor", "1.3.0"),
            ("1.3.1-rc.1", "minor", "1.4.0"),
            ("1.2.3+build", "patch", "1.2.4"),
            ("1.2.4-rc.1", "patch", "1.2.4"),
            ("1.2.3", "prerelease", "1.2.4-0"),
            ("1.2.4-0", "prerelease", "1.2.4-1"),
            ("1.2.4-rc", "prerelease", "1.2.4-rc.0"),
            ("1.2.4-rc.9", "prerelease", "1.2.4-rc.10"),
            ("1.2.3", "3.0.0-alpha", "3.0.0-alpha"),
        ] {
            let bumped = version(from).bump(&bump.parse().unwrap()).unwrap();
            assert_eq!(bumped.to_string(), to, "{from} {bump}");
            assert!(bumped > version(from), "{from} {bump}");
        }
        assert_eq!("huge".parse::<Bump>(), Err(VersionError::Malformed));
    }

    #[test]
    fn a_number_that_cannot_grow_is_an_error() {
        let most = u64::MAX;
        for (from, bump) in [
            (format!("{most}.0.0"), Bump::Major),
            (format!("0.{most}.0"), Bump::Minor),
            (format!("0.0.{most}"), Bump::Patch),
            (format!("0.0.{most}"), Bump::Prerelease),
            (format!("0.0.1-{most}"), Bump::Prerelease),
        ] {
            assert_eq!(version(&from).bump(&bump), Err(VersionError::Overflow), "{from}");
        }
    }
}
