//! What goes wrong.

use std::fmt;

use consensus_core::crypto::Drbg;

/// The longest that a process is let live after the update began, in thousandths of the time that an update takes.
const LATEST_KILL: u64 = 1200;

/// One thing that goes wrong in one update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// SIGKILL, after so many thousandths of the time that an update takes.
    Kill(Victim, u64),
    /// So many bytes are left on the disk.
    FullDisk(u64),
    /// The connection is cut after so many thousandths of the artifact.
    Cut(u64),
    /// One byte of the artifact, so many thousandths on, is another one.
    Corrupt(u64),
    /// Nothing comes after so many thousandths; the prepare of another release takes the place of the first.
    Stall(u64),
    /// The release itself does not work.
    Bad(Defect),
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// The node alone: its wrapper goes on.
    Node,
    /// The wrapper alone: the supervisor ends what it left and starts it again.
    Wrapper,
    /// The wrapper alone, and the supervisor leaves what it left: the next wrapper finds a node that still runs.
    Keeper,
    /// Both at once, as when the power fails.
    Both,
}

/// What is wrong with a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// It ends at once.
    Crashes,
    /// It does nothing.
    Hangs,
    /// It runs, and connects to where nobody is.
    Lost,
    /// It is for another machine.
    Foreign,
}

impl Fault {
    /// The next one.
    pub(super) fn draw(rng: &mut Drbg) -> Self {
        let permille = |rng: &mut Drbg| rng.below(1000);
        match rng.below(16) {
            0 | 1 => Self::None,
            kind @ 2..=7 => {
                let victims =
                    [Victim::Node, Victim::Wrapper, Victim::Both, Victim::Keeper, Victim::Node, Victim::Both];
                let victim = victims[usize::try_from(kind - 2).unwrap_or(0)];
                Self::Kill(victim, rng.below(LATEST_KILL))
            }
            8 | 9 => Self::FullDisk(permille(rng) * 8 * 1024),
            10 => Self::Cut(permille(rng)),
            11 => Self::Corrupt(permille(rng)),
            12 => Self::Stall(permille(rng)),
            13 => Self::Bad(Defect::Crashes),
            14 => Self::Bad(if rng.below(2) == 0 { Defect::Hangs } else { Defect::Lost }),
            _ => Self::Bad(Defect::Foreign),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Kill(Victim::Node, _) => "node killed",
            Self::Kill(Victim::Wrapper, _) => "wrapper killed",
            Self::Kill(Victim::Keeper, _) => "wrapper killed, node left",
            Self::Kill(Victim::Both, _) => "node and wrapper killed",
            Self::FullDisk(_) => "disk full",
            Self::Cut(_) => "download cut",
            Self::Corrupt(_) => "download corrupted",
            Self::Stall(_) => "download stalled",
            Self::Bad(Defect::Crashes) => "release crashes",
            Self::Bad(Defect::Hangs) => "release hangs",
            Self::Bad(Defect::Lost) => "release cannot connect",
            Self::Bad(Defect::Foreign) => "release of another machine",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FullDisk(left) => write!(f, "disk full but for {} KiB", left / 1024),
            Self::Kill(_, at) | Self::Cut(at) | Self::Corrupt(at) | Self::Stall(at) => {
                write!(f, "{} at {}.{} %", self.name(), at / 10, at % 10)
            }
            _ => f.write_str(self.name()),
        }
    }
}
