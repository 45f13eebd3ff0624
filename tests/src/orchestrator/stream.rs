//! Streams of a node's control session: the session's end, which many share, and the end of whoever a stream is for.

use std::collections::BTreeMap;

use consensus_core::peer::orchestrator::Input;
use consensus_core::peer::streams::StreamTarget;
use smol::channel::{self, Receiver, Sender};

use super::Shared;
use super::tunnel::Command;
use crate::backlog::Backlog;

/// What may wait for somebody who reads slowly; the tunnel is not held up for one of many, so over it the stream ends.
const MAX_QUEUED: usize = 128 * 1024 * 1024;

/// Above this, whoever else sends to the same reader is held up. One reader alone cannot be: its bytes come through
/// the tunnel, between everybody's.
const HIGH_QUEUED: usize = 1024 * 1024;

/// What comes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromNode {
    /// Bytes; [`Stream::taken`] says when they are passed on.
    Data(Vec<u8>),
    /// The end. Nothing follows.
    Closed {
        /// In the node's words, or ours.
        reason: String,
        /// Whether there was an error before it, or the session itself ended.
        failed: bool,
    },
}

/// One stream, for whoever it was opened for. Dropping it closes the stream.
#[derive(Debug)]
pub struct Stream {
    id: String,
    commands: Sender<Command>,
    unsent: Backlog,
    incoming: Receiver<FromNode>,
    queued: Backlog,
    /// What the node is told when this end goes first.
    leaving: &'static str,
}

impl Stream {
    /// Waits until the node's session can take more.
    pub async fn room(&self) {
        self.unsent.room().await;
    }

    /// Sends bytes.
    pub fn send(&self, data: Vec<u8>) {
        self.unsent.add(data.len());
        let command = Command::SendStream { stream_id: self.id.clone(), data };
        // Fails only when the session has ended, and then `next` says so.
        let _ = self.commands.try_send(command);
    }

    /// The next that comes of it.
    pub async fn next(&self) -> FromNode {
        self.incoming.recv().await.unwrap_or_else(|_| FromNode::Closed {
            reason: String::from("the node's session ended"),
            failed: true,
        })
    }

    /// So many bytes of what came were passed on.
    pub fn taken(&self, bytes: usize) {
        self.queued.remove(bytes);
    }

    /// What waits for this end to be passed on.
    pub(super) fn queued(&self) -> &Backlog {
        &self.queued
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let close = Input::CloseStream { stream_id: self.id.clone(), reason: self.leaving.to_owned() };
        // Nothing happens where the stream has ended already.
        let _ = self.commands.try_send(Command::Input(close));
    }
}

/// The session's end of one stream.
#[derive(Debug)]
pub(super) struct Reader {
    to: Sender<FromNode>,
    queued: Backlog,
    failed: bool,
}

/// The session's ends of all its streams.
#[derive(Debug, Default)]
pub(super) struct Readers(BTreeMap<String, Reader>);

impl Readers {
    pub(super) fn add(&mut self, stream_id: String, reader: Reader) {
        self.0.insert(stream_id, reader);
    }

    /// Bytes of the node. Gives what to tell it where nobody takes them, or not fast enough.
    pub(super) fn data(&mut self, stream_id: String, data: Vec<u8>) -> Option<Input> {
        let reader = self.0.get(&stream_id)?;
        let reason = if reader.queued.bytes().saturating_add(data.len()) > MAX_QUEUED {
            "the reader is too slow"
        } else {
            reader.queued.add(data.len());
            if reader.to.try_send(FromNode::Data(data)).is_ok() {
                return None;
            }
            "nobody reads"
        };
        self.closed(&stream_id, reason, true);
        Some(Input::CloseStream { stream_id, reason: reason.to_owned() })
    }

    pub(super) fn error(&mut self, stream_id: &str) {
        if let Some(reader) = self.0.get_mut(stream_id) {
            reader.failed = true;
        }
    }

    pub(super) fn closed(&mut self, stream_id: &str, reason: &str, failed: bool) {
        if let Some(reader) = self.0.remove(stream_id) {
            let failed = failed || reader.failed;
            let _ = reader.to.try_send(FromNode::Closed { reason: reason.to_owned(), failed });
        }
    }
}

impl Shared {
    /// Opens a stream on a node's session, on any one's where no node is named. `leaving` is what the node is told when
    /// our end goes first. `None` when there is no such session.
    pub(super) fn open_stream(
        &self,
        node_id: Option<&str>,
        target: StreamTarget,
        leaving: &'static str,
    ) -> Option<Stream> {
        let id = self.random_hex::<16>();
        let state = self.state();
        let attached = match node_id {
            Some(node_id) => state.attached.get(node_id)?,
            None => state.attached.values().next()?,
        };
        let (to, incoming) = channel::unbounded();
        let queued = Backlog::new(HIGH_QUEUED);
        let reader = Reader { to, queued: queued.clone(), failed: false };
        let commands = attached.commands.clone();
        commands.try_send(Command::OpenStream { stream_id: id.clone(), target, reader }).ok()?;
        Some(Stream { id, commands, unsent: attached.unsent.clone(), incoming, queued, leaving })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> (Reader, Receiver<FromNode>) {
        let (to, incoming) = channel::unbounded();
        (Reader { to, queued: Backlog::new(HIGH_QUEUED), failed: false }, incoming)
    }

    #[test]
    fn a_reader_that_is_too_slow_loses_its_stream_and_no_other() {
        let mut readers = Readers::default();
        let ((slow, kept), (quick, _quick)) = (reader(), reader());
        readers.add(String::from("slow"), slow);
        readers.add(String::from("quick"), quick);
        assert_eq!(readers.data(String::from("slow"), vec![0; MAX_QUEUED]), None);
        let told = readers.data(String::from("slow"), vec![0]);
        assert!(matches!(told, Some(Input::CloseStream { .. })), "{told:?}");
        assert_eq!(readers.data(String::from("quick"), vec![0]), None);
        assert!(matches!(kept.try_recv(), Ok(FromNode::Data(_))), "what was there is still read");
        assert!(matches!(kept.try_recv(), Ok(FromNode::Closed { failed: true, .. })));
        assert_eq!(readers.data(String::from("slow"), vec![0]), None, "what comes late is nobody's");
    }

    #[test]
    fn an_error_before_the_end_makes_it_a_failure() {
        let mut readers = Readers::default();
        let (one, incoming) = reader();
        readers.add(String::from("s"), one);
        readers.error("s");
        readers.closed("s", "no route", false);
        let expected = FromNode::Closed { reason: String::from("no route"), failed: true };
        assert_eq!(incoming.try_recv(), Ok(expected));
    }
}
