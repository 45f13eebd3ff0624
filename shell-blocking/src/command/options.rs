//! The command line as argh sees it: subcommands, options, `--help`.
//!
//! Every value stays text here. [`settings`](crate::settings) reads it, so that a wrong one gets the same line
//! whether it came from an option or from the environment.

use std::collections::BTreeMap;

use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};

use crate::settings::release::REPEATED;

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) command: Name,
    /// Option names with their values; a switch has the value `true`.
    pub(super) options: BTreeMap<String, String>,
}

/// The width of a terminal that nobody has widened.
const COLUMNS: usize = 80;

/// The subcommands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Setup,
    Eval,
    Register,
    Control,
    Start,
    Run,
    Verify,
    Update,
    Install,
    ServiceInstall,
    ServiceUninstall,
    ServiceStatus,
    Release,
    Bench,
    Status,
    Version,
    Bump,
    ConfigShow,
    Doctor,
    Completions,
    Man,
}

/// Builds the struct of a subcommand from named groups of options and its own, because argh cannot share options
/// between structs. Each option is `name ARGUMENT "help"`, a switch is `name "help"`.
macro_rules! subcommand {
    ($name:ident $command:tt, $about:tt, example: $example:tt, [$($group:ident)*] {$($own:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($group)*] {$($own)*} }
    };

    (@group $name:ident $command:tt $about:tt $example:tt [common $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (state_dir "DIR" "where this node keeps its files (CONSENSUS_STATE_DIR; default ~/.consensus/node)")
            (ca "FILE" "trust the PEM certificates in this file too (CONSENSUS_CA_FILE)")
            (log "FORMAT" "json or text (CONSENSUS_LOG; default: text on a terminal, else json)")
            (log_level "LEVEL" "debug, info, warn or error (CONSENSUS_LOG_LEVEL; default info)")
        } }
    };
    (@group $name:ident $command:tt $about:tt $example:tt [network $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (server "URL" "the network's server, https://HOST[:PORT] (CONSENSUS_SERVER_URL; there is no default)")
            (server_key "KEY" "pin the key the server signs its tunnel handshakes with (Ed25519): base64url, JWK, PEM, or a file with one (CONSENSUS_SERVER_KEY)")
        } }
    };
    (@group $name:ident $command:tt $about:tt $example:tt [release $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (release_key "KEY" "take only releases signed with this key (Ed25519); may be given again: hex, base64url, JWK, PEM, or a file with one (CONSENSUS_RELEASE_KEYS, with commas between; default: any release that the network requires)")
        } }
    };
    (@group $name:ident $command:tt $about:tt $example:tt [tunnel $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (tunnel_url "URL" "the tunnel, where it is not wss://HOST/node/tunnel of the server (CONSENSUS_TUNNEL_URL)")
            (candidate_id "TEXT" "your own name for this machine, told to the server (CONSENSUS_CANDIDATE_ID)")
            (ping_seconds "N" "between pings, 1 to 20 (CONSENSUS_PING_SECONDS; default 20)")
            (silence_seconds "N" "give a silent session up after this, 2 to 60, more than --ping-seconds (CONSENSUS_SILENCE_SECONDS; default 60)")
        } }
    };
    (@group $name:ident $command:tt $about:tt $example:tt [serving $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (max_requests "N" "requests under way at once, 1 to 4096 (CONSENSUS_MAX_REQUESTS; default 256)")
            (max_streams "N" "streams and connections at /connect open at once, 1 to 4096 (CONSENSUS_MAX_STREAMS; default 1024)")
            (max_inits "N" "data-plane handshakes a second that lead to no paid request, 1 to 100000 (CONSENSUS_MAX_INITS; default 500)")
            (max_request_body "MIB" "largest body of a request, 1 to 50 (CONSENSUS_MAX_REQUEST_BODY; default 10)")
            (max_response_body "MIB" "largest body of a response, 1 to 50; what has to fit in a frame stays under 12 (CONSENSUS_MAX_RESPONSE_BODY; default 50)")
            (max_head "KIB" "largest head of a response, 1 to 64 (CONSENSUS_MAX_HEAD; default 64)")
            (connect_seconds "N" "for a connection to a target, 1 to 30 (CONSENSUS_CONNECT_SECONDS; default 10)")
            (first_byte_seconds "N" "for a target to begin its answer, 1 to 30 (CONSENSUS_FIRST_BYTE_SECONDS; default 30)")
            (update_command "COMMAND" "what installs an update that the network directs, by sh -c (CONSENSUS_NODE_UPDATE_COMMAND; default: the node itself)")
            (request_seconds "N" "for a whole request, 1 to 30 (CONSENSUS_REQUEST_SECONDS; default 30)")
            (allow_private_targets "let strangers reach private addresses through this node: for a lab only")
        } }
    };
    (@group $name:ident $command:tt $about:tt $example:tt [api $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (listen "ADDRESS:PORT" "where the local API listens (NODE_HOST, NODE_PORT; default 127.0.0.1:9090)")
        } }
    };

    (@group $name:ident $command:tt $about:tt $example:tt [tracing $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (trace "FILE" "record what the node is told and does; for consensus-testbed show and replay")
            (trace_limit "MIB" "end the record there, 1 to 1024 (default 256)")
            (trace_secrets "record the private key, the seed and all plaintext too, without which nothing can be replayed")
        } }
    };

    (@group $name:ident $command:tt $about:tt $example:tt [] {$($seen:tt)*}) => {
        subcommand! { @sort $name $command $about $example [] [] $($seen)* }
    };
    (@sort $name:ident $command:tt $about:tt $example:tt [$($o:tt)*] [$($s:tt)*]
        ($field:ident $arg:tt $help:tt) $($rest:tt)*) => {
        subcommand! { @sort $name $command $about $example [$($o)* ($field $arg $help)] [$($s)*] $($rest)* }
    };
    (@sort $name:ident $command:tt $about:tt $example:tt [$($o:tt)*] [$($s:tt)*]
        ($field:ident $help:tt) $($rest:tt)*) => {
        subcommand! { @sort $name $command $about $example [$($o)*] [$($s)* ($field $help)] $($rest)* }
    };
    (@sort $name:ident $command:tt $about:tt $example:tt
        [$(($field:ident $arg:tt $help:tt))*] [$(($switch:ident $switch_help:tt))*]) => {
        #[derive(ArgsInfo, FromArgs, Debug)]
        #[argh(subcommand, name = $command, description = $about, example = $example, help_triggers("-h", "--help"))]
        struct $name {
            $(
                #[doc = $help]
                #[argh(option, arg_name = $arg)]
                $field: Option<String>,
            )*
            $(
                #[doc = $switch_help]
                #[argh(switch)]
                $switch: bool,
            )*
        }

        impl $name {
            fn into_invocation(self) -> Invocation {
                let mut options = BTreeMap::new();
                $(
                    if let Some(value) = self.$field {
                        options.insert(option_name(stringify!($field)), value);
                    }
                )*
                $(
                    if self.$switch {
                        options.insert(option_name(stringify!($switch)), "true".to_string());
                    }
                )*
                Invocation { command: Name::$name, options }
            }
        }
    };
}

