//! The composite workload for a minute, in windows (protocol.md section 5): whether the machine keeps its speed, and
//! whether it has a processor of its own.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use super::Step;
use super::composite::{Exchange, HEADLINE, ratio};
use super::report::{self, Report, Window};
use crate::crypto::{Crypto, Drbg};
use crate::eval::verdict::MIN_THROTTLE_RATIO;

/// After so many requests during which no time passed, the clock is taken to stand still.
const MAX_TIMELESS: u32 = 10_000;

/// What both clocks say.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    wall: Duration,
    cpu: Duration,
}

/// `benchmark_sustained`.
pub(super) struct Sustained<C: Crypto> {
    exchange: Exchange<C>,
    duration: Duration,
    window: Duration,
    /// The first reading, and the last.
    clocks: Option<(Clocks, Clocks)>,
    timeless: u32,
    wants_clocks: bool,
    /// Of the last part: whether it ended a request, and whether its time is the node's.
    ran: (bool, bool),
    /// The window under way: its begin since the first reading, its requests, and the node's time for them.
    begin: Duration,
    requests: u64,
    node: Duration,
    windows: Vec<Window>,
    total_requests: u64,
    done: bool,
}

impl<C: Crypto> Sustained<C> {
    /// # Errors
    /// As [`Exchange::new`].
    pub(super) fn new(duration_ms: u32, window_ms: u32, crypto: C, rng: Drbg) -> Result<Self, String> {
        Ok(Self {
            exchange: Exchange::new(HEADLINE, crypto, rng)?,
            duration: Duration::from_millis(duration_ms.into()),
            window: Duration::from_millis(window_ms.max(1).into()),
            clocks: None,
            timeless: 0,
            wants_clocks: true,
            ran: (false, false),
            begin: Duration::ZERO,
            requests: 0,
            node: Duration::ZERO,
            windows: Vec::new(),
            total_requests: 0,
            done: false,
        })
    }

    pub(super) fn step(&self) -> Step {
        if self.done {
            Step::Done(Box::new(Report::Sustained(self.report())))
        } else if self.wants_clocks {
            Step::Clocks
        } else {
            Step::Run
        }
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        if !self.done && !self.wants_clocks {
            let is_node = self.exchange.stage().is_some();
            self.ran = (self.exchange.advance()?, is_node);
        }
        Ok(())
    }

    pub(super) fn timed(&mut self, elapsed: Duration) {
        let (was_last, is_node) = mem::take(&mut self.ran);
        if is_node {
            self.node = self.node.saturating_add(elapsed);
        }
        if was_last {
            self.requests += 1;
            self.total_requests += 1;
            self.wants_clocks = true;
        }
    }

    pub(super) fn clocked(&mut self, wall: Duration, cpu: Duration) {
        if self.done || !self.wants_clocks {
            return;
        }
        self.wants_clocks = false;
        let now = Clocks { wall, cpu };
        let Some((first, last)) = &mut self.clocks else {
            self.clocks = Some((now, now));
            return;
        };
        self.timeless = if wall > last.wall { 0 } else { self.timeless + 1 };
        *last = now;
        let since = wall.saturating_sub(first.wall);
        if since >= self.boundary() {
            self.end_window(since);
        }
        self.done = since >= self.duration || self.timeless >= MAX_TIMELESS;
    }

    /// When the window under way is whole. All of them end on one grid, so that there are as many as fit in the
    /// duration, whatever a request takes.
    fn boundary(&self) -> Duration {
        let window = self.window.as_nanos().max(1);
        let end = (self.begin.as_nanos() / window + 1).saturating_mul(window);
        u64::try_from(end).map_or(Duration::MAX, Duration::from_nanos)
    }

    fn end_window(&mut self, since: Duration) {
        let length = since.saturating_sub(self.begin).as_secs_f64();
        self.windows.push(Window {
            start_ms: u64::try_from(self.begin.as_millis()).unwrap_or(u64::MAX),
            requests: self.requests,
            rps: ratio(self.requests as f64, length),
            node_rps: ratio(self.requests as f64, self.node.as_secs_f64()),
        });
        self.begin = since;
        self.requests = 0;
        self.node = Duration::ZERO;
    }

    pub(super) fn windows(&self) -> &[Window] {
        &self.windows
    }

    pub(super) fn progress(&self) -> f32 {
        if self.done {
            return 1.0;
        }
        let since = self.clocks.map_or(0.0, |(first, last)| {
            last.wall.saturating_sub(first.wall).as_secs_f64() / self.duration.as_secs_f64().max(1e-9)
        });
        (since as f32).clamp(0.0, 1.0)
    }

