//! SIGTERM and SIGINT, as bytes in a socket.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};

/// The exit code of an operator who does not wait for a clean stop.
const IMPATIENT: i32 = 70;

/// The signals that ask the node to stop.
pub(super) struct Signals {
    told: UnixStream,
    registered: Vec<SigId>,
    came: bool,
}

impl Signals {
    pub(super) fn watch() -> io::Result<Self> {
        let (told, teller) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        let mut signals = Self { told, registered: Vec::new(), came: false };
        for signal in [SIGTERM, SIGINT] {
            signals.registered.push(pipe::register(signal, teller.try_clone()?)?);
        }
        Ok(signals)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// Whether a signal came. The second one ends the process: whoever sends it does not want to wait.
    pub(super) fn take(&mut self) -> bool {
        let count = (&self.told).read(&mut [0; 8]).unwrap_or_default();
        if count > 1 || (count > 0 && self.came) {
            std::process::exit(IMPATIENT);
        }
        self.came |= count > 0;
        count > 0
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}
