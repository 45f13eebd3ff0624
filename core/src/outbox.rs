//! Where the machines of one node put what is to be done.

use alloc::collections::VecDeque;

use crate::event::Event;
use crate::io::{Effect, EffectId, Finish, Output};

/// The outputs not yet polled, in order, and the numbers that name effects.
///
/// It is drained after every input, and every input adds a bounded number: it does not grow.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Output>,
    next_effect: u64,
}

impl Outbox {
    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.push(Output::Event(event));
    }

    pub(crate) fn finish(&mut self, finish: Finish) {
        self.push(Output::Finish(finish));
    }

    /// Asks for an effect and names it.
    pub(crate) fn perform(&mut self, effect: Effect) -> EffectId {
        let id = EffectId(self.next_effect);
        self.next_effect += 1;
        self.push(Output::Perform { id, effect });
        id
    }

    /// Outputs not yet polled.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }
}
