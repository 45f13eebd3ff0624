//! The primitives of one request alone: what it would cost a node that did nothing else.
//!
//! The node's own code is run once with a provider that notes what it is asked for; then each of these operations is
//! timed, at its own size, with the provider that nodes use.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{BadPoint, Crypto, Drbg, Nonce, Point, Tag};
use consensus_core::data_plane::responder::{self, Gate};
use consensus_core::data_plane::{dedupe, ticket};
use consensus_core::io::Response;
use consensus_core::peer::client::Connecting;
use consensus_core::time::Now;
use consensus_core::wire::base64;
use consensus_core::wire::frame::{FrameBuf, FrameType, HEADER};
use consensus_core::wire::message::{
    ProxyRequest, StreamClose, StreamData, StreamOpen, encode_proxy_response,
};
use serde_json::json;
use shell_blocking::fast::Fast;
use shell_blocking::system::thread_time;

use crate::network::NODE_ID;

/// The provider of the nodes that are measured.
pub(crate) type Provider = Fast;

/// How long one operation is timed, and how often; the median counts.
const BATCH: Duration = Duration::from_millis(3);
const BATCHES: usize = 9;

/// One operation, at its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    GenerateEphemeral,
    Agree,
    Sign(usize),
    Verify(usize),
    AeadKey,
    Seal(usize, usize),
    Open(usize, usize),
    Sha256(usize),
    Hkdf(usize),
    Base64(usize),
}

impl Operation {
    /// What it is counted under.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::GenerateEphemeral => "P-256 key pair",
            Self::Agree => "P-256 agreement",
            Self::Sign(_) => "Ed25519 signature",
            Self::Verify(_) => "Ed25519 verification",
            Self::AeadKey | Self::Seal(..) | Self::Open(..) => "ChaCha20-Poly1305",
            Self::Sha256(_) => "SHA-256",
            Self::Hkdf(_) => "HKDF",
            Self::Base64(_) => "base64",
        }
    }

    /// What one of it costs on this machine.
    fn cost(self) -> Duration {
        let crypto = Provider::default();
        let mut rng = Drbg::new([3; 32]);
        match self {
            Self::GenerateEphemeral => time(|| {
                black_box(crypto.generate_ephemeral(&mut rng));
            }),
            Self::Agree => {
                // A secret is used up by its agreement; making it costs what was measured above.
                let (_, peer) = crypto.generate_ephemeral(&mut rng);
                let both = time(|| {
                    let (secret, _) = crypto.generate_ephemeral(&mut rng);
                    let _ = black_box(crypto.agree(secret, &peer));
                });
                both.saturating_sub(Self::GenerateEphemeral.cost())
            }
            Self::Sign(size) => {
                let (key, message) = (crypto.signing_key(&[5; 32]), vec![7; size]);
                time(|| {
                    black_box(crypto.sign(&key, black_box(&message)));
                })
            }
            Self::Verify(size) => {
                let (key, message) = (crypto.signing_key(&[5; 32]), vec![7; size]);
                let (public, signature) = (crypto.public_key(&key), crypto.sign(&key, &message));
                time(|| {
                    black_box(crypto.verify(&public, black_box(&message), &signature));
                })
            }
            Self::AeadKey => time(|| {
                black_box(crypto.aead_key(black_box(&[9; 32])));
            }),
            Self::Seal(aad, size) => {
                let (key, aad, mut data) = (crypto.aead_key(&[9; 32]), vec![1; aad], vec![7; size]);
                time(|| {
                    black_box(crypto.seal(&key, &[4; 12], &aad, black_box(&mut data)));
                })
            }
            Self::Open(aad, size) => {
                let (key, aad, mut sealed) = (crypto.aead_key(&[9; 32]), vec![1; aad], vec![7; size]);
                let tag = crypto.seal(&key, &[4; 12], &aad, &mut sealed);
                // What is opened is no longer what was sealed: a copy, which costs a hundredth of the opening.
                let mut data = sealed.clone();
                time(|| {
                    data.copy_from_slice(&sealed);
                    black_box(crypto.open(&key, &[4; 12], &aad, &mut data, &tag));
                })
            }
            Self::Sha256(size) => {
                let data = vec![7; size];
                time(|| {
                    black_box(crypto.sha256(&[black_box(&data)]));
                })
            }
            Self::Hkdf(size) => {
                let mut out = vec![0; size];
                time(|| crypto.hkdf_sha256(&[1; 32], black_box(&[2; 32]), &[3; 40], &mut out))
            }
            Self::Base64(size) => {
                let data = vec![7; size];
                let mut text = Vec::new();
                time(|| {
                    text.clear();
                    base64::encode_into(black_box(&data), &mut text);
                })
            }
        }
    }
}

