//! The files of the state directory and of the machine registry: their content (protocol.md section 12).
//!
//! What is read here was written by this program, by the deployed node, or by an operator's editor. So reading is
//! lenient about what may be missing and strict about what is there: a member of the wrong kind is an error that
//! names it, and a file that does not parse is never taken for an empty one. Members this release does not know
//! are carried along and written back, because another release may need them.
//!
//! Which file of which directory an error is about, the shell adds: it knows the path.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde_json::{Map, Number, Value};

use crate::crypto::Drbg;
use crate::limits::MAX_ID;
use crate::release::manifest::Manifest;
use crate::text::printable;
use crate::wire::base64;

/// The largest state file that is looked at. Real ones are under 4 KiB; the rest is room for members of releases
/// to come.
pub const MAX_STATE_FILE: usize = 1024 * 1024;

/// Numbers from here on are milliseconds: as seconds they would lie in the year 5138.
const FIRST_MILLISECONDS: u64 = 100_000_000_000;

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateError {
    /// Over [`MAX_STATE_FILE`].
    TooLarge,
    /// Not JSON, or not UTF-8; says where.
    Json(String),
    /// JSON, but not an object.
    NotObject,
    /// A member that must be there is not.
    Missing(&'static str),
    /// A member has the wrong kind of value.
    Member {
        /// Its name.
        member: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "larger than {MAX_STATE_FILE} bytes"),
            Self::Json(detail) => write!(f, "not valid JSON: {detail}"),
            Self::NotObject => f.write_str("not a JSON object"),
            Self::Missing(member) => write!(f, "the member \"{member}\" is missing"),
            Self::Member { member, expected } => write!(f, "the member \"{member}\" is not {expected}"),
        }
    }
}

impl core::error::Error for StateError {}

/// A moment as a state file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// A number: unix seconds, or milliseconds where another release wrote those.
    Number(u64),
    /// Text, such as an ISO 8601 date, kept as it is.
    Text(String),
}

impl Stamp {
    /// Unix seconds, where the stamp is a number of seconds or milliseconds.
    #[must_use]
    pub fn unix_seconds(&self) -> Option<u64> {
        match self {
            // As seconds it would be read as milliseconds the next time.
            Self::Number(n) if n / 1000 >= FIRST_MILLISECONDS => None,
            Self::Number(n) if *n >= FIRST_MILLISECONDS => Some(n / 1000),
            Self::Number(n) => Some(*n),
            Self::Text(_) => None,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Number(n) => Value::from(*n),
            Self::Text(text) => Value::from(text.as_str()),
        }
    }
}

impl From<u64> for Stamp {
    fn from(unix_seconds: u64) -> Self {
        Self::Number(unix_seconds)
    }
}

/// An Ed25519 public key as a JWK (RFC 8037): `kty:"OKP", crv:"Ed25519", x`, and whatever else it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwk {
    key: [u8; 32],
    members: Map<String, Value>,
}

impl Jwk {
    /// The key of a JSON value; `None` when it is not an OKP Ed25519 JWK.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<Self> {
        let members = value.as_object()?;
        let text = |name| members.get(name).and_then(Value::as_str);
        if text("kty")? != "OKP" || text("crv")? != "Ed25519" {
            return None;
        }
        Some(Self { key: base64::decode_array(text("x")?)?, members: members.clone() })
    }

    /// The JWK of a key, as the deployed network writes it (protocol.md section 7).
    #[must_use]
    pub fn of_key(key: [u8; 32], kid: &str) -> Self {
        let mut members = Map::new();
        let x = base64::encode_url(&key);
        for (name, value) in [
            ("kty", "OKP"),
            ("crv", "Ed25519"),
            ("x", x.as_str()),
            ("use", "sig"),
            ("alg", "EdDSA"),
            ("kid", kid),
        ] {
            members.insert(name.to_string(), Value::from(value));
        }
        Self { key, members }
    }

    /// The public key.
    #[must_use]
    pub const fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The JWK, all members as received.
    #[must_use]
    pub fn to_value(&self) -> Value {
        Value::Object(self.members.clone())
    }
}

