//! The version of the sources: in `Cargo.toml`, and for the workspace's packages in the lock files.
//!
//! The files are edited line by line, so that comments, order and line ends stay as they are; what does not look as this
//! project's files do is refused. All new texts are there before the first file is replaced.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use consensus_core::release::version::{Bump, Version, VersionError};

use crate::state_dir::{FileError, read_file, replace_file};

/// The largest file that is edited. Lock files have some ten KiB.
const MAX_FILE: usize = 8 * 1024 * 1024;

/// The most packages of the workspace.
const MAX_MEMBERS: usize = 64;

/// A package by which this project's workspace is known.
const OURS: &str = "consensus-core";

/// Lock files. The second is of the fuzz targets, which are a workspace of their own.
const LOCKS: [&str; 2] = ["Cargo.lock", "fuzz/Cargo.lock"];

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bumped {
    /// The version before.
    pub from: Version,
    /// The version now.
    pub to: Version,
    /// The files that were replaced.
    pub files: Vec<PathBuf>,
}

/// Why the version stays.
#[derive(Debug)]
pub enum BumpError {
    /// A file that cannot be read or written.
    File(FileError),
    /// Not this project's workspace, or not as it is known.
    NotOurs(PathBuf, String),
    /// The new version.
    Version(VersionError),
    /// The new version is not above the old one.
    NotNewer(Version, Version),
}

impl fmt::Display for BumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::NotOurs(path, why) => {
                write!(f, "{}: not the workspace of this project: {why}; nothing was changed", path.display())
            }
            Self::Version(error) => error.fmt(f),
            Self::NotNewer(from, to) => {
                write!(f, "the version is {from}, and {to} is not newer; nothing was changed")
            }
        }
    }
}

impl std::error::Error for BumpError {}

impl From<FileError> for BumpError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// Gives the workspace in `dir` its next version.
///
/// # Errors
/// [`BumpError`]. Nothing was changed then, but where a file could not be replaced after another one was.
pub fn bump(dir: &Path, bump: &Bump) -> Result<Bumped, BumpError> {
    let path = dir.join("Cargo.toml");
    let text = read(&path)?;
    let not_ours = |path: &Path, why: &str| BumpError::NotOurs(path.to_path_buf(), why.to_string());
    let (value, at) = value_of(&text, "[workspace.package]", "version")
        .ok_or_else(|| not_ours(&path, "no version in [workspace.package]"))?;
    let from: Version = value.parse().map_err(|_| not_ours(&path, "its version is none"))?;
    let packages = packages(dir, &path, &text)?;
    let to = from.bump(bump).map_err(BumpError::Version)?;
    if to <= from {
        return Err(BumpError::NotNewer(from, to));
    }
    let mut changed = vec![(path, replaced(&text, at, &to))];
    for name in LOCKS {
        let path = dir.join(name);
        if path.exists() {
            let text = read(&path)?;
            let locked = locked(&text, &packages, &to)
                .ok_or_else(|| not_ours(&path, "it does not lock this workspace's packages"))?;
            changed.push((path, locked));
        }
    }
    for (path, text) in &changed {
        let mode = fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o777);
        replace_file(path, text.as_bytes(), mode)?;
    }
    Ok(Bumped { from, to, files: changed.into_iter().map(|(path, _)| path).collect() })
}

fn read(path: &Path) -> Result<String, BumpError> {
    let not_ours = |why: &str| BumpError::NotOurs(path.to_path_buf(), why.to_string());
    let data = read_file(path, MAX_FILE)?.ok_or_else(|| not_ours("there is no such file"))?;
    String::from_utf8(data.to_vec()).map_err(|_| not_ours("it is not text"))
}

