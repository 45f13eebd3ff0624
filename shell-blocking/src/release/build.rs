//! The tarball of a release, the same bytes from the same inputs: entries sorted by name, with fixed times, owners and
//! modes, in one gzip member without a time or a name.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use consensus_core::limits::MAX_TARBALL;
use consensus_core::release::manifest::Manifest;
use consensus_core::state::emit_manifest;

/// The program's name in the archive, whichever shell it is.
const PROGRAM: &str = "bin/consensus-node";

/// The manifest's name in the archive.
const MANIFEST: &str = "release-manifest.json";

/// What is taken of the folder of scripts, where it is there: the folder of the archive it goes to, the folder it is
/// taken from, and the ends of names. Everything else in the folder is for those who work on this project.
const TAKEN: [(&str, &str, &[&str]); 3] = [
    (
        "scripts",
        "",
        &[
            "ecosystem.config.cjs",
            "ensure-pm2.sh",
            "install-release.sh",
            "run-control.sh",
            "run-node.sh",
            "start-pm2.sh",
        ],
    ),
    ("systemd", "systemd", &[".service", ".socket", ".timer", ".path"]),
    ("launchd", "launchd", &[".plist"]),
];

/// The largest script or unit file.
const MAX_SCRIPT: u64 = 1024 * 1024;

/// The most files of one folder.
const MAX_FILES: usize = 64;

/// 1980-01-01 in unix seconds: the time of every entry. Some readers complain of 1970.
const TIME: u64 = 315_532_800;

/// How hard to compress. The highest level of all takes three times as long for half a percent.
const LEVEL: u8 = 9;

/// Why there is no tarball.
#[derive(Debug)]
pub enum BuildError {
    /// A file of it.
    File(PathBuf, io::Error),
    /// A file is too large, or too many are.
    TooLarge(PathBuf),
    /// The program is none for the platform.
    Platform {
        /// The program.
        binary: PathBuf,
        /// What it is for.
        is_for: &'static str,
        /// What it should be for.
        wanted: String,
    },
    /// The archive cannot be written.
    Archive(io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::TooLarge(path) => {
                write!(f, "{}: too large, or too many files, for a release", path.display())
            }
            Self::Platform { binary, is_for, wanted } => {
                write!(f, "{}: a program for {is_for}, and the release is for {wanted}", binary.display())
            }
            Self::Archive(error) => write!(f, "the archive cannot be written: {error}"),
        }
    }
}

impl std::error::Error for BuildError {}

/// The bytes of the tarball: the program `binary`, what is taken of the folder `scripts` (which need not exist),
/// and of `manifest` what is known before packing.
///
/// # Errors
/// [`BuildError`].
pub fn build(manifest: &Manifest, binary: &Path, scripts: &Path) -> Result<Vec<u8>, BuildError> {
    let mut entries = vec![(MANIFEST.to_string(), emit_manifest(&before_packing(manifest)), 0o644)];
    let program = read(binary, MAX_TARBALL)?;
    if let Some(is_for) = platform_of(&program) {
        if is_for != manifest.platform {
            let (binary, wanted) = (binary.to_path_buf(), manifest.platform.clone());
            return Err(BuildError::Platform { binary, is_for, wanted });
        }
    }
    entries.push((PROGRAM.to_string(), program, 0o755));
    for (folder, from, ends) in TAKEN {
        let from = if from.is_empty() { scripts.to_path_buf() } else { scripts.join(from) };
        for name in names(&from, ends)? {
            // A script says in its first two bytes that it is one.
            let data = read(&from.join(&name), MAX_SCRIPT)?;
            let mode = if data.starts_with(b"#!") { 0o755 } else { 0o644 };
            entries.push((format!("{folder}/{name}"), data, mode));
        }
    }
    entries.sort();
    Ok(gzip(&archive(&entries).map_err(BuildError::Archive)?))
}

