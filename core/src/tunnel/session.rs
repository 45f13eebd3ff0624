//! An established session: keys, sequences, sealing and opening (protocol.md sections 2 and 3).
//!
//! The tunnel and each data-plane connection use the same session, derived from another transcript.

use alloc::vec::Vec;
use core::fmt;

use zeroize::Zeroizing;

use crate::crypto::{Crypto, Drbg};
use crate::wire::frame::{self, FrameBuf, FrameError, FrameType, Header};
use crate::wire::hex;

/// Which end of a session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that opened the connection: the node in the tunnel, the client in the data plane.
    Client,
    /// The other end.
    Server,
}

/// The name of a session: 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionId([u8; 32]);

impl SessionId {
    fn of(bytes: &[u8; 16]) -> Self {
        let mut text = [0; 32];
        hex::encode_to(bytes, &mut text);
        Self(text)
    }

    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Digits are UTF-8.
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the two ends of a session agreed on.
pub struct Keys {
    /// Seals what the client sends.
    pub client_to_server: Zeroizing<[u8; 32]>,
    /// Seals what the server sends.
    pub server_to_client: Zeroizing<[u8; 32]>,
    /// Names the session.
    pub session_id: SessionId,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

impl Keys {
    /// The key schedule: `salt = SHA-256(client_nonce ‖ server_nonce ‖ transcript)`, then HKDF of the ECDH
    /// x-coordinate `shared`.
    pub fn derive<C: Crypto>(
        crypto: &C,
        shared: &[u8; 32],
        client_nonce: &[u8; 32],
        server_nonce: &[u8; 32],
        transcript: &[u8; 32],
    ) -> Self {
        let salt = crypto.sha256(&[client_nonce, server_nonce, transcript]);
        let expand = |info: &[u8], out: &mut [u8]| crypto.hkdf_sha256(&salt, shared, info, out);
        let mut client_to_server = Zeroizing::new([0; 32]);
        expand(b"consensus-node-tunnel-v1:client-to-server", &mut *client_to_server);
        let mut server_to_client = Zeroizing::new([0; 32]);
        expand(b"consensus-node-tunnel-v1:server-to-client", &mut *server_to_client);
        let mut session_id = [0; 16];
        expand(b"consensus-node-tunnel-v1:session-id", &mut session_id);
        Self { client_to_server, server_to_client, session_id: SessionId::of(&session_id) }
    }
}

/// Why a message could not be opened. The peer's fault; the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It is not a frame.
    Frame(FrameError),
    /// Its sequence was opened before, or is older than one that was.
    Replay {
        /// Of the frame.
        sequence: u64,
        /// The last one opened.
        last: u64,
    },
    /// The tag does not verify.
    Tag,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::Replay { sequence, last } => {
                write!(f, "sequence {sequence} is replayed or out of order (last was {last})")
            }
            Self::Tag => f.write_str("the frame is not authentic"),
        }
    }
}

impl core::error::Error for OpenError {}

impl From<FrameError> for OpenError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// One end of an established session.
pub struct Session<C: Crypto> {
    crypto: C,
    nonces: Drbg,
    session_id: SessionId,
    send_key: C::AeadKey,
    next_sequence: u64,
    receive_key: C::AeadKey,
    last_opened: Option<u64>,
}

impl<C: Crypto> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("session_id", &self.session_id)
            .field("next_sequence", &self.next_sequence)
            .field("last_opened", &self.last_opened)
            .finish_non_exhaustive()
    }
}

impl<C: Crypto> Session<C> {
    /// The `role` end of the session of `keys`. `nonces` gives the frames their nonces.
    pub fn new(crypto: C, keys: Keys, role: Role, nonces: Drbg) -> Self {
        let (send, receive) = match role {
            Role::Client => (&keys.client_to_server, &keys.server_to_client),
            Role::Server => (&keys.server_to_client, &keys.client_to_server),
        };
        let (send_key, receive_key) = (crypto.aead_key(send), crypto.aead_key(receive));
        Self {
            crypto,
            nonces,
            session_id: keys.session_id,
            send_key,
            next_sequence: 0,
            receive_key,
            last_opened: None,
        }
    }

    /// As both ends derived it: 32 hex digits.
    pub fn session_id(&self) -> &str {
        self.session_id.as_str()
    }

