//! The client's half of the data plane (protocol.md section 10).

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::crypto::identity::verify_base64;
use crate::crypto::{Crypto, Drbg, constant_time_eq};
use crate::data_plane::dedupe;
use crate::data_plane::responder::{Accept, PROOF_PROTOCOL, PROTOCOL, VERSION, channel_binding};
use crate::time::Now;
use crate::tunnel::session::{Keys, Role, Session};
use crate::wire::frame::FrameBuf;
use crate::wire::message::BodyEncoding;
use crate::wire::{base64, canonical};

/// How old a proof may be.
pub const MAX_AGE: Duration = Duration::from_secs(30);

/// How far the two clocks may be apart on top of that.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// Why a proof does not show that the wanted node answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofError {
    /// Not a proof of this protocol and version.
    Malformed,
    /// Of another node.
    NodeId,
    /// Made for another client's question.
    ClientNonce,
    /// Made for another channel, or for none.
    ChannelBinding,
    /// Too old.
    Expired,
    /// From the future.
    Future,
    /// Not signed by the node's key.
    Signature,
}

impl ProofError {
    /// A word for programs: the member at fault, or the kind of staleness.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NodeId => "node_id",
            Self::ClientNonce => "client_nonce",
            Self::ChannelBinding => "channel_binding",
            Self::Expired => "expired",
            Self::Future => "future",
            Self::Signature => "signature",
        }
    }
}

impl fmt::Display for ProofError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "not a proof of this protocol version",
            Self::NodeId => "the proof is another node's",
            Self::ClientNonce => "the proof answers another client nonce",
            Self::ChannelBinding => "the proof is bound to another channel",
            Self::Expired => "the proof is too old",
            Self::Future => "the proof is from the future",
            Self::Signature => "the proof is not signed by the node's key",
        })
    }
}

impl core::error::Error for ProofError {}

/// What the client asked for.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'a> {
    /// The node it wants to talk to.
    pub node_id: &'a str,
    /// Its nonce, as sent.
    pub client_nonce: &'a str,
    /// The hash of the channel, base64; `None` outside a channel.
    pub channel_binding: Option<&'a str>,
    /// The key it was given for the node.
    pub public_key: &'a [u8; 32],
}

#[derive(Deserialize)]
struct Proof {
    protocol: String,
    version: u64,
    node_id: String,
    client_nonce: String,
    timestamp: f64,
    channel_binding: Option<String>,
    signature: String,
}

/// Checks a proof, as received, against what the client asked for.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn verify_proof<C: Crypto>(
    crypto: &C,
    challenge: Challenge<'_>,
    proof: &Value,
    now: Now,
) -> Result<(), ProofError> {
    let fields = Proof::deserialize(proof).map_err(|_| ProofError::Malformed)?;
    if fields.protocol != PROOF_PROTOCOL || fields.version != 1 {
        return Err(ProofError::Malformed);
    }
    if fields.node_id != challenge.node_id {
        return Err(ProofError::NodeId);
    }
    if !constant_time_eq(fields.client_nonce.as_bytes(), challenge.client_nonce.as_bytes()) {
        return Err(ProofError::ClientNonce);
    }
    if fields.channel_binding.as_deref() != challenge.channel_binding {
        return Err(ProofError::ChannelBinding);
    }
    let now = now.unix.as_secs_f64();
    let tolerance = CLOCK_TOLERANCE.as_secs_f64();
    if now - fields.timestamp > MAX_AGE.as_secs_f64() + tolerance {
        return Err(ProofError::Expired);
    }
    if fields.timestamp - now > tolerance {
        return Err(ProofError::Future);
    }
    let signed = canonical::without(proof, "signature");
    if verify_base64(crypto, challenge.public_key, signed.as_bytes(), &fields.signature) {
        Ok(())
    } else {
        Err(ProofError::Signature)
    }
}

/// A connection whose `data_init` is sent.
pub struct Connecting<C: Crypto> {
    crypto: C,
    secret: C::EphemeralSecret,
    node_id: String,
    public_key: String,
    nonce: [u8; 32],
}

