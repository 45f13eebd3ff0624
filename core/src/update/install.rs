//! The installer: what is done to the install directory, one effect after the other, so that whatever happens between
//! any two of them there is exactly one release that starts (`records` has the layout).
//!
//! A [`Plan`] is made from a [`Survey`] of the directory. Its owner holds the directory's lock, carries out
//! [`Plan::next_op`] until there is none, and tells [`Plan::unpacked`] what the artifact was, or [`Plan::failed`].
//! The other writer of the directory is the wrapper, `scripts/run-node.sh`; it needs nothing of a new release. A model test
//! (`core/tests/install_model`) goes through every state that the two can reach with a crash after any effect.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use super::records::{
    Failed, MAX_UPDATE_ID, PARTIAL, RELEASES, Record, RolledBack, emit_refused, parse_release_id, release_id,
};
use crate::release::entry::{RECORD, WRAPPER};
use crate::release::version::Version;
use crate::text::printable;

/// One effect on the file system. Paths are below the install directory; `.` is the directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each member is what its name says of the variant's sentence")]
pub enum Op {
    /// Make a folder, mode 0755; one that is there is left.
    MakeFolder { path: String },
    /// Check the artifact and unpack it into this folder, which is empty. Answered by [`Plan::unpacked`].
    Unpack { into: String },
    /// Write a file; one that is there is emptied first.
    Write { path: String, data: Vec<u8>, mode: u32 },
    /// Copy a file.
    Copy { from: String, to: String, mode: u32 },
    /// Make the content of a file, or the names in a folder, durable.
    Sync { path: String },
    /// [`Op::Sync`] for each file of a folder, and each folder of it, and the folder.
    SyncTree { path: String },
    /// Rename, over what is there.
    Rename { from: String, to: String },
    /// Make a symbolic link.
    Link { target: String, path: String },
    /// Remove a file or a link; one that is not there is removed already.
    Remove { path: String },
    /// Remove a folder with all in it; one that is not there is removed already.
    RemoveTree { path: String },
}

/// How the wrapper in place stands to that of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapper {
    /// There is none in place.
    Missing,
    /// The same, or the release brings none.
    Same,
    /// Another.
    Differs,
}

/// The install directory as it is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// What `current` leads to.
    pub current: Option<String>,
    /// What `last-good` leads to.
    pub last_good: Option<String>,
    /// What the wrapper started last.
    pub running: Option<String>,
    /// The names in `releases`.
    pub releases: Vec<String>,
    /// `rolled-back`.
    pub rolled_back: Option<RolledBack>,
    /// `refused`.
    pub refused: Vec<Failed>,
    /// `floor`.
    pub floor: Option<Version>,
}

impl Survey {
    /// The oldest version that is taken. The file may be behind by one power cut: the last good release counts.
    #[must_use]
    pub fn floor(&self) -> Option<Version> {
        let good = self.last_good.as_deref().and_then(parse_release_id).map(|(version, _, _)| version);
        self.floor.clone().max(good)
    }

    /// Failed releases, the one of `rolled-back` among them.
    #[must_use]
    pub fn all_refused(&self) -> Vec<Failed> {
        let mut all = self.refused.clone();
        if let Some(RolledBack { version, sha256, .. }) = &self.rolled_back {
            let failed = Failed { version: version.clone(), sha256: *sha256 };
            if !all.contains(&failed) {
                all.push(failed);
            }
        }
        all
    }

    /// Whether the wrapper has given this release up, perhaps without having come to put the last good one in its
    /// place.
    #[must_use]
    pub fn is_given_up(&self, id: &str) -> bool {
        self.rolled_back.as_ref().is_some_and(|rolled_back| rolled_back.release == id)
    }

    /// Whether `running` is a release that has yet to prove itself.
    #[must_use]
    pub fn is_on_probation(&self, running: Option<&str>) -> bool {
        running.is_some()
            && running == self.current.as_deref()
            && self.current != self.last_good
            && running.is_some_and(|id| !self.is_given_up(id))
    }
}

