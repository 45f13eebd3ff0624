//! The node's half of one data-plane connection (protocol.md section 10), step by step.
//!
//! Each step consumes the one before, so that an impossible order does not compile, and none but
//! [`Spent::spend`](super::replay::Spent::spend) touches anything shared: the steps can run on any core.
//!
//! ```text
//! accept(data_init) → Responder, data_accept
//! Responder::open(frame) → Opened             (authentic and well-formed)
//! Opened::verify(gate) → Request              (ticket verified and bound; to be spent by the caller)
//! Request::encode(response) → Answer
//! Answer::seal | Request::refuse → frame
//! ```
//!
//! These are the stages that [`bench`](crate::bench) times one by one.

use alloc::borrow::Cow;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::ticket::{TicketError, Token};
use super::{dedupe, replay};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg, Point, constant_time_eq};
use crate::guard::{MAX_URL, Refused as NotFetched};
use crate::io::Response;
use crate::limits::{MAX_HANDSHAKE, MAX_ID};
use crate::time::Now;
use crate::tunnel::session::{Keys, Role, Session};
use crate::wire::frame::{FrameBuf, FrameType, MAX_PLAINTEXT};
use crate::wire::json::Object;
use crate::wire::message::{BodyEncoding, MAX_HEADERS_READ, decode_body, encode_proxy_response};
use crate::wire::{base64, hex};

/// The `protocol` of a data-plane handshake.
pub const PROTOCOL: &str = "consensus-data-plane";
/// The `protocol` of the node's proof.
pub const PROOF_PROTOCOL: &str = "consensus-node-responder-auth";
/// The `version` of both.
pub const VERSION: u64 = 1;

/// `data_init`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Init<'a> {
    /// `data_init`.
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// [`PROTOCOL`].
    #[serde(borrow)]
    pub protocol: Cow<'a, str>,
    /// [`VERSION`].
    pub version: u64,
    /// The node the client wants.
    #[serde(borrow)]
    pub node_id: Cow<'a, str>,
    /// Its ephemeral P-256 point, base64.
    #[serde(borrow)]
    pub client_public_key: Cow<'a, str>,
    /// 32 random bytes, base64.
    #[serde(borrow)]
    pub client_nonce: Cow<'a, str>,
}

/// The node's proof that it is who the client wants, bound to this channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// [`PROOF_PROTOCOL`].
    pub protocol: String,
    /// [`VERSION`].
    pub version: u64,
    /// The node.
    pub node_id: String,
    /// As the client sent it.
    pub client_nonce: String,
    /// 32 random bytes, base64.
    pub node_nonce: String,
    /// Unix seconds.
    pub timestamp: u64,
    /// Base64 of [`channel_binding`].
    pub channel_binding: String,
    /// Over the canonical JSON of the other members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// `data_accept`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// `data_accept`.
    #[serde(rename = "type")]
    pub kind: String,
    /// [`PROTOCOL`].
    pub protocol: String,
    /// [`VERSION`].
    pub version: u64,
    /// The node's ephemeral P-256 point, base64.
    pub node_public_key: String,
    /// As derived.
    pub session_id: String,
    /// Who the node is.
    pub proof: Proof,
}

/// Why a connection ends before there is a session: the client is told nothing but the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// Not a `data_init` of version 1.
    Malformed,
    /// For another node.
    OtherNode,
    /// The client's ephemeral key is not a point on the curve.
    BadPoint,
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "not a data_init of version 1",
            Self::OtherNode => "the client wants another node",
            Self::BadPoint => "the client's ephemeral key is not a point on P-256",
        })
    }
}

impl core::error::Error for AcceptError {}

/// `B`: the hash of everything both sides put into the handshake, over the texts as sent.
pub fn channel_binding<C: Crypto>(
    crypto: &C,
    node_id: &str,
    client: (&str, &str),
    node: (&str, &str),
) -> [u8; 32] {
    let mut text = String::with_capacity(HANDSHAKE_TEXT);
    write_bound(&mut text, node_id, client, node);
    crypto.sha256(&[text.as_bytes()])
}

/// What the channel binding is made of, in canonical order.
fn write_bound(text: &mut String, node_id: &str, client: (&str, &str), node: (&str, &str)) {
    let mut bound = Object::open(text);
    bound.text("client_nonce", client.1);
    bound.text("client_public_key", client.0);
    bound.text("node_id", node_id);
    bound.text("node_nonce", node.1);
    bound.text("node_public_key", node.0);
    bound.text("protocol", PROTOCOL);
    bound.number("version", VERSION);
    bound.close();
}

