//! `setup`: from an empty home to a node that serves, on a terminal and without one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use consensus_core::state::MachineRecord;
use consensus_core::tunnel::Mode;
use consensus_testbed::binaries::Shell;
use consensus_testbed::network::{NODE_ID, PAYOUT_OPTIONS};
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, NodeProcess};
use consensus_testbed::pty::{END, INTERRUPT, Pty};
use consensus_testbed::release;
use serde_json::{Value, json};

use crate::installs;
use crate::lab::{LONG, Lab, stop, with_both_shells};

with_both_shells! {
    a_terminal_leads_from_an_empty_home_to_a_connected_node
    a_terminal_leads_to_a_supervised_node_that_is_connected
    without_a_supervisor_it_says_so_and_a_service_that_was_asked_for_is_missed
    every_wrong_answer_is_told_with_an_example_and_asked_again
    why_something_is_asked_is_told_once
    stopped_and_killed_at_every_question_it_goes_on
    killed_in_the_middle_of_its_work_it_goes_on
    with_everything_said_beforehand_nothing_is_asked
    what_is_missing_without_a_terminal_is_named
    a_code_that_comes_by_email_is_brought_in_a_second_run
    the_required_release_is_installed_and_goes_on
    a_machine_that_is_not_admitted_costs_no_email
    a_machine_that_holds_another_node_is_refused
}

/// What a service says of this machine.
pub(crate) const IPV4: &str = "203.0.114.7";

/// The questions of a course without an earlier one, by what is shown of each, and an answer.
const QUESTIONS: [(&str, &str); 12] = [
    ("The network's server:", "SERVER"),
    ("may this machine do this [y/n]:", "y"),
    ("Public IPv4 address of this machine [203.0.114.7]:", ""),
    ("Public IPv6 address, or none [none]:", ""),
    ("Port that the network is told [9090]:", "9191"),
    ("a code is sent there:", "operator@example.org"),
    ("The code that was sent by email, or the word again for another:", "CODE"),
    ("How the network can reach you [operator@example.org]:", ""),
    ("EVM address:", PAYOUT_OPTIONS[1]),
    ("Solana address:", PAYOUT_OPTIONS[3]),
    ("ICP principal:", PAYOUT_OPTIONS[5]),
    ("Register with this (no asks everything again) [Y/n]:", ""),
];

pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) service: String,
}

impl World {
    pub(crate) fn new(shell: Shell, options: Options) -> Self {
        Self { lab: Lab::with(shell, options), service: address_service(IPV4) }
    }

    /// A network whose codes come by email alone.
    pub(crate) fn with_email(shell: Shell) -> Self {
        Self::new(shell, Options { no_dev_code: true, ..Options::default() })
    }

    pub(crate) fn url(&self) -> String {
        self.lab.network.orchestrator.url()
    }

    /// Setup on a terminal, with nothing said about the network.
    fn terminal(&self) -> Pty {
        self.terminal_with(&["--skip-release"], |_| {})
    }

    fn terminal_with(&self, more: &[&str], also: impl FnOnce(&mut Command)) -> Pty {
        let program = self.lab.program.to_str().unwrap();
        let mut arguments =
            vec!["--ctty", program, "setup", "--address-service", &self.service, "--log-level=warn"];
        arguments.extend(more);
        let mut command = self.lab.network.home.command(Path::new("setsid"), arguments);
        also(&mut command);
        command.env_remove("CONSENSUS_LOG").env("NO_COLOR", "1").env("TERM", "xterm");
        Pty::spawn(&mut command).unwrap()
    }

    /// Setup without a terminal.
    fn run(&self, arguments: &[&str]) -> Exit {
        let mut all = vec!["setup", "--address-service", &self.service];
        all.extend(arguments);
        self.lab.run(&all)
    }

    /// The last code that was sent by email.
    pub(crate) fn code(&self) -> String {
        let mut codes = self.records(|record| match record {
            Record::EmailCode { code, .. } => Some(code.clone()),
            _ => None,
        });
        codes.pop().unwrap()
    }

