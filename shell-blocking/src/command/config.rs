//! `config show`: what each setting is, and where that comes from.

use consensus_core::text::printable;
use serde_json::{Value, json};

use super::{Failure, Surroundings, print};
use crate::settings::{FILE_NAME, File, KNOWN, Known, Source, Sources, Told, UsageError};

/// A setting, and what was found of it.
type Found = (&'static Known, Result<Option<Told>, UsageError>);

/// Prints all of it. What is wrong is named in its place, and again at the end: whoever looks here is often sent by an
/// error.
///
/// # Errors
/// What is wrong, as any command would tell it.
pub(super) fn show(sources: &Sources<'_>, surroundings: &mut Surroundings<'_>) -> Result<u8, Failure> {
    let dir = sources.state_dir()?;
    let path = dir.join(FILE_NAME);
    let (file, unread) = match File::read(&dir) {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let sources = Sources { file: file.as_ref(), ..*sources };
    let found: Vec<Found> = KNOWN.iter().map(|known| (known, known.find(&sources))).collect();
    let path = path.to_string_lossy();
    let text = if sources.options.contains_key("--json") {
        let settings: Vec<Value> = found.iter().map(as_json).collect();
        let file =
            json!({ "path": path, "exists": file.is_some() || unread.is_some(), "error": unread.as_deref() });
        format!("{}\n", json!({ "file": file, "settings": settings }))
    } else {
        let of_file = match (&file, &unread) {
            (_, Some(_)) => "the settings file, which is wrong: nothing of it is taken",
            (Some(_), None) => "the settings file",
            (None, None) => "there is no settings file",
        };
        let lines: String = found.iter().map(as_line).collect();
        format!("{}: {of_file}\n\n{lines}", printable(&path))
    };
    let code = print(surroundings.stdout, &text);
    let mut wrong: Vec<String> = unread.into_iter().collect();
    for error in found.iter().filter_map(|(_, told)| told.as_ref().err()) {
        // One variable may be of two settings.
        if !wrong.contains(&error.to_string()) {
            wrong.push(error.to_string());
        }
    }
    match wrong.is_empty() {
        true => Ok(code),
        false => Err(Failure::Usage(UsageError::new(&wrong.join("; ")))),
    }
}

fn as_json((known, told): &Found) -> Value {
    let (told, error) = match told {
        Ok(told) => (told.as_ref(), None),
        Err(error) => (None, Some(error.to_string())),
    };
    json!({
        "name": known.name(),
        "value": told.map(|told| known.shown(told)),
        "default": known.default,
        "source": if error.is_none() { source(told) } else { "wrong" },
        "origin": told.map(|told| told.origin.clone()),
        "error": error,
        "secret": known.secret,
        "variables": known.env,
    })
}

fn as_line((known, told): &Found) -> String {
    let width = KNOWN.iter().map(|known| known.name().len()).max().unwrap_or_default();
    let text = match told {
        Ok(Some(told)) => format!("{}  ({})", printable(&known.shown(told)), printable(&told.origin)),
        Ok(None) => format!("{}  (default)", known.default),
        Err(error) => format!("WRONG  ({error})"),
    };
    format!("{:width$}  {text}\n", known.name())
}

const fn source(told: Option<&Told>) -> &'static str {
    match told {
        None => "default",
        Some(told) => match told.source {
            Source::Option => "option",
            Source::Environment => "environment",
            Source::File => "file",
        },
    }
}
