//! What other threads have to say to the run loop: a queue, and a byte in a socket that ends the loop's wait.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use consensus_core::data_plane::job::Computed;
use consensus_core::io::{EffectId, EffectResult, FetchError, LinkEnd, LinkId, SocketId};

use super::channel::Socket;
use super::fetch::{Asked, Obtained};
use crate::dial::DialError;
use crate::runtime_api::Provider;

/// One thing said. Each kind is bounded by its source: attempts at a link, effects under way, sockets.
pub(super) enum Said {
    /// A link was opened, or was not.
    Opened { link: LinkId, result: Box<Result<Socket, LinkEnd>> },
    /// An effect ended.
    Done { effect: EffectId, result: EffectResult },
    /// A connection to a target is there, or there is none.
    Connected { socket: SocketId, result: Result<TcpStream, FetchError> },
    /// A connection for a fetch is there, or there is none.
    Reached { effect: EffectId, asked: Box<Asked>, result: Result<Obtained, DialError> },
    /// A job of the node is done.
    Computed(Box<Computed<Provider>>),
    /// A turn of the loop, for measuring it: whoever holds the other end learns that it was made.
    Turn(SyncSender<()>),
}

/// The queue.
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    /// Whether a byte is on its way. Keeps a burst from writing one for each.
    woken: AtomicBool,
    waker: UnixStream,
    bell: UnixStream,
}

struct Queue {
    said: VecDeque<Said>,
    /// The loop has ended: what is said now is dropped, and with it the channels in it.
    closed: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let (waker, bell) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let queue = Mutex::new(Queue { said: VecDeque::new(), closed: false });
        Ok(Self { queue, woken: AtomicBool::new(false), waker, bell })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing under this lock can leave the queue half-changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something, from any thread.
    pub(super) fn say(&self, said: Said) {
        {
            let mut queue = self.queue();
            if queue.closed {
                return;
            }
            queue.said.push_back(said);
        }
        if !self.woken.swap(true, Ordering::SeqCst) {
            // One that is full wakes as well.
            let _ = (&self.waker).write(&[1]);
        }
    }

    /// What the loop waits on.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes all that was said. The bell is cleared first, so that what is said meanwhile rings it again.
    pub(super) fn take(&self) -> VecDeque<Said> {
        if self.woken.load(Ordering::SeqCst) {
            let _ = (&self.bell).read(&mut [0; 16]);
            self.woken.store(false, Ordering::SeqCst);
        }
        core::mem::take(&mut self.queue().said)
    }

    /// Nobody listens any more.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        let said = core::mem::take(&mut queue.said);
        drop(queue);
        drop(said);
    }
}