/// Whether a text can be a node's name: it goes into URLs as one path segment, and into logs.
#[must_use]
pub fn is_node_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b':'))
        && text.bytes().any(|b| b != b'.')
}

/// `config.json`: the registration of this node. All but the name may be absent in a file of another release.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Registration {
    /// The node's name in the network.
    pub node_id: String,
    /// The machine's name in its registry.
    pub machine_id: Option<String>,
    /// The node's own domain name.
    pub domain: Option<String>,
    /// As the server looked it up.
    pub region: Option<String>,
    /// The address the node was registered with.
    pub ipv4: Option<String>,
    /// The second address, where there is one.
    pub ipv6: Option<String>,
    /// The port it was registered with.
    pub port: Option<u16>,
    /// When the server took the registration.
    pub registered_at: Option<Stamp>,
    /// When the node went into service.
    pub commissioned_at: Option<Stamp>,
    /// The server's score of the evaluation.
    pub benchmark_score: Option<Number>,
    /// The server's signing key, pinned at registration.
    pub orchestrator_pubkey: Option<Jwk>,
    /// Members this release does not know, kept for those that do.
    pub extra: Map<String, Value>,
}

impl Registration {
    /// A registration of which only the name is known.
    #[must_use]
    pub fn new(node_id: &str) -> Self {
        Self { node_id: node_id.to_string(), ..Self::default() }
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// Not a JSON object, no usable `node_id`, or a member of the wrong kind. A pinned key that cannot be read is
    /// an error and not a missing pin: taking it for one would drop the check it stands for.
    pub fn parse(data: &[u8]) -> Result<Self, StateError> {
        let mut file = Members::parse(data)?;
        let node_id = file.required_text("node_id")?;
        if !is_node_id(&node_id) {
            return Err(StateError::Member { member: "node_id", expected: "a node's name" });
        }
        Ok(Self {
            node_id,
            machine_id: file.text("machine_id")?,
            domain: file.text("domain")?,
            region: file.text("region")?,
            ipv4: file.text("ipv4")?,
            ipv6: file.text("ipv6")?,
            port: file.take("port", "a port number", |v| v.as_u64().and_then(|n| n.try_into().ok()))?,
            registered_at: file.stamp("registered_at")?,
            commissioned_at: file.stamp("commissioned_at")?,
            benchmark_score: file.take("benchmark_score", "a number", |v| v.as_number().cloned())?,
            orchestrator_pubkey: file.take("orchestrator_pubkey", "an Ed25519 JWK", Jwk::from_value)?,
            extra: file.rest(),
        })
    }

    /// The content of `config.json`.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut file = self.extra.clone();
        put(&mut file, "node_id", Some(self.node_id.as_str()));
        put(&mut file, "machine_id", self.machine_id.as_deref());
        put(&mut file, "domain", self.domain.as_deref());
        put(&mut file, "region", self.region.as_deref());
        put(&mut file, "ipv4", self.ipv4.as_deref());
        // Written as null when there is none, as the deployed node does.
        file.insert("ipv6".to_string(), self.ipv6.as_deref().map_or(Value::Null, Value::from));
        put(&mut file, "port", self.port);
        put(&mut file, "registered_at", self.registered_at.as_ref().map(Stamp::to_value));
        put(&mut file, "commissioned_at", self.commissioned_at.as_ref().map(Stamp::to_value));
        put(&mut file, "benchmark_score", self.benchmark_score.clone().map(Value::Number));
        put(&mut file, "orchestrator_pubkey", self.orchestrator_pubkey.as_ref().map(Jwk::to_value));
        pretty(file)
    }

    /// The server's pinned signing key (protocol.md sections 3 and 7).
    #[must_use]
    pub fn server_key(&self) -> Option<[u8; 32]> {
        self.orchestrator_pubkey.as_ref().map(|jwk| *jwk.key())
    }
}

/// `join-auth.json`: what a passed evaluation earned, and what the join request is authorised with
/// (protocol.md sections 5 and 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAuth {
    /// The join request it is for.
    pub join_id: String,
    /// `ed25519`.
    pub alg: String,
    /// As the server sent it: url base64.
    pub nonce: String,
    /// The node's signature over the raw nonce: base64.
    pub signature: String,
    /// Unix seconds.
    pub expires_at: u64,
    /// Unix seconds; 0 where the file does not tell.
    pub saved_at: u64,
}

