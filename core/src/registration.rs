//! Registration: the contact's email, the region, the join request, the server's key (protocol.md section 7).
//!
//! [`Registering`] is a machine of the same shape as the [`Node`](crate::node::Node). The join request is
//! single-use, so its answer is written before anything else happens, and a failure after it was sent says that it
//! may have been taken.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, Value};

use crate::event::Level;
use crate::guard::{Refused, Target};
use crate::io::{Audience, Fetch, FetchError, FetchErrorKind, Finish, Outcome, Response, StateFile};
use crate::limits::SERVER_BOUNDS;
use crate::release::manifest::Capabilities;
use crate::state::{JoinAuth, Jwk, Registration, is_node_id};
use crate::text::printable;
use crate::time::Now;

mod address;

pub use self::address::{AddressError, validate_evm, validate_icp, validate_solana};

/// How often a mistyped code may be typed again. Each try asks the server, which counts too.
pub const MAX_CODE_TRIES: u32 = 3;

/// Email address and contact, in bytes: RFC 5321 allows an address of 254.
pub const MAX_CONTACT: usize = 254;

/// Ways to pay that are shown of a payment challenge.
const MAX_OFFERS: usize = 8;

/// `POST /node/email/start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmailStart {
    /// Where the code is to be sent.
    pub email: String,
}

/// The answer to [`EmailStart`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmailStarted {
    /// Always true in a 2xx answer.
    #[serde(default)]
    pub success: bool,
    /// Names this verification.
    pub verification_id: String,
    /// Unix seconds, or a date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Value>,
    /// The code itself: development networks only.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub dev_code: Option<String>,
}

/// `POST /node/email/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the member of its name in protocol.md section 7")]
pub struct EmailVerify {
    pub email: String,
    pub verification_id: String,
    pub code: String,
}

/// The answer to [`EmailVerify`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmailVerified {
    /// Always true in a 2xx answer.
    #[serde(default)]
    pub success: bool,
    /// The address that is verified.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// What the join request shows for it.
    pub email_verification_token: String,
    /// Unix seconds, or a date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Value>,
}

/// The answer to `GET /node/region/<ipv4>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the member of its name in protocol.md section 7")]
pub struct RegionFound {
    #[serde(default)]
    pub success: bool,
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub country_code: Option<String>,
}

/// `POST /node/join`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the member of its name in protocol.md section 7")]
pub struct Join {
    pub pubkey_ed25519_pem: String,
    pub ipv4: String,
    pub ipv6: Option<String>,
    pub port: u16,
    pub contact: String,
    pub email_verification_token: String,
    pub evm_address: String,
    pub solana_address: String,
    pub icp_address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    pub capabilities: Capabilities,
    pub join_id: String,
    pub join_signature: String,
}

/// The answer to [`Join`]. On reading, whatever but the name is of an unexpected kind counts as absent: the
/// registration has been made, and nothing in its answer is worth losing it for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the member of its name in protocol.md section 7")]
pub struct Joined {
    #[serde(default)]
    pub success: bool,
    pub node_id: String,
    #[serde(default, deserialize_with = "lenient")]
    pub domain: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub connect_url: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub ipv4: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub ipv6: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub port: Option<u16>,
    #[serde(default, deserialize_with = "lenient")]
    pub region: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub status: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub benchmark_score: Option<Number>,
    #[serde(default)]
    pub orchestrator_pubkey: Option<Value>,
}

/// What the server says instead of any of these answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A code or a sentence.
    pub error: String,
    /// A sentence.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A value of another kind than the expected one counts as absent.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// What a registration is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://…` or `http://…`.
    pub server_url: String,
    /// The contact's email address. May be absent where a token is given.
    pub email: Option<String>,
    /// A token of an earlier verification: then no email is sent.
    pub email_verification_token: Option<String>,
    /// A verification under way and the code that came by email, where an operator registers in two runs.
    pub verification: Option<(String, String)>,
    /// The node's public address.
    pub ipv4: String,
    /// Its second one.
    pub ipv6: Option<String>,
    /// The port it can be reached at.
    pub port: u16,
    /// How to reach the operator.
    pub contact: String,
    /// Where to pay to.
    pub evm_address: String,
    /// Where to pay to.
    pub solana_address: String,
    /// Where to pay to.
    pub icp_address: String,
    /// From the machine registry.
    pub machine_id: Option<String>,
    /// What the evaluation earned; `None` where there is no `join-auth.json`.
    pub join_auth: Option<JoinAuth>,
    /// The node's identity, SPKI PEM.
    pub public_key_pem: String,
    /// What the node can do.
    pub capabilities: Capabilities,
    /// The region, where it was asked for before; then it is not asked for again.
    pub region: Option<String>,
    /// `config.json`, where the node was registered before.
    pub existing: Option<Registration>,
}

/// A setting that cannot be right: a usage error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The field of [`Settings`].
    pub setting: &'static str,
    /// What is wrong with it, or what it should be.
    pub problem: String,
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl core::error::Error for SettingError {}

