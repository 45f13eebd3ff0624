//! The connections of one node: nothing is lost on them but with the connection, what is sent arrives in order, and either
//! end may be gone without the other knowing.

use std::time::Duration;

use consensus_core::io::{Input, LinkEnd, LinkId, OpenStage};
use consensus_core::limits::{RECONNECT_FIRST, RECONNECT_JITTER, RECONNECT_MAX};

use super::super::Planted;
use super::super::plan::Worth;
use super::{Link, Seat, What, World};

impl World<'_> {
    pub(super) fn living_links(&self) -> Vec<u64> {
        self.links.iter().map(|link| link.id).collect()
    }

    pub(in crate::fleet) fn link(&mut self, id: u64) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// Nothing passes on it any more.
    pub(super) fn silence(&mut self, link: u64) {
        if let Some(link) = self.link(link) {
            link.is_silent = true;
        }
    }

    /// The node learns that the connection broke.
    pub(super) fn lose(&mut self, link: u64) {
        let end = LinkEnd::Lost { detail: "connection reset".into() };
        self.post(link, |name| Input::LinkEnded { link: name, end });
    }

    pub(super) fn lose_at_once(&mut self, link: u64, end: LinkEnd) {
        let Some(link) = self.link(link).filter(|link| link.is_nodes) else { return };
        link.is_nodes = false;
        let name = link.name;
        self.feed(Input::LinkEnded { link: name, end });
    }

    /// Links that neither end has any more are forgotten.
    pub(in crate::fleet) fn tidy(&mut self) {
        self.links.retain(|link| link.is_nodes || !matches!(link.seat, Seat::Gone));
    }

    /// When something that is sent now on that link arrives, or nothing where it does not.
    pub(super) fn travel(&mut self, id: u64, is_up: bool) -> Option<Duration> {
        let jitter = self.dice.millis(0, 20);
        let from = self.now.max(self.stalled_until);
        let link = self.link(id).filter(|link| !link.is_silent)?;
        let last = if is_up { &mut link.last_up } else { &mut link.last_down };
        let at = (from + link.latency + jitter).max(*last);
        *last = at;
        Some(at)
    }

    /// Something of a link is on its way to the node.
    pub(in crate::fleet) fn post(&mut self, id: u64, input: impl FnOnce(LinkId) -> Input) {
        let Some(name) = self.link(id).map(|link| link.name) else { return };
        if let Some(at) = self.travel(id, false) {
            self.at(at, What::ToNode { link: id, input: Box::new(input(name)) });
        }
    }

    /// Something of a link arrives at the node.
    pub(super) fn arrive(&mut self, id: u64, input: Input) {
        let Some(link) = self.link(id).filter(|link| link.is_nodes) else { return };
        match (&mut link.held, &input) {
            (Some(held), Input::LinkBinary { .. }) => return held.push(input),
            (_, Input::LinkEnded { .. }) => link.is_nodes = false,
            _ => {}
        }
        self.feed(input);
        self.tidy();
    }

    pub(super) fn opened(&mut self, id: u64, is_open: bool) {
        let is_open = is_open && self.now >= self.away_until;
        let Some(link) = self.link(id).filter(|link| link.is_nodes) else { return self.tidy() };
        let name = link.name;
        if is_open {
            link.seat = Seat::Open;
            return self.feed(Input::LinkOpened { link: name });
        }
        self.figures.counters.unopened += 1;
        let end = LinkEnd::Unopened { stage: OpenStage::Connect, detail: "connection refused".into() };
        self.lose_at_once(id, end);
        self.tidy();
    }

    /// The node's end of a link is no more; the server learns of it, where anything passes.
    pub(super) fn node_lets_go(&mut self, id: u64) {
        let Some(link) = self.link(id).filter(|link| link.is_nodes) else { return };
        link.is_nodes = false;
        if let Some(at) = self.travel(id, true) {
            self.at(at, What::ToServer { link: id, data: None });
        }
    }

    pub(super) fn id_of(&self, name: LinkId) -> Option<u64> {
        let process = self.process.as_ref()?.number;
        let link = self.links.iter().find(|link| link.process == process && link.name == name)?;
        link.is_nodes.then_some(link.id)
    }

    pub(super) fn send(&mut self, name: LinkId, data: Vec<u8>) {
        self.figures.counters.messages_up += 1;
        let Some(id) = self.id_of(name) else {
            return self.violated("it sends on a link that is not open");
        };
        // Nothing of a frame is hidden, so what it says can be told.
        let is_close = || data.windows(14).any(|bytes| bytes == b"\"stream_close\"");
        if self.has_planted(Planted::LostCloses) && is_close() {
            return;
        }
        if let Some(at) = self.travel(id, true) {
            self.at(at, What::ToServer { link: id, data: Some(data) });
        }
    }

    pub(super) fn open_link(&mut self, name: LinkId) {
        self.figures.counters.attempts += 1;
        if self.links.iter().any(|link| link.is_nodes) {
            self.violated("it opens a second link while it has one");
        }
        let latency = self.dice.millis(5, 150);
        self.next_link += 1;
        let id = self.next_link;
        let Some(process) = &mut self.process else { return };
        if let Some(lost) = process.lost {
            let waited = self.now.saturating_sub(lost);
            let least = RECONNECT_FIRST.saturating_mul(1 << process.failures.min(16)).min(RECONNECT_MAX);
            let failures = process.failures;
            process.failures += 1;
            // As milliseconds are counted.
            if waited < least || waited > least + RECONNECT_JITTER + Duration::from_millis(1) {
                self.violated(&format!("after {failures} failures it comes back {waited:?} later"));
            }
        }
        let Some(process) = &self.process else { return };
        let is_open = process.worth != Worth::Mute && self.now >= self.away_until;
        self.links.push(Link {
            id,
            process: process.number,
            name,
            latency,
            last_up: self.now,
            last_down: self.now,
            is_silent: false,
            is_nodes: true,
            seat: Seat::Gone,
            seat_wait: None,
            held: None,
        });
        // TCP and TLS: there, back, there, back.
        let from = self.now.max(self.stalled_until);
        self.at(from + 4 * latency, What::Opened { link: id, is_open });
    }

    pub(super) fn hold_link(&mut self, name: LinkId, hold: bool) {
        let Some(id) = self.id_of(name) else { return };
        let Some(link) = self.link(id) else { return };
        let held = if hold { link.held.replace(Vec::new()) } else { link.held.take() };
        for input in held.into_iter().flatten() {
            self.at(self.now, What::ToNode { link: id, input: Box::new(input) });
        }
    }
}