impl JoinAuth {
    /// Reads `join-auth.json`.
    ///
    /// # Errors
    /// Not a JSON object, or a member missing or of the wrong kind.
    pub fn parse(data: &[u8]) -> Result<Self, StateError> {
        let mut file = Members::parse(data)?;
        let join_id = file.required_text("join_id")?;
        let expires_at = file.stamp("expires_at")?.ok_or(StateError::Missing("expires_at"))?;
        Ok(Self {
            join_id,
            alg: file.text("alg")?.unwrap_or_else(|| "ed25519".to_string()),
            nonce: file.required_text("nonce")?,
            signature: file.required_text("signature")?,
            expires_at: expires_at
                .unix_seconds()
                .ok_or(StateError::Member { member: "expires_at", expected: "a time in unix seconds" })?,
            saved_at: file.stamp("saved_at")?.and_then(|stamp| stamp.unix_seconds()).unwrap_or(0),
        })
    }

    /// The content of `join-auth.json`.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut file = Map::new();
        put(&mut file, "join_id", Some(self.join_id.as_str()));
        put(&mut file, "alg", Some(self.alg.as_str()));
        put(&mut file, "nonce", Some(self.nonce.as_str()));
        put(&mut file, "signature", Some(self.signature.as_str()));
        put(&mut file, "expires_at", Some(self.expires_at));
        put(&mut file, "saved_at", Some(self.saved_at));
        pretty(file)
    }

    /// Whether its time is over.
    #[must_use]
    pub const fn is_expired(&self, unix_seconds: u64) -> bool {
        unix_seconds >= self.expires_at
    }
}

/// `machine.json` of the machine registry: which node lives on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRecord {
    /// The machine's own name, a UUID.
    pub machine_id: String,
    /// When the record was made.
    pub created_at: Option<Stamp>,
    /// When it was last written.
    pub updated_at: Option<Stamp>,
    /// The state directory of the node that is registered here.
    pub state_dir: Option<String>,
    /// Where its releases are installed.
    pub install_dir: Option<String>,
    /// The node that is registered here.
    pub node_id: Option<String>,
    /// Since when.
    pub registered_at: Option<Stamp>,
    /// Members this release does not know.
    pub extra: Map<String, Value>,
}

impl MachineRecord {
    /// The record of a machine that has none yet.
    #[must_use]
    pub fn new(rng: &mut Drbg, unix_seconds: u64) -> Self {
        Self {
            machine_id: uuid(rng),
            created_at: Some(unix_seconds.into()),
            updated_at: Some(unix_seconds.into()),
            state_dir: None,
            install_dir: None,
            node_id: None,
            registered_at: None,
            extra: Map::new(),
        }
    }

    /// Reads `machine.json`.
    ///
    /// # Errors
    /// Not a JSON object, no usable `machine_id`, or a member of the wrong kind.
    pub fn parse(data: &[u8]) -> Result<Self, StateError> {
        let mut file = Members::parse(data)?;
        let machine_id = file.required_text("machine_id")?;
        // An operator may have set a name of his own (CONSENSUS_MACHINE_ID), so no UUID is asked for.
        if !is_node_id(&machine_id) {
            return Err(StateError::Member { member: "machine_id", expected: "a machine's name (a UUID)" });
        }
        Ok(Self {
            machine_id,
            created_at: file.stamp("created_at")?,
            updated_at: file.stamp("updated_at")?,
            state_dir: file.text("state_dir")?,
            install_dir: file.text("install_dir")?,
            node_id: file.text("node_id")?,
            registered_at: file.stamp("registered_at")?,
            extra: file.rest(),
        })
    }