/// The texts of a handshake have under so many bytes, with the names that nodes have.
const HANDSHAKE_TEXT: usize = 1024;

/// A connection whose handshake is done and whose request has not come.
#[derive(Debug)]
pub struct Responder<C: Crypto> {
    crypto: C,
    session: Session<C>,
}

/// Takes a `data_init`; gives the connection and the `data_accept` to send.
///
/// # Errors
/// [`AcceptError`].
pub fn accept<C: Crypto>(
    crypto: C,
    identity: &Identity<C>,
    node_id: &str,
    init: &[u8],
    rng: &mut Drbg,
    now: Now,
) -> Result<(Responder<C>, Vec<u8>), AcceptError> {
    if init.len() > MAX_HANDSHAKE {
        return Err(AcceptError::Malformed);
    }
    let init: Init<'_> = serde_json::from_slice(init).map_err(|_| AcceptError::Malformed)?;
    if init.kind != "data_init" || init.protocol != PROTOCOL || init.version != VERSION {
        return Err(AcceptError::Malformed);
    }
    if init.node_id != node_id {
        return Err(AcceptError::OtherNode);
    }
    let node_nonce = rng.bytes::<32>();
    let ephemeral = crypto.generate_ephemeral(rng);
    answer(crypto, identity, &init, ephemeral, &node_nonce, rng.fork(), now)
}

fn answer<C: Crypto>(
    crypto: C,
    identity: &Identity<C>,
    init: &Init<'_>,
    ephemeral: (C::EphemeralSecret, Point),
    node_nonce: &[u8; 32],
    nonces: Drbg,
    now: Now,
) -> Result<(Responder<C>, Vec<u8>), AcceptError> {
    let client_nonce = base64::decode_array::<32>(&init.client_nonce).ok_or(AcceptError::Malformed)?;
    let client_point = base64::decode_array::<65>(&init.client_public_key).ok_or(AcceptError::BadPoint)?;
    let (secret, point) = ephemeral;
    let shared = crypto.agree(secret, &client_point).map_err(|_| AcceptError::BadPoint)?;
    let (node_public_key, nonce_text) = (base64::Text::of(&point), base64::Text::of(node_nonce));
    let (node_public_key, nonce_text) = (node_public_key.as_str(), nonce_text.as_str());
    // One buffer for all three texts, the last of which is sent.
    let mut text = String::with_capacity(HANDSHAKE_TEXT);
    let client = (&*init.client_public_key, &*init.client_nonce);
    write_bound(&mut text, &init.node_id, client, (node_public_key, nonce_text));
    let binding = crypto.sha256(&[text.as_bytes()]);
    let keys = Keys::derive(&crypto, &shared, &client_nonce, node_nonce, &binding);
    let binding = base64::Text::of(&binding);

    text.clear();
    // In canonical order: this is what is signed.
    let mut proof = Object::open(&mut text);
    proof.text("channel_binding", binding.as_str());
    proof.text("client_nonce", &init.client_nonce);
    proof.text("node_id", &init.node_id);
    proof.text("node_nonce", nonce_text);
    proof.text("protocol", PROOF_PROTOCOL);
    proof.number("timestamp", now.unix_seconds());
    proof.number("version", VERSION);
    proof.close();
    let signature = base64::Text::of(&identity.sign_bytes(text.as_bytes()));

    text.clear();
    let mut accept = Object::open(&mut text);
    accept.text("type", "data_accept");
    accept.text("protocol", PROTOCOL);
    accept.number("version", VERSION);
    accept.text("node_public_key", node_public_key);
    accept.text("session_id", keys.session_id.as_str());
    let mut proof = accept.object("proof");
    proof.text("protocol", PROOF_PROTOCOL);
    proof.number("version", VERSION);
    proof.text("node_id", &init.node_id);
    proof.text("client_nonce", &init.client_nonce);
    proof.text("node_nonce", nonce_text);
    proof.number("timestamp", now.unix_seconds());
    proof.text("channel_binding", binding.as_str());
    proof.text("signature", signature.as_str());
    proof.close();
    accept.close();
    let session = Session::new(crypto.clone(), keys, Role::Server, nonces);
    Ok((Responder { crypto, session }, text.into_bytes()))
}

