//! A session of two ends, and whoever stands between them: what is delivered, how often, in which order, and what
//! else.

use alloc::vec::Vec;

use arbitrary::Arbitrary;

use super::read;
use super::transparent::Transparent;
use crate::crypto::Drbg;
use crate::tunnel::session::{Keys, OpenError, Role, Session};
use crate::wire::frame::{self, FrameBuf, FrameType, OVERHEAD};

#[derive(Debug, Default, Arbitrary)]
struct Script {
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    /// An end seals something.
    Seal { by_client: bool, kind: u8, plaintext: Vec<u8> },
    /// A frame arrives, wherever; perhaps not for the first time.
    Deliver { nth: u8, at_client: bool },
    /// A frame arrives with another sequence: with this cryptography nothing holds the two together.
    Renumber { nth: u8, at_client: bool, sequence: u64 },
    /// A frame arrives with a byte of it changed.
    Damage { nth: u8, at_client: bool, at: u16, with: u8 },
    /// Something arrives.
    Invent { at_client: bool, bytes: Vec<u8> },
}

/// What was sealed.
struct Sealed {
    by_client: bool,
    kind: FrameType,
    plaintext: Vec<u8>,
    message: Vec<u8>,
}

/// One end, and what it must remember.
struct End {
    session: Session<Transparent>,
    is_client: bool,
    last: Option<u64>,
}

impl End {
    /// Gives it a message; `from` is what it was made of, where it is whole.
    fn open(&mut self, message: &[u8], from: Option<&Sealed>) {
        let mut copy = message.to_vec();
        let before = self.last;
        let opened = self.session.open(&mut copy);
        let sequence =
            message.get(2..10).map_or(0, |bytes| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)));
        let is_late = before.is_some_and(|last| sequence <= last);
        match (&opened, from) {
            (Ok(_), None) => {}
            (Ok((kind, plaintext)), Some(sealed)) => {
                assert_ne!(sealed.by_client, self.is_client, "an end does not open what it sealed itself");
                assert_eq!((*kind, &plaintext[..]), (sealed.kind, &sealed.plaintext[..]));
            }
            (Err(error), Some(sealed)) if sealed.by_client != self.is_client => {
                assert!(is_late, "{error} of a frame that is whole, new and in order");
                assert!(matches!(error, OpenError::Replay { .. }));
            }
            (Err(_), _) => {}
        }
        if opened.is_ok() {
            assert!(!is_late, "sequence {sequence} was opened after {before:?}");
            self.last = Some(sequence);
        }
    }
}

/// What one end seals the other opens: once, never out of order, and nothing else.
pub fn session(data: &[u8]) {
    let Script { actions } = read(data);
    let keys = || Keys::derive(&Transparent, &[1; 32], &[2; 32], &[3; 32], &[4; 32]);
    let end = |is_client| {
        let role = if is_client { Role::Client } else { Role::Server };
        let session = Session::new(Transparent, keys(), role, Drbg::new([u8::from(is_client); 32]));
        End { session, is_client, last: None }
    };
    let mut ends = [end(false), end(true)];
    let mut sealed: Vec<Sealed> = Vec::new();
    for action in actions {
        match action {
            Action::Seal { by_client, kind, plaintext } => {
                let kinds = [FrameType::Data, FrameType::Ping, FrameType::Pong, FrameType::Close];
                let kind = kinds[usize::from(kind % 4)];
                let session = &mut ends[usize::from(by_client)].session;
                let message = session.seal(kind, FrameBuf::from_plaintext(&plaintext));
                assert_eq!(message.len(), plaintext.len() + OVERHEAD);
                let mut copy = message.clone();
                let header = frame::split(&mut copy).map(|parts| parts.header);
                for before in sealed.iter().filter(|before| before.by_client == by_client) {
                    let (nonce, sequence) = (&before.message[10..22], &before.message[2..10]);
                    assert!(nonce != &message[10..22] && sequence < &message[2..10], "{header:?}");
                }
                sealed.push(Sealed { by_client, kind, plaintext, message });
            }
            Action::Deliver { nth, at_client } => {
                if let Some(sealed) = sealed.get(usize::from(nth)) {
                    ends[usize::from(at_client)].open(&sealed.message, Some(sealed));
                }
            }
            Action::Renumber { nth, at_client, sequence } => {
                if let Some(sealed) = sealed.get(usize::from(nth)) {
                    let mut message = sealed.message.clone();
                    message[2..10].copy_from_slice(&sequence.to_be_bytes());
                    ends[usize::from(at_client)].open(&message, Some(sealed));
                }
            }
            Action::Damage { nth, at_client, at, with } => {
                if let Some(sealed) = sealed.get(usize::from(nth)) {
                    let mut message = sealed.message.clone();
                    let at = usize::from(at) % message.len();
                    message[at] ^= with;
                    ends[usize::from(at_client)].open(&message, None);
                }
            }
            Action::Invent { at_client, bytes } => ends[usize::from(at_client)].open(&bytes, None),
        }
    }
}
