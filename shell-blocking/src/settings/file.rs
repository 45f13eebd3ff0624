//! The settings file: `config.toml` in the state directory. Its names are those of the options, without the strokes.
//!
//! It is read as a whole before anything else is done, so that a name that is none is told at once, with its line. What
//! a value has to be is told where the value is used, as it is for an option.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::UsageError;
use super::known::{KNOWN, Known};
use super::release::REPEATED;
use crate::state_dir::read_with_mode;

/// Its name in the state directory.
pub const FILE_NAME: &str = "config.toml";

/// Its largest size, in bytes.
const MAX_FILE: usize = 64 * 1024;

/// Which list a setting's value may be, and what stands between its parts then.
const LISTS: [(&str, char); 3] = [("release-key", REPEATED), ("no-proxy", ','), ("address-service", ',')];

/// Settings that were read from the file.
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
    values: BTreeMap<&'static str, (String, usize)>,
}

impl File {
    /// Reads the file of a state directory; nothing where there is none.
    ///
    /// # Errors
    /// It cannot be read, is not TOML, has a name that is no setting, holds a secret that others can read, or can be
    /// written by others.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, UsageError> {
        let path = state_dir.join(FILE_NAME);
        let found = read_with_mode(&path, MAX_FILE).map_err(|error| UsageError::new(&error.to_string()))?;
        let Some((bytes, mode)) = found else { return Ok(None) };
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| UsageError::new(&format!("{}: it is not text in UTF-8", path.display())))?;
        let file = Self { values: parse(text, &path)?, path };
        file.check_mode(mode)?;
        Ok(Some(file))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same without one setting.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut file = self.clone();
        file.values.remove(name);
        file
    }

    /// Every setting in it, by name, with its text.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.values.iter().map(|(name, (text, _))| (*name, text.as_str()))
    }

    /// The text of a setting, and where it stands, in words.
    pub(super) fn get(&self, name: &str) -> Option<(&str, String)> {
        let (text, line) = self.values.get(name)?;
        Some((text, format!("{}, line {line}, {name}", self.path.display())))
    }

    fn check_mode(&self, mode: u32) -> Result<(), UsageError> {
        let refuse = |why: &str, mode: &str| {
            let path = self.path.display();
            Err(UsageError::new(&format!("{path}: {why}; allowed: mode {mode}: chmod {mode} {path}")))
        };
        if mode & 0o022 != 0 {
            return refuse("others can write to it, and so say what this node runs and trusts", "0600");
        }
        let is_secret = |known: &&Known| {
            self.values.get(known.name()).is_some_and(|(text, _)| known.secret && known.holds_secret(text))
        };
        match KNOWN.iter().find(is_secret) {
            Some(known) if mode & 0o077 != 0 => {
                refuse(&format!("others can read it, and {} is a secret", known.name()), "0600")
            }
            _ => Ok(()),
        }
    }
}

type Values = BTreeMap<&'static str, (String, usize)>;

fn parse(text: &str, path: &Path) -> Result<Values, UsageError> {
    let line_of = |at: usize| text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    let wrong = |at: usize, what: &str| {
        Err(UsageError::new(&format!("{}, line {}: {what}", path.display(), line_of(at))))
    };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            return wrong(at, &format!("this is not TOML: {}", error.message()));
        }
    };
    let mut values = Values::new();
    for (name, value) in &table {
        let (given, at) = (name.get_ref().as_ref(), name.span().start);
        let Some(known) = KNOWN.iter().find(|known| known.in_file && known.name() == given) else {
            return wrong(at, &unknown(given));
        };
        match text_of(known.name(), value.get_ref()) {
            Ok(found) => drop(values.insert(known.name(), (found, line_of(at)))),
            Err(wanted) => return wrong(at, &format!("{given}: allowed: {wanted}")),
        }
    }
    Ok(values)
}

