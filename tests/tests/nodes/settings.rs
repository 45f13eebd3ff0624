//! Bad settings: one line that names the setting, the value and what is allowed; exit 2.

use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::process::{Exit, NodeProcess};

use crate::lab::{LONG, Lab, with_both_shells};

with_both_shells! {
    a_wrong_option_is_one_line_and_exit_two
    a_wrong_variable_is_one_line_and_exit_two
    unknown_words_are_usage_errors
    every_subcommand_has_help_with_an_example
}

fn assert_usage(exit: &Exit, setting: &str, value: &str) {
    let said = exit.stderr();
    assert_eq!(exit.code, Some(2), "{setting}={value}: {said}");
    assert_eq!(exit.lines.len(), 1, "{setting}={value}: {said}");
    assert!(said.contains(setting) && said.contains("allowed"), "{said}");
    let shown: String = value.chars().take(20).collect();
    assert!(said.contains(&shown), "{said}");
}

fn a_wrong_option_is_one_line_and_exit_two(shell: Shell) {
    let lab = Lab::new(shell);
    for (command, setting, value) in [
        ("eval", "--server", "ftp://example.org"),
        ("eval", "--server", "not a url"),
        ("control", "--ping-seconds", "0"),
        ("control", "--ping-seconds", "soon"),
        ("control", "--silence-seconds", "1"),
        ("control", "--server-key", "AAAA"),
        ("control", "--log", "xml"),
        ("control", "--ca", "/no/such/file"),
        ("start", "--listen", "everywhere"),
        ("run", "--listen", "127.0.0.1:70000"),
        ("register", "--ipv4", "1.2.3"),
        ("register", "--port", "0"),
        ("register", "--evm-address", "0x1234"),
        ("register", "--solana-address", "0OIl"),
        ("register", "--icp-address", "aaaaa-ab"),
        ("register", "--email", "nobody"),
    ] {
        let mut arguments = vec![command];
        if command == "register" {
            // All but the one in question are right, in case the order of the checks differs.
            let right = crate::exit_codes::register_arguments(&[]);
            let mut pairs = right[1..].chunks(2).filter(|pair| pair[0] != setting);
            arguments.extend(pairs.by_ref().flatten());
        }
        arguments.extend([setting, value]);
        assert_usage(&lab.run(&arguments), setting, value);
    }
}

fn a_wrong_variable_is_one_line_and_exit_two(shell: Shell) {
    let lab = Lab::new(shell);
    for (command, setting, value) in [
        ("eval", "CONSENSUS_SERVER_URL", "example.org"),
        ("control", "CONSENSUS_TUNNEL_URL", "gopher://example.org"),
        ("start", "NODE_PORT", "ninety"),
        ("start", "NODE_HOST", "the moon"),
        ("control", "CONSENSUS_LOG", "loud"),
    ] {
        let mut node = lab.network.node(&lab.program, [command]);
        node.env(setting, value);
        let exit = NodeProcess::run(node, LONG).unwrap();
        assert_usage(&exit, setting, value);
    }
}

fn unknown_words_are_usage_errors(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    for arguments in [&["dance"][..], &["eval", "--fast"], &["control", "now"], &["eval", "--server"]] {
        let exit = lab.run(arguments);
        assert_eq!(exit.code, Some(2), "{arguments:?}: {}{}", exit.stdout, exit.stderr());
    }
}

fn every_subcommand_has_help_with_an_example(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    for command in ["eval", "register", "control", "start", "run", "verify", "version"] {
        let exit = lab.run(&[command, "--help"]);
        assert_eq!(exit.code, Some(0), "{command}: {}", exit.stderr());
        let help = exit.stdout.to_lowercase();
        assert!(help.contains("example") && help.contains(command), "{command}: {}", exit.stdout);
    }
    let exit = lab.run(&["version"]);
    assert_eq!(exit.code, Some(0));
    assert!(exit.stdout.contains(shell.name()), "{}", exit.stdout);
}
