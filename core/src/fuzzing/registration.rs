//! A registration, with a server that answers anything.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use arbitrary::Arbitrary;
use serde_json::json;

use super::{START, UNIX, read};
use crate::io::{Audience, FetchError, FetchErrorKind, Outcome, Response, StateFile};
use crate::registration::{Input, Output, Registering, Settings};
use crate::release::manifest::Capabilities;
use crate::state::{JoinAuth, Registration};
use crate::time::Now;

#[derive(Debug, Default, Arbitrary)]
struct Script {
    /// A setting, replaced.
    setting: Option<(u8, String)>,
    has_token: bool,
    has_code: bool,
    was_registered: bool,
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    /// The server answers as it should, with these texts.
    Good {
        status: u16,
        texts: [String; 2],
    },
    /// It answers anything.
    Any {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    Failed {
        kind: u8,
        detail: String,
    },
    Code(String),
    NoCode,
    /// What a shell says of its own files is fit for people.
    Saved {
        well: bool,
    },
    Wait {
        seconds: u16,
    },
}

fn settings(script: &Script) -> Settings {
    let mut settings = Settings {
        server_url: "https://network.example".into(),
        email: Some("you@example.com".into()),
        email_verification_token: script.has_token.then(|| "token".into()),
        verification: script.has_code.then(|| ("verification".into(), "123456".into())),
        ipv4: "203.0.113.7".into(),
        ipv6: None,
        port: 9090,
        contact: "you@example.com".into(),
        evm_address: "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed".into(),
        solana_address: "11111111111111111111111111111111".into(),
        icp_address: "ryjl3-tyaaa-aaaaa-aaaba-cai".into(),
        machine_id: None,
        region: None,
        join_auth: Some(JoinAuth {
            join_id: "join".into(),
            alg: "ed25519".into(),
            nonce: "bm9uY2U".into(),
            signature: "c2lnbmF0dXJl".into(),
            expires_at: UNIX + 3600,
            saved_at: UNIX,
        }),
        public_key_pem: "pem".into(),
        capabilities: Capabilities::ALL,
        existing: script.was_registered.then(|| Registration::new("node-0")),
    };
    if let Some((nth, text)) = script.setting.clone() {
        let place = match nth % 9 {
            0 => &mut settings.server_url,
            1 => settings.email.get_or_insert_default(),
            2 => &mut settings.ipv4,
            3 => settings.ipv6.get_or_insert_default(),
            4 => &mut settings.contact,
            5 => &mut settings.evm_address,
            6 => &mut settings.solana_address,
            7 => &mut settings.icp_address,
            _ => settings.machine_id.get_or_insert_default(),
        };
        *place = text;
    }
    settings
}

/// What is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Answer { is_join: bool },
    Code,
    Saved,
    Nothing,
}

/// The join request is sent once, what it earned is written before anything else, and whatever the server says, it
/// ends.
pub fn registration(data: &[u8]) {
    let script: Script = read(data);
    let settings = settings(&script);
    let server_url = settings.server_url.clone();
    let mut now = START;
    let mut registering = match Registering::new(settings, now) {
        Ok(registering) => registering,
        Err(error) => return assert!(!error.problem.is_empty() && script.setting.is_some(), "{error}"),
    };
    let mut world =
        World { server_url, awaited: Awaited::Nothing, joins: 0, taken: false, saved: false, over: None };
    world.drain(&mut registering);
    for action in script.actions {
        let input = match action {
            Action::Wait { seconds } => {
                let passed = Duration::from_secs(seconds.into());
                now = Now { monotonic: now.monotonic + passed, unix: now.unix + passed };
                continue;
            }
            Action::Good { status, texts: [first, second] } => {
                let body = json!({
                    "success": true, "verification_id": first, "email_verification_token": second, "region": first,
                    "node_id": if second.is_empty() { "node-1" } else { &second }, "domain": first,
                });
                let status = if status % 4 == 0 { 200 } else { status };
                Input::Done(Ok(response(status, Vec::new(), body.to_string().into_bytes())))
            }
            Action::Any { status, headers, body } => Input::Done(Ok(response(status, headers, body))),
            Action::Failed { kind, detail } => {
                let kinds = [FetchErrorKind::Connect, FetchErrorKind::Timeout, FetchErrorKind::Protocol];
                Input::Done(Err(FetchError { kind: kinds[usize::from(kind % 3)], detail }))
            }
            Action::Code(code) => Input::Code(code),
            Action::NoCode => Input::NoCode,
            Action::Saved { well } => {
                Input::Saved(if well { Ok(()) } else { Err("config.json: no space".to_string()) })
            }
        };
        world.feed(&mut registering, now, input);
    }
    // A server that says nothing but no: it ends, whatever came before.
    for _ in 0..16 {
        let input = match world.awaited {
            Awaited::Answer { .. } => Input::Done(Ok(response(500, Vec::new(), Vec::new()))),
            Awaited::Code => Input::NoCode,
            Awaited::Saved => Input::Saved(Ok(())),
            Awaited::Nothing => break,
        };
        world.feed(&mut registering, now, input);
    }
    assert!(world.over.is_some(), "a registration that does not end");
    assert_eq!(world.over == Some(Outcome::Done), world.taken && world.saved, "{:?}", world.over);
}

