//! Every state that installer and wrapper can reach, with a power cut after any effect that loses whatever the file
//! system may lose: there is always a current release that is whole, a release that failed is never started again, and
//! what comes after is the last good one.
//!
//! The installer's effects are the ones of [`consensus_core::update::install`] as they are. The wrapper's are
//! [`wrapper`]'s, which follows `scripts/run-node.sh` line by line.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod disk;
mod wrapper;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use consensus_core::release::version::Version;
use consensus_core::update::install::{Op, Order, Plan, Survey, Wrapper};
use consensus_core::update::records::{self, Record, RolledBack, id_of_target, parse_release_id};

use self::disk::{Disk, Node, Tree};
use self::wrapper::Chosen;

/// What an artifact holds.
const FILES: [(&str, &str); 2] = [("bin/consensus-node", "program"), ("scripts/run-node.sh", "wrapper")];

/// Installations in one history. Starts, power cuts, confirmations and rollbacks are as many as they may be.
///
/// The histories begin with one installation used up.
const INSTALLATIONS: u8 = 3;

/// What is known of a history and not on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    installations: u8,
    /// Releases that reconnected.
    proved: BTreeSet<String>,
    /// Releases whose end the wrapper has written down.
    given_up: BTreeSet<String>,
    /// The newest version that was confirmed to the end.
    floor: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    tree: Tree,
    known: Known,
}

/// An exploration; `broken` leaves out a sync, by its label.
struct Explorer<'a> {
    broken: Option<&'a str>,
    seen: BTreeSet<State>,
    next: VecDeque<State>,
    trees: BTreeSet<Tree>,
    power_cuts: u64,
    /// Syncs that were met, each by what it belongs to.
    labels: BTreeSet<String>,
    violation: Option<String>,
}

fn version(major: u8) -> Version {
    format!("{major}.0.0").parse().unwrap()
}

