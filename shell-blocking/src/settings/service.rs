//! Settings of `service`, and those of `run` as the variables that a supervised node is given.

use std::path::{Path, PathBuf};

use consensus_core::service::{MACHINE_SETTINGS, Supervisor};
use consensus_core::wire::{base64, hex};

use super::known::{KNOWN, Reach, Variables};
use super::release::{RELEASE_KEYS, REPEATED};
use super::updating::{INTO, PROBATION};
use super::{
    CA, MACHINE_REGISTRY, NODE_HOST, NODE_PORT, SERVER, SERVER_KEY, STATE_DIR, Setting, Source, Sources,
    TUNNEL_URL, UsageError,
};
use crate::install;

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

/// Options of `setup` that have no value.
pub(crate) const SWITCHES: [&str; 6] =
    ["--allow-older", "--allow-private-targets", "--browser", "--skip-release", "--user", "--yes"];

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

    /// What was said by options or variables and the node of that state directory has to know, as variables, in order:
    /// checked as `run` checks it, paths made absolute and keys read from their files. What the settings file there says
    /// is left out: the node reads it itself. Empty where nobody says which network.
    ///
    /// # Errors
    /// A wrong value; or an option without a network: settings are written as a whole.
    pub fn service_variables(&self, state_dir: &Path) -> Result<Vec<(String, String)>, UsageError> {
        let reads_the_file = self.file.is_some_and(|file| file.path().parent() == Some(state_dir));
        let mut found = Vec::new();
        for known in KNOWN {
            if matches!(known.reach, Reach::Unit | Reach::Elsewhere) {
                continue;
            }
            let Some(told) = known.find(self)? else { continue };
            let is_there = told.source == Source::File && reads_the_file;
            match known.reach {
                Reach::Said if !is_there => found.push((known.env[0], told.text.trim().to_string())),
                // The node is started elsewhere, and would look for it there.
                Reach::Resolved(resolve) if !is_there || is_of_this_folder(&told.text) => {
                    found.extend(resolve(self)?);
                }
                _ => {}
            }
        }
        if let Some(said) = self.find(&PROBATION)? {
            found.push((PROBATION.env[0], said.text.trim().to_string()));
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

    /// Nobody says which network. A service knows it, and whoever looks after that is told where from.
    pub(super) fn no_server(&self) -> UsageError {
        let mut text = format!(
            "missing: {}, the https:// address of the network's server; there is no default",
            SERVER.names()
        );
        if let Some(file) = self.settings_of_a_service() {
            let file = shell_word(&file.to_string_lossy());
            text.push_str(&format!(
                "; this command takes the settings of the service with `set -a; . {file}; set +a` before it"
            ));
        }
        UsageError::new(&text)
    }

    /// The file with what a service of this machine was given, where there is one.
    fn settings_of_a_service(&self) -> Option<PathBuf> {
        let said = self.updating().ok().map(|updating| updating.install_dir);
        let beside = [install::own_dir(), said].into_iter().flatten().map(|dir| dir.join("node.env"));
        beside.chain([PathBuf::from(MACHINE_SETTINGS)]).find(|file| file.is_file())
    }

    /// The options that were given and are `wanted`, with their values, as words for a shell.
    pub fn said(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut words = Vec::new();
        for (option, values) in self.options.iter().filter(|(option, _)| wanted(option)) {
            for value in values.split(REPEATED) {
                words.push(option.clone());
                if !SWITCHES.contains(&option.as_str()) {
                    words.push(shell_word(value));
                }
            }
        }
        words
    }
}

/// A word as a shell takes it.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Whether a text is the path of a file as it is called in this folder alone.
fn is_of_this_folder(text: &str) -> bool {
    let path = Path::new(text.trim());
    path.is_relative() && path.is_file()
}

pub(super) fn resolve_ca(sources: &Sources<'_>) -> Result<Variables, UsageError> {
    let Some(ca) = sources.get(&CA)? else { return Ok(Vec::new()) };
    Ok(vec![(CA.env[0], sources.absolute(&ca)?.to_string_lossy().into_owned())])
}

pub(super) fn resolve_server_key(sources: &Sources<'_>) -> Result<Variables, UsageError> {
    let key = sources.get(&SERVER_KEY)?;
    Ok(key.map(|key| (SERVER_KEY.env[0], base64::encode_url(&key))).into_iter().collect())
}

pub(super) fn resolve_release_keys(sources: &Sources<'_>) -> Result<Variables, UsageError> {
    let Some(keys) = sources.get(&RELEASE_KEYS)? else { return Ok(Vec::new()) };
    let keys: Vec<_> = keys.as_slice().iter().map(|key| hex::encode(key)).collect();
    Ok(vec![(RELEASE_KEYS.env[0], keys.join(","))])
}

pub(super) fn resolve_listen(sources: &Sources<'_>) -> Result<Variables, UsageError> {
    let listen = sources.listen()?;
    Ok(vec![(NODE_HOST.env[0], listen.ip().to_string()), (NODE_PORT.env[0], listen.port().to_string())])
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
        Sources { options: &options, env: &find, file: None }
            .service_variables(Path::new("/home/op/.consensus/node"))
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
            ("NODE_HOST", "127.0.0.1"),
            ("NODE_PORT", "7"),
            ("CONSENSUS_MAX_STREAMS", "9"),
            ("CONSENSUS_NODE_RELEASE_RETENTION", "5"),
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

    type Pairs = &'static [(&'static str, &'static str)];

    /// Every setting that is known, a value that is not the default, and what of it is in the environment file. A new
    /// setting has to be put here.
    const EACH: &[(&str, &str, Pairs)] = &[
        ("server", "https://a.example", &[("CONSENSUS_SERVER_URL", "https://a.example")]),
        ("tunnel-url", "wss://t.example/x", &[("CONSENSUS_TUNNEL_URL", "wss://t.example/x")]),
        ("server-key", KEY_TEXT, &[("CONSENSUS_SERVER_KEY", KEY_TEXT)]),
        ("ca", "/dev/../FILE", &[("CONSENSUS_CA_FILE", "/dev/../FILE")]),
        ("state-dir", "/s", &[]),
        ("machine-registry-dir", "/m", &[]),
        ("candidate-id", "me", &[("CONSENSUS_CANDIDATE_ID", "me")]),
        ("https-proxy", "http://op:s3cret@p.example:1", &[("https_proxy", "http://op:s3cret@p.example:1")]),
        ("http-proxy", "http://p.example:2", &[("http_proxy", "http://p.example:2")]),
        ("all-proxy", "http://p.example:3", &[("all_proxy", "http://p.example:3")]),
        ("no-proxy", "a.example,10.0.0.0/8", &[("no_proxy", "a.example,10.0.0.0/8")]),
        ("listen", "127.0.0.2:7", &[("NODE_HOST", "127.0.0.2"), ("NODE_PORT", "7")]),
        ("log", "text", &[("CONSENSUS_LOG", "text")]),
        ("log-level", "warn", &[("CONSENSUS_LOG_LEVEL", "warn")]),
        ("max-requests", "11", &[("CONSENSUS_MAX_REQUESTS", "11")]),
        ("max-streams", "12", &[("CONSENSUS_MAX_STREAMS", "12")]),
        ("max-inits", "13", &[("CONSENSUS_MAX_INITS", "13")]),
        ("max-request-body", "14", &[("CONSENSUS_MAX_REQUEST_BODY", "14")]),
        ("max-response-body", "15", &[("CONSENSUS_MAX_RESPONSE_BODY", "15")]),
        ("max-head", "16", &[("CONSENSUS_MAX_HEAD", "16")]),
        ("connect-seconds", "17", &[("CONSENSUS_CONNECT_SECONDS", "17")]),
        ("first-byte-seconds", "18", &[("CONSENSUS_FIRST_BYTE_SECONDS", "18")]),
        ("request-seconds", "19", &[("CONSENSUS_REQUEST_SECONDS", "19")]),
        ("ping-seconds", "2", &[("CONSENSUS_PING_SECONDS", "2")]),
        ("silence-seconds", "30", &[("CONSENSUS_SILENCE_SECONDS", "30")]),
        ("release-key", KEY_HEX, &[("CONSENSUS_RELEASE_KEYS", KEY_HEX)]),
        ("update-command", "echo hi", &[("CONSENSUS_NODE_UPDATE_COMMAND", "echo hi")]),
        ("install-dir", "/i", &[]),
        ("retention", "5", &[("CONSENSUS_NODE_RELEASE_RETENTION", "5")]),
        ("address-service", "none", &[]),
        ("email", "a@b.example", &[]),
        ("contact", "me", &[]),
        ("ipv4", "8.8.8.8", &[]),
        ("ipv6", "2606:4700::1", &[]),
        ("port", "80", &[]),
        ("evm-address", "0x52908400098527886E0F7030069857D2E4169EE7", &[]),
        ("solana-address", "4fYNw3dojWmQ4dXtSGE9epjRGy9pFSx62YypT7avPYvA", &[]),
        ("icp-address", "rrkah-fqaaa-aaaaa-aaaaq-cai", &[]),
        ("email-verification-token", "t0ken", &[]),
        ("machine-id", "m1", &[]),
    ];
    const KEY_TEXT: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
    const KEY_HEX: &str = "0707070707070707070707070707070707070707070707070707070707070707";

    #[test]
    fn each_known_setting_reaches_the_supervised_node_or_is_of_no_use_to_it() {
        let names: Vec<_> = KNOWN.iter().map(crate::settings::Known::name).collect();
        assert_eq!(names, EACH.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), "put a new one here");
        let scratch = Scratch::new();
        let ca = scratch.path().join("ca.pem");
        std::fs::write(&ca, "").unwrap();
        let ca = ca.to_str().unwrap();
        let real = |text: &'static str| if text == "/dev/../FILE" { ca } else { text };
        for (known, (name, value, expected)) in KNOWN.iter().zip(EACH) {
            let server = ("CONSENSUS_SERVER_URL", "https://a.example");
            let mut all: Vec<_> = expected.iter().map(|(name, value)| (*name, real(value))).collect();
            if *name != "server" {
                all.insert(0, server);
            }
            // The listener's address is of two variables, one of which is another setting's too.
            let said: Vec<Vec<_>> = match *name {
                "listen" => vec![expected.to_vec()],
                _ => {
                    let variables = known.env.iter().filter(|variable| **variable != "NODE_PORT");
                    variables.map(|variable| vec![(*variable, real(value))]).collect()
                }
            };
            assert!(!said.is_empty() || *name == "email", "{name} has a variable");
            for said in said {
                let env: Vec<_> = [server].into_iter().chain(said).collect();
                assert_eq!(pairs(&variables(&[], &env).unwrap()), all, "{name}, from the environment");
            }
            if !known.option.is_empty() {
                let option = (known.option, real(value));
                let found = variables(&[("--server", server.1), option], &[]).unwrap();
                assert_eq!(pairs(&found), all, "{name}, from an option");
            }
        }
    }

    #[test]
    fn what_the_settings_file_of_the_node_says_is_not_written_down_a_second_time() {
        let scratch = Scratch::new();
        let text = "server = \"https://f.example\"\nmax-requests = 7\nlisten = \"127.0.0.1:7\"\n";
        std::fs::write(scratch.path().join("config.toml"), text).unwrap();
        let file = crate::settings::File::read(scratch.path()).unwrap();
        let options = BTreeMap::from([("--max-streams".to_string(), "9".to_string())]);
        let home = |name: &str| (name == "HOME").then(|| "/home/op".into());
        let sources = Sources { options: &options, env: &home, file: file.as_ref() };
        let found = sources.service_variables(scratch.path()).unwrap();
        assert_eq!(pairs(&found), [("CONSENSUS_MAX_STREAMS", "9")]);
        // A node with another state directory does not read it.
        let found = sources.service_variables(Path::new("/elsewhere")).unwrap();
        let expected = [
            ("CONSENSUS_SERVER_URL", "https://f.example"),
            ("NODE_HOST", "127.0.0.1"),
            ("NODE_PORT", "7"),
            ("CONSENSUS_MAX_REQUESTS", "7"),
            ("CONSENSUS_MAX_STREAMS", "9"),
        ];
        assert_eq!(pairs(&found), expected);
    }

    #[test]
    fn whoever_names_no_server_is_told_where_the_service_has_it_from() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("it's");
        std::fs::create_dir(&dir).unwrap();
        let find = |name: &str| (name == "CONSENSUS_NODE_INSTALL_DIR").then(|| dir.clone().into_os_string());
        let sources = Sources { options: &BTreeMap::new(), env: &find, file: None };
        let said = |sources: &Sources<'_>| sources.network().unwrap_err().to_string();
        assert!(said(&sources).contains("--server") && !said(&sources).contains("it's"));
        std::fs::write(dir.join("node.env"), "").unwrap();
        let file = shell_word(&format!("{}/node.env", dir.display()));
        let how = format!("`set -a; . {file}; set +a`");
        assert!(said(&sources).contains(&how), "{}", said(&sources));
        assert!(sources.tunnel().unwrap_err().to_string().contains(&how));
    }

    #[test]
    fn options_are_said_again_each_as_a_shell_takes_it() {
        let twice = format!("a{REPEATED}b c");
        let options = [("--release-key", twice.as_str()), ("--yes", "true"), ("--candidate-id", "true")];
        let options = options.map(|(name, value)| (name.to_string(), value.to_string())).into();
        let sources = Sources { options: &options, env: &|_| None, file: None };
        let all = ["--candidate-id", "true", "--release-key", "a", "--release-key", "'b c'", "--yes"];
        assert_eq!(sources.said(|_| true), all);
        assert_eq!(sources.said(|option| option == "--yes"), ["--yes"]);
        assert_eq!(shell_word("https://a.example:80"), "https://a.example:80");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's $x"), "'it'\\''s $x'");
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
