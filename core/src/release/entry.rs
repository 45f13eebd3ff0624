//! What may be in the archive of a release, entry by entry, and what the whole must be.
//!
//! An archive comes from a stranger until its hash is checked, and its hash is not always known. So nothing is taken
//! but files and folders with plain names below the folder that it is unpacked into, each once, within bounds.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use core::fmt;

use super::gunzip::GzipError;
use super::manifest::{ARTIFACT, IMPLEMENTATION, Manifest, PRODUCT};
use super::version::{Version, VersionError};
use crate::text::printable;

/// The name of the manifest in the archive.
pub const MANIFEST: &str = "release-manifest.json";

/// The name of the program in the archive.
pub const PROGRAM: &str = "bin/consensus-node";

/// The name of the wrapper that starts releases and goes back to the last good one.
pub const WRAPPER: &str = "scripts/run-node.sh";

/// A name that no archive may have: the installer's own record of the release.
pub const RECORD: &str = "install-record";

/// Entries of an archive. A release has under 30.
pub const MAX_ENTRIES: usize = 1000;

/// Bytes of a path. What is longer needs extensions of the format that a release does not use.
pub const MAX_PATH: usize = 200;

/// Bytes of one name of a path.
pub const MAX_NAME: usize = 100;

/// Names of a path.
pub const MAX_DEPTH: usize = 8;

/// Bytes of one file. A program has under 10 MiB; with everything in it for debugging under 200.
pub const MAX_FILE: u64 = 256 * 1024 * 1024;

/// Bytes of all files, and of the archive.
pub const MAX_UNPACKED: u64 = 512 * 1024 * 1024;

/// Bytes of the artifact, compressed.
pub const MAX_ARTIFACT: u64 = 256 * 1024 * 1024;

/// Bytes of the manifest.
pub const MAX_MANIFEST: u64 = 64 * 1024;

/// What an entry says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A hard or symbolic link.
    Link,
    /// A device or a pipe.
    Device,
    /// A file with holes.
    Sparse,
    /// A header of an extended format: long names and the like.
    Extension,
    /// Anything else, by its type byte.
    Other(u8),
}

impl Kind {
    /// Of the type byte of a tar header.
    #[must_use]
    pub const fn of(byte: u8) -> Self {
        match byte {
            b'0' | 0 => Self::File,
            b'5' => Self::Folder,
            b'1' | b'2' => Self::Link,
            b'3' | b'4' | b'6' => Self::Device,
            b'S' => Self::Sparse,
            b'L' | b'K' | b'x' | b'g' | b'X' => Self::Extension,
            other => Self::Other(other),
        }
    }
}

/// A header of the archive, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Bytes that follow.
    pub size: u64,
    /// Its mode bits.
    pub mode: u32,
}

/// What to make of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Below the folder that is unpacked into: plain names with `/` between them.
    pub path: String,
    /// A folder; else a file.
    pub is_folder: bool,
    /// 0755 or 0644, whatever the entry says beside that its owner may execute it; a folder's is 0755.
    pub mode: u32,
}