/// What is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its version: the artifact's manifest says the same, or the artifact is not taken.
    pub version: Version,
    /// SHA-256 of the artifact, as the caller found it. The bytes that are unpacked have it, or are not taken.
    pub sha256: [u8; 32],
    /// The update that it came by.
    pub update_id: Option<String>,
    /// Seconds that it will have to reconnect.
    pub probation: u64,
    /// Unix seconds.
    pub now: u64,
    /// This process.
    pub process: u32,
    /// The release that this process is of, where it is of one: it is not removed.
    pub own: Option<String>,
    /// Releases that are kept, the new one among them; at least 1.
    pub retention: usize,
    /// Whether it may be older than the newest that proved itself.
    pub allow_older: bool,
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// This release failed before.
    FailedBefore(Version),
    /// It is older than the newest that proved itself.
    Older {
        /// It.
        version: Version,
        /// The newest.
        floor: Version,
    },
    /// The id of the update is over [`MAX_UPDATE_ID`].
    UpdateId,
    /// There is a release of this name: made in the same second by the same process.
    Exists(String),
    /// What runs is not what is current: it cannot prove that.
    NotCurrent,
    /// The wrapper gave this release up.
    GivenUp(String),
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailedBefore(version) => write!(
                f,
                "release {version} failed on this machine before and is not tried again; to try it all the same, \
                 remove its line from the file `refused` in the install directory"
            ),
            Self::Older { version, floor } => write!(
                f,
                "release {version} is older than {floor}, which ran here; to go back to it, give --allow-older"
            ),
            Self::UpdateId => write!(f, "the id of the update is over {MAX_UPDATE_ID} bytes"),
            Self::Exists(id) => write!(f, "there is a release {id} already; try again in a second"),
            Self::NotCurrent => f.write_str("the release that runs is not the current one"),
            Self::GivenUp(reason) => write!(f, "this release was given up: {}", printable(reason)),
        }
    }
}

impl core::error::Error for NotDone {}

/// What a failed effect means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The plan failed; what follows puts away what it left.
    Plan,
    /// The plan is done all the same: only tidying up did not work.
    Tidying,
}

/// Effects in their order.
#[derive(Clone, Debug)]
pub struct Plan {
    ops: VecDeque<Op>,
    /// What puts away a release that does not come to be the current one.
    undo: Vec<Op>,
    /// From here on it is only tidied up.
    tidying: VecDeque<Op>,
    is_tidying: bool,
    /// The release that an installation makes.
    made: Option<String>,
}

impl Plan {
    /// Installs.
    ///
    /// # Errors
    /// The release is not taken.
    pub fn install(order: &Order, survey: &Survey) -> Result<Self, NotDone> {
        let refused = survey.all_refused();
        if refused.iter().any(|failed| failed.is(&order.version, &order.sha256)) {
            return Err(NotDone::FailedBefore(order.version.clone()));
        }
        match survey.floor() {
            Some(floor) if order.version < floor && !order.allow_older => {
                return Err(NotDone::Older { version: order.version.clone(), floor });
            }
            _ => {}
        }
        if order.update_id.as_ref().is_some_and(|id| id.len() > MAX_UPDATE_ID) {
            return Err(NotDone::UpdateId);
        }
        let id = release_id(&order.version, order.now, order.process);
        if survey.releases.contains(&id) {
            return Err(NotDone::Exists(id));
        }
        let mut plan = Self::new(Some(id.clone()));
        // Remembered before `rolled-back` can be written over by the next failure.
        if refused != survey.refused {
            plan.replace("refused", emit_refused(&refused), 0o644);
        }
        plan.make_folder(RELEASES);
        for name in survey.releases.iter().filter(|name| name.ends_with(PARTIAL)) {
            plan.push(Op::RemoveTree { path: format!("{RELEASES}/{name}") });
        }
        let release = format!("{RELEASES}/{id}");
        let partial = format!("{release}{PARTIAL}");
        plan.push(Op::MakeFolder { path: partial.clone() });
        plan.push(Op::Unpack { into: partial.clone() });
        let record = Record {
            version: order.version.clone(),
            sha256: order.sha256,
            update_id: order.update_id.clone(),
            probation: order.probation,
        };
        plan.push(Op::Write { path: format!("{partial}/{RECORD}"), data: record.emit(), mode: 0o644 });
        plan.push(Op::SyncTree { path: partial.clone() });
        plan.push(Op::Rename { from: partial.clone(), to: release.clone() });
        plan.push(Op::Sync { path: RELEASES.to_string() });
        plan.point("current", &id);
        // Either is there. The first that fails is the last: a release that is not out of the way is not removed.
        plan.undo.push(Op::RemoveTree { path: partial.clone() });
        plan.undo.push(Op::Rename { from: release, to: partial.clone() });
        plan.undo.push(Op::Sync { path: RELEASES.to_string() });
        plan.undo.push(Op::RemoveTree { path: partial });
        plan.prune(order, survey, &id);
        Ok(plan)
    }