    fn report(&self) -> report::Sustained {
        let rates: Vec<f64> = self.windows.iter().map(|window| window.node_rps).collect();
        let mean = |rates: &[f64]| ratio(rates.iter().sum(), rates.len() as f64);
        let node_rps_early = mean(rates.get(..2).unwrap_or(&rates));
        let node_rps_late = mean(rates.get(rates.len().saturating_sub(2)..).unwrap_or(&rates));
        let throttle_ratio = ratio(node_rps_late, node_rps_early);
        let (wall, cpu) = self.clocks.map_or_else(Default::default, |(first, last)| {
            (last.wall.saturating_sub(first.wall), last.cpu.saturating_sub(first.cpu))
        });
        let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
        report::Sustained {
            response_size_bytes: HEADLINE as u64,
            duration_ms: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            window_ms: u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX),
            total_requests: self.total_requests,
            node_rps_mean: mean(&rates),
            node_rps_early,
            node_rps_late,
            node_rps_min_window: if rates.is_empty() { 0.0 } else { slowest },
            node_rps_max_window: rates.iter().copied().fold(0.0, f64::max),
            throttle_ratio,
            cpu_time_ratio: ratio(cpu.as_secs_f64(), wall.as_secs_f64()),
            steady: throttle_ratio >= MIN_THROTTLE_RATIO,
            windows: self.windows.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;

    /// A machine whose every request takes the node `node(ms)` and its client 1 ms, and that gives the process
    /// `share` of a processor.
    fn drive(duration_ms: u32, window_ms: u32, node: impl Fn(u64) -> u64, share: f64) -> report::Sustained {
        let mut job = Sustained::new(duration_ms, window_ms, Pure, Drbg::new([2; 32])).unwrap();
        let mut wall = Duration::from_secs(77);
        let mut last = job.progress();
        loop {
            match job.step() {
                Step::Clocks => job.clocked(wall, wall.mul_f64(share)),
                Step::Run => {
                    // Which part it is does not matter: the first of the client's takes time, and of the node's.
                    let stage = job.exchange.stage();
                    job.run().unwrap();
                    let elapsed = match stage {
                        None if job.exchange.stage() == Some(super::super::composite::Stage::Handshake) => {
                            Duration::from_millis(1)
                        }
                        Some(super::super::composite::Stage::Handshake) => {
                            Duration::from_millis(node((wall.as_millis() - 77_000) as u64))
                        }
                        _ => Duration::ZERO,
                    };
                    wall += elapsed;
                    job.timed(elapsed);
                }
                Step::Done(report) => {
                    let Report::Sustained(report) = *report else { unreachable!() };
                    return report;
                }
                step => unreachable!("{step:?}"),
            }
            assert!(job.progress() >= last);
            last = job.progress();
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-9
    }

    #[test]
    fn windows_are_whole_and_the_last_one_is_dropped_where_it_is_not() {
        // A request is over every 10 ms, so each window ends on time; 7 ms do not divide 100.
        let even = drive(500, 100, |_| 9, 1.0);
        assert_eq!(even.windows.iter().map(|w| w.start_ms).collect::<Vec<_>>(), [0, 100, 200, 300, 400]);
        assert!(even.windows.iter().all(|w| w.requests == 10 && close(w.rps, 100.0)), "{even:?}");
        assert!(even.windows.iter().all(|w| close(w.node_rps, 1000.0 / 9.0)), "{even:?}");
        assert_eq!((even.total_requests, even.duration_ms, even.window_ms), (50, 500, 100));
        let odd = drive(500, 100, |_| 6, 1.0);
        assert_eq!(odd.windows.iter().map(|w| w.start_ms).collect::<Vec<_>>(), [0, 105, 203, 301, 406]);
        assert_eq!(odd.windows.iter().map(|w| w.requests).collect::<Vec<_>>(), [15, 14, 14, 15, 14]);
        let cut = drive(450, 100, |_| 9, 1.0);
        assert_eq!((cut.windows.len(), cut.total_requests), (4, 45));
    }

    #[test]
    fn a_machine_that_slows_down_is_not_steady() {
        let slowing = drive(600, 100, |ms| if ms < 300 { 4 } else { 9 }, 0.5);
        assert!(
            close(slowing.node_rps_early, 250.0) && close(slowing.node_rps_late, 1000.0 / 9.0),
            "{slowing:?}"
        );
        assert!(close(slowing.throttle_ratio, 4.0 / 9.0) && !slowing.steady);
        assert!(
            close(slowing.node_rps_max_window, 250.0) && close(slowing.node_rps_min_window, 1000.0 / 9.0)
        );
        assert!(close(slowing.node_rps_mean, (3.0 * 250.0 + 3.0 * 1000.0 / 9.0) / 6.0), "{slowing:?}");
        assert!(close(slowing.cpu_time_ratio, 0.5));
        let steady = drive(600, 100, |ms| if ms < 300 { 9 } else { 10 }, 0.95);
        assert!(steady.steady && steady.throttle_ratio < 1.0);
    }

    #[test]
    fn a_clock_that_stands_still_ends_it_with_nothing_measured() {
        let mut job = Sustained::new(100, 100, Pure, Drbg::new([2; 32])).unwrap();
        for reading in 0.. {
            job.wants_clocks = true;
            job.clocked(Duration::from_secs(1), Duration::ZERO);
            assert!(reading <= MAX_TIMELESS);
            if let Step::Done(report) = job.step() {
                let text = serde_json::to_string(&report.to_json()).unwrap();
                assert!(!text.contains("null"), "a number that is not finite: {text}");
                return;
            }
        }
    }
}
