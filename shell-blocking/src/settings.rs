//! Settings: from options, then the environment (protocol.md sections 12 and 13), then the settings file, then defaults.
//!
//! A command reads only what it uses, so a variable that is wrong for one command does not stop another. An empty
//! variable counts as not set: that is how container files leave one out. A wrong value is told in one line: where
//! it came from, what it was, what is allowed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use consensus_core::event::Level;
use consensus_core::limits::{Limits, MAX_HTTP_HEAD, MAX_ID, MAX_STREAMS};
use consensus_core::registration::{validate_evm, validate_icp, validate_solana};
use consensus_core::state::is_node_id;
use consensus_core::text::printable;
use url::Url;

pub use self::file::{FILE_NAME, File};
pub use self::known::{KNOWN, Known, Told};
pub use self::proxies::warnings as proxy_warnings;
use self::read::{
    read_address, read_email, read_number, read_path, read_server_key, read_text, read_token, read_url,
};
pub use self::release::{Bumping, Making, Release};
#[cfg(test)]
pub(crate) use self::service::SWITCHES;
pub use self::service::{Servicing, shell_word};
pub use self::setup::SettingUp;
pub use self::tracing::Tracing;
pub use self::updating::{Installing, Updating};
use crate::log::Format;

mod file;
mod known;
mod proxies;
mod read;
pub(crate) mod release;
mod service;
mod setup;
mod tracing;
mod updating;

/// A wrong value in an error message is cut after so many characters.
const MAX_SHOWN: usize = 80;

/// A setting that is wrong or missing, in one line. The program ends with code 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// An error of that text, made fit for a terminal.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(printable(text))
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// One setting: where it can come from and what it can be.
struct Setting<T> {
    /// Such as `--server`; empty for those of the environment alone.
    option: &'static str,
    /// Variables, the first that is set counts.
    env: &'static [&'static str],
    /// What is allowed, after "allowed: ".
    allowed: &'static str,
    /// The value of a text; the error is a detail beside `allowed`, or empty.
    read: fn(&str) -> Result<T, String>,
    /// Whether the value stays out of messages.
    secret: bool,
    /// Its name in the settings file, where it has no option.
    key: &'static str,
}

impl<T> Setting<T> {
    const fn new(
        option: &'static str,
        env: &'static [&'static str],
        allowed: &'static str,
        read: fn(&str) -> Result<T, String>,
    ) -> Self {
        Self { option, env, allowed, read, secret: false, key: "" }
    }

    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// Names a setting of the environment alone for the settings file.
    const fn key(self, key: &'static str) -> Self {
        Self { key, ..self }
    }

    /// `--server (or CONSENSUS_SERVER_URL)`.
    fn names(&self) -> String {
        match self.env {
            [] => self.option.to_string(),
            env if self.option.is_empty() => env.join(" or "),
            env => format!("{} (or {})", self.option, env.join(" or ")),
        }
    }
}

/// A setting's name in the settings file: its own, or its option's.
fn name_in_file(option: &'static str, key: &'static str) -> &'static str {
    if key.is_empty() { option.trim_start_matches('-') } else { key }
}

/// Where values come from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Option names with their values; a switch that is set has the value `true`.
    pub options: &'a BTreeMap<String, String>,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The settings file, if there is one.
    pub file: Option<&'a File>,
}

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// The kinds of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Option,
    /// A variable.
    Environment,
    /// The settings file.
    File,
}

/// A value with the name of where it came from.
struct Found<T> {
    value: T,
    source: Source,
    origin: String,
    text: String,
}

impl<T> Found<T> {
    fn told(self) -> Told {
        Told { text: self.text, source: self.source, origin: self.origin }
    }
}

impl Sources<'_> {
    fn find<T>(&self, setting: &Setting<T>) -> Result<Option<Found<T>>, UsageError> {
        if let Some(text) = self.options.get(setting.option) {
            return Self::read(setting, Source::Option, setting.option, text).map(Some);
        }
        for name in setting.env {
            let Some(value) = (self.env)(name).filter(|value| !value.is_empty()) else { continue };
            let Some(text) = value.to_str() else {
                return Err(wrong(name, &value.to_string_lossy(), "text in UTF-8", ""));
            };
            return Self::read(setting, Source::Environment, name, text).map(Some);
        }
        let found = self.file.and_then(|file| file.get(name_in_file(setting.option, setting.key)));
        found.map(|(text, origin)| Self::read(setting, Source::File, &origin, text)).transpose()
    }

    fn get<T>(&self, setting: &Setting<T>) -> Result<Option<T>, UsageError> {
        Ok(self.find(setting)?.map(|found| found.value))
    }

    fn read<T>(
        setting: &Setting<T>,
        source: Source,
        origin: &str,
        text: &str,
    ) -> Result<Found<T>, UsageError> {
        match (setting.read)(text.trim()) {
            Ok(value) => Ok(Found { value, source, origin: origin.to_string(), text: text.to_string() }),
            Err(detail) => {
                let shown = if setting.secret { "(not shown)" } else { text };
                Err(wrong(origin, shown, setting.allowed, &detail))
            }
        }
    }

    fn switch(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }
}

