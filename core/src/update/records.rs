//! The small files of the install directory, and the names in it.
//!
//! ```text
//! current              -> releases/ID: what is started next
//! last-good            -> releases/ID: the newest release that proved itself; absent before the first one did
//! releases/ID/         a whole release; ID is VERSION-UNIXSECONDS-PROCESS
//! releases/ID/install-record
//! releases/ID.partial/ one that is being unpacked or removed: nobody's
//! rolled-back          written by the wrapper: the release that failed, and why
//! refused              releases that failed: VERSION SHA256 a line
//! floor                the newest version that proved itself
//! starts, running      the wrapper's: ID COUNT of the release on probation; ID of what it started last
//! run-node.sh          the wrapper, of a release that proved itself
//! ```
//!
//! A release is on probation while `current` and `last-good` differ. All of it can be read by a shell without a parser:
//! a line is `name=value` or words.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use crate::release::version::Version;
use crate::text::printable;
use crate::wire::hex;

/// Bytes of one of these files.
pub const MAX_RECORD: usize = 16 * 1024;

/// Bytes of an update's id, as the network names it.
pub const MAX_UPDATE_ID: usize = 256;

/// Failed releases that are remembered: the newest.
pub const MAX_REFUSED: usize = 64;

/// What ends the name of a release that is not whole.
pub const PARTIAL: &str = ".partial";

/// Where releases are, in the install directory.
pub const RELEASES: &str = "releases";

/// A file that is not as it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("damaged")
    }
}

impl core::error::Error for Damaged {}

/// The name of a release's folder.
#[must_use]
pub fn release_id(version: &Version, unix_seconds: u64, process: u32) -> String {
    format!("{version}-{unix_seconds}-{process}")
}

/// The version, the time in unix seconds and the process in a release's name.
#[must_use]
pub fn parse_release_id(id: &str) -> Option<(Version, u64, u32)> {
    let mut parts = id.rsplitn(3, '-');
    let process = parts.next()?.parse().ok()?;
    let time = parts.next()?.parse().ok()?;
    let version: Version = parts.next()?.parse().ok()?;
    (release_id(&version, time, process) == id).then_some((version, time, process))
}

/// The release that a link of the install directory leads to.
#[must_use]
pub fn id_of_target(target: &str) -> Option<String> {
    let id = target.strip_prefix("releases/")?;
    parse_release_id(id).map(|_| id.to_string())
}

/// What the installer knew of a release: `install-record` in its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its version.
    pub version: Version,
    /// Of its artifact.
    pub sha256: [u8; 32],
    /// The update that it came by, where it came by one.
    pub update_id: Option<String>,
    /// Seconds that it has to reconnect.
    pub probation: u64,
}

impl Record {
    /// As a file. An update's id is in hex: it is a stranger's text.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut text = format!(
            "version={}\nsha256={}\nprobation={}\n",
            self.version,
            hex::encode(&self.sha256),
            self.probation
        );
        if let Some(id) = &self.update_id {
            text.push_str(&format!("update={}\n", hex::encode(id.as_bytes())));
        }
        text.into_bytes()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(data: &[u8]) -> Result<Self, Damaged> {
        let lines = Lines::new(data)?;
        Ok(Self {
            version: lines.version()?,
            sha256: lines.sha256().ok_or(Damaged)?,
            update_id: lines.update_id(),
            probation: lines.get("probation").and_then(|text| text.parse().ok()).ok_or(Damaged)?,
        })
    }
}

/// A release that the wrapper gave up, as `rolled-back` has it: `release` and `reason`, `silent=yes` where it ran until
/// its time was over, and the lines of the release's record where it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The name of its folder.
    pub release: String,
    /// Its version.
    pub version: Version,
    /// Of its artifact, where that is known.
    pub sha256: Option<[u8; 32]>,
    /// The update that it came by, where it came by one.
    pub update_id: Option<String>,
    /// Why, in the wrapper's words; fit for a terminal.
    pub reason: String,
    /// It ran until its time was over, and did not end by itself.
    pub was_silent: bool,
}

impl RolledBack {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(data: &[u8]) -> Result<Self, Damaged> {
        let lines = Lines::new(data)?;
        let release = lines.get("release").ok_or(Damaged)?.to_string();
        let (version, _, _) = parse_release_id(&release).ok_or(Damaged)?;
        Ok(Self {
            version: lines.version().unwrap_or(version),
            sha256: lines.sha256(),
            update_id: lines.update_id(),
            reason: printable(lines.get("reason").unwrap_or("it failed")),
            was_silent: lines.get("silent") == Some("yes"),
            release,
        })
    }
}

/// A release that failed and is not tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its version.
    pub version: Version,
    /// Of its artifact, where that is known.
    pub sha256: Option<[u8; 32]>,
}

impl Failed {
    /// Whether a release is this one: the same version, or the same artifact.
    #[must_use]
    pub fn is(&self, version: &Version, sha256: &[u8; 32]) -> bool {
        self.version.to_string() == version.to_string() || self.sha256.as_ref() == Some(sha256)
    }
}

/// Reads `refused`.
///
/// # Errors
/// A line is not one.
pub fn parse_refused(data: &[u8]) -> Result<Vec<Failed>, Damaged> {
    let text = text_of(data)?;
    text.lines()
        .map(|line| {
            let (version, sha256) = line.split_once(' ').ok_or(Damaged)?;
            let version = version.parse().map_err(|_| Damaged)?;
            let sha256 = if sha256 == "-" { None } else { Some(parse_sha256(sha256).ok_or(Damaged)?) };
            Ok(Failed { version, sha256 })
        })
        .collect()
}

