//! The configuration of a node as a trace holds it.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::data_plane::replay::{Before, Left, MAX_FILE};
use crate::limits::{Limits, MAX_HTTP_HEAD, MAX_STREAMS};
use crate::node::Config;
use crate::release::manifest::Manifest;
use crate::release::signature::ReleaseKeys;
use crate::release::version::Version;
use crate::state::Registration;
use crate::tunnel::Mode;
use crate::update::{RolledBack, Settings, Standing, Way};

/// Which part of a stored configuration no node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadConfig {
    /// The registration.
    Registration,
    /// A bound.
    Limits,
    /// What was left of the process before.
    Spent,
    /// A release that is not tried again, or the oldest that is taken.
    Version,
    /// The keys that sign releases.
    Keys,
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registration => "its registration",
            Self::Limits => "a bound in it",
            Self::Spent => "its spent tickets",
            Self::Version => "the version of a release",
            Self::Keys => "its release keys",
        })
    }
}

/// [`Config`], as plain data, but for the mode, which is no secret.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    tunnel_url: String,
    server_key: Option<[u8; 32]>,
    identity_seed: [u8; 32],
    candidate_id: Option<String>,
    /// `config.json`.
    registration: Option<Vec<u8>>,
    #[serde(with = "super::json")]
    manifest: Manifest,
    limits: Limits,
    allow_private_targets: bool,
    before: StoredBefore,
    way: Way,
    release_keys: Vec<[u8; 32]>,
    on_probation: bool,
    rolled_back: Option<RolledBack>,
    refused: Vec<(String, Option<[u8; 32]>)>,
    floor: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
enum StoredBefore {
    Never,
    Unclean,
    /// `spent-tickets.json`.
    Clean(Vec<u8>),
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.identity_seed.zeroize();
    }
}

impl Stored {
    pub(super) fn of(config: &Config) -> Self {
        let Settings { way, keys, standing } = &config.updates;
        let refused = standing.refused.iter().map(|(version, hash)| (version.to_string(), *hash));
        Self {
            tunnel_url: config.tunnel_url.clone(),
            server_key: config.server_key,
            identity_seed: *config.identity_seed,
            candidate_id: config.candidate_id.clone(),
            registration: config.registration.as_ref().map(Registration::emit),
            manifest: config.manifest.clone(),
            limits: config.limits.clone(),
            allow_private_targets: config.allow_private_targets,
            before: match &config.spent_before {
                Before::Never => StoredBefore::Never,
                Before::Unclean => StoredBefore::Unclean,
                Before::Clean(left) => StoredBefore::Clean(left.to_file()),
            },
            way: way.clone(),
            release_keys: keys.as_slice().to_vec(),
            on_probation: standing.on_probation,
            rolled_back: standing.rolled_back.clone(),
            refused: refused.collect(),
            floor: standing.floor.as_ref().map(Version::to_string),
        }
    }

    pub(super) fn into_config(mut self, mode: Option<Mode>) -> Result<Config, BadConfig> {
        if !is_sane(&self.limits) {
            return Err(BadConfig::Limits);
        }
        let registration = self.registration.as_deref().map(Registration::parse).transpose();
        let spent_before = match &self.before {
            StoredBefore::Never => Before::Never,
            StoredBefore::Unclean => Before::Unclean,
            StoredBefore::Clean(file) if file.len() <= MAX_FILE => match Before::from_file(file) {
                clean @ Before::Clean(Left { .. }) => clean,
                Before::Never | Before::Unclean => return Err(BadConfig::Spent),
            },
            StoredBefore::Clean(_) => return Err(BadConfig::Spent),
        };
        let version = |text: &str| text.parse::<Version>().map_err(|_| BadConfig::Version);
        let refused = self.refused.iter().map(|(text, hash)| Ok((version(text)?, *hash)));
        let standing = Standing {
            on_probation: self.on_probation,
            rolled_back: self.rolled_back.take(),
            refused: refused.collect::<Result<_, _>>()?,
            floor: self.floor.as_deref().map(version).transpose()?,
        };
        let keys = ReleaseKeys::new(core::mem::take(&mut self.release_keys)).ok_or(BadConfig::Keys)?;
        Ok(Config {
            mode,
            tunnel_url: core::mem::take(&mut self.tunnel_url),
            server_key: self.server_key,
            identity_seed: Zeroizing::new(self.identity_seed),
            candidate_id: self.candidate_id.take(),
            registration: registration.map_err(|_| BadConfig::Registration)?,
            manifest: self.manifest.clone(),
            limits: self.limits.clone(),
            allow_private_targets: self.allow_private_targets,
            spent_before,
            updates: Settings { way: self.way.clone(), keys, standing },
        })
    }
}

/// Whether the bounds are such as an operator may set, and a little around it: a node may count on that.
fn is_sane(limits: &Limits) -> bool {
    const MOST_BYTES: usize = 64 * 1024 * 1024;
    let seconds = |time: Duration| time >= Duration::from_millis(1) && time <= Duration::from_secs(3600);
    seconds(limits.ping_interval)
        && seconds(limits.silence_limit)
        && seconds(limits.connect_timeout)
        && seconds(limits.first_byte_timeout)
        && seconds(limits.request_timeout)
        && limits.max_requests <= MAX_STREAMS
        && limits.max_streams <= MAX_STREAMS
        && limits.max_inits <= 100_000
        && limits.max_request_body <= MOST_BYTES
        && limits.max_response_body <= MOST_BYTES
        && limits.max_head <= MAX_HTTP_HEAD
}