/// The value as an option would have it; the error is what it must be.
fn text_of(name: &str, value: &DeValue<'_>) -> Result<String, &'static str> {
    let list = LISTS.iter().find(|(list, _)| *list == name);
    match (value, list) {
        (DeValue::String(text), _) => Ok(text.to_string()),
        (DeValue::Integer(number), _) if number.radix() == 10 => Ok(number.as_str().to_string()),
        (DeValue::Array(array), Some((_, between))) => {
            let parts: Option<Vec<&str>> = array.iter().map(|part| as_text(part.get_ref())).collect();
            let parts = parts.ok_or("a text in quotes, or a list of such")?;
            Ok(parts.join(between.to_string().as_str()))
        }
        (_, Some(_)) => Err("a text in quotes, or a list of such"),
        (_, None) => Err("a text in quotes, or a whole number"),
    }
}

fn as_text<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

/// What is said of a name that is no setting of the file.
fn unknown(given: &str) -> String {
    let shown: String = given.chars().take(40).collect();
    match given {
        "state-dir" => return "state-dir: the state directory is the one that this file is in".to_string(),
        "allow-private-targets" => {
            return "allow-private-targets: allowed on the command line alone, where nobody leaves it by mistake"
                .to_string();
        }
        _ => {}
    }
    let names = || KNOWN.iter().filter(|known| known.in_file);
    let plain = given.trim_start_matches('-').replace('_', "-").to_ascii_lowercase();
    let by_variable = |known: &&Known| known.env.iter().any(|name| name.eq_ignore_ascii_case(given));
    let near =
        names().find(|known| known.name() == plain).or_else(|| names().find(by_variable)).or_else(|| {
            let near =
                names().map(|known| (distance(&plain, known.name()), known)).min_by_key(|(far, _)| *far);
            near.filter(|(far, _)| *far <= 3).map(|(_, known)| known)
        });
    match near {
        Some(known) => format!("{shown:?} is no setting; is {} meant?", known.name()),
        None => format!("{shown:?} is no setting; `config show` lists them all"),
    }
}

/// How many letters have to be put in, taken out or changed to make one word of the other. Of a long word, its begin.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;
    use std::os::unix::fs::PermissionsExt as _;

    fn file(text: &str, mode: u32) -> Result<File, String> {
        let scratch = Scratch::new();
        let path = scratch.path().join(FILE_NAME);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        File::read(scratch.path()).map(Option::unwrap).map_err(|error| {
            let error = error.to_string();
            assert!(error.contains(FILE_NAME), "{error}");
            error
        })
    }

    #[test]
    fn a_file_that_is_too_large_is_told_with_how_large_one_may_be() {
        let error = file(&"#".repeat(MAX_FILE + 1), 0o600).unwrap_err();
        assert!(error.contains("larger than 65536 bytes"), "{error}");
    }

    #[test]
    fn texts_numbers_and_lists_are_read_with_their_lines() {
        let file = file(
            "# ours\nserver = \"https://node.example\"\nping-seconds = 1_0\n\
             no-proxy = [\"a.example\", '10.0.0.0/8']\nrelease-key = [\"a\", \"b\"]\n",
            0o600,
        )
        .unwrap();
        let get = |name| file.get(name).map(|(text, _)| text.to_string());
        assert_eq!(get("server").as_deref(), Some("https://node.example"));
        assert_eq!(get("ping-seconds").as_deref(), Some("10"));
        assert_eq!(get("no-proxy").as_deref(), Some("a.example,10.0.0.0/8"));
        assert_eq!(get("release-key"), Some(format!("a{REPEATED}b")));
        assert_eq!(get("log"), None);
        let (_, origin) = file.get("ping-seconds").unwrap();
        assert!(origin.ends_with("config.toml, line 3, ping-seconds"), "{origin}");
        let scratch = Scratch::new();
        assert!(File::read(scratch.path()).unwrap().is_none());
    }

    #[test]
    fn a_wrong_name_is_told_with_its_line_and_what_is_meant() {
        for (name, meant) in [
            ("max_requests", "is max-requests meant?"),
            ("max-request", "is max-requests meant?"),
            ("Server", "is server meant?"),
            ("CONSENSUS_SERVER_URL", "is server meant?"),
            ("HTTPS_PROXY", "is https-proxy meant?"),
            ("zebra", "config show"),
            ("state-dir", "the one that this file is in"),
            ("allow-private-targets", "command line alone"),
            ("code", "no setting"),
        ] {
            let error = file(&format!("log = \"json\"\n\n{name} = \"1\"\n"), 0o600).unwrap_err();
            assert!(error.contains("line 3: ") && error.contains(meant), "{error}");
        }
    }

    #[test]
    fn what_is_not_toml_or_not_a_value_is_told_with_its_line() {
        for text in [
            "log = json",
            "log = \"json",
            "log = \"a\"\nlog = \"b\"",
            "[section]\nlog = \"json\"",
            "server = { url = \"x\" }",
            "server.url = \"x\"",
            "server = true",
            "server = 1.5",
            "ping-seconds = 0x10",
            "ping-seconds = [1]",
            "no-proxy = [1]",
            "server = 2026-01-01",
            "= 1",
            "log",
            "\0",
        ] {
            let error = file(text, 0o600).unwrap_err();
            assert!(error.contains(", line "), "{text}: {error}");
        }
        let deep = format!("server = {}", "[".repeat(60_000));
        assert!(file(&deep, 0o600).is_err());
        assert!(file(&" ".repeat(MAX_FILE), 0o600).is_ok());
        assert!(file(&" ".repeat(MAX_FILE + 1), 0o600).is_err());
    }

    #[test]
    fn a_file_that_others_can_write_or_read_a_secret_in_is_refused() {
        for (text, mode, fine) in [
            ("log = \"json\"", 0o644, true),
            ("log = \"json\"", 0o664, false),
            ("log = \"json\"", 0o602, false),
            ("https-proxy = \"http://proxy.example:3128\"", 0o644, true),
            ("https-proxy = \"http://op:s3cret@proxy.example:3128\"", 0o644, false),
            ("https-proxy = \"http://op:s3cret@proxy.example:3128\"", 0o600, true),
            ("email-verification-token = \"s3cret\"", 0o640, false),
            ("email-verification-token = \"s3cret\"", 0o400, true),
        ] {
            match file(text, mode) {
                Ok(_) => assert!(fine, "{text} {mode:o}"),
                Err(error) => {
                    assert!(!fine, "{text} {mode:o}: {error}");
                    assert!(error.contains("chmod 0600") && !error.contains("s3cret"), "{error}");
                }
            }
        }
    }

    #[test]
    fn distances_are_those_of_words() {
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("abc", "abc")), (3, 3, 0));
    }
}
