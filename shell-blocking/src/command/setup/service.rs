//! How the node is kept running once it is registered: by a supervisor, where there is one and the operator wants it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::io::{Finish, Outcome as End};
use consensus_core::proxy::Proxies;
use consensus_core::service::Service as OfMachine;
use consensus_core::setup::Service;
use consensus_core::status::{Found, question};

use crate::command::{Failure, Setup, service, status};
use crate::install;
use crate::runtime_api::{Environment, Runtime};
use crate::settings::release::REPEATED;
use crate::settings::{Servicing, Sources, UsageError};
use crate::state_dir::StateDir;

/// How long a supervisor may take to say that it is there.
const ASKING: Duration = Duration::from_secs(5);

/// How long the supervised node may take to be connected.
const CONNECTING: Duration = Duration::from_secs(60);

/// How often it is asked.
const PAUSE: Duration = Duration::from_millis(500);

/// Who can keep the node: what `service` is told, and the service that is there or is to be; or why there can be none.
pub(super) struct Keeper(Result<(Servicing, OfMachine), String>);

impl Keeper {
    /// Looks for one.
    ///
    /// # Errors
    /// A wrong setting.
    pub(super) fn find(sources: &Sources<'_>) -> Result<Self, Failure> {
        if (sources.env)("HOME").is_none_or(|home| home.is_empty()) {
            return Ok(Self(Err("HOME is not set".to_string())));
        }
        let servicing = sources.servicing()?;
        let install_dir = service::install_dir(sources, &servicing)?;
        let (tell, told) = mpsc::sync_channel(1);
        let asking = servicing.clone();
        let ask = move || drop(tell.try_send(service::of_setup(&asking, &install_dir)));
        let begun = thread::Builder::new().spawn(ask).map_err(|error| error.to_string());
        let found = begun.and_then(|_| {
            let late = |_| "the supervisor does not answer in time".to_string();
            told.recv_timeout(ASKING).map_err(late)?
        });
        Ok(Self(found.map(|service| (servicing, service))))
    }

    /// As the subject of a sentence.
    pub(super) fn name(&self) -> Option<String> {
        self.0.as_ref().ok().map(|(_, service)| service.keeper())
    }

    /// Has the node run from now on, or says how it is started, where `keep` says no or nobody can keep it. `runs` says
    /// whether a node has the state directory already. `sources` has the server among its options.
    pub(super) fn install<R: Runtime>(
        &self,
        sources: &Sources<'_>,
        setup: &Setup,
        keep: bool,
        runs: bool,
    ) -> Result<Service, Failure> {
        let why = match &self.0 {
            Ok((servicing, service)) if keep => {
                let (text, warnings) = service::set_up::<R>(sources, servicing, service.clone(), runs)?;
                return Ok(Service::Installed { text, warnings });
            }
            _ if runs => {
                let text = "a node runs on this state directory already: stop it to set it up anew";
                return Err(Failure::new(End::Occupied, text.to_string()));
            }
            Ok(_) => None,
            Err(why) => Some(why.clone()),
        };
        Ok(Service::ByHand { why, lines: by_hand::<R>(sources, setup)? })
    }
}

/// How the operator starts the node: by the wrapper of its install directory where it is installed, so that releases that
/// do not work are given up.
fn by_hand<R: Runtime>(sources: &Sources<'_>, setup: &Setup) -> Result<Vec<String>, Failure> {
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
            words.extend(given(option, value));
        }
    }
    if sources.options.contains_key("--state-dir") {
        words.push("--state-dir".to_string());
        words.push(quoted(&setup.common.state_dir.to_string_lossy()));
    }
    Ok(vec![words.join(" ")])
}

/// Waits until the node of that name says that it is connected; or says why it is not.
pub(super) fn await_node<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    state_dir: &StateDir,
    node_id: &str,
    cancelled: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    let authority = status::reached_at(sources.listen()?).to_string();
    let question = question(&authority)
        .map_err(|error| Failure::Usage(UsageError::new(&format!("--listen: {authority}: {error}"))))?;
    // It is this machine: no proxy leads there.
    let environment = Environment { proxies: Arc::new(Proxies::default()), ..setup.environment(state_dir)? };
    let end = Instant::now() + CONNECTING;
    loop {
        let found = Found::of(runtime.fetch(&environment, &question));
        let Some(why) = found.not_ready(node_id) else { return Ok(()) };
        if Instant::now() >= end || cancelled.load(Ordering::Relaxed) {
            let outcome = match found.outcome() {
                End::Done => End::Unreachable,
                other => other,
            };
            let message = format!(
                "the node is not connected after {} s: http://{authority}: {why}",
                CONNECTING.as_secs()
            );
            return Err(Failure::Finish(Finish { outcome, message }));
        }
        thread::sleep(PAUSE);
    }
}

/// An option as it was given: again with each value where it may be given again.
fn given(option: &str, value: &str) -> Vec<String> {
    value.split(REPEATED).flat_map(|one| [option.to_string(), quoted(one)]).collect()
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
    fn an_option_that_was_given_twice_is_given_twice() {
        let keys = ["a", "b c"].join(&REPEATED.to_string());
        assert_eq!(given("--release-key", &keys), ["--release-key", "a", "--release-key", "'b c'"]);
        assert_eq!(given("--server", "https://a.example"), ["--server", "https://a.example"]);
    }

    #[test]
    fn a_word_is_quoted_where_a_shell_would_read_it_otherwise() {
        assert_eq!(quoted("https://a.example:80"), "https://a.example:80");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $x"), "'it'\\''s $x'");
    }
}
