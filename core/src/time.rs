//! Time as the core sees it: handed in with every input, never read.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// The two clocks of one instant, read together by the shell.
///
/// Deadlines use the monotonic clock, which never jumps. What goes on the wire, or is compared with what a
/// peer sent, uses the unix clock, which an operator or NTP may set at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Since any fixed point, the same one for the life of the process.
    pub monotonic: Duration,
    /// Since 1970-01-01T00:00:00Z.
    pub unix: Duration,
}

impl Now {
    /// Whole unix seconds: the unit of every timestamp on the wire (protocol.md, notation).
    #[must_use]
    pub const fn unix_seconds(self) -> u64 {
        self.unix.as_secs()
    }

    /// The deadline `after` from now.
    #[must_use]
    pub fn deadline(self, after: Duration, reason: Reason) -> Deadline {
        Deadline { at: self.monotonic.saturating_add(after), reason }
    }
}

/// A monotonic instant at which the node wants to be called, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Compare with [`Now::monotonic`].
    pub at: Duration,
    /// Why; for logs, traces and tests.
    pub reason: Reason,
}

impl Deadline {
    /// Whether the deadline has come.
    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        now.monotonic >= self.at
    }

    /// The earlier of two deadlines; on a tie the first.
    #[must_use]
    pub fn earlier(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

/// What a [`Deadline`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Open the tunnel again after a failure (protocol.md section 9, reconnect).
    Reconnect,
    /// The transport must be open by then.
    Open,
    /// The handshake must be answered by then.
    Handshake,
    /// `ready` must have come by then.
    Ready,
    /// Send a ping frame.
    Ping,
    /// The peer has been silent too long.
    Silence,
    /// Send a heartbeat.
    Heartbeat,
    /// An eval action must be answered by then (protocol.md section 5, timeouts).
    EvalAction,
    /// The server should have sent the next eval action or `join_ready` by then.
    EvalIdle,
    /// A proxied request must be answered by then (protocol.md section 9).
    ProxyRequest,
    /// A data-plane client must take its next step by then.
    DataPlaneStep,
    /// A request to the local API must be answered by then.
    LocalRequest,
    /// A release must be prepared by then.
    UpdatePrepare,
    /// A release is not installed before.
    UpdatePause,
    /// A release is installed then, whatever runs.
    UpdateDrain,
    /// A release must be installed by then.
    UpdateInstall,
    /// What a clean stop writes must be on the disk by then.
    Stop,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reconnect => "reconnect",
            Self::Open => "open the tunnel",
            Self::Handshake => "handshake answer",
            Self::Ready => "ready",
            Self::Ping => "ping",
            Self::Silence => "silent peer",
            Self::Heartbeat => "heartbeat",
            Self::EvalAction => "eval action",
            Self::EvalIdle => "next eval action",
            Self::ProxyRequest => "proxied request",
            Self::DataPlaneStep => "data-plane step",
            Self::LocalRequest => "local request",
            Self::UpdatePrepare => "update prepared",
            Self::UpdatePause => "wait before an update",
            Self::UpdateDrain => "drained for an update",
            Self::UpdateInstall => "update installed",
            Self::Stop => "stop",
        })
    }
}

/// A unix time as ISO 8601 with milliseconds, in UTC: `2026-11-23T22:00:00.000Z`. Past the year 9999 it stays there.
#[must_use]
pub fn iso8601(unix: Duration) -> String {
    const LAST: u64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let (seconds, millis) =
        if unix.as_secs() > LAST { (LAST, 999) } else { (unix.as_secs(), unix.subsec_millis()) };
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that a leap day is the last of its year; 400 years are one cycle.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = cycle * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The unix seconds of an ISO 8601 time in UTC, as [`iso8601`] writes it, with or without a fraction. `None` for any
/// other form.
#[must_use]
pub fn unix_of_iso8601(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (text, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if text.len() != 19 || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let is_apart = [(4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":")];
    if is_apart.iter().any(|(at, sign)| text.get(*at..at + 1) != Some(*sign)) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // As above, the other way: years begin with March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some(days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_795_391_521, "2026-11-22T23:52:01.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(iso8601(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(iso8601(Duration::from_millis(1)), "1970-01-01T00:00:00.001Z");
    }

    #[test]
    fn a_date_is_read_as_it_is_written_and_nothing_else_is() {
        for seconds in
            [0, 951_782_399, 951_782_400, 951_868_800, 1_795_391_521, 4_107_542_400, 253_402_300_799]
        {
            let text = iso8601(Duration::from_secs(seconds));
            assert_eq!(unix_of_iso8601(&text), Some(seconds), "{text}");
            assert_eq!(unix_of_iso8601(&text.replace(".000", "")), Some(seconds), "{text}");
        }
        for text in [
            "",
            "Z",
            "2026-11-22",
            "2026-11-22T23:52:01",
            "2026-11-22T23:52:01+01:00",
            "2026-11-22 23:52:01Z",
            "2026-13-22T23:52:01Z",
            "2026-11-22T24:52:01Z",
            "2026-11-00T23:52:01Z",
            "+026-11-22T23:52:01Z",
            "0000-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-22T23:52:01.Z",
            "2026-11-22T23:52:\u{e9}Z",
        ] {
            assert_eq!(unix_of_iso8601(text), None, "{text}");
        }
    }

    #[test]
    fn the_earlier_deadline_wins() {
        let at = |seconds| Some(Deadline { at: Duration::from_secs(seconds), reason: Reason::Ping });
        assert_eq!(Deadline::earlier(at(2), at(1)), at(1));
        assert_eq!(Deadline::earlier(at(2), None), at(2));
        assert_eq!(Deadline::earlier(None, None), None);
    }
}
