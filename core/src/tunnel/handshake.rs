//! The node's half of the tunnel handshake (protocol.md section 3). The server's half is in
//! [`peer`](crate::peer).

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Mode;
use super::session::{Keys, Role, Session};
use crate::crypto::identity::{Identity, verify_base64};
use crate::crypto::{Crypto, Drbg, Point, constant_time_eq};
use crate::limits::MAX_HANDSHAKE;
use crate::text::printable;
use crate::time::Now;
use crate::wire::message::seconds;
use crate::wire::{base64, canonical};

/// The `protocol` of every handshake message.
pub const PROTOCOL: &str = "consensus-node-tunnel";
/// The `version` of every handshake message.
pub const VERSION: u64 = 1;

/// `handshake_init`, as it is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// `handshake_init`.
    #[serde(rename = "type")]
    pub kind: String,
    /// [`PROTOCOL`].
    pub protocol: String,
    /// [`VERSION`].
    pub version: u64,
    /// What the tunnel is for.
    pub mode: Mode,
    /// Unix seconds.
    pub timestamp: u64,
    /// The node's ephemeral P-256 point, base64.
    pub client_public_key: String,
    /// 32 random bytes, base64.
    pub client_nonce: String,
    /// The node's identity.
    pub node_public_key_pem: String,
    /// The registered name; required in control mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// The operator's name for the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_id: Option<String>,
    /// The release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_version: Option<String>,
    /// Over the canonical JSON of the other members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// What the node says about itself in a handshake.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// What the tunnel is for.
    pub mode: Mode,
    /// The registered name.
    pub node_id: Option<&'a str>,
    /// The operator's name for the candidate.
    pub candidate_id: Option<&'a str>,
    /// The release.
    pub release_version: Option<&'a str>,
}

/// Why a handshake came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The server said no.
    Rejected {
        /// Its code.
        code: String,
        /// Its message.
        message: String,
        /// Its clock, unix seconds.
        server_time: u64,
    },
    /// The answer is not a handshake message.
    Malformed(String),
    /// The answer is of another protocol or version.
    Incompatible {
        /// `protocol` and `version`, as received.
        offered: String,
    },
    /// The server's ephemeral key is not a point on the curve.
    BadPoint,
    /// A server key is pinned and the answer has no signature.
    Unsigned,
    /// A server key is pinned and the signature is not its own.
    BadSignature,
    /// The server named another session than the keys give: it does not have the keys.
    WrongSession,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected { code, message, .. } => {
                write!(f, "the server rejected the handshake: {code}: {message}")
            }
            Self::Malformed(detail) => write!(f, "the server's handshake answer is malformed: {detail}"),
            Self::Incompatible { offered } => {
                write!(f, "the server speaks {offered}, this node speaks {PROTOCOL} version {VERSION}")
            }
            Self::BadPoint => f.write_str("the server's ephemeral key is not a point on P-256"),
            Self::Unsigned => f.write_str("the server did not sign its handshake, and its key is pinned"),
            Self::BadSignature => f.write_str("the handshake is not signed by the pinned server key"),
            Self::WrongSession => f.write_str("the server names another session than its keys give"),
        }
    }
}

impl core::error::Error for HandshakeError {}

/// `handshake_accept`, `handshake_reject`: the members of both.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: String,
    protocol: String,
    version: u64,
    timestamp: f64,
    server_public_key: Option<String>,
    server_nonce: Option<String>,
    session_id: Option<String>,
    signature: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

/// A handshake that waits for its answer. Consumed by it: there is no second answer.
pub struct Handshake<C: Crypto> {
    crypto: C,
    secret: C::EphemeralSecret,
    client_nonce: [u8; 32],
    transcript: [u8; 32],
    server_key: Option<[u8; 32]>,
}

impl<C: Crypto> fmt::Debug for Handshake<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("pinned", &self.server_key.is_some()).finish_non_exhaustive()
    }
}

/// The init of these values with its signature, and `T`, the hash of what is signed.
fn signed_init<C: Crypto>(
    crypto: &C,
    identity: &Identity<C>,
    claims: Claims<'_>,
    point: &Point,
    client_nonce: &[u8; 32],
    now: Now,
) -> (Init, [u8; 32]) {
    let mut init = Init {
        kind: "handshake_init".to_string(),
        protocol: PROTOCOL.to_string(),
        version: VERSION,
        mode: claims.mode,
        timestamp: now.unix_seconds(),
        client_public_key: base64::encode(point),
        client_nonce: base64::encode(client_nonce),
        node_public_key_pem: identity.public_key_pem().to_string(),
        node_id: claims.node_id.map(String::from),
        candidate_id: claims.candidate_id.map(String::from),
        release_version: claims.release_version.map(String::from),
        signature: None,
    };
    // Serialising strings and numbers cannot fail.
    let unsigned = canonical::of(&init).unwrap_or_default();
    init.signature = Some(identity.sign(unsigned.as_bytes()));
    (init, crypto.sha256(&[unsigned.as_bytes()]))
}