/// The usual ones, which need no memory.
const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// A string that is copied only where it has escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The request of a connection, as the client sealed it.
#[derive(Debug, Deserialize)]
struct Asked<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    token: Cow<'a, str>,
    target_url: String,
    #[serde(borrow)]
    method: Option<Text<'a>>,
    #[serde(default, deserialize_with = "few_headers")]
    headers: Vec<(String, String)>,
    #[serde(borrow)]
    body: Option<Text<'a>>,
    #[serde(default)]
    body_encoding: Option<BodyEncoding>,
}

/// A request whose ticket is the issuer's, for this node, in time, and for this very request. It may still be spent.
#[derive(Debug)]
pub struct Request<C: Crypto> {
    session: Session<C>,
    /// For [`Spent::spend`](super::replay::Spent::spend).
    pub ticket: replay::Ticket,
    /// What to fetch.
    pub target_url: String,
    /// `GET` where there is none.
    pub method: Option<Cow<'static, str>>,
    /// To be sent, after cleaning.
    pub headers: Vec<(String, String)>,
    /// To be sent.
    pub body: Option<Vec<u8>>,
}

/// The three errors a client can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request is not one.
    BadRequest,
    /// The ticket does not pay for it.
    Unauthorized,
    /// The target gave no answer that can be passed on.
    UpstreamError,
}

impl Refusal {
    /// As it stands on the wire.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::UpstreamError => "upstream_error",
        }
    }
}

/// What a request has to pass.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The issuer's key; a node that was not told it takes no ticket.
    pub issuer_key: Option<&'a [u8; 32]>,
    /// This node.
    pub node_id: &'a str,
}

/// A connection that came to nothing: the frame that tells the client, where it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// To send, before the end.
    pub frame: Option<Vec<u8>>,
    /// Why, for the operator.
    pub reason: String,
}

impl<C: Crypto> Responder<C> {
    /// As both ends derived it.
    pub fn session_id(&self) -> &str {
        self.session.session_id()
    }

    /// Opens the request in place; its body, decoded, has at most `max_body` bytes.
    ///
    /// # Errors
    /// The frame is not authentic, or the request is malformed.
    pub fn open(mut self, message: &mut [u8], max_body: usize) -> Result<Opened<C>, Refused> {
        let plaintext = match self.session.open(message) {
            Ok((FrameType::Data, plaintext)) => plaintext,
            Ok((kind, _)) => {
                return Err(Refused { frame: None, reason: alloc::format!("a frame of type {kind:?}") });
            }
            // Whoever cannot seal a frame is not the client of the handshake; there is nobody to tell.
            Err(error) => return Err(Refused { frame: None, reason: error.to_string() }),
        };
        match parse(plaintext, max_body) {
            Ok(asked) => Ok(Opened { crypto: self.crypto, session: self.session, asked }),
            Err(reason) => Err(refused(&mut self.session, Refusal::BadRequest, reason)),
        }
    }
}

fn parse(plaintext: &[u8], max_body: usize) -> Result<Parsed, String> {
    let text = core::str::from_utf8(plaintext).map_err(|_| "the request is not UTF-8".to_string())?;
    let asked: Asked<'_> = serde_json::from_str(text).map_err(|_| "not a request".to_string())?;
    if asked.kind != "proxy_request" {
        return Err("not a proxy_request".to_string());
    }
    // On the data plane a body is base64 unless it says otherwise (section 10); on the tunnel it is the other way.
    let encoding = asked.body_encoding.unwrap_or(BodyEncoding::Base64);
    let body = decode_body(asked.body.map(|body| body.0), encoding, max_body)?;
    let token = Token::parse(&asked.token);
    let Asked { target_url, headers, .. } = asked;
    let method = asked.method.map(|method| match METHODS.iter().find(|usual| **usual == method.0) {
        Some(usual) => Cow::Borrowed(*usual),
        None => Cow::Owned(method.0.into_owned()),
    });
    Ok(Parsed { token, target_url, method, headers, body })
}

