//! Installer and wrapper on a model of a disk: cut after any effect by a power cut that loses what it may, and begun
//! anew.
//!
//! `core/tests/install_model` goes through all of a small number of installations; here histories are long, and chosen
//! by the fuzzer. The disk and the wrapper are the same.

#[expect(dead_code, reason = "what goes through all that a power cut can leave")]
#[path = "../../tests/install_model/disk.rs"]
mod disk;
#[path = "../../tests/install_model/wrapper.rs"]
mod wrapper;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use arbitrary::Arbitrary;

use self::disk::{Disk, Node, Tree};
use super::read;
use crate::release::version::Version;
use crate::update::install::{Op, Order, Plan, Survey, Wrapper};
use crate::update::records::{self, Record, RolledBack, id_of_target, parse_release_id};

/// What an artifact holds.
const FILES: [(&str, &str); 2] = [("bin/consensus-node", "program"), ("scripts/run-node.sh", "wrapper")];

#[derive(Debug, Default, Arbitrary)]
struct Script {
    actions: Vec<(Action, Option<Cut>)>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    /// A release of one of a few versions is installed, while another runs.
    Install { version: u8, allow_older: bool, retention: u8 },
    /// The wrapper starts what it chooses.
    Start,
    /// What runs has reconnected.
    Confirm,
    /// What runs has told of a rollback.
    Acknowledge,
    /// The wrapper gives up what runs.
    GiveUp,
}

/// A power cut after that many parts of the action; of all that it may lose, the bits choose.
#[derive(Debug, Arbitrary)]
struct Cut {
    after: u8,
    comes_through: u64,
    is_torn: u64,
}

/// A history.
struct History {
    disk: Disk,
    /// Seconds, so that no two releases have one name.
    now: u64,
    running: Option<String>,
    /// Releases that reconnected.
    proved: BTreeSet<String>,
    /// Releases that were given up, by version.
    given_up: BTreeSet<Version>,
    /// The newest version that was confirmed to the end.
    floor: Option<Version>,
    is_installed: bool,
    cut: Option<Cut>,
}

fn text<'a>(tree: &'a Tree, path: &str) -> Option<&'a str> {
    match tree.get(path)? {
        Node::File(data) => Some(data),
        _ => None,
    }
}

fn link(tree: &Tree, name: &str) -> Option<String> {
    match tree.get(name)? {
        Node::Link(target) => id_of_target(target).filter(|id| tree.contains_key(&format!("releases/{id}"))),
        _ => None,
    }
}

fn survey(tree: &Tree) -> Survey {
    let file = |name: &str| text(tree, name).map(str::as_bytes);
    let names = tree.keys().filter_map(|path| path.strip_prefix("releases/"));
    Survey {
        current: link(tree, "current"),
        last_good: link(tree, "last-good"),
        running: file("running").and_then(records::parse_id_line),
        releases: names.filter(|name| !name.contains('/')).map(str::to_string).collect(),
        rolled_back: file("rolled-back").map(|data| RolledBack::parse(data).expect("rolled-back is whole")),
        refused: file("refused")
            .map_or(Vec::new(), |data| records::parse_refused(data).expect("refused is whole")),
        floor: file("floor").map(|data| records::parse_floor(data).expect("floor is whole")),
    }
}

fn is_whole(tree: &Tree, id: &str) -> bool {
    let record = text(tree, &format!("releases/{id}/install-record"));
    FILES.iter().all(|(name, data)| text(tree, &format!("releases/{id}/{name}")) == Some(data))
        && record.is_some_and(|data| Record::parse(data.as_bytes()).is_ok())
}

/// There is always one release that starts, and none that failed is started again.
pub fn install(data: &[u8]) {
    let Script { actions } = read(data);
    let mut history = History {
        disk: Disk::of(&Tree::new()),
        now: 1,
        running: None,
        proved: BTreeSet::new(),
        given_up: BTreeSet::new(),
        floor: None,
        is_installed: false,
        cut: None,
    };
    for (action, cut) in actions.into_iter().take(48) {
        history.cut = cut;
        let is_cut = history.act(action).is_none();
        history.check();
        if is_cut {
            // The machine starts again, and with it whatever was running.
            history.running = None;
        }
    }
    history.comes_back();
}