fn option_name(field: &str) -> String {
    format!("--{}", field.replace('_', "-"))
}

subcommand! {
    Setup "setup",
    "From nothing to a node that runs: installs the release that the network requires, finds this machine's public \
     addresses, has the machine evaluated, verifies your email address, registers, has this machine's supervisor keep \
     the node running, and waits until it is connected. Asks for what it is not told, and goes on where it was stopped. With --yes nothing is asked: what is \
     missing is named, and the exit code is 2.",
    example: "{command_name} --server https://server.example",
    [network tunnel release common] {
        (email "ADDRESS" "your email address; a code is sent there")
        (contact "TEXT" "how the network reaches you (CONSENSUS_NODE_CONTACT; default: the email address)")
        (ipv4 "ADDRESS" "this machine's public IPv4 address (CONSENSUS_NODE_IPV4; default: as found)")
        (ipv6 "ADDRESS" "its public IPv6 address, or none (CONSENSUS_NODE_IPV6; default: as found)")
        (port "PORT" "its port (CONSENSUS_NODE_PORT, NODE_PORT; default 9090)")
        (evm_address "ADDRESS" "where you are paid: 0x and 40 hex digits (CONSENSUS_EVM_ADDRESS)")
        (solana_address "ADDRESS" "where you are paid: base58 (CONSENSUS_SOLANA_ADDRESS)")
        (icp_address "PRINCIPAL" "where you are paid: a textual principal (CONSENSUS_ICP_ADDRESS)")
        (email_verification_token "TOKEN" "of an address verified earlier (CONSENSUS_EMAIL_VERIFICATION_TOKEN)")
        (verification_id "ID" "a verification that was begun elsewhere; with --code")
        (code "CODE" "the code of the email that an earlier setup had sent")
        (machine_id "ID" "your own id for this machine (CONSENSUS_MACHINE_ID; default: the one in machine.json)")
        (address_service "URL" "answers with the address it sees, as plain text; may be given again (CONSENSUS_ADDRESS_SERVICES, with commas between, or none; default: https://icanhazip.com/, https://ident.me/, https://ifconfig.co/ip)")
        (service "ANSWER" "whether a supervisor keeps the node: yes or no (default yes, where there is one)")
        (supervisor "NAME" "which: systemd, launchd or pm2, for this user (default: what this machine has)")
        (user "let it keep the node also where this user is root: for a lab")
        (browser_port "PORT" "where the page of --browser is (default: any that is free)")
        (browser "ask on a page in a browser of this machine, whose address is printed, instead of here")
        (yes "agree (see --agreement), ask nothing, and use what an earlier setup left")
        (agreement "print what you agree to, and do nothing else")
        (skip_release "stay with this program, whatever release the network requires: for builds from source")
        (allow_older "take the required release also where it is older than this one")
        (allow_private_targets "take private addresses, and let strangers reach them through the service: for a lab only")
    }
}