fn major(id: &str) -> u8 {
    id.split('.').next().unwrap().parse().unwrap()
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

/// What the installer would find, or the name of a record that is damaged.
fn survey(tree: &Tree) -> Result<Survey, &'static str> {
    fn whole<T, E>(parsed: Option<Result<T, E>>, name: &'static str) -> Result<Option<T>, &'static str> {
        parsed.transpose().map_err(|_| name)
    }
    let file = |name: &str| text(tree, name).map(str::as_bytes);
    let names =
        tree.keys().filter_map(|path| path.strip_prefix("releases/")).filter(|name| !name.contains('/'));
    Ok(Survey {
        current: link(tree, "current"),
        last_good: link(tree, "last-good"),
        running: file("running").and_then(records::parse_id_line),
        releases: names.map(str::to_string).collect(),
        rolled_back: whole(file("rolled-back").map(RolledBack::parse), "rolled-back")?,
        refused: whole(file("refused").map(records::parse_refused), "refused")?.unwrap_or_default(),
        floor: whole(file("floor").map(records::parse_floor), "floor")?,
    })
}

/// Whether all of a release is there.
fn is_whole(tree: &Tree, id: &str) -> bool {
    let record = text(tree, &format!("releases/{id}/install-record"));
    FILES.iter().all(|(name, data)| text(tree, &format!("releases/{id}/{name}")) == Some(data))
        && record.is_some_and(|data| Record::parse(data.as_bytes()).is_ok())
}

impl<'a> Explorer<'a> {
    fn new(broken: Option<&'a str>) -> Self {
        Self {
            broken,
            seen: BTreeSet::new(),
            next: VecDeque::new(),
            trees: BTreeSet::new(),
            power_cuts: 0,
            labels: BTreeSet::new(),
            violation: None,
        }
    }

    fn fail(&mut self, why: String) {
        self.violation.get_or_insert(why);
    }

    fn survey(&mut self, tree: &Tree) -> Option<Survey> {
        survey(tree).map_err(|name| self.fail(format!("{name} is damaged: {tree:?}"))).ok()
    }

    fn visit(&mut self, tree: Tree, known: &Known) {
        let mut known = known.clone();
        // What is gone for good can prove nothing any more.
        known.proved.retain(|id| tree.contains_key(&format!("releases/{id}")));
        known.given_up = known
            .given_up
            .iter()
            .map(|id| {
                if tree.contains_key(&format!("releases/{id}")) {
                    id.clone()
                } else {
                    format!("{}.0.0-0-0", major(id))
                }
            })
            .collect();
        let state = State { tree, known };
        if self.violation.is_none() && !self.seen.contains(&state) {
            self.check(&state.tree, &state.known);
            self.seen.insert(state.clone());
            self.next.push_back(state);
        }
    }

    /// What must hold whatever happened.
    fn check(&mut self, tree: &Tree, known: &Known) {
        let whole = |id: &Option<String>| id.as_ref().is_some_and(|id| is_whole(tree, id));
        let Some(found) = self.survey(tree) else { return };
        let torn = found.releases.iter().find(|id| !id.ends_with(".partial") && !is_whole(tree, id));
        if let Some(torn) = torn {
            return self.fail(format!("{torn} is torn: {tree:?}"));
        }
        // Before the first installation is done there may be nothing.
        if (found.current.is_some() || known.installations == 0 || !known.proved.is_empty())
            && !whole(&found.current)
        {
            return self.fail(format!("current cannot be started: {tree:?}"));
        }
        if tree.get("current").is_some_and(|_| found.current.is_none()) {
            return self.fail(format!("current leads nowhere: {tree:?}"));
        }
        if tree.contains_key("last-good") && !whole(&found.last_good) {
            return self.fail(format!("last-good cannot be started: {tree:?}"));
        }
        if let Some(id) = found.last_good.as_ref().filter(|id| !known.proved.contains(*id)) {
            return self.fail(format!("{id} is good and did not prove it"));
        }
        if found.current.is_some() && text(tree, "run-node.sh") != Some("wrapper") {
            return self.fail(format!("the wrapper is torn or missing: {tree:?}"));
        }
        let floor = found.floor().map_or(0, |floor| major(&floor.to_string()));
        if floor < known.floor {
            return self.fail(format!("the floor fell from {} to {floor}: {tree:?}", known.floor));
        }
        for id in &known.given_up {
            let (version, _, _) = parse_release_id(id).unwrap();
            if !found.all_refused().iter().any(|failed| failed.version == version) {
                return self.fail(format!("{id} failed and is forgotten: {tree:?}"));
            }
        }
    }

    /// Does one effect, with a power cut after each part of it.
    fn effect(&mut self, disk: &mut Disk, of: &str, op: &Op, files: &[(&str, String)], known: &Known) {
        for part in disk.parts(op, files) {
            if let Op::Sync { path } = &part {
                let id = path
                    .split('/')
                    .nth(1)
                    .filter(|id| parse_release_id(id.trim_end_matches(".partial")).is_some());
                let label = format!("{of}: {}", id.map_or(path.clone(), |id| path.replace(id, "ID")));
                let skip = self.broken == Some(label.as_str());
                self.labels.insert(label);
                if skip {
                    continue;
                }
            }
            let is_nobodys = disk.is_nobodys(&part);
            disk.perform(&part);
            if is_nobodys {
                continue;
            }
            self.check(&disk.tree(), known);
            if self.violation.is_some() {
                return;
            }
            for tree in disk.trees_after_a_power_cut() {
                self.power_cuts += 1;
                self.visit(tree, known);
            }
        }
    }

    /// All of it done, and nothing lost.
    fn done(&mut self, disk: &Disk, known: &Known) {
        // Nothing of what counts may still be at stake when a program says that it is done.
        let stake = disk.at_stake();
        let counts = |path: &&String| {
            !path.contains(".partial") && !path.ends_with(".next") && !path.starts_with("next/")
        };
        if let Some(path) = stake.iter().find(counts) {
            return self.fail(format!("{path} is not durable when all is done"));
        }
        self.visit(disk.tree(), known);
    }

    fn plan(&mut self, disk: &mut Disk, of: &str, mut plan: Plan, known: &Known) {
        let files: Vec<_> = FILES.iter().map(|(name, data)| (*name, (*data).to_string())).collect();
        while let Some(op) = plan.next_op() {
            self.effect(disk, of, &op, &files, known);
            if let Op::Unpack { .. } = op {
                let wrapper =
                    if disk.tree().contains_key("run-node.sh") { Wrapper::Differs } else { Wrapper::Missing };
                plan.unpacked(true, wrapper);
            }
            if self.violation.is_some() {
                return;
            }
        }
    }

    fn install(&mut self, disk: &Disk, known: &Known, wanted: u8, allow_older: bool) {
        if known.installations == INSTALLATIONS {
            return;
        }
        let Some(found) = self.survey(&disk.tree()) else { return };
        let process = 1;
        let free = |now: &u64| {
            !found.releases.iter().any(|id| id.starts_with(&format!("{wanted}.0.0-{now}-{process}")))
        };
        let order = Order {
            version: version(wanted),
            sha256: [wanted; 32],
            update_id: Some("u".into()),
            probation: 120,
            now: (1..).find(free).unwrap(),
            process,
            own: None,
            retention: 1,
            allow_older,
        };
        let is_failed = known.given_up.iter().any(|id| major(id) == wanted);
        match Plan::install(&order, &found) {
            Ok(_) if is_failed => self.fail(format!("{wanted} failed and is installed again")),
            Ok(_) if wanted < known.floor && !allow_older => {
                self.fail(format!("{wanted} is installed below {}", known.floor));
            }
            Ok(plan) => {
                let mut disk = disk.clone();
                let known = Known { installations: known.installations + 1, ..known.clone() };
                self.plan(&mut disk, "install", plan, &known);
                self.done(&disk, &known);
            }
            Err(_) => {}
        }
    }

    fn confirm(&mut self, disk: &Disk, known: &Known, id: &str) {
        let mut disk = disk.clone();
        let mut known = known.clone();
        known.proved.insert(id.into());
        let Some(found) = self.survey(&disk.tree()) else { return };
        let plan = match Plan::confirm(Some(id), &found, Wrapper::Differs) {
            Ok(plan) => plan,
            Err(why) => return self.fail(format!("{id} cannot be confirmed: {why}")),
        };
        self.plan(&mut disk, "confirm", plan, &known);
        known.floor = known.floor.max(major(id));
        self.done(&disk, &known);
    }

    /// All that can come next: the wrapper starts what it chooses, and that does one thing.
    fn step(&mut self, state: &State) {
        let State { tree, known } = state;
        let mut disk = Disk::of(tree);
        if !tree.contains_key("current") {
            // The very first installation, by hand.
            return self.install(&disk, known, 1, false);
        }
        let chosen = wrapper::choose(&tree.clone());
        let Chosen { release, on_probation, ops, gives_up } = chosen;
        let mut known = known.clone();
        if known.given_up.contains(&release) {
            return self.fail(format!("{release} failed and is started again"));
        }
        for op in &ops {
            self.effect(&mut disk, "wrapper", op, &[], &known);
        }
        if let Some(id) = gives_up {
            known.given_up.insert(id);
        }
        if self.violation.is_some() {
            return;
        }
        self.done(&disk, &known);
        // It runs. It may end at once, which changes nothing; or
        self.install(&disk, &known, 2, false);
        // Until there is a 2, a 3 would be the same by another name.
        let Some(found) = self.survey(&disk.tree()) else { return };
        if found.releases.iter().any(|id| major(id) == 2) {
            self.install(&disk, &known, 3, false);
        }
        if known.floor > 1 {
            self.install(&disk, &known, 1, false);
        }
        self.install(&disk, &known, 1, true);
        if found.is_on_probation(Some(&release)) {
            self.confirm(&disk, &known, &release);
        }
        let told = Plan::acknowledge(&found, false);
        let mut after = disk.clone();
        self.plan(&mut after, "acknowledge", told, &known);
        self.done(&after, &known);
        if on_probation {
            let good = found.last_good.unwrap();
            let mut known = known.clone();
            for op in wrapper::give_up(&disk.tree(), &release, &good) {
                self.effect(&mut disk, "wrapper", &op, &[], &known);
                if self.violation.is_some() {
                    return;
                }
            }
            known.given_up.insert(release);
            self.done(&disk, &known);
        }
    }

    /// From any state, if nothing new ever proves itself, the last good release is what runs after a few starts.
    fn comes_back(&mut self, tree: &Tree) {
        let Some(good) = link(tree, "last-good") else { return };
        let mut disk = Disk::of(tree);
        for _ in 0..=wrapper::STARTS + 1 {
            let chosen = wrapper::choose(&disk.tree());
            for op in &chosen.ops {
                disk.perform(op);
            }
            if !chosen.on_probation {
                if chosen.release != good || link(&disk.tree(), "current") != Some(good) {
                    self.fail(format!("{} runs in place of the last good release: {tree:?}", chosen.release));
                }
                return;
            }
        }
        self.fail(format!("the last good release does not come back: {tree:?}"));
    }

    fn explore(mut self, from: Tree, known: Known) -> Self {
        self.visit(from, &known);
        while let Some(state) = self.next.pop_front() {
            if self.violation.is_some() {
                break;
            }
            if self.trees.insert(state.tree.clone()) {
                self.comes_back(&state.tree);
            }
            self.step(&state);
        }
        self
    }
}

/// A directory with nothing in it, and one with a release that proved itself.
fn beginnings() -> [(Tree, Known); 2] {
    let id = "1.0.0-1-1".to_string();
    let record = Record { version: version(1), sha256: [1; 32], update_id: None, probation: 120 };
    let record = String::from_utf8(record.emit()).unwrap();
    let mut tree: Tree = ["releases", "next"].map(|path| (path.to_string(), Node::Folder)).into();
    let release = format!("releases/{id}");
    for folder in ["", "/bin", "/scripts"] {
        tree.insert(format!("{release}{folder}"), Node::Folder);
    }
    for (name, data) in FILES {
        tree.insert(format!("{release}/{name}"), Node::File(data.into()));
    }
    tree.insert(format!("{release}/install-record"), Node::File(record));
    tree.insert("current".into(), Node::Link(release.clone()));
    tree.insert("last-good".into(), Node::Link(release));
    tree.insert("run-node.sh".into(), Node::File("wrapper".into()));
    tree.insert("floor".into(), Node::File("1.0.0\n".into()));
    let known = Known { proved: BTreeSet::from([id]), floor: 1, installations: 1, ..Known::default() };
    [(Tree::new(), Known { installations: 1, ..Known::default() }), (tree, known)]
}

#[test]
fn there_is_always_one_release_that_starts_whenever_the_power_fails() {
    let mut labels = BTreeMap::new();
    for (at, (tree, known)) in beginnings().into_iter().enumerate() {
        let explored = Explorer::new(None).explore(tree, known);
        assert_eq!(explored.violation, None);
        println!(
            "from {}: {} states of {} different disks, after {} power cuts",
            ["an empty directory", "a release that proved itself"][at],
            explored.seen.len(),
            explored.trees.len(),
            explored.power_cuts,
        );
        assert!(explored.seen.len() > 10, "{}", explored.seen.len());
        labels.extend(explored.labels.into_iter().map(|label| (label, at)));
    }
    println!("syncs: {labels:?}");
}

/// Where a power cut may lose nothing that matters.
const NEEDLESS: [&str; 0] = [];

#[test]
fn every_sync_is_needed_by_the_model_or_named_here() {
    let [empty, proved] = beginnings();
    let mut labels = BTreeSet::new();
    for (tree, known) in [empty.clone(), proved.clone()] {
        let known = Known { installations: INSTALLATIONS - 1, ..known };
        labels.extend(Explorer::new(None).explore(tree, known).labels);
    }
    let is_missed = |label: &&String| {
        [&empty, &proved].into_iter().any(|(tree, known)| {
            Explorer::new(Some(label)).explore(tree.clone(), known.clone()).violation.is_some()
        })
    };
    let needless: Vec<_> = labels.iter().filter(|label| !is_missed(label)).collect();
    assert_eq!(needless, NEEDLESS);
}

#[test]
fn an_installation_whose_effects_fail_leaves_what_was_there_or_is_done() {
    let [_, (tree, _)] = beginnings();
    let order = Order {
        version: version(2),
        sha256: [2; 32],
        update_id: None,
        probation: 120,
        now: 2,
        process: 2,
        own: None,
        retention: 3,
        allow_older: false,
    };
    let files: Vec<_> = FILES.iter().map(|(name, data)| (*name, (*data).to_string())).collect();
    let id = "2.0.0-2-2".to_string();
    for failing in 0.. {
        let mut disk = Disk::of(&tree);
        let mut plan = Plan::install(&order, &survey(&tree).unwrap()).unwrap();
        let (mut count, mut failed) = (0, None);
        while let Some(op) = plan.next_op() {
            let is_missing = matches!(
                &op,
                Op::Rename { from, .. } if from.starts_with("releases/") && !disk.tree().contains_key(from)
            );
            if is_missing || (count == failing && failed.is_none()) {
                failed = failed.or(Some(op));
                plan.failed();
            } else {
                for part in disk.parts(&op, &files) {
                    disk.perform(&part);
                }
                if matches!(op, Op::Unpack { .. }) {
                    plan.unpacked(true, Wrapper::Differs);
                }
            }
            count += 1;
        }
        let after = survey(&disk.tree()).unwrap();
        let is_current = after.current.as_ref() == Some(&id);
        assert!(is_whole(&disk.tree(), after.current.as_ref().unwrap()), "{failed:?}");
        assert_eq!(after.releases.len(), 1 + usize::from(is_current), "{failed:?}: {after:?}");
        if failed.is_none() {
            assert!(is_current && failing > 8, "{failing}");
            break;
        }
    }
}

#[test]
fn one_power_cut_leaves_one_of_all_that_it_can() {
    let [_, (tree, _)] = beginnings();
    let mut disk = Disk::of(&tree);
    for op in [
        Op::Write { path: "floor.next".into(), data: b"2.0.0\n".into(), mode: 0o644 },
        Op::Rename { from: "floor.next".into(), to: "floor".into() },
        Op::Write { path: "refused".into(), data: vec![], mode: 0o644 },
        Op::Remove { path: "last-good".into() },
    ] {
        disk.perform(&op);
    }
    let all = disk.trees_after_a_power_cut();
    let some: BTreeSet<Tree> =
        (0..256).map(|choice| disk.tree_after_a_power_cut(choice, choice >> 4)).collect();
    assert_eq!(some, all);
    assert!(all.len() > 8, "{}", all.len());
}