    /// The content of `machine.json`.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut file = self.extra.clone();
        put(&mut file, "machine_id", Some(self.machine_id.as_str()));
        put(&mut file, "created_at", self.created_at.as_ref().map(Stamp::to_value));
        put(&mut file, "updated_at", self.updated_at.as_ref().map(Stamp::to_value));
        put(&mut file, "state_dir", self.state_dir.as_deref());
        put(&mut file, "install_dir", self.install_dir.as_deref());
        put(&mut file, "node_id", self.node_id.as_deref());
        put(&mut file, "registered_at", self.registered_at.as_ref().map(Stamp::to_value));
        pretty(file)
    }

    /// Notes that `node_id` was registered from `state_dir`.
    pub fn register(&mut self, state_dir: &str, node_id: &str, unix_seconds: u64) {
        self.state_dir = Some(state_dir.to_string());
        self.node_id = Some(node_id.to_string());
        self.registered_at = Some(unix_seconds.into());
        self.updated_at = Some(unix_seconds.into());
    }
}

/// Why a registration is not for this machine: it has a node already. One node a machine (protocol.md section 12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineConflict {
    /// The registered node lives in another state directory.
    StateDir {
        /// Its name, where the record has it.
        node: Option<String>,
        /// Where it lives.
        registered: String,
        /// The node that wants the machine, where it has a name.
        other: Option<String>,
        /// From where somebody wants to register.
        requested: String,
    },
    /// Another node is registered.
    Node {
        /// The one that is.
        registered: String,
        /// The one that would be.
        requested: String,
    },
}

impl MachineConflict {
    /// Whether it is one node in two places: its state directory was moved, or copied.
    #[must_use]
    pub fn is_of_the_same_node(&self) -> bool {
        matches!(self, Self::StateDir { node: Some(node), other: Some(other), .. } if node == other)
    }
}

impl fmt::Display for MachineConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StateDir { node, registered, other, requested } => {
                f.write_str("this machine's node ")?;
                if let Some(node) = node {
                    write!(f, "is {node} and ")?;
                }
                write!(f, "has its state in {registered}, not in {requested}")?;
                if let Some(other) = other {
                    let same = if node.as_ref() == Some(other) { "the same node" } else { "node" };
                    write!(f, ", where {same} {other} has its")?;
                }
                f.write_str("; one machine holds one node")
            }
            Self::Node { registered, requested } => write!(
                f,
                "this machine is registered as node {registered}, not as {requested}; one machine holds one node"
            ),
        }
    }
}

impl core::error::Error for MachineConflict {}

/// Whether the machine is free for the node `node_id` (where it has a name already) in `state_dir`. Paths are
/// compared as text: the shell hands in absolute ones.
///
/// # Errors
/// Another state directory, or another node, has the machine.
pub fn check_machine(
    record: &MachineRecord,
    state_dir: &str,
    node_id: Option<&str>,
) -> Result<(), MachineConflict> {
    if let Some(registered) = &record.state_dir {
        if registered.trim_end_matches('/') != state_dir.trim_end_matches('/') {
            return Err(MachineConflict::StateDir {
                node: record.node_id.as_deref().map(printable),
                registered: printable(registered),
                other: node_id.map(printable),
                requested: printable(state_dir),
            });
        }
    }
    match (&record.node_id, node_id) {
        (Some(registered), Some(requested)) if registered != requested => {
            Err(MachineConflict::Node { registered: printable(registered), requested: printable(requested) })
        }
        _ => Ok(()),
    }
}

/// Reads `release-manifest.json`.
///
/// # Errors
/// Not a JSON object, or a member missing or of the wrong kind.
pub fn parse_manifest(data: &[u8]) -> Result<Manifest, StateError> {
    let file = Members::parse(data)?;
    manifest_of_members(file.0)
}

/// The manifest of a JSON value, with errors that name the member.
///
/// # Errors
/// Not a JSON object, or a member missing or of the wrong kind.
pub fn manifest_of_value(value: Value) -> Result<Manifest, StateError> {
    match value {
        Value::Object(members) => manifest_of_members(members),
        _ => Err(StateError::NotObject),
    }
}