subcommand! {
    Eval "eval",
    "Let the network measure this machine. Needs no registration; on a pass, the authorisation to register is saved. \
     Ends with code 4 when the machine is not admitted, and says which of the thresholds it knows were missed.",
    example: "{command_name} --server https://server.example",
    [network tunnel tracing common] {
        (allow_private_targets "let the server have private addresses fetched: for a lab only")
    }
}

subcommand! {
    Register "register",
    "Register this node after a passed eval: verifies your email address, then joins. On a terminal the code of the \
     email is asked for; elsewhere, run it twice, the second time with --verification-id and --code.",
    example: "{command_name} --server https://server.example \\\n\
        \u{a0} --email you@example.org --ipv4 192.0.2.7 \\\n\
        \u{a0} --evm-address 0x… --solana-address … --icp-address …",
    [network common] {
        (email "ADDRESS" "your email address; a code is sent there (default: the contact, where that is one)")
        (contact "TEXT" "how the network reaches you (CONSENSUS_NODE_CONTACT; default: the email address)")
        (ipv4 "ADDRESS" "this node's public IPv4 address (CONSENSUS_NODE_IPV4)")
        (ipv6 "ADDRESS" "its public IPv6 address, if it has one (CONSENSUS_NODE_IPV6)")
        (port "PORT" "its port (CONSENSUS_NODE_PORT, NODE_PORT; default 9090)")
        (evm_address "ADDRESS" "where you are paid: 0x and 40 hex digits (CONSENSUS_EVM_ADDRESS)")
        (solana_address "ADDRESS" "where you are paid: base58 (CONSENSUS_SOLANA_ADDRESS)")
        (icp_address "PRINCIPAL" "where you are paid: a textual principal (CONSENSUS_ICP_ADDRESS)")
        (email_verification_token "TOKEN" "of an address verified earlier (CONSENSUS_EMAIL_VERIFICATION_TOKEN)")
        (verification_id "ID" "continue a verification that was begun earlier; with --code")
        (code "CODE" "the code of the email; with --verification-id")
        (machine_id "ID" "your own id for this machine (CONSENSUS_MACHINE_ID; default: the one in machine.json)")
    }
}

subcommand! {
    Control "control",
    "Keep the control tunnel to the network open and serve the requests that come through it. Runs until it is \
     stopped; reconnects by itself.",
    example: "{command_name} --server https://server.example",
    [network tunnel release serving tracing common] {}
}

subcommand! {
    Start "start",
    "Serve the local API alone. Works without a registration.",
    example: "{command_name} --listen 127.0.0.1:9090",
    [api serving common] {}
}

subcommand! {
    Run "run",
    "The whole node in one process: the control tunnel and the local API. Runs until it is stopped; reconnects by \
     itself.",
    example: "{command_name} --server https://server.example --listen 127.0.0.1:9090",
    [network tunnel release api serving tracing common] {}
}

subcommand! {
    Verify "verify",
    "Ask the network whether it accepts the release that this node runs. Ends with code 4 when it does not, and says \
     in what the releases differ.",
    example: "{command_name} --server https://server.example",
    [network common] {}
}

subcommand! {
    Doctor "doctor",
    "Say what is wrong with this node and how it is mended: settings, files, key, the way to the network, clock, \
     registration, release, room, and whether a node runs and who keeps it. Changes nothing, leaves a running node's \
     session alone, works without a network, and ends within 30 seconds. Ends with code 1 where a check failed.",
    example: "{command_name} --server https://server.example",
    [network tunnel release api common] {
        (bundle "FILE" "write what was found into a new .tar.gz (mode 0600) to pass on: no keys, tokens or addresses of people")
        (json "print one JSON object")
    }
}

subcommand! {
    Update "update",
    "Ask the network which release it requires, and say in what it differs from this one. Ends with code 6 when it does. \
     With --download, fetch it into the state directory and check it: a download that was cut goes on where it was cut. \
     Nothing is installed.",
    example: "{command_name} --server https://server.example --download",
    [network release common] {
        (download "fetch the required release, where it is another one")
        (allow_older "fetch it also where it is older than this one")
        (allow_private_targets "fetch it from private addresses too: for a lab only")
    }
}

