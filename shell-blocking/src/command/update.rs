//! `update`: which release the network requires, and how to have its tarball.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::guard::Target;
use consensus_core::io::{Finish, Outcome};
use consensus_core::release::artifact::{Artifact, acceptable};
use consensus_core::release::latest;
use consensus_core::release::manifest::{Manifest, differences};
use consensus_core::text::printable;
use consensus_core::wire::hex;

use super::{Failure, Setup, Surroundings, version};
use crate::download::{Download, DownloadError, Downloaded, Patience, Progress, download};
use crate::log::Log;
use crate::runtime_api::{Environment, Provider, Runtime};
use crate::settings::{Network, Sources};
use crate::system;

/// The columns of a bar; with its figures the line stays under 80.
const BAR: u64 = 32;

/// How often the bar is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// Lines for a download where nothing can be written over: one for each tenth, or each so many bytes.
const LINE_EVERY: u64 = 8 * 1024 * 1024;

pub(super) fn run<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    surroundings: &mut Surroundings<'_>,
) -> Result<u8, Failure> {
    let (network, keys) = (sources.network()?, sources.release_keys()?);
    let state_dir = setup.state_dir();
    let running = version::manifest(sources, &state_dir)?;
    let environment = setup.environment(&state_dir)?;
    setup.warn(&network.warnings);
    let Some(required) = ask(runtime, &environment, &network)? else {
        return Ok(setup.finish(&done("the network requires no certain release".to_string())));
    };
    // First of all: what is not signed has no say, not even that all is well.
    let now = system::now();
    let name = printable(&required.version);
    let not_taken = |why: &dyn std::fmt::Display| {
        Failure::new(Outcome::Refused, format!("the required release, {name}, is not taken: {why}"))
    };
    keys.check(&Provider::default(), &required, now).map_err(|error| not_taken(&error))?;
    let found = differences(&required, &running);
    if found.is_empty() {
        return Ok(setup.finish(&done(format!("this is the required release, {name}"))));
    }
    let mut text = String::new();
    for difference in &found {
        // Writing into memory does not fail.
        let _ = writeln!(text, "{difference}");
    }
    if super::print(surroundings.stdout, &text) != 0 {
        return Err(Failure::internal("standard output takes nothing".to_string()));
    }
    let allow_older = sources.options.contains_key("--allow-older");
    let judged = acceptable(&Provider::default(), &keys, &required, &running, allow_older, now)
        .and_then(|_| Artifact::of(&required));
    if !sources.options.contains_key("--download") {
        let next = match judged {
            Ok(_) => format!("next: {} update --download", R::PROGRAM),
            Err(why) => format!("it would not be taken: {why}"),
        };
        let message = format!("the network requires another release, {name}; {next}");
        return Err(Failure::new(Outcome::Outdated, message));
    }
    let request = Download {
        artifact: judged.map_err(|why| not_taken(&why))?,
        state_dir: setup.open_state_dir()?,
        server: Target::parse(network.server.base()).ok(),
        allow_private: sources.allow_private_targets(),
        tls: environment.tls,
        proxies: environment.proxies,
        patience: Patience::default(),
    };
    let fetched = fetch(&request, &setup.log, surroundings, &Arc::default());
    let fetched = fetched.map_err(|error| Failure::new(error.outcome(), error.to_string()))?;
    super::print(surroundings.stdout, &format!("{}\n", fetched.path.display()));
    Ok(setup.finish(&done(told(R::PROGRAM, &name, &fetched))))
}

fn done(message: String) -> Finish {
    Finish { outcome: Outcome::Done, message }
}

fn told(program: &str, name: &str, fetched: &Downloaded) -> String {
    let already = match fetched.resumed_from {
        0 => String::new(),
        all if all == fetched.size => ", it was there already".to_string(),
        part => format!(", {} of it were there already", bytes(part)),
    };
    format!(
        "release {name} is downloaded and verified ({}{already}); next: {program} install {} --version {name} --sha256 {}",
        bytes(fetched.size),
        fetched.path.display(),
        hex::encode(&fetched.sha256)
    )
}

