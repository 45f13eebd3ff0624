//! Settings of `service`, and those of `run` as the variables that a supervised node is given.

use std::path::PathBuf;

use consensus_core::service::Supervisor;
use consensus_core::wire::{base64, hex};

use super::proxies::{ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY};
use super::release::RELEASE_KEYS;
use super::updating::{COMMAND, INTO, PROBATION, RETENTION};
use super::{
    CA, CANDIDATE_ID, CONNECT_SECONDS, FIRST_BYTE_SECONDS, LISTEN, LOG, LOG_LEVEL, MACHINE_REGISTRY,
    MAX_HEAD, MAX_INITS, MAX_REQUEST_BODY, MAX_REQUESTS, MAX_RESPONSE_BODY, MAX_STREAMS_OPEN, NODE_HOST,
    NODE_PORT, PING_SECONDS, REQUEST_SECONDS, SERVER, SERVER_KEY, SILENCE_SECONDS, STATE_DIR, Setting,
    Sources, TUNNEL_URL, UsageError,
};

/// What `service` is told.
#[derive(Clone, Debug)]
pub struct Servicing {
    /// Whom to tell; where nobody says it, what the machine has.
    pub supervisor: Option<Supervisor>,
    /// Whether that of the user, and not of the machine.
    pub user: bool,
    /// Whether to say only what would be done.
    pub dry_run: bool,
    /// Where the releases are, absolute, if that is said.
    pub install_dir: Option<PathBuf>,
    /// The state directory, absolute, if that is said.
    pub state_dir: Option<PathBuf>,
    /// The folder of the machine registry, absolute, if that is said.
    pub registry_dir: Option<PathBuf>,
    /// The home folder.
    pub home: PathBuf,
    /// Its folder for settings.
    pub config: PathBuf,
    /// PM2's folder.
    pub pm2: PathBuf,
    /// What PM2 calls the node.
    pub pm2_name: String,
}

const SUPERVISOR: Setting<Supervisor> = Setting::new("--supervisor", &[], "systemd, launchd, pm2", |text| {
    text.parse().map_err(|()| String::new())
});
const PM2_NAME: Setting<String> = Setting::new(
    "",
    &["CONSENSUS_PM2_NAME"],
    "1 to 64 letters, digits and any of . _ -, without a stroke in front",
    |text| {
        let is_fit = (1..=64).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if is_fit { Ok(text.to_string()) } else { Err(String::new()) }
    },
);

