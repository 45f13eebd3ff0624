//! `config show`: what each setting is, and where that comes from.

use consensus_core::text::printable;
use serde_json::{Value, json};

use super::Failure;
use crate::settings::{FILE_NAME, KNOWN, Source, Sources, Told};

/// What `config show` prints.
///
/// # Errors
/// A wrong value, as any command would tell it.
pub(super) fn show(sources: &Sources<'_>) -> Result<String, Failure> {
    let mut found = Vec::new();
    for known in KNOWN {
        found.push((known, known.find(sources)?));
    }
    let file = sources.state_dir()?.join(FILE_NAME);
    let is_read = sources.file.is_some();
    if sources.options.contains_key("--json") {
        let settings: Vec<Value> = found
            .iter()
            .map(|(known, told)| {
                json!({
                    "name": known.name(),
                    "value": told.as_ref().map(|told| known.shown(told)),
                    "default": known.default,
                    "source": source(told.as_ref()),
                    "origin": told.as_ref().map(|told| told.origin.clone()),
                    "secret": known.secret,
                    "variables": known.env,
                })
            })
            .collect();
        let file = json!({ "path": file.to_string_lossy(), "exists": is_read });
        return Ok(format!("{}\n", json!({ "file": file, "settings": settings })));
    }
    let width = KNOWN.iter().map(|known| known.name().len()).max().unwrap_or_default();
    let mut text = format!(
        "{}: {}\n\n",
        printable(&file.to_string_lossy()),
        if is_read { "the settings file" } else { "there is no settings file" }
    );
    for (known, told) in &found {
        let (value, origin) = match told {
            Some(told) => (printable(&known.shown(told)), printable(&told.origin)),
            None => (known.default.to_string(), "default".to_string()),
        };
        text.push_str(&format!("{:width$}  {value}  ({origin})\n", known.name()));
    }
    Ok(text)
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