impl Settings {
    /// Whether everything is there and can be right, without asking anybody.
    ///
    /// # Errors
    /// The first setting that cannot be right.
    pub fn check(&self) -> Result<(), SettingError> {
        let fail = |setting, problem: &str| Err(SettingError { setting, problem: problem.to_string() });
        if let Err(refused) = Target::parse(&self.server_url) {
            return fail("server_url", &refused.to_string());
        }
        match &self.email {
            Some(email) if !is_email(email) => return fail("email", "not an email address"),
            None if self.email_verification_token.is_none() => {
                return fail("email", "needed, unless a token of an earlier verification is given");
            }
            _ => {}
        }
        if self.ipv4.parse::<Ipv4Addr>().is_err() {
            return fail("ipv4", "not an IPv4 address");
        }
        if self.ipv6.as_ref().is_some_and(|text| text.parse::<Ipv6Addr>().is_err()) {
            return fail("ipv6", "not an IPv6 address");
        }
        if self.port == 0 {
            return fail("port", "a port is 1 to 65535");
        }
        if self.contact.trim().is_empty() || self.contact.len() > MAX_CONTACT {
            return fail("contact", "needed, at most 254 bytes");
        }
        for (setting, result) in [
            ("evm_address", validate_evm(&self.evm_address)),
            ("solana_address", validate_solana(&self.solana_address)),
            ("icp_address", validate_icp(&self.icp_address)),
        ] {
            if let Err(error) = result {
                return fail(setting, &error.to_string());
            }
        }
        Ok(())
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The answer to [`Output::Fetch`].
    Done(Result<Response, FetchError>),
    /// The answer to [`Output::AskCode`].
    Code(String),
    /// Nobody is there to answer [`Output::AskCode`].
    NoCode,
    /// The answer to [`Output::Save`] and [`Output::Remove`]; the error is for people and names the file.
    Saved(Result<(), String>),
}

/// Something to do. After each of these but `Notice`, [`Output::Wait`] follows until it is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make this request; answer with [`Input::Done`].
    Fetch(Fetch),
    /// Ask the operator for the code that was sent to `email`; answer with [`Input::Code`] or [`Input::NoCode`].
    AskCode {
        /// Where the code was sent.
        email: String,
        /// Names the verification, for an operator who will come back with the code later.
        verification_id: String,
    },
    /// Tell the operator.
    Notice(Notice),
    /// Replace a file of the state directory, durably; answer with [`Input::Saved`].
    Save {
        /// Which.
        file: StateFile,
        /// Its content.
        data: Vec<u8>,
    },
    /// Remove a file of the state directory; answer with [`Input::Saved`].
    Remove {
        /// Which.
        file: StateFile,
    },
    /// It is over: nothing but [`Output::Wait`] follows.
    Finish(Finish),
    /// Nothing to do until an answer comes.
    Wait,
}

/// A line for the operator. What came from the server is printable and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How loud.
    pub level: Level,
    /// What.
    pub text: String,
}

/// What an answer is awaited of.
#[derive(Clone, Debug)]
enum State {
    EmailStart,
    AskCode { verification_id: String, tries: u32 },
    EmailVerify { verification_id: String, tries: u32, asked: bool },
    Region,
    Join,
    SaveConfig { node_id: String },
    RemoveJoinAuth { node_id: String },
    Over,
}

/// A registration under way. Drive it until [`Output::Finish`]; every output but a notice waits for its answer.
#[derive(Debug)]
pub struct Registering {
    settings: Settings,
    state: State,
    token: String,
    region: Option<String>,
    /// The status of the answer to the join request, once one came.
    join_status: Option<u16>,
    outputs: VecDeque<Output>,
}

impl Registering {
    /// Begins. Without a valid authorisation of an evaluation it ends at once.
    ///
    /// # Errors
    /// A setting that cannot be right: see [`Settings::check`].
    pub fn new(settings: Settings, now: Now) -> Result<Self, SettingError> {
        settings.check()?;
        let token = settings.email_verification_token.clone().unwrap_or_default();
        let region = settings.region.clone();
        let outputs = VecDeque::new();
        let mut this = Self { settings, state: State::Over, token, region, join_status: None, outputs };
        if this.usable_join_auth(now).is_none() {
            return Ok(this);
        }
        let email = this.settings.email.clone().unwrap_or_default();
        if this.settings.email_verification_token.is_some() {
            this.ask_region(now);
        } else if let Some((verification_id, code)) = this.settings.verification.clone() {
            this.verify_email(verification_id, code, 0, false);
        } else {
            this.fetch(State::EmailStart, "POST", "/node/email/start", json_body(&EmailStart { email }));
        }
        Ok(this)
    }