pub(super) fn ask<R: Runtime>(
    runtime: &R,
    environment: &Environment,
    network: &Network,
) -> Result<Option<Manifest>, Failure> {
    let request = latest::request(network.server.base())
        .map_err(|refused| Failure::internal(format!("the server URL: {refused}")))?;
    let response = runtime.fetch(environment, &request).map_err(|error| {
        let detail = printable(&error.detail);
        Failure::new(Outcome::Unreachable, format!("the network cannot be reached: {detail}"))
    })?;
    latest::read(&response).map_err(Failure::Finish)
}

/// Fetches a tarball, and shows how far that is; `cancelled` ends it.
pub(super) fn fetch(
    request: &Download,
    log: &Log,
    surroundings: &mut Surroundings<'_>,
    cancelled: &Arc<AtomicBool>,
) -> Result<Downloaded, DownloadError> {
    let (mut lines, mut bar) = (Lines::default(), Bar::default());
    let mut tell = |progress: Progress| {
        log.downloaded(progress.received, progress.total);
        if surroundings.is_terminal {
            bar.draw(progress, surroundings.stderr);
        } else {
            lines.tell(progress, log);
        }
    };
    let result = download(request, &mut tell, cancelled);
    bar.end(surroundings.stderr);
    result
}

/// A line that is written over.
#[derive(Default)]
struct Bar {
    drawn: Option<(Instant, Progress)>,
}

impl Bar {
    fn draw(&mut self, progress: Progress, out: &mut dyn Write) {
        let is_all = progress.total == Some(progress.received);
        if !is_all && self.drawn.is_some_and(|(at, _)| at.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some((Instant::now(), progress));
        // A terminal that takes nothing is no reason to stop.
        let _ = write!(out, "\r\x1b[K{}", bar(progress));
        let _ = out.flush();
    }

    fn end(&self, out: &mut dyn Write) {
        if self.drawn.is_some() {
            let _ = writeln!(out);
        }
    }
}

fn bar(progress: Progress) -> String {
    let received = bytes(progress.received);
    let Some(total) = progress.total.filter(|total| *total > 0) else {
        return format!("{received} downloaded");
    };
    let filled = (progress.received.saturating_mul(BAR) / total).min(BAR);
    let percent = (progress.received.saturating_mul(100) / total).min(100);
    let (done, left) = ("#".repeat(filled as usize), ".".repeat((BAR - filled) as usize));
    format!("[{done}{left}] {percent:>3} %  {received} of {}", bytes(total))
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

/// A line now and then.
#[derive(Default)]
struct Lines {
    told: Option<u64>,
}

impl Lines {
    fn tell(&mut self, progress: Progress, log: &Log) {
        let received = progress.received;
        let step = progress.total.map_or(LINE_EVERY, |total| total / 10).max(1);
        let is_due = self.told.is_none_or(|told| received / step > told / step || received < told);
        if is_due {
            self.told = Some(received);
            let text = progress.total.map_or_else(
                || format!("{} downloaded", bytes(received)),
                |total| format!("{} of {} downloaded", bytes(received), bytes(total)),
            );
            let members = [("received", received.into()), ("total", progress.total.into())];
            log.note(Level::Info, "update", "download", &text, &members);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fits_its_line_and_says_how_far_it_is() {
        let at = |received, total| bar(Progress { received, total });
        assert_eq!(at(0, Some(1 << 20)), format!("[{}]   0 %  0 B of 1.0 MiB", ".".repeat(32)));
        assert_eq!(
            at(1 << 19, Some(1 << 20)),
            format!("[{}{}]  50 %  512.0 KiB of 1.0 MiB", "#".repeat(16), ".".repeat(16))
        );
        assert!(at(u64::MAX, Some(1)).len() < 80);
        assert_eq!(at(5, None), "5 B downloaded");
        assert_eq!(at(0, Some(0)), "0 B downloaded");
    }
}
