//! SIGTERM and SIGINT, as bytes in a socket that a run loop can wait on.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};
use signal_hook::{SigId, flag};

/// The exit code of an operator who does not wait for a clean stop.
const IMPATIENT: i32 = 70;

/// The signals that ask the node to stop. The second of them ends the process at once, with exit code 70, whatever
/// its threads are doing.
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
        told.set_nonblocking(true)?;
        let mut signals = Self { told, registered: Vec::new() };
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the first signal finds the flag unset and sets it, the second finds it set.
            let ids = [
                flag::register_conditional_shutdown(signal, IMPATIENT, Arc::clone(&came))?,
                flag::register(signal, Arc::clone(&came))?,
                pipe::register(signal, teller.try_clone()?)?,
            ];
            signals.registered.extend(ids);
        }
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