fn time(mut work: impl FnMut()) -> Duration {
    work();
    let mut costs = Vec::new();
    for _ in 0..BATCHES {
        let begun = thread_time();
        let mut times = 0_u32;
        let took = loop {
            work();
            times += 1;
            // The clock is slower than the smallest of these: not after each.
            if times.is_power_of_two() {
                let took = thread_time().saturating_sub(begun);
                if took >= BATCH {
                    break took;
                }
            }
        };
        costs.push(took / times);
    }
    costs.sort_unstable();
    costs[costs.len() / 2]
}

/// A provider that does everything, and notes it.
#[derive(Clone, Default)]
struct Noting {
    notes: Rc<RefCell<Vec<Operation>>>,
}

impl Noting {
    fn note(&self, operation: Operation) {
        self.notes.borrow_mut().push(operation);
    }
}

impl Crypto for Noting {
    type EphemeralSecret = <Provider as Crypto>::EphemeralSecret;
    type SigningKey = <Provider as Crypto>::SigningKey;
    type AeadKey = <Provider as Crypto>::AeadKey;

    fn generate_ephemeral(&self, rng: &mut Drbg) -> (Self::EphemeralSecret, Point) {
        self.note(Operation::GenerateEphemeral);
        Provider::default().generate_ephemeral(rng)
    }

    fn agree(
        &self,
        secret: Self::EphemeralSecret,
        peer: &Point,
    ) -> Result<zeroize::Zeroizing<[u8; 32]>, BadPoint> {
        self.note(Operation::Agree);
        Provider::default().agree(secret, peer)
    }

    fn signing_key(&self, seed: &[u8; 32]) -> Self::SigningKey {
        Provider::default().signing_key(seed)
    }

    fn public_key(&self, key: &Self::SigningKey) -> [u8; 32] {
        Provider::default().public_key(key)
    }

    fn sign(&self, key: &Self::SigningKey, message: &[u8]) -> [u8; 64] {
        self.note(Operation::Sign(message.len()));
        Provider::default().sign(key, message)
    }

    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        self.note(Operation::Verify(message.len()));
        Provider::default().verify(public_key, message, signature)
    }

    fn aead_key(&self, key: &[u8; 32]) -> Self::AeadKey {
        self.note(Operation::AeadKey);
        Provider::default().aead_key(key)
    }

    fn seal(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag {
        self.note(Operation::Seal(aad.len(), in_out.len()));
        Provider::default().seal(key, nonce, aad, in_out)
    }

    fn open(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool {
        self.note(Operation::Open(aad.len(), in_out.len()));
        Provider::default().open(key, nonce, aad, in_out, tag)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.note(Operation::Sha256(parts.iter().map(|part| part.len()).sum()));
        Provider::default().sha256(parts)
    }

    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
        self.note(Operation::Hkdf(out.len()));
        Provider::default().hkdf_sha256(salt, ikm, info, out);
    }
}

/// What a request has a node do.
#[derive(Debug)]
pub(crate) struct Operations(Vec<Operation>);

/// What the operations of one request cost together.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) total: Duration,
    /// How many of each kind, and their cost.
    pub(crate) kinds: BTreeMap<&'static str, (usize, Duration)>,
}

impl Operations {
    /// Does them all, alone, on this machine as it is just now.
    pub(crate) fn cost(&self) -> Cost {
        let mut known = BTreeMap::new();
        let mut cost = Cost::default();
        for operation in &self.0 {
            let price = match known.get(operation) {
                Some(price) => *price,
                None => *known.entry(*operation).or_insert(operation.cost()),
            };
            cost.total += price;
            let (count, sum) = cost.kinds.entry(operation.kind()).or_default();
            *count += 1;
            *sum += price;
        }
        cost
    }

    /// Of one `proxy_request` on the control tunnel: its frame opened, and the answer's sealed.
    pub(crate) fn of_proxy_request(request: &ProxyRequest, response: &Response) -> Self {
        let Response { status, reason, headers, body } = response;
        let answer = encode_proxy_response(Some((0, &request.id)), *status, reason, headers, body);
        Self(vec![opened(&request.encode(0)), sealed(&answer)])
    }