    /// Makes the release that runs the good one. Done already, it does nothing.
    ///
    /// # Errors
    /// What runs is not current, or was given up.
    pub fn confirm(running: Option<&str>, survey: &Survey, wrapper: Wrapper) -> Result<Self, NotDone> {
        let Some(id) = running.filter(|_| running == survey.current.as_deref()) else {
            return Err(NotDone::NotCurrent);
        };
        if let Some(rolled_back) = survey.rolled_back.as_ref().filter(|found| found.release == id) {
            return Err(NotDone::GivenUp(rolled_back.reason.clone()));
        }
        let mut plan = Self::new(None);
        // Before the last good release changes, what it said of the floor is written down.
        plan.raise_floor(survey.floor.as_ref(), survey.floor());
        if survey.last_good.as_deref() != Some(id) {
            plan.point("last-good", id);
        }
        let version = parse_release_id(id).map(|(version, _, _)| version);
        plan.raise_floor(survey.floor().as_ref(), survey.floor().max(version));
        if wrapper != Wrapper::Same {
            plan.place_wrapper(id);
        }
        Ok(plan)
    }

    /// Takes note of a rollback that was told: it is remembered in `refused` alone, and not at all where the release is
    /// excused.
    #[must_use]
    pub fn acknowledge(survey: &Survey, is_excused: bool) -> Self {
        let mut plan = Self::new(None);
        // One that is still current is the wrapper's: by this file it knows what to do at its next start.
        if survey.rolled_back.as_ref().is_some_and(|found| survey.current.as_ref() != Some(&found.release)) {
            let refused = survey.all_refused();
            if refused != survey.refused && !is_excused {
                plan.replace("refused", emit_refused(&refused), 0o644);
            }
            plan.push(Op::Remove { path: "rolled-back".to_string() });
            plan.sync_root();
        }
        plan
    }

    /// The next effect. `None` when the plan is over.
    pub fn next_op(&mut self) -> Option<Op> {
        let op = self.ops.pop_front();
        if self.ops.is_empty() {
            // Before the last one, `current` has been moved: from here on the release is not half-made.
            self.undo.clear();
        }
        self.is_tidying = op.is_none();
        op.or_else(|| self.tidying.pop_front())
    }

    /// The artifact was unpacked and is what was ordered. The first release of a directory has its own wrapper put in
    /// place: there is no other.
    pub fn unpacked(&mut self, brings_wrapper: bool, wrapper: Wrapper) {
        if let (true, Wrapper::Missing, Some(id)) = (brings_wrapper, wrapper, self.made.clone()) {
            // Before `current` can lead to it.
            let at = self.ops.iter().position(|op| matches!(op, Op::Remove { .. })).unwrap_or(self.ops.len());
            let rest = self.ops.split_off(at);
            self.place_wrapper(&id);
            self.ops.extend(rest);
        }
    }