fn wrong(origin: &str, value: &str, allowed: &str, detail: &str) -> UsageError {
    let mut shown: String = value.chars().take(MAX_SHOWN).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    // Debug escapes what a terminal would obey.
    UsageError::new(&format!("{origin}: {shown:?} is not allowed{detail}; allowed: {allowed}"))
}

/// The server's address: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl(Url);

impl ServerUrl {
    /// Without a slash at the end: what the paths of protocol.md section 7 are appended to.
    #[must_use]
    pub fn base(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    fn tunnel(&self) -> TunnelUrl {
        let mut url = self.0.clone();
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        // Both are schemes of the same kind, so this cannot fail.
        let _ = url.set_scheme(scheme);
        url.set_path("/node/tunnel");
        TunnelUrl(url)
    }
}

/// The tunnel's address: `ws` or `wss`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelUrl(Url);

impl TunnelUrl {
    /// Whole.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// What of an address goes into messages: host and port.
#[must_use]
pub fn authority(url: &str) -> String {
    Url::parse(url).map_or_else(|_| String::new(), |url| authority_of(&url))
}

fn authority_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}

/// Whether what travels to this address can be read and changed on the way.
fn is_open_to_others(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    matches!(url.scheme(), "http" | "ws") && !loopback
}

/// What every command but `version` uses.
#[derive(Clone, Debug)]
pub struct Common {
    /// The state directory, absolute.
    pub state_dir: PathBuf,
    /// How log lines look; `None` leaves it to what standard error is.
    pub log: Option<Format>,
    /// The quietest lines that are still written.
    pub log_level: Level,
    /// A file with further root certificates.
    pub ca: Option<PathBuf>,
}

/// How to reach the server's HTTP interface, and how to know it.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its address.
    pub server: ServerUrl,
    /// The signing key that the operator pinned.
    pub server_key: Option<[u8; 32]>,
    /// What the operator should be warned of.
    pub warnings: Vec<String>,
}

/// How to reach the server's tunnel, and how to keep it.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Its address.
    pub url: TunnelUrl,
    /// The signing key that the operator pinned.
    pub server_key: Option<[u8; 32]>,
    /// The operator's own name for this machine.
    pub candidate_id: Option<String>,
    /// Pings and silence; the rest is the default.
    pub limits: Limits,
    /// What the operator should be warned of.
    pub warnings: Vec<String>,
}

/// What serving takes.
#[derive(Clone, Debug)]
pub struct Serving {
    /// All but pings and silence; the rest is the default.
    pub limits: Limits,
    /// Whether strangers may reach addresses that are not public.
    pub allow_private_targets: bool,
}

/// What a registration takes.
#[derive(Clone, Debug)]
pub struct Registering {
    /// Where the code is sent. May be absent where a token is given.
    pub email: Option<String>,
    /// How the network reaches the operator.
    pub contact: String,
    /// The node's public address.
    pub ipv4: Ipv4Addr,
    /// Its second one.
    pub ipv6: Option<Ipv6Addr>,
    /// Its port.
    pub port: u16,
    /// Where it is paid.
    pub evm_address: String,
    /// Where it is paid.
    pub solana_address: String,
    /// Where it is paid.
    pub icp_address: String,
    /// An email address verified earlier.
    pub email_verification_token: Option<String>,
    /// A verification begun earlier and its code.
    pub verification: Option<(String, String)>,
    /// The operator's own name for the machine.
    pub machine_id: Option<String>,
}

const STATE_DIR: Setting<PathBuf> = Setting::new(
    "--state-dir",
    &["CONSENSUS_STATE_DIR"],
    "the path of a folder (default ~/.consensus/node)",
    read_path,
);
const MACHINE_REGISTRY: Setting<PathBuf> = Setting::new(
    "",
    &["CONSENSUS_MACHINE_REGISTRY_DIR"],
    "the path of a folder (default ~/.consensus)",
    read_path,
)
.key("machine-registry-dir");
const LOG: Setting<Format> = Setting::new("--log", &["CONSENSUS_LOG"], "json, text", |text| match text {
    "json" => Ok(Format::Json),
    "text" => Ok(Format::Text),
    _ => Err(String::new()),
});
const LOG_LEVEL: Setting<Level> =
    Setting::new("--log-level", &["CONSENSUS_LOG_LEVEL"], "debug, info, warn, error", |text| match text {
        "debug" => Ok(Level::Debug),
        "info" => Ok(Level::Info),
        "warn" => Ok(Level::Warn),
        "error" => Ok(Level::Error),
        _ => Err(String::new()),
    });
const CA: Setting<PathBuf> =
    Setting::new("--ca", &["CONSENSUS_CA_FILE"], "a file with PEM certificates", |text| {
        let path = read_path(text)?;
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(path),
            Ok(_) => Err("not a file".to_string()),
            Err(error) => Err(error.to_string()),
        }
    });