/// A manifest without what is known only of the finished tarball.
fn before_packing(manifest: &Manifest) -> Manifest {
    let mut inside = manifest.clone();
    (inside.download_url, inside.tarball_sha256) = (None, None);
    (inside.signing_key_id, inside.signature) = (None, None);
    for name in ["tarball_size", "expires"] {
        inside.extra.remove(name);
    }
    inside
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, BuildError> {
    let wrong = |error| BuildError::File(path.to_path_buf(), error);
    let file = fs::File::open(path).map_err(wrong)?;
    if !file.metadata().map_err(wrong)?.is_file() {
        return Err(wrong(io::Error::other("not an ordinary file")));
    }
    let mut data = Vec::new();
    file.take(most + 1).read_to_end(&mut data).map_err(wrong)?;
    if data.len() as u64 > most { Err(BuildError::TooLarge(path.to_path_buf())) } else { Ok(data) }
}

/// The files of a folder whose names end so. Links and folders are passed over.
fn names(folder: &Path, ends: &[&str]) -> Result<Vec<String>, BuildError> {
    let wrong = |error| BuildError::File(folder.to_path_buf(), error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(wrong)?;
        let is_file = entry.file_type().map_err(wrong)?.is_file();
        let name = entry.file_name().into_string().unwrap_or_default();
        let is_plain = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
        // A whole name is listed as a whole: one that begins with a point is an end.
        let is_taken = |end: &&str| if end.starts_with('.') { name.ends_with(*end) } else { name == *end };
        if is_file && is_plain && ends.iter().any(is_taken) {
            names.push(name);
        }
        if names.len() > MAX_FILES {
            return Err(BuildError::TooLarge(folder.to_path_buf()));
        }
    }
    Ok(names)
}

/// What a program is for, by its first bytes; `None` where they are of no kind that is known here.
fn platform_of(program: &[u8]) -> Option<&'static str> {
    match (program.get(..4)?, program.get(4..8)?, program.get(18..20)?) {
        (b"\x7fELF", _, [62, 0]) => Some("linux-x64"),
        (b"\x7fELF", _, [183, 0]) => Some("linux-arm64"),
        (b"\x7fELF", _, [40, 0]) => Some("linux-arm"),
        (b"\xcf\xfa\xed\xfe", b"\x0c\x00\x00\x01", _) => Some("darwin-arm64"),
        (b"\xcf\xfa\xed\xfe", b"\x07\x00\x00\x01", _) => Some("darwin-x64"),
        _ => None,
    }
}

pub(crate) fn archive(entries: &[(String, Vec<u8>, u32)]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, data, mode) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(data.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        archive.append(&header, data.as_slice())?;
    }
    archive.into_inner()
}

