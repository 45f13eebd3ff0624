//! Bad settings: one line that names the setting, the value and what is allowed; exit 2.

use consensus_core::tunnel::Mode;
use consensus_testbed::binaries::Shell;
use consensus_testbed::network::write_secret;
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, NodeProcess, free_address};
use serde_json::Value;

use crate::lab::{LONG, Lab, stop, with_both_shells};

with_both_shells! {
    a_wrong_option_is_one_line_and_exit_two
    a_wrong_variable_is_one_line_and_exit_two
    unknown_words_are_usage_errors
    every_subcommand_has_help_with_an_example
    an_option_goes_before_a_variable_before_the_file_before_the_default
    a_node_runs_by_its_file_alone
    a_wrong_file_is_one_line_with_its_place_and_exit_two
    config_show_says_each_value_and_where_it_came_from
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

/// Writes the settings file, for its owner's eyes alone.
fn write_file(lab: &Lab, text: &str) {
    let folder = lab.network.home.state_dir();
    std::fs::create_dir_all(&folder).unwrap();
    write_secret(&folder.join("config.toml"), text).unwrap();
}

fn an_option_goes_before_a_variable_before_the_file_before_the_default(shell: Shell) {
    let lab = Lab::new(shell);
    // Nobody is at any of them, so that the error says which one counted.
    let [option, variable, file] = [(); 3].map(|()| format!("http://{}", free_address().unwrap()));
    write_file(&lab, &format!("server = {file:?}\n"));
    let verify = |options: &[&str], variable: Option<&str>| {
        let mut command = lab.network.node(&lab.program, [&["verify"], options].concat());
        command.env_remove("CONSENSUS_SERVER_URL").envs(variable.map(|url| ("CONSENSUS_SERVER_URL", url)));
        NodeProcess::run(command, LONG).unwrap()
    };
    let counted = |exit: Exit, url: &str| {
        assert_eq!(exit.code, Some(69), "{}", exit.stderr());
        assert!(exit.stderr().contains(&url["http://".len()..]), "{url}: {}", exit.stderr());
    };
    counted(verify(&["--server", &option], Some(&variable)), &option);
    counted(verify(&[], Some(&variable)), &variable);
    counted(verify(&[], Some("")), &file);
    counted(verify(&[], None), &file);
    std::fs::remove_file(lab.network.home.state_dir().join("config.toml")).unwrap();
    let exit = verify(&[], None);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
    assert!(exit.stderr().contains("there is no default"), "{}", exit.stderr());
}

fn a_node_runs_by_its_file_alone(shell: Shell) {
    let lab = Lab::with(shell, Options { tls: true, ..Options::default() });
    lab.network.register_node().unwrap();
    let (url, ca) = (lab.network.orchestrator.url(), lab.network.orchestrator.ca_file().unwrap());
    let listen = lab.network.local_api;
    let text = format!(
        "server = {url:?}\nca = {:?}\nlisten = \"{listen}\"\nping-seconds = 1\n",
        ca.to_str().unwrap()
    );
    write_file(&lab, &text);
    let mut command = lab.network.node(&lab.program, ["run"]);
    command.env_remove("CONSENSUS_SERVER_URL").env_remove("CONSENSUS_CA_FILE");
    let node = NodeProcess::spawn(command).unwrap();
    lab.record(&node, 0, "a session", |record| {
        matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
    });
    let health = consensus_testbed::client::get(&format!("http://{listen}/health"), None).unwrap();
    assert_eq!(health.body["status"], "healthy");
    stop(node);
}

fn a_wrong_file_is_one_line_with_its_place_and_exit_two(shell: Shell) {
    let lab = Lab::new(shell);
    for (text, words) in [
        (
            "log = \"json\"\nmax_requests = 3\n",
            "line 2: \"max_requests\" is no setting; is max-requests meant?",
        ),
        ("\nmax-requests = 0\n", "line 2, max-requests: \"0\" is not allowed"),
        ("max-requests = true", "line 1: max-requests: allowed: "),
        ("max-requests = ", "line 1: this is not TOML"),
        (
            "https-proxy = \"socks5://op:s3cret@p\"",
            "line 1, https-proxy: \"(not shown)\" is not allowed (SOCKS",
        ),
    ] {
        write_file(&lab, text);
        let exit = lab.run(&["run"]);
        assert_eq!((exit.code, exit.lines.len()), (Some(2), 1), "{}", exit.stderr());
        let said = exit.stderr();
        assert!(said.contains("state/config.toml, ") && said.contains(words), "{words}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    let path = lab.network.home.state_dir().join("config.toml");
    write_file(&lab, "email-verification-token = \"s3cret\"");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let exit = lab.run(&["verify"]);
        assert_eq!(exit.code, Some(2), "{}", exit.stderr());
        assert!(exit.stderr().contains("chmod 0600"), "{}", exit.stderr());
    }
    // What does not use it does not mind.
    assert_eq!(lab.run(&["version"]).code, Some(0));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let exit = lab.run(&["verify"]);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
}

fn config_show_says_each_value_and_where_it_came_from(shell: Shell) {
    let lab = Lab::new(shell);
    write_file(
        &lab,
        "max-streams = 7\nhttps-proxy = \"http://op:s3cret@proxy.example\"\nlisten = \"127.0.0.1:1\"\n",
    );
    let mut command = lab.network.node(&lab.program, ["config", "show", "--json"]);
    command.env("NODE_PORT", "4242").env("no_proxy", "a.example");
    let exit = NodeProcess::run(command, LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert!(!exit.stdout.contains("s3cret"), "{}", exit.stdout);
    let shown: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(shown["file"]["exists"], true);
    let setting = |name: &str| {
        let all = shown["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    for (name, value, source, origin) in [
        ("max-streams", "7", "file", "config.toml, line 1, max-streams"),
        ("https-proxy", "(not shown)", "file", "config.toml, line 2, https-proxy"),
        ("listen", "127.0.0.1:4242", "environment", "NODE_PORT"),
        ("no-proxy", "a.example", "environment", "no_proxy"),
        ("server", &lab.network.orchestrator.url(), "environment", "CONSENSUS_SERVER_URL"),
    ] {
        let found = setting(name);
        assert_eq!((&found["value"], &found["source"]), (&value.into(), &source.into()), "{found}");
        assert!(found["origin"].as_str().unwrap().ends_with(origin), "{found}");
    }
    let default = setting("max-requests");
    assert_eq!(
        (&default["value"], &default["source"], &default["default"]),
        (&Value::Null, &"default".into(), &"256".into())
    );

    let exit = lab.run(&["config", "show"]);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    for line in ["max-requests", "(default)", "7  (", "(not shown)  ("] {
        assert!(exit.stdout.contains(line), "{line}: {}", exit.stdout);
    }
    assert!(!exit.stdout.contains("s3cret"), "{}", exit.stdout);
    // What is wrong hides nothing else.
    write_file(&lab, "max-streams = 0\nmax-requests = 9\n");
    let exit = lab.run(&["config", "show"]);
    assert_eq!(exit.code, Some(2));
    for line in ["WRONG  (", "line 1, max-streams", "9  ("] {
        assert!(exit.stdout.contains(line), "{line}: {}", exit.stdout);
    }
    assert!(exit.stderr().contains("line 1, max-streams"), "{}", exit.stderr());
    write_file(&lab, "max_streams = 1\n");
    let exit = lab.run(&["config", "show", "--json"]);
    assert_eq!(exit.code, Some(2));
    let shown: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert!(shown["file"]["error"].as_str().unwrap().contains("is max-streams meant?"), "{shown}");
    assert!(exit.stderr().contains("is max-streams meant?"), "{}", exit.stderr());
}
