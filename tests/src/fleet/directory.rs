//! The install directory of a node in memory, the installer's effects on it, and the wrapper that starts what is in it
//! (`scripts/run-node.sh`, its functions by their names). Power cuts that lose what is not durable are `install_model`'s
//! in core; here an installation is cut off after any of its effects.

use std::collections::BTreeMap;

use consensus_core::io::EffectResult;
use consensus_core::release::entry::{PROGRAM, RECORD, WRAPPER};
use consensus_core::release::version::Version;
use consensus_core::update::install::{NotDone, Op, Order, Plan, Survey, Wrapper};
use consensus_core::update::records::{
    PARTIAL, RELEASES, RolledBack as Record, id_of_target, parse_floor, parse_id_line, parse_refused,
    parse_release_id,
};
use consensus_core::update::{RolledBack, Standing};

/// Starts in which a release on probation has to reconnect, as the wrapper has it by default.
pub(super) const STARTS: u32 = 3;

#[derive(Clone, Debug)]
enum Entry {
    Folder,
    File(Vec<u8>),
    Link(String),
}

/// What the wrapper starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) release: String,
    pub(super) version: Version,
    pub(super) on_probation: bool,
    /// The release that was given up for it.
    pub(super) given_up: Option<String>,
}

/// The directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory(BTreeMap<String, Entry>);

impl Directory {
    fn file(&self, path: &str) -> Option<&[u8]> {
        match self.0.get(path) {
            Some(Entry::File(data)) => Some(data),
            _ => None,
        }
    }

    fn link(&self, name: &str) -> Option<String> {
        match self.0.get(name) {
            Some(Entry::Link(target)) => id_of_target(target),
            _ => None,
        }
    }

    fn put(&mut self, name: &str, data: String) {
        self.0.insert(name.to_owned(), Entry::File(data.into_bytes()));
    }

    fn is_startable(&self, id: &str) -> bool {
        self.file(&format!("{RELEASES}/{id}/{PROGRAM}")).is_some()
    }

    /// What an installer finds.
    pub(super) fn survey(&self) -> Survey {
        let prefix = format!("{RELEASES}/");
        let names = self.0.keys().filter_map(|path| path.strip_prefix(&prefix));
        Survey {
            current: self.link("current"),
            last_good: self.link("last-good"),
            running: self.file("running").and_then(parse_id_line),
            releases: names.filter(|name| !name.contains('/')).map(str::to_owned).collect(),
            rolled_back: self.file("rolled-back").and_then(|data| Record::parse(data).ok()),
            refused: self.file("refused").and_then(|data| parse_refused(data).ok()).unwrap_or_default(),
            floor: self.file("floor").and_then(|data| parse_floor(data).ok()),
        }
    }

    /// What a process of that release is told at its start.
    pub(super) fn standing(&self, running: &str) -> Standing {
        let survey = self.survey();
        let rolled_back = survey.rolled_back.clone();
        let rolled_back = rolled_back.filter(|found| survey.current.as_ref() != Some(&found.release));
        Standing {
            on_probation: survey.is_on_probation(Some(running)),
            refused: survey.all_refused().into_iter().map(|failed| (failed.version, failed.sha256)).collect(),
            floor: survey.floor(),
            rolled_back: rolled_back.map(|found| RolledBack {
                update_id: found.update_id,
                version: found.version.to_string(),
                reason: found.reason,
                was_silent: found.was_silent,
            }),
        }
    }

    /// Whether some release can be started.
    pub(super) fn is_bootable(&self) -> bool {
        ["current", "last-good"]
            .into_iter()
            .filter_map(|name| self.link(name))
            .any(|id| self.is_startable(&id))
    }

    /// Carries out a plan, or its first `effects`; whether that is all of it.
    fn carry_out(&mut self, plan: &mut Plan, effects: usize) -> bool {
        for _ in 0..effects {
            let Some(op) = plan.next_op() else { return true };
            if matches!(op, Op::Unpack { .. }) {
                plan.unpacked(true, self.wrapper());
            }
            self.perform(op);
        }
        plan.next_op().is_none()
    }

