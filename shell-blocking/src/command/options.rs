//! The command line as argh sees it: subcommands, options, `--help`.
//!
//! Every value stays text here. [`settings`](crate::settings) reads it, so that a wrong one gets the same line
//! whether it came from an option or from the environment.

use std::collections::BTreeMap;

use argh::FromArgs;

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
    Eval,
    Register,
    Control,
    Start,
    Run,
    Verify,
    Bench,
    Version,
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
            (request_seconds "N" "for a whole request, 1 to 30 (CONSENSUS_REQUEST_SECONDS; default 30)")
            (allow_private_targets "let strangers reach private addresses through this node: for a lab only")
        } }
    };
    (@group $name:ident $command:tt $about:tt $example:tt [api $($rest:ident)*] {$($seen:tt)*}) => {
        subcommand! { @group $name $command $about $example [$($rest)*] {$($seen)*
            (listen "ADDRESS:PORT" "where the local API listens (NODE_HOST, NODE_PORT; default 127.0.0.1:9090)")
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
        #[derive(FromArgs, Debug)]
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
    Eval "eval",
    "Let the network measure this machine. Needs no registration; on a pass, the authorisation to register is saved. \
     Ends with code 4 when the machine is not admitted, and says which of the thresholds it knows were missed.",
    example: "{command_name} --server https://server.example",
    [network tunnel common] {
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
    [network tunnel serving common] {}
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
    [network tunnel api serving common] {}
}

subcommand! {
    Verify "verify",
    "Ask the network whether it accepts the release that this node runs. Ends with code 4 when it does not, and says \
     in what the releases differ.",
    example: "{command_name} --server https://server.example",
    [network common] {}
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
    Version "version",
    "Say what this program is.",
    example: "{command_name} --json",
    [] {
        (state_dir "DIR" "whose release manifest counts (CONSENSUS_STATE_DIR; default ~/.consensus/node)")
        (json "print one JSON object")
    }
}

#[derive(FromArgs, Debug)]
#[argh(
    description = "A node of the Consensus network.\n\n\
        To join: `eval` measures this machine, `register` gives it a name, `run` serves.\n\
        Settings come from options, then from the environment (named in each --help), then from defaults.",
    example = "{command_name} eval --server https://server.example\n\
        {command_name} run --help",
    error_code(0, "all that was asked was done"),
    error_code(2, "wrong usage: an option or a variable"),
    error_code(3, "not registered, or not evaluated"),
    error_code(4, "refused by the network, or by the one-node-a-machine rule"),
    error_code(5, "the network wants a payment first"),
    error_code(69, "the network cannot be reached"),
    error_code(70, "this program or this machine failed, or was stopped before it was done"),
    help_triggers("-h", "--help")
)]
struct Program {
    #[argh(subcommand)]
    command: Subcommand,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Subcommand {
    Eval(Eval),
    Register(Register),
    Control(Control),
    Start(Start),
    Run(Run),
    Verify(Verify),
    Bench(Bench),
    Version(Version),
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
    match Program::from_args(&[program], &words) {
        Ok(program) => Ok(match program.command {
            Subcommand::Eval(options) => options.into_invocation(),
            Subcommand::Register(options) => options.into_invocation(),
            Subcommand::Control(options) => options.into_invocation(),
            Subcommand::Start(options) => options.into_invocation(),
            Subcommand::Run(options) => options.into_invocation(),
            Subcommand::Verify(options) => options.into_invocation(),
            Subcommand::Bench(options) => options.into_invocation(),
            Subcommand::Version(options) => options.into_invocation(),
        }),
        Err(exit) if exit.status.is_ok() => Err(NoInvocation::Help(wrap(&exit.output))),
        Err(exit) => Err(NoInvocation::Usage(usage_line(program, &words, &exit.output))),
    }
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
    let commands = ["eval", "register", "control", "start", "run", "verify", "bench", "version"];
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
    format!("{text}; see {help}")
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
    fn a_pem_is_a_value_though_it_begins_like_an_option_and_has_an_equals_sign() {
        let pem = "-----BEGIN PUBLIC KEY-----\nMCow=\n-----END PUBLIC KEY-----\n";
        for words in [&["eval", "--server-key", pem][..], &["eval", &format!("--server-key={pem}")]] {
            assert_eq!(of(words).unwrap().options["--server-key"], pem);
        }
    }

    #[test]
    fn every_subcommand_has_help_with_an_example_and_its_options() {
        for command in ["eval", "register", "control", "start", "run", "verify", "version"] {
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
