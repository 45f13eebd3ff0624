//! One data-plane connection, from `data_init` to its answer.

use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use arbitrary::Arbitrary;
use serde_json::{Map, Value, json};

use super::ticket::{ISSUER_SEED, NODE_ID, Wanted, Written};
use super::transparent::Transparent;
use super::{START, UNIX, read};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto as _, Drbg};
use crate::data_plane::replay::{Before, Spent};
use crate::data_plane::responder::{Gate, Refusal, accept};
use crate::guard::MAX_URL;
use crate::io::Response;
use crate::peer::client::{Answer, Connecting};
use crate::wire::base64;
use crate::wire::frame::{FrameBuf, FrameType};

const MAX_BODY: usize = 64;

#[derive(Debug, Default, Arbitrary)]
struct Script {
    connections: Vec<Connection>,
}

#[derive(Debug, Arbitrary)]
struct Connection {
    /// Instead of a `data_init`.
    init: Option<Vec<u8>>,
    /// A member of it, replaced.
    member: Option<(u8, String)>,
    frame: Frame,
    answer: Response1,
}

#[derive(Debug, Arbitrary)]
enum Frame {
    /// A request with its ticket.
    Request { written: Written, wanted: Box<Wanted>, other: Option<Box<Wanted>> },
    /// Something that was sealed all the same.
    Sealed { kind: u8, plaintext: Vec<u8> },
    /// Something.
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Response1 {
    refused: bool,
    status: u16,
    reason: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A client with its keys and a good ticket for this very request is served, once; nobody else is, and everybody who
/// is a client is told.
pub fn data_plane(data: &[u8]) {
    let Script { connections } = read(data);
    let identity = Identity::from_seed(Transparent, &[1; 32]);
    let mut rng = Drbg::new([2; 32]);
    let mut spent = Spent::new(START, Before::Never);
    let mut served: Vec<String> = Vec::new();
    for connection in connections.into_iter().take(16) {
        connect(&identity, &mut rng, &mut spent, &mut served, connection);
    }
}

fn connect(
    identity: &Identity<Transparent>,
    rng: &mut Drbg,
    spent: &mut Spent,
    served: &mut Vec<String>,
    connection: Connection,
) {
    let Connection { init, member, frame, answer } = connection;
    let (connecting, own) = Connecting::start(Transparent, NODE_ID, rng, START);
    let mut sent = init.clone().unwrap_or_else(|| own.clone());
    if let (Some((nth, text)), Ok(Value::Object(mut members))) = (member, serde_json::from_slice(&sent)) {
        let members: &mut Map<String, Value> = &mut members;
        if let Some(name) = members.keys().nth(usize::from(nth) % members.len().max(1)).cloned() {
            let number = text.parse::<u64>().map(Value::from);
            members.insert(name, number.unwrap_or_else(|_| Value::from(text)));
            sent = Value::from(members.clone()).to_string().into_bytes();
        }
    }
    let accepted = accept(Transparent, identity, NODE_ID, &sent, rng, START);
    let (responder, message) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => return assert_ne!(sent, own, "{error}"),
    };
    // Whoever hears the answer of another question has no session.
    let client = connecting.finish(&message, identity.public_key(), Drbg::new([3; 32]), START);
    let mut client = match client {
        Ok(client) => client,
        Err(error) => {
            let differs =
                serde_json::from_slice::<Value>(&sent).ok() != serde_json::from_slice::<Value>(&own).ok();
            return assert!(differs, "{error}");
        }
    };
    assert_eq!(client.session_id(), responder.session_id());
    let mut expected = None;
    let mut bytes = match frame {
        Frame::Bytes(bytes) => bytes,
        Frame::Sealed { kind, plaintext } => {
            let kinds = [FrameType::Data, FrameType::Ping, FrameType::Close, FrameType::Handshake];
            client.seal(kinds[usize::from(kind % 4)], FrameBuf::from_plaintext(&plaintext))
        }
        Frame::Request { written, wanted, other } => {
            // The ticket may be for another request than the one that is sent with it.
            let name = other.as_deref().unwrap_or(&wanted).defined();
            let claims = written.claims(name.as_deref().unwrap_or("none"), UNIX);
            let token = written.token(&claims);
            let is_paid = name.is_some() && name == by_map(&wanted).defined();
            let fits = wanted.body.as_ref().is_none_or(|body| body.len() <= MAX_BODY);
            let is_short = wanted.url().len() <= MAX_URL;
            let is_new = !served.contains(&claims.jti.clone().into_owned());
            let is_good = written.is_good(&claims, &token, UNIX);
            expected = Some((is_good && is_paid && fits && is_short, is_new, claims.jti.into_owned()));
            client.seal(FrameType::Data, FrameBuf::from_plaintext(&request(&wanted, &token)))
        }
    };
    let issuer_key = Transparent.public_key(&ISSUER_SEED);
    let gate = Gate { issuer_key: Some(&issuer_key), node_id: NODE_ID };
    let opened = responder.open(&mut bytes, MAX_BODY).and_then(|opened| opened.verify(gate, START));
    let request = match opened {
        Ok(request) => Box::new(request),
        Err(refused) => {
            assert!(!matches!(expected, Some((true, ..))), "{}", refused.reason);
            if let Some(mut frame) = refused.frame {
                let (kind, plaintext) =
                    client.open(&mut frame).map_or((FrameType::Error, &mut [][..]), |o| o);
                assert_eq!(kind, FrameType::Data, "the client can read why");
                assert!(matches!(Answer::parse(plaintext), Some(Answer::Error { .. })));
            } else {
                assert!(expected.is_none(), "who sealed a request is told: {}", refused.reason);
            }
            return;
        }
    };
    if let Some((is_paid, is_new, name)) = expected {
        assert!(is_paid, "a request that was not paid for");
        let is_spent = spent.spend(&request.ticket, START).is_ok();
        // `BeforeStart` is the window's own affair: `replay` looks at it.
        assert!(!is_spent || is_new, "ticket {name} was spent twice");
        if !is_spent {
            return;
        }
        served.push(name);
    }
    let Response1 { refused, status, reason, headers, body } = answer;
    let response = Response { status, reason, headers, body };
    let mut frame = if refused {
        request.refuse(Refusal::UpstreamError, &response.reason)
    } else {
        request.encode(&response).seal()
    };
    let Ok((FrameType::Data, plaintext)) = client.open(&mut frame) else {
        panic!("an answer that does not open")
    };
    match Answer::parse(plaintext) {
        Some(Answer::Response { status, body, .. }) => {
            assert_eq!((status, body), (response.status, response.body));
            assert!(!refused);
        }
        Some(Answer::Error { .. }) => assert!(refused),
        None => panic!("an answer that is none"),
    }
}

/// With its header fields as a JSON object has them: of two of one name the last.
fn by_map(wanted: &Wanted) -> Wanted {
    let mut wanted = wanted.clone();
    wanted.keep_last_headers();
    wanted
}

fn request(wanted: &Wanted, token: &str) -> Vec<u8> {
    let headers: Map<String, Value> =
        wanted.headers().into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    let mut request = json!({
        "type": "proxy_request", "token": token, "target_url": wanted.url(), "headers": headers,
    });
    if let Some(method) = wanted.method() {
        request["method"] = method.into();
    }
    if let Some(body) = &wanted.body {
        request["body"] = base64::encode(body).into();
    }
    request.to_string().into_bytes()
}