/// The text between quotes of `key = "…"` in that section, and where it stands. `None` where there is none, or two.
fn value_of<'a>(text: &'a str, section: &str, key: &str) -> Option<(&'a str, std::ops::Range<usize>)> {
    let mut found = None;
    let mut current = "";
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with('[') && !line.starts_with(' ') {
            current = trimmed;
        }
        if let Some((name, rest)) = line.split_once('=') {
            if current == section && name.trim() == key {
                let from = line.len() - rest.len() + rest.find('"')? + 1;
                let to = from + line[from..].find('"')?;
                if found.replace((&line[from..to], start + from..start + to)).is_some() {
                    return None;
                }
            }
        }
        start += line.len();
    }
    found
}

fn replaced(text: &str, at: std::ops::Range<usize>, version: &Version) -> String {
    format!("{}{version}{}", &text[..at.start], &text[at.end..])
}

/// The names of the members that have the workspace's version.
fn packages(dir: &Path, path: &Path, text: &str) -> Result<Vec<String>, BumpError> {
    let not_ours = |path: &Path, why: &str| BumpError::NotOurs(path.to_path_buf(), why.to_string());
    let list = text.lines().find_map(|line| line.strip_prefix("members = [")?.trim_end().strip_suffix(']'));
    let list = list.ok_or_else(|| not_ours(path, "no members on one line"))?;
    let mut names = Vec::new();
    for member in
        list.split(',').map(|member| member.trim().trim_matches('"')).filter(|member| !member.is_empty())
    {
        let is_plain = member.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !is_plain || names.len() >= MAX_MEMBERS {
            return Err(not_ours(path, "a member is not a folder of it"));
        }
        let path = dir.join(member).join("Cargo.toml");
        let text = read(&path)?;
        let (name, _) =
            value_of(&text, "[package]", "name").ok_or_else(|| not_ours(&path, "it has no name"))?;
        if text.lines().any(|line| line.trim() == "version.workspace = true") {
            names.push(name.to_string());
        }
    }
    if names.iter().any(|name| name == OURS) {
        Ok(names)
    } else {
        Err(not_ours(path, &format!("no package {OURS} with the workspace's version")))
    }
}

