//! Many times to wait for, one timer: a timer of its own costs a fetch several system calls, and nearly every one is
//! over before its time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use smol::Timer;

/// All alarms; clones share them. [`run`](Self::run) must run for them to ring.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    set: BTreeMap<(Instant, u64), Waker>,
    next: u64,
    /// What the timer is set to.
    timer: Option<Instant>,
    /// Of whoever has the timer.
    runner: Option<Waker>,
}

/// One time to wait for. Costs nothing but memory if it is dropped before.
#[derive(Debug)]
pub(crate) struct Alarm {
    alarms: Alarms,
    at: Instant,
    key: Option<(Instant, u64)>,
}

impl Alarms {
    pub(crate) fn at(&self, at: Instant) -> Alarm {
        Alarm { alarms: self.clone(), at, key: None }
    }

    /// Rings those whose time has come, for ever.
    pub(crate) async fn run(self) -> Infallible {
        let mut timer = Timer::never();
        poll_fn(|context| self.poll(context, &mut timer)).await
    }

    fn poll(&self, context: &mut Context<'_>, timer: &mut Timer) -> Poll<Infallible> {
        loop {
            let now = Instant::now();
            let mut state = self.state();
            while let Some(first) = state.set.first_entry().filter(|first| first.key().0 <= now) {
                first.remove().wake();
            }
            // A timer that is too early is left alone: whoever made it so may have gone, and the next one as well.
            let first = state.set.first_key_value().map(|((at, _), _)| *at);
            if first.is_some_and(|first| state.timer.is_none_or(|timer| first < timer)) {
                state.timer = first;
                if let Some(first) = first {
                    timer.set_at(first);
                }
            }
            state.runner = Some(context.waker().clone());
            if state.timer.is_none() || Pin::new(&mut *timer).poll(context).is_pending() {
                return Poll::Pending;
            }
            state.timer = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alarm {
    /// Another time to wait for.
    pub(crate) fn set_at(&mut self, at: Instant) {
        if at != self.at {
            self.stop();
            self.at = at;
        }
    }

    fn stop(&mut self) {
        if let Some(key) = self.key.take() {
            self.alarms.state().set.remove(&key);
        }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            self.stop();
            return Poll::Ready(());
        }
        let at = self.at;
        let mut state = self.alarms.state();
        let key = self.key.unwrap_or((at, state.next));
        if self.key.is_none() {
            state.next += 1;
        }
        match state.set.get_mut(&key) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                state.set.insert(key, context.waker().clone());
            }
        }
        let runner = if state.timer.is_none_or(|timer| at < timer) { state.runner.take() } else { None };
        drop(state);
        self.key = Some(key);
        if let Some(runner) = runner {
            runner.wake();
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smol::future;

    use super::*;

    #[test]
    fn alarms_ring_in_their_order_and_those_that_were_dropped_do_not() {
        let alarms = Alarms::default();
        let now = Instant::now();
        let rung = Mutex::new(Vec::new());
        let wait = |milliseconds: u64| {
            let alarm = alarms.at(now + Duration::from_millis(milliseconds));
            let rung = &rung;
            async move {
                alarm.await;
                rung.lock().unwrap().push(milliseconds);
            }
        };
        // Set in an order in which the timer has to be set again, and has not.
        let all = async {
            future::zip(
                future::zip(wait(60), wait(20)),
                future::zip(wait(40), future::or(wait(90), wait(0))),
            )
            .await;
        };
        let rings = async { match alarms.clone().run().await {} };
        smol::block_on(future::or(all, rings));
        assert_eq!(*rung.lock().unwrap(), [0, 20, 40, 60]);
        assert!(Instant::now() >= now + Duration::from_millis(60), "none may ring before its time");
        assert!(alarms.state().set.is_empty());
    }

    #[test]
    fn an_alarm_can_be_set_to_another_time() {
        let alarms = Alarms::default();
        let now = Instant::now();
        let mut alarm = alarms.at(now + Duration::from_secs(3600));
        let work = async {
            assert_eq!(future::poll_once(&mut alarm).await, None);
            alarm.set_at(now + Duration::from_millis(10));
            alarm.await;
        };
        let rings = async { match alarms.clone().run().await {} };
        smol::block_on(future::or(work, rings));
        assert!(alarms.state().set.is_empty());
    }
}