    /// Never fails: what goes wrong becomes an output.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        // An answer that nobody waits for puts the state back.
        match (core::mem::replace(&mut self.state, State::Over), input) {
            (State::EmailStart, Input::Done(result)) => self.on_email_started(result),
            (State::AskCode { verification_id, tries }, Input::Code(code)) => {
                self.verify_email(verification_id, code.trim().to_string(), tries, true);
            }
            (State::AskCode { verification_id, .. }, Input::NoCode) => self.finish(
                Outcome::NotRegistered,
                format!(
                    "the code that was sent by email is needed; register again with it and the verification id {}",
                    printable(&verification_id)
                ),
            ),
            (State::EmailVerify { verification_id, tries, asked }, Input::Done(result)) => {
                self.on_email_verified(now, result, verification_id, tries, asked);
            }
            (State::Region, Input::Done(result)) => self.on_region(now, result),
            (State::Join, Input::Done(result)) => self.on_joined(now, result),
            (State::SaveConfig { node_id }, Input::Saved(Ok(()))) => {
                self.outputs.push_back(Output::Remove { file: StateFile::JoinAuth });
                self.state = State::RemoveJoinAuth { node_id };
            }
            (State::SaveConfig { node_id }, Input::Saved(Err(detail))) => self.finish(
                Outcome::Internal,
                format!("registered as node {node_id}, but that could not be saved: {detail}; write the name down"),
            ),
            (State::RemoveJoinAuth { node_id }, Input::Saved(result)) => {
                if let Err(detail) = result {
                    // Harmless: the authorisation is used up.
                    self.notice(Level::Warn, format!("the used authorisation is still there: {detail}"));
                }
                self.finish(Outcome::Done, format!("registered as node {node_id}"));
            }
            (state, _) => self.state = state,
        }
    }

    /// The HTTP status of the answer to the join request; `None` where none came.
    #[must_use]
    pub const fn join_status(&self) -> Option<u16> {
        self.join_status
    }

    /// The next thing to do. Drain until [`Output::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or(Output::Wait)
    }

    fn on_email_started(&mut self, result: Result<Response, FetchError>) {
        let Some(started) = self.answer::<EmailStarted>("email/start", result) else { return };
        if let Some(code) = started.dev_code {
            self.notice(
                Level::Warn,
                "this is a development network: the code came with the answer, no email was sent".to_string(),
            );
            self.verify_email(started.verification_id, code, 0, false);
        } else {
            self.ask_code(started.verification_id, 1);
        }
    }

    fn ask_code(&mut self, verification_id: String, tries: u32) {
        let email = self.settings.email.clone().unwrap_or_default();
        self.outputs.push_back(Output::AskCode { email, verification_id: verification_id.clone() });
        self.state = State::AskCode { verification_id, tries };
    }

    fn verify_email(&mut self, verification_id: String, code: String, tries: u32, asked: bool) {
        let email = self.settings.email.clone().unwrap_or_default();
        let body = json_body(&EmailVerify { email, verification_id: verification_id.clone(), code });
        let state = State::EmailVerify { verification_id, tries, asked };
        self.fetch(state, "POST", "/node/email/verify", body);
    }

    fn on_email_verified(
        &mut self,
        now: Now,
        result: Result<Response, FetchError>,
        verification_id: String,
        tries: u32,
        asked: bool,
    ) {
        if let Ok(response) = &result {
            if asked && tries < MAX_CODE_TRIES && (400..500).contains(&response.status) {
                self.notice(Level::Warn, failure_text(response));
                self.ask_code(verification_id, tries + 1);
                return;
            }
        }
        let Some(verified) = self.answer::<EmailVerified>("email/verify", result) else { return };
        self.token = verified.email_verification_token;
        self.notice(Level::Info, "email address verified".to_string());
        self.ask_region(now);
    }

    fn ask_region(&mut self, now: Now) {
        if self.region.is_some() {
            return self.join(now);
        }
        let path = format!("/node/region/{}", self.settings.ipv4);
        self.fetch(State::Region, "GET", &path, None);
    }

    fn on_region(&mut self, now: Now, result: Result<Response, FetchError>) {
        match result {
            Err(error) => return self.unreachable(&error),
            // The server decides about the region again when the node joins: not knowing it is no reason to stop.
            Ok(response) => match read_region(&response) {
                Err(why) => self.notice(Level::Warn, format!("region unknown: {why}")),
                Ok((region, place)) => {
                    self.notice(Level::Info, format!("region: {place}"));
                    self.region = region;
                }
            },
        }
        self.join(now);
    }

    fn join(&mut self, now: Now) {
        // Time has passed since the start: somebody may have looked for a code in a mailbox.
        let Some(auth) = self.usable_join_auth(now) else { return };
        let settings = &self.settings;
        let join = Join {
            pubkey_ed25519_pem: settings.public_key_pem.clone(),
            ipv4: settings.ipv4.clone(),
            ipv6: settings.ipv6.clone(),
            port: settings.port,
            contact: settings.contact.clone(),
            email_verification_token: self.token.clone(),
            evm_address: settings.evm_address.clone(),
            solana_address: settings.solana_address.clone(),
            icp_address: settings.icp_address.clone(),
            machine_id: settings.machine_id.clone(),
            capabilities: settings.capabilities,
            join_id: auth.join_id,
            join_signature: auth.signature,
        };
        self.fetch(State::Join, "POST", "/node/join", json_body(&join));
    }

    fn on_joined(&mut self, now: Now, result: Result<Response, FetchError>) {
        const TAKEN: &str =
            "the join request may have been taken: before another evaluation, ask the network";
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                let mut message = unreachable_text(&error);
                if may_have_been_sent(error.kind) {
                    message = format!("{message}; {TAKEN}");
                }
                return self.finish(Outcome::Unreachable, message);
            }
        };
        self.join_status = Some(response.status);
        if response.status == 402 {
            return self.payment_required(&response);
        }
        if !is_success(&response) {
            let mut message = failure_text(&response);
            if matches!(response.status, 404 | 410) {
                message = format!("{message}; if the authorisation was used, run `eval` for another");
            }
            if response.status >= 500 {
                message = format!("{message}; {TAKEN}");
            }
            return self.finish(Outcome::Refused, message);
        }
        match serde_json::from_slice::<Joined>(&response.body) {
            Ok(joined) if is_node_id(&joined.node_id) => self.save(now, joined),
            _ => self.finish(
                Outcome::Refused,
                format!("the server's answer to the join request names no node; {TAKEN}"),
            ),
        }
    }

    /// Shows an x402 challenge and stops: paying is not this program's.
    fn payment_required(&mut self, response: &Response) {
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let offers = body.get("accepts").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for offer in offers.iter().take(MAX_OFFERS) {
            let members = offer.as_object().into_iter().flatten();
            let parts: Vec<String> = members
                .filter(|(_, value)| !value.is_object() && !value.is_array() && !value.is_null())
                .map(|(name, value)| match value {
                    Value::String(text) => format!("{name} {text}"),
                    other => format!("{name} {other}"),
                })
                .collect();
            self.notice(Level::Warn, printable(&format!("payment: {}", parts.join(", "))));
        }
        self.finish(
            Outcome::PaymentRequired,
            format!("the network asks for a payment: {}", failure_text(response)),
        );
    }

    fn save(&mut self, now: Now, joined: Joined) {
        let pin = match &joined.orchestrator_pubkey {
            None | Some(Value::Null) => None,
            Some(value) => {
                let pin = Jwk::from_value(value);
                if pin.is_none() {
                    self.notice(
                        Level::Warn,
                        "the server's public key cannot be read and is not pinned".to_string(),
                    );
                }
                pin
            }
        };
        let settings = &self.settings;
        let earlier = settings.existing.clone().unwrap_or_default();
        let is_same = earlier.node_id == joined.node_id;
        let registration = Registration {
            machine_id: settings.machine_id.clone().or(earlier.machine_id),
            domain: joined.domain,
            region: joined.region.or_else(|| self.region.clone()),
            ipv4: joined.ipv4.or_else(|| Some(settings.ipv4.clone())),
            ipv6: joined.ipv6.or_else(|| settings.ipv6.clone()),
            port: joined.port.or(Some(settings.port)),
            registered_at: Some(now.unix_seconds().into()),
            commissioned_at: earlier.commissioned_at.filter(|_| is_same),
            benchmark_score: joined.benchmark_score,
            // A server that names no key does not take an earlier pin away.
            orchestrator_pubkey: pin.or(earlier.orchestrator_pubkey),
            extra: earlier.extra,
            node_id: joined.node_id,
        };
        for (what, text) in [("domain", &registration.domain), ("connect url", &joined.connect_url)] {
            if let Some(text) = text {
                self.outputs.push_back(Output::Notice(Notice {
                    level: Level::Info,
                    text: format!("{what}: {}", printable(text)),
                }));
            }
        }
        self.outputs.push_back(Output::Save { file: StateFile::Config, data: registration.emit() });
        self.state = State::SaveConfig { node_id: registration.node_id };
    }

    /// The authorisation; where there is none to use, the registration is over.
    fn usable_join_auth(&mut self, now: Now) -> Option<JoinAuth> {
        let problem = match &self.settings.join_auth {
            Some(auth) if !auth.is_expired(now.unix_seconds()) => return Some(auth.clone()),
            Some(_) => "the authorisation of the evaluation has expired; run `eval` again",
            None => "this node has not been evaluated; run `eval` first",
        };
        self.finish(Outcome::NotRegistered, problem.to_string());
        None
    }

    /// The body of a 2xx answer; anything else ends the registration.
    fn answer<T: DeserializeOwned>(&mut self, what: &str, result: Result<Response, FetchError>) -> Option<T> {
        match result {
            Err(error) => self.unreachable(&error),
            Ok(response) if !is_success(&response) => {
                self.finish(Outcome::Refused, failure_text(&response));
            }
            Ok(response) => match serde_json::from_slice(&response.body) {
                Ok(body) => return Some(body),
                Err(_) => {
                    self.finish(Outcome::Refused, format!("the server's answer to {what} cannot be read"));
                }
            },
        }
        None
    }

    fn fetch(&mut self, state: State, method: &str, path: &str, body: Option<Vec<u8>>) {
        match operator_request(&self.settings.server_url, method, path, body) {
            Ok(fetch) => {
                self.outputs.push_back(Output::Fetch(fetch));
                self.state = state;
            }
            Err(refused) => self.finish(Outcome::Internal, format!("the server URL: {refused}")),
        }
    }

    fn unreachable(&mut self, error: &FetchError) {
        self.finish(Outcome::Unreachable, unreachable_text(error));
    }

    fn notice(&mut self, level: Level, text: String) {
        self.outputs.push_back(Output::Notice(Notice { level, text }));
    }

    fn finish(&mut self, outcome: Outcome, message: String) {
        self.state = State::Over;
        self.outputs.push_back(Output::Finish(Finish { outcome, message }));
    }
}