subcommand! {
    Release "release",
    "Make a release: a tarball of a program with its scripts and its manifest, the manifest of the tarball, and the body \
     for POST /admin/manifest. The same program, scripts and settings give the same bytes, wherever and whenever.",
    example: "{command_name} --commit 0123abc --sign release.key \\\n\
        \u{a0} --download-url https://releases.example/consensus-node-1.2.3-linux-x64.tgz",
    [] {
        (version "VERSION" "the release's version (CONSENSUS_NODE_VERSION; default: this program's)")
        (commit "COMMIT" "the commit it was built from (CONSENSUS_NODE_COMMIT; default: this program's, where it was built with one)")
        (platform "PLATFORM" "SYSTEM-PROCESSOR, such as linux-arm64 (CONSENSUS_NODE_PLATFORM; default: this machine's)")
        (download_url "URL" "where the tarball will be (CONSENSUS_NODE_DOWNLOAD_URL)")
        (required "BOOL" "whether nodes must run it: true or false (default true)")
        (out "DIR" "where the files go (default dist)")
        (binary "FILE" "the program (default: this one)")
        (scripts "DIR" "scripts and unit files; what is there is taken (default scripts)")
        (sign "FILE" "sign with the private key (PEM) in this file")
        (expires_days "N" "how long the signature holds, 1 to 3650 (default 90)")
        (new_key "FILE" "make a key to sign with, print what to pin of it, and do nothing else")
    }
}

subcommand! {
    Bench "bench",
    "Measure this machine as the network does when it evaluates one, and say whether it would be admitted and what \
     usually is the cause where not. Takes about a minute and a half, and needs no network; other work of the machine \
     shows in the figures.",
    example: "{command_name} --quick",
    [] {
        (log "FORMAT" "json or text (CONSENSUS_LOG; default: text on a terminal, else json)")
        (log_level "LEVEL" "debug, info, warn or error (CONSENSUS_LOG_LEVEL; default info)")
        (quick "measure what decides, for a few seconds")
        (json "print one JSON object")
    }
}

subcommand! {
    Status "status",
    "Say how the node of this machine is, in some ten lines: asks its local API. Ends with code 0 where it serves the \
     network, is being updated or is only meant to serve its local API, 3 where it is not registered, 69 where it has no \
     session with the network, and 70 where no node answers, or one that stops.",
    example: "{command_name} --json",
    [api] {
        (state_dir "DIR" "whose settings say where the local API is (CONSENSUS_STATE_DIR; default ~/.consensus/node)")
        (json "print one JSON object")
    }
}

subcommand! {
    ServiceInstall "install",
    "Have this machine's supervisor keep the node running, from now on and after every start of the machine: writes its \
     unit and a file with the settings (mode 0600), and says each step. The settings are those of `run`, from options and \
     from the environment; where neither names a server, the file with settings that is there counts. Ends with code 3 where \
     the node is not installed or not registered, and 4 where a supervisor keeps it already.",
    example: "{command_name} --server https://server.example",
    [network tunnel release api serving common] {
        (supervisor "NAME" "systemd, launchd or pm2 (default: what this machine has)")
        (install_dir "DIR" "where the releases are (CONSENSUS_NODE_INSTALL_DIR; default: of this program's release, or ~/.consensus/node-runtime)")
        (user "the supervisor of this user, which needs no root; PM2 is always that")
        (dry_run "say what would be done, and do none of it")
    }
}

subcommand! {
    ServiceUninstall "uninstall",
    "Stop the node and have no supervisor keep it any more. Releases, settings, identity and registration stay. Ends with \
     code 3 where none keeps it.",
    example: "{command_name} --dry-run",
    [] {
        (supervisor "NAME" "only this one: systemd, launchd or pm2")
        (user "only the supervisor of this user")
        (dry_run "say what would be done, and do none of it")
    }
}

subcommand! {
    ServiceStatus "status",
    "Say which supervisor keeps the node, whether it runs and since when, and which release that is. Ends with code 0 where \
     it runs, 3 where no supervisor keeps it, and 70 where one does and it does not run.",
    example: "{command_name}",
    [] {
        (supervisor "NAME" "only this one: systemd, launchd or pm2")
        (user "only the supervisor of this user")
    }
}

