//! The effects of setup, carried out with what the other commands have.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use consensus_core::event::Level;
use consensus_core::io::{Finish, Outcome as End, StateFile};
use consensus_core::setup::{Effect, Outcome, Registrant};

use super::interrupts::Interrupts;
use super::page::Page;
use super::service::{Keeper, await_node};
use super::{HANDED_OVER, SET_ASIDE, address, release, with};
use crate::command::{Failure, Setup, Surroundings, node, register};
use crate::runtime_api::Runtime;
use crate::settings::Sources;
use crate::state_dir::{FileError, Lock, StateDir, sync_parent};

/// What the effects need.
pub(super) struct Work<'a, R> {
    pub(super) runtime: &'a R,
    pub(super) sources: &'a Sources<'a>,
    pub(super) setup: &'a Setup,
    pub(super) state_dir: &'a StateDir,
    pub(super) keeper: &'a Keeper,
    /// Whether the node has the state directory.
    pub(super) running: bool,
    /// For as long as setup has it.
    pub(super) lock: Option<Lock>,
    pub(super) interrupts: &'a Interrupts,
    pub(super) page: Option<&'a Page>,
}

impl<R: Runtime> Work<'_, R> {
    /// Carries one out.
    ///
    /// # Errors
    /// A setting that is wrong: the operator has to come back with another.
    pub(super) fn carry_out(
        &mut self,
        effect: Effect,
        surroundings: &mut Surroundings<'_>,
    ) -> Result<Outcome, Failure> {
        let (runtime, setup, state_dir) = (self.runtime, self.setup, self.state_dir);
        let log = setup.log.clone();
        let tell = move || {
            let text = "stopping when this step is done; once more, and it ends at once";
            log.note(Level::Warn, "setup", "stopping", text, &[]);
        };
        Ok(match effect {
            Effect::SetProgressAside => Outcome::Written(self.set_aside().map_err(|error| error.to_string())),
            Effect::ForgetEvaluation => {
                Outcome::Written(state_dir.remove(StateFile::JoinAuth).map_err(|error| error.to_string()))
            }
            Effect::WriteProgress(data) => Outcome::Written(
                state_dir.write(StateFile::SetupProgress, &data).map_err(|error| error.to_string()),
            ),
            Effect::InstallRelease { server } => {
                let options = with(self.sources.options, &[("--server", &server)]);
                let sources = Sources { options: &options, ..*self.sources };
                let settled = self.interrupts.during(tell, |cancelled| {
                    release::settle(runtime, &sources, setup, state_dir, surroundings, cancelled)
                });
                Outcome::Release(finished(settled)?)
            }
            Effect::HandOver { program, server } => Outcome::NotHandedOver(self.hand_over(&program, &server)),
            Effect::FindAddress { family, fetch } => {
                let tls = setup.environment(state_dir)?.tls;
                let answer = |cancelled: &_| address::fetch(family, &fetch, &tls, cancelled);
                Outcome::Fetched(self.interrupts.during(tell, answer))
            }
            Effect::Fetch { purpose: _, fetch } => {
                let environment = setup.environment(state_dir)?;
                Outcome::Fetched(self.interrupts.during(tell, |_| runtime.fetch(&environment, &fetch)))
            }
            Effect::Evaluate { server } => {
                let options = with(self.sources.options, &[("--server", &server)]);
                // The runtime stops by itself on a signal.
                let finish = node::evaluate(runtime, &Sources { options: &options, ..*self.sources }, setup);
                let finish = finished(finish)?;
                Outcome::Evaluated(match finish {
                    Ok(Finish { outcome: End::Done, .. }) => state_dir.join_auth()?.ok_or_else(|| Finish {
                        outcome: End::Internal,
                        message: "the evaluation was passed, and left no authorisation".to_string(),
                    }),
                    Ok(finish) | Err(finish) => Err(finish),
                })
            }
            Effect::Register(registrant) => {
                Outcome::Registered(self.interrupts.during(tell, |_| self.register(*registrant))?)
            }
            Effect::InstallService { server, keep } => {
                let options = with(self.sources.options, &[("--server", &server)]);
                let sources = Sources { options: &options, ..*self.sources };
                // The node that is started needs it.
                self.lock = None;
                Outcome::Service(finished(self.keeper.install::<R>(&sources, setup, keep, self.running))?)
            }
            Effect::AwaitNode { node_id } => {
                let connected = self.interrupts.during(tell, |cancelled| {
                    await_node(runtime, self.sources, setup, state_dir, &node_id, cancelled)
                });
                Outcome::Connected(finished(connected)?)
            }
        })
    }

    fn set_aside(&self) -> Result<(), FileError> {
        let path = self.state_dir.path(StateFile::SetupProgress);
        fs::rename(&path, path.with_file_name(SET_ASIDE))
            .map_err(|error| FileError::io(&path, "is damaged, and cannot be set aside", &error))?;
        sync_parent(&path)
    }

    /// Comes back only if it failed.
    fn hand_over(&self, program: &str, server: &str) -> String {
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(HANDED_OVER, "1");
        if !self.sources.options.contains_key("--server") {
            command.args(["--server", server]);
        }
        if let Some(Err(error)) = self.page.map(|page| page.leave_to(&mut command)) {
            return format!("the page: {error}");
        }
        format!("{program}: {}", command.exec())
    }

    #[expect(clippy::type_complexity, reason = "it is what the outcome has")]
    fn register(
        &self,
        registrant: Registrant,
    ) -> Result<Result<Box<consensus_core::state::Registration>, (Finish, Option<u16>)>, Failure> {
        let port = registrant.port.to_string();
        let mut options = with(
            self.sources.options,
            &[
                ("--server", &registrant.server),
                ("--email-verification-token", &registrant.email_verification_token),
                ("--ipv4", &registrant.ipv4),
                ("--port", &port),
                ("--contact", &registrant.contact),
                ("--evm-address", &registrant.evm_address),
                ("--solana-address", &registrant.solana_address),
                ("--icp-address", &registrant.icp_address),
            ],
        );
        for option in ["--code", "--verification-id", "--ipv6", "--email"] {
            options.remove(option);
        }
        options.extend(registrant.email.map(|email| ("--email".to_string(), email)));
        options.extend(registrant.ipv6.clone().map(|ipv6| ("--ipv6".to_string(), ipv6)));
        // A node without an IPv6 address must not get that of the environment or of the file.
        let (env, has_ipv6) = (self.sources.env, registrant.ipv6.is_some());
        let env = move |name: &str| if name == "CONSENSUS_NODE_IPV6" && !has_ipv6 { None } else { env(name) };
        let file = self.sources.file.map(|file| if has_ipv6 { file.clone() } else { file.without("ipv6") });
        let sources = Sources { options: &options, env: &env, file: file.as_ref() };
        let registered = register::register(self.runtime, &sources, self.setup, registrant.region);
        let (finish, status) = match finished(registered)? {
            Ok(registered) => registered,
            Err(finish) => (finish, None),
        };
        if finish.outcome != End::Done {
            return Ok(Err((finish, status)));
        }
        match self.state_dir.registration()? {
            Some(registration) => Ok(Ok(Box::new(registration))),
            None => Err(Failure::internal("the registration was saved, and is gone".to_string())),
        }
    }
}

/// How it ended, where that is not the setting's fault.
fn finished<T>(result: Result<T, Failure>) -> Result<Result<T, Finish>, Failure> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Failure::Finish(finish)) => Ok(Err(finish)),
        Err(usage) => Err(usage),
    }
}