    fn wrapper(&self) -> Wrapper {
        if self.file("run-node.sh").is_some() { Wrapper::Same } else { Wrapper::Missing }
    }

    /// Installs a release; the first `effects` of that. Ends as the effect that asks for it does.
    pub(super) fn install(&mut self, order: &Order, effects: usize) -> Result<(), String> {
        let mut plan = Plan::install(order, &self.survey()).map_err(|refused| refused.to_string())?;
        if self.carry_out(&mut plan, effects) { Ok(()) } else { Err("cut off".to_owned()) }
    }

    /// Confirms the release that runs.
    pub(super) fn confirm(&mut self, running: &str) -> EffectResult {
        let plan: Result<Plan, NotDone> = Plan::confirm(Some(running), &self.survey(), self.wrapper());
        EffectResult::Installed(plan.map_err(|refused| refused.to_string()).map(|mut plan| {
            self.carry_out(&mut plan, usize::MAX);
        }))
    }

    /// Takes note that the network knows of a rollback.
    pub(super) fn acknowledge(&mut self, is_excused: bool) -> EffectResult {
        let mut plan = Plan::acknowledge(&self.survey(), is_excused);
        self.carry_out(&mut plan, usize::MAX);
        EffectResult::Installed(Ok(()))
    }

    fn perform(&mut self, op: Op) {
        match op {
            Op::MakeFolder { path } => {
                self.0.entry(path).or_insert(Entry::Folder);
            }
            Op::Unpack { into } => {
                for name in [PROGRAM, WRAPPER] {
                    self.0.insert(format!("{into}/{name}"), Entry::File(Vec::new()));
                }
            }
            Op::Write { path, data, .. } => {
                self.0.insert(path, Entry::File(data));
            }
            Op::Copy { from, to, .. } => {
                if let Some(entry) = self.0.get(&from).cloned() {
                    self.0.insert(to, entry);
                }
            }
            Op::Sync { .. } | Op::SyncTree { .. } => {}
            Op::Rename { from, to } => {
                let below = format!("{from}/");
                let is_of = |path: &&String| **path == from || path.starts_with(&below);
                let moved: Vec<String> = self.0.keys().filter(is_of).cloned().collect();
                for path in moved {
                    let name = format!("{to}{}", path.strip_prefix(&from).unwrap_or_default());
                    if let Some(entry) = self.0.remove(&path) {
                        self.0.insert(name, entry);
                    }
                }
            }
            Op::Link { target, path } => {
                self.0.insert(path, Entry::Link(target));
            }
            Op::Remove { path } => {
                self.0.remove(&path);
            }
            Op::RemoveTree { path } => {
                let below = format!("{path}/");
                self.0.retain(|name, _| *name != path && !name.starts_with(&below));
            }
        }
    }

    /// The wrapper gives a release up and goes back to the good one.
    pub(super) fn give_up(&mut self, id: &str, reason: &str, was_silent: bool) {
        let Some(good) = self.link("last-good") else { return };
        let record = self.file(&format!("{RELEASES}/{id}/{RECORD}")).unwrap_or_default();
        let record = String::from_utf8_lossy(record).into_owned();
        let silent = if was_silent { "silent=yes\n" } else { "" };
        self.put("rolled-back", format!("release={id}\nreason={reason}\n{silent}{record}"));
        self.point_current(&good);
    }

    fn point_current(&mut self, id: &str) {
        self.0.insert("current".to_owned(), Entry::Link(format!("{RELEASES}/{id}")));
    }

