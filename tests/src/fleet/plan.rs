//! What happens to a fleet, all of it drawn from the seed before anything runs: the outages of the server and its
//! releases, which every node shares, and what befalls each node alone. So a node's day is a function of the seed and of
//! its number, and any node can be run again without the others.

use std::time::Duration;

use consensus_core::release::manifest::Manifest;

use super::Settings;

/// The last part of a run, in which nothing befalls anyone: whatever went wrong has to be well again at its end.
pub(super) const QUIET: Duration = Duration::from_secs(25 * 60);

/// Nodes start within this.
pub(super) const START_SPREAD: Duration = Duration::from_secs(60);

/// The platform of every node.
const PLATFORM: &str = "linux-x64";

const HOUR: u64 = 3600;

/// Numbers from a seed (splitmix64): fast, and no secrets depend on them.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// The dice of one purpose.
    pub(super) fn new(seed: u64, purpose: u64) -> Self {
        let mut dice = Self(seed);
        let first = dice.next();
        Self(first ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number under `bound`, 0 where that is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// A time from `least` up to `most`, in milliseconds.
    pub(super) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most.saturating_sub(least) + 1))
    }

    /// Whether something happens that does so `percent` times of a hundred.
    pub(super) fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// 32 bytes, to seed a core with.
    pub(super) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for place in bytes.chunks_exact_mut(8) {
            place.copy_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }

    /// How many times something happens within `length` that does so `tenths` tenths of a time a day.
    fn times(&mut self, tenths: u64, length: Duration) -> u64 {
        let day = 24 * HOUR * 10;
        let (whole, rest) = (tenths * length.as_secs() / day, tenths * length.as_secs() % day);
        whole + u64::from(self.below(day) < rest)
    }
}

/// The server is away: its sessions end, and nobody connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    pub(super) from: Duration,
    pub(super) until: Duration,
}

/// What a release is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    Good,
    /// Its process ends before it is connected.
    Crashes,
    /// It runs and does not connect.
    Mute,
    /// What is in its tarball is another release.
    Mislabelled,
}

/// A release that the server offers to more and more of its nodes.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) manifest: Manifest,
    pub(super) worth: Worth,
    /// From when on it is offered to how many nodes.
    pub(super) stages: Vec<(Duration, u32)>,
    /// When a bad one is not offered any more.
    pub(super) withdrawn: Option<Duration>,
    /// The place of each node in the order in which it is offered to them.
    order: Vec<u32>,
}

impl Release {
    /// From when on it is offered to that node.
    pub(super) fn offered_from(&self, node: u32) -> Option<Duration> {
        let place = *self.order.get(node as usize)?;
        self.stages.iter().find(|(_, nodes)| place < *nodes).map(|(from, _)| *from)
    }
}

/// What all nodes share.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) length: Duration,
    pub(super) outages: Vec<Outage>,
    pub(super) releases: Vec<Release>,
    /// The release that every node starts with.
    pub(super) first: Manifest,
}

/// What befalls one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its connection breaks, and both ends learn of it.
    Cut,
    /// The server loses it, and the node does not learn of it.
    ServerLoses,
    /// The node loses it, and the server does not learn of it.
    NodeLoses,
    /// Nothing passes for so long; what was sent meanwhile comes later.
    Stall(Duration),
    /// The process is killed, and started again after so long.
    Kill(Duration),
    /// The same with the whole machine: its connection ends without a word.
    PowerCut(Duration),
    /// The operator stops it in good order, and starts it again after so long.
    Stop(Duration),
    /// The unix clock is set so many seconds off.
    Clock(i64),
    /// A client comes with a request.
    Client,
}

/// Draws the particulars of a fault.
type Draw = fn(&mut Dice) -> Fault;

fn manifest(version: &str, number: u8) -> Manifest {
    Manifest {
        download_url: Some(format!("https://network.example/releases/{version}.tgz")),
        tarball_sha256: Some(format!("sha256:{}", format!("{number:02x}").repeat(32))),
        ..Manifest::of_this_release(version, "abc", PLATFORM)
    }
}