    fn records<T>(&self, find: impl Fn(&Record) -> Option<T>) -> Vec<T> {
        self.lab
            .network
            .orchestrator
            .journal()
            .since(0)
            .iter()
            .filter_map(|(_, record)| find(record))
            .collect()
    }

    pub(crate) fn emails(&self) -> usize {
        self.records(|record| matches!(record, Record::EmailCode { .. }).then_some(())).len()
    }

    pub(crate) fn evaluations(&self) -> usize {
        self.records(|record| matches!(record, Record::Ready { mode: Mode::Eval, .. }).then_some(())).len()
    }

    /// Types the answer to a question that is shown.
    fn answer(&self, terminal: &mut Pty, answer: &str) {
        let answer = match answer {
            "SERVER" => self.url(),
            "CODE" => self.code(),
            other => other.to_string(),
        };
        terminal.type_text(&format!("{answer}\n")).unwrap();
    }

    pub(crate) fn progress(&self) -> Value {
        let path = self.lab.network.home.state_dir().join("setup-progress.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Everything is there: the node runs and is served.
    pub(crate) fn assert_set_up(&self) {
        assert_eq!(self.progress(), json!({"version": 1, "step": "done", "answers": {}}));
        let state = self.lab.network.home.state_dir();
        let config: Value = serde_json::from_slice(&fs::read(state.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["ipv4"], IPV4);
        let node = self.lab.start(&["control", "--allow-private-targets"]);
        let (_, ()) = self.lab.record(&node, 0, "a control session", |record| match record {
            Record::Ready { mode: Mode::Control, .. } => Some(()),
            _ => None,
        });
        assert_eq!(self.lab.network.orchestrator.attached(), [config["node_id"].as_str().unwrap()]);
        stop(node);
    }
}

/// Answers every request with this text; gives its URL.
fn address_service(text: &'static str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let length = text.len() + 1;
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}\n"
            );
        }
    });
    url
}

fn a_terminal_leads_from_an_empty_home_to_a_connected_node(shell: Shell) {
    let world = World::with_email(shell);
    let mut terminal = world.terminal();
    for (question, answer) in QUESTIONS {
        terminal.expect(&[question], LONG).unwrap();
        if question.contains("code that was") {
            assert_eq!(world.evaluations(), 1, "the email comes after the evaluation");
        }
        world.answer(&mut terminal, answer);
    }
    let (status, text) = terminal.wait(LONG).unwrap();
    assert!(status.success(), "{text}");
    for words in
        ["What running a node means", "sees this machine at", "local-1, Localhost, ZZ", " run --server http"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("\u{1b}[3") && text.contains("Start the node with"), "{text}");
    // What is typed is shown behind its prompt, and a log has a line for each event, such as that a busy machine
    // would not be admitted; all else keeps to the terminal's width.
    let is_log = |line: &str| line.get(2..3) == Some(":") && line.get(5..6) == Some(":");
    let prompts = |line: &str| QUESTIONS.iter().any(|(question, _)| line.contains(question));
    let long = text.lines().find(|line| {
        line.chars().count() > 80 && !prompts(line) && !is_log(line) && !line.contains("run --server")
    });
    assert_eq!(long, None);
    world.assert_set_up();
    let joined = world.records(|record| matches!(record, Record::Joined { .. }).then_some(()));
    assert_eq!(joined.len(), 1);

    // Once more: the node that is there is kept.
    let mut terminal = world.terminal();
    terminal.expect(&["The network's server:"], LONG).unwrap();
    world.answer(&mut terminal, "SERVER");
    terminal.expect(&["Keep this registration [Y/n]:"], LONG).unwrap();
    world.answer(&mut terminal, "");
    let (status, text) = terminal.wait(LONG).unwrap();
    assert!(status.success() && text.contains("Start the node with"), "{text}");
    assert_eq!(world.emails(), 1);
}

/// A systemd of this user that starts what the unit says with nothing but what the unit says, and ends it. While there is
/// a file `idle`, it only says that it did.
pub(crate) struct StandIn {
    root: PathBuf,
    bin: PathBuf,
}