const SERVER: Setting<ServerUrl> = Setting::new(
    "--server",
    &["CONSENSUS_SERVER_URL"],
    "https://HOST[:PORT], or http:// for a lab, without a path",
    |text| {
        let url = read_url(text, &["https", "http"])?;
        if url.path() == "/" { Ok(ServerUrl(url)) } else { Err("it has a path".to_string()) }
    },
);
const TUNNEL_URL: Setting<TunnelUrl> = Setting::new(
    "--tunnel-url",
    &["CONSENSUS_TUNNEL_URL"],
    "wss://HOST[:PORT]/node/tunnel, or ws:// for a lab",
    |text| {
        let mut url = read_url(text, &["wss", "ws", "https", "http"])?;
        let scheme = if matches!(url.scheme(), "wss" | "https") { "wss" } else { "ws" };
        // All four are schemes of the same kind, so this cannot fail.
        let _ = url.set_scheme(scheme);
        if url.path() == "/" {
            url.set_path("/node/tunnel");
        }
        Ok(TunnelUrl(url))
    },
);
const SERVER_KEY: Setting<[u8; 32]> = Setting::new(
    "--server-key",
    &["CONSENSUS_SERVER_KEY"],
    "an Ed25519 public key as base64url, JWK or PEM, or the path of a file with one",
    read_server_key,
);
const CANDIDATE_ID: Setting<String> = Setting::new(
    "--candidate-id",
    &["CONSENSUS_CANDIDATE_ID"],
    "1 to 128 bytes of text without control characters",
    |text| read_text(text, MAX_ID),
);
const PING_SECONDS: Setting<u64> = Setting::new(
    "--ping-seconds",
    &["CONSENSUS_PING_SECONDS"],
    "a whole number of seconds from 1 to 20",
    |text| read_number(text, 1, 20),
);
const SILENCE_SECONDS: Setting<u64> = Setting::new(
    "--silence-seconds",
    &["CONSENSUS_SILENCE_SECONDS"],
    "a whole number of seconds from 2 to 60, and more than --ping-seconds",
    |text| read_number(text, 2, 60),
);
const MAX_REQUESTS: Setting<u64> =
    Setting::new("--max-requests", &["CONSENSUS_MAX_REQUESTS"], "a whole number from 1 to 4096", |text| {
        read_number(text, 1, 4096)
    });
const MAX_STREAMS_OPEN: Setting<u64> =
    Setting::new("--max-streams", &["CONSENSUS_MAX_STREAMS"], "a whole number from 1 to 4096", |text| {
        read_number(text, 1, MAX_STREAMS as u64)
    });
const MAX_INITS: Setting<u32> =
    Setting::new("--max-inits", &["CONSENSUS_MAX_INITS"], "a whole number from 1 to 100000", |text| {
        read_number(text, 1, 100_000)
    });
const MAX_REQUEST_BODY: Setting<u64> = Setting::new(
    "--max-request-body",
    &["CONSENSUS_MAX_REQUEST_BODY"],
    "a whole number of MiB from 1 to 50",
    |text| read_number(text, 1, 50),
);
const MAX_RESPONSE_BODY: Setting<u64> = Setting::new(
    "--max-response-body",
    &["CONSENSUS_MAX_RESPONSE_BODY"],
    "a whole number of MiB from 1 to 50",
    |text| read_number(text, 1, 50),
);
const MAX_HEAD: Setting<u64> =
    Setting::new("--max-head", &["CONSENSUS_MAX_HEAD"], "a whole number of KiB from 1 to 64", |text| {
        read_number(text, 1, MAX_HTTP_HEAD as u64 / 1024)
    });
const CONNECT_SECONDS: Setting<u64> = Setting::new(
    "--connect-seconds",
    &["CONSENSUS_CONNECT_SECONDS"],
    "a whole number of seconds from 1 to 30",
    |text| read_number(text, 1, 30),
);
const FIRST_BYTE_SECONDS: Setting<u64> = Setting::new(
    "--first-byte-seconds",
    &["CONSENSUS_FIRST_BYTE_SECONDS"],
    "a whole number of seconds from 1 to 30",
    |text| read_number(text, 1, 30),
);
const REQUEST_SECONDS: Setting<u64> = Setting::new(
    "--request-seconds",
    &["CONSENSUS_REQUEST_SECONDS"],
    "a whole number of seconds from 1 to 30",
    |text| read_number(text, 1, 30),
);
const LISTEN: Setting<SocketAddr> = Setting::new(
    "--listen",
    &[],
    "ADDRESS:PORT with an IP address or localhost, such as 127.0.0.1:9090",
    |text| {
        let text = text
            .strip_prefix("localhost")
            .map_or_else(|| text.to_string(), |rest| format!("{}{rest}", Ipv4Addr::LOCALHOST));
        text.parse().map_err(|_| String::new())
    },
);
const NODE_HOST: Setting<IpAddr> = Setting::new("", &["NODE_HOST"], "an IP address or localhost", |text| {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    text.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| String::new())
});
const NODE_PORT: Setting<u16> =
    Setting::new("", &["NODE_PORT"], "a port from 1 to 65535", |text| read_number(text, 1, 65_535));
const EMAIL: Setting<String> =
    Setting::new("--email", &[], "an email address", |text| read_email(text).ok_or_else(String::new));