    /// The last effect failed.
    pub fn failed(&mut self) -> Failure {
        if self.is_tidying {
            return Failure::Tidying;
        }
        self.ops = core::mem::take(&mut self.undo).into();
        self.tidying.clear();
        Failure::Plan
    }

    /// The name of the release that an installation makes.
    #[must_use]
    pub fn release(&self) -> Option<&str> {
        self.made.as_deref()
    }

    const fn new(made: Option<String>) -> Self {
        Self { ops: VecDeque::new(), undo: Vec::new(), tidying: VecDeque::new(), is_tidying: false, made }
    }

    fn push(&mut self, op: Op) {
        self.ops.push_back(op);
    }

    fn sync_root(&mut self) {
        self.push(Op::Sync { path: ".".to_string() });
    }

    fn make_folder(&mut self, path: &str) {
        self.push(Op::MakeFolder { path: path.to_string() });
        self.sync_root();
    }

    /// A file, as a whole or not at all.
    fn replace(&mut self, name: &str, data: Vec<u8>, mode: u32) {
        let next = format!("{name}.next");
        self.push(Op::Write { path: next.clone(), data, mode });
        self.put(next, name);
    }

    /// The last steps of a replacement.
    fn put(&mut self, next: String, name: &str) {
        self.push(Op::Sync { path: next.clone() });
        self.push(Op::Rename { from: next, to: name.to_string() });
        self.sync_root();
    }

    fn place_wrapper(&mut self, id: &str) {
        let next = "run-node.sh.next".to_string();
        self.push(Op::Copy { from: format!("{RELEASES}/{id}/{WRAPPER}"), to: next.clone(), mode: 0o755 });
        self.put(next, "run-node.sh");
    }

    /// A link of the directory to a release. The link is durable before it takes the name that counts.
    fn point(&mut self, name: &str, id: &str) {
        let next = format!("{name}.next");
        self.push(Op::Remove { path: next.clone() });
        self.push(Op::Link { target: format!("{RELEASES}/{id}"), path: next.clone() });
        self.sync_root();
        self.push(Op::Rename { from: next, to: name.to_string() });
        self.sync_root();
    }

    fn raise_floor(&mut self, is: Option<&Version>, wanted: Option<Version>) {
        if let Some(wanted) = wanted.filter(|wanted| is.is_none_or(|is| wanted > is)) {
            self.replace("floor", format!("{wanted}\n").into_bytes(), 0o644);
        }
    }

    /// Releases that are too many are removed: out of the way first, so that none is ever half there.
    fn prune(&mut self, order: &Order, survey: &Survey, new: &str) {
        let mut keep: BTreeSet<&str> = BTreeSet::from([new]);
        keep.extend(survey.current.as_deref());
        keep.extend(survey.last_good.as_deref());
        keep.extend(survey.running.as_deref());
        keep.extend(order.own.as_deref());
        let mut newest: Vec<_> = survey
            .releases
            .iter()
            .filter_map(|id| parse_release_id(id).map(|(_, time, process)| (time, process, id.as_str())))
            .collect();
        newest.sort_unstable();
        let others = order.retention.saturating_sub(1);
        keep.extend(newest.iter().rev().take(others).map(|(_, _, id)| *id));
        for (_, _, id) in newest.iter().filter(|(_, _, id)| !keep.contains(id)) {
            let release = format!("{RELEASES}/{id}");
            let partial = format!("{release}{PARTIAL}");
            self.tidying.push_back(Op::Rename { from: release, to: partial.clone() });
            self.tidying.push_back(Op::Sync { path: RELEASES.to_string() });
            self.tidying.push_back(Op::RemoveTree { path: partial });
        }
    }
}
