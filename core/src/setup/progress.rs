//! `setup-progress.json`: how far setup came. Mode 0600: it holds the email address and the token that proves it.
//!
//! A file that cannot be understood is not trusted in any part. One without a `version` is the network's other node
//! implementation's; its members say nothing here, and are carried along.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde_json::{Map, Value};

use super::QuestionId;
use super::answers::{self, Answers, VALUES};
use crate::state::{Members, StateError, pretty, put};

/// The largest that is read, in bytes. Real ones are under 4 KiB.
pub const MAX_PROGRESS: usize = 64 * 1024;

/// The version that this code writes, and the only one it reads.
const VERSION: u64 = 1;

/// Tokens and verification ids, in bytes.
const MAX_TOKEN: usize = 4096;

/// Something of the server's that holds for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The email address it is for.
    pub(super) email: String,
    /// The verification's id, or the token.
    pub(super) text: String,
    /// Unix seconds.
    pub(super) expires_at: u64,
}

/// How far it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The agreement that was agreed to.
    pub(super) agreement: Option<u64>,
    pub(super) answers: Answers,
    /// When the addresses among them were given; unix seconds.
    pub(super) addresses_at: Option<u64>,
    /// The server that the evaluation, the verification and the token are of.
    pub(super) server: Option<String>,
    pub(super) release: Option<String>,
    pub(super) verification: Option<Held>,
    pub(super) token: Option<Held>,
    /// A join request may have been sent.
    pub(super) joining: bool,
    /// All was done; nothing is offered again.
    pub(super) done: bool,
    /// Members this release does not know.
    pub(super) extra: Map<String, Value>,
}

impl Progress {
    /// Reads the file. Answers that cannot be any are left out: they are asked for again.
    pub(super) fn parse(data: &[u8], allow_private: bool) -> Result<Self, StateError> {
        if data.len() > MAX_PROGRESS {
            return Err(StateError::Json("too large".to_string()));
        }
        let mut file = Members::parse(data)?;
        match file.take("version", "a number", Value::as_u64)? {
            None => return Ok(Self { extra: file.rest(), ..Self::default() }),
            Some(VERSION) => {}
            Some(_) => {
                return Err(StateError::Member { member: "version", expected: "one that is known here" });
            }
        }
        let texts = file.take("answers", "an object of texts", |value| {
            let members = value.as_object()?.iter();
            members
                .map(|(name, value)| Some((name.clone(), value.as_str()?.to_string())))
                .collect::<Option<BTreeMap<_, _>>>()
        })?;
        let texts = texts.unwrap_or_default();
        let answers = VALUES.into_iter().filter_map(|id| {
            let text = texts.get(id.as_str())?;
            Some((id, answers::read(id, text, allow_private).ok()?))
        });
        // Where it stands is for people; it follows from the rest.
        let done = file.text("step")?.as_deref() == Some("done");
        let server = file.text("server")?;
        let server = server.and_then(|text| answers::read(QuestionId::Server, &text, allow_private).ok());
        Ok(Self {
            agreement: file.take("agreement", "a number", Value::as_u64)?,
            answers: answers.collect(),
            addresses_at: file.take("addresses_at", "a time in unix seconds", Value::as_u64)?,
            server,
            release: file.text("release")?,
            verification: file.take("email_verification", "a verification", held)?,
            token: file.take("email_verified", "a verified email address", held)?,
            joining: file.take("joining", "true or false", Value::as_bool)?.unwrap_or(false),
            done,
            extra: file.rest(),
        })
    }

    /// The file; `step` is where it stands, for people.
    pub(super) fn emit(&self, step: &str) -> Vec<u8> {
        let whole = self.emit_with(&self.extra, step);
        // Others' members are longer than they were, in lines of their own: a file that would not be read again is of
        // no use to anybody.
        if whole.len() <= MAX_PROGRESS { whole } else { self.emit_with(&Map::new(), step) }
    }

    fn emit_with(&self, extra: &Map<String, Value>, step: &str) -> Vec<u8> {
        let mut file = extra.clone();
        put(&mut file, "version", Some(VERSION));
        put(&mut file, "step", Some(step));
        put(&mut file, "agreement", self.agreement);
        let answers = self.answers.iter().map(|(id, text)| (id.as_str().to_string(), text.as_str().into()));
        put(&mut file, "answers", Some(Value::Object(answers.collect())));
        put(&mut file, "addresses_at", self.addresses_at);
        put(&mut file, "server", self.server.as_deref());
        put(&mut file, "release", self.release.as_deref());
        put(&mut file, "email_verification", self.verification.as_ref().map(value_of));
        put(&mut file, "email_verified", self.token.as_ref().map(value_of));
        put(&mut file, "joining", self.joining.then_some(true));
        pretty(file)
    }
}

