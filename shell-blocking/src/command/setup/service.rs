//! How the node is kept running once it is registered: the one place where a supervisor's service would be set up.

use consensus_core::setup::Service;

use crate::command::{Failure, Setup};
use crate::install;
use crate::runtime_api::Runtime;
use crate::settings::Sources;

/// Has the node run from now on, or says how it is started. `sources` has the server among its options.
///
/// Nothing here is asked of a supervisor yet: the operator starts the node, by the wrapper of its install directory
/// where it is installed, so that releases that do not work are given up.
pub(super) fn install<R: Runtime>(sources: &Sources<'_>, setup: &Setup) -> Result<Service, Failure> {
    let updating = sources.updating()?;
    let wrapper = updating.install_dir.join("run-node.sh");
    let program = match install::own_manifest() {
        Some(_) if wrapper.exists() => wrapper,
        _ => std::env::current_exe().unwrap_or_else(|_| R::PROGRAM.into()),
    };
    let mut words = vec![quoted(&program.to_string_lossy()), "run".to_string()];
    for option in ["--server", "--server-key", "--tunnel-url", "--candidate-id", "--release-key", "--ca"] {
        // What came from the environment is there for the next command too.
        if let Some(value) = sources.options.get(option) {
            words.push(option.to_string());
            words.push(quoted(value));
        }
    }
    if sources.options.contains_key("--state-dir") {
        words.push("--state-dir".to_string());
        words.push(quoted(&setup.common.state_dir.to_string_lossy()));
    }
    Ok(Service::ByHand(vec![words.join(" ")]))
}

/// A word as a shell takes it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_read_it_otherwise() {
        assert_eq!(quoted("https://a.example:80"), "https://a.example:80");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $x"), "'it'\\''s $x'");
    }
}