const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >>"$HOME/calls"
unit=$HOME/.config/systemd/user/consensus-node.service
[ ! -e "$HOME/idle" ] || exit 0
case "$*" in
*"enable --now"*)
    (
        set -a
        eval "$(sed -n 's/^Environment=/export /p' "$unit")"
        . "$(sed -n 's/^EnvironmentFile=-//p' "$unit")"
        set +a
        eval "exec setsid $(sed -n 's/^ExecStart=//p' "$unit")"
    ) </dev/null >"$HOME/service.log" 2>&1 &
    echo $! >"$HOME/service.pid"
    ;;
*"disable --now"*) [ ! -e "$HOME/service.pid" ] || kill "$(cat "$HOME/service.pid")" ;;
esac
"#;

impl StandIn {
    pub(crate) fn new(world: &World) -> Self {
        let root = world.lab.network.home.root().to_path_buf();
        let bin = root.join("bin");
        fs::create_dir(&bin).unwrap();
        let clean = format!(
            "#!/bin/sh\nexec env -i HOME=\"$HOME\" PATH=\"$PATH\" \"{}/systemctl.sh\" \"$@\"\n",
            bin.display()
        );
        for (name, text) in
            [("systemctl.sh", SYSTEMCTL), ("systemctl", &clean), ("loginctl", "#!/bin/sh\nexit 1\n")]
        {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { root, bin }
    }

    pub(crate) fn put_before(&self, command: &mut Command) {
        command.env("PATH", format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap()));
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let Ok(pid) = fs::read_to_string(self.root.join("service.pid")) else { return };
        let _ = Command::new("kill").arg(pid.trim()).status();
    }
}

fn a_terminal_leads_to_a_supervised_node_that_is_connected(shell: Shell) {
    let world = World::with_email(shell);
    let orchestrator = &world.lab.network.orchestrator;
    let tarball = installs::tarball("0.3.0", &fs::read(&world.lab.program).unwrap());
    orchestrator.require(orchestrator.publish_release(release::manifest("0.3.0"), tarball));
    let stand_in = StandIn::new(&world);
    let port = world.lab.network.local_api.port().to_string();
    let environment = |command: &mut Command| {
        stand_in.put_before(command);
        command.env("CONSENSUS_MAX_STREAMS", "77").env("NODE_PORT", &port);
        if let Some(ca) = orchestrator.ca_file() {
            command.env("CONSENSUS_CA_FILE", ca);
        }
    };
    let options = ["--user", "--supervisor", "systemd", "--allow-private-targets", "--port", "9191"];
    fs::write(stand_in.root.join("idle"), "").unwrap();
    let mut terminal = world.terminal_with(&options, environment);
    for (question, answer) in QUESTIONS.iter().filter(|(question, _)| !question.contains("Port")) {
        terminal.expect(&[question], LONG).unwrap();
        world.answer(&mut terminal, answer);
    }
    terminal.expect(&["systemd of this user can keep the node"], LONG).unwrap();
    terminal.expect(&["Keep the node running as a service [Y/n]:"], LONG).unwrap();
    world.answer(&mut terminal, "");
    terminal.expect(&["Waiting until the node is connected."], LONG).unwrap();
    // A supervisor that starts nothing: whoever does not want to wait goes on later.
    terminal.type_text(INTERRUPT).unwrap();
    let (status, text) = terminal.wait(LONG).unwrap();
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(text.contains("enable-linger"), "that it would end with the session is told: {text}");
    assert_eq!(world.progress()["step"], "service");

    fs::remove_file(stand_in.root.join("idle")).unwrap();
    let mut terminal = world.terminal_with(&options, environment);
    terminal.expect(&["Use this again [Y/n]:"], LONG).unwrap();
    world.answer(&mut terminal, "");
    terminal.expect(&["Keep this registration [Y/n]:"], LONG).unwrap();
    world.answer(&mut terminal, "");
    // Longer than it waits for the node.
    let (status, text) = terminal.wait(2 * LONG).unwrap();
    let log = fs::read_to_string(stand_in.root.join("service.log")).unwrap_or_default();
    assert!(status.success() && text.contains("is connected to the network"), "{text}\n{log}");
    let config = world.lab.network.home.state_dir().join("config.json");
    let config: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    assert_eq!(orchestrator.attached(), [config["node_id"].as_str().unwrap()]);
    assert_eq!(world.progress()["step"], "done");
    let settings = stand_in.root.join(".consensus/node-runtime/node.env");
    assert_eq!(fs::metadata(&settings).unwrap().permissions().mode() & 0o777, 0o600);
    let settings = fs::read_to_string(settings).unwrap();
    for (name, value) in [
        ("CONSENSUS_SERVER_URL", world.url()),
        ("CONSENSUS_MAX_STREAMS", "77".to_string()),
        ("NODE_PORT", port.clone()),
    ] {
        assert!(settings.contains(&format!("{name}=\"{value}\"")), "{name}: {settings}");
    }

    // Once more, beside the node that runs: it stays as it is.
    let mut command = world.lab.network.node(&world.lab.program, ["setup", "--yes"]);
    environment(&mut command);
    let again = NodeProcess::run(command, LONG).unwrap();
    assert_eq!(again.code, Some(0), "{}", again.stderr());
    assert!(again.stderr().contains("and it runs"), "{}", again.stderr());
    let joined = world.records(|record| matches!(record, Record::Joined { .. }).then_some(()));
    let sessions =
        world.records(|record| matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(()));
    assert_eq!((joined.len(), sessions.len(), world.evaluations()), (1, 1, 1));
}