const CONTACT: Setting<String> = Setting::new(
    "--contact",
    &["CONSENSUS_NODE_CONTACT"],
    "1 to 254 bytes of text without control characters",
    |text| read_text(text, 254),
);
const IPV4: Setting<Ipv4Addr> = Setting::new(
    "--ipv4",
    &["CONSENSUS_NODE_IPV4"],
    "the IPv4 address of one host, such as 192.0.2.7",
    |text| match text.parse::<Ipv4Addr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() => Ok(ip),
        _ => Err(String::new()),
    },
);
const IPV6: Setting<Ipv6Addr> = Setting::new(
    "--ipv6",
    &["CONSENSUS_NODE_IPV6"],
    "the IPv6 address of one host, such as 2001:db8::7",
    |text| match text.parse::<Ipv6Addr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        _ => Err(String::new()),
    },
);
const PORT: Setting<u16> =
    Setting::new("--port", &["CONSENSUS_NODE_PORT", "NODE_PORT"], "a port from 1 to 65535", |text| {
        read_number(text, 1, 65_535)
    });
const EVM_ADDRESS: Setting<String> =
    Setting::new("--evm-address", &["CONSENSUS_EVM_ADDRESS"], "0x and 40 hexadecimal digits", |text| {
        read_address(text, validate_evm)
    });
const SOLANA_ADDRESS: Setting<String> = Setting::new(
    "--solana-address",
    &["CONSENSUS_SOLANA_ADDRESS"],
    "32 to 44 characters of base58",
    |text| read_address(text, validate_solana),
);
const ICP_ADDRESS: Setting<String> = Setting::new(
    "--icp-address",
    &["CONSENSUS_ICP_ADDRESS"],
    "a textual principal, such as 2vxsx-fae",
    |text| read_address(text, validate_icp),
);
const EMAIL_VERIFICATION_TOKEN: Setting<String> = Setting::new(
    "--email-verification-token",
    &["CONSENSUS_EMAIL_VERIFICATION_TOKEN"],
    "the token of a verified email address: 1 to 4096 visible ASCII characters",
    |text| read_token(text, 4096),
)
.secret();
const VERIFICATION_ID: Setting<String> = Setting::new(
    "--verification-id",
    &[],
    "the id of a begun verification: 1 to 128 visible ASCII characters",
    |text| read_token(text, MAX_ID),
);
const CODE: Setting<String> =
    Setting::new("--code", &[], "the code of the email: 1 to 64 visible ASCII characters", |text| {
        read_token(text, 64)
    })
    .secret();
const MACHINE_ID: Setting<String> = Setting::new(
    "--machine-id",
    &["CONSENSUS_MACHINE_ID"],
    "1 to 128 letters, digits and any of - _ . ~ :",
    |text| if is_node_id(text) { Ok(text.to_string()) } else { Err(String::new()) },
);

/// Where the local API listens if nobody says.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