/// Why an artifact is no release that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The compression.
    Gzip(GzipError),
    /// The artifact is larger than [`MAX_ARTIFACT`].
    ArtifactTooLarge,
    /// Its SHA-256 is another.
    Hash {
        /// In hex.
        wanted: String,
        /// In hex.
        found: String,
    },
    /// A header of the archive cannot be read.
    Header(String),
    /// The archive ends within an entry, or without its end mark.
    ArchiveTruncated,
    /// Something follows the archive's end mark.
    ArchiveTrailing,
    /// Over [`MAX_ENTRIES`].
    TooManyEntries,
    /// All files together are over [`MAX_UNPACKED`].
    TooMuch,
    /// An entry, by its path and what is wrong with it.
    Entry(String, &'static str),
    /// There is no [`MANIFEST`], no [`PROGRAM`].
    Missing(&'static str),
    /// [`PROGRAM`] may not be executed.
    NotExecutable,
    /// The manifest is over [`MAX_MANIFEST`], is not JSON, or misses members.
    Manifest(String),
    /// A member of the manifest is not what it has to be.
    Member {
        /// Its name.
        name: &'static str,
        /// What it has to be.
        wanted: String,
        /// What it is.
        found: String,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gzip(error) => error.fmt(f),
            Self::ArtifactTooLarge => write!(f, "it is over {MAX_ARTIFACT} bytes"),
            Self::Hash { wanted, found } => write!(f, "its SHA-256 is {found}, not {wanted}"),
            Self::Header(why) => write!(f, "an entry of the archive cannot be read: {why}"),
            Self::ArchiveTruncated => f.write_str("the archive is truncated"),
            Self::ArchiveTrailing => f.write_str("there is something after the end of the archive"),
            Self::TooManyEntries => write!(f, "the archive has over {MAX_ENTRIES} entries"),
            Self::TooMuch => write!(f, "its files are over {MAX_UNPACKED} bytes together"),
            Self::Entry(path, why) => write!(f, "its entry \"{path}\" {why}"),
            Self::Missing(name) => write!(f, "it has no {name}"),
            Self::NotExecutable => write!(f, "its {PROGRAM} is not executable"),
            Self::Manifest(why) => write!(f, "its {MANIFEST}: {why}"),
            Self::Member { name, wanted, found } => {
                write!(f, "its {MANIFEST} has the {name} {found:?}, not {wanted:?}")
            }
        }
    }
}

impl core::error::Error for Refused {}

impl From<GzipError> for Refused {
    fn from(error: GzipError) -> Self {
        Self::Gzip(error)
    }
}

/// The entries of one archive, checked one after the other.
#[derive(Debug, Default)]
pub struct Entries {
    /// Every path so far in lower case, whether it is a folder: file systems that do not tell case apart would have
    /// one file overwrite another.
    seen: BTreeMap<String, bool>,
    count: usize,
    total: u64,
    program: Option<bool>,
    has_manifest: bool,
    has_wrapper: bool,
}

impl Entries {
    /// The next entry.
    ///
    /// # Errors
    /// It is not taken, and the archive with it.
    pub fn admit(&mut self, entry: &Entry<'_>) -> Result<Placed, Refused> {
        self.count += 1;
        if self.count > MAX_ENTRIES {
            return Err(Refused::TooManyEntries);
        }
        let refused = |why| Err(Refused::Entry(printable(&String::from_utf8_lossy(entry.path)), why));
        let is_folder = match entry.kind {
            Kind::File => false,
            Kind::Folder => true,
            Kind::Link => return refused("is a link"),
            Kind::Device => return refused("is a device or a pipe"),
            Kind::Sparse => return refused("is a file with holes"),
            Kind::Extension => return refused("is an extension of the format, such as a long name"),
            Kind::Other(_) => return refused("is neither a file nor a folder"),
        };
        let path = match plain_path(entry.path, is_folder) {
            Ok(path) => path,
            Err(why) => return refused(why),
        };
        if is_folder && entry.size != 0 {
            return refused("is a folder with content");
        }
        // `./`, the root of the archive itself.
        if path.is_empty() {
            return Ok(Placed { path, is_folder, mode: 0o755 });
        }
        let folded = path.to_ascii_lowercase();
        if folded == RECORD || folded.starts_with("install-record/") {
            return refused("has a name that is the installer's");
        }
        if self.seen.contains_key(&folded) {
            return refused("is there twice");
        }
        let mut parent = folded.as_str();
        while let Some((above, _)) = parent.rsplit_once('/') {
            if !*self.seen.entry(above.to_string()).or_insert(true) {
                return refused("lies in a file");
            }
            parent = above;
        }
        self.seen.insert(folded, is_folder);
        if entry.size > MAX_FILE {
            return refused("is too large");
        }
        self.total += entry.size;
        if self.total > MAX_UNPACKED {
            return Err(Refused::TooMuch);
        }
        // Set-user-id and its like, and whatever others may do, do not survive.
        let mode = if is_folder || entry.mode & 0o100 != 0 { 0o755 } else { 0o644 };
        match path.as_str() {
            MANIFEST | PROGRAM | WRAPPER if is_folder => return refused("is a folder"),
            MANIFEST if entry.size > MAX_MANIFEST => {
                return Err(Refused::Manifest(alloc::format!("over {MAX_MANIFEST} bytes")));
            }
            MANIFEST => self.has_manifest = true,
            PROGRAM => self.program = Some(mode == 0o755 && entry.size > 0),
            WRAPPER => self.has_wrapper = true,
            _ => {}
        }
        Ok(Placed { path, is_folder, mode })
    }