fn without_a_supervisor_it_says_so_and_a_service_that_was_asked_for_is_missed(shell: Shell) {
    let world = World::new(shell, Options::default());
    let arguments = unattended(&world);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // There is no release that it could start, whatever supervises this machine.
    arguments.extend(["--service", "yes"]);
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(3), "{}", exit.stderr());
    for words in ["No supervisor keeps the node", "Start the node with", "registered, and not a service"] {
        assert!(exit.stderr().contains(words), "{words}: {}", exit.stderr());
    }
    let count = arguments.len();
    arguments[count - 1] = "no";
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    arguments[count - 1] = "perhaps";
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
    assert!(exit.stderr().contains("--service: \"perhaps\""), "{}", exit.stderr());
}

fn every_wrong_answer_is_told_with_an_example_and_asked_again(shell: Shell) {
    let world = World::with_email(shell);
    let wrong: [&[&str]; 12] = [
        &["", "network.example", "https://a/b", "ftp://a"],
        &["", "perhaps"],
        &["10.0.0.1", "127.0.0.1", "::1", "x"],
        &["8.8.8.8", "fe80::1"],
        &["0", "65536", "http"],
        &["", "nobody", "a@b@c"],
        &["", "12 34", "000000x"],
        &["\u{9b}31m"],
        &["", "0x12"],
        &["", "0enkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DAxx"],
        &["", "rrkah-fqaaa-aaaaa-aaaba-cai"],
        &["perhaps"],
    ];
    let mut terminal = world.terminal();
    for ((question, answer), wrong) in QUESTIONS.into_iter().zip(wrong) {
        for text in wrong {
            terminal.expect(&[question], LONG).unwrap();
            terminal.type_text(&format!("{text}\n")).unwrap();
            terminal.expect(&["\r\n! "], LONG).unwrap();
        }
        terminal.expect(&[question], LONG).unwrap();
        world.answer(&mut terminal, answer);
    }
    let (status, text) = terminal.wait(LONG).unwrap();
    assert!(status.success(), "{text}");
    assert_eq!(text.matches('\u{9b}').count(), 1, "only as it was typed: {text}");
    // The network's own no to a code has no example.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let told = wrong.into_iter().map(<[_]>::len).sum::<usize>() - 1;
    assert_eq!(words.matches("; for example").count(), told, "{text}");
}