/// A request, read.
#[derive(Debug)]
struct Parsed {
    token: Result<Token, TicketError>,
    target_url: String,
    method: Option<Cow<'static, str>>,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

/// A request of the client of the handshake, whose ticket has not been looked at.
#[derive(Debug)]
pub struct Opened<C: Crypto> {
    crypto: C,
    session: Session<C>,
    asked: Parsed,
}

impl<C: Crypto> Opened<C> {
    /// Checks that the ticket pays for this very request, at this node, now.
    ///
    /// # Errors
    /// It does not, or the URL is not one.
    pub fn verify(mut self, gate: Gate<'_>, now: Now) -> Result<Request<C>, Refused> {
        match verify(&self.crypto, &mut self.asked, gate, now) {
            Ok(ticket) => {
                let Parsed { target_url, method, headers, body, .. } = self.asked;
                Ok(Request { session: self.session, ticket, target_url, method, headers, body })
            }
            Err((refusal, reason)) => Err(refused(&mut self.session, refusal, reason)),
        }
    }
}

fn verify<C: Crypto>(
    crypto: &C,
    asked: &mut Parsed,
    gate: Gate<'_>,
    now: Now,
) -> Result<replay::Ticket, (Refusal, String)> {
    let Parsed { token, target_url, method, headers, body } = asked;
    let unauthorized = |reason: &str| (Refusal::Unauthorized, reason.to_string());
    let issuer_key =
        gate.issuer_key.ok_or_else(|| unauthorized("this node was not told who issues tickets"))?;
    let token = token.as_mut().map_err(|error| unauthorized(&error.to_string()))?;
    let claims = token.verify(crypto, issuer_key, gate.node_id, now.unix_seconds());
    let claims = claims.map_err(|error| unauthorized(&error.to_string()))?;
    debug_assert!(claims.jti.len() <= MAX_ID, "checked by Token::verify");
    let ticket = replay::Ticket::new(crypto, &claims.jti, claims.iat, claims.exp);
    let paid_for = <[u8; 64]>::try_from(claims.sub.as_bytes());
    // One that the guard refuses in the end is not worth the memory that its parts take.
    if target_url.len() > MAX_URL {
        return Err((Refusal::BadRequest, NotFetched::UrlTooLong.to_string()));
    }
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let method = method.as_deref().unwrap_or("GET");
    let key = dedupe::digest(crypto, target_url, method, headers, body.as_deref(), token.take_buffer())
        .ok_or_else(|| (Refusal::BadRequest, "the URL is not valid".to_string()))?;
    if !paid_for.is_ok_and(|name| constant_time_eq(hex::encode_to(&key, &mut [0; 64]).as_bytes(), &name)) {
        return Err(unauthorized("the ticket is for another request"));
    }
    Ok(ticket)
}

/// The header fields of a request, at most as many as [`MAX_HEADERS_READ`]; of two of one name the later.
fn few_headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of header fields")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut headers: Self::Value = Vec::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if headers.len() >= MAX_HEADERS_READ {
                    return Err(serde::de::Error::custom("too many header fields"));
                }
                headers.push((name, value));
            }
            // A stable sort: the later of two is behind the other.
            headers.sort_by(|a, b| a.0.cmp(&b.0));
            headers.dedup_by(|later, earlier| {
                let is_same = later.0 == earlier.0;
                if is_same {
                    core::mem::swap(&mut later.1, &mut earlier.1);
                }
                is_same
            });
            Ok(headers)
        }
    }
    deserializer.deserialize_any(Few)
}

impl<C: Crypto> Request<C> {
    /// The target's answer as it will be sealed; an error where it does not fit in a frame.
    #[must_use]
    pub fn encode(self, response: &Response) -> Answer<C> {
        let Response { status, reason, headers, body } = response;
        let mut plaintext = encode_proxy_response(None, *status, reason, headers, body);
        if plaintext.plaintext().len() > MAX_PLAINTEXT {
            plaintext = refusal(Refusal::UpstreamError, "the response does not fit in one frame");
        }
        Answer { session: self.session, plaintext }
    }

    /// The frame of an error.
    #[must_use]
    pub fn refuse(mut self, kind: Refusal, reason: &str) -> Vec<u8> {
        self.session.seal(FrameType::Data, refusal(kind, reason))
    }
}

/// What is to be sealed for the client.
#[derive(Debug)]
pub struct Answer<C: Crypto> {
    session: Session<C>,
    plaintext: FrameBuf,
}

impl<C: Crypto> Answer<C> {
    /// The frame.
    #[must_use]
    pub fn seal(mut self) -> Vec<u8> {
        self.session.seal(FrameType::Data, self.plaintext)
    }
}

fn refusal(refusal: Refusal, message: &str) -> FrameBuf {
    let error = serde_json::json!({ "type": "error", "code": refusal.code(), "message": message });
    FrameBuf::from_plaintext(error.to_string().as_bytes())
}

