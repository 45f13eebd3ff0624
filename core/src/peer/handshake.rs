//! The server's half of the tunnel handshake (protocol.md section 3).

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use crate::crypto::identity::{Identity, verify_base64};
use crate::crypto::{Crypto, Drbg, Point, constant_time_eq, pem};
use crate::limits::{HANDSHAKE_CLOCK_TOLERANCE, MAX_HANDSHAKE};
use crate::text::printable;
use crate::time::Now;
use crate::tunnel::Mode;
use crate::tunnel::handshake::{Init, PROTOCOL, VERSION};
use crate::tunnel::session::{Keys, Role, Session};
use crate::wire::{base64, canonical};

/// Why the server does not take a handshake. `code` and the text of [`fmt::Display`] go into `handshake_reject`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Not a `handshake_init`.
    Malformed(String),
    /// Another protocol or version.
    Incompatible,
    /// The node's clock is too far off.
    StaleClock {
        /// Seconds between the two clocks.
        off_by: u64,
    },
    /// The signature is not the key's.
    BadSignature,
    /// Control mode without a `node_id`, or with one that is not registered.
    UnknownNode,
    /// Control mode with another key than the registered one.
    WrongKey,
    /// The node's ephemeral key is not a point on the curve.
    BadPoint,
    /// The operator of this server wants it rejected.
    Policy {
        /// The code to send.
        code: String,
    },
}

impl Reject {
    /// The `code` of `handshake_reject`.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Incompatible => "unsupported_version",
            Self::StaleClock { .. } => "stale_timestamp",
            Self::BadSignature => "invalid_signature",
            Self::UnknownNode => "unknown_node",
            Self::WrongKey => "key_mismatch",
            Self::BadPoint => "invalid_public_key",
            Self::Policy { code } => code,
        }
    }

    /// The `handshake_reject` to send; WebSocket close 1008 follows it.
    #[must_use]
    pub fn message(&self, now: Now) -> Vec<u8> {
        let text = self.to_string();
        let message = RejectMessage {
            kind: "handshake_reject",
            protocol: PROTOCOL,
            version: VERSION,
            timestamp: now.unix_seconds(),
            code: self.code(),
            message: &text,
        };
        serde_json::to_vec(&message).unwrap_or_default()
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(detail) => write!(f, "not a handshake_init: {detail}"),
            Self::Incompatible => write!(f, "this server speaks {PROTOCOL} version {VERSION}"),
            Self::StaleClock { off_by } => write!(f, "the timestamp is {off_by} s off this server's clock"),
            Self::BadSignature => f.write_str("the signature does not verify"),
            Self::UnknownNode => f.write_str("no node of that name is registered"),
            Self::WrongKey => f.write_str("the key is not the one the node registered with"),
            Self::BadPoint => f.write_str("client_public_key is not a point on P-256"),
            Self::Policy { .. } => f.write_str("this server does not take the node"),
        }
    }
}

impl core::error::Error for Reject {}

#[derive(Serialize)]
struct RejectMessage<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    protocol: &'a str,
    version: u64,
    timestamp: u64,
    code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct AcceptMessage<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    protocol: &'a str,
    version: u64,
    timestamp: u64,
    server_public_key: String,
    server_nonce: String,
    session_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// Who is at the other end of an accepted handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What the tunnel is for.
    pub mode: Mode,
    /// The node's identity key.
    pub public_key: [u8; 32],
    /// Its registered name; always there in control mode.
    pub node_id: Option<String>,
    /// The operator's name for the candidate.
    pub candidate_id: Option<String>,
    /// Its release.
    pub release_version: Option<String>,
}

/// An accepted handshake.
pub struct Accepted<C: Crypto> {
    /// The `handshake_accept` to send.
    pub message: Vec<u8>,
    /// The server's end of the session.
    pub session: Session<C>,
    /// The other end.
    pub caller: Caller,
}

impl<C: Crypto> fmt::Debug for Accepted<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("caller", &self.caller).finish_non_exhaustive()
    }
}

/// Takes a `handshake_init`. `signer` signs the answer, where the server signs; `registered` gives the key of a
/// registered name.
///
/// # Errors
/// Why not; the caller sends [`Reject::message`] and closes with 1008.
pub fn accept<C: Crypto>(
    crypto: &C,
    signer: Option<&Identity<C>>,
    init: &[u8],
    registered: impl FnOnce(&str) -> Option<[u8; 32]>,
    rng: &mut Drbg,
    now: Now,
) -> Result<Accepted<C>, Reject> {
    let server_nonce = rng.bytes::<32>();
    let ephemeral = crypto.generate_ephemeral(rng);
    let verified = verify(crypto, init, registered, now)?;
    answer(crypto, signer, verified, ephemeral, &server_nonce, rng.fork(), now)
}

/// An init whose every claim was checked.
struct Verified {
    caller: Caller,
    client_point: Point,
    client_nonce: [u8; 32],
    transcript: [u8; 32],
}