/// A lock file's text with the version of these packages. `None` where it has none of them.
fn locked(text: &str, packages: &[String], version: &Version) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 64);
    let mut is_found = false;
    for (i, block) in text.split("[[package]]").enumerate() {
        if i > 0 {
            out.push_str("[[package]]");
        }
        let name = value_of(block, "", "name").map(|(name, _)| name);
        let is_own = name.is_some_and(|name| packages.iter().any(|own| own == name));
        // What comes from a registry has a source, whatever its name.
        match value_of(block, "", "version").filter(|_| is_own && value_of(block, "", "source").is_none()) {
            Some((_, at)) => {
                is_found = true;
                out.push_str(&replaced(block, at, version));
            }
            None => out.push_str(block),
        }
    }
    is_found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;

    const CARGO: &str = "# version = \"9.9.9\"\r\n[workspace]\nmembers = [\"core\", \"app\", \"other\"]\n\n\
        [workspace.package]\nversion = \"0.1.0\" # the one\nedition = \"2024\"\n\n[workspace.dependencies]\n\
        version = \"1\"\nx = { version = \"0.1.0\" }\n";
    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\ndependencies = [\n \"core\",\n]\n\n\
        [[package]]\nname = \"consensus-core\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n\
        source = \"registry+x\"\n\n[[package]]\nname = \"other\"\nversion = \"0.1.0\"\n";

    fn world() -> Scratch {
        let scratch = Scratch::new();
        let write = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("Cargo.toml", CARGO);
        write("Cargo.lock", LOCK);
        write(
            "fuzz/Cargo.lock",
            "version = 4\n\n[[package]]\nname = \"consensus-core\"\nversion = \"0.1.0\"\n",
        );
        write("core/Cargo.toml", "[package]\nname = \"consensus-core\"\nversion.workspace = true\n");
        write("app/Cargo.toml", "[package]\nname = \"app\"\nversion.workspace = true\n");
        write("other/Cargo.toml", "[package]\nname = \"other\"\nversion = \"0.1.0\"\n");
        scratch
    }

    fn texts(scratch: &Scratch) -> [String; 3] {
        ["Cargo.toml", "Cargo.lock", "fuzz/Cargo.lock"]
            .map(|name| fs::read_to_string(scratch.path().join(name)).unwrap())
    }

    #[test]
    fn the_version_is_changed_where_it_stands_and_nowhere_else() {
        let scratch = world();
        let before = texts(&scratch);
        let bumped = bump(scratch.path(), &Bump::Minor).unwrap();
        assert_eq!((bumped.from.to_string(), bumped.to.to_string()), ("0.1.0".into(), "0.2.0".into()));
        assert_eq!(bumped.files.len(), 3);
        let after = texts(&scratch);
        assert_eq!(after[0], before[0].replace("version = \"0.1.0\" #", "version = \"0.2.0\" #"));
        let mut expected = before[1].replacen("0.1.0", "0.2.0", 2);
        assert_eq!(after[1], expected);
        expected = before[2].replace("0.1.0", "0.2.0");
        assert_eq!(after[2], expected);
        assert!(
            fs::read_dir(scratch.path()).unwrap().all(|entry| !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .ends_with(".tmp"))
        );
    }

    #[test]
    fn an_older_version_or_the_same_is_refused() {
        let scratch = world();
        for text in ["0.0.9", "0.1.0", "0.1.0-rc.1", "0.1.0+build"] {
            let error = bump(scratch.path(), &text.parse().unwrap()).unwrap_err();
            assert!(matches!(error, BumpError::NotNewer(..)), "{error}");
        }
        assert_eq!(texts(&scratch)[0], CARGO);
    }

    #[test]
    fn what_is_not_this_projects_workspace_is_left_alone() {
        for (name, text) in [
            ("Cargo.toml", "[package]\nname = \"x\"\nversion = \"0.1.0\"\n"),
            ("Cargo.toml", "[workspace.package]\nversion = \"0.1.0\"\n"),
            ("Cargo.toml", "members = [\"../core\"]\n[workspace.package]\nversion = \"0.1.0\"\n"),
            ("Cargo.toml", "members = [\"core\"]\n[workspace.package]\nversion = \"1\"\n"),
            (
                "Cargo.toml",
                "members = [\"core\"]\n[workspace.package]\nversion = \"0.1.0\"\nversion = \"0.1.0\"\n",
            ),
            ("core/Cargo.toml", "[package]\nname = \"another\"\nversion.workspace = true\n"),
            ("core/Cargo.toml", "[package]\nname = \"consensus-core\"\nversion = \"0.1.0\"\n"),
            ("Cargo.lock", "version = 4\n"),
        ] {
            let scratch = world();
            fs::write(scratch.path().join(name), text).unwrap();
            let before = texts(&scratch);
            let error = bump(scratch.path(), &Bump::Patch).unwrap_err();
            assert!(matches!(error, BumpError::NotOurs(..)), "{text}: {error}");
            assert_eq!(texts(&scratch), before);
        }
        let empty = Scratch::new();
        assert!(matches!(bump(empty.path(), &Bump::Patch), Err(BumpError::NotOurs(..))));
    }

    #[test]
    fn the_projects_own_files_are_as_this_expects() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let path = root.join("Cargo.toml");
        let text = read(&path).unwrap();
        assert_eq!(value_of(&text, "[workspace.package]", "version").unwrap().0, env!("CARGO_PKG_VERSION"));
        let packages = packages(root, &path, &text).unwrap();
        assert!(packages.iter().any(|name| name == env!("CARGO_PKG_NAME")), "{packages:?}");
        let lock =
            locked(&read(&root.join("Cargo.lock")).unwrap(), &packages, &"99.0.0".parse().unwrap()).unwrap();
        assert_eq!(lock.matches("version = \"99.0.0\"").count(), packages.len());
    }
}