/// One gzip member (RFC 1952) without flags, time or name; the system is "unknown".
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    out.extend(miniz_oxide::deflate::compress_to_vec(data, LEVEL));
    out.extend(crc32fast::hash(data).to_le_bytes());
    // The length modulo 2³², by the standard.
    out.extend((data.len() as u32).to_le_bytes());
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    /// Files as a checkout has them, written in that order and with those modes.
    fn sources(names: &[&str], mode: u32) -> Scratch {
        let scratch = Scratch::new();
        for name in names {
            let path = scratch.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = if name.ends_with(".sh") || name == &"program" { "#!/bin/sh\n" } else { "text\n" };
            fs::write(&path, format!("{text}# {name}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        scratch
    }

    fn manifest() -> Manifest {
        let mut manifest = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
        manifest.download_url = Some("https://x/y".into());
        manifest.set_expires(7);
        manifest
    }

    fn build_in(scratch: &Scratch) -> Result<Vec<u8>, BuildError> {
        build(&manifest(), &scratch.path().join("program"), &scratch.path().join("scripts"))
    }

    /// Path, mode, time, owner and content of every entry.
    pub(crate) fn entries(tarball: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let data = miniz_oxide::inflate::decompress_to_vec(&tarball[10..tarball.len() - 8]).unwrap();
        assert_eq!(tarball[tarball.len() - 8..][..4], crc32fast::hash(&data).to_le_bytes());
        assert_eq!(tarball[tarball.len() - 4..], (data.len() as u32).to_le_bytes());
        let mut archive = tar::Archive::new(data.as_slice());
        let read = |mut entry: tar::Entry<'_, &[u8]>| {
            let header = entry.header().clone();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (TIME, 0, 0));
            assert!(header.entry_type().is_file());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_string(), header.mode().unwrap(), content)
        };
        archive.entries().unwrap().map(|entry| read(entry.unwrap())).collect()
    }

    const NAMES: [&str; 6] = [
        "program",
        "scripts/run-node.sh",
        "scripts/install-release.sh",
        "scripts/fuzz.sh",
        "scripts/systemd/consensus-node.service",
        "scripts/launchd/network.consensus.node.plist",
    ];

    #[test]
    fn two_builds_in_two_folders_are_the_same_bytes() {
        let mut other = NAMES;
        other.reverse();
        let (a, b) = (sources(&NAMES, 0o644), sources(&other, 0o775));
        let day_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
        fs::File::open(b.path().join("program")).unwrap().set_modified(day_ago).unwrap();
        assert_eq!(build_in(&a).unwrap(), build_in(&b).unwrap());
        // What differs is seen.
        fs::write(b.path().join("program"), "other").unwrap();
        assert_ne!(build_in(&a).unwrap(), build_in(&b).unwrap());
    }

    #[test]
    fn a_release_holds_the_program_its_manifest_and_the_scripts_that_are_known() {
        let scratch = sources(&NAMES, 0o600);
        symlink("/etc/passwd", scratch.path().join("scripts/systemd/evil.service")).unwrap();
        fs::write(scratch.path().join("scripts/systemd/-rf.service"), "x").unwrap();
        fs::create_dir(scratch.path().join("scripts/launchd/folder.plist")).unwrap();
        let entries = entries(&build_in(&scratch).unwrap());
        let listed: Vec<_> = entries.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        let expected = [
            ("bin/consensus-node", 0o755),
            ("launchd/network.consensus.node.plist", 0o644),
            ("release-manifest.json", 0o644),
            ("scripts/install-release.sh", 0o755),
            ("scripts/run-node.sh", 0o755),
            ("systemd/consensus-node.service", 0o644),
        ];
        assert_eq!(listed, expected);
        let inside = consensus_core::state::parse_manifest(&entries[2].2).unwrap();
        assert_eq!(inside, Manifest::of_this_release("1.2.3", "abc", "linux-x64"));
        assert_eq!(entries[0].2, b"#!/bin/sh\n# program\n");
    }

    #[test]
    fn a_release_without_scripts_is_one_too_and_without_a_program_is_none() {
        let scratch = sources(&["program"], 0o644);
        assert_eq!(entries(&build_in(&scratch).unwrap()).len(), 2);
        fs::remove_file(scratch.path().join("program")).unwrap();
        assert!(build_in(&scratch).unwrap_err().to_string().contains("program"));
        fs::create_dir(scratch.path().join("program")).unwrap();
        assert!(build_in(&scratch).unwrap_err().to_string().contains("not an ordinary file"));
    }

    #[test]
    fn a_program_for_another_platform_is_not_packed() {
        let scratch = sources(&["program"], 0o644);
        let mut elf = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 57]].concat();
        elf[18] = 183;
        fs::write(scratch.path().join("program"), &elf).unwrap();
        let error = build_in(&scratch).unwrap_err().to_string();
        assert!(error.contains("linux-arm64") && error.contains("linux-x64"), "{error}");
        elf[18] = 62;
        fs::write(scratch.path().join("program"), &elf).unwrap();
        assert!(build_in(&scratch).is_ok());
        assert_eq!(platform_of(b"\xcf\xfa\xed\xfe\x0c\0\0\x01............"), Some("darwin-arm64"));
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(platform_of(&own), Some(crate::system::platform().as_str()));
    }

    #[test]
    fn a_script_that_is_too_large_is_told() {
        let scratch = sources(&NAMES, 0o644);
        let path = scratch.path().join("scripts/run-node.sh");
        fs::File::create(&path).unwrap().set_len(MAX_SCRIPT + 1).unwrap();
        assert!(build_in(&scratch).unwrap_err().to_string().contains("run-node.sh: too large"));
    }
}