    /// The archive is over: whether it has what a release must have. Gives whether it brings a wrapper.
    ///
    /// # Errors
    /// It does not.
    pub fn finish(&self) -> Result<bool, Refused> {
        if !self.has_manifest {
            return Err(Refused::Missing(MANIFEST));
        }
        match self.program {
            None => Err(Refused::Missing(PROGRAM)),
            Some(false) => Err(Refused::NotExecutable),
            Some(true) => Ok(self.has_wrapper),
        }
    }
}

/// The path without `./` before and `/` after it; empty for the root.
fn plain_path(path: &[u8], is_folder: bool) -> Result<String, &'static str> {
    if path.len() > MAX_PATH {
        return Err("has too long a path");
    }
    let text = core::str::from_utf8(path).map_err(|_| "has a name that is not plain ASCII")?;
    if text.starts_with('/') {
        return Err("has an absolute path");
    }
    let is_plain = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'@' | b'/' | b' ' | b',')
    };
    if !text.bytes().all(is_plain) {
        return Err("has a name that is not plain ASCII");
    }
    let inside = text.strip_prefix("./").unwrap_or(text);
    let inside = if is_folder { inside.strip_suffix('/').unwrap_or(inside) } else { inside };
    if is_folder && matches!(inside, "" | ".") {
        return Ok(String::new());
    }
    let mut depth = 0;
    for name in inside.split('/') {
        depth += 1;
        match name {
            "" => return Err("has an empty name in its path"),
            "." => return Err("has . in its path"),
            ".." => return Err("has .. in its path"),
            _ if name.len() > MAX_NAME => return Err("has too long a name"),
            _ if name.starts_with(' ') || name.ends_with(' ') => {
                return Err("has a name with blanks at its ends");
            }
            _ => {}
        }
    }
    if depth > MAX_DEPTH {
        return Err("lies too deep");
    }
    Ok(inside.to_string())
}

