//! What comes of effects, but for those that ask the network.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::mem;

use super::{Installed, Kept, Setup};
use crate::io::{Finish, Outcome as End};
use crate::setup::{Family, QuestionId, Release, Service, TellKind};
use crate::state::JoinAuth;
use crate::text::{is_plain, printable};

impl Setup {
    pub(super) fn on_set_aside(&mut self, written: Result<(), String>) {
        let why = self.session.damaged.take().unwrap_or_default();
        match written {
            Ok(()) => self.tell(
                TellKind::Warning,
                format!(
                    "setup-progress.json cannot be understood ({why}): it is set aside as \
                     setup-progress.json.damaged, and nothing of it is used."
                ),
            ),
            Err(error) => self.end(End::Internal, error),
        }
    }

    pub(super) fn on_written(&mut self, written: Result<(), String>) {
        if let Err(error) = written {
            if !mem::replace(&mut self.session.unsaved, true) {
                let text = format!("How far setup comes cannot be saved: {error}");
                self.tell(TellKind::Warning, text);
            }
        }
    }

    pub(super) fn on_release(&mut self, release: Result<Release, Finish>) {
        self.session.dirty = true;
        match release {
            Ok(Release::NotRequired) => {
                self.session.release = Installed::Settled;
                let text = "The network requires no certain release: this program stays.";
                self.tell(TellKind::Text, text.to_string());
            }
            Ok(Release::Runs { version }) => {
                self.session.release = Installed::Settled;
                self.tell(TellKind::Text, format!("This is the required release, {}.", printable(&version)));
                self.progress.release = Some(version);
            }
            Ok(Release::Installed { version, .. }) if self.settings.handed_over => {
                let text = format!(
                    "release {} was installed and started, and it is still not what the network requires",
                    printable(&version)
                );
                self.end(End::Outdated, text);
            }
            Ok(Release::Installed { version, program }) => {
                let text = format!("Release {} is installed, and goes on from here.", printable(&version));
                self.tell(TellKind::Text, text);
                self.session.release = Installed::HandOver(program);
                self.progress.release = Some(version);
            }
            Err(finish) => self.finish = Some(finish),
        }
    }

    pub(super) fn on_address(&mut self, family: Family, service: &str, found: Result<String, String>) {
        let search = match family {
            Family::V4 => &mut self.session.v4,
            Family::V6 => &mut self.session.v6,
        };
        match found {
            Ok(address) => {
                let text = format!("{service} sees this machine at {address} ({}).", family.name());
                search.address = Some(address);
                self.tell(TellKind::Text, text);
            }
            Err(why) => {
                search.service += 1;
                // Some reasons begin with the host.
                let is_named = why.strip_prefix(service).is_some_and(|rest| rest.starts_with(':'));
                search.problem = Some(if is_named { why } else { format!("{service}: {why}") });
            }
        }
    }

    pub(super) fn on_evaluated(&mut self, evaluated: Result<JoinAuth, Finish>) {
        match evaluated {
            Ok(auth) => {
                self.settings.join_auth = Some(auth);
                self.session.dirty = true;
            }
            Err(mut finish) => {
                if self.progress.token.is_none() && self.progress.verification.is_none() {
                    finish.message.push_str("; no email was sent");
                }
                self.finish = Some(finish);
            }
        }
    }

    pub(super) fn on_not_registered(&mut self, finish: Finish, status: Option<u16>) {
        // Without an answer nobody knows whether the request was taken; that stays written down.
        self.progress.joining = status.is_none() && finish.outcome == End::Unreachable;
        self.session.dirty = true;
        match status {
            Some(401) if !mem::replace(&mut self.session.token_refused, true) => {
                self.progress.token = None;
                self.progress.verification = None;
                self.tell(TellKind::Warning, finish.message);
            }
            Some(403 | 404 | 410) => {
                self.settings.join_auth = None;
                self.tell(TellKind::Warning, finish.message);
            }
            None if finish.outcome == End::NotRegistered => self.settings.join_auth = None,
            _ => self.finish = Some(finish),
        }
    }

    pub(super) fn on_service(&mut self, service: Service) {
        match service {
            Service::Installed { text, warnings } => {
                self.session.service = Kept::Started;
                self.tell(TellKind::Text, printable(&text));
                for warning in warnings {
                    self.tell(TellKind::Warning, printable(&warning));
                }
                self.tell(TellKind::Text, "Waiting until the node is connected.".to_string());
            }
            Service::ByHand { why, lines } => {
                self.session.service = Kept::Settled;
                // Somebody who said so beforehand counts on it.
                let is_wanted = self.settings.given.contains_key(&QuestionId::Service)
                    && self.answers.get(&QuestionId::Service).is_some_and(|answer| answer == "yes");
                if let Some(why) = why.map(|why| printable(&why)) {
                    self.tell(TellKind::Warning, format!("No supervisor keeps the node: {why}"));
                    if is_wanted {
                        self.end(
                            End::NotRegistered,
                            format!("the node is registered, and not a service: {why}"),
                        );
                    }
                }
                // Not cut: they are there to be typed.
                let plain = |c: char| if is_plain(c) { c } else { ' ' };
                let lines: Vec<String> = lines.iter().map(|line| line.chars().map(plain).collect()).collect();
                self.tell(TellKind::Text, format!("Start the node with:\n  {}", lines.join("\n  ")));
            }
        }
    }

    pub(super) fn on_connected(&mut self, node_id: &str, connected: Result<(), Finish>) {
        match connected {
            Ok(()) => {
                self.session.service = Kept::Settled;
                self.tell(TellKind::Text, format!("Node {node_id} runs, and is connected to the network."));
            }
            Err(mut finish) => {
                finish.message.push_str(
                    "; the service goes on trying: `service status` says how it is, `doctor` what is wrong, and \
                     `setup` waits again",
                );
                self.finish = Some(finish);
            }
        }
    }
}
