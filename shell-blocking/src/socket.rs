//! A TCP connection to a target as both shells carry it out: what is unsent, what may be read, and how it is left in good
//! order. Nothing here blocks; whoever owns the connection waits for it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use consensus_core::io::SocketEnd;

/// How long what is unsent, and the target's own end, may take after [`Traffic::leave`].
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections being left at once. Each may hold what is unsent; over it one is closed as it is.
pub const MAX_LEAVING: usize = 256;

/// Read at once, however much is asked for.
const MAX_READ: usize = 64 * 1024;

/// Read over at once of a connection that is being left.
const DRAIN: usize = 64 * 1024;

/// Pieces given to the system in one write.
const SLICES: usize = 64;

/// The traffic of one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    unsent: VecDeque<Vec<u8>>,
    /// Of the first of them.
    written: usize,
    wanted: Option<usize>,
    /// Writing failed. What the target had said before counts, so the end is told where reading comes to it.
    broken: Option<String>,
    leaving: Option<Leaving>,
}

#[derive(Debug)]
struct Leaving {
    until: Instant,
    /// Whether the target has been told that nothing more comes.
    has_told: bool,
    /// Whether the target has said so.
    was_told: bool,
}

impl Traffic {
    /// Queues bytes, after those that were queued before.
    pub fn send(&mut self, data: Vec<u8>) {
        if !data.is_empty() {
            self.unsent.push_back(data);
        }
    }

    /// Allows one read of at most `most` bytes.
    pub fn want(&mut self, most: usize) {
        self.wanted = Some(most.clamp(1, MAX_READ));
    }

    /// Whether to wait until there is something to read.
    #[must_use]
    pub fn wants_to_read(&self) -> bool {
        self.wanted.is_some() || self.leaving.as_ref().is_some_and(|leaving| !leaving.was_told)
    }

    /// Whether to wait until the system takes more.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Writes what the system takes; gives the number of bytes that are unsent no more.
    pub fn write(&mut self, stream: &TcpStream) -> usize {
        let mut gone = 0;
        while !self.unsent.is_empty() && self.broken.is_none() {
            match self.write_once(stream) {
                Ok(0) => self.broken = Some("the target takes nothing more".to_owned()),
                Ok(count) => gone += count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted => {}
                    _ => self.broken = Some(error.to_string()),
                },
            }
        }
        if self.broken.is_some() {
            // Nobody will ever take it; whoever waits for it must not.
            gone += self.unsent.drain(..).map(|data| data.len()).sum::<usize>() - self.written;
            self.written = 0;
        }
        gone
    }

    fn write_once(&mut self, mut stream: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        for (slice, data) in slices.iter_mut().zip(&self.unsent) {
            *slice = IoSlice::new(data);
        }
        slices[0].advance(self.written);
        let count = stream.write_vectored(&slices[..self.unsent.len().min(SLICES)])?;
        self.written += count;
        while let Some(first) = self.unsent.front().filter(|first| first.len() <= self.written) {
            self.written -= first.len();
            self.unsent.pop_front();
        }
        Ok(count)
    }

    /// Reads once, if that is allowed: at least one byte, or how the connection ended. Nothing, where nothing has come.
    pub fn read(&mut self, stream: &TcpStream) -> Option<Result<Vec<u8>, SocketEnd>> {
        let most = self.wanted?;
        // Straight into memory that is not cleared first; what is not filled goes back.
        let mut data = Vec::with_capacity(most);
        let told = match rustix::io::read(stream, rustix::buffer::spare_capacity(&mut data))
            .map_err(io::Error::from)
        {
            Ok(0) => Err(match self.broken.take() {
                None => SocketEnd::Closed,
                Some(detail) => SocketEnd::Failed { detail },
            }),
            Ok(_) => {
                data.truncate(most);
                data.shrink_to_fit();
                Ok(data)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return None;
            }
            Err(error) => Err(SocketEnd::Failed { detail: error.to_string() }),
        };
        self.wanted = None;
        Some(told)
    }

    /// From here on only what is unsent is written; then the connection ends.
    pub fn leave(&mut self) {
        self.wanted = None;
        self.leaving =
            Some(Leaving { until: Instant::now() + CLOSE_TIMEOUT, has_told: false, was_told: false });
    }

    /// When a connection that is being left is given up.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.leaving.as_ref().map(|leaving| leaving.until)
    }

    /// Goes on with leaving. `false` when the connection is at its end and can be dropped.
    ///
    /// What the target still sends is read over: a connection closed with unread data is reset, and the reset would
    /// overtake what was written.
    pub fn go_on_leaving(&mut self, stream: &TcpStream) -> bool {
        self.write(stream);
        let Some(leaving) = &mut self.leaving else { return true };
        if self.broken.is_some() || Instant::now() >= leaving.until {
            return false;
        }
        if self.unsent.is_empty() && !leaving.has_told {
            leaving.has_told = true;
            if stream.shutdown(Shutdown::Write).is_err() {
                return false;
            }
        }
        if leaving.was_told {
            return !leaving.has_told;
        }
        let mut data = Vec::with_capacity(DRAIN);
        match rustix::io::read(stream, rustix::buffer::spare_capacity(&mut data)).map_err(io::Error::from) {
            // A target that has closed its own end may still read.
            Ok(0) => {
                leaving.was_told = true;
                !leaving.has_told
            }
            Ok(_) => true,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}