/// Reads the manifest of an archive and checks that it is of this product, this kind of artifact, this implementation
/// and `platform`, and of `version` where that is wanted. Gives the version with it.
///
/// # Errors
/// It is not, or cannot be read.
pub fn check_manifest(
    data: &[u8],
    platform: &str,
    version: Option<&Version>,
) -> Result<(Manifest, Version), Refused> {
    let manifest = crate::state::parse_manifest(data).map_err(|why| Refused::Manifest(why.to_string()))?;
    // One that says nothing of it is not of another.
    let implementation = manifest.implementation.as_deref().unwrap_or(IMPLEMENTATION);
    let members = [
        ("product", PRODUCT, manifest.product.as_str()),
        ("artifact", ARTIFACT, &manifest.artifact),
        ("implementation", IMPLEMENTATION, implementation),
        ("platform", platform, &manifest.platform),
    ];
    for (name, wanted, found) in members {
        if wanted != found {
            return Err(Refused::Member { name, wanted: wanted.to_string(), found: printable(found) });
        }
    }
    let found = manifest.version.parse::<Version>().map_err(|why: VersionError| {
        Refused::Manifest(alloc::format!("version {:?}: {why}", printable(&manifest.version)))
    })?;
    match version {
        Some(wanted) if wanted.to_string() != manifest.version => Err(Refused::Member {
            name: "version",
            wanted: wanted.to_string(),
            found: printable(&manifest.version),
        }),
        _ => Ok((manifest, found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn file(path: &str) -> Entry<'_> {
        Entry { path: path.as_bytes(), kind: Kind::File, size: 1, mode: 0o755 }
    }

    fn why(entries: &[Entry<'_>]) -> String {
        let mut machine = Entries::default();
        for (at, entry) in entries.iter().enumerate() {
            match machine.admit(entry) {
                Ok(_) => {}
                Err(Refused::Entry(_, why)) if at + 1 == entries.len() => return why.to_string(),
                Err(other) => return other.to_string(),
            }
        }
        "taken".to_string()
    }

    #[test]
    fn files_and_folders_with_plain_names_are_taken_and_modes_narrowed() {
        let mut machine = Entries::default();
        for (entry, path, mode) in [
            (Entry { kind: Kind::Folder, size: 0, ..file("./") }, "", 0o755),
            (Entry { kind: Kind::Folder, size: 0, mode: 0, ..file("bin/") }, "bin", 0o755),
            (Entry { mode: 0o7777, ..file("./bin/consensus-node") }, PROGRAM, 0o755),
            (Entry { mode: 0o4644, ..file(MANIFEST) }, MANIFEST, 0o644),
            (
                Entry { mode: 0o066, ..file("systemd/consensus-node@.service") },
                "systemd/consensus-node@.service",
                0o644,
            ),
        ] {
            assert_eq!(
                machine.admit(&entry),
                Ok(Placed { path: path.into(), is_folder: entry.kind == Kind::Folder, mode })
            );
        }
        assert_eq!(machine.finish(), Ok(false));
        machine.admit(&file(WRAPPER)).unwrap();
        assert_eq!(machine.finish(), Ok(true));
    }

    #[test]
    fn a_path_that_leads_out_or_is_not_plain_is_refused() {
        let long = "a".repeat(MAX_NAME + 1);
        let longer = "abcdefghi/".repeat(21);
        let deep = "a/".repeat(MAX_DEPTH) + "a";
        for (path, said) in [
            ("/etc/passwd", "absolute"),
            ("../x", ".."),
            ("bin/../../x", ".."),
            ("bin/..", ".."),
            ("..", ".."),
            ("a/./b", ". in"),
            (".", ". in"),
            ("", "empty"),
            ("a//b", "empty"),
            ("a/", "empty"),
            ("./", "empty"),
            (&long, "long a name"),
            (&longer, "long a path"),
            (&deep, "deep"),
            ("a\\b", "ASCII"),
            ("a\0b", "ASCII"),
            ("a\nb", "ASCII"),
            ("é", "ASCII"),
            ("C:x", "ASCII"),
            (" a", "blanks"),
            ("install-record", "installer's"),
            ("INSTALL-record/x", "installer's"),
        ] {
            assert!(why(&[file(path)]).contains(said), "{path:?}: {}", why(&[file(path)]));
        }
        assert!(why(&[Entry { path: b"\xff", ..file("") }]).contains("ASCII"));
    }

    #[test]
    fn kinds_other_than_files_and_folders_are_refused() {
        for (byte, said) in [
            (b'1', "link"),
            (b'2', "link"),
            (b'3', "device"),
            (b'4', "device"),
            (b'6', "pipe"),
            (b'S', "holes"),
            (b'L', "extension"),
            (b'K', "extension"),
            (b'x', "extension"),
            (b'g', "extension"),
            (b'7', "neither"),
            (b'V', "neither"),
            (0xff, "neither"),
        ] {
            assert!(why(&[Entry { kind: Kind::of(byte), ..file("a") }]).contains(said), "{byte}");
        }
    }

    #[test]
    fn an_entry_that_another_would_overwrite_is_refused() {
        let folder = |path| Entry { kind: Kind::Folder, size: 0, ..file(path) };
        assert_eq!(why(&[file("a"), file("a")]), "is there twice");
        assert_eq!(why(&[file("a/B"), file("A/b")]), "is there twice");
        assert_eq!(why(&[folder("a"), file("a")]), "is there twice");
        assert_eq!(why(&[file("a/b"), file("a")]), "is there twice");
        assert_eq!(why(&[file("a"), file("a/b")]), "lies in a file");
        assert_eq!(why(&[file("a/b"), file("a/c"), folder("a/d/")]), "taken");
    }

    #[test]
    fn counts_and_sizes_are_bounded() {
        let names: alloc::vec::Vec<_> = (0..=MAX_ENTRIES).map(|n| format!("f{n}")).collect();
        let entries: alloc::vec::Vec<_> = names.iter().map(|name| file(name)).collect();
        assert_eq!(why(&entries[..MAX_ENTRIES]), "taken");
        assert_eq!(why(&entries), Refused::TooManyEntries.to_string());
        let large = |path| Entry { size: MAX_FILE, ..file(path) };
        assert_eq!(why(&[large("a"), large("b")]), "taken");
        assert_eq!(why(&[large("a"), large("b"), file("c")]), Refused::TooMuch.to_string());
        assert_eq!(why(&[Entry { size: MAX_FILE + 1, ..file("a") }]), "is too large");
        assert_eq!(why(&[Entry { size: u64::MAX, ..file("a") }]), "is too large");
        assert!(why(&[Entry { size: MAX_MANIFEST + 1, ..file(MANIFEST) }]).contains("over 65536"));
        assert!(why(&[Entry { kind: Kind::Folder, ..file("a") }]).contains("content"));
    }

    #[test]
    fn a_release_has_a_manifest_and_a_program_that_can_be_executed() {
        let finish = |entries: &[Entry<'_>]| {
            let mut machine = Entries::default();
            for entry in entries {
                machine.admit(entry).unwrap();
            }
            machine.finish()
        };
        assert_eq!(finish(&[file(PROGRAM)]), Err(Refused::Missing(MANIFEST)));
        assert_eq!(finish(&[file(MANIFEST)]), Err(Refused::Missing(PROGRAM)));
        assert_eq!(
            finish(&[file(MANIFEST), Entry { mode: 0o644, ..file(PROGRAM) }]),
            Err(Refused::NotExecutable)
        );
        assert_eq!(
            finish(&[file(MANIFEST), Entry { size: 0, ..file(PROGRAM) }]),
            Err(Refused::NotExecutable)
        );
        assert!(why(&[Entry { kind: Kind::Folder, size: 0, ..file(PROGRAM) }]).contains("folder"));
    }

    #[test]
    fn a_manifest_of_another_product_artifact_platform_or_version_is_refused() {
        let ours = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
        let check = |manifest: &Manifest, version: Option<&str>| {
            let version: Option<Version> = version.map(|text| text.parse().unwrap());
            check_manifest(&serde_json::to_vec(manifest).unwrap(), "linux-x64", version.as_ref())
        };
        assert_eq!(check(&ours, None).unwrap().0, ours);
        assert_eq!(check(&ours, Some("1.2.3")).unwrap().1.to_string(), "1.2.3");
        for (manifest, version, name) in [
            (Manifest { product: "x".into(), ..ours.clone() }, None, "product"),
            (Manifest { artifact: "source".into(), ..ours.clone() }, None, "artifact"),
            (Manifest { implementation: Some("bun".into()), ..ours.clone() }, None, "implementation"),
            (Manifest { platform: "linux-arm".into(), ..ours.clone() }, None, "platform"),
            (ours.clone(), Some("1.2.4"), "version"),
            (ours.clone(), Some("1.2.3+other"), "version"),
            (Manifest { version: "../1".into(), ..ours.clone() }, None, "version"),
        ] {
            let error = check(&manifest, version).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        for data in [&b""[..], b"[]", b"{}", b"\xff"] {
            assert!(matches!(check_manifest(data, "linux-x64", None), Err(Refused::Manifest(_))));
        }
    }
}
