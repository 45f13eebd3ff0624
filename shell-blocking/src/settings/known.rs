//! Every setting that outlives one command: what the settings file may hold, and what `config show` tells of it.

use self::Reach::{Elsewhere, Resolved, Said, Unit};
use super::proxies::{ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY};
use super::release::RELEASE_KEYS;
use super::setup::ADDRESS_SERVICE;
use super::updating::{COMMAND, INSTALL_DIR, RETENTION};
use super::*;

/// One setting, whatever its type.
pub struct Known {
    pub(super) option: &'static str,
    key: &'static str,
    /// Its variables.
    pub env: &'static [&'static str],
    /// What counts where nothing is said, in words.
    pub default: &'static str,
    /// Whether its value stays out of sight.
    pub secret: bool,
    /// Whether the file may hold it.
    pub in_file: bool,
    /// How it comes to a node that a supervisor keeps.
    pub(super) reach: Reach,
    find: fn(&Sources<'_>) -> Result<Option<Told>, UsageError>,
}

/// Names and values.
pub(super) type Variables = Vec<(&'static str, String)>;

/// How what was said of a setting, by an option or a variable, comes to a node that a supervisor keeps. What the file in
/// its state directory says it reads there itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reach {
    /// In the environment file, as it was said.
    Said,
    /// In the environment file, in the form that does not depend on where the node is started.
    Resolved(fn(&Sources<'_>) -> Result<Variables, UsageError>),
    /// In the unit, which is not secret: the places of files.
    Unit,
    /// Not at all: other commands have it.
    Elsewhere,
}

/// A value, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// As it was given.
    pub text: String,
    /// The kind of source.
    pub source: Source,
    /// The source by its name: a variable, or a file with its line.
    pub origin: String,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Known {
    /// Its name in the file: that of the option, if it has one.
    #[must_use]
    pub fn name(&self) -> &'static str {
        name_in_file(self.option, self.key)
    }

    /// The value, if there is one. Wrong ones are told as they are to any command.
    ///
    /// # Errors
    /// A wrong value.
    pub fn find(&self, sources: &Sources<'_>) -> Result<Option<Told>, UsageError> {
        (self.find)(sources)
    }

    /// Whether this value, of a setting that is secret, has anything secret: a proxy without a password has not.
    pub(super) fn holds_secret(&self, text: &str) -> bool {
        !self.name().ends_with("-proxy") || text.contains('@')
    }

    /// The value as it may be shown.
    #[must_use]
    pub fn shown(&self, told: &Told) -> String {
        if self.secret && self.holds_secret(&told.text) {
            return "(not shown)".to_string();
        }
        told.text.replace(release::REPEATED, ", ")
    }
}

macro_rules! known {
    ($setting:expr, $default:literal, $reach:expr) => {
        Known {
            option: $setting.option,
            key: $setting.key,
            env: $setting.env,
            default: $default,
            secret: $setting.secret,
            in_file: true,
            reach: $reach,
            find: |sources| Ok(sources.find(&$setting)?.map(Found::told)),
        }
    };
}

/// All of them, in the order in which they are shown.
pub const KNOWN: &[Known] = &[
    known!(SERVER, "none", Said),
    known!(TUNNEL_URL, "from the server", Said),
    known!(SERVER_KEY, "none", Resolved(service::resolve_server_key)),
    known!(CA, "none", Resolved(service::resolve_ca)),
    Known { in_file: false, ..known!(STATE_DIR, "~/.consensus/node", Unit) },
    known!(MACHINE_REGISTRY, "~/.consensus", Unit),
    known!(CANDIDATE_ID, "none", Said),
    known!(HTTPS_PROXY, "none", Said),
    known!(HTTP_PROXY, "none", Said),
    known!(ALL_PROXY, "none", Said),
    known!(NO_PROXY, "none", Said),
    Known {
        env: &["NODE_HOST", "NODE_PORT"],
        find: find_listen,
        ..known!(LISTEN, "127.0.0.1:9090", Resolved(service::resolve_listen))
    },
    known!(LOG, "by terminal", Said),
    known!(LOG_LEVEL, "info", Said),
    known!(MAX_REQUESTS, "256", Said),
    known!(MAX_STREAMS_OPEN, "1024", Said),
    known!(MAX_INITS, "500", Said),
    known!(MAX_REQUEST_BODY, "10", Said),
    known!(MAX_RESPONSE_BODY, "50", Said),
    known!(MAX_HEAD, "64", Said),
    known!(CONNECT_SECONDS, "10", Said),
    known!(FIRST_BYTE_SECONDS, "30", Said),
    known!(REQUEST_SECONDS, "30", Said),
    known!(PING_SECONDS, "20", Said),
    known!(SILENCE_SECONDS, "60", Said),
    known!(RELEASE_KEYS, "none", Resolved(service::resolve_release_keys)),
    known!(COMMAND, "the node itself", Said),
    known!(INSTALL_DIR, "~/.consensus/node-runtime", Unit),
    known!(RETENTION, "3", Said),
    known!(ADDRESS_SERVICE, "public ones", Elsewhere),
    known!(EMAIL, "the contact", Elsewhere),
    known!(CONTACT, "the email", Elsewhere),
    known!(IPV4, "none", Elsewhere),
    known!(IPV6, "none", Elsewhere),
    known!(PORT, "9090", Elsewhere),
    known!(EVM_ADDRESS, "none", Elsewhere),
    known!(SOLANA_ADDRESS, "none", Elsewhere),
    known!(ICP_ADDRESS, "none", Elsewhere),
    known!(EMAIL_VERIFICATION_TOKEN, "none", Elsewhere),
    known!(MACHINE_ID, "made once", Elsewhere),
];

/// The local API's address is of one option or of two variables.
fn find_listen(sources: &Sources<'_>) -> Result<Option<Told>, UsageError> {
    let text = sources.listen()?.to_string();
    let variables = [sources.find(&NODE_HOST)?.map(Found::told), sources.find(&NODE_PORT)?.map(Found::told)];
    let mut origins = variables.into_iter().flatten().map(|told| told.origin);
    let own = sources.find(&LISTEN)?.map(Found::told);
    Ok(match (own, origins.next()) {
        (Some(own), _) if own.source == Source::Option => Some(own),
        (_, Some(first)) => {
            let origin = origins.fold(first, |all, one| format!("{all}, {one}"));
            Some(Told { text, source: Source::Environment, origin })
        }
        (own, None) => own,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_options_each_once_and_no_setting_is_left_out() {
        for (at, known) in KNOWN.iter().enumerate() {
            assert!(!known.name().is_empty() && !known.name().starts_with('-'), "{known:?}");
            assert!(KNOWN[..at].iter().all(|other| other.name() != known.name()), "{known:?}");
        }
    }

    #[test]
    fn the_defaults_that_are_shown_are_those_that_count() {
        let of = |name: &str| KNOWN.iter().find(|known| known.name() == name).unwrap().default;
        let number = |name: &str| of(name).parse::<u64>().unwrap();
        let limits = Limits::default();
        for (name, value) in [
            ("max-requests", limits.max_requests as u64),
            ("max-streams", limits.max_streams as u64),
            ("max-inits", limits.max_inits.into()),
            ("max-request-body", limits.max_request_body as u64 / 1024 / 1024),
            ("max-response-body", limits.max_response_body as u64 / 1024 / 1024),
            ("max-head", limits.max_head as u64 / 1024),
            ("connect-seconds", limits.connect_timeout.as_secs()),
            ("first-byte-seconds", limits.first_byte_timeout.as_secs()),
            ("request-seconds", limits.request_timeout.as_secs()),
            ("ping-seconds", limits.ping_interval.as_secs()),
            ("silence-seconds", limits.silence_limit.as_secs()),
        ] {
            assert_eq!(number(name), value, "{name}");
        }
        let options = BTreeMap::new();
        let home = |name: &str| (name == "HOME").then(|| "~".into());
        let sources = Sources { options: &options, env: &home, file: None };
        assert_eq!(sources.listen().unwrap().to_string(), of("listen"));
        assert_eq!(sources.updating().unwrap().retention as u64, number("retention"));
        assert_eq!(of("log-level"), "info");
        assert_eq!(sources.common().unwrap().log_level, Level::Info);
    }
}
