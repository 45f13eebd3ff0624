//! Updates that the network directs: nothing is installed that was not prepared and applied, and no step lasts for
//! ever.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use arbitrary::Arbitrary;
use serde_json::{Value, json};

use super::node::World;
use super::{UNIX, read};
use crate::io::{Effect, EffectId, EffectResult, Input, LinkEnd, LocalRequest, Outcome, StateFile};
use crate::limits::{INSTALL_TIMEOUT, PREPARE_TIMEOUT};
use crate::release::manifest::Manifest;
use crate::tunnel::Mode;
use crate::wire::frame::FrameType;
use crate::wire::message::Message;

#[derive(Debug, Default, Arbitrary)]
struct Script {
    /// Whether the network stays, in the end.
    stays: bool,
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    Prepare {
        update: u8,
        release: Release,
    },
    Apply {
        update: u8,
        restart_after_ms: u32,
    },
    /// An effect ends, well or not.
    Done {
        nth: u8,
        ok: bool,
        other: Option<u8>,
    },
    Wait {
        millis: u16,
    },
    /// Until the node wants to be called.
    Due,
    /// A stream opens, which a restart waits for, or closes.
    Stream {
        open: bool,
    },
    /// One opens that stays open as long as its session.
    Owner,
    Reconnect,
    Stop,
}

#[derive(Clone, Debug, Arbitrary)]
struct Release {
    /// Of a few, older ones among them.
    version: u8,
    tarball: u8,
    spoilt: Option<u8>,
}

impl Release {
    fn manifest(&self) -> Manifest {
        let version = format!("0.{}.0", self.version % 4);
        let mut manifest = Manifest::of_this_release(&version, "abc", "linux-x64");
        manifest.download_url = Some("https://releases.example/a.tgz".into());
        manifest.tarball_sha256 = Some(format!("sha256:{}", format!("{:02x}", self.tarball % 3).repeat(32)));
        match self.spoilt.map(|how| how % 6) {
            Some(0) => manifest.product = "other".into(),
            Some(1) => manifest.platform = "linux-arm64".into(),
            Some(2) => manifest.version = "none".into(),
            Some(3) => manifest.tarball_sha256 = None,
            Some(4) => manifest.download_url = Some("file:///etc/passwd".into()),
            Some(5) => manifest.artifact = "npm-tarball".into(),
            _ => {}
        }
        manifest
    }
}

/// The hash of the tarball, in hexadecimal.
fn hash(manifest: &Manifest) -> String {
    let sha256 = manifest.tarball_sha256.as_deref().unwrap_or_default();
    sha256.trim_start_matches("sha256:").to_string()
}

/// What the network knows.
#[derive(Default)]
struct Known {
    /// By update: the version and hash that were announced last.
    announced: BTreeMap<String, (String, String)>,
    /// Versions and hashes whose archives hold what was announced.
    inspected: BTreeSet<(String, String)>,
    /// By update: the version and hash that are ready.
    ready: BTreeMap<String, (String, String)>,
    /// Applied, by the name of the request.
    applied: Vec<String>,
    /// Updates that the node said yes to, with what was ready under that name then: while it drains, no other takes its place.
    acknowledged: BTreeMap<String, (String, String)>,
    installing: Option<EffectId>,
    installed: bool,
}

/// What is installed was ready and wanted, at most one at a time; the node ends for it, and for nothing else.
pub fn update(data: &[u8]) {
    let Script { stays, actions } = read(data);
    let mut world = World::new(Some(Mode::Control));
    world.feed(Input::Tick);
    world.connect();
    let mut known = Known::default();
    known.look(&mut world);
    for action in actions {
        if world.finished.is_some() {
            break;
        }
        known.act(&mut world, action);
        known.look(&mut world);
    }
    if world.finished.is_none() && !is_at_rest(&mut world) {
        // Nothing that the node asked for ends, whether the network is there or has gone.
        world.idle(PREPARE_TIMEOUT + INSTALL_TIMEOUT + Duration::from_secs(120), stays);
        known.look(&mut world);
    }
    if world.finished.is_none() {
        assert!(is_at_rest(&mut world), "an update lasts for ever");
        world.feed(Input::Stop);
        world.idle(Duration::from_secs(3), false);
    }
    let updates = known.installed;
    match world.finished {
        Some(Outcome::Updating) => assert!(updates, "it ends for an update that is not installed"),
        Some(Outcome::Done) => {}
        other => panic!("{other:?}"),
    }
}

/// Whether the update has come to where nothing has to follow.
fn is_at_rest(world: &mut World) -> bool {
    let headers = Vec::new();
    world.ask(LocalRequest { method: "GET".into(), target: "/health".into(), headers, body: Vec::new() });
    let body = world.answer.take().map_or(Vec::new(), |answer| answer.body);
    let health: Value = serde_json::from_slice(&body).unwrap_or_default();
    let state = health["update"]["state"].as_str().unwrap_or("?");
    ["none", "prepared", "overdue"].contains(&state)
}

