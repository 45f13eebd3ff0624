//! How many bytes wait for somebody, and waiting until they are fewer.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use smol::future;

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

    /// So many bytes more wait; `true` when it is full from now on.
    pub fn add(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_add(bytes);
        let fills = !state.full && state.bytes > self.high;
        state.full |= fills;
        fills
    }

    /// So many bytes have gone; `true` when there is room again from now on.
    pub fn remove(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        let opens = state.full && state.bytes <= self.high / 4;
        if opens {
            state.full = false;
            state.waiting.drain(..).for_each(Waker::wake);
        }
        opens
    }

    /// How many wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Waits until there is room for more, and lets others have their turn first: whoever has always more to send would
    /// take all the room there is, every time.
    pub async fn room(&self) {
        future::yield_now().await;
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

    #[test]
    fn whoever_waits_goes_on_when_most_has_gone() {
        let backlog = Backlog::new(100);
        smol::block_on(async {
            assert!(!backlog.add(100));
            backlog.room().await;
            assert!(backlog.add(1));
            let mut waiting = Box::pin(backlog.room());
            for gone in [0, 75] {
                assert!(!backlog.remove(gone));
                for _ in 0..2 {
                    assert_eq!(future::poll_once(&mut waiting).await, None, "not for every message");
                }
            }
            assert!(backlog.remove(1));
            waiting.await;
            assert_eq!(backlog.bytes(), 25);
        });
    }

    #[test]
    fn everybody_has_a_turn_when_all_have_always_more() {
        let backlog = Backlog::new(100);
        let turns: [std::cell::Cell<usize>; 10] = Default::default();
        let executor = smol::LocalExecutor::new();
        for turn in &turns {
            let backlog = backlog.clone();
            let send = async move {
                loop {
                    backlog.room().await;
                    backlog.add(30);
                    turn.set(turn.get() + 1);
                }
            };
            executor.spawn(send).detach();
        }
        smol::block_on(executor.run(async {
            for _ in 0..1000 {
                backlog.remove(30);
                future::yield_now().await;
            }
        }));
        let counts: Vec<usize> = turns.iter().map(std::cell::Cell::get).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 0 && most / 2 <= *least, "{counts:?}");
    }
}