impl<C: Crypto> Handshake<C> {
    /// Starts a handshake: gives the machine that waits for the answer, and the message to send.
    pub fn start(
        crypto: C,
        identity: &Identity<C>,
        claims: Claims<'_>,
        server_key: Option<[u8; 32]>,
        rng: &mut Drbg,
        now: Now,
    ) -> (Self, Vec<u8>) {
        let client_nonce = rng.bytes::<32>();
        let (secret, point) = crypto.generate_ephemeral(rng);
        let (init, transcript) = signed_init(&crypto, identity, claims, &point, &client_nonce, now);
        let message = serde_json::to_vec(&init).unwrap_or_default();
        (Self { crypto, secret, client_nonce, transcript, server_key }, message)
    }

    /// Takes the server's answer: the session, and the server's clock in unix seconds. `nonces` will give the session's
    /// frames their nonces.
    ///
    /// # Errors
    /// The server rejected, or what it sent is no answer to this handshake.
    pub fn finish(self, answer: &[u8], nonces: Drbg) -> Result<(Session<C>, u64), HandshakeError> {
        let malformed = |detail: &str| HandshakeError::Malformed(printable(detail));
        if answer.len() > MAX_HANDSHAKE {
            return Err(malformed("it is too long"));
        }
        let value: Value = serde_json::from_slice(answer).map_err(|error| malformed(&error.to_string()))?;
        let fields = Answer::deserialize(&value).map_err(|error| malformed(&error.to_string()))?;
        if fields.protocol != PROTOCOL || fields.version != VERSION {
            let mut offered = printable(&fields.protocol);
            offered.push_str(" version ");
            offered.push_str(&fields.version.to_string());
            return Err(HandshakeError::Incompatible { offered });
        }
        match fields.kind.as_str() {
            "handshake_accept" => {}
            "handshake_reject" => {
                return Err(HandshakeError::Rejected {
                    code: printable(&fields.code.unwrap_or_default()),
                    message: printable(&fields.message.unwrap_or_default()),
                    server_time: seconds(fields.timestamp),
                });
            }
            other => return Err(malformed(other)),
        }
        if let Some(key) = &self.server_key {
            let signature = fields.signature.as_deref().ok_or(HandshakeError::Unsigned)?;
            let signed = canonical::without(&value, "signature");
            if !verify_base64(&self.crypto, key, signed.as_bytes(), signature) {
                return Err(HandshakeError::BadSignature);
            }
        }
        let point = fields.server_public_key.as_deref().and_then(base64::decode_array::<65>);
        let point = point.ok_or(HandshakeError::BadPoint)?;
        let server_nonce = fields.server_nonce.as_deref().and_then(base64::decode_array::<32>);
        let server_nonce = server_nonce.ok_or_else(|| malformed("server_nonce is not 32 bytes of base64"))?;
        let shared = self.crypto.agree(self.secret, &point).map_err(|_| HandshakeError::BadPoint)?;
        let keys = Keys::derive(&self.crypto, &shared, &self.client_nonce, &server_nonce, &self.transcript);
        let named = fields.session_id.unwrap_or_default();
        if !constant_time_eq(named.as_bytes(), keys.session_id.as_str().as_bytes()) {
            return Err(HandshakeError::WrongSession);
        }
        let session = Session::new(self.crypto, keys, Role::Client, nonces);
        Ok((session, seconds(fields.timestamp)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pem;
    use crate::crypto::pure::Pure;
    use crate::wire::canonical::tests::vectors;
    use crate::wire::frame::{Header, TAG};
    use crate::wire::hex;
    use core::time::Duration;

    fn array<const N: usize>(value: &Value) -> [u8; N] {
        hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    fn at(unix: u64) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(unix) }
    }

    /// The node's side of a recorded handshake, up to the answer.
    fn recorded(vector: &Value, server_key: Option<[u8; 32]>) -> (Handshake<Pure>, Init) {
        let init = &vector["init"];
        let identity = Identity::from_seed(Pure, &array(&vector["node_seed_hex"]));
        let claims = Claims {
            mode: Mode::deserialize(&init["mode"]).unwrap(),
            node_id: init["node_id"].as_str(),
            candidate_id: init["candidate_id"].as_str(),
            release_version: init["release_version"].as_str(),
        };
        let client_nonce = array(&vector["client_nonce_hex"]);
        let (secret, point) =
            Pure::ephemeral_from_scalar(&array(&vector["client_ecdh_private_hex"])).unwrap();
        let now = at(init["timestamp"].as_u64().unwrap());
        let (init, transcript) = signed_init(&Pure, &identity, claims, &point, &client_nonce, now);
        (Handshake { crypto: Pure, secret, client_nonce, transcript, server_key }, init)
    }

    #[test]
    fn the_deployed_networks_handshakes_hold() {
        let Some(file) = vectors("tunnel-handshake") else { return };
        for vector in file["vectors"].as_array().unwrap() {
            let server_key = pem::decode_public(vector["server_signing_public_key_pem"].as_str().unwrap());
            let (handshake, init) = recorded(vector, Some(server_key.unwrap()));
            assert_eq!(serde_json::to_value(&init).unwrap(), vector["init"]);
            assert_eq!(hex::encode(&handshake.transcript), vector["transcript_hash_hex"].as_str().unwrap());
            let accept = serde_json::to_vec(&vector["accept"]).unwrap();
            let (mut node, _) = handshake.finish(&accept, Drbg::new([0; 32])).unwrap();
            assert_eq!(node.session_id(), vector["session_id"].as_str().unwrap());

            let (client_to_server, server_to_client) =
                (array(&vector["client_to_server_key_hex"]), array(&vector["server_to_client_key_hex"]));
            let keys = Keys::derive(
                &Pure,
                &array(&vector["ecdh_shared_secret_hex"]),
                &array(&vector["client_nonce_hex"]),
                &array(&vector["server_nonce_hex"]),
                &array(&vector["transcript_hash_hex"]),
            );
            assert_eq!(*keys.client_to_server, client_to_server);
            assert_eq!(*keys.server_to_client, server_to_client);
            let mut server = Session::new(Pure, keys, Role::Server, Drbg::new([0; 32]));

            for frame in vector["frames"].as_array().unwrap() {
                let wire = hex::decode(frame["frame_hex"].as_str().unwrap()).unwrap();
                let plaintext = hex::decode(frame["plaintext_hex"].as_str().unwrap()).unwrap();
                let from_node = frame["direction"] == "node-to-server";
                let mut message = wire.clone();
                let receiver = if from_node { &mut server } else { &mut node };
                let (kind, opened) = receiver.open(&mut message).unwrap();
                assert_eq!(
                    (kind as u8, &*opened),
                    (u8::try_from(frame["type"].as_u64().unwrap()).unwrap(), &plaintext[..])
                );

                // Sealing the same plaintext with the recorded nonce gives the recorded frame.
                let key = Pure.aead_key(if from_node { &client_to_server } else { &server_to_client });
                let header = Header {
                    kind,
                    sequence: frame["sequence"].to_string().trim_matches('"').parse().unwrap(),
                    nonce: wire[10..22].try_into().unwrap(),
                    length: u32::try_from(plaintext.len()).unwrap(),
                };
                let mut sealed = plaintext;
                let tag = Pure.seal(&key, &header.nonce, &header.aad(), &mut sealed);
                let rebuilt = [&header.to_bytes()[..], &sealed, &tag].concat();
                assert_eq!(rebuilt, wire);
                assert_eq!(tag.len(), TAG);
            }
        }
    }

    /// A node, and the answers of a server of our own.
    fn start(server_key: Option<[u8; 32]>) -> (Handshake<Pure>, Value) {
        let identity = Identity::from_seed(Pure, &[1; 32]);
        let claims = Claims {
            mode: Mode::Control,
            node_id: Some("n"),
            candidate_id: None,
            release_version: Some("1"),
        };
        let (handshake, message) =
            Handshake::start(Pure, &identity, claims, server_key, &mut Drbg::new([2; 32]), at(1000));
        (handshake, serde_json::from_slice(&message).unwrap())
    }

    fn accept(init: &Value, server_seed: &[u8; 32]) -> Value {
        let mut rng = Drbg::new([3; 32]);
        let (secret, point) = Pure.generate_ephemeral(&mut rng);
        let shared = Pure
            .agree(secret, &base64::decode_array(init["client_public_key"].as_str().unwrap()).unwrap())
            .unwrap();
        let transcript = Pure.sha256(&[canonical::without(init, "signature").as_bytes()]);
        let client_nonce = base64::decode_array(init["client_nonce"].as_str().unwrap()).unwrap();
        let server_nonce = [4; 32];
        let keys = Keys::derive(&Pure, &shared, &client_nonce, &server_nonce, &transcript);
        let mut accept = serde_json::json!({
            "type": "handshake_accept", "protocol": PROTOCOL, "version": 1, "timestamp": 1001, "new": "member",
            "server_public_key": base64::encode(&point), "server_nonce": base64::encode(&server_nonce),
            "session_id": keys.session_id.as_str(),
        });
        let server = Identity::from_seed(Pure, server_seed);
        accept["signature"] = server.sign(canonical::to_canonical(&accept).as_bytes()).into();
        accept
    }

    fn finish(handshake: Handshake<Pure>, answer: &Value) -> Result<Session<Pure>, HandshakeError> {
        handshake.finish(&serde_json::to_vec(answer).unwrap(), Drbg::new([0; 32])).map(|(session, _)| session)
    }

    fn key_of(seed: &[u8; 32]) -> [u8; 32] {
        *Identity::from_seed(Pure, seed).public_key()
    }

    #[test]
    fn a_pinned_key_must_sign_and_without_a_pin_the_signature_is_ignored() {
        let (handshake, init) = start(Some(key_of(&[9; 32])));
        assert!(finish(handshake, &accept(&init, &[9; 32])).is_ok());

        let (handshake, init) = start(Some(key_of(&[9; 32])));
        assert_eq!(finish(handshake, &accept(&init, &[8; 32])).unwrap_err(), HandshakeError::BadSignature);

        let (handshake, init) = start(Some(key_of(&[9; 32])));
        let mut unsigned = accept(&init, &[9; 32]);
        unsigned.as_object_mut().unwrap().remove("signature");
        assert_eq!(finish(handshake, &unsigned).unwrap_err(), HandshakeError::Unsigned);

        let (handshake, init) = start(None);
        assert!(finish(handshake, &accept(&init, &[8; 32])).is_ok());
    }

    #[test]
    fn a_tampered_accept_does_not_give_a_session() {
        for (member, value) in [
            ("server_nonce", base64::encode(&[5; 32])),
            ("session_id", "00000000000000000000000000000000".to_string()),
            ("session_id", String::new()),
        ] {
            let (handshake, init) = start(None);
            let mut answer = accept(&init, &[9; 32]);
            answer[member] = value.into();
            assert_eq!(finish(handshake, &answer).unwrap_err(), HandshakeError::WrongSession, "{member}");
        }
    }

    #[test]
    fn a_server_key_off_the_curve_or_compressed_is_refused() {
        let off_curve = [&[4][..], &[1; 64]].concat();
        let compressed = [&[2][..], &[1; 32]].concat();
        let hybrid = [&[6][..], &[1; 64]].concat();
        for point in [off_curve, compressed, hybrid, Vec::new()] {
            let (handshake, init) = start(None);
            let mut answer = accept(&init, &[9; 32]);
            answer["server_public_key"] = base64::encode(&point).into();
            assert_eq!(finish(handshake, &answer).unwrap_err(), HandshakeError::BadPoint);
        }
    }

    #[test]
    fn a_reject_says_what_the_server_said_in_printable_text() {
        let (handshake, _) = start(None);
        let reject = serde_json::json!({
            "type": "handshake_reject", "protocol": PROTOCOL, "version": 1, "timestamp": 2000.9,
            "code": "stale\u{7}", "message": "clock\noff",
        });
        let expected = HandshakeError::Rejected {
            code: "stale ".into(),
            message: "clock off".into(),
            server_time: 2000,
        };
        assert_eq!(finish(handshake, &reject).unwrap_err(), expected);
    }

    #[test]
    fn other_protocols_and_junk_are_told_apart() {
        let (handshake, init) = start(None);
        let mut answer = accept(&init, &[9; 32]);
        answer["version"] = 2.into();
        assert!(matches!(finish(handshake, &answer), Err(HandshakeError::Incompatible { .. })));
        for junk in [&b""[..], b"[]", b"{}", b"\xff", &[b'['; MAX_HANDSHAKE + 1]] {
            let (handshake, _) = start(None);
            let result = handshake.finish(junk, Drbg::new([0; 32]));
            assert!(matches!(result, Err(HandshakeError::Malformed(_))));
        }
    }
}