// By hand: it has nothing but subcommands of its own.
#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "service",
    description = "Have systemd, launchd or PM2 keep the node running.",
    example = "{command_name} install --server https://server.example",
    help_triggers("-h", "--help")
)]
struct Service {
    #[argh(subcommand)]
    nested: OfService,
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and `ArgsInfo` cannot see into a box")]
enum OfService {
    Install(ServiceInstall),
    Uninstall(ServiceUninstall),
    Status(ServiceStatus),
}

impl Service {
    fn into_invocation(self) -> Invocation {
        match self.nested {
            OfService::Install(options) => options.into_invocation(),
            OfService::Uninstall(options) => options.into_invocation(),
            OfService::Status(options) => options.into_invocation(),
        }
    }
}

// By hand: it is the one with an argument.
#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "install",
    description = "Put a release in place: check the tarball, unpack it into the install directory, and have the next \
        start be of it. The release that runs stays until then, and comes back if the new one does not reconnect. Ends \
        with code 4 where the release is not taken; nothing is changed then. What is not given is taken from the \
        environment.",
    example = "{command_name} consensus-node-1.2.3-linux-x64.tgz --sha256 HEX",
    help_triggers("-h", "--help")
)]
struct Install {
    /// the release's tarball (CONSENSUS_NODE_ARTIFACT_PATH)
    #[argh(positional, arg_name = "artifact")]
    artifact: Option<String>,
    /// the version that its manifest has to say (CONSENSUS_NODE_TARGET_VERSION; default: any)
    #[argh(option, arg_name = "VERSION")]
    version: Option<String>,
    /// what the tarball hashes to (default: not checked)
    #[argh(option, arg_name = "HEX")]
    sha256: Option<String>,
    /// where releases are installed (CONSENSUS_NODE_INSTALL_DIR; default ~/.consensus/node-runtime)
    #[argh(option, arg_name = "DIR")]
    install_dir: Option<String>,
    /// how many releases are kept, 2 to 100 (CONSENSUS_NODE_RELEASE_RETENTION; default 3)
    #[argh(option, arg_name = "N")]
    retention: Option<String>,
    /// how long the new release has to reconnect, 1 to 86400 (CONSENSUS_NODE_PROBATION; default 180)
    #[argh(option, arg_name = "SECONDS")]
    probation: Option<String>,
    /// take it also where it is older than the newest that ran here
    #[argh(switch)]
    allow_older: bool,
}

impl Install {
    fn into_invocation(self) -> Invocation {
        let allow_older = self.allow_older.then(|| "true".to_string());
        let options = [
            ("ARTIFACT", self.artifact),
            ("--version", self.version),
            ("--sha256", self.sha256),
            ("--install-dir", self.install_dir),
            ("--retention", self.retention),
            ("--probation", self.probation),
            ("--allow-older", allow_older),
        ];
        let given = |(name, value): (&str, Option<String>)| value.map(|value| (name.to_string(), value));
        Invocation { command: Name::Install, options: options.into_iter().filter_map(given).collect() }
    }
}

// By hand: it is the one with a subcommand of its own.
#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "version",
    description = "Say what this program is. `version bump` gives the sources their next version.",
    example = "{command_name} --json",
    help_triggers("-h", "--help")
)]
struct Version {
    /// whose release manifest counts (CONSENSUS_STATE_DIR; default ~/.consensus/node)
    #[argh(option, arg_name = "DIR")]
    state_dir: Option<String>,
    /// print one JSON object
    #[argh(switch)]
    json: bool,
    #[argh(subcommand)]
    nested: Option<OfVersion>,
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(subcommand)]
enum OfVersion {
    Bump(Bump),
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "bump",
    description = "Give this project's sources their next version: in Cargo.toml, and for its packages in Cargo.lock. An \
        older one than they have is refused.",
    example = "{command_name} minor",
    help_triggers("-h", "--help")
)]
struct Bump {
    /// major, minor, patch, prerelease, or a version
    #[argh(positional, arg_name = "what")]
    to: String,
    /// the folder of the sources (default: this one)
    #[argh(option, arg_name = "DIR")]
    workspace: Option<String>,
}

impl Version {
    fn into_invocation(self) -> Invocation {
        let mut options = BTreeMap::new();
        if let Some(OfVersion::Bump(bump)) = self.nested {
            options.insert("version bump".to_string(), bump.to);
            options.extend(bump.workspace.map(|dir| ("--workspace".to_string(), dir)));
            return Invocation { command: Name::Bump, options };
        }
        options.extend(self.state_dir.map(|dir| ("--state-dir".to_string(), dir)));
        if self.json {
            options.insert("--json".to_string(), "true".to_string());
        }
        Invocation { command: Name::Version, options }
    }
}

// By hand, for its subcommand.
#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "config",
    description = "What this node's settings are. They come from options, then the environment, then the file \
        config.toml in the state directory, then defaults.",
    example = "{command_name} show",
    help_triggers("-h", "--help")
)]
struct Config {
    #[argh(subcommand)]
    nested: OfConfig,
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(subcommand)]
enum OfConfig {
    Show(Show),
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "show",
    description = "Say what every setting is and where that comes from. Secrets are not shown. A wrong value is told.",
    example = "{command_name} --json",
    help_triggers("-h", "--help")
)]
struct Show {
    /// whose settings (CONSENSUS_STATE_DIR; default ~/.consensus/node)
    #[argh(option, arg_name = "DIR")]
    state_dir: Option<String>,
    /// print one JSON object
    #[argh(switch)]
    json: bool,
}

impl Config {
    fn into_invocation(self) -> Invocation {
        let OfConfig::Show(show) = self.nested;
        let state_dir = show.state_dir.map(|dir| ("--state-dir".to_string(), dir));
        let json = show.json.then(|| ("--json".to_string(), "true".to_string()));
        Invocation { command: Name::ConfigShow, options: state_dir.into_iter().chain(json).collect() }
    }
}