fn response(status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> Response {
    Response { status, reason: String::new(), headers, body }
}

struct World {
    server_url: String,
    awaited: Awaited,
    joins: u32,
    /// The server took the join request.
    taken: bool,
    /// That is on the disk.
    saved: bool,
    over: Option<Outcome>,
}

impl World {
    fn feed(&mut self, registering: &mut Registering, now: Now, input: Input) {
        let fits = match (&self.awaited, &input) {
            (Awaited::Answer { .. }, Input::Done(_)) | (Awaited::Code, Input::Code(_) | Input::NoCode) => {
                true
            }
            (Awaited::Saved, Input::Saved(result)) => {
                if result.is_ok() {
                    self.saved = true;
                }
                true
            }
            _ => false,
        };
        if fits {
            self.awaited = Awaited::Nothing;
        }
        registering.handle_input(now, input);
        let before = self.awaited;
        let outputs = self.drain(registering);
        assert!(fits || outputs == 0 && self.awaited == before, "what nobody waits for changes nothing");
    }

    fn drain(&mut self, registering: &mut Registering) -> u32 {
        for count in 0..32 {
            let output = registering.poll_output();
            if output == Output::Wait {
                assert!(self.over.is_some() || self.awaited != Awaited::Nothing, "it waits for nothing");
                return count;
            }
            assert!(self.over.is_none(), "{output:?} after the end");
            if !matches!(output, Output::Notice(_) | Output::Finish(_)) {
                assert_eq!(self.awaited, Awaited::Nothing, "one thing at a time");
            }
            match output {
                Output::Fetch(fetch) => {
                    let base = self.server_url.trim_end_matches('/').to_ascii_lowercase();
                    assert_eq!(fetch.audience, Audience::Operator);
                    let is_plain = base.bytes().all(|b| b.is_ascii_alphanumeric() || b":/.-".contains(&b));
                    if is_plain && base.starts_with("https://network.example") {
                        assert!(fetch.target.url().starts_with("https://network.example/"), "{fetch:?}");
                    }
                    let is_join = fetch.target.path_and_query.ends_with("/node/join");
                    self.joins += u32::from(is_join);
                    assert!(self.joins <= 1, "the join request is sent once");
                    self.awaited = Awaited::Answer { is_join };
                }
                Output::AskCode { .. } => self.awaited = Awaited::Code,
                Output::Save { file, data } => {
                    assert_eq!((file, self.joins), (StateFile::Config, 1));
                    assert!(Registration::parse(&data).is_ok(), "what is written can be read");
                    self.taken = true;
                    self.awaited = Awaited::Saved;
                }
                Output::Remove { file } => {
                    assert_eq!(
                        (file, self.saved),
                        (StateFile::JoinAuth, true),
                        "written before it is used up"
                    );
                    self.awaited = Awaited::Saved;
                }
                Output::Notice(notice) => {
                    assert!(!notice.text.chars().any(char::is_control), "{}", notice.text);
                }
                Output::Finish(finish) => {
                    assert!(!finish.message.chars().any(char::is_control), "{:?}", finish.message);
                    self.over = Some(finish.outcome);
                }
                Output::Wait => {}
            }
        }
        panic!("one input gives no end of outputs");
    }
}