fn why_something_is_asked_is_told_once(shell: Shell) {
    let world = World { service: "none".to_string(), ..World::with_email(shell) };
    let mut terminal = world.terminal();
    for (question, answer) in QUESTIONS.into_iter().take(2) {
        terminal.expect(&[question], LONG).unwrap();
        world.answer(&mut terminal, answer);
    }
    for _ in 0..2 {
        terminal.expect(&["Public IPv4 address of this machine:"], LONG).unwrap();
        terminal.type_text("x\n").unwrap();
        terminal.expect(&["not an IPv4 address"], LONG).unwrap();
    }
    terminal.expect(&["Public IPv4 address of this machine:"], LONG).unwrap();
    terminal.type_text(END).unwrap();
    let (_, text) = terminal.wait(LONG).unwrap();
    assert_eq!(text.matches("no IPv4 address of this machine was found").count(), 1, "{text}");
}

fn stopped_and_killed_at_every_question_it_goes_on(shell: Shell) {
    let world = World::with_email(shell);
    let resume = "Use this again [Y/n]:";
    for number in 0..=QUESTIONS.len() {
        let mut terminal = world.terminal();
        let (question, answer) = QUESTIONS.get(number).copied().unwrap_or(("Start the node with", ""));
        if number > 0 && terminal.expect(&[resume, question], LONG).unwrap() == 0 {
            world.answer(&mut terminal, "");
            terminal.expect(&[question], LONG).unwrap();
        } else if number == 0 {
            terminal.expect(&[question], LONG).unwrap();
        }
        if number == QUESTIONS.len() {
            let (status, text) = terminal.wait(LONG).unwrap();
            assert!(status.success(), "{text}");
            break;
        }
        // It ends here in one of three ways, and has to come to this very question again.
        let (next, _) = QUESTIONS.get(number + 1).copied().unwrap_or(("is node", ""));
        if number % 3 < 2 {
            terminal.type_text(if number % 3 == 0 { INTERRUPT } else { END }).unwrap();
            let (status, text) = terminal.wait(LONG).unwrap();
            assert_eq!(status.code(), Some(70), "{text}");
            // A terminal throws away what is shown in the very instant of an interrupt.
            assert!(number % 3 == 0 || text.contains("stopped"), "{text}");
            terminal = world.terminal();
            if number > 0 && terminal.expect(&[resume, question], LONG).unwrap() == 0 {
                world.answer(&mut terminal, "");
                terminal.expect(&[question], LONG).unwrap();
            } else if number == 0 {
                terminal.expect(&[question], LONG).unwrap();
            }
        }
        world.answer(&mut terminal, answer);
        terminal.expect(&[next], LONG).unwrap();
        if number + 1 < QUESTIONS.len() {
            assert_eq!(world.progress()["version"], 1);
            terminal.kill().unwrap();
        } else {
            let (status, text) = terminal.wait(LONG).unwrap();
            assert!(status.success(), "{text}");
            break;
        }
    }
    assert_eq!((world.emails(), world.evaluations()), (1, 1), "what held was used again");
    world.assert_set_up();
}

fn killed_in_the_middle_of_its_work_it_goes_on(shell: Shell) {
    let world = World::new(shell, Options::default());
    let arguments = unattended(&world);
    let killed_at = |what: &str, find: fn(&Record) -> bool| {
        let mut all = vec!["setup", "--address-service", &world.service];
        all.extend(arguments.iter().map(String::as_str));
        let journal = world.lab.network.orchestrator.journal();
        let mark = journal.since(0).len();
        let node = world.lab.start(&all);
        world.lab.record(&node, mark, what, |record| find(record).then_some(()));
        drop(node);
    };
    killed_at(
        "a region asked",
        |record| matches!(record, Record::Http { path, .. } if path.contains("region")),
    );
    killed_at("an evaluation", |record| matches!(record, Record::Ready { .. }));
    killed_at("an email", |record| matches!(record, Record::EmailCode { .. }));
    killed_at("a registration", |record| matches!(record, Record::Joined { .. }));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    world.assert_set_up();
}

