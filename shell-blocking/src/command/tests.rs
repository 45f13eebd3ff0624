//! Whole commands with a runtime that has no network.

use std::cell::RefCell;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::{Arc, Mutex};

use super::*;
use crate::log::Format;
use crate::runtime_api::Machine;
use crate::state_dir::MachineRegistry;
use crate::state_dir::tests::Scratch;
use consensus_core::io::{Fetch, FetchError, FetchErrorKind, Response, StateFile};
use consensus_core::state::JoinAuth;
use serde_json::json;

/// Answers requests by their path; a node comes to the end it is given.
struct Fake {
    finish: Result<Finish, String>,
    answers: Vec<(&'static str, u16, Value)>,
    asked: RefCell<Vec<(String, Value)>>,
    driven: RefCell<Option<Environment>>,
}

impl Fake {
    fn new(answers: Vec<(&'static str, u16, Value)>) -> Self {
        let finish = Ok(Finish { outcome: Outcome::Done, message: "over".into() });
        Self { finish, answers, asked: RefCell::default(), driven: RefCell::default() }
    }
}

impl Runtime for Fake {
    const PROGRAM: &'static str = "consensus-node";
    const SHELL: &'static str = "fake";

    fn drive(&self, _: impl Machine, environment: Environment) -> Result<Finish, String> {
        self.driven.replace(Some(environment));
        self.finish.clone()
    }