// By hand, for its argument.
#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "completions",
    description = "Print what makes a shell complete this program's subcommands and options.",
    example = "source <({command_name} bash)",
    help_triggers("-h", "--help")
)]
struct Completions {
    /// bash, zsh or fish
    #[argh(positional, arg_name = "shell")]
    shell: String,
}

impl Completions {
    fn into_invocation(self) -> Invocation {
        let options = [("shell".to_string(), self.shell)].into();
        Invocation { command: Name::Completions, options }
    }
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    subcommand,
    name = "man",
    description = "Print this program's man page.",
    example = "{command_name} >consensus-node.1; man -l consensus-node.1",
    help_triggers("-h", "--help")
)]
struct Man {}

impl Man {
    fn into_invocation(self) -> Invocation {
        Invocation { command: Name::Man, options: BTreeMap::new() }
    }
}

/// What argh knows of the subcommands and their options.
pub(super) fn info() -> CommandInfoWithArgs {
    Program::get_args_info()
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(
    description = "A node of the Consensus network.\n\n\
        To join: `setup` does it all. Step by step: `eval` measures this machine, `register` gives it a name, `run` serves.\n\
        Settings come from options, then the environment (named in each --help), then config.toml in the state \
        directory, then defaults.",
    example = "{command_name} setup --server https://server.example\n\
        {command_name} run --help",
    error_code(0, "all that was asked was done"),
    error_code(1, "doctor: a check failed"),
    error_code(2, "wrong usage: an option, a variable or the settings file"),
    error_code(3, "not registered, or not evaluated; no service"),
    error_code(4, "refused, by the network or by what is on this machine; the line says why"),
    error_code(5, "the network wants a payment first"),
    error_code(6, "the network requires another release"),
    error_code(69, "the network cannot be reached"),
    error_code(70, "this program or this machine failed, or was stopped before it was done"),
    error_code(73, "another node runs on the state directory"),
    help_triggers("-h", "--help")
)]
struct Program {
    #[argh(subcommand)]
    command: Subcommand,
}

#[derive(ArgsInfo, FromArgs, Debug)]
#[argh(subcommand)]
enum Subcommand {
    Setup(Setup),
    Eval(Eval),
    Register(Register),
    Control(Control),
    Start(Start),
    Run(Run),
    Verify(Verify),
    Doctor(Doctor),
    Update(Update),
    Install(Install),
    Service(Service),
    Release(Release),
    Bench(Bench),
    Status(Status),
    Config(Config),
    Version(Version),
    Completions(Completions),
    Man(Man),
}

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoInvocation {
    /// `--help`: its text.
    Help(String),
    /// A wrong command line: one line about it.
    Usage(String),
}

/// Reads the arguments after the program's name.
pub(super) fn parse(program: &str, arguments: &[String]) -> Result<Invocation, NoInvocation> {
    let mut words: Vec<&str> = Vec::new();
    for argument in arguments {
        match argument.split_once('=') {
            // argh knows `--name value` alone. A value may begin with strokes and hold an equals sign: a PEM does.
            Some((name, value)) if is_option(name) => words.extend([name, value]),
            _ => words.push(argument),
        }
    }
    match words.as_slice() {
        ["--version" | "-V"] => words = vec!["version"],
        [] | ["help"] => words = vec!["--help"],
        ["help", command] => words = vec![command, "--help"],
        _ => {}
    }
    let keys = join_repeated(&mut words, "--release-key");
    if let Some((at, keys)) = &keys {
        words[*at] = keys;
    }
    let services = join_repeated(&mut words, "--address-service");
    if let Some((at, services)) = &services {
        words[*at] = services;
    }
    match Program::from_args(&[program], &words) {
        Ok(program) => Ok(match program.command {
            Subcommand::Setup(options) => options.into_invocation(),
            Subcommand::Eval(options) => options.into_invocation(),
            Subcommand::Register(options) => options.into_invocation(),
            Subcommand::Control(options) => options.into_invocation(),
            Subcommand::Start(options) => options.into_invocation(),
            Subcommand::Run(options) => options.into_invocation(),
            Subcommand::Verify(options) => options.into_invocation(),
            Subcommand::Doctor(options) => options.into_invocation(),
            Subcommand::Update(options) => options.into_invocation(),
            Subcommand::Install(options) => options.into_invocation(),
            Subcommand::Service(options) => options.into_invocation(),
            Subcommand::Release(options) => options.into_invocation(),
            Subcommand::Bench(options) => options.into_invocation(),
            Subcommand::Status(options) => options.into_invocation(),
            Subcommand::Config(options) => options.into_invocation(),
            Subcommand::Version(options) => options.into_invocation(),
            Subcommand::Completions(options) => options.into_invocation(),
            Subcommand::Man(options) => options.into_invocation(),
        }),
        Err(exit) if exit.status.is_ok() => Err(NoInvocation::Help(wrap(&exit.output))),
        Err(exit) => Err(NoInvocation::Usage(usage_line(program, &words, &exit.output))),
    }
}