fn refused<C: Crypto>(session: &mut Session<C>, kind: Refusal, reason: String) -> Refused {
    Refused { frame: Some(session.seal(FrameType::Data, refusal(kind, &reason))), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use crate::data_plane::ticket;
    use crate::wire::canonical::tests::vectors;
    use crate::wire::hex;
    use core::time::Duration;
    use serde_json::{Value, json};

    const ISSUER: [u8; 32] = [7; 32];
    const NODE: [u8; 32] = [1; 32];
    const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_790_000_000) };

    fn array<const N: usize>(value: &Value) -> [u8; N] {
        hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    #[test]
    fn the_deployed_networks_bindings_hold() {
        let Some(file) = vectors("data-handshake") else { return };
        for vector in file["vectors"].as_array().unwrap() {
            let text = |name: &str| vector["input"][name].as_str().unwrap();
            let binding = channel_binding(
                &Pure,
                text("node_id"),
                (text("client_public_key"), text("client_nonce")),
                (text("node_public_key"), text("node_nonce")),
            );
            assert_eq!(
                base64::encode(&binding),
                vector["channel_binding"].as_str().unwrap(),
                "{}",
                vector["name"]
            );
        }
    }

    #[test]
    fn the_deployed_networks_connections_hold() {
        let Some(file) = vectors("data-plane") else { return };
        for vector in file["vectors"].as_array().unwrap() {
            let identity = Identity::from_seed(Pure, &array(&vector["node_seed_hex"]));
            let init = vector["init"].to_string();
            let init: Init<'_> = serde_json::from_str(&init).unwrap();
            let ephemeral = Pure::ephemeral_from_scalar(&array(&vector["node_ecdh_private_hex"])).unwrap();
            let unix = Duration::from_secs(vector["accept"]["proof"]["timestamp"].as_u64().unwrap());
            let now = Now { monotonic: Duration::ZERO, unix };
            let nonce = array(&vector["node_nonce_hex"]);
            let (responder, accept) =
                answer(Pure, &identity, &init, ephemeral, &nonce, Drbg::new([0; 32]), now).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&accept).unwrap(), vector["accept"]);
            assert_eq!(responder.session_id(), vector["session_id"].as_str().unwrap());
            let mut frame = hex::decode(vector["request_frame_hex"].as_str().unwrap()).unwrap();
            let mut session = responder.session;
            let (_, plaintext) = session.open(&mut frame).unwrap();
            assert_eq!(plaintext, vector["request_plaintext"].as_str().unwrap().as_bytes());
            assert!(serde_json::from_slice::<Asked<'_>>(plaintext).is_ok());
        }
    }

    /// A client's half, by hand.
    fn connect(node_id: &str) -> (Result<Responder<Pure>, AcceptError>, Option<Session<Pure>>) {
        let identity = Identity::from_seed(Pure, &NODE);
        let mut rng = Drbg::new([3; 32]);
        let (secret, point) = Pure.generate_ephemeral(&mut rng);
        let nonce = rng.bytes::<32>();
        let init = json!({
            "type": "data_init", "protocol": PROTOCOL, "version": 1, "node_id": node_id, "timestamp": 1,
            "client_public_key": base64::encode(&point), "client_nonce": base64::encode(&nonce),
        });
        let init_bytes = serde_json::to_vec(&init).unwrap();
        let accepted = accept(Pure, &identity, "node-1", &init_bytes, &mut Drbg::new([4; 32]), NOW);
        let (responder, accept) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return (Err(error), None),
        };
        let accept: Accept = serde_json::from_slice(&accept).unwrap();
        let node_point = base64::decode_array(&accept.node_public_key).unwrap();
        let shared = Pure.agree(secret, &node_point).unwrap();
        let node_nonce = base64::decode_array(&accept.proof.node_nonce).unwrap();
        let binding = base64::decode_array(&accept.proof.channel_binding).unwrap();
        let keys = Keys::derive(&Pure, &shared, &nonce, &node_nonce, &binding);
        assert_eq!(keys.session_id.as_str(), accept.session_id);
        (Ok(responder), Some(Session::new(Pure, keys, Role::Client, Drbg::new([5; 32]))))
    }

    fn token(url: &str, method: &str, body: Option<&[u8]>) -> String {
        let claims = ticket::Claims {
            iss: ticket::ISSUER.into(),
            aud: "node-1".into(),
            sub: dedupe::key(&Pure, url, method, [], body).unwrap().into(),
            scope: ticket::SCOPE.into(),
            iat: NOW.unix_seconds(),
            exp: NOW.unix_seconds() + 60,
            jti: "t".into(),
        };
        ticket::issue(&Pure, &Pure.signing_key(&ISSUER), "k", &claims)
    }

    fn ask(
        plaintext: &Value,
        issuer_key: Option<[u8; 32]>,
    ) -> (Result<Request<Pure>, Refused>, Session<Pure>) {
        let (responder, client) = connect("node-1");
        let mut client = client.unwrap();
        let mut frame =
            client.seal(FrameType::Data, FrameBuf::from_plaintext(plaintext.to_string().as_bytes()));
        let gate = Gate { issuer_key: issuer_key.as_ref(), node_id: "node-1" };
        (responder.unwrap().open(&mut frame, 16).and_then(|opened| opened.verify(gate, NOW)), client)
    }

    fn issuer() -> Option<[u8; 32]> {
        Some(Pure.public_key(&Pure.signing_key(&ISSUER)))
    }

    #[test]
    fn a_paid_request_is_opened_and_its_answer_sealed_for_the_client_alone() {
        let url = "http://a.example/";
        let request = json!({
            "type": "proxy_request", "token": token(url, "POST", Some(b"hi")), "target_url": url, "method": "post",
            "body": "aGk=",
        });
        let (request, mut client) = ask(&request, issuer());
        let request = request.unwrap();
        let ticket = replay::Ticket::new(&Pure, "t", NOW.unix_seconds(), NOW.unix_seconds() + 60);
        assert_eq!((request.body.as_deref(), request.ticket), (Some(&b"hi"[..]), ticket));
        let response =
            Response { status: 200, reason: "OK".into(), headers: Vec::new(), body: b"yes".to_vec() };
        let mut frame = request.encode(&response).seal();
        let (kind, plaintext) = client.open(&mut frame).unwrap();
        assert_eq!(kind, FrameType::Data);
        let answer: Value = serde_json::from_slice(plaintext).unwrap();
        assert_eq!(
            answer,
            json!({"type": "proxy_response", "status": 200, "status_text": "OK", "headers": {}, "body": "eWVz",
                "body_encoding": "base64"})
        );
    }

    #[test]
    fn a_request_that_is_not_paid_for_gets_one_of_the_three_codes() {
        let url = "http://a.example/";
        let good = json!({"type": "proxy_request", "token": token(url, "GET", None), "target_url": url});
        assert!(ask(&good, issuer()).0.is_ok());
        let with = |member: &str, value: Value| {
            let mut request = good.clone();
            request[member] = value;
            request
        };
        for (request, issuer_key, code) in [
            (good.clone(), None, "unauthorized"),
            (good.clone(), Some([9; 32]), "unauthorized"),
            (with("target_url", "http://b.example/".into()), issuer(), "unauthorized"),
            (with("target_url", "nothing".into()), issuer(), "bad_request"),
            (with("method", "PUT".into()), issuer(), "unauthorized"),
            (with("body", "AA".into()), issuer(), "unauthorized"),
            (with("body", "!".into()), issuer(), "bad_request"),
            (with("body", base64::encode(&[0; 17]).into()), issuer(), "bad_request"),
            (with("token", "x".into()), issuer(), "unauthorized"),
            (with("type", "ping".into()), issuer(), "bad_request"),
            (json!([]), issuer(), "bad_request"),
        ] {
            let (refused, mut client) = ask(&request, issuer_key);
            let mut frame = refused.unwrap_err().frame.unwrap();
            let (_, plaintext) = client.open(&mut frame).unwrap();
            let error: Value = serde_json::from_slice(plaintext).unwrap();
            assert_eq!((&error["type"], &error["code"]), (&"error".into(), &code.into()), "{request}");
        }
    }

    #[test]
    fn whoever_cannot_seal_is_told_nothing() {
        let (responder, _) = connect("node-1");
        assert_eq!(responder.unwrap().open(&mut [0; 60], 16).unwrap_err().frame, None);
    }

    #[test]
    fn an_init_for_another_node_or_of_another_kind_gets_no_session() {
        assert_eq!(connect("node-2").0.unwrap_err(), AcceptError::OtherNode);
        let identity = Identity::from_seed(Pure, &NODE);
        for junk in [&b""[..], b"{}", b"[]", &[b' '; MAX_HANDSHAKE + 1]] {
            let result = accept(Pure, &identity, "node-1", junk, &mut Drbg::new([4; 32]), NOW);
            assert_eq!(result.err(), Some(AcceptError::Malformed));
        }
    }
}