    /// What the wrapper starts; nothing where nothing can be started.
    pub(super) fn choose(&mut self) -> Option<Chosen> {
        let chosen = |release: String, on_probation, given_up| {
            let (version, _, _) = parse_release_id(&release)?;
            Some(Chosen { release, version, on_probation, given_up })
        };
        let good = self.link("last-good").filter(|id| self.is_startable(id));
        let current = self.link("current").filter(|id| self.is_startable(id));
        let chosen = match (current, good) {
            (None, None) => None,
            (None, Some(good)) => {
                let current = self.link("current").unwrap_or_default();
                self.give_up(&current, "its program is missing or not executable", false);
                chosen(good, false, Some(current))
            }
            (Some(current), None) => chosen(current, false, None),
            (Some(current), Some(good)) if current == good => chosen(current, false, None),
            (Some(current), Some(good)) => {
                let is_given_up = self.survey().is_given_up(&current);
                let line = self.file("starts").map(|data| String::from_utf8_lossy(data).into_owned());
                let count = line.as_deref().and_then(|line| line.strip_prefix(&format!("{current} ")));
                let count: u32 = count.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
                if is_given_up {
                    self.point_current(&good);
                    chosen(good, false, None)
                } else if count >= STARTS {
                    let reason = format!("it was started {count} times and did not reconnect");
                    self.give_up(&current, &reason, false);
                    chosen(good, false, Some(current))
                } else {
                    self.put("starts", format!("{current} {}\n", count + 1));
                    chosen(current, true, None)
                }
            }
        };
        if let Some(chosen) = &chosen {
            self.put("running", format!("{}\n", chosen.release));
        }
        chosen
    }

    /// Whether the release has proved itself.
    pub(super) fn is_good(&self, id: &str) -> bool {
        self.link("last-good").as_deref() == Some(id)
    }

    /// Releases that are there, whole ones and others.
    pub(super) fn releases(&self) -> usize {
        self.survey().releases.iter().filter(|name| !name.ends_with(PARTIAL)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(version: &str, now: u64) -> Order {
        Order {
            version: version.parse().unwrap(),
            sha256: [now as u8; 32],
            update_id: Some(format!("u-{version}")),
            probation: 120,
            now,
            process: 1,
            own: None,
            retention: 3,
            allow_older: false,
        }
    }

    /// A directory whose first release has proved itself.
    fn directory() -> Directory {
        let mut directory = Directory::default();
        directory.install(&order("1.0.0", 1), usize::MAX).unwrap();
        let chosen = directory.choose().unwrap();
        assert!(directory.standing(&chosen.release).on_probation && !chosen.on_probation);
        directory.confirm(&chosen.release);
        directory
    }

    #[test]
    fn a_release_that_does_not_prove_itself_is_given_up_and_remembered() {
        let mut directory = directory();
        directory.install(&order("1.1.0", 2), usize::MAX).unwrap();
        for _ in 0..STARTS {
            let chosen = directory.choose().unwrap();
            assert_eq!((chosen.version.to_string().as_str(), chosen.on_probation), ("1.1.0", true));
        }
        let back = directory.choose().unwrap();
        assert_eq!((back.version.to_string().as_str(), back.on_probation), ("1.0.0", false));
        assert!(back.given_up.is_some());
        let told = directory.standing(&back.release).rolled_back.unwrap();
        assert_eq!((told.update_id.as_deref(), told.version.as_str()), (Some("u-1.1.0"), "1.1.0"));
        directory.acknowledge(false);
        assert_eq!(directory.standing(&back.release).rolled_back, None);
        assert!(
            directory
                .install(&order("1.1.0", 3), usize::MAX)
                .unwrap_err()
                .contains("failed on this machine before")
        );
        directory.install(&order("1.2.0", 4), usize::MAX).unwrap();
        let next = directory.choose().unwrap();
        directory.confirm(&next.release);
        assert!(directory.is_good(&next.release) && directory.releases() <= 3);
    }

    #[test]
    fn wherever_an_installation_is_cut_off_something_starts() {
        let mut effects = 0;
        loop {
            let mut directory = directory();
            let is_whole = directory.install(&order("1.1.0", 2), effects).is_ok();
            assert!(directory.is_bootable(), "after {effects} effects");
            let chosen = directory.choose().unwrap();
            assert!(chosen.on_probation || chosen.version.to_string() == "1.0.0");
            if is_whole {
                assert!(chosen.on_probation);
                break;
            }
            effects += 1;
        }
        assert!(effects > 8, "{effects}");
    }
}