impl Sources<'_> {
    /// What every command but `version` uses.
    ///
    /// # Errors
    /// A wrong value, or no home folder to have a default in.
    pub fn common(&self) -> Result<Common, UsageError> {
        Ok(Common {
            state_dir: self.state_dir()?,
            log: self.get(&LOG)?,
            log_level: self.get(&LOG_LEVEL)?.unwrap_or(Level::Info),
            ca: self.ca()?,
        })
    }

    /// A file with further root certificates, absolute.
    ///
    /// # Errors
    /// A wrong value.
    pub fn ca(&self) -> Result<Option<PathBuf>, UsageError> {
        self.get(&CA)?.map(|path| self.absolute(&path)).transpose()
    }

    /// The shell whose completions are wanted.
    ///
    /// # Errors
    /// It is none of those.
    pub fn shell<T: std::str::FromStr>(&self) -> Result<T, UsageError> {
        let text = self.options.get("shell").map_or("", String::as_str);
        text.parse().map_err(|_| wrong("completions", text, "bash, zsh, fish", ""))
    }

    /// The state directory, absolute.
    ///
    /// # Errors
    /// A wrong value, or no home folder to have a default in.
    pub fn state_dir(&self) -> Result<PathBuf, UsageError> {
        self.folder(&STATE_DIR, ".consensus/node")
    }

    /// The folder of the machine registry, absolute.
    ///
    /// # Errors
    /// A wrong value, or no home folder to have a default in.
    pub fn machine_registry(&self) -> Result<PathBuf, UsageError> {
        self.folder(&MACHINE_REGISTRY, ".consensus")
    }

    /// How to reach the server's HTTP interface.
    ///
    /// # Errors
    /// A wrong value, or none for the server.
    pub fn network(&self) -> Result<Network, UsageError> {
        let server = self.get(&SERVER)?.ok_or_else(|| self.no_server())?;
        let warnings = warn_if_open(&server.0);
        Ok(Network { server, server_key: self.get(&SERVER_KEY)?, warnings })
    }

    /// How to reach the tunnel.
    ///
    /// # Errors
    /// A wrong value, or none for the server.
    pub fn tunnel(&self) -> Result<Tunnel, UsageError> {
        let server = self.get(&SERVER)?;
        let url = match (self.get(&TUNNEL_URL)?, server) {
            (Some(url), _) => url,
            (None, Some(server)) => server.tunnel(),
            (None, None) => return Err(self.no_server()),
        };
        let mut limits = Limits::default();
        let ping = self.get(&PING_SECONDS)?;
        limits.ping_interval = ping.map_or(limits.ping_interval, Duration::from_secs);
        if let Some(silence) = self.find(&SILENCE_SECONDS)? {
            limits.silence_limit = Duration::from_secs(silence.value);
            if limits.silence_limit <= limits.ping_interval {
                let detail = format!("pings are {} s apart", limits.ping_interval.as_secs());
                return Err(wrong(&silence.origin, &silence.text, SILENCE_SECONDS.allowed, &detail));
            }
        }
        let warnings = warn_if_open(&url.0);
        Ok(Tunnel {
            url,
            server_key: self.get(&SERVER_KEY)?,
            candidate_id: self.get(&CANDIDATE_ID)?,
            limits,
            warnings,
        })
    }

    /// What serving takes.
    ///
    /// # Errors
    /// A wrong value.
    pub fn serving(&self) -> Result<Serving, UsageError> {
        let mut limits = Limits::default();
        let size =
            |number: u64, unit: u64| usize::try_from(number.saturating_mul(unit)).unwrap_or(usize::MAX);
        for (setting, limit, unit) in [
            (&MAX_REQUESTS, &mut limits.max_requests, 1),
            (&MAX_STREAMS_OPEN, &mut limits.max_streams, 1),
            (&MAX_REQUEST_BODY, &mut limits.max_request_body, 1024 * 1024),
            (&MAX_RESPONSE_BODY, &mut limits.max_response_body, 1024 * 1024),
            (&MAX_HEAD, &mut limits.max_head, 1024),
        ] {
            if let Some(number) = self.get(setting)? {
                *limit = size(number, unit);
            }
        }
        for (setting, limit) in [
            (&CONNECT_SECONDS, &mut limits.connect_timeout),
            (&FIRST_BYTE_SECONDS, &mut limits.first_byte_timeout),
            (&REQUEST_SECONDS, &mut limits.request_timeout),
        ] {
            if let Some(seconds) = self.get(setting)? {
                *limit = Duration::from_secs(seconds);
            }
        }
        limits.max_inits = self.get(&MAX_INITS)?.unwrap_or(limits.max_inits);
        Ok(Serving { limits, allow_private_targets: self.allow_private_targets() })
    }

    /// Whether strangers may reach addresses that are not public: for labs, and said on the command line alone.
    #[must_use]
    pub fn allow_private_targets(&self) -> bool {
        self.switch("--allow-private-targets")
    }

    /// Where the local API listens.
    ///
    /// # Errors
    /// A wrong value.
    pub fn listen(&self) -> Result<SocketAddr, UsageError> {
        let found = self.find(&LISTEN)?;
        let address = found.as_ref().map_or(LISTEN_DEFAULT, |found| found.value);
        if found.is_some_and(|found| found.source == Source::Option) {
            return Ok(address);
        }
        let host = self.get(&NODE_HOST)?.unwrap_or(address.ip());
        Ok(SocketAddr::new(host, self.get(&NODE_PORT)?.unwrap_or(address.port())))
    }

    /// What a registration takes.
    ///
    /// # Errors
    /// A wrong value, or what is missing: all of it at once.
    pub fn registering(&self) -> Result<Registering, UsageError> {
        let contact = self.get(&CONTACT)?;
        let email = self.get(&EMAIL)?.or_else(|| contact.as_deref().and_then(read_email));
        let (ipv4, evm, solana, icp) =
            (self.get(&IPV4)?, self.get(&EVM_ADDRESS)?, self.get(&SOLANA_ADDRESS)?, self.get(&ICP_ADDRESS)?);
        let contact = contact.or_else(|| email.clone());
        let token = self.get(&EMAIL_VERIFICATION_TOKEN)?;
        let verification_id = self.get(&VERIFICATION_ID)?;
        let code = self.get(&CODE)?;
        if code.is_some() != verification_id.is_some() {
            return Err(UsageError::new("--code and --verification-id are given together, or neither is"));
        }
        let mut missing = Vec::new();
        let mut need = |present: bool, names: String| {
            if !present {
                missing.push(names);
            }
        };
        need(email.is_some() || token.is_some(), EMAIL.names());
        need(contact.is_some(), CONTACT.names());
        need(ipv4.is_some(), IPV4.names());
        need(evm.is_some(), EVM_ADDRESS.names());
        need(solana.is_some(), SOLANA_ADDRESS.names());
        need(icp.is_some(), ICP_ADDRESS.names());
        let (Some(contact), Some(ipv4), Some(evm_address), Some(solana_address), Some(icp_address)) =
            (contact, ipv4, evm, solana, icp)
        else {
            return Err(UsageError::new(&format!("missing: {}", missing.join(", "))));
        };
        Ok(Registering {
            contact,
            email,
            ipv4,
            ipv6: self.get(&IPV6)?,
            port: self.get(&PORT)?.unwrap_or(9090),
            evm_address,
            solana_address,
            icp_address,
            email_verification_token: token,
            verification: verification_id.zip(code),
            machine_id: self.get(&MACHINE_ID)?,
        })
    }

    fn folder(&self, setting: &Setting<PathBuf>, default: &str) -> Result<PathBuf, UsageError> {
        match self.get(setting)? {
            Some(path) => self.absolute(&path),
            None => match self.home() {
                Some(home) => self.absolute(&home.join(default)),
                None => {
                    Err(UsageError::new(&format!("missing: {}; HOME is not set either", setting.names())))
                }
            },
        }
    }

    fn home(&self) -> Option<PathBuf> {
        (self.env)("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
    }

    /// Absolute, so that it means the same in every process; `~/` is the home folder also where no shell has seen
    /// the value, as in a unit file. Text, because it goes into `machine.json`.
    fn absolute(&self, path: &Path) -> Result<PathBuf, UsageError> {
        let path = match (path.strip_prefix("~"), self.home()) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_path_buf(),
        };
        let shown = path.to_string_lossy().into_owned();
        match std::path::absolute(&path) {
            Ok(path) if path.to_str().is_some() => Ok(path),
            _ => Err(UsageError::new(&format!("{shown:?} cannot be made an absolute path in UTF-8"))),
        }
    }
}