impl<C: Crypto> fmt::Debug for Connecting<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connecting").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Not a `data_accept` of version 1, or one whose keys do not fit together.
    Malformed,
    /// The node did not prove who it is.
    Proof(ProofError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("not a data_accept of version 1"),
            Self::Proof(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ConnectError {}

impl<C: Crypto> Connecting<C> {
    /// Starts a connection to the node of that name: what waits for its answer, and the `data_init` to send.
    pub fn start(crypto: C, node_id: &str, rng: &mut Drbg, now: Now) -> (Self, Vec<u8>) {
        let nonce = rng.bytes::<32>();
        let (secret, point) = crypto.generate_ephemeral(rng);
        let public_key = base64::encode(&point);
        let init = serde_json::json!({
            "type": "data_init", "protocol": PROTOCOL, "version": VERSION, "node_id": node_id,
            "client_public_key": public_key, "client_nonce": base64::encode(&nonce), "timestamp": now.unix_seconds(),
        });
        let connecting = Self { crypto, secret, node_id: node_id.into(), public_key, nonce };
        (connecting, init.to_string().into_bytes())
    }

    /// Takes the node's answer; `node_key` is the key the client was given for the node.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn finish(
        self,
        accept: &[u8],
        node_key: &[u8; 32],
        nonces: Drbg,
        now: Now,
    ) -> Result<Session<C>, ConnectError> {
        let accept: Value = serde_json::from_slice(accept).map_err(|_| ConnectError::Malformed)?;
        let fields = Accept::deserialize(&accept).map_err(|_| ConnectError::Malformed)?;
        if fields.kind != "data_accept" || fields.protocol != PROTOCOL || fields.version != VERSION {
            return Err(ConnectError::Malformed);
        }
        let client_nonce = base64::encode(&self.nonce);
        let node = (fields.node_public_key.as_str(), fields.proof.node_nonce.as_str());
        let binding = channel_binding(&self.crypto, &self.node_id, (&self.public_key, &client_nonce), node);
        let binding_text = base64::encode(&binding);
        let challenge = Challenge {
            node_id: &self.node_id,
            client_nonce: &client_nonce,
            channel_binding: Some(&binding_text),
            public_key: node_key,
        };
        let proof = accept.get("proof").unwrap_or(&Value::Null);
        verify_proof(&self.crypto, challenge, proof, now).map_err(ConnectError::Proof)?;
        let point = base64::decode_array(node.0).ok_or(ConnectError::Malformed)?;
        let node_nonce = base64::decode_array(node.1).ok_or(ConnectError::Malformed)?;
        let shared = self.crypto.agree(self.secret, &point).map_err(|_| ConnectError::Malformed)?;
        let keys = Keys::derive(&self.crypto, &shared, &self.nonce, &node_nonce, &binding);
        if keys.session_id.as_str() != fields.session_id {
            return Err(ConnectError::Malformed);
        }
        Ok(Session::new(self.crypto, keys, Role::Client, nonces))
    }
}

/// What a client wants fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// What to fetch.
    pub target_url: String,
    /// `GET` where there is none.
    pub method: Option<String>,
    /// To be sent, after cleaning.
    pub headers: BTreeMap<String, String>,
    /// To be sent.
    pub body: Option<Vec<u8>>,
}

impl Request {
    /// Names the request: what its ticket is bound to. `None` where the URL is not one.
    pub fn dedupe_key<C: Crypto>(&self, crypto: &C) -> Option<String> {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let method = self.method.as_deref().unwrap_or("GET");
        dedupe::key(crypto, &self.target_url, method, headers, self.body.as_deref())
    }

    /// The plaintext of the request's frame, paid for with `token`.
    #[must_use]
    pub fn encode(&self, token: &str) -> FrameBuf {
        #[derive(Serialize)]
        struct Head<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            token: &'a str,
            target_url: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            method: Option<&'a str>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            headers: &'a BTreeMap<String, String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            body_encoding: Option<BodyEncoding>,
        }
        let head = Head {
            kind: "proxy_request",
            token,
            target_url: &self.target_url,
            method: self.method.as_deref(),
            headers: &self.headers,
            body_encoding: self.body.as_ref().map(|_| BodyEncoding::Base64),
        };
        // Serialising text cannot fail.
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let Some(body) = &self.body else { return FrameBuf::from_plaintext(&head) };
        let encoded = body.len().div_ceil(3).saturating_mul(4);
        let mut out = FrameBuf::with_capacity(head.len().saturating_add(encoded).saturating_add(16));
        out.extend(head.strip_suffix(b"}").unwrap_or(&head));
        out.extend(b",\"body\":\"");
        out.extend_base64(body);
        out.extend(b"\"}");
        out
    }
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was fetched.
    Response {
        /// HTTP status.
        status: u16,
        /// HTTP reason phrase.
        status_text: String,
        /// One string a name.
        headers: BTreeMap<String, String>,
        /// The body.
        body: Vec<u8>,
    },
    /// The node fetched nothing.
    Error {
        /// `bad_request`, `unauthorized` or `upstream_error`.
        code: String,
        /// Why.
        message: String,
    },
}

