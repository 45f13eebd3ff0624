//! SIGTERM and SIGINT, as bytes in a socket that a run loop can wait on.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{exit, pipe, unregister};

/// The exit code of an operator who does not wait for a clean stop.
const IMPATIENT: i32 = 70;

/// One wish to stop may come as several signals: whoever tells a whole group of processes tells `run-node.sh` too, which
/// passes it on, and `timeout` tells both its child and the group. What comes so soon after the first is the same wish.
const SAME_WISH: Duration = Duration::from_millis(500);

/// Room for what a thread needs that waits for a byte.
const STACK: usize = 64 * 1024;

/// The signals that ask the node to stop. Where it is asked again, and not in the same breath, the process ends at once,
/// with exit code 70, whatever its threads are doing.
#[derive(Debug)]
pub struct Signals {
    told: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Begins to watch; ends with the value.
    ///
    /// # Errors
    /// What the system says; one line.
    pub fn watch() -> Result<Self, String> {
        Self::try_watch().map_err(|error| format!("cannot watch for signals: {error}"))
    }

    fn try_watch() -> io::Result<Self> {
        let (told, teller) = UnixStream::pair()?;
        let (counted, counter) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        let mut signals = Self { told, registered: Vec::new() };
        for signal in [SIGTERM, SIGINT] {
            for end in [&teller, &counter] {
                signals.registered.push(pipe::register(signal, end.try_clone()?)?);
            }
        }
        // Ends when no signal can write any more.
        let watcher = thread::Builder::new().name("signals".to_string()).stack_size(STACK);
        watcher.spawn(move || {
            if is_asked_again(counted, Instant::now) {
                exit(IMPATIENT);
            }
        })?;
        Ok(signals)
    }

    /// Takes the word that a signal came.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when none did.
    pub fn take(&self) -> io::Result<()> {
        (&self.told).read(&mut [0; 8]).map(|_| ())
    }
}

/// Reads a byte for each signal; true at the second wish to stop, false where there are no more signals.
fn is_asked_again(mut signals: impl io::Read, mut now: impl FnMut() -> Instant) -> bool {
    let mut first: Option<Instant> = None;
    while signals.read_exact(&mut [0]).is_ok() {
        let now = now();
        if now.duration_since(*first.get_or_insert(now)) > SAME_WISH {
            return true;
        }
    }
    false
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_signals_in_one_breath_are_one_wish_and_a_later_one_is_another() {
        let start = Instant::now();
        for (after, again) in [
            (&[][..], false),
            (&[0], false),
            (&[0, 0, 3, 500], false),
            (&[0, 501], true),
            (&[0, 0, 400, 600], true),
            (&[0, 60_000], true),
        ] {
            let mut times = after.iter().map(|millis| start + Duration::from_millis(*millis));
            let asked = is_asked_again(&vec![0; after.len()][..], || times.next().unwrap());
            assert_eq!(asked, again, "{after:?}");
        }
    }
}