fn warn_if_open(url: &Url) -> Vec<String> {
    if !is_open_to_others(url) {
        return Vec::new();
    }
    vec![format!(
        "{}: the connection to {} is not encrypted by TLS; use it in a lab only",
        url.scheme(),
        authority_of(url)
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;
    use consensus_core::crypto::pem;
    use consensus_core::state::Jwk;
    use consensus_core::wire::base64;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn with<T>(options: Pairs<'_>, env: Pairs<'_>, read: impl FnOnce(Sources<'_>) -> T) -> T {
        let options =
            options.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        let find = |name: &str| {
            let found = env.iter().rev().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value)).or((name == "HOME").then(|| "/home/op".into()))
        };
        read(Sources { options: &options, env: &find, file: None })
    }

    const ICP: &str = "rrkah-fqaaa-aaaaa-aaaaq-cai";
    const EVM: &str = "0x52908400098527886E0F7030069857D2E4169EE7";
    const SOLANA: &str = "4fYNw3dojWmQ4dXtSGE9epjRGy9pFSx62YypT7avPYvA";
    const FULL: Pairs<'_> = &[
        ("CONSENSUS_SERVER_URL", "https://node.example"),
        ("CONSENSUS_NODE_CONTACT", "op@example.org"),
        ("CONSENSUS_NODE_IPV4", "203.0.114.7"),
        ("CONSENSUS_EVM_ADDRESS", EVM),
        ("CONSENSUS_SOLANA_ADDRESS", SOLANA),
        ("CONSENSUS_ICP_ADDRESS", ICP),
    ];

    /// Reads everything there is, as one command that uses it all.
    fn read_all(sources: Sources<'_>) -> Result<(), UsageError> {
        sources.common()?;
        sources.machine_registry()?;
        sources.network()?;
        sources.tunnel()?;
        sources.serving()?;
        sources.listen()?;
        sources.registering()?;
        sources.release()?;
        sources.updating()?;
        Ok(())
    }

    #[test]
    fn every_setting_with_a_wrong_value_is_named_with_the_value_and_what_is_allowed() {
        let matrix: &[(&str, &[&str], &[&str])] = &[
            ("--state-dir", &["CONSENSUS_STATE_DIR"], &["\0"]),
            ("", &["CONSENSUS_MACHINE_REGISTRY_DIR"], &["\0"]),
            ("--log", &["CONSENSUS_LOG"], &["xml", "JSON"]),
            ("--log-level", &["CONSENSUS_LOG_LEVEL"], &["loud", "2"]),
            ("--ca", &["CONSENSUS_CA_FILE"], &["/does/not/exist", "/"]),
            (
                "--server",
                &["CONSENSUS_SERVER_URL"],
                &[
                    "node.example",
                    "ftp://a",
                    "https://",
                    "https://a/b",
                    "https://u:p@a",
                    "https://a?b",
                    "wss://a",
                ],
            ),
            (
                "--tunnel-url",
                &["CONSENSUS_TUNNEL_URL"],
                &["a", "ftp://a", "wss://a/?x", "wss://a/#x", "wss://u@a"],
            ),
            (
                "--server-key",
                &["CONSENSUS_SERVER_KEY"],
                &["AAAA", "{}", "{\"keys\":[]}", "-----BEGIN PUBLIC KEY-----", "/does/not/exist", "/"],
            ),
            ("--candidate-id", &["CONSENSUS_CANDIDATE_ID"], &["a\x1b[2J", "a\nb"]),
            (
                "--ping-seconds",
                &["CONSENSUS_PING_SECONDS"],
                &["0", "21", "x", "1.5", "-1", "+1", "9999999999999999999999"],
            ),
            ("--silence-seconds", &["CONSENSUS_SILENCE_SECONDS"], &["0", "1", "61", "20", "x"]),
            ("--max-requests", &["CONSENSUS_MAX_REQUESTS"], &["0", "4097", "x"]),
            ("--max-streams", &["CONSENSUS_MAX_STREAMS"], &["0", "4097", "x"]),
            ("--max-inits", &["CONSENSUS_MAX_INITS"], &["0", "100001", "x"]),
            ("--max-request-body", &["CONSENSUS_MAX_REQUEST_BODY"], &["0", "51", "1M"]),
            ("--max-response-body", &["CONSENSUS_MAX_RESPONSE_BODY"], &["0", "51", "x"]),
            ("--max-head", &["CONSENSUS_MAX_HEAD"], &["0", "65", "x"]),
            ("--connect-seconds", &["CONSENSUS_CONNECT_SECONDS"], &["0", "31", "x"]),
            ("--first-byte-seconds", &["CONSENSUS_FIRST_BYTE_SECONDS"], &["0", "31", "x"]),
            ("--request-seconds", &["CONSENSUS_REQUEST_SECONDS"], &["0", "31", "x"]),
            ("--update-command", &["CONSENSUS_NODE_UPDATE_COMMAND"], &["a\nb", "a\x1bb"]),
            ("", &["CONSENSUS_NODE_INSTALL_DIR"], &["\0"]),
            ("", &["CONSENSUS_NODE_RELEASE_RETENTION"], &["0", "1", "101", "x"]),
            ("--listen", &[], &["9090", "host:1", "127.0.0.1", "127.0.0.1:65536", "::1:80x"]),
            ("", &["NODE_HOST"], &["example.org", "1.2.3"]),
            ("", &["NODE_PORT"], &["0", "65536", "http"]),
            ("--email", &[], &["op", "op@", "@example.org", "a b@example.org", "a@b@c.d", "a@b..c", "a@"]),
            ("--contact", &["CONSENSUS_NODE_CONTACT"], &["a\rb"]),
            (
                "--ipv4",
                &["CONSENSUS_NODE_IPV4"],
                &["1.2.3", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1"],
            ),
            ("--ipv6", &["CONSENSUS_NODE_IPV6"], &["1.2.3.4", "::", "ff02::1"]),
            ("--port", &["CONSENSUS_NODE_PORT"], &["0", "65536", "http"]),
            (
                "--evm-address",
                &["CONSENSUS_EVM_ADDRESS"],
                &["0x12", "52908400098527886E0F7030069857D2E4169EE7ab"],
            ),
            (
                "--solana-address",
                &["CONSENSUS_SOLANA_ADDRESS"],
                &["short", "0OIl0OIl0OIl0OIl0OIl0OIl0OIl0OIl0OIl"],
            ),
            ("--icp-address", &["CONSENSUS_ICP_ADDRESS"], &["principal", "RRKAH-fqaaa", "rrkah fqaaa"]),
            ("--verification-id", &[], &["a b", "\u{202e}"]),
            ("--machine-id", &["CONSENSUS_MACHINE_ID"], &["a/b", "a b"]),
            ("", &["CONSENSUS_NODE_VERSION"], &["1 2"]),
            ("", &["CONSENSUS_NODE_COMMIT"], &["a b"]),
            ("", &["CONSENSUS_NODE_PLATFORM"], &["linux", "Linux-x64", "linux-"]),
            ("", &["CONSENSUS_NODE_DOWNLOAD_URL"], &["x", "file:///x"]),
            ("", &["CONSENSUS_NODE_TARBALL_SHA256"], &["sha256:12", "12"]),
            ("", &["CONSENSUS_RELEASE_SIGNING_KEY_ID"], &["a b"]),
            ("", &["CONSENSUS_RELEASE_SIGNATURE"], &["a b"]),
        ];
        with(&[], FULL, read_all).unwrap();
        for (option, variables, values) in matrix {
            for value in *values {
                let mut errors = Vec::new();
                if !option.is_empty() {
                    errors.push((*option, with(&[(option, value)], FULL, read_all)));
                    // An option goes before the environment.
                }
                for variable in *variables {
                    let mut env = FULL.to_vec();
                    env.push((variable, value));
                    errors.push((*variable, with(&[], &env, read_all)));
                }
                for (name, result) in errors {
                    let text = result.expect_err(&format!("{name} {value:?}")).to_string();
                    let shown = format!("{value:?}");
                    assert!(text.starts_with(&format!("{name}: {shown}")), "{text}");
                    assert!(text.contains("; allowed: "), "{text}");
                    assert!(!text.chars().any(char::is_control), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn secrets_are_not_shown_even_when_they_are_wrong() {
        for option in ["--email-verification-token", "--code"] {
            let options = [(option, "top secret"), ("--verification-id", "v")];
            let text = with(&options, FULL, read_all).unwrap_err().to_string();
            assert!(text.starts_with(option) && !text.contains("secret\""), "{text}");
        }
    }

    #[test]
    fn long_values_are_cut_in_the_message() {
        let text = with(&[("--server", &"x".repeat(5000))], &[], |s| s.network()).unwrap_err().to_string();
        assert!(text.len() < 400 && text.contains('…'), "{text}");
    }

    #[test]
    fn options_go_before_the_environment_and_that_before_defaults() {
        let env = [("CONSENSUS_SERVER_URL", "https://env.example"), ("NODE_PORT", "7000")];
        with(&[("--server", "https://option.example:8443/")], &env, |sources| {
            assert_eq!(sources.network().unwrap().server.base(), "https://option.example:8443");
            assert_eq!(sources.tunnel().unwrap().url.as_str(), "wss://option.example:8443/node/tunnel");
            assert_eq!(sources.listen().unwrap().to_string(), "127.0.0.1:7000");
        });
        with(&[("--listen", "localhost:0")], &[("NODE_PORT", "junk")], |sources| {
            assert_eq!(sources.listen().unwrap().to_string(), "127.0.0.1:0");
        });
        with(&[], &[("CONSENSUS_SERVER_URL", "")], |sources| {
            let common = sources.common().unwrap();
            assert_eq!(common.state_dir, Path::new("/home/op/.consensus/node"));
            assert_eq!(sources.machine_registry().unwrap(), Path::new("/home/op/.consensus"));
            assert_eq!((common.log, common.log_level), (None, Level::Info));
            assert_eq!(sources.listen().unwrap().to_string(), "127.0.0.1:9090");
        });
        with(&[("--state-dir", "~/x")], &[], |sources| {
            assert_eq!(sources.common().unwrap().state_dir, Path::new("/home/op/x"));
        });
    }

    #[test]
    fn a_missing_server_is_said_with_both_of_its_names() {
        for text in [
            with(&[], &[], |s| s.network()).unwrap_err().to_string(),
            with(&[], &[], |s| s.tunnel()).unwrap_err().to_string(),
        ] {
            assert!(text.contains("--server") && text.contains("CONSENSUS_SERVER_URL"), "{text}");
        }
        let env = [("CONSENSUS_TUNNEL_URL", "ws://127.0.0.1:8080")];
        assert_eq!(with(&[], &env, |s| s.tunnel()).unwrap().url.as_str(), "ws://127.0.0.1:8080/node/tunnel");
    }

    #[test]
    fn a_missing_home_is_said_with_the_setting_that_helps() {
        let options = BTreeMap::new();
        let error =
            Sources { options: &options, env: &|_| None, file: None }.common().unwrap_err().to_string();
        assert!(error.contains("--state-dir") && error.contains("HOME"), "{error}");
    }

    #[test]
    fn a_variable_that_is_not_text_is_named() {
        use std::os::unix::ffi::OsStringExt as _;
        let options = BTreeMap::new();
        let env = |name: &str| (name == "CONSENSUS_LOG").then(|| OsString::from_vec(vec![0xff, b'x']));
        let env = |name: &str| env(name).or((name == "HOME").then(|| "/h".into()));
        let error = Sources { options: &options, env: &env, file: None }.common().unwrap_err().to_string();
        assert!(error.starts_with("CONSENSUS_LOG: "), "{error}");
    }

    #[test]
    fn cleartext_is_warned_of_unless_it_stays_on_the_machine() {
        for (url, warned) in [
            ("http://node.example", true),
            ("http://10.0.0.1:80", true),
            ("http://localhost:1", false),
            ("http://127.0.0.9", false),
            ("http://[::1]:5", false),
            ("https://node.example", false),
        ] {
            let warnings = with(&[("--server", url)], &[], |s| s.network()).unwrap().warnings;
            assert_eq!(!warnings.is_empty(), warned, "{url}");
            let warnings = with(&[("--server", url)], &[], |s| s.tunnel()).unwrap().warnings;
            assert_eq!(!warnings.is_empty(), warned, "{url}");
        }
    }

    #[test]
    fn a_server_key_is_read_in_each_of_its_forms_and_from_a_file() {
        let key = [7; 32];
        let jwk = Jwk::of_key(key, "k").to_value().to_string();
        let scratch = Scratch::new();
        let forms = [
            base64::encode_url(&key),
            base64::encode(&key),
            jwk.clone(),
            format!("{{\"keys\":[{jwk}]}}"),
            pem::encode_public(&key),
            pem::encode_public(&key).replace('\n', "\\n"),
        ];
        for form in &forms {
            assert_eq!(read_server_key(form.trim()), Ok(key), "{form}");
            let file = scratch.path().join("key");
            std::fs::write(&file, format!("{form}\n")).unwrap();
            assert_eq!(read_server_key(file.to_str().unwrap()), Ok(key), "{form}");
        }
    }

    #[test]
    fn all_that_a_registration_misses_is_said_at_once_and_the_contact_can_be_the_address() {
        let text = with(&[], &[], |s| s.registering()).unwrap_err().to_string();
        for name in ["--email", "--ipv4", "CONSENSUS_EVM_ADDRESS", "--solana-address", "--icp-address"] {
            assert!(text.contains(name), "{text}");
        }
        let registering = with(&[], FULL, |s| s.registering()).unwrap();
        assert_eq!((registering.email.as_deref(), registering.port), (Some("op@example.org"), 9090));
        let options = [("--email", "a@b.org"), ("--contact", "Matrix: @a:b")];
        let registering = with(&options, FULL, |s| s.registering()).unwrap();
        assert_eq!(
            (registering.email.as_deref(), registering.contact.as_str()),
            (Some("a@b.org"), "Matrix: @a:b")
        );
        let text = with(&[("--code", "1")], FULL, |s| s.registering()).unwrap_err().to_string();
        assert!(text.contains("--verification-id"), "{text}");
    }
}