/// `refused` as a file; the last [`MAX_REFUSED`].
#[must_use]
pub fn emit_refused(failed: &[Failed]) -> Vec<u8> {
    let newest = &failed[failed.len().saturating_sub(MAX_REFUSED)..];
    let line = |one: &Failed| {
        format!("{} {}\n", one.version, one.sha256.map_or_else(|| "-".to_string(), |hash| hex::encode(&hash)))
    };
    newest.iter().map(line).collect::<String>().into_bytes()
}

/// Reads `floor`.
///
/// # Errors
/// It is no version.
pub fn parse_floor(data: &[u8]) -> Result<Version, Damaged> {
    text_of(data)?.trim_end_matches('\n').parse().map_err(|_| Damaged)
}

/// Reads a file with the name of a release and perhaps more words, such as `running`.
#[must_use]
pub fn parse_id_line(data: &[u8]) -> Option<String> {
    let id = text_of(data).ok()?.split_whitespace().next()?;
    parse_release_id(id).map(|_| id.to_string())
}

/// 64 hexadecimal digits.
#[must_use]
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    hex::decode(text)?.try_into().ok()
}

fn text_of(data: &[u8]) -> Result<&str, Damaged> {
    if data.len() > MAX_RECORD { Err(Damaged) } else { core::str::from_utf8(data).map_err(|_| Damaged) }
}

struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn new(data: &'a [u8]) -> Result<Self, Damaged> {
        text_of(data).map(Self)
    }

    /// The first of that name.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(found, _)| *found == name)
            .map(|(_, v)| v)
    }

    fn version(&self) -> Result<Version, Damaged> {
        self.get("version").ok_or(Damaged)?.parse().map_err(|_| Damaged)
    }

    fn sha256(&self) -> Option<[u8; 32]> {
        self.get("sha256").and_then(parse_sha256)
    }

    fn update_id(&self) -> Option<String> {
        String::from_utf8(hex::decode(self.get("update")?)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn a_releases_name_holds_its_version_time_and_process_and_nothing_else_does() {
        for text in ["1.2.3", "1.2.3-rc.1", "1.2.3-4-5", "1.2.3+a-b"] {
            let id = release_id(&version(text), 17, 4);
            let (found, time, process) = parse_release_id(&id).unwrap();
            assert_eq!((found.to_string().as_str(), time, process), (text, 17, 4));
            assert_eq!(id_of_target(&format!("releases/{id}")), Some(id));
        }
        for id in [
            "",
            "1.2.3",
            "1.2.3-1",
            "1.2.3-1-x",
            "1.2.3-01-1",
            "1.2.3-1-2.partial",
            "../1.2.3-1-2",
            "1.2.3-1-2/..",
        ] {
            assert!(parse_release_id(id).is_none(), "{id}");
            assert_eq!(id_of_target(&format!("releases/{id}")), None);
        }
        assert_eq!(id_of_target("/x/releases/1.2.3-1-2"), None);
    }

    #[test]
    fn a_record_comes_back_and_so_does_what_the_wrapper_makes_of_it() {
        let record = Record {
            version: version("1.2.3"),
            sha256: [7; 32],
            update_id: Some("u 1\n=é".into()),
            probation: 120,
        };
        assert_eq!(Record::parse(&record.emit()), Ok(record.clone()));
        let none = Record { update_id: None, ..record.clone() };
        assert_eq!(Record::parse(&none.emit()), Ok(none));
        let mut file = b"release=1.2.3-9-8\nreason=it \x1b[31m crashed\nsilent=yes\n".to_vec();
        file.extend(record.emit());
        let found = RolledBack::parse(&file).unwrap();
        assert_eq!(
            (found.version, found.sha256, found.update_id),
            (record.version, Some([7; 32]), record.update_id)
        );
        assert_eq!((found.release.as_str(), found.reason.as_str()), ("1.2.3-9-8", "it  [31m crashed"));
        assert!(found.was_silent);
        let bare = RolledBack::parse(b"release=1.2.3-9-8\n").unwrap();
        assert_eq!((bare.version.to_string().as_str(), bare.sha256), ("1.2.3", None));
        assert!(!bare.was_silent);
    }

    #[test]
    fn what_is_damaged_is_said_to_be() {
        for data in [
            &b""[..],
            b"\xff",
            b"version=1.2.3\n",
            b"version=x\nsha256=00\nprobation=1\n",
            &vec![b'x'; MAX_RECORD + 1],
        ] {
            assert_eq!(Record::parse(data), Err(Damaged));
            assert_eq!(RolledBack::parse(data), Err(Damaged));
            assert_eq!(parse_floor(data), Err(Damaged));
            assert_eq!(parse_id_line(data), None);
            assert!(data.is_empty() || parse_refused(data).is_err());
        }
        assert_eq!(parse_floor(b"1.2.3\n"), Ok(version("1.2.3")));
        assert_eq!(parse_id_line(b"1.2.3-4-5 2\n"), Some("1.2.3-4-5".into()));
    }

    #[test]
    fn failed_releases_are_remembered_up_to_a_bound_the_newest_last() {
        let failed: Vec<_> = (0..=MAX_REFUSED as u64)
            .map(|n| Failed {
                version: version(&format!("1.0.{n}")),
                sha256: (n % 2 == 0).then_some([n as u8; 32]),
            })
            .collect();
        assert_eq!(parse_refused(&emit_refused(&failed)), Ok(failed[1..].to_vec()));
        assert!(failed[2].is(&version("1.0.2"), &[9; 32]) && failed[2].is(&version("9.0.0"), &[2; 32]));
        assert!(
            !failed[2].is(&version("1.0.2+other"), &[9; 32]) && !failed[1].is(&version("1.0.2"), &[1; 32])
        );
    }
}