/// Everything that setup asks for.
fn unattended(world: &World) -> Vec<String> {
    let mut all = vec!["--yes", "--skip-release", "--email", "operator@example.org"];
    all.extend(PAYOUT_OPTIONS);
    let mut all: Vec<String> = all.into_iter().map(String::from).collect();
    all.extend(["--server".to_string(), world.url()]);
    all
}

fn with_everything_said_beforehand_nothing_is_asked(shell: Shell) {
    let world = World::new(shell, Options::default());
    let arguments = unattended(&world);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert!(!exit.stderr().contains("operator@example.org"), "no log gets an address: {}", exit.stderr());
    assert!(exit.stderr().contains("Start the node with"), "{}", exit.stderr());
    world.assert_set_up();

    // From the environment alone, on another machine.
    let world = World::new(shell, Options::default());
    let mut command = world.lab.network.node(&world.lab.program, ["setup", "--yes", "--skip-release"]);
    command
        .env("CONSENSUS_NODE_CONTACT", "me")
        .env("CONSENSUS_NODE_IPV4", IPV4)
        .env("CONSENSUS_NODE_IPV6", "none")
        .env("CONSENSUS_ADDRESS_SERVICES", "none")
        .env("CONSENSUS_EVM_ADDRESS", PAYOUT_OPTIONS[1])
        .env("CONSENSUS_SOLANA_ADDRESS", PAYOUT_OPTIONS[3])
        .env("CONSENSUS_ICP_ADDRESS", PAYOUT_OPTIONS[5]);
    let missing = NodeProcess::run(command, LONG).unwrap();
    assert_eq!(missing.code, Some(2), "an email address has no variable: {}", missing.stderr());
    assert!(missing.stderr().contains("--email"), "{}", missing.stderr());
}

fn what_is_missing_without_a_terminal_is_named(shell: Shell) {
    let world = World::new(shell, Options::default());
    let exit = world.run(&[]);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
    for name in
        ["--yes", "--agreement", "--email", "CONSENSUS_EVM_ADDRESS", "--solana-address", "--icp-address"]
    {
        assert!(exit.stderr().contains(name), "{name}: {}", exit.stderr());
    }
    assert_eq!(exit.lines.len(), 1);
    assert!(!world.lab.network.home.state_dir().exists(), "a wrong command line leaves nothing");
    let all = unattended(&world);
    let with = |more: &[&str]| {
        let all: Vec<&str> = all.iter().map(String::as_str).chain(more.iter().copied()).collect();
        world.run(&all)
    };
    for (wrong, words) in [
        (["--ipv4", "10.0.0.1"], "not a public address"),
        (["--port", "0"], "--port: \"0\" is not allowed"),
        (["--ipv6", "1.1.1.1"], "--ipv6"),
        (["--address-service", "ftp://x"], "the scheme is ftp"),
        (["--release-key", "x"], "--release-key"),
    ] {
        let exit = with(&wrong);
        assert_eq!(exit.code, Some(2), "{wrong:?}: {}", exit.stderr());
        assert!(exit.stderr().contains(words), "{words}: {}", exit.stderr());
    }
    // Nobody says what the address is, and nobody is there to ask.
    let silent = address_service("<html>no</html>");
    let mut all = vec!["setup", "--address-service", &silent];
    let told = unattended(&world);
    all.extend(told.iter().map(String::as_str));
    let exit = world.lab.run(&all);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
    assert!(exit.stderr().contains("--ipv4") && exit.stderr().contains("no address"), "{}", exit.stderr());
    let exit = world.lab.run(&["setup", "--agreement"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(0), consensus_core::setup::AGREEMENT));
}

fn a_code_that_comes_by_email_is_brought_in_a_second_run(shell: Shell) {
    let world = World::with_email(shell);
    let arguments = unattended(&world);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(3), "{}", exit.stderr());
    assert!(exit.stderr().contains("--code"), "{}", exit.stderr());
    let code = world.code();
    arguments.extend(["--code", &code]);
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert_eq!((world.emails(), world.evaluations()), (1, 1));
    world.assert_set_up();
}

