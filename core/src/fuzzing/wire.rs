//! What stands on the wire.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::Value;

use super::UNIX;
use super::transparent::Transparent;
use crate::crypto::Drbg;
use crate::crypto::identity::Identity;
use crate::crypto::pure::Pure;
use crate::peer;
use crate::time::Now;
use crate::tunnel::Mode;
use crate::tunnel::handshake::{Claims, Handshake};
use crate::wire::mux::{self as frames, HEAD, MuxFrame};
use crate::wire::{canonical, frame as wire_frame, message as wire_message};

/// A frame that splits is the frame its parts put together again.
pub fn frame(data: &[u8]) {
    let mut message = data.to_vec();
    let Ok(parts) = wire_frame::split(&mut message) else { return };
    let rebuilt = [&parts.header.to_bytes()[..], parts.ciphertext, &parts.tag].concat();
    assert_eq!(rebuilt, data, "splitting loses nothing");
}

/// Any answer to a handshake ends in an error: the fuzzer does not have the keys.
pub fn handshake(data: &[u8]) {
    let identity = Identity::from_seed(Pure, &[1; 32]);
    let claims = Claims { mode: Mode::Eval, node_id: None, candidate_id: None, release_version: Some("1") };
    let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(UNIX) };
    let mut rng = Drbg::new([2; 32]);
    let (handshake, init) = Handshake::start(Pure, &identity, claims, None, &mut rng, now);
    match handshake.finish(data, Drbg::new([3; 32])) {
        Ok(_) => panic!("a session out of nothing"),
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
    pinned(claims, now, data);
    // The other half: what is not that very init is no init of this key.
    if data != init {
        let signer = Identity::from_seed(Pure, &[4; 32]);
        let _ = peer::handshake::accept(&Pure, Some(&signer), data, |_| None, &mut rng, now);
    }
}

/// With a pinned key, the answer of the server that has it is taken, and the same with anything else in one place is not.
fn pinned(claims: Claims<'_>, now: Now, data: &[u8]) {
    let identity = Identity::from_seed(Transparent, &[1; 32]);
    let server = Identity::from_seed(Transparent, &[4; 32]);
    let start = || {
        let mut rng = Drbg::new([2; 32]);
        Handshake::start(Transparent, &identity, claims, Some(*server.public_key()), &mut rng, now)
    };
    let (handshake, init) = start();
    let accepted =
        peer::handshake::accept(&Transparent, Some(&server), &init, |_| None, &mut Drbg::new([5; 32]), now);
    let Ok(accepted) = accepted else { panic!("an init is accepted") };
    let Ok(Value::Object(members)) = serde_json::from_slice(&accepted.message) else { panic!("an object") };
    assert!(handshake.finish(&accepted.message, Drbg::new([3; 32])).is_ok());
    let Some((which, rest)) = data.split_first() else { return };
    let Some(name) = members.keys().nth(usize::from(*which) % members.len()).cloned() else { return };
    let mut other = members.clone();
    let text = String::from_utf8_lossy(rest).into_owned();
    if rest.is_empty() {
        other.remove(&name);
    } else {
        other.insert(name.clone(), text.into());
    }
    if other != members {
        let answer = Value::Object(other).to_string();
        let is_taken = start().0.finish(answer.as_bytes(), Drbg::new([3; 32])).is_ok();
        assert!(!is_taken, "{name} is not what the pinned server signed: {answer}");
    }
}

/// What parses as a message is of the type it says, whichever way it was read.
pub fn message(data: &[u8]) {
    let parsed = wire_message::Message::parse(data);
    if let Ok(text) = core::str::from_utf8(data) {
        assert_eq!(parsed, wire_message::Message::parse_any(text), "the quick way is only quicker");
    }
    let Ok(message) = parsed else { return };
    // A number that is out of range in a member nobody reads is passed over; a tree cannot hold it.
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    // Of a member that stands twice, JSON parsers take the last one; a message with two types is refused.
    assert_eq!(value["type"], message.kind());
}

/// A frame of a public tunnel is its head and its payload, and nothing that has a head is lost.
pub fn mux(data: &[u8]) {
    match MuxFrame::parse(data) {
        Ok(frame) => {
            assert_eq!([&frames::head(frame.kind, frame.stream)[..], frame.payload].concat(), data);
        }
        Err(_) => assert!(data.len() < HEAD || !(1..=6).contains(&data[0]), "a frame that is not read"),
    }
}

/// Canonical JSON is what a second, slower writing of it is, means the same as its source, and is its own canonical
/// form.
pub fn canonical_json(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let text = canonical::to_canonical(&value);
    let mut second = String::new();
    write(&value, &mut second);
    assert_eq!(text, second);
    match serde_json::from_str::<Value>(&text) {
        Ok(again) => assert_eq!(canonical::to_canonical(&again), text, "canonical of canonical"),
        Err(error) => panic!("canonical JSON does not parse: {error}: {text}"),
    }
    let Value::Object(mut members) = value else { return };
    if let Some(name) = members.keys().next().cloned() {
        let without = canonical::without(&Value::Object(members.clone()), &name);
        members.remove(&name);
        assert_eq!(without, canonical::to_canonical(&Value::Object(members)));
    }
}

/// Canonical JSON by recursion, serde_json's strings, and a sort by what a name is.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut names: Vec<(u64, Vec<u16>, &String)> = members
                .keys()
                .map(|name| (index(name).unwrap_or(u64::MAX), name.encode_utf16().collect(), name))
                .collect();
            names.sort();
            out.push('{');
            for (at, (_, _, name)) in names.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(&members[name], out);
            }
            out.push('}');
        }
        Value::Number(number) => out.push_str(&ecmascript(number.as_f64().unwrap_or_default())),
        other => out.push_str(&other.to_string()),
    }
}

/// What an ECMAScript engine takes for an array index: a number under 2³² − 1 that is written as it prints it.
fn index(name: &str) -> Option<u64> {
    let number: u64 = name.parse().ok()?;
    (number < u64::from(u32::MAX) && number.to_string() == name).then_some(number)
}

/// `Number::toString`: Rust's plain digits where ECMAScript has no exponent, Rust's exponent elsewhere.
fn ecmascript(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if (1e-6..1e21).contains(&size) {
        alloc::format!("{value}")
    } else {
        let text = alloc::format!("{value:e}");
        if size < 1.0 { text } else { text.replace('e', "e+") }
    }
}