impl Sources<'_> {
    /// What `service` is told.
    ///
    /// # Errors
    /// A wrong value, or no home folder.
    pub fn servicing(&self) -> Result<Servicing, UsageError> {
        let home =
            self.home().ok_or_else(|| UsageError::new("HOME is not set: set it to your home folder"))?;
        let folder = |setting: &Setting<PathBuf>| -> Result<Option<PathBuf>, UsageError> {
            self.get(setting)?.map(|path| self.absolute(&path)).transpose()
        };
        let of_env = |name: &str, default: &str| {
            let value = (self.env)(name).map(PathBuf::from).filter(|path| path.is_absolute());
            value.unwrap_or_else(|| home.join(default))
        };
        Ok(Servicing {
            supervisor: self.get(&SUPERVISOR)?,
            user: self.switch("--user"),
            dry_run: self.switch("--dry-run"),
            install_dir: folder(&INTO)?,
            state_dir: folder(&STATE_DIR)?,
            registry_dir: folder(&MACHINE_REGISTRY)?,
            config: of_env("XDG_CONFIG_HOME", ".config"),
            pm2: of_env("PM2_HOME", ".pm2"),
            pm2_name: self.get(&PM2_NAME)?.unwrap_or_else(|| consensus_core::service::NAME.to_string()),
            home,
        })
    }

    /// The settings of `run` as variables, in order: what is said, checked as `run` checks it, paths made absolute and
    /// keys read from their files. Empty where nobody says which network.
    ///
    /// # Errors
    /// A wrong value; or an option without a network: settings are written as a whole.
    pub fn service_variables(&self) -> Result<Vec<(String, String)>, UsageError> {
        let mut found = Vec::new();
        macro_rules! as_said {
            ($($setting:ident)*) => { $(
                if let Some(said) = self.find(&$setting)? {
                    found.push(($setting.env[0], said.text.trim().to_string()));
                }
            )* };
        }
        as_said! {
            SERVER TUNNEL_URL CANDIDATE_ID PING_SECONDS SILENCE_SECONDS MAX_REQUESTS MAX_STREAMS_OPEN MAX_INITS
            MAX_REQUEST_BODY MAX_RESPONSE_BODY MAX_HEAD CONNECT_SECONDS FIRST_BYTE_SECONDS REQUEST_SECONDS COMMAND
            RETENTION PROBATION LOG LOG_LEVEL HTTPS_PROXY HTTP_PROXY ALL_PROXY NO_PROXY
        }
        if let Some(ca) = self.get(&CA)? {
            let path = self.absolute(&ca)?;
            found.push((CA.env[0], path.to_string_lossy().into_owned()));
        }
        if let Some(key) = self.get(&SERVER_KEY)? {
            found.push((SERVER_KEY.env[0], base64::encode_url(&key)));
        }
        if let Some(keys) = self.get(&RELEASE_KEYS)? {
            let keys: Vec<_> = keys.as_slice().iter().map(|key| hex::encode(key)).collect();
            found.push((RELEASE_KEYS.env[0], keys.join(",")));
        }
        if self.get(&LISTEN)?.is_some() || self.get(&NODE_HOST)?.is_some() || self.get(&NODE_PORT)?.is_some()
        {
            let listen = self.listen()?;
            found.push((NODE_HOST.env[0], listen.ip().to_string()));
            found.push((NODE_PORT.env[0], listen.port().to_string()));
        }
        if self.get(&SERVER)?.is_none() && self.get(&TUNNEL_URL)?.is_none() {
            let of_others = ["--supervisor", "--install-dir", "--state-dir", "--user", "--dry-run"];
            return match self.options.keys().find(|name| !of_others.contains(&name.as_str())) {
                Some(name) => Err(UsageError::new(&format!(
                    "{name}: settings are written as a whole; give {} too",
                    SERVER.names()
                ))),
                None => Ok(Vec::new()),
            };
        }
        // What only holds together is wrong.
        self.tunnel()?;
        self.serving()?;
        self.proxies()?;
        Ok(found.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;
    use consensus_core::crypto::pem;
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    fn variables(
        options: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Result<Vec<(String, String)>, UsageError> {
        let options =
            options.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        let find = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value)).or((name == "HOME").then(|| "/home/op".into()))
        };
        Sources { options: &options, env: &find, file: None }.service_variables()
    }

    fn pairs(found: &[(String, String)]) -> Vec<(&str, &str)> {
        found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn options_become_variables_and_go_before_the_environment() {
        let found = variables(
            &[("--server", "https://a.example"), ("--listen", "127.0.0.1:7"), ("--max-streams", " 9 ")],
            &[
                ("CONSENSUS_SERVER_URL", "https://b.example"),
                ("CONSENSUS_NODE_RELEASE_RETENTION", "5"),
                ("CONSENSUS_EMAIL_VERIFICATION_TOKEN", "secret"),
                ("CONSENSUS_NODE_VERSION", "1.2.3"),
                ("PATH", "/bin"),
            ],
        );
        let expected = [
            ("CONSENSUS_SERVER_URL", "https://a.example"),
            ("CONSENSUS_MAX_STREAMS", "9"),
            ("CONSENSUS_NODE_RELEASE_RETENTION", "5"),
            ("NODE_HOST", "127.0.0.1"),
            ("NODE_PORT", "7"),
        ];
        assert_eq!(pairs(&found.unwrap()), expected);
    }

    #[test]
    fn a_node_behind_a_proxy_is_behind_it_as_a_service_too() {
        let server = ("CONSENSUS_SERVER_URL", "https://a.example");
        let proxy = ("HTTPS_PROXY", "http://op:s3cret@proxy.example:3128");
        let found = variables(&[], &[server, proxy, ("no_proxy", ".internal")]).unwrap();
        let expected = [server, ("https_proxy", proxy.1), ("no_proxy", ".internal")];
        assert_eq!(pairs(&found), expected);
        let error = variables(&[], &[server, ("ALL_PROXY", "socks5://p:1")]).unwrap_err().to_string();
        assert!(error.starts_with("ALL_PROXY: "), "{error}");
    }

    #[test]
    fn keys_are_read_from_their_files_and_paths_made_absolute() {
        let scratch = Scratch::new();
        let file = scratch.path().join("key.pem");
        std::fs::write(&file, pem::encode_public(&[7; 32])).unwrap();
        let path = file.to_str().unwrap();
        let ca = format!("{}/./key.pem", scratch.path().display());
        let options = [
            ("--server", "https://a.example"),
            ("--server-key", path),
            ("--release-key", path),
            ("--ca", &ca),
        ];
        let found = variables(&options, &[]).unwrap();
        let of = |name: &str| found.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(of("CONSENSUS_SERVER_KEY"), base64::encode_url(&[7; 32]));
        assert_eq!(of("CONSENSUS_RELEASE_KEYS"), hex::encode(&[7; 32]));
        assert_eq!(of("CONSENSUS_CA_FILE"), path);
    }

    #[test]
    fn without_a_network_there_are_no_settings_and_no_option_is_lost() {
        assert_eq!(variables(&[("--dry-run", "true")], &[("CONSENSUS_LOG", "json")]), Ok(vec![]));
        let error = variables(&[("--max-head", "9")], &[]).unwrap_err().to_string();
        assert!(error.contains("--max-head") && error.contains("--server"), "{error}");
    }

    #[test]
    fn what_run_would_not_take_is_told_now() {
        let server = ("--server", "https://a.example");
        for (option, value) in
            [("--silence-seconds", "5"), ("--max-head", "0"), ("--listen", "x"), ("--ca", "/does/not/exist")]
        {
            let error = variables(&[server, (option, value)], &[]).unwrap_err().to_string();
            assert!(error.starts_with(option), "{error}");
        }
    }

    #[test]
    fn a_name_for_pm2_is_no_option_and_no_path() {
        let with = |name: &'static str| {
            let find = move |asked: &str| match asked {
                "HOME" => Some(OsString::from("/home/op")),
                "CONSENSUS_PM2_NAME" => Some(name.into()),
                _ => None,
            };
            Sources { options: &BTreeMap::new(), env: &find, file: None }
                .servicing()
                .map(|servicing| servicing.pm2_name)
        };
        assert_eq!(with("my.node_1-a").unwrap(), "my.node_1-a");
        assert_eq!(with("").unwrap(), "consensus-node");
        for name in ["-f", "a/b", "a b", "all;x", "\u{e9}"] {
            assert!(with(name).unwrap_err().to_string().starts_with("CONSENSUS_PM2_NAME"), "{name}");
        }
    }
}
