//! The streams of a session (protocol.md section 9): which are open, and what each is.

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;

use serde::Deserialize;

use super::clients::ClientId;
use crate::io::{EffectId, SocketId};
use crate::limits::{MAX_ENDED_STREAMS, MAX_ID};

/// An open stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Each datum is a request; these are under way.
    ProxySession(BTreeSet<EffectId>),
    /// A TCP connection.
    RawTunnel(SocketId),
    /// Whoever owns a public tunnel.
    Owner {
        /// The tunnel's name.
        tunnel_id: String,
    },
    /// Somebody who came through a public tunnel.
    Visitor {
        /// The tunnel's name.
        tunnel_id: String,
        /// The visitor's number among the owner's.
        number: u32,
    },
    /// A client of the data plane.
    DataPlane(ClientId),
}

/// What a `stream_open` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    ProxySession,
    DataPlane,
    RawTunnel { host: String, port: u16 },
    Owner { tunnel_id: String },
    Visitor { tunnel_id: String, initial_data: Option<Cow<'a, str>> },
}

impl<'a> Target<'a> {
    /// Reads a `target`: `proxy-session`, or JSON. `None` for one that this node does not know.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Members<'a> {
            kind: String,
            host: Option<String>,
            port: Option<u16>,
            tunnel_id: Option<String>,
            #[serde(borrow)]
            initial_data: Option<Cow<'a, str>>,
        }
        if text == "proxy-session" {
            return Some(Self::ProxySession);
        }
        let Members { kind, host, port, tunnel_id, initial_data } = serde_json::from_str(text).ok()?;
        let tunnel_id = tunnel_id.filter(|id| !id.is_empty() && id.len() <= MAX_ID);
        match kind.as_str() {
            "data-plane" => Some(Self::DataPlane),
            "raw-tunnel" => Some(Self::RawTunnel { host: host?, port: port? }),
            "public-tunnel-owner" => Some(Self::Owner { tunnel_id: tunnel_id? }),
            "public-tunnel-stream" => Some(Self::Visitor { tunnel_id: tunnel_id?, initial_data }),
            _ => None,
        }
    }
}

/// The open streams by their names, and the names of those that have just ended.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: BTreeMap<String, Stream>,
    /// What is still on its way for these is nobody's; without them it would be taken for a proxy session's, because
    /// the deployed server can send data before the open.
    ended: VecDeque<String>,
    ended_names: BTreeSet<String>,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// How many names of ended ones are remembered.
    pub(super) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// How many have something under way, as far as that can be known of streams of bytes.
    pub(super) fn active(&self) -> usize {
        let is_active = |stream: &&Stream| !matches!(stream, Stream::ProxySession(_));
        self.open.values().filter(is_active).count()
    }

    pub(super) fn get(&self, stream_id: &str) -> Option<&Stream> {
        self.open.get(stream_id)
    }

    pub(super) fn get_mut(&mut self, stream_id: &str) -> Option<&mut Stream> {
        self.open.get_mut(stream_id)
    }

    pub(super) fn contains(&self, stream_id: &str) -> bool {
        self.open.contains_key(stream_id)
    }

    pub(super) fn has_ended(&self, stream_id: &str) -> bool {
        self.ended_names.contains(stream_id)
    }

    /// The names of the open ones, for the fuzz bodies.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.open.keys().cloned().collect()
    }

    pub(super) fn insert(&mut self, stream_id: String, stream: Stream) {
        // A name that is used again lives again.
        if self.ended_names.remove(&stream_id) {
            self.ended.retain(|ended| *ended != stream_id);
        }
        self.open.insert(stream_id, stream);
    }

    pub(super) fn remove(&mut self, stream_id: &str) -> Option<Stream> {
        let (stream_id, stream) = self.open.remove_entry(stream_id)?;
        self.remember(stream_id);
        Some(stream)
    }

    /// A stream that was refused has ended as well: what is on its way for it is nobody's.
    pub(super) fn refuse(&mut self, stream_id: &str) {
        if !self.open.contains_key(stream_id) && !self.ended_names.contains(stream_id) {
            self.remember(stream_id.into());
        }
    }

    fn remember(&mut self, stream_id: String) {
        if self.ended.len() >= MAX_ENDED_STREAMS {
            if let Some(oldest) = self.ended.pop_front() {
                self.ended_names.remove(&oldest);
            }
        }
        self.ended_names.insert(stream_id.clone());
        self.ended.push_back(stream_id);
    }

    /// The session is gone: the names begin anew.
    pub(super) fn clear(&mut self) -> BTreeMap<String, Stream> {
        self.ended.clear();
        self.ended_names.clear();
        core::mem::take(&mut self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString as _;

    #[test]
    fn every_target_of_the_protocol_is_read_and_nothing_else() {
        assert_eq!(Target::parse("proxy-session"), Some(Target::ProxySession));
        assert_eq!(Target::parse(r#"{"kind":"data-plane"}"#), Some(Target::DataPlane));
        assert_eq!(
            Target::parse(r#"{"kind":"raw-tunnel","host":"h","port":22}"#),
            Some(Target::RawTunnel { host: "h".into(), port: 22 })
        );
        let tunnel_id = || "full-spit".to_string();
        assert_eq!(
            Target::parse(r#"{"kind":"public-tunnel-owner","tunnel_id":"full-spit"}"#),
            Some(Target::Owner { tunnel_id: tunnel_id() })
        );
        assert_eq!(
            Target::parse(r#"{"kind":"public-tunnel-stream","tunnel_id":"full-spit","initial_data":"aGk="}"#),
            Some(Target::Visitor { tunnel_id: tunnel_id(), initial_data: Some("aGk=".into()) })
        );
        for text in [
            "",
            "data-plane",
            "[]",
            "{}",
            r#"{"kind":"dance"}"#,
            r#"{"kind":"raw-tunnel","host":"h"}"#,
            r#"{"kind":"raw-tunnel","host":"h","port":65536}"#,
            r#"{"kind":"public-tunnel-owner"}"#,
            r#"{"kind":"public-tunnel-owner","tunnel_id":""}"#,
            &format!(r#"{{"kind":"public-tunnel-stream","tunnel_id":"{}"}}"#, "x".repeat(MAX_ID + 1)),
        ] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_names_of_ended_streams_are_remembered_within_a_bound() {
        let mut streams = Streams::default();
        for number in 0..=MAX_ENDED_STREAMS {
            streams.insert(number.to_string(), Stream::ProxySession(BTreeSet::new()));
            assert!(streams.remove(&number.to_string()).is_some());
        }
        assert!(!streams.has_ended("0") && streams.has_ended("1"));
        assert_eq!((streams.ended.len(), streams.ended_names.len()), (MAX_ENDED_STREAMS, MAX_ENDED_STREAMS));
        streams.insert("1".to_string(), Stream::ProxySession(BTreeSet::new()));
        assert!(streams.contains("1") && !streams.has_ended("1"));
    }
}
