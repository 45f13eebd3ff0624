//! How many bytes wait for somebody, and waiting until they are fewer.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Bytes on their way to one peer. Whoever makes more of them waits for [`Backlog::room`] first; that opens again only
/// when most have gone, so that nobody is woken for every message. Clones are the same backlog.
#[derive(Clone)]
pub struct Backlog {
    high: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    full: bool,
    waiting: Vec<Waker>,
}

impl std::fmt::Debug for Backlog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backlog").field("bytes", &self.bytes()).field("high", &self.high).finish()
    }
}

impl Backlog {
    /// An empty one that is full above so many bytes.
    #[must_use]
    pub fn new(high: usize) -> Self {
        Self { high, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes more wait.
    pub fn add(&self, bytes: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_add(bytes);
        state.full |= state.bytes > self.high;
    }

    /// So many bytes have gone.
    pub fn remove(&self, bytes: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        if state.full && state.bytes <= self.high / 4 {
            state.full = false;
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// How many wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Waits until there is room for more.
    pub async fn room(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if !state.full {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future;

    #[test]
    fn whoever_waits_goes_on_when_most_has_gone() {
        let backlog = Backlog::new(100);
        smol::block_on(async {
            backlog.add(100);
            backlog.room().await;
            backlog.add(1);
            let mut waiting = Box::pin(backlog.room());
            assert_eq!(future::poll_once(&mut waiting).await, None);
            backlog.remove(75);
            assert_eq!(future::poll_once(&mut waiting).await, None, "not for every message");
            backlog.remove(1);
            waiting.await;
            assert_eq!(backlog.bytes(), 25);
        });
    }
}