impl Answer {
    /// Reads the plaintext of the answer's frame; `None` where it is no answer.
    #[must_use]
    pub fn parse(plaintext: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Kind {
            ProxyResponse,
            Error,
        }
        #[derive(Deserialize)]
        struct Response<'a> {
            status: u16,
            #[serde(default)]
            status_text: String,
            headers: BTreeMap<String, String>,
            #[serde(borrow)]
            body: Cow<'a, str>,
            #[serde(default)]
            body_encoding: BodyEncoding,
        }
        #[derive(Deserialize)]
        struct Error {
            code: String,
            #[serde(default)]
            message: String,
        }
        let text = core::str::from_utf8(plaintext).ok()?;
        match serde_json::from_str(text).ok()? {
            Kind::ProxyResponse => {
                let Response { status, status_text, headers, body, body_encoding } =
                    serde_json::from_str(text).ok()?;
                let body = match body_encoding {
                    BodyEncoding::Base64 => base64::decode(&body)?,
                    BodyEncoding::Utf8 => body.into_owned().into_bytes(),
                };
                Some(Self::Response { status, status_text, headers, body })
            }
            Kind::Error => {
                let Error { code, message } = serde_json::from_str(text).ok()?;
                Some(Self::Error { code, message })
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::crypto::identity::Identity;
    use crate::crypto::pem;
    use crate::crypto::pure::Pure;
    use crate::wire::canonical::tests::vectors;

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_request_stands_in_its_frame_as_the_node_reads_it() {
        let mut request = Request { target_url: "http://a/\"".into(), ..Request::default() };
        let read =
            |request: &Request| serde_json::from_slice::<Value>(request.encode("t").plaintext()).unwrap();
        assert_eq!(
            read(&request),
            serde_json::json!({"type": "proxy_request", "token": "t", "target_url": "http://a/\""})
        );
        request.method = Some("PUT".into());
        request.headers.insert("accept".into(), "a/b".into());
        request.body = Some(b"\xff\x00".to_vec());
        assert_eq!(
            read(&request),
            serde_json::json!({"type": "proxy_request", "token": "t", "target_url": "http://a/\"", "method": "PUT",
                "headers": {"accept": "a/b"}, "body": "/wA=", "body_encoding": "base64"})
        );
        let other = Request { method: None, ..request.clone() };
        assert_ne!(request.dedupe_key(&Pure).unwrap(), other.dedupe_key(&Pure).unwrap());
        assert_eq!(Request::default().dedupe_key(&Pure), None, "no URL");
    }

    #[test]
    fn an_answer_is_a_response_or_an_error_and_nothing_else() {
        let headers = [("X-A".to_string(), "1".to_string())];
        let response = crate::wire::message::encode_proxy_response(None, 203, "Fine", &headers, b"\xff\x00");
        assert_eq!(
            Answer::parse(response.plaintext()),
            Some(Answer::Response {
                status: 203,
                status_text: "Fine".into(),
                headers: BTreeMap::from([("x-a".into(), "1".into())]),
                body: b"\xff\x00".to_vec(),
            })
        );
        let error = br#"{"type":"error","code":"unauthorized","message":"no"}"#;
        let expected = Answer::Error { code: "unauthorized".into(), message: "no".into() };
        assert_eq!(Answer::parse(error), Some(expected));
        for other in [
            &b""[..],
            b"\xff",
            b"{}",
            br#"{"type":"dance"}"#,
            br#"{"type":"error"}"#,
            br#"{"type":"proxy_response","status":200,"headers":{},"body":"?","body_encoding":"base64"}"#,
        ] {
            assert_eq!(Answer::parse(other), None);
        }
    }

    #[test]
    fn a_proof_is_good_for_its_age_and_the_tolerance_on_both_sides() {
        let node = Identity::from_seed(Pure, &[5; 32]);
        let mut proof = serde_json::json!({
            "protocol": PROOF_PROTOCOL, "version": 1, "node_id": "n", "client_nonce": "AA==", "node_nonce": "AQ==",
            "timestamp": 1_000_000, "channel_binding": "Ag==",
        });
        proof["signature"] = Value::from(node.sign(canonical::to_canonical(&proof).as_bytes()));
        let challenge = Challenge {
            node_id: "n",
            client_nonce: "AA==",
            channel_binding: Some("Ag=="),
            public_key: node.public_key(),
        };
        for (now, expected) in [
            (999_994, Err(ProofError::Future)),
            (999_995, Ok(())),
            (1_000_035, Ok(())),
            (1_000_036, Err(ProofError::Expired)),
        ] {
            assert_eq!(verify_proof(&Pure, challenge, &proof, at(now)), expected, "{now}");
        }
        let unbound = Challenge { channel_binding: None, ..challenge };
        assert_eq!(
            verify_proof(&Pure, unbound, &proof, at(1_000_000)),
            Err(ProofError::ChannelBinding),
            "a proof for a channel is none outside of it"
        );
        assert_eq!(verify_proof(&Pure, challenge, &Value::Null, at(1_000_000)), Err(ProofError::Malformed));
    }

    /// `CONSENSUS_VECTORS`: proofs of the deployed network that verify, and some that must not.
    #[test]
    fn the_deployed_networks_proofs_are_judged_as_its_clients_do() {
        let Some(file) = vectors("responder-auth") else { return };
        let key = pem::decode_public(file["node_public_key_pem"].as_str().unwrap()).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert!(!vectors.is_empty());
        for vector in vectors {
            let asked = &vector["challenge"];
            let challenge = Challenge {
                node_id: vector["verify"]["expectedNodeId"]
                    .as_str()
                    .unwrap_or_else(|| asked["node_id"].as_str().unwrap()),
                client_nonce: asked["client_nonce"].as_str().unwrap(),
                channel_binding: asked["channel_binding"].as_str(),
                public_key: &key,
            };
            let now = at(vector["verify"]["now"].as_u64().unwrap());
            let judged = verify_proof(&Pure, challenge, &vector["proof"], now);
            let expected = vector["expect"]["error"].as_str();
            assert_eq!(judged.err().map(ProofError::kind), expected, "{}", vector["name"]);
        }
    }
}