    fn fetch(&self, _: &Environment, request: &Fetch) -> Result<Response, FetchError> {
        let body = request.body.as_deref().map_or(Value::Null, |body| serde_json::from_slice(body).unwrap());
        let url = request.target.url();
        self.asked.borrow_mut().push((url.clone(), body));
        match self.answers.iter().find(|(path, _, _)| url.ends_with(path)) {
            Some((_, status, body)) => Ok(Response {
                status: *status,
                reason: String::new(),
                headers: vec![],
                body: body.to_string().into_bytes(),
            }),
            None => Err(FetchError { kind: FetchErrorKind::Connect, detail: "nobody there".into() }),
        }
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct World {
    scratch: Scratch,
    env: Vec<(&'static str, String)>,
    is_terminal: bool,
}

struct Ran {
    code: u8,
    stdout: String,
    stderr: String,
    log: String,
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        let home = scratch.path().to_str().unwrap().to_string();
        let env = [
            ("HOME", home.as_str()),
            ("CONSENSUS_SERVER_URL", "https://server.example"),
            ("CONSENSUS_NODE_CONTACT", "op@example.org"),
            ("CONSENSUS_NODE_IPV4", "203.0.114.7"),
            ("CONSENSUS_EVM_ADDRESS", "0x52908400098527886E0F7030069857D2E4169EE7"),
            ("CONSENSUS_SOLANA_ADDRESS", "4fYNw3dojWmQ4dXtSGE9epjRGy9pFSx62YypT7avPYvA"),
            ("CONSENSUS_ICP_ADDRESS", "rrkah-fqaaa-aaaaa-aaaaq-cai"),
        ];
        let env = env.map(|(name, value)| (name, value.to_string())).to_vec();
        Self { scratch, env, is_terminal: false }
    }

    fn state_dir(&self) -> StateDir {
        StateDir::open(&self.scratch.path().join(".consensus/node")).unwrap()
    }

    fn run(&self, runtime: &Fake, words: &[&str]) -> Ran {
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        self.run_raw(runtime, &arguments)
    }

    fn run_raw(&self, runtime: &Fake, arguments: &[OsString]) -> Ran {
        let (log, mut stdout, mut stderr) = (Lines::default(), Vec::new(), Vec::new());
        let find = |name: &str| {
            self.env.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        let make_log = |common: &Common| {
            Log::to_writer(Box::new(log.clone()), common.log.unwrap_or(Format::Text), common.log_level)
        };
        let mut surroundings = Surroundings {
            env: &find,
            stdout: &mut stdout,
            colors: false,
            stderr: &mut stderr,
            is_terminal: self.is_terminal,
            can_ask: false,
            log: &make_log,
        };
        let code = run(runtime, arguments, &mut surroundings);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let log = log.0.lock().unwrap().clone();
        Ran { code, stdout: text(stdout), stderr: text(stderr), log: text(log) }
    }

    fn evaluate(&self) {
        let auth = JoinAuth {
            join_id: "j1".into(),
            alg: "ed25519".into(),
            nonce: "bm9uY2U".into(),
            signature: "c2ln".into(),
            expires_at: system::now().unix_seconds() + 600,
            saved_at: 1,
        };
        self.state_dir().write(StateFile::JoinAuth, &auth.emit()).unwrap();
    }
}

fn network(dev_code: bool) -> Fake {
    let mut started = json!({"success": true, "verification_id": "v1", "expires_at": 1});
    if dev_code {
        started["dev_code"] = json!("123456");
    }
    Fake::new(vec![
        ("/node/email/start", 200, started),
        (
            "/node/email/verify",
            200,
            json!({"success": true, "email": "op@example.org", "email_verification_token": "t"}),
        ),
        ("/node/region/203.0.114.7", 200, json!({"success": true, "region": "eu-west"})),
        ("/node/join", 200, json!({"success": true, "node_id": "n1", "domain": "n1.example"})),
        ("/update/latest", 404, json!({"error": "none"})),
        ("/node/verify-integrity/n1", 200, json!({"verified": true})),
    ])
}

#[test]
fn usage_errors_are_one_line_and_end_with_code_two() {
    let mut world = World::new();
    world.env.push(("NODE_PORT", "http".into()));
    let wrong: [&[&str]; 7] = [
        &["evaluate"],
        &["eval", "--no-such-option"],
        &["eval", "--ping-seconds", "0\x1b[2J"],
        &["run"],
        &["register", "--email", "nobody"],
        &["control", "--ca", "/does/not/exist"],
        &["start", "--log", "xml"],
    ];
    for words in wrong {
        let ran = world.run(&network(true), words);
        assert_eq!((ran.code, ran.stdout.as_str(), ran.log.as_str()), (2, "", ""), "{words:?}");
        let line = ran.stderr.strip_suffix('\n').unwrap();
        assert!(line.starts_with("consensus-node: ") && !line.chars().any(char::is_control), "{line:?}");
    }
    let ran = world.run_raw(&network(true), &[OsString::from_vec(vec![0xff])]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        !world.scratch.path().join(".consensus").exists(),
        "a wrong command line must not leave anything"
    );
}

#[test]
fn a_file_that_holds_no_certificate_is_a_usage_error() {
    let world = World::new();
    let file = world.scratch.path().join("ca.pem");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").unwrap();
    let ran = world.run(&network(true), &["eval", "--ca", file.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{}{}", ran.stderr, ran.log);
    assert!(ran.stderr.contains("--ca"), "{}", ran.stderr);
}

#[test]
fn help_goes_to_standard_output_and_ends_well() {
    let ran = World::new().run(&network(true), &["run", "--help"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("Examples:"));
}

#[test]
fn a_node_that_is_not_registered_neither_runs_nor_leaves_files() {
    let world = World::new();
    for command in ["run", "control", "verify"] {
        let ran = world.run(&network(true), &[command]);
        assert_eq!(ran.code, 3, "{}", ran.log);
        assert!(
            ran.log.contains("consensus-node eval") && ran.log.contains(".consensus/node"),
            "{}",
            ran.log
        );
    }
    assert!(!world.scratch.path().join(".consensus").exists());
}

#[test]
fn eval_makes_the_identity_and_ends_with_the_code_of_the_outcome_and_the_next_step() {
    let world = World::new();
    let ran = world.run(&network(true), &["eval"]);
    assert_eq!(ran.code, 0, "{}", ran.log);
    assert!(ran.log.contains("next: consensus-node register"), "{}", ran.log);
    assert!(world.state_dir().identity().unwrap().is_some());
    for (outcome, code) in [
        (Outcome::Refused, 4),
        (Outcome::PaymentRequired, 5),
        (Outcome::Unreachable, 69),
        (Outcome::Internal, 70),
        (Outcome::NotRegistered, 3),
    ] {
        let mut fake = network(true);
        fake.finish = Ok(Finish { outcome, message: "because".into() });
        let ran = world.run(&fake, &["eval"]);
        assert_eq!(ran.code, code);
        assert!(ran.log.contains("because") && !ran.log.contains("next:"), "{}", ran.log);
    }
    let mut fake = network(true);
    fake.finish = Err("127.0.0.1:9090: address in use".into());
    let ran = world.run(&fake, &["start"]);
    assert_eq!(ran.code, 70);
    assert!(ran.log.contains("address in use"), "{}", ran.log);
}

#[test]
fn a_node_registers_runs_and_is_verified() {
    let world = World::new();
    world.evaluate();
    let fake = network(true);
    let ran = world.run(&fake, &["register"]);
    assert_eq!(ran.code, 0, "{}", ran.log);
    assert!(
        ran.log.contains("registered as node n1") && ran.log.contains("next: consensus-node run"),
        "{}",
        ran.log
    );
    assert!(!ran.log.contains("op@example.org") && !ran.log.contains("123456"), "{}", ran.log);
    let registration = world.state_dir().registration().unwrap().unwrap();
    let record = MachineRegistry::at(&world.scratch.path().join(".consensus")).load().unwrap().unwrap();
    assert_eq!(registration.node_id, "n1");
    assert_eq!(record.node_id.as_deref(), Some("n1"));
    assert_eq!(registration.machine_id, Some(record.machine_id));
    assert_eq!(record.state_dir.unwrap(), world.state_dir().root().to_str().unwrap());
    assert!(world.state_dir().join_auth().unwrap().is_none(), "it is single-use");

    let words = ["run", "--listen", "0.0.0.0:0", "--allow-private-targets"];
    let ran = world.run(&fake, &words);
    assert_eq!(ran.code, 0, "{}", ran.log);
    let first = ran.log.lines().next().unwrap();
    for part in ["consensus-node 0.", "node n1", "server.example", ".consensus/node"] {
        assert!(first.contains(part), "{first}");
    }
    assert!(ran.log.contains("STRANGERS") && ran.log.contains("0.0.0.0:0"), "{}", ran.log);
    let environment = fake.driven.take().unwrap();
    assert!(environment.listen.is_some());

    assert_eq!(world.run(&fake, &["control"]).code, 0);
    assert!(fake.driven.take().unwrap().listen.is_none());
    let ran = world.run(&fake, &["verify", "--log", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.log);
    let last: Value = serde_json::from_str(ran.log.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["outcome"], &last["exit_code"]),
        (&json!("finished"), &json!("done"), &json!(0))
    );
}

#[test]
fn without_a_terminal_a_registration_is_continued_with_the_code() {
    // The test's own standard input may be a terminal; the harness's never has both.
    if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return;
    }
    let world = World::new();
    world.evaluate();
    let fake = network(false);
    let ran = world.run(&fake, &["register"]);
    assert_eq!(ran.code, 3, "{}", ran.log);
    assert!(ran.log.contains("--verification-id v1 --code"), "{}", ran.log);
    assert!(world.state_dir().registration().unwrap().is_none());
    let ran = world.run(&fake, &["register", "--verification-id", "v1", "--code", "777"]);
    assert_eq!(ran.code, 0, "{}", ran.log);
    let asked = fake.asked.borrow();
    assert!(asked.iter().any(|(url, body)| url.ends_with("/verify") && body["code"] == "777"), "{asked:?}");
}

#[test]
fn one_machine_holds_one_node() {
    let world = World::new();
    world.evaluate();
    assert_eq!(world.run(&network(true), &["register"]).code, 0);
    let other = world.scratch.path().join("other");
    let fake = network(true);
    let ran = world.run(&fake, &["register", "--state-dir", other.to_str().unwrap()]);
    assert_eq!(ran.code, 4, "{}", ran.log);
    assert!(ran.log.contains("other") && ran.log.contains(".consensus/node"), "{}", ran.log);
    assert!(fake.asked.borrow().is_empty(), "refused before anybody was asked");
    let ran = world.run(&fake, &["register", "--machine-id", "another"]);
    assert_eq!(ran.code, 2, "{}", ran.log);
}

#[test]
fn a_registration_without_an_evaluation_says_what_comes_first() {
    let ran = World::new().run(&network(true), &["register"]);
    assert_eq!(ran.code, 3, "{}", ran.log);
    assert!(ran.log.contains("eval"), "{}", ran.log);
}

#[test]
fn a_registered_node_without_its_key_does_not_get_another() {
    let world = World::new();
    world.state_dir().write(StateFile::Config, b"{\"node_id\":\"n1\"}").unwrap();
    for command in ["run", "control", "start", "eval", "verify", "register"] {
        let ran = world.run(&network(true), &[command]);
        assert_eq!(ran.code, 70, "{command}: {}", ran.log);
        assert!(ran.log.contains("node.key"), "{}", ran.log);
        assert!(world.state_dir().identity().unwrap().is_none());
    }
}

#[test]
fn a_damaged_file_ends_every_command_that_needs_it_with_its_name() {
    let world = World::new();
    let path = world.state_dir().path(StateFile::Config);
    std::fs::write(&path, "{\"node_id\":").unwrap();
    for command in ["run", "control", "start", "eval", "verify", "register"] {
        let ran = world.run(&network(true), &[command]);
        assert_eq!(ran.code, 70, "{command}: {}", ran.log);
        assert!(ran.log.contains("config.json"), "{}", ran.log);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"node_id\":");
    }
}

#[test]
fn two_nodes_do_not_run_on_one_state_directory() {
    let world = World::new();
    world.evaluate();
    assert_eq!(world.run(&network(true), &["register"]).code, 0);
    let _lock = world.state_dir().lock().unwrap();
    for command in ["run", "control"] {
        let ran = world.run(&network(true), &[command]);
        assert_eq!(ran.code, 73, "{}", ran.log);
        assert!(ran.log.contains(&format!("process {}", std::process::id())), "{}", ran.log);
    }
    // The local API alone takes nothing from the other.
    assert_eq!(world.run(&network(true), &["start"]).code, 0);
}

#[test]
fn the_version_is_the_environments_then_the_state_directorys_then_the_builds() {
    let mut world = World::new();
    let ran = world.run(&network(true), &["version", "--json"]);
    let version: Value = serde_json::from_str(&ran.stdout).unwrap();
    let platform = system::platform();
    let expected = json!({
        "product": "consensus-node", "version": env!("CARGO_PKG_VERSION"), "runtime": "rust", "shell": "fake",
        "commit": option_env!("CONSENSUS_NODE_BUILD_COMMIT").unwrap_or("unknown"), "platform": platform, "protocol": 1,
    });
    assert_eq!(version, expected);
    let ran = world.run(&network(true), &["--version"]);
    assert!(
        ran.stdout.starts_with(&format!("consensus-node {}", env!("CARGO_PKG_VERSION"))),
        "{}",
        ran.stdout
    );

    let mut manifest = json!({"product": "consensus-node", "version": "9.9.9", "artifact": "npm-tarball",
        "platform": platform, "commit": "c9", "routes_hash": "sha256:0"});
    world.state_dir().write(StateFile::ReleaseManifest, manifest.to_string().as_bytes()).unwrap();
    let ran = world.run(&network(true), &["version"]);
    assert!(!ran.stdout.contains("9.9.9"), "another implementation's release: {}", ran.stdout);
    manifest["implementation"] = "rust".into();
    world.state_dir().write(StateFile::ReleaseManifest, manifest.to_string().as_bytes()).unwrap();
    let ran = world.run(&network(true), &["version"]);
    assert!(ran.stdout.contains("9.9.9 (commit c9"), "{}", ran.stdout);

    world.env.push(("CONSENSUS_NODE_COMMIT", "e1".into()));
    let ran = world.run(&network(true), &["version"]);
    assert!(ran.stdout.contains("9.9.9 (commit e1"), "{}", ran.stdout);

    std::fs::write(world.state_dir().path(StateFile::ReleaseManifest), "{").unwrap();
    let ran = world.run(&network(true), &["version"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (70, ""));
    assert!(ran.stderr.contains("release-manifest.json"), "{}", ran.stderr);
}

#[test]
fn a_server_key_other_than_the_registrations_is_used_and_told() {
    let world = World::new();
    world.state_dir().load_or_create_identity(Provider::default(), &mut Drbg::new([1; 32])).unwrap();
    let jwk = consensus_core::state::Jwk::of_key([7; 32], "k").to_value();
    let config = json!({"node_id": "n1", "orchestrator_pubkey": jwk}).to_string();
    world.state_dir().write(StateFile::Config, config.as_bytes()).unwrap();
    let ran = world.run(&network(true), &["control"]);
    assert_eq!(ran.code, 0);
    assert!(!ran.log.contains("--server-key"), "{}", ran.log);
    let other = consensus_core::wire::base64::encode_url(&[8; 32]);
    let ran = world.run(&network(true), &["control", "--server-key", &other]);
    assert!(ran.log.contains("--server-key"), "{}", ran.log);
}

#[test]
fn setup_without_a_terminal_names_all_that_is_missing_and_leaves_nothing() {
    let mut world = World::new();
    world.env.retain(|(name, _)| !name.contains("_ADDRESS"));
    let ran = world.run(&network(true), &["setup"]);
    assert_eq!((ran.code, ran.log.as_str()), (2, ""), "{}", ran.stderr);
    for name in ["--yes", "--email", "--evm-address (or CONSENSUS_EVM_ADDRESS)", "--icp-address"] {
        assert!(ran.stderr.contains(name), "{name}: {}", ran.stderr);
    }
    assert!(!world.scratch.path().join(".consensus").exists());
    let ran = world.run(&network(true), &["setup", "--agreement"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, consensus_core::setup::AGREEMENT));
}

#[test]
fn setup_registers_an_evaluated_machine_and_says_how_the_node_is_started() {
    let world = World::new();
    world.evaluate();
    let fake = network(true);
    let words = ["setup", "--yes", "--email", "op@example.org", "--ipv6", "none", "--log", "json"];
    let ran = world.run(&fake, &words);
    assert_eq!(ran.code, 0, "{}{}", ran.stderr, ran.log);
    assert!(ran.log.contains("node n1 is set up") && ran.log.contains(" run"), "{}", ran.log);
    assert!(!ran.log.contains("op@example.org") && !ran.log.contains("123456"), "{}", ran.log);
    let asked: Vec<_> = fake.asked.borrow().iter().map(|(url, _)| url.clone()).collect();
    let paths = [
        "/update/latest",
        "/node/region/203.0.114.7",
        "/node/email/start",
        "/node/email/verify",
        "/node/join",
    ];
    assert_eq!(asked, paths.map(|path| format!("https://server.example{path}")), "each once");
    assert_eq!(fake.asked.borrow()[4].1["ipv6"], Value::Null);
    let progress = world.state_dir().read(StateFile::SetupProgress).unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&progress).unwrap()["step"], "done");

    // The machine is this node's now: another state directory is refused, and both are named.
    let other = world.scratch.path().join("other");
    let ran = world.run(&fake, &[&words[..], &["--state-dir", other.to_str().unwrap()]].concat());
    assert_eq!(ran.code, 4, "{}{}", ran.stderr, ran.log);
    assert!(ran.log.contains("n1") && ran.log.contains(other.to_str().unwrap()), "{}", ran.log);
}