    /// Seals a plaintext of at most [`frame::MAX_PLAINTEXT`] bytes in place and gives the whole frame.
    #[must_use]
    pub fn seal(&mut self, kind: FrameType, mut plaintext: FrameBuf) -> Vec<u8> {
        let len = plaintext.plaintext().len();
        debug_assert!(len <= frame::MAX_PLAINTEXT, "{len} bytes do not fit in a frame");
        let length = u32::try_from(len).unwrap_or(u32::MAX);
        let header = Header { kind, sequence: self.next_sequence, nonce: self.nonces.bytes(), length };
        // 2⁶⁴ frames are not sent in the life of a machine; wrapping would end the session at the peer.
        self.next_sequence = self.next_sequence.wrapping_add(1);
        let tag = self.crypto.seal(&self.send_key, &header.nonce, &header.aad(), plaintext.plaintext_mut());
        plaintext.finish(&header, &tag)
    }

    /// Opens a frame in place.
    ///
    /// The sequence is checked before the tag, and remembered only after it: a forged frame cannot move the
    /// window.
    ///
    /// # Errors
    /// The message is no frame, was seen before, or is not authentic. Its bytes are then unspecified.
    pub fn open<'m>(&mut self, message: &'m mut [u8]) -> Result<(FrameType, &'m mut [u8]), OpenError> {
        let parts = frame::split(message)?;
        let sequence = parts.header.sequence;
        if let Some(last) = self.last_opened {
            if sequence <= last {
                return Err(OpenError::Replay { sequence, last });
            }
        }
        let aad = parts.header.aad();
        if !self.crypto.open(&self.receive_key, &parts.header.nonce, &aad, parts.ciphertext, &parts.tag) {
            return Err(OpenError::Tag);
        }
        self.last_opened = Some(sequence);
        Ok((parts.header.kind, parts.ciphertext))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;

    fn pair() -> (Session<Pure>, Session<Pure>) {
        let keys = || Keys::derive(&Pure, &[1; 32], &[2; 32], &[3; 32], &[4; 32]);
        (
            Session::new(Pure, keys(), Role::Client, Drbg::new([5; 32])),
            Session::new(Pure, keys(), Role::Server, Drbg::new([6; 32])),
        )
    }

    fn data(text: &str) -> FrameBuf {
        FrameBuf::from_plaintext(text.as_bytes())
    }

    #[test]
    fn each_end_opens_what_the_other_sealed_and_not_what_it_sealed_itself() {
        let (mut client, mut server) = pair();
        let mut frame = client.seal(FrameType::Data, data("hello"));
        assert_eq!(client.open(&mut frame.clone()), Err(OpenError::Tag));
        assert_eq!(server.open(&mut frame).unwrap(), (FrameType::Data, &mut b"hello".to_vec()[..]));
        let mut frame = server.seal(FrameType::Ping, data(""));
        assert_eq!(client.open(&mut frame).unwrap().0, FrameType::Ping);
    }

    #[test]
    fn a_frame_opens_once_and_gaps_are_fine_but_going_back_is_not() {
        let (mut client, mut server) = pair();
        let frames: Vec<_> = (0..4).map(|_| client.seal(FrameType::Data, data("x"))).collect();
        assert!(server.open(&mut frames[0].clone()).is_ok());
        assert_eq!(server.open(&mut frames[0].clone()), Err(OpenError::Replay { sequence: 0, last: 0 }));
        assert!(server.open(&mut frames[2].clone()).is_ok());
        assert_eq!(server.open(&mut frames[1].clone()), Err(OpenError::Replay { sequence: 1, last: 2 }));
        assert!(server.open(&mut frames[3].clone()).is_ok());
    }

    #[test]
    fn any_flipped_bit_is_refused_and_a_forgery_does_not_move_the_window() {
        let (mut client, mut server) = pair();
        let good = client.seal(FrameType::Data, data("money"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(server.open(&mut bad).is_err(), "bit {bit}");
        }
        assert!(server.open(&mut good.clone()).is_ok());
    }

    #[test]
    fn nonces_and_sequences_do_not_repeat() {
        let (mut client, _) = pair();
        let a = client.seal(FrameType::Data, data("x"));
        let b = client.seal(FrameType::Data, data("x"));
        assert_eq!((a[9], b[9]), (0, 1));
        assert_ne!(a[10..22], b[10..22]);
    }
}