fn verify<C: Crypto>(
    crypto: &C,
    init: &[u8],
    registered: impl FnOnce(&str) -> Option<[u8; 32]>,
    now: Now,
) -> Result<Verified, Reject> {
    let malformed = |detail: &str| Reject::Malformed(printable(detail));
    if init.len() > MAX_HANDSHAKE {
        return Err(malformed("it is too long"));
    }
    let value: Value = serde_json::from_slice(init).map_err(|e| malformed(&e.to_string()))?;
    let fields = Init::deserialize(&value).map_err(|e| malformed(&e.to_string()))?;
    if fields.kind != "handshake_init" {
        return Err(malformed(&fields.kind));
    }
    if fields.protocol != PROTOCOL || fields.version != VERSION {
        return Err(Reject::Incompatible);
    }
    let off_by = fields.timestamp.abs_diff(now.unix_seconds());
    if off_by > HANDSHAKE_CLOCK_TOLERANCE.as_secs() {
        return Err(Reject::StaleClock { off_by });
    }
    let public_key = pem::decode_public(&fields.node_public_key_pem)
        .map_err(|e| malformed(&format!("node_public_key_pem: {e}")))?;
    let signed = canonical::without(&value, "signature");
    let signature = fields.signature.as_deref().unwrap_or_default();
    if !verify_base64(crypto, &public_key, signed.as_bytes(), signature) {
        return Err(Reject::BadSignature);
    }
    if fields.mode == Mode::Control {
        let key = fields.node_id.as_deref().and_then(registered).ok_or(Reject::UnknownNode)?;
        if !constant_time_eq(&key, &public_key) {
            return Err(Reject::WrongKey);
        }
    }
    let client_point = base64::decode_array::<65>(&fields.client_public_key).ok_or(Reject::BadPoint)?;
    let client_nonce = base64::decode_array::<32>(&fields.client_nonce)
        .ok_or_else(|| malformed("client_nonce is not 32 bytes of base64"))?;
    Ok(Verified {
        caller: Caller {
            mode: fields.mode,
            public_key,
            node_id: fields.node_id,
            candidate_id: fields.candidate_id,
            release_version: fields.release_version,
        },
        client_point,
        client_nonce,
        transcript: crypto.sha256(&[signed.as_bytes()]),
    })
}