fn manifest_of_members(members: Map<String, Value>) -> Result<Manifest, StateError> {
    let mut file = Members(members);
    let capabilities = file
        .take("capabilities", "a list of names", |value| {
            value.as_array()?.iter().map(|name| name.as_str().map(String::from)).collect::<Option<Vec<_>>>()
        })?
        .unwrap_or_default();
    Ok(Manifest {
        product: file.required_text("product")?,
        version: file.required_text("version")?,
        artifact: file.text("artifact")?.unwrap_or_default(),
        platform: file.required_text("platform")?,
        commit: file.required_text("commit")?,
        download_url: file.text("download_url")?,
        tarball_sha256: file.text("tarball_sha256")?,
        routes_hash: file.required_text("routes_hash")?,
        capabilities,
        implementation: file.text("implementation")?,
        signing_key_id: file.text("signing_key_id")?,
        signature: file.text("signature")?,
        extra: file.rest(),
    })
}

/// The content of `release-manifest.json`.
#[must_use]
pub fn emit_manifest(manifest: &Manifest) -> Vec<u8> {
    let mut file = manifest.extra.clone();
    put(&mut file, "product", Some(manifest.product.as_str()));
    put(&mut file, "version", Some(manifest.version.as_str()));
    put(&mut file, "artifact", Some(manifest.artifact.as_str()));
    put(&mut file, "platform", Some(manifest.platform.as_str()));
    put(&mut file, "commit", Some(manifest.commit.as_str()));
    put(&mut file, "download_url", manifest.download_url.as_deref());
    put(&mut file, "tarball_sha256", manifest.tarball_sha256.as_deref());
    put(&mut file, "routes_hash", Some(manifest.routes_hash.as_str()));
    put(&mut file, "capabilities", Some(manifest.capabilities.as_slice()));
    put(&mut file, "implementation", manifest.implementation.as_deref());
    put(&mut file, "signing_key_id", manifest.signing_key_id.as_deref());
    put(&mut file, "signature", manifest.signature.as_deref());
    pretty(file)
}

/// A random UUID (RFC 9562, version 4).
#[must_use]
pub fn uuid(rng: &mut Drbg) -> String {
    let random = u128::from_be_bytes(rng.bytes());
    let bits = (random & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        bits >> 96,
        (bits >> 80) & 0xffff,
        (bits >> 64) & 0xffff,
        (bits >> 48) & 0xffff,
        bits & 0xffff_ffff_ffff
    )
}

/// The members of a file, taken out one by one; what is left was not known.
pub(crate) struct Members(Map<String, Value>);

impl Members {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, StateError> {
        if data.len() > MAX_STATE_FILE {
            return Err(StateError::TooLarge);
        }
        match serde_json::from_slice(data) {
            Ok(Value::Object(members)) => Ok(Self(members)),
            Ok(_) => Err(StateError::NotObject),
            Err(error) => Err(StateError::Json(printable(&error.to_string()))),
        }
    }

    /// Absent and null are the same here: releases differ in which of them they write.
    pub(crate) fn take<T>(
        &mut self,
        member: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, StateError> {
        match self.0.remove(member) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(&value).map(Some).ok_or(StateError::Member { member, expected }),
        }
    }

    pub(crate) fn text(&mut self, member: &'static str) -> Result<Option<String>, StateError> {
        self.take(member, "text", |value| value.as_str().map(String::from))
    }

    fn required_text(&mut self, member: &'static str) -> Result<String, StateError> {
        self.text(member)?.ok_or(StateError::Missing(member))
    }