impl Known {
    fn act(&mut self, world: &mut World, action: Action) {
        match action {
            Action::Prepare { update, release } => {
                let id = format!("u{}", update % 3);
                let manifest = release.manifest();
                // A node that has given the session up does not hear it.
                if world.is_up() {
                    // What was ready under that name may be so no more.
                    self.ready.remove(&id);
                    let announced = (manifest.version.clone(), hash(&manifest));
                    self.inspected.remove(&announced);
                    self.announced.insert(id.clone(), announced);
                }
                self.say(world, json!({
                    "type": "update_prepare", "timestamp": UNIX, "id": "p", "update_id": id,
                    "manifest": manifest,
                }));
            }
            Action::Apply { update, restart_after_ms } => {
                let id = format!("u{}", update % 3);
                let request = format!("a{}", self.applied.len());
                self.applied.push(id.clone());
                self.say(world, json!({
                    "type": "update_apply", "timestamp": UNIX, "id": request, "update_id": id,
                    "restart_after_ms": restart_after_ms,
                }));
            }
            Action::Done { nth, ok, other } => {
                let effect = world.effects.iter().nth(usize::from(nth)).map(|(id, effect)| (*id, effect.clone()));
                let Some((effect, of)) = effect else { return };
                world.effects.remove(&effect);
                let why = || "no space\u{1b}[31m".to_string();
                let result = match (of, ok) {
                    (Effect::Download(manifest), true) => {
                        EffectResult::Downloaded(Ok(format!("/d/{}/{}", manifest.version, hash(&manifest))))
                    }
                    (Effect::Download(_), false) => EffectResult::Downloaded(Err(why())),
                    (Effect::Inspect { artifact }, true) => {
                        let (announced, sha256) =
                            artifact.trim_start_matches("/d/").split_once('/').unwrap_or_default();
                        // The archive may hold another release than the one that was announced.
                        let version = other.map_or(announced.to_string(), |other| format!("0.{}.0", other % 4));
                        if version == announced {
                            self.inspected.insert((version.clone(), sha256.to_string()));
                        }
                        let manifest = Manifest::of_this_release(&version, "abc", "linux-x64");
                        EffectResult::Inspected(Ok(Box::new(manifest)))
                    }
                    (Effect::Inspect { .. }, false) => EffectResult::Inspected(Err(why())),
                    (Effect::Install(_), ok) => {
                        self.installing = None;
                        self.installed |= ok;
                        EffectResult::Installed(if ok { Ok(()) } else { Err(why()) })
                    }
                    (Effect::Write { .. } | Effect::Remove { .. }, ok) => {
                        EffectResult::Written(if ok { Ok(()) } else { Err(why()) })
                    }
                    _ => EffectResult::Installed(Ok(())),
                };
                world.feed(Input::Done { effect, result });
            }
            Action::Wait { millis } => world.pass(Duration::from_millis(u64::from(millis) * 4)),
            Action::Due => {
                let at = world.deadline.map_or(world.now.monotonic, |deadline| deadline.at);
                world.pass(at - world.now.monotonic);
            }
            Action::Stream { open: true } => self.say(world, json!({
                "type": "stream_open", "timestamp": UNIX, "stream_id": "s", "target": r#"{"kind":"data-plane"}"#,
            })),
            Action::Owner => self.say(world, json!({
                "type": "stream_open", "timestamp": UNIX, "stream_id": "o",
                "target": r#"{"kind":"public-tunnel-owner","tunnel_id":"t"}"#,
            })),
            Action::Stream { open: false } => {
                self.say(world, json!({"type": "stream_close", "timestamp": UNIX, "stream_id": "s"}));
            }
            Action::Reconnect => {
                let link = world.link;
                let detail = String::new();
                world.feed(Input::LinkEnded { link, end: LinkEnd::Lost { detail } });
                world.idle(Duration::from_secs(2), false);
                world.connect();
            }
            Action::Stop => world.feed(Input::Stop),
        }
    }

    fn say(&mut self, world: &mut World, message: Value) {
        // A message whose length is even goes as a binary one, the others as text.
        world.seal(FrameType::Data, message.to_string().as_bytes());
    }

    /// What the node said, and what it wants done.
    fn look(&mut self, world: &mut World) {
        for (kind, plaintext) in core::mem::take(&mut world.said) {
            if kind != FrameType::Data {
                continue;
            }
            match Message::parse(&plaintext) {
                Ok(Message::UpdateReady(ready)) => {
                    self.ready.insert(ready.update_id, (ready.target_version, ready.sha256));
                }
                Ok(Message::Ack(ack)) => {
                    let nth = ack.reply_to.strip_prefix('a').and_then(|nth| nth.parse::<usize>().ok());
                    let Some(id) = nth.and_then(|nth| self.applied.get(nth)) else { continue };
                    // Where the connection was lost meanwhile, nobody was told that it is ready.
                    let untold =
                        || self.announced.get(id).filter(|release| self.inspected.contains(*release));
                    // Asked once more, it is under way.
                    if let Some(ready) = self.ready.get(id).or_else(untold) {
                        self.acknowledged.insert(id.clone(), ready.clone());
                    }
                    assert!(self.acknowledged.contains_key(id), "{id} was not ready, and is to be installed");
                }
                Ok(_) => {}
                Err(error) => panic!("the node said what is no message: {error}"),
            }
        }
        for (id, effect) in &world.effects {
            match effect {
                Effect::Install(install) if self.installing != Some(*id) => {
                    assert_eq!(self.installing, None, "one installation at a time");
                    let wanted = (install.version.clone(), crate::wire::hex::encode(&install.sha256));
                    let acknowledged = self.acknowledged.get(&install.update_id);
                    assert_eq!(
                        acknowledged,
                        Some(&wanted),
                        "{} was not ready and applied",
                        install.update_id
                    );
                    self.installing = Some(*id);
                }
                Effect::Download(manifest) => {
                    let same_platform =
                        manifest.platform == "linux-x64" && manifest.product == "consensus-node";
                    assert!(same_platform && manifest.artifact == "native-tarball", "{manifest:?}");
                    assert!(manifest.version.as_str() >= "0.1.0", "an older release: {}", manifest.version);
                }
                Effect::Write { file, .. } => assert_eq!(*file, StateFile::SpentTickets),
                _ => {}
            }
        }
    }
}