/// Why a file cannot be used as `setup-progress.json`; `None` where it can.
#[must_use]
pub fn damage(data: &[u8]) -> Option<String> {
    Progress::parse(data, true).err().map(|error| error.to_string())
}

fn held(value: &Value) -> Option<Held> {
    let text = |name| value.get(name).and_then(Value::as_str);
    let token = text("token").filter(|text| is_token(text))?;
    Some(Held {
        email: text("email")?.to_string(),
        text: token.to_string(),
        expires_at: value.get("expires_at")?.as_u64()?,
    })
}

/// What can be a token or the name of a verification.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TOKEN && text.bytes().all(|b| b.is_ascii_graphic())
}

fn value_of(held: &Held) -> Value {
    let mut members = Map::new();
    put(&mut members, "email", Some(held.email.as_str()));
    put(&mut members, "token", Some(held.text.as_str()));
    put(&mut members, "expires_at", Some(held.expires_at));
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use serde_json::json;

    fn whole() -> Progress {
        let held = |text: &str| Held { email: "a@b.example".into(), text: text.into(), expires_at: 99 };
        Progress {
            agreement: Some(1),
            answers: [(QuestionId::Port, "80".to_string()), (QuestionId::Ipv6, "none".to_string())].into(),
            addresses_at: Some(7),
            server: Some("https://network.example".into()),
            release: Some("1.2.3".into()),
            verification: Some(held("v1")),
            token: Some(held("t1")),
            joining: true,
            done: false,
            extra: json!({"theirs": [1]}).as_object().unwrap().clone(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for progress in [whole(), Progress::default()] {
            assert_eq!(Progress::parse(&progress.emit("payouts"), false), Ok(progress));
        }
        assert!(Progress::parse(&whole().emit("done"), false).unwrap().done);
    }

    #[test]
    fn a_file_of_the_other_implementation_says_nothing_and_its_members_stay() {
        let progress = Progress::parse(br#"{"step":"done","answers":7}"#, false).unwrap();
        let extra = json!({"step": "done", "answers": 7});
        assert_eq!(progress, Progress { extra: extra.as_object().unwrap().clone(), ..Progress::default() });
    }

    #[test]
    fn a_damaged_file_is_told_and_not_trusted_in_any_part() {
        let text = String::from_utf8(whole().emit("email")).unwrap();
        for cut in 0..text.trim_end().len() {
            assert!(Progress::parse(&text.as_bytes()[..cut], false).is_err(), "{cut}");
        }
        for (member, wrong) in [
            ("version", json!(2)),
            ("version", json!("1")),
            ("agreement", json!("yes")),
            ("answers", json!([])),
            ("answers", json!({"port": 80})),
            ("addresses_at", json!(-1)),
            ("server", json!(1)),
            ("release", json!({})),
            ("step", json!(1)),
            ("email_verification", json!("v1")),
            ("email_verified", json!({"email": "a@b", "token": "a b", "expires_at": 1})),
            ("email_verified", json!({"email": "a@b", "token": "", "expires_at": 1})),
            ("email_verified", json!({"email": "a@b", "token": "a"})),
            ("joining", json!("no")),
        ] {
            let mut file: Value = serde_json::from_str(&text).unwrap();
            file[member] = wrong;
            assert!(Progress::parse(file.to_string().as_bytes(), false).is_err(), "{member}");
        }
        let large = format!("{{\"version\":1,\"x\":\"{}\"}}", "x".repeat(MAX_PROGRESS));
        assert!(Progress::parse(large.as_bytes(), false).is_err());
    }

    #[test]
    fn answers_that_are_none_any_more_are_asked_for_again() {
        let file =
            json!({"version": 1, "answers": {"ipv4": "10.0.0.1", "port": "0", "email": "a@b", "x": "y"}});
        let file = file.to_string();
        let of = |lab| Progress::parse(file.as_bytes(), lab).unwrap().answers;
        assert_eq!(of(false), [(QuestionId::Email, "a@b".to_string())].into());
        assert_eq!(of(true)[&QuestionId::Ipv4], "10.0.0.1");
    }
}