    fn stamp(&mut self, member: &'static str) -> Result<Option<Stamp>, StateError> {
        self.take(member, "a time", |value| match value {
            Value::String(text) => Some(Stamp::Text(text.clone())),
            // A cast from a float saturates.
            Value::Number(number) => number
                .as_u64()
                .or_else(|| number.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
                .map(Stamp::Number),
            _ => None,
        })
    }

    pub(crate) fn rest(self) -> Map<String, Value> {
        self.0
    }
}

pub(crate) fn put<T: Into<Value>>(file: &mut Map<String, Value>, member: &str, value: Option<T>) {
    if let Some(value) = value {
        file.insert(member.to_string(), value.into());
    }
}

pub(crate) fn pretty(file: Map<String, Value>) -> Vec<u8> {
    format!("{:#}\n", Value::Object(file)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const JWK_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn error_of(text: &str) -> String {
        Registration::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_registration_survives_the_round_trip_with_members_it_does_not_know() {
        let text = json!({
            "node_id": "b1c604f617c0", "machine_id": "m", "domain": "b1.example", "region": "eu-west",
            "ipv4": "203.0.114.10", "ipv6": null, "port": 9090, "registered_at": "2026-11-22T00:00:00.000Z",
            "commissioned_at": 1_795_391_521, "benchmark_score": 87.5, "future": {"a": [1, 2]},
            "orchestrator_pubkey": {"kty": "OKP", "crv": "Ed25519", "x": JWK_X, "use": "sig", "kid": "k1"},
        })
        .to_string();
        let registration = Registration::parse(text.as_bytes()).unwrap();
        assert_eq!(registration.port, Some(9090));
        assert_eq!(registration.registered_at, Some(Stamp::Text("2026-11-22T00:00:00.000Z".into())));
        assert_eq!(registration.server_key().unwrap()[..2], [0xd7, 0x5a]);
        let written = registration.emit();
        assert!(written.ends_with(b"}\n"));
        assert_eq!(
            serde_json::from_slice::<Value>(&written).unwrap(),
            serde_json::from_str::<Value>(&text).unwrap()
        );
        assert_eq!(Registration::parse(&written).unwrap(), registration);
    }

    #[test]
    fn a_registration_needs_nothing_but_its_name() {
        let registration = Registration::parse(br#"{"node_id":"n"}"#).unwrap();
        assert_eq!(registration, Registration::new("n"));
        assert_eq!(Registration::parse(&registration.emit()).unwrap(), registration);
    }

    #[test]
    fn an_error_names_the_member_that_is_wrong() {
        assert_eq!(error_of("{}"), "the member \"node_id\" is missing");
        assert_eq!(error_of(r#"{"node_id":7}"#), "the member \"node_id\" is not text");
        assert_eq!(error_of(r#"{"node_id":"../x"}"#), "the member \"node_id\" is not a node's name");
        assert_eq!(error_of(r#"{"node_id":"n","port":70000}"#), "the member \"port\" is not a port number");
        assert_eq!(error_of(r#"{"node_id":"n","domain":[]}"#), "the member \"domain\" is not text");
        assert_eq!(
            error_of(r#"{"node_id":"n","registered_at":-1}"#),
            "the member \"registered_at\" is not a time"
        );
        assert_eq!(
            error_of(r#"{"node_id":"n","orchestrator_pubkey":{"kty":"OKP","crv":"X25519","x":""}}"#),
            "the member \"orchestrator_pubkey\" is not an Ed25519 JWK"
        );
    }

    #[test]
    fn damage_is_never_taken_for_an_empty_file() {
        for text in ["", "{", "[]", "null", "{\"node_id\":\"n\"", "\u{feff}{}", "{\"node_id\":\"n\"}x"] {
            assert!(Registration::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Registration::parse(b"{\"node_id\":\"\xff\"}").is_err());
        assert_eq!(Registration::parse(&alloc::vec![b' '; MAX_STATE_FILE + 1]), Err(StateError::TooLarge));
    }

    #[test]
    fn node_ids_that_would_change_a_path_are_refused() {
        for id in ["b1c604f617c0", "3fa85f64-5717-4562-b3fc-2c963f66afa6", "node_1.eu:a~"] {
            assert!(is_node_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a?b", "a#b", "a%2e", "a b", "é", "a\n"] {
            assert!(!is_node_id(id), "{id}");
        }
        assert!(!is_node_id(&"a".repeat(MAX_ID + 1)));
    }

    #[test]
    fn a_join_authorisation_survives_the_round_trip_and_knows_its_end() {
        let auth = JoinAuth {
            join_id: "j".into(),
            alg: "ed25519".into(),
            nonce: "bm9uY2U".into(),
            signature: "c2ln".into(),
            expires_at: 1000,
            saved_at: 900,
        };
        assert_eq!(JoinAuth::parse(&auth.emit()).unwrap(), auth);
        assert!(!auth.is_expired(999));
        assert!(auth.is_expired(1000));
        let text = br#"{"join_id":"j","nonce":"n","signature":"s","expires_at":1795391521000.5}"#;
        let read = JoinAuth::parse(text).unwrap();
        assert_eq!((read.expires_at, read.saved_at, read.alg.as_str()), (1_795_391_521, 0, "ed25519"));
        let text = br#"{"join_id":"j","nonce":"n","signature":"s","expires_at":1795391521000500}"#;
        let error = JoinAuth::parse(text).unwrap_err().to_string();
        assert_eq!(error, "the member \"expires_at\" is not a time in unix seconds");
        let text = br#"{"join_id":"j","nonce":"n","signature":"s"}"#;
        assert_eq!(JoinAuth::parse(text), Err(StateError::Missing("expires_at")));
    }

    #[test]
    fn a_machine_record_survives_the_round_trip() {
        let mut record = MachineRecord::new(&mut Drbg::new([1; 32]), 5);
        record.extra.insert("hostname".into(), json!("h"));
        record.register("/state", "n1", 9);
        let read = MachineRecord::parse(&record.emit()).unwrap();
        assert_eq!(read, record);
        assert_eq!((read.created_at, read.updated_at), (Some(Stamp::Number(5)), Some(Stamp::Number(9))));
    }

    #[test]
    fn a_machine_holds_one_node() {
        let mut record = MachineRecord::new(&mut Drbg::new([1; 32]), 5);
        assert_eq!(check_machine(&record, "/a", None), Ok(()));
        assert_eq!(check_machine(&record, "/a", Some("n1")), Ok(()));
        record.register("/a", "n1", 9);
        assert_eq!(check_machine(&record, "/a/", Some("n1")), Ok(()));
        assert_eq!(check_machine(&record, "/a", None), Ok(()));
        let conflict = check_machine(&record, "/b", Some("n1")).unwrap_err().to_string();
        assert!(conflict.contains("/a") && conflict.contains("/b"), "{conflict}");
        let conflict = check_machine(&record, "/a", Some("n2")).unwrap_err().to_string();
        assert!(conflict.contains("n1") && conflict.contains("n2"), "{conflict}");
    }

    #[test]
    fn uuids_are_of_version_four() {
        let mut rng = Drbg::new([3; 32]);
        for _ in 0..50 {
            let text = uuid(&mut rng);
            assert_eq!(text.len(), 36);
            let bytes = text.as_bytes();
            assert_eq!(
                (bytes[8], bytes[13], bytes[14], bytes[18], bytes[23]),
                (b'-', b'-', b'4', b'-', b'-')
            );
            assert!(matches!(bytes[19], b'8' | b'9' | b'a' | b'b'), "{text}");
        }
    }

    #[test]
    fn a_jwk_of_a_key_is_that_key_again() {
        let jwk = Jwk::of_key([9; 32], "k");
        assert_eq!(Jwk::from_value(&jwk.to_value()), Some(jwk));
        for bad in [
            json!({"kty": "EC", "crv": "Ed25519", "x": JWK_X}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
            json!({"kty": "OKP", "crv": "Ed25519"}),
            json!("text"),
        ] {
            assert_eq!(Jwk::from_value(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_manifest_survives_the_round_trip_with_members_it_does_not_know() {
        let text = br#"{"product":"consensus-node","version":"9.9.9","artifact":"npm-tarball","platform":"linux-x64",
            "commit":"c","routes_hash":"sha256:0","capabilities":[],"channel":"beta"}"#;
        let manifest = parse_manifest(text).unwrap();
        assert_eq!(manifest.extra["channel"], "beta");
        assert_eq!(parse_manifest(&emit_manifest(&manifest)).unwrap(), manifest);
        assert_eq!(serde_json::to_value(&manifest).unwrap(), serde_json::from_slice::<Value>(text).unwrap());
        assert_eq!(serde_json::from_slice::<Manifest>(text).unwrap(), manifest);
        assert_eq!(
            parse_manifest(br#"{"product":"p","version":1}"#).unwrap_err().to_string(),
            "the member \"version\" is not text"
        );
    }
}