fn the_required_release_is_installed_and_goes_on(shell: Shell) {
    let world = World::new(shell, Options::default());
    let orchestrator = &world.lab.network.orchestrator;
    let tarball = installs::tarball("0.3.0", &fs::read(&world.lab.program).unwrap());
    orchestrator.require(orchestrator.publish_release(release::manifest("0.3.0"), tarball));
    let arguments = unattended(&world);
    let arguments: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| *word != "--skip-release").collect();
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    let dir: PathBuf = world.lab.network.home.root().join(".consensus/node-runtime");
    assert!(exit.stderr().contains("Release 0.3.0 is installed"), "{}", exit.stderr());
    assert!(exit.stderr().contains("This is the required release, 0.3.0"), "{}", exit.stderr());
    assert!(exit.stderr().contains(&format!("{}/run-node.sh run", dir.display())), "{}", exit.stderr());
    let mut command: Command = world.lab.network.node(&dir.join("current/bin/consensus-node"), ["verify"]);
    command.env("CONSENSUS_NODE_INSTALL_DIR", &dir);
    let exit = NodeProcess::run(command, LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert_eq!(fs::read_dir(dir.join("releases")).unwrap().count(), 1);

    // One that is not taken ends it, and says how to go on without.
    let world = World::new(shell, Options::default());
    let orchestrator = &world.lab.network.orchestrator;
    let mut manifest = release::manifest("0.3.0");
    manifest.platform = "linux-other".into();
    orchestrator.require(manifest);
    let told = unattended(&world);
    let told: Vec<&str> = told.iter().map(String::as_str).filter(|word| *word != "--skip-release").collect();
    let exit = world.run(&told);
    assert_eq!(exit.code, Some(4), "{}", exit.stderr());
    assert!(exit.stderr().contains("--skip-release"), "{}", exit.stderr());
    assert_eq!(world.emails() + world.evaluations(), 0);
}

fn a_machine_that_is_not_admitted_costs_no_email(shell: Shell) {
    let world = World::new(shell, Options { min_memory_mb: 1_000_000_000, ..Options::default() });
    let arguments = unattended(&world);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(4), "{}", exit.stderr());
    assert!(exit.stderr().contains("no email was sent"), "{}", exit.stderr());
    assert_eq!(world.emails(), 0);
    // What goes on has what this one was told, but for people's own data, which is kept.
    let next = exit.lines.iter().find(|line| line.event() == "next").unwrap();
    let said = &next.text;
    for word in [world.lab.program.to_str().unwrap(), " setup ", "--skip-release", "--yes"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("--email") && !said.contains("--evm-address"), "{said}");
}

fn a_machine_that_holds_another_node_is_refused(shell: Shell) {
    let world = World::new(shell, Options::default());
    world.lab.network.register_node().unwrap();
    let machine = world.lab.network.home.root().join("machine");
    fs::create_dir_all(&machine).unwrap();
    let mut record = MachineRecord::parse(br#"{"machine_id":"m1"}"#).unwrap();
    record.register("/srv/other", "n9", 1);
    fs::write(machine.join("machine.json"), record.emit()).unwrap();
    let arguments = unattended(&world);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(4), "{}", exit.stderr());
    for name in ["n9", "/srv/other", NODE_ID, "machine.json"] {
        assert!(exit.stderr().contains(name), "{name}: {}", exit.stderr());
    }
    // A second state directory beside the one of this machine's node.
    let first = world.lab.network.home.state_dir();
    let second = world.lab.network.home.root().join("second");
    record.register(first.to_str().unwrap(), NODE_ID, 1);
    fs::write(machine.join("machine.json"), record.emit()).unwrap();
    let mut arguments = arguments;
    arguments.extend(["--state-dir", second.to_str().unwrap()]);
    let exit = world.run(&arguments);
    assert_eq!(exit.code, Some(4), "{}", exit.stderr());
    for name in [NODE_ID, first.to_str().unwrap(), second.to_str().unwrap(), "machine.json"] {
        assert!(exit.stderr().contains(name), "{name}: {}", exit.stderr());
    }
    assert!(!second.exists(), "nothing is made for a node that cannot be");
}