/// argh takes an option once. The values of one that may be given again become one value; what it is and where it
/// stands then is returned.
fn join_repeated(words: &mut Vec<&str>, option: &str) -> Option<(usize, String)> {
    let first = words.iter().position(|word| *word == option)? + 1;
    let mut value = (*words.get(first)?).to_string();
    while let Some(next) = words.iter().skip(first + 1).position(|word| *word == option) {
        let next = first + 1 + next;
        value.push(REPEATED);
        // Without a value it stays, for argh to say so.
        value.push_str(words.get(next + 1)?);
        words.drain(next..=next + 1);
    }
    Some((first, value))
}

fn is_option(text: &str) -> bool {
    let name = text.strip_prefix("--").unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// argh wraps the options, but neither the usage nor the description.
fn wrap(text: &str) -> String {
    let mut out = String::new();
    for line in text.replace('\u{a0}', " ").lines() {
        // An option and its argument stay together.
        let (separator, indent) = if line.starts_with("Usage:") { (" [", "           [") } else { (" ", "") };
        let mut width = 0;
        for (i, word) in line.split(separator).enumerate() {
            let length = word.chars().count() + separator.len();
            if i > 0 && width + length > COLUMNS && !line.starts_with(' ') {
                out.push('\n');
                out.push_str(indent);
                width = indent.len();
            } else if i > 0 {
                out.push_str(separator);
            }
            out.push_str(word);
            width += length;
        }
        out.push('\n');
    }
    out
}

/// argh's message in one line, with where to read more.
fn usage_line(program: &str, words: &[&str], output: &str) -> String {
    let commands: Vec<&str> = info().commands.iter().map(|sub| sub.name).collect();
    let command = words.first().filter(|word| commands.contains(word));
    let help =
        command.map_or_else(|| format!("{program} --help"), |command| format!("{program} {command} --help"));
    if command.is_none() {
        let given = words.first().copied().unwrap_or_default();
        return format!("{given:?} is not a subcommand; allowed: {}; see {help}", commands.join(", "));
    }
    // The value that stands in this message may be a secret.
    let text = match output.split_once("' with value '") {
        Some((option, rest)) if rest.contains("duplicate values") => {
            format!("{}: given twice", option.rsplit('\'').next().unwrap_or_default())
        }
        _ => output.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    format!("{}; see {help}", text.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Invocation, NoInvocation> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_string()).collect();
        parse("consensus-node", &words)
    }

    fn help_of(words: &[&str]) -> String {
        match of(words) {
            Err(NoInvocation::Help(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn usage_of(words: &[&str]) -> String {
        match of(words) {
            Err(NoInvocation::Usage(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_taken_after_a_space_or_an_equals_sign_and_switches_without() {
        let invocation =
            of(&["run", "--server", "https://a", "--listen=127.0.0.1:1", "--allow-private-targets"]).unwrap();
        assert_eq!(invocation.command, Name::Run);
        let options: Vec<_> = invocation.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let expected =
            [("--allow-private-targets", "true"), ("--listen", "127.0.0.1:1"), ("--server", "https://a")];
        assert_eq!(options, expected);
        assert_eq!(of(&["--version"]).unwrap().command, Name::Version);
    }

    #[test]
    fn the_switches_of_setup_are_known_where_its_options_are_said_again() {
        let all = info();
        let setup = all.commands.iter().find(|command| command.name == "setup").unwrap();
        let is_switch = |flag: &&argh::FlagInfo<'_>| matches!(flag.kind, argh::FlagInfoKind::Switch);
        let mut found: Vec<_> =
            setup.command.flags.iter().filter(is_switch).map(|flag| flag.long.to_string()).collect();
        // With these it does something else.
        found.retain(|name| !matches!(name.as_str(), "--help" | "--agreement"));
        found.sort();
        assert_eq!(found, crate::settings::SWITCHES);
    }

    #[test]
    fn a_release_key_may_be_given_again() {
        let words = ["run", "--release-key", "a", "--server=x", "--release-key=b", "--release-key", "c"];
        let options = of(&words).unwrap().options;
        assert_eq!(options["--release-key"], format!("a{REPEATED}b{REPEATED}c"));
        assert_eq!(options["--server"], "x");
        for words in [&["run", "--release-key"][..], &["run", "--release-key", "a", "--release-key"]] {
            assert!(usage_of(words).contains("--release-key"), "{}", usage_of(words));
        }
        assert!(usage_of(&["eval", "--release-key", "a"]).contains("--release-key"));
        assert!(
            usage_of(&["eval", "--server"]).contains("'--server'; see"),
            "{}",
            usage_of(&["eval", "--server"])
        );
    }

    #[test]
    fn version_is_asked_or_given_its_next_value() {
        assert_eq!(of(&["version", "--json"]).unwrap().command, Name::Version);
        let bump = of(&["version", "bump", "minor", "--workspace", "w"]).unwrap();
        assert_eq!(bump.command, Name::Bump);
        assert_eq!((&*bump.options["version bump"], &*bump.options["--workspace"]), ("minor", "w"));
        assert!(usage_of(&["version", "bump"]).contains("what"));
        assert!(help_of(&["version", "bump", "--help"]).contains("minor"));
    }

    #[test]
    fn settings_completions_and_the_manual_are_asked_for_by_their_names() {
        let show = of(&["config", "show", "--json", "--state-dir", "s"]).unwrap();
        assert_eq!((show.command, &*show.options["--state-dir"]), (Name::ConfigShow, "s"));
        assert!(usage_of(&["config"]).contains("config"));
        let completions = of(&["completions", "zsh"]).unwrap();
        assert_eq!((completions.command, &*completions.options["shell"]), (Name::Completions, "zsh"));
        assert!(usage_of(&["completions"]).contains("shell"));
        assert_eq!(of(&["man"]).unwrap().command, Name::Man);
        for words in [&["config", "show", "--help"][..], &["completions", "--help"], &["man", "--help"]] {
            let text = help_of(words);
            assert!(text.contains("Examples:"), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        }
    }

    #[test]
    fn install_takes_an_artifact_and_options_or_nothing() {
        let invocation = of(&["install", "--retention=2", "a.tgz", "--allow-older"]).unwrap();
        assert_eq!(invocation.command, Name::Install);
        let options: Vec<_> = invocation.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(options, [("--allow-older", "true"), ("--retention", "2"), ("ARTIFACT", "a.tgz")]);
        assert!(of(&["install"]).unwrap().options.is_empty());
        assert!(usage_of(&["install", "a.tgz", "b.tgz"]).contains("b.tgz"));
        let text = help_of(&["install", "--help"]);
        assert!(text.contains("CONSENSUS_NODE_ARTIFACT_PATH") && text.contains("--sha256 HEX"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
    }

    #[test]
    fn service_has_three_subcommands_each_with_help_and_what_it_takes() {
        for (command, name) in [
            ("install", Name::ServiceInstall),
            ("uninstall", Name::ServiceUninstall),
            ("status", Name::ServiceStatus),
        ] {
            let invocation = of(&["service", command, "--user", "--supervisor=pm2"]).unwrap();
            assert_eq!(invocation.command, name);
            assert_eq!(
                (&*invocation.options["--user"], &*invocation.options["--supervisor"]),
                ("true", "pm2")
            );
            let text = help_of(&["service", command, "--help"]);
            assert!(text.contains(&format!("consensus-node service {command}")), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        }
        assert!(help_of(&["service", "--help"]).contains("uninstall"));
        assert!(usage_of(&["service", "status", "--dry-run"]).contains("--dry-run"));
        assert!(usage_of(&["service"]).contains("service --help"));
    }

    #[test]
    fn a_pem_is_a_value_though_it_begins_like_an_option_and_has_an_equals_sign() {
        let pem = "-----BEGIN PUBLIC KEY-----\nMCow=\n-----END PUBLIC KEY-----\n";
        for words in [&["eval", "--server-key", pem][..], &["eval", &format!("--server-key={pem}")]] {
            assert_eq!(of(words).unwrap().options["--server-key"], pem);
        }
    }

    #[test]
    fn every_subcommand_has_help_with_an_example_and_its_options() {
        for command in [
            "setup", "eval", "register", "control", "start", "run", "verify", "doctor", "update", "status",
            "version",
        ] {
            for words in [[command, "--help"], [command, "-h"], ["help", command]] {
                let text = help_of(&words);
                assert!(text.contains("Examples:"), "{text}");
                assert!(text.contains(&format!("consensus-node {command} --")), "{text}");
                assert!(text.contains("--state-dir"), "{text}");
                assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
            }
        }
        let text = help_of(&["--help"]);
        for part in
            ["eval", "register", "control", "start", "run", "verify", "version", "69", "not registered"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert_eq!(help_of(&[]), text);
    }

    #[test]
    fn a_wrong_command_line_is_one_line_that_names_it() {
        for (words, part) in [
            (&["evaluate"][..], "\"evaluate\" is not a subcommand"),
            (&["--server", "x"], "\"--server\" is not a subcommand"),
            (&["eval", "--sever", "x"], "--sever"),
            (&["eval", "extra"], "extra"),
            (&["eval", "--server"], "--server"),
            (&["eval", "--listen", "x"], "--listen"),
            (&["start", "--server", "x"], "--server"),
            (&["bench", "--quik"], "--quik; see consensus-node bench --help"),
            (&["register", "--code", "top-secret", "--code", "top-secret"], "--code: given twice"),
        ] {
            let text = usage_of(words);
            assert!(text.contains(part) && text.contains("--help"), "{text}");
            assert!(!text.contains('\n') && !text.contains("top-secret"), "{text}");
        }
    }
}