/// The region of an answer, and how it is told; the error says why neither is known.
pub(crate) fn read_region(response: &Response) -> Result<(Option<String>, String), String> {
    if !is_success(response) {
        return Err(failure_text(response));
    }
    let found: RegionFound = serde_json::from_slice(&response.body).unwrap_or_default();
    let said =
        |text: Option<String>| text.map(|text| printable(&text)).filter(|text| !text.trim().is_empty());
    let region = said(found.region);
    let place = [region.clone(), said(found.city), said(found.country_code)];
    let place: Vec<String> = place.into_iter().flatten().collect();
    if place.is_empty() {
        return Err("the server's answer does not say it".to_string());
    }
    Ok((region, place.join(", ")))
}

/// A request to the network's own interface: `path` below the server URL, whose query and credentials are not used.
///
/// # Errors
/// The server URL is not an `http` or `https` URL.
pub fn operator_request(
    server_url: &str,
    method: &str,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Fetch, Refused> {
    let target = Target::parse(server_url)?;
    let base = target.path_and_query.split('?').next().unwrap_or_default().trim_end_matches('/');
    let mut headers: Vec<(String, String)> =
        [("accept", "application/json"), ("user-agent", crate::guard::USER_AGENT)]
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .to_vec();
    if body.is_some() {
        headers.push(("content-type".to_string(), "application/json".to_string()));
    }
    Ok(Fetch {
        audience: Audience::Operator,
        method: method.to_string(),
        target: Target::parse(&format!("{}{base}{path}", target.origin()))?,
        headers,
        body,
        bounds: SERVER_BOUNDS,
    })
}

/// Whether a response is the answer that was asked for: 2xx, and no `success:false` in it.
pub(crate) fn is_success(response: &Response) -> bool {
    #[derive(Deserialize)]
    struct Body {
        success: bool,
    }
    (200..300).contains(&response.status)
        && serde_json::from_slice::<Body>(&response.body).map_or(true, |body| body.success)
}

/// What the server says went wrong, verbatim but printable and bounded.
pub(crate) fn failure_text(response: &Response) -> String {
    let body = String::from_utf8_lossy(&response.body);
    let said = match serde_json::from_str::<Failure>(&body) {
        Ok(Failure { error, message: Some(message) }) if message != error => format!("{error}: {message}"),
        Ok(Failure { error, .. }) => error,
        // Whatever it is, its text is not for this program's operator.
        Err(_) if !body.trim().is_empty() => {
            "not an answer of a Consensus server; check the server URL".to_string()
        }
        Err(_) => String::new(),
    };
    match said.as_str() {
        "" => printable(format!("HTTP {} {}", response.status, response.reason).trim_end()),
        said => format!("HTTP {}: {}", response.status, printable(said)),
    }
}

pub(crate) fn unreachable_text(error: &FetchError) -> String {
    format!("the network cannot be reached: {}", printable(&error.detail))
}

/// Whether a request that failed in this way can have arrived.
const fn may_have_been_sent(kind: FetchErrorKind) -> bool {
    !matches!(
        kind,
        FetchErrorKind::Url
            | FetchErrorKind::Forbidden
            | FetchErrorKind::Resolve
            | FetchErrorKind::Connect
            | FetchErrorKind::Busy
    )
}

pub(crate) fn json_body<T: Serialize>(body: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(body).ok()
}

/// Whether a text can be an email address; whether it is one, the verification tells.
fn is_email(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| !c.is_whitespace() && !c.is_control());
    text.len() <= MAX_CONTACT
        && text.rsplit_once('@').is_some_and(|(local, domain)| plain(local) && plain(domain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::time::Duration;
    use serde_json::json;

    const JWK_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn now() -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1000) }
    }

    fn settings() -> Settings {
        Settings {
            server_url: "https://api.example/".into(),
            email: Some("op@example.org".into()),
            email_verification_token: None,
            verification: None,
            ipv4: "203.0.114.10".into(),
            ipv6: None,
            port: 9090,
            contact: "op@example.org".into(),
            evm_address: "0x0000000000000000000000000000000000000001".into(),
            solana_address: "11111111111111111111111111111111".into(),
            icp_address: "aaaaa-aa".into(),
            machine_id: Some("m".into()),
            join_auth: Some(JoinAuth {
                join_id: "j".into(),
                alg: "ed25519".into(),
                nonce: "bg".into(),
                signature: "sig".into(),
                expires_at: 2000,
                saved_at: 900,
            }),
            public_key_pem: "PEM".into(),
            capabilities: Capabilities::ALL,
            region: None,
            existing: None,
        }
    }

    fn response(status: u16, body: &Value) -> Result<Response, FetchError> {
        let reason = "Reason".to_string();
        Ok(Response { status, reason, headers: vec![], body: body.to_string().into_bytes() })
    }

    fn failed(kind: FetchErrorKind) -> Result<Response, FetchError> {
        Err(FetchError { kind, detail: "no\nroute".into() })
    }

    /// Drives a machine by a table of answers; records what it did.
    struct Run {
        machine: Registering,
        notices: Vec<String>,
    }

    impl Run {
        fn new(settings: Settings) -> Self {
            Self { machine: Registering::new(settings, now()).unwrap(), notices: vec![] }
        }

        /// The next output that is not a notice.
        fn next(&mut self) -> Output {
            loop {
                match self.machine.poll_output() {
                    Output::Notice(notice) => self.notices.push(notice.text),
                    other => return other,
                }
            }
        }

        fn give(&mut self, input: Input) {
            assert_eq!(self.next(), Output::Wait);
            self.machine.handle_input(now(), input);
        }

        fn expect_fetch(&mut self, method: &str, path: &str) -> Value {
            let Output::Fetch(fetch) = self.next() else { panic!("no request to {path}") };
            assert_eq!(
                (fetch.method.as_str(), fetch.target.url().as_str()),
                (method, &*format!("https://api.example{path}"))
            );
            assert_eq!(fetch.audience, Audience::Operator);
            fetch.body.map_or(Value::Null, |body| serde_json::from_slice(&body).unwrap())
        }

        fn expect_finish(&mut self, outcome: Outcome) -> String {
            let Output::Finish(finish) = self.next() else { panic!("not at its end") };
            assert_eq!(finish.outcome, outcome, "{}", finish.message);
            assert_eq!(self.next(), Output::Wait);
            finish.message
        }

        fn to_join(settings: Settings) -> Self {
            let settings = Settings { email_verification_token: Some("token".into()), ..settings };
            let mut run = Self::new(settings);
            run.expect_fetch("GET", "/node/region/203.0.114.10");
            run.give(Input::Done(response(200, &json!({"success": true, "region": "eu-west", "city": "X"}))));
            run.expect_fetch("POST", "/node/join");
            run
        }

        fn expect_saved(&mut self) -> Registration {
            let Output::Save { file: StateFile::Config, data } = self.next() else { panic!("nothing saved") };
            self.give(Input::Saved(Ok(())));
            assert_eq!(self.next(), Output::Remove { file: StateFile::JoinAuth });
            self.give(Input::Saved(Ok(())));
            Registration::parse(&data).unwrap()
        }
    }

    fn joined() -> Value {
        json!({
            "success": true, "node_id": "b1c604f617c0", "domain": "b1.example", "connect_url": "wss://b1.example",
            "ipv4": "203.0.114.10", "ipv6": null, "port": 9090, "region": "eu-west", "status": "active",
            "benchmark_score": 87, "orchestrator_pubkey": {"kty": "OKP", "crv": "Ed25519", "x": JWK_X, "kid": "k"},
        })
    }

    #[test]
    fn a_registration_goes_by_email_region_and_join_and_is_saved() {
        let mut run = Run::new(settings());
        assert_eq!(run.expect_fetch("POST", "/node/email/start"), json!({"email": "op@example.org"}));
        run.give(Input::Done(response(
            200,
            &json!({"success": true, "verification_id": "v", "expires_at": 1}),
        )));
        let ask = Output::AskCode { email: "op@example.org".into(), verification_id: "v".into() };
        assert_eq!(run.next(), ask);
        run.give(Input::Code(" 123456\n".into()));
        assert_eq!(
            run.expect_fetch("POST", "/node/email/verify"),
            json!({"email": "op@example.org", "verification_id": "v", "code": "123456"})
        );
        run.give(Input::Done(response(200, &json!({"success": true, "email_verification_token": "token"}))));
        run.expect_fetch("GET", "/node/region/203.0.114.10");
        run.give(Input::Done(response(200, &json!({"success": true, "region": "eu-west"}))));
        assert_eq!(
            run.expect_fetch("POST", "/node/join"),
            json!({
                "pubkey_ed25519_pem": "PEM", "ipv4": "203.0.114.10", "ipv6": null, "port": 9090,
                "contact": "op@example.org", "email_verification_token": "token",
                "evm_address": "0x0000000000000000000000000000000000000001",
                "solana_address": "11111111111111111111111111111111", "icp_address": "aaaaa-aa", "machine_id": "m",
                "capabilities": {"forward_proxy": true, "reverse_proxy": true, "websockets": true, "tunnels": true,
                    "ip_leasing": true},
                "join_id": "j", "join_signature": "sig",
            })
        );
        run.give(Input::Done(response(200, &joined())));
        let saved = run.expect_saved();
        assert!(run.expect_finish(Outcome::Done).contains("b1c604f617c0"));
        assert_eq!(saved.node_id, "b1c604f617c0");
        assert_eq!(saved.machine_id.as_deref(), Some("m"));
        assert_eq!((saved.port, &saved.registered_at), (Some(9090), &Some(1000.into())));
        assert_eq!(saved.benchmark_score, Some(87.into()));
        assert_eq!(saved.server_key().unwrap()[0], 0xd7);
        assert!(run.notices.iter().all(|text| !text.contains("token")), "{:?}", run.notices);
    }

    #[test]
    fn a_development_networks_code_is_used_and_told() {
        let mut run = Run::new(settings());
        run.expect_fetch("POST", "/node/email/start");
        run.give(Input::Done(response(200, &json!({"verification_id": "v", "dev_code": "42"}))));
        assert_eq!(run.expect_fetch("POST", "/node/email/verify")["code"], "42");
        assert!(run.notices[0].contains("development network"));
    }

    #[test]
    fn a_token_of_an_earlier_verification_spares_the_email() {
        let run = Run::to_join(Settings { email: None, ..settings() });
        assert_eq!(run.notices, ["region: eu-west, X"]);
    }

    #[test]
    fn a_code_given_beforehand_spares_the_question() {
        let verification = Some(("v".to_string(), "7".to_string()));
        let mut run = Run::new(Settings { verification, ..settings() });
        assert_eq!(run.expect_fetch("POST", "/node/email/verify")["code"], "7");
        run.give(Input::Done(response(400, &json!({"error": "invalid_code"}))));
        assert_eq!(run.expect_finish(Outcome::Refused), "HTTP 400: invalid_code");
    }

    #[test]
    fn a_mistyped_code_may_be_typed_again_but_not_for_ever() {
        let mut run = Run::new(settings());
        run.expect_fetch("POST", "/node/email/start");
        run.give(Input::Done(response(200, &json!({"verification_id": "v"}))));
        for _ in 0..MAX_CODE_TRIES {
            assert!(matches!(run.next(), Output::AskCode { .. }));
            run.give(Input::Code("0".into()));
            run.expect_fetch("POST", "/node/email/verify");
            run.give(Input::Done(response(400, &json!({"error": "invalid_code", "message": "Wrong code"}))));
        }
        assert_eq!(run.expect_finish(Outcome::Refused), "HTTP 400: invalid_code: Wrong code");
    }

    #[test]
    fn without_anybody_to_ask_the_operator_learns_how_to_come_back() {
        let mut run = Run::new(settings());
        run.expect_fetch("POST", "/node/email/start");
        run.give(Input::Done(response(200, &json!({"verification_id": "v-1"}))));
        assert!(matches!(run.next(), Output::AskCode { .. }));
        run.give(Input::NoCode);
        assert!(run.expect_finish(Outcome::NotRegistered).contains("v-1"));
    }

    #[test]
    fn without_a_valid_authorisation_nothing_is_asked_of_the_network() {
        let mut run = Run::new(Settings { join_auth: None, ..settings() });
        assert!(run.expect_finish(Outcome::NotRegistered).contains("run `eval` first"));
        let mut expired = settings();
        expired.join_auth.as_mut().unwrap().expires_at = 1000;
        assert!(Run::new(expired).expect_finish(Outcome::NotRegistered).contains("run `eval` again"));
    }

    #[test]
    fn an_authorisation_that_expires_on_the_way_is_not_sent() {
        let settings = Settings { email_verification_token: Some("t".into()), ..settings() };
        let mut run = Run::new(settings);
        run.expect_fetch("GET", "/node/region/203.0.114.10");
        let later = Now { unix: Duration::from_secs(2000), ..now() };
        run.machine.handle_input(later, Input::Done(response(200, &json!({}))));
        assert!(run.expect_finish(Outcome::NotRegistered).contains("expired"));
    }

    #[test]
    fn an_unknown_region_is_no_reason_to_stop() {
        let mut run = Run::new(Settings { email_verification_token: Some("t".into()), ..settings() });
        run.expect_fetch("GET", "/node/region/203.0.114.10");
        run.give(Input::Done(response(404, &json!({"error": "not_found"}))));
        run.expect_fetch("POST", "/node/join");
        assert_eq!(run.notices, ["region unknown: HTTP 404: not_found"]);
    }

    #[test]
    fn a_payment_challenge_is_shown_and_ends_the_registration() {
        let mut run = Run::to_join(settings());
        run.give(Input::Done(response(
            402,
            &json!({"x402Version": 1, "error": "X-PAYMENT header is required", "accepts": [
                {"scheme": "exact", "network": "base", "maxAmountRequired": "1000000", "payTo": "0x1\u{1b}[2J", "extra": {}}
            ]}),
        )));
        let message = run.expect_finish(Outcome::PaymentRequired);
        assert!(message.contains("X-PAYMENT header is required"), "{message}");
        let offer = run.notices.last().unwrap();
        assert!(offer.contains("maxAmountRequired 1000000") && offer.contains("network base"), "{offer}");
        assert!(!offer.contains('\u{1b}'));
    }

    #[test]
    fn what_the_server_refuses_is_shown_in_its_own_words() {
        let mut run = Run::to_join(settings());
        run.give(Input::Done(response(409, &json!({"error": "machine_taken", "message": "One\nnode"}))));
        assert_eq!(run.expect_finish(Outcome::Refused), "HTTP 409: machine_taken: One node");
        let mut run = Run::to_join(settings());
        run.give(Input::Done(response(200, &json!({"success": false, "error": "no"}))));
        assert_eq!(run.expect_finish(Outcome::Refused), "HTTP 200: no");
        let mut run = Run::to_join(settings());
        let body = b"<html>\xff".to_vec();
        run.give(Input::Done(Ok(Response { status: 500, reason: String::new(), headers: vec![], body })));
        let message = run.expect_finish(Outcome::Refused);
        assert!(
            message.starts_with("HTTP 500: not an answer of a Consensus server")
                && message.contains("may have been taken"),
            "{message}"
        );
    }

    #[test]
    fn a_join_request_that_was_lost_may_have_been_taken_and_one_never_sent_was_not() {
        for (kind, sent) in [
            (FetchErrorKind::Timeout, true),
            (FetchErrorKind::Protocol, true),
            (FetchErrorKind::Tls, true),
            (FetchErrorKind::Resolve, false),
            (FetchErrorKind::Connect, false),
        ] {
            let mut run = Run::to_join(settings());
            run.give(Input::Done(failed(kind)));
            let message = run.expect_finish(Outcome::Unreachable);
            assert!(message.contains("no route"), "{message}");
            assert_eq!(message.contains("may have been taken"), sent, "{kind:?}");
        }
        let mut run = Run::new(settings());
        run.expect_fetch("POST", "/node/email/start");
        run.give(Input::Done(failed(FetchErrorKind::Timeout)));
        assert!(!run.expect_finish(Outcome::Unreachable).contains("taken"));
    }

    #[test]
    fn an_answer_without_a_key_keeps_the_earlier_pin_and_what_else_was_there() {
        let mut earlier = Registration::new("b1c604f617c0");
        earlier.orchestrator_pubkey = Some(Jwk::of_key([7; 32], "k"));
        earlier.extra.insert("future".into(), json!(1));
        earlier.commissioned_at = Some(5.into());
        for key in [Value::Null, json!({"kty": "RSA"})] {
            let mut run = Run::to_join(Settings { existing: Some(earlier.clone()), ..settings() });
            let mut answer = joined();
            answer["orchestrator_pubkey"] = key;
            run.give(Input::Done(response(201, &answer)));
            let saved = run.expect_saved();
            assert_eq!(saved.server_key(), Some([7; 32]));
            assert_eq!((&saved.extra["future"], saved.commissioned_at), (&json!(1), Some(5.into())));
        }
    }

    #[test]
    fn odd_members_of_the_answer_do_not_lose_the_registration() {
        let mut run = Run::to_join(settings());
        let answer =
            json!({"node_id": "n", "port": "many", "domain": 7, "benchmark_score": {}, "region": null});
        run.give(Input::Done(response(200, &answer)));
        let saved = run.expect_saved();
        assert_eq!((saved.node_id.as_str(), saved.port, saved.domain), ("n", Some(9090), None));
        assert_eq!(saved.region.as_deref(), Some("eu-west"));
        let mut run = Run::to_join(settings());
        run.give(Input::Done(response(200, &json!({"node_id": "../etc"}))));
        assert!(run.expect_finish(Outcome::Refused).contains("may have been taken"));
    }

    #[test]
    fn a_registration_that_cannot_be_saved_is_not_lost_in_silence() {
        let mut run = Run::to_join(settings());
        run.give(Input::Done(response(200, &joined())));
        assert!(matches!(run.next(), Output::Save { .. }));
        run.give(Input::Saved(Err("config.json: disk full".into())));
        let message = run.expect_finish(Outcome::Internal);
        assert!(message.contains("b1c604f617c0") && message.contains("disk full"), "{message}");
    }

    #[test]
    fn answers_nobody_waits_for_change_nothing() {
        let mut run = Run::new(settings());
        run.expect_fetch("POST", "/node/email/start");
        run.give(Input::Code("1".into()));
        run.give(Input::Saved(Ok(())));
        run.give(Input::Done(response(200, &json!({"verification_id": "v"}))));
        assert!(matches!(run.next(), Output::AskCode { .. }));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let wrong = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            Registering::new(settings, now()).unwrap_err().setting
        };
        assert_eq!(wrong(|s| s.server_url = "ftp://x".into()), "server_url");
        assert_eq!(wrong(|s| s.email = None), "email");
        assert_eq!(wrong(|s| s.email = Some("op example".into())), "email");
        assert_eq!(wrong(|s| s.ipv4 = "1.2.3".into()), "ipv4");
        assert_eq!(wrong(|s| s.ipv6 = Some("1.2.3.4".into())), "ipv6");
        assert_eq!(wrong(|s| s.port = 0), "port");
        assert_eq!(wrong(|s| s.contact = " ".into()), "contact");
        assert_eq!(wrong(|s| s.evm_address = "0x1".into()), "evm_address");
        assert_eq!(wrong(|s| s.solana_address = "1".into()), "solana_address");
        assert_eq!(wrong(|s| s.icp_address = "aaaab-aa".into()), "icp_address");
    }

    #[test]
    fn requests_go_below_the_server_url() {
        let request = |server| operator_request(server, "GET", "/a", None).unwrap();
        assert_eq!(request("http://127.0.0.1:8080").target.url(), "http://127.0.0.1:8080/a");
        assert_eq!(request("https://u:p@h.example/base/?q#f").target.url(), "https://h.example/base/a");
        assert!(request("https://h").headers.iter().all(|(name, _)| name != "content-type"));
    }
}