impl History {
    /// `None` where the power failed on the way.
    fn act(&mut self, action: Action) -> Option<()> {
        let tree = self.disk.tree();
        let found = survey(&tree);
        match action {
            Action::Install { version, allow_older, retention } => {
                let version: Version = format!("{}.0.0", version % 4 + 1).parse().expect("a version");
                self.now += 1;
                let order = Order {
                    version: version.clone(),
                    sha256: [self.now as u8; 32],
                    update_id: Some("u".into()),
                    probation: 120,
                    now: self.now,
                    process: 1,
                    own: self.running.clone(),
                    retention: usize::from(retention % 4) + 1,
                    allow_older,
                };
                let failed = self.given_up.contains(&version);
                let older = self.floor.as_ref().is_some_and(|floor| version < *floor) && !allow_older;
                match Plan::install(&order, &found) {
                    Ok(plan) => {
                        assert!(!failed, "{version} failed and is installed again");
                        assert!(!older, "{version} is older than {:?}", self.floor);
                        self.run(plan)?;
                        self.is_installed = true;
                    }
                    Err(why) => {
                        let is_refused = found.all_refused().iter().any(|failed| failed.version == version);
                        let is_older = found.floor().is_some_and(|floor| version < floor) && !allow_older;
                        assert!(is_refused || is_older, "{why}");
                    }
                }
            }
            Action::Start if tree.contains_key("current") => {
                let chosen = wrapper::choose(&tree);
                let version = parse_release_id(&chosen.release).map(|(version, _, _)| version);
                let is_refused = version.is_some_and(|version| self.given_up.contains(&version));
                let is_good = found.last_good.as_ref() == Some(&chosen.release);
                assert!(!is_refused || is_good, "{} failed and is started again", chosen.release);
                assert!(is_whole(&tree, &chosen.release));
                self.perform(&chosen.ops, chosen.gives_up.as_deref())?;
                self.running = Some(chosen.release);
            }
            Action::Confirm => {
                let Some(id) = self.running.clone() else { return Some(()) };
                if !found.is_on_probation(Some(&id)) && found.last_good.as_ref() != Some(&id) {
                    return Some(());
                }
                let wrapper = if text(&tree, "run-node.sh") == Some("wrapper") {
                    Wrapper::Same
                } else {
                    Wrapper::Differs
                };
                let Ok(plan) = Plan::confirm(Some(&id), &found, wrapper) else { return Some(()) };
                self.proved.insert(id.clone());
                self.run(plan)?;
                let version = parse_release_id(&id).map(|(version, _, _)| version);
                self.floor = self.floor.take().max(version);
            }
            Action::Acknowledge => self.run(Plan::acknowledge(&found, false))?,
            Action::GiveUp => {
                let (Some(id), Some(good)) = (self.running.clone(), found.last_good.clone()) else {
                    return Some(());
                };
                if found.is_on_probation(Some(&id)) {
                    self.perform(&wrapper::give_up(&tree, &id, &good), Some(&id))?;
                    self.running = Some(good);
                }
            }
            Action::Start => {}
        }
        Some(())
    }

    fn run(&mut self, mut plan: Plan) -> Option<()> {
        while let Some(op) = plan.next_op() {
            self.effect(&op)?;
            if let Op::Unpack { .. } = op {
                let has = self.disk.tree().contains_key("run-node.sh");
                plan.unpacked(true, if has { Wrapper::Differs } else { Wrapper::Missing });
            }
        }
        self.durable();
        Some(())
    }

    /// The wrapper's effects. A release counts as given up as soon as that may be on the disk.
    fn perform(&mut self, ops: &[Op], gives_up: Option<&str>) -> Option<()> {
        for op in ops {
            self.effect(op)?;
        }
        self.given_up.extend(gives_up.and_then(parse_release_id).map(|(version, _, _)| version));
        self.durable();
        Some(())
    }

    fn effect(&mut self, op: &Op) -> Option<()> {
        let files: Vec<_> = FILES.iter().map(|(name, data)| (*name, (*data).to_string())).collect();
        for part in self.disk.parts(op, &files) {
            let is_nobodys = self.disk.is_nobodys(&part);
            self.disk.perform(&part);
            let Some(cut) = self.cut.as_mut().filter(|_| !is_nobodys) else { continue };
            if cut.after > 0 {
                cut.after -= 1;
                continue;
            }
            self.disk = Disk::of(&self.disk.tree_after_a_power_cut(cut.comes_through, cut.is_torn));
            self.cut = None;
            return None;
        }
        Some(())
    }

    /// When a program says that it is done, nothing of what counts is still at stake.
    fn durable(&self) {
        let counts = |path: &&String| {
            !path.contains(".partial") && !path.ends_with(".next") && !path.starts_with("next/")
        };
        let now = self.disk.tree();
        for (comes_through, is_torn) in [(0, 0), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            let left = self.disk.tree_after_a_power_cut(comes_through, is_torn);
            let paths = left.keys().chain(now.keys()).filter(counts);
            let lost: BTreeSet<&String> = paths.filter(|path| left.get(*path) != now.get(*path)).collect();
            assert!(lost.is_empty(), "not durable when all is done: {lost:?}");
        }
    }

    fn check(&mut self) {
        let tree = self.disk.tree();
        let found = survey(&tree);
        for id in found.releases.iter().filter(|id| !id.ends_with(".partial")) {
            assert!(is_whole(&tree, id), "{id} is torn: {tree:?}");
        }
        if self.is_installed || tree.contains_key("current") {
            self.is_installed = true;
            let current = found.current.as_ref().expect("current leads somewhere");
            assert!(is_whole(&tree, current), "current cannot be started");
            assert_eq!(text(&tree, "run-node.sh"), Some("wrapper"), "the wrapper is torn or missing");
        }
        if let Some(running) = &self.running {
            assert!(found.releases.contains(running), "{running} runs, and is removed");
        }
        if tree.contains_key("last-good") {
            let good = found.last_good.as_ref().expect("last-good leads somewhere");
            assert!(
                is_whole(&tree, good) && self.proved.contains(good),
                "{good} is good and did not prove it"
            );
        }
        assert!(found.floor() >= self.floor, "the floor fell from {:?} to {:?}", self.floor, found.floor());
        for version in &self.given_up {
            let all = found.all_refused();
            assert!(all.iter().any(|failed| failed.version == *version), "{version} failed and is forgotten");
        }
    }

    /// If nothing new ever proves itself, the last good release is what runs after a few starts.
    fn comes_back(&mut self) {
        self.cut = None;
        let Some(good) = link(&self.disk.tree(), "last-good") else { return };
        for _ in 0..=wrapper::STARTS + 1 {
            let chosen = wrapper::choose(&self.disk.tree());
            for op in &chosen.ops {
                self.disk.perform(op);
            }
            if !chosen.on_probation {
                assert_eq!(
                    (Some(&chosen.release), link(&self.disk.tree(), "current")),
                    (Some(&good), Some(good.clone()))
                );
                return;
            }
        }
        panic!("the last good release does not come back");
    }
}