impl Plan {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut dice = Dice::new(settings.seed, 1);
        let length = Duration::from_secs(u64::from(settings.hours) * HOUR);
        let busy = length.saturating_sub(QUIET);
        let first = manifest("1.0.0", 0);
        let worths = [Worth::Good, Worth::Crashes, Worth::Good, Worth::Mute, Worth::Mislabelled, Worth::Good];
        // The last has a gap to itself, in which all of its nodes come to it.
        let gap = busy / (u32::try_from(worths.len()).unwrap_or(1) + 1);
        let nodes = settings.nodes;
        let share = |percent: u32| (u64::from(nodes) * u64::from(percent)).div_ceil(100) as u32;
        let releases = (1_u8..).zip(worths).map(|(number, worth)| {
            let from = gap * u32::from(number - 1) + gap / 4;
            let mut stages = vec![(from, share(1)), (from + gap / 4, share(10))];
            let last = from + gap / 2;
            let is_good = worth == Worth::Good;
            if is_good {
                stages.push((last, nodes));
            }
            let mut order: Vec<u32> = (0..nodes).collect();
            for place in (1..order.len()).rev() {
                order.swap(place, dice.below(place as u64 + 1) as usize);
            }
            let manifest = manifest(&format!("1.{number}.0"), number);
            Release { manifest, worth, stages, withdrawn: (!is_good).then_some(last), order }
        });
        let releases = releases.collect();
        // One that is over before anybody comes back, one of a minute, one of half an hour at the most.
        let outages = [(1, 1), (20_000, 90_000), (300_000, 1_800_000)];
        let part = busy / (outages.len() as u32 + 1);
        let outages = (1_u32..).zip(outages).map(|(number, (least, most))| {
            let from = part * number + dice.millis(0, u64::try_from(part.as_millis() / 4).unwrap_or(0));
            let most = most.min(u64::try_from(part.as_millis() / 3).unwrap_or(0)).max(1);
            Outage { from, until: from + dice.millis(least.min(most), most) }
        });
        let outages = outages.collect();
        Self { settings: settings.clone(), length, outages, releases, first }
    }

    /// The dice of one node.
    pub(super) fn dice(&self, node: u32) -> Dice {
        Dice::new(self.settings.seed, 1000 + u64::from(node))
    }

    /// What befalls one node, and when; in no order.
    pub(super) fn faults(&self, dice: &mut Dice) -> Vec<(Duration, Fault)> {
        let busy = self.length.saturating_sub(QUIET);
        let mut faults = Vec::new();
        let restart = |dice: &mut Dice, at: Duration, faults: &mut Vec<(Duration, Fault)>| {
            let down = dice.millis(200, 20_000);
            let fault = match dice.below(5) {
                0 | 1 => Fault::Stop(down),
                2 | 3 => Fault::Kill(down),
                _ => Fault::PowerCut(down),
            };
            faults.push((at, fault));
            // Tickets that were spent shortly before are what a restart must not forget.
            if dice.happens(60) {
                faults.push((at.saturating_sub(dice.millis(100, 30_000)), Fault::Client));
            }
        };
        let at = |dice: &mut Dice| START_SPREAD + dice.millis(0, busy.as_millis() as u64);
        let simple: [(u64, Draw); 4] = [
            (30, |_| Fault::Cut),
            (10, |_| Fault::ServerLoses),
            (10, |_| Fault::NodeLoses),
            (20, |dice| Fault::Stall(dice.millis(500, 90_000))),
        ];
        for (tenths, fault) in simple {
            for _ in 0..dice.times(tenths, busy) {
                let at = at(dice);
                faults.push((at, fault(dice)));
            }
        }
        for _ in 0..dice.times(15, busy) {
            let at = at(dice);
            restart(dice, at, &mut faults);
        }
        for _ in 0..dice.times(15, busy) {
            let at = at(dice);
            let size = [3, 20, 70, 130, 3600][dice.below(5) as usize];
            let size = if dice.happens(50) { size } else { -size };
            faults.push((at, Fault::Clock(size)));
            let mut right = at + dice.millis(1000, 600_000);
            // A clock is often set by what starts a machine, and just as often found wrong then.
            if dice.happens(60) {
                let then = at + dice.millis(0, 30_000);
                restart(dice, then, &mut faults);
                right = at + dice.millis(0, 60_000);
            }
            faults.push((right, Fault::Clock(0)));
        }
        faults.retain(|(at, _)| *at < busy);
        // The clock is right in the quiet at the end.
        faults.push((busy, Fault::Clock(0)));
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: u32, hours: u32) -> Plan {
        Plan::new(&Settings { nodes, hours, seed: 5, ..Settings::default() })
    }

    #[test]
    fn a_release_goes_to_one_then_ten_then_all_of_a_hundred_and_a_bad_one_no_further_than_ten() {
        let plan = plan(200, 24);
        for release in &plan.releases {
            let by = |at: Duration| {
                (0..200).filter(|node| release.offered_from(*node).is_some_and(|from| from <= at)).count()
            };
            let counts: Vec<_> = release.stages.iter().map(|(from, _)| by(*from)).collect();
            match release.worth {
                Worth::Good => assert_eq!(counts, [2, 20, 200]),
                _ => assert_eq!((counts, by(plan.length)), (vec![2, 20], 20)),
            }
            assert_eq!(by(release.stages[0].0 - Duration::from_millis(1)), 0);
        }
        assert_eq!(plan.releases.last().unwrap().worth, Worth::Good);
    }

    #[test]
    fn whatever_the_length_everything_happens_before_the_quiet() {
        for hours in [2, 6, 24] {
            let plan = plan(1, hours);
            let busy = plan.length - QUIET;
            assert!(plan.outages.windows(2).all(|pair| pair[0].until < pair[1].from));
            assert!(plan.outages.iter().all(|outage| outage.from < outage.until && outage.until < busy));
            let stages = plan.releases.iter().flat_map(|release| &release.stages);
            assert!(stages.into_iter().all(|(from, _)| *from < busy));
            assert!(plan.faults(&mut plan.dice(0)).iter().all(|(at, _)| *at <= busy));
        }
    }

    #[test]
    fn two_nodes_have_days_of_their_own_and_each_the_same_one_again() {
        let plan = plan(2, 24);
        let faults = |node| plan.faults(&mut plan.dice(node));
        assert_eq!(faults(0), faults(0));
        assert_ne!(faults(0), faults(1));
        assert!(faults(0).len() > 5);
    }
}