fn answer<C: Crypto>(
    crypto: &C,
    signer: Option<&Identity<C>>,
    verified: Verified,
    (secret, point): (C::EphemeralSecret, Point),
    server_nonce: &[u8; 32],
    nonces: Drbg,
    now: Now,
) -> Result<Accepted<C>, Reject> {
    let shared = crypto.agree(secret, &verified.client_point).map_err(|_| Reject::BadPoint)?;
    let keys = Keys::derive(crypto, &shared, &verified.client_nonce, server_nonce, &verified.transcript);
    let mut accept = AcceptMessage {
        kind: "handshake_accept",
        protocol: PROTOCOL,
        version: VERSION,
        timestamp: now.unix_seconds(),
        server_public_key: base64::encode(&point),
        server_nonce: base64::encode(server_nonce),
        session_id: keys.session_id.as_str(),
        signature: None,
    };
    // Serialising strings and numbers cannot fail.
    accept.signature =
        signer.map(|signer| signer.sign(canonical::of(&accept).unwrap_or_default().as_bytes()));
    let message = serde_json::to_vec(&accept).unwrap_or_default();
    let session = Session::new(crypto.clone(), keys, Role::Server, nonces);
    Ok(Accepted { message, session, caller: verified.caller })
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::crypto::pure::Pure;
    use crate::tunnel::handshake::{Claims, Handshake};
    use crate::wire::canonical::tests::vectors;
    use crate::wire::frame::{FrameBuf, FrameType};
    use crate::wire::hex;

    const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_790_000_000) };

    fn node() -> Identity<Pure> {
        Identity::from_seed(Pure, &[1; 32])
    }

    fn start(mode: Mode, node_id: Option<&str>) -> (Handshake<Pure>, Vec<u8>) {
        let claims = Claims { mode, node_id, candidate_id: None, release_version: Some("1.0.0") };
        Handshake::start(Pure, &node(), claims, None, &mut Drbg::new([2; 32]), NOW)
    }

    fn ask(init: &[u8], key: Option<[u8; 32]>, now: Now) -> Result<Accepted<Pure>, Reject> {
        accept(&Pure, None, init, |_| key, &mut Drbg::new([3; 32]), now)
    }

    #[test]
    fn both_halves_agree_on_a_session_in_both_directions() {
        let (handshake, init) = start(Mode::Eval, None);
        let accepted = ask(&init, None, NOW).unwrap();
        let (mut node, clock) = handshake.finish(&accepted.message, Drbg::new([4; 32])).unwrap();
        assert_eq!(clock, NOW.unix_seconds());
        let mut server = accepted.session;
        assert_eq!(node.session_id(), server.session_id());
        let mut up = node.seal(FrameType::Data, FrameBuf::from_plaintext(b"up"));
        assert_eq!(server.open(&mut up).unwrap().1, b"up");
        let mut down = server.seal(FrameType::Data, FrameBuf::from_plaintext(b"down"));
        assert_eq!(node.open(&mut down).unwrap().1, b"down");
    }

    #[test]
    fn a_clock_is_taken_up_to_the_tolerance_and_not_a_second_more() {
        let (_, init) = start(Mode::Eval, None);
        for (offset, ok) in [(120, true), (121, false)] {
            let later = Now { unix: NOW.unix + Duration::from_secs(offset), ..NOW };
            let earlier = Now { unix: NOW.unix - Duration::from_secs(offset), ..NOW };
            assert_eq!(ask(&init, None, later).is_ok(), ok);
            assert_eq!(ask(&init, None, earlier).is_ok(), ok);
        }
    }

    #[test]
    fn control_mode_needs_the_registered_name_and_its_key() {
        let (_, init) = start(Mode::Control, Some("n1"));
        assert_eq!(ask(&init, None, NOW).unwrap_err(), Reject::UnknownNode);
        assert_eq!(ask(&init, Some([9; 32]), NOW).unwrap_err(), Reject::WrongKey);
        let accepted = ask(&init, Some(*node().public_key()), NOW).unwrap();
        assert_eq!(accepted.caller.node_id.as_deref(), Some("n1"));
        let (_, init) = start(Mode::Control, None);
        assert_eq!(ask(&init, Some(*node().public_key()), NOW).unwrap_err(), Reject::UnknownNode);
    }

    #[test]
    fn every_changed_member_breaks_the_signature_or_is_refused_by_name() {
        let (_, init) = start(Mode::Eval, None);
        let value: Value = serde_json::from_slice(&init).unwrap();
        for (member, changed) in [
            ("release_version", Value::from("2.0.0")),
            ("client_nonce", Value::from(base64::encode(&[0; 32]))),
            ("extra", Value::from(1)),
        ] {
            let mut value = value.clone();
            value[member] = changed;
            let bytes = serde_json::to_vec(&value).unwrap();
            assert_eq!(ask(&bytes, None, NOW).unwrap_err(), Reject::BadSignature, "{member}");
        }
        let mut other = value.clone();
        other["version"] = Value::from(2);
        assert_eq!(ask(&serde_json::to_vec(&other).unwrap(), None, NOW).unwrap_err(), Reject::Incompatible);
        for bytes in [&b""[..], b"{}", b"null", b"{\"type\":\"handshake_init\"}", &[b' '; MAX_HANDSHAKE + 1]]
        {
            assert!(matches!(ask(bytes, None, NOW), Err(Reject::Malformed(_))));
        }
    }

    #[test]
    fn a_reject_is_understood_by_the_node() {
        let (handshake, _) = start(Mode::Eval, None);
        let reject = Reject::StaleClock { off_by: 300 };
        let error = handshake.finish(&reject.message(NOW), Drbg::new([4; 32])).unwrap_err();
        assert!(error.to_string().contains("stale_timestamp"), "{error}");
        assert!(error.to_string().contains("300 s"), "{error}");
    }

    /// `CONSENSUS_VECTORS`: what the deployed server answered, byte for byte.
    #[test]
    fn the_deployed_networks_handshakes_are_answered_as_its_server_did() {
        let Some(file) = vectors("tunnel-handshake") else { return };
        let vectors = file["vectors"].as_array().unwrap();
        assert!(!vectors.is_empty());
        for vector in vectors {
            let bytes = |name: &str| -> [u8; 32] {
                hex::decode(vector[name].as_str().unwrap()).unwrap().try_into().unwrap()
            };
            let accept_wanted = &vector["accept"];
            let seconds = |message: &Value| Duration::from_secs(message["timestamp"].as_u64().unwrap());
            let now = Now { monotonic: Duration::ZERO, unix: seconds(accept_wanted) };
            let init = serde_json::to_vec(&vector["init"]).unwrap();
            let node_key = pem::decode_public(vector["node_public_key_pem"].as_str().unwrap()).unwrap();
            let verified = verify(&Pure, &init, |_| Some(node_key), now).unwrap();
            let ephemeral = Pure::ephemeral_from_scalar(&bytes("server_ecdh_private_hex")).unwrap();
            let signer = Identity::from_seed(Pure, &bytes("server_signing_seed_hex"));
            let nonce = bytes("server_nonce_hex");
            let accepted =
                answer(&Pure, Some(&signer), verified, ephemeral, &nonce, Drbg::new([0; 32]), now).unwrap();
            let sent: Value = serde_json::from_slice(&accepted.message).unwrap();
            assert_eq!(&sent, accept_wanted);
            let mut session = accepted.session;
            for frame in vector["frames"].as_array().unwrap() {
                if frame["direction"] == "node-to-server" {
                    let mut message = hex::decode(frame["frame_hex"].as_str().unwrap()).unwrap();
                    let plaintext = hex::decode(frame["plaintext_hex"].as_str().unwrap()).unwrap();
                    assert_eq!(session.open(&mut message).unwrap().1, plaintext);
                }
            }
        }
    }
}