    /// Of one request of the data plane, on a stream of the tunnel or on a connection of its own.
    pub(crate) fn of_data_plane_request(url: &str, response: &Response, on_tunnel: bool) -> io::Result<Self> {
        let fault = |what: &str| io::Error::other(format!("data plane, alone: {what}"));
        let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_795_391_521) };
        let (mut rng, crypto) = (Drbg::new([8; 32]), Noting::default());
        let node = Identity::from_seed(crypto.clone(), &[1; 32]);
        let issuer = Pure.signing_key(&[2; 32]);
        let claims = ticket::Claims {
            iss: ticket::ISSUER.into(),
            aud: NODE_ID.into(),
            sub: dedupe::key(&Pure, url, "GET", [], None).ok_or_else(|| fault("no URL"))?.into(),
            scope: ticket::SCOPE.into(),
            iat: now.unix_seconds(),
            exp: now.unix_seconds() + 60,
            jti: "00000000-0000-4000-8000-000000000000".into(),
        };
        let token = ticket::issue(&Pure, &issuer, "0000000000000000", &claims);

        let (connecting, init) = Connecting::start(Pure, NODE_ID, &mut rng, now);
        let accepted = responder::accept(crypto.clone(), &node, NODE_ID, &init, &mut rng, now);
        let (responder, accept) = accepted.map_err(|error| fault(&error.to_string()))?;
        let session = connecting.finish(&accept, node.public_key(), rng.fork(), now);
        let mut session = session.map_err(|error| fault(&error.to_string()))?;
        let request = json!({ "type": "proxy_request", "token": token, "target_url": url, "method": "GET" });
        let request = FrameBuf::from_plaintext(request.to_string().as_bytes());
        let mut frame = session.seal(FrameType::Data, request);
        let arrived = frame.clone();
        let issuer = Pure.public_key(&issuer);
        let gate = Gate { issuer_key: Some(&issuer), node_id: NODE_ID };
        let taken = responder.open(&mut frame, 0).and_then(|opened| opened.verify(gate, now));
        let asked = taken.map_err(|refused| fault(&refused.reason))?;
        let answer = asked.encode(response).seal();
        let mut operations = crypto.notes.take();
        // The one thing beside cryptography that the protocol has done to every byte.
        operations.push(Operation::Base64(response.body.len()));
        if on_tunnel {
            let stream_id = || String::from("00000000-0000-4000-8000-000000000000");
            let target = String::from("{\"kind\":\"data-plane\"}");
            let datum = |bytes: &[u8]| {
                let encoding = Some(String::from("base64"));
                StreamData { stream_id: stream_id(), data: base64::encode(bytes), encoding }.encode(0)
            };
            let close =
                StreamClose { stream_id: stream_id(), reason: Some(String::from("data-plane complete")) };
            operations.extend([
                opened(&StreamOpen { stream_id: stream_id(), target }.encode(0)),
                opened(&datum(&init)),
                sealed(&datum(&accept)),
                opened(&datum(&arrived)),
                sealed(&datum(&answer)),
                sealed(&close.encode(0)),
            ]);
        }
        Ok(Self(operations))
    }
}

/// A frame of the tunnel that the node opens; its header but the nonce is authenticated beside it.
fn opened(plaintext: &FrameBuf) -> Operation {
    Operation::Open(HEADER - size_of::<Nonce>(), plaintext.plaintext().len())
}

/// A frame of the tunnel that the node seals.
fn sealed(plaintext: &FrameBuf) -> Operation {
    Operation::Seal(HEADER - size_of::<Nonce>(), plaintext.plaintext().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_plane_request_is_what_the_protocol_says_it_is() {
        let body = vec![7; 16 * 1024];
        let response = Response { status: 200, reason: String::from("OK"), headers: Vec::new(), body };
        let counts = |on_tunnel| {
            let Operations(operations) =
                Operations::of_data_plane_request("http://127.0.0.1/", &response, on_tunnel).unwrap();
            operations.into_iter().fold(BTreeMap::<_, usize>::new(), |mut counts, operation| {
                *counts.entry(operation.kind()).or_default() += 1;
                counts
            })
        };
        let direct = counts(false);
        for (kind, count) in [
            ("P-256 key pair", 1),
            ("P-256 agreement", 1),
            ("Ed25519 signature", 1),
            ("Ed25519 verification", 1),
            ("HKDF", 3),
        ] {
            assert_eq!(direct[kind], count, "{kind}");
        }
        // Six frames of the tunnel.
        assert_eq!(counts(true)["ChaCha20-Poly1305"], direct["ChaCha20-Poly1305"] + 6);
    }

    #[test]
    fn the_cost_of_a_request_is_that_of_its_operations() {
        let operations = Operations(vec![Operation::Sha256(64), Operation::Sha256(64), Operation::Hkdf(32)]);
        let cost = operations.cost();
        assert_eq!(cost.total, cost.kinds.values().map(|(_, sum)| *sum).sum::<Duration>());
        assert_eq!((cost.kinds["SHA-256"].0, cost.kinds["HKDF"].0), (2, 1));
        assert!(cost.total > Duration::ZERO);
    }
}
