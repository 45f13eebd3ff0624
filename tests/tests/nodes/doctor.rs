//! `doctor`: each fault planted for real, found by its own line, with its fix, and by no other line.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use consensus_core::wire::base64;
use consensus_testbed::binaries::Shell;
use consensus_testbed::client;
use consensus_testbed::connect_proxy::{ConnectProxy, Manner};
use consensus_testbed::network::{NODE_ID, write_secret};
use consensus_testbed::options::{Bad, CertDates, Options};
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, NodeProcess, free_address};
use consensus_testbed::release;
use serde_json::{Value, json};

use crate::lab::{CONTROL, LONG, Lab, stop, with_both_shells};

with_both_shells! {
    nothing_fails_where_nothing_is_wrong
    a_running_node_keeps_its_session_and_the_handshake_is_skipped
    a_server_that_nobody_listens_for_fails_tcp
    an_unknown_issuer_fails_tls
    a_proxy_that_refuses_fails_tcp
    a_server_that_is_down_is_told_without_a_network
    a_bundle_holds_no_secret_of_any_setting_or_state_file
}

/// What doctor said.
struct Said {
    exit: Exit,
    /// By check: result, text, fix.
    lines: BTreeMap<String, (String, String, String)>,
}

impl Said {
    fn of(exit: Exit) -> Self {
        let value: Value = serde_json::from_str(&exit.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", exit.stdout, exit.stderr()));
        let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let lines =
            value["checks"].as_array().unwrap().iter().map(|line| {
                (text(line, "check"), (text(line, "result"), text(line, "text"), text(line, "fix")))
            });
        let lines: BTreeMap<_, _> = lines.collect();
        assert_eq!(lines.len(), 15, "{}", exit.stdout);
        Self { exit, lines }
    }

    fn with(&self, result: &str) -> Vec<&str> {
        let those = self.lines.iter().filter(|(_, line)| line.0 == result);
        those.map(|(check, _)| check.as_str()).collect()
    }

    /// This check, and no other, failed, with these words; its fix has these.
    #[track_caller]
    fn failed(&self, check: &str, words: &str, fix: &str) -> &Self {
        let all = &self.exit.stdout;
        assert_eq!(self.with("failed"), [check], "{all}");
        let (_, text, told) = &self.lines[check];
        assert!(text.contains(words), "{text:?} has not {words:?}\n{all}");
        assert!(told.contains(fix), "{told:?} has not {fix:?}\n{all}");
        assert_eq!(self.exit.code, Some(1), "{all}");
        self
    }

    /// These were skipped because of that check, and no others were skipped.
    #[track_caller]
    fn skipped(&self, checks: &[&str], cause: &str) {
        let mut checks = checks.to_vec();
        checks.sort_unstable();
        assert_eq!(self.with("skipped"), checks, "{}", self.exit.stdout);
        for check in checks {
            assert_eq!(self.lines[check].1, format!("because of {cause}"));
        }
    }
}

/// Runs doctor with these further variables; one with an empty value is taken away.
fn doctor(lab: &Lab, arguments: &[&str], env: &[(&str, &str)]) -> Said {
    let words = [&["doctor", "--json"][..], arguments].concat();
    Said::of(run(lab, &words, env))
}

fn run(lab: &Lab, words: &[&str], env: &[(&str, &str)]) -> Exit {
    let mut command = lab.network.node(&lab.program, words);
    command.env("NODE_PORT", lab.network.local_api.port().to_string());
    for (name, value) in env {
        if value.is_empty() {
            command.env_remove(name);
        } else {
            command.env(name, value);
        }
    }
    NodeProcess::run(command, LONG).unwrap()
}

/// A registered node. What is the same whichever program runs it is tried with one of them.
fn lab() -> Lab {
    Lab::new(Shell::Blocking)
}

fn with(options: Options) -> Lab {
    Lab::registered(Shell::Blocking, options)
}

fn misbehaving(bad: Bad) -> Lab {
    with(Options { bad: Some(bad), ..Options::default() })
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

const AFTER_TCP: [&str; 6] = ["tls", "websocket", "handshake", "clock", "registration", "release"];
const AFTER_TLS: [&str; 5] = ["websocket", "handshake", "clock", "registration", "release"];

fn nothing_fails_where_nothing_is_wrong(shell: Shell) {
    let lab = Lab::registered(shell, Options { tls: true, ..Options::default() });
    chmod(&lab.network.home.state_dir().join("config.json"), 0o600);
    let said = doctor(&lab, &[], &[]);
    assert_eq!(said.exit.code, Some(0), "{}", said.exit.stdout);
    // There is no node and nobody to keep one; all else is in order, and looked at.
    assert_eq!(said.with("warning"), ["node", "supervisor"], "{}", said.exit.stdout);
    assert_eq!(said.with("skipped"), [""; 0], "{}", said.exit.stdout);
    assert!(said.lines["handshake"].1.contains(NODE_ID));
    // A handshake without a hello is no session.
    let records = lab.network.orchestrator.journal().since(0);
    assert!(records.iter().any(|(_, record)| matches!(record, Record::Init { .. })));
    assert!(!records.iter().any(|(_, record)| matches!(record, Record::Ready { .. })));
    // And for people.
    let exit = run(&lab, &["doctor"], &[]);
    assert_eq!(exit.code, Some(0), "{}", exit.stdout);
    assert!(exit.stdout.lines().any(|line| line.starts_with("ok       tls ")), "{}", exit.stdout);
    assert!(exit.stdout.contains("fix: `consensus-node"), "{}", exit.stdout);
}

fn a_running_node_keeps_its_session_and_the_handshake_is_skipped(shell: Shell) {
    let lab = Lab::new(shell);
    let listen = lab.network.local_api.to_string();
    let mut arguments = CONTROL.to_vec();
    arguments[0] = "run";
    let node = lab.start(&[&arguments[..], &["--listen", &listen]].concat());
    lab.ready(&node, 1);
    let said = doctor(&lab, &["--listen", &listen], &[]);
    assert_eq!(said.exit.code, Some(0), "{}", said.exit.stdout);
    assert_eq!(said.with("skipped"), ["handshake"], "{}", said.exit.stdout);
    assert!(said.lines["handshake"].1.contains("is connected"));
    assert!(said.lines["node"].1.contains(&format!("process {}", node.pid())), "{:?}", said.lines["node"]);
    assert!(said.lines["registration"].1.contains("online"));
    lab.assert_serves();
    let records = lab.network.orchestrator.journal().since(0);
    assert!(!records.iter().any(|(_, record)| matches!(record, Record::Ended { connection: 1, .. })));
    stop(node);
}

#[test]
fn a_control_process_without_a_local_api_is_left_alone_too() {
    let lab = lab();
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let said = doctor(&lab, &[], &[]);
    assert_eq!(said.exit.code, Some(0), "{}", said.exit.stdout);
    assert_eq!(said.with("skipped"), ["handshake"], "{}", said.exit.stdout);
    lab.assert_serves();
    stop(node);
}

#[test]
fn a_missing_server_fails_settings() {
    let said = doctor(&lab(), &[], &[("CONSENSUS_SERVER_URL", "")]);
    said.failed("settings", "--server", "config show")
        .skipped(&[&["dns", "tcp"][..], &AFTER_TCP].concat(), "settings");
}

#[test]
fn a_wrong_variable_fails_settings_and_the_rest_is_looked_at() {
    let said = doctor(&lab(), &[], &[("CONSENSUS_MAX_REQUESTS", "many")]);
    said.failed("settings", "CONSENSUS_MAX_REQUESTS", "config show").skipped(&[], "");
}

#[test]
fn a_wrong_name_in_the_settings_file_fails_settings() {
    let lab = lab();
    write_secret(&lab.network.home.state_dir().join("config.toml"), "max_requests = 1\n").unwrap();
    let said = doctor(&lab, &[], &[]);
    said.failed("settings", "is max-requests meant?", "config show");
}

#[test]
fn a_settings_file_whose_secret_others_can_read_fails_settings() {
    let lab = lab();
    let path = lab.network.home.state_dir().join("config.toml");
    write_secret(&path, "email-verification-token = \"s3cret\"\n").unwrap();
    chmod(&path, 0o644);
    doctor(&lab, &[], &[]).failed("settings", "chmod 0600", "");
}

#[test]
fn a_proxy_that_is_not_spoken_to_fails_settings() {
    let said = doctor(&lab(), &[], &[("ALL_PROXY", "socks5://127.0.0.1:1080")]);
    said.failed("settings", "SOCKS", "config show");
}

#[test]
fn a_file_without_certificates_fails_settings() {
    let lab = lab();
    let path = lab.network.home.root().join("empty.pem");
    fs::write(&path, "nothing").unwrap();
    doctor(&lab, &["--ca", path.to_str().unwrap()], &[]).failed("settings", "holds no certificate", "");
}

#[test]
fn a_state_directory_that_others_can_write_to_fails_files() {
    let lab = lab();
    chmod(&lab.network.home.state_dir(), 0o777);
    doctor(&lab, &[], &[]).failed("files", "mode 0777", "chmod 0700").skipped(&[], "");
}

#[test]
fn a_key_that_others_can_read_fails_files_and_is_left_as_it_is() {
    let lab = lab();
    let key = lab.network.home.state_dir().join("keys/node.key");
    chmod(&key, 0o644);
    doctor(&lab, &[], &[]).failed("files", "node.key: mode 0644", "chmod 0600").skipped(&[], "");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_damaged_registration_fails_files() {
    let lab = lab();
    write_secret(&lab.network.home.state_dir().join("config.json"), "{\"node_id\":").unwrap();
    let said = doctor(&lab, &[], &[]);
    said.failed("files", "config.json", "backup").skipped(&["registration"], "files");
}

#[test]
fn a_damaged_release_manifest_fails_files() {
    let lab = lab();
    fs::write(lab.network.home.state_dir().join("release-manifest.json"), "[]").unwrap();
    let said = doctor(&lab, &[], &[]);
    said.failed("files", "release-manifest.json", "backup");
}

#[test]
fn damaged_files_that_are_made_good_by_themselves_are_named_with_how() {
    let lab = lab();
    for (name, words) in [
        ("spent-tickets.json", "leave spent-tickets.json where it is"),
        ("setup-progress.json", "sets setup-progress.json aside"),
    ] {
        let path = lab.network.home.state_dir().join(name);
        write_secret(&path, "{\"version\":").unwrap();
        let said = doctor(&lab, &[], &[]);
        let (result, text, fix) = &said.lines["files"];
        assert_eq!((result.as_str(), said.exit.code), ("warning", Some(0)), "{}", said.exit.stdout);
        assert!(text.contains(name) && fix.contains(words), "{}", said.exit.stdout);
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_machine_with_another_node_fails_files() {
    let lab = lab();
    let registry = lab.network.home.root().join("machine");
    fs::create_dir_all(&registry).unwrap();
    let record = json!({ "machine_id": "0b0e7a52-3a6c-4a6e-9f0e-6f6d8e2b7a11", "state_dir": "/elsewhere",
        "node_id": "ffffffffffff", "created_at": 1, "updated_at": 1 });
    fs::write(registry.join("machine.json"), record.to_string()).unwrap();
    doctor(&lab, &[], &[])
        .failed("files", "/elsewhere", "machine.json, if that node is gone for good")
        .skipped(&[], "");
}

#[test]
fn a_damaged_key_fails_identity() {
    let lab = lab();
    write_secret(&lab.network.home.state_dir().join("keys/node.key"), "no key").unwrap();
    doctor(&lab, &[], &[]).failed("identity", "node.key", "backup").skipped(&["handshake"], "identity");
}

#[test]
fn a_missing_key_of_a_registered_node_fails_identity_and_none_is_made() {
    let lab = lab();
    let key = lab.network.home.state_dir().join("keys/node.key");
    fs::remove_file(&key).unwrap();
    let said = doctor(&lab, &[], &[]);
    said.failed("identity", NODE_ID, "backup").skipped(&["handshake"], "identity");
    assert!(!key.exists());
}

#[test]
fn the_public_half_of_another_key_fails_identity() {
    let lab = lab();
    let path = lab.network.home.state_dir().join("keys/node.pub");
    fs::write(&path, consensus_core::crypto::pem::encode_public(&[9; 32])).unwrap();
    doctor(&lab, &[], &[])
        .failed("identity", "not the public half", "move keys/node.pub away")
        .skipped(&[], "");
}

#[test]
fn a_name_that_does_not_resolve_fails_dns() {
    let said = doctor(&lab(), &["--server", "http://no-such-network.invalid"], &[]);
    said.failed("dns", "no-such-network.invalid", "DNS").skipped(&[&["tcp"][..], &AFTER_TCP].concat(), "dns");
}

fn a_server_that_nobody_listens_for_fails_tcp(shell: Shell) {
    let lab = Lab::new(shell);
    let url = format!("http://{}", free_address().unwrap());
    doctor(&lab, &["--server", &url], &[]).failed("tcp", "refused", "firewall").skipped(&AFTER_TCP, "tcp");
}

fn a_server_that_is_down_is_told_without_a_network(shell: Shell) {
    // It takes connections into its queue, and nobody ever answers.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let said = doctor(&Lab::new(shell), &["--server", &url], &[]);
    said.failed("tls", "in time", "clock").skipped(&AFTER_TLS, "tls");
}

fn a_proxy_that_refuses_fails_tcp(shell: Shell) {
    let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
    let proxy = ConnectProxy::start(Manner::Answer(answer.to_owned())).unwrap();
    let said = doctor(&Lab::new(shell), &[], &[("HTTP_PROXY", &format!("http://{}", proxy.address()))]);
    said.failed("tcp", "403", "HTTP_PROXY").skipped(&AFTER_TCP, "tcp");
    assert!(said.lines["dns"].1.contains("address"));
}

#[test]
fn a_proxy_that_makes_tunnels_is_gone_through() {
    let proxy = ConnectProxy::start(Manner::Tunnel(BTreeMap::new())).unwrap();
    let said = doctor(&lab(), &[], &[("HTTP_PROXY", &format!("http://{}", proxy.address()))]);
    assert_eq!((said.exit.code, said.with("skipped").len()), (Some(0), 0), "{}", said.exit.stdout);
    assert!(said.lines["tcp"].1.contains("through the proxy"), "{:?}", said.lines["tcp"]);
    // The tunnel, and the HTTP interface.
    assert!(proxy.heads().len() >= 2);
}

fn with_certificate(names: &[&str], cert_dates: Option<CertDates>) -> Lab {
    let cert_name = names.iter().map(|name| (*name).to_owned()).collect();
    with(Options { tls: true, cert_name, cert_dates, ..Options::default() })
}

#[test]
fn an_expired_certificate_fails_tls() {
    let said = doctor(&with_certificate(&[], Some(CertDates::Expired)), &[], &[]);
    said.failed("tls", "has expired", "renew the certificate").skipped(&AFTER_TLS, "tls");
}

#[test]
fn a_certificate_that_runs_out_within_days_is_a_warning() {
    let said = doctor(&with_certificate(&[], Some(CertDates::Soon)), &[], &[]);
    let (result, text) = (&said.lines["tls"].0, &said.lines["tls"].1);
    assert!(result == "warning" && text.contains("runs out at 20"), "{result} {text}");
    assert_eq!(said.exit.code, Some(0), "{}", said.exit.stdout);
    let said = doctor(&with_certificate(&[], None), &[], &[]);
    assert_eq!(said.lines["tls"].0, "ok", "{}", said.exit.stdout);
}

#[test]
fn a_certificate_that_is_not_valid_yet_fails_tls() {
    let said = doctor(&with_certificate(&[], Some(CertDates::Future)), &[], &[]);
    said.failed("tls", "not valid yet", "set this machine's clock").skipped(&AFTER_TLS, "tls");
}

#[test]
fn a_certificate_for_another_name_fails_tls() {
    let said = doctor(&with_certificate(&["orchestrator.example.org"], None), &[], &[]);
    said.failed("tls", "for another name", "by a name that its certificate has").skipped(&AFTER_TLS, "tls");
}

fn an_unknown_issuer_fails_tls(shell: Shell) {
    let lab = Lab::registered(shell, Options { tls: true, ..Options::default() });
    let said = doctor(&lab, &[], &[("CONSENSUS_CA_FILE", "")]);
    said.failed("tls", "issuer", "--ca FILE").skipped(&AFTER_TLS, "tls");
}

#[test]
fn a_server_without_tls_where_it_is_expected_fails_tls() {
    let lab = lab();
    let url = lab.network.orchestrator.url().replace("http://", "https://");
    doctor(&lab, &["--server", &url], &[])
        .failed("tls", "not TLS", "scheme and port")
        .skipped(&AFTER_TLS, "tls");
}

#[test]
fn a_path_without_a_tunnel_fails_the_websocket() {
    let lab = lab();
    let url = format!("{}/elsewhere", lab.network.orchestrator.url().replace("http://", "ws://"));
    let said = doctor(&lab, &["--tunnel-url", &url], &[]);
    said.failed("websocket", "404", "server URL").skipped(&["handshake"], "websocket");
}

#[test]
fn a_server_that_does_not_upgrade_fails_the_websocket() {
    let said = doctor(&misbehaving(Bad::Stall), &[], &[]);
    said.failed("websocket", "in time", "Consensus server").skipped(&["handshake"], "websocket");
}

#[test]
fn another_key_than_the_pinned_one_fails_the_handshake() {
    let said = doctor(&lab(), &["--server-key", &base64::encode_url(&[9; 32])], &[]);
    said.failed("handshake", "pinned", "find out").skipped(&[], "");
}

#[test]
fn a_server_that_rejects_the_node_fails_the_handshake() {
    let said = doctor(&misbehaving(Bad::Reject(String::from("banned"))), &[], &[]);
    said.failed("handshake", "banned", "registered with this very server").skipped(&[], "");
}

#[test]
fn a_server_that_does_not_answer_the_handshake_fails_it() {
    doctor(&misbehaving(Bad::NoAccept), &[], &[]).failed("handshake", "in time", "").skipped(&[], "");
}

/// A server's HTTP interface that answers everything so, at this time.
fn http(date: &'static str, status: &'static str, body: String) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let is_latest = head.starts_with(b"GET /update/latest");
            let (status, body) = if is_latest { ("404 Not Found", "{}") } else { (status, body.as_str()) };
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\ndate: {date}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    url
}

#[test]
fn a_clock_that_is_off_fails_clock() {
    let lab = lab();
    let tunnel = lab.network.orchestrator.url().replace("http://", "ws://");
    let url = http("Thu, 01 Jan 1970 00:00:00 GMT", "200 OK", json!({ "status": "offline" }).to_string());
    let said = doctor(&lab, &["--server", &url, "--tunnel-url", &tunnel], &[]);
    said.failed("clock", "ahead of the server's", "NTP").skipped(&[], "");
}

#[test]
fn a_network_that_does_not_know_the_node_fails_registration() {
    let lab = lab();
    let tunnel = lab.network.orchestrator.url().replace("http://", "ws://");
    let body = json!({ "error": "node_not_found" }).to_string();
    let url = http("", "404 Not Found", body);
    let said = doctor(&lab, &["--server", &url, "--tunnel-url", &tunnel], &[]);
    said.failed("registration", "does not know node", "setup").skipped(&[], "");
}

#[test]
fn a_node_that_never_registered_fails_registration() {
    let lab = Lab::with(Shell::Blocking, Options::default());
    let said = doctor(&lab, &[], &[]);
    said.failed("registration", "no node is registered", "setup").skipped(&["handshake"], "identity");
    assert!(!lab.network.home.state_dir().exists(), "nothing is made");
}

#[test]
fn another_release_than_the_required_one_fails_release() {
    let lab = lab();
    let url = format!("{}/admin/manifest", lab.network.orchestrator.url());
    let body = json!({ "manifest": release::manifest("9.9.9"), "required": true });
    let set =
        client::send(http_types::Method::Post, &url, Some(&body), &[("x-admin-key", "admin")], None).unwrap();
    assert_eq!(set.status, 200);
    doctor(&lab, &[], &[]).failed("release", "9.9.9", "update --download").skipped(&[], "");
}

#[test]
fn a_program_at_the_local_apis_address_fails_node() {
    let lab = lab();
    let url = http("", "200 OK", String::from("hello"));
    let listen = url.strip_prefix("http://").unwrap();
    doctor(&lab, &["--listen", listen], &[]).failed("node", listen, "--listen").skipped(&[], "");
}

/// A lab with a service of systemd, which says what that script writes; and its path.
fn supervised(script: &str) -> (Lab, String) {
    let lab = lab();
    let root = lab.network.home.root();
    let unit = root.join(".config/systemd/user/consensus-node.service");
    fs::create_dir_all(unit.parent().unwrap()).unwrap();
    fs::write(&unit, "[Service]\n").unwrap();
    let bin = root.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("systemctl"), format!("#!/bin/sh\n{script}\n")).unwrap();
    chmod(&bin.join("systemctl"), 0o755);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    (lab, path)
}

#[test]
fn a_service_that_does_not_run_fails_supervisor() {
    let (lab, path) = supervised("echo LoadState=loaded; echo ActiveState=failed; echo SubState=failed");
    let said = doctor(&lab, &[], &[("PATH", &path)]);
    said.failed("supervisor", "failed (failed)", "systemctl --user start").skipped(&[], "");
}

#[test]
fn a_supervisor_that_does_not_answer_is_not_waited_for() {
    let (lab, path) = supervised("exec cat \"$HOME/never\"");
    let pipe = lab.network.home.root().join("never");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let said = doctor(&lab, &[], &[("PATH", &path)]);
    assert_eq!(said.exit.code, Some(0), "{}", said.exit.stdout);
    let (result, text, _) = &said.lines["supervisor"];
    assert_eq!((result.as_str(), text.as_str()), ("warning", "the supervisor does not answer in time"));
    // What was asked still waits; this lets it end.
    drop(fs::OpenOptions::new().write(true).open(&pipe).unwrap());
}

/// The files of a bundle.
fn unpacked(path: &Path) -> Vec<(String, Vec<u8>)> {
    let data = fs::read(path).unwrap();
    // A header without flags, and a trailer.
    let tar = miniz_oxide::inflate::decompress_to_vec(&data[10..data.len() - 8]).unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    let read = |mut entry: tar::Entry<'_, &[u8]>| {
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_string_lossy().into_owned(), content)
    };
    archive.entries().unwrap().map(|entry| read(entry.unwrap())).collect()
}

/// What others say goes into a bundle, and may hold a secret that they were told.
#[test]
fn a_bundle_holds_no_secret_that_a_server_or_a_local_api_says_back() {
    const SECRET: &str = "s3cret-echoed";
    let lab = misbehaving(Bad::Reject(String::from(SECRET)));
    let said = json!({ "tunnel": "connecting", "told": [SECRET, "op@mail.example"], "kept": "uptime" });
    let api = http("", "200 OK", said.to_string());
    let listen = api.strip_prefix("http://").unwrap();
    let bundle = lab.network.home.root().join("bundle.tar.gz");
    let words = ["doctor", "--listen", listen, "--bundle", bundle.to_str().unwrap()];
    let exit = run(&lab, &words, &[("CONSENSUS_CANDIDATE_ID", SECRET)]);
    assert!(exit.stdout.contains(SECRET), "the operator sees it: {}", exit.stdout);
    let files = unpacked(&bundle);
    let all: String = files.iter().map(|(_, content)| String::from_utf8_lossy(content)).collect();
    assert!(!all.contains(SECRET) && !all.contains("mail.example"), "{all}");
    assert!(all.contains("rejected the handshake: (not shown)") && all.contains("uptime"), "{all}");
}

fn a_bundle_holds_no_secret_of_any_setting_or_state_file(shell: Shell) {
    let lab = Lab::registered(shell, Options { tls: true, ..Options::default() });
    let state = lab.network.home.state_dir();
    let mut secrets: Vec<String> = Vec::new();
    let mut secret = |name: &str| {
        let text = format!("s3cret-{name}-{}", secrets.len());
        secrets.push(text.clone());
        text
    };
    // Settings: as options, variables and in the file, right ones and wrong ones.
    let token = secret("token");
    let toml =
        format!("email-verification-token = \"{token}\"\nemail = \"{}@mail.example\"\n", secret("mail"));
    write_secret(&state.join("config.toml"), &toml).unwrap();
    let proxy = format!("http://{}:{}@127.0.0.1:9", secret("user"), secret("password"));
    let wrong_server = format!("https://op:{}@127.0.0.1", secret("server"));
    let env = [
        ("CONSENSUS_NODE_CONTACT", format!("{}@mail.example", secret("contact"))),
        ("CONSENSUS_NODE_UPDATE_COMMAND", format!("curl -H 'Authorization: Bearer {}' x", secret("bearer"))),
        ("CONSENSUS_CANDIDATE_ID", secret("candidate")),
        ("CONSENSUS_MACHINE_ID", secret("machine")),
        ("CONSENSUS_EVM_ADDRESS", secret("evm")),
        ("CONSENSUS_SERVER_KEY", secret("pin")),
        ("CONSENSUS_RELEASE_SIGNATURE", secret("signature")),
        ("CONSENSUS_ADDRESS_SERVICES", format!("https://ip.example/?k={}", secret("service"))),
        ("CONSENSUS_MAX_REQUESTS", secret("misplaced")),
        ("HTTPS_PROXY", proxy),
    ];
    // State files: their secrets, and secrets where nobody has looked for any.
    let mut config: Value = serde_json::from_slice(&fs::read(state.join("config.json")).unwrap()).unwrap();
    config["machine_id"] = secret("machine-id").into();
    config["kept"] = json!({ "authorisation": [secret("authorisation")] });
    write_secret(&state.join("config.json"), &config.to_string()).unwrap();
    let auth = json!({ "join_id": secret("join"), "alg": "ed25519", "nonce": secret("nonce"),
        "signature": secret("join-signature"), "expires_at": secret("when") });
    write_secret(&state.join("join-auth.json"), &auth.to_string()).unwrap();
    let progress = json!({ "email": secret("progress"), "token": secret("progress-token") });
    write_secret(&state.join("setup-progress.json"), &progress.to_string()).unwrap();
    fs::write(state.join("spent-tickets.json"), json!([secret("ticket")]).to_string()).unwrap();
    let manifest = json!({ "product": secret("product") });
    fs::write(state.join("release-manifest.json"), manifest.to_string()).unwrap();
    let registry = lab.network.home.root().join("machine");
    fs::create_dir_all(&registry).unwrap();
    fs::write(registry.join("machine.json"), json!({ "machine_id": secret("registry") }).to_string())
        .unwrap();
    let key = fs::read_to_string(state.join("keys/node.key")).unwrap();
    secrets.push(key.lines().nth(1).unwrap().to_owned());
    let public = fs::read_to_string(state.join("keys/node.pub")).unwrap();
    secrets.push(public.lines().nth(1).unwrap().to_owned());

    let bundle = lab.network.home.root().join("bundle.tar.gz");
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let words = ["doctor", "--bundle", bundle.to_str().unwrap()];
    for further in [&[][..], &["--server", &wrong_server]] {
        let _ = fs::remove_file(&bundle);
        let exit = run(&lab, &[&words[..], further].concat(), &env);
        assert_eq!(exit.code, Some(1), "{}", exit.stderr());
        assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o7777, 0o600);
        let files = unpacked(&bundle);
        let names: Vec<&str> = files.iter().map(|(name, _)| name.strip_prefix("doctor/").unwrap()).collect();
        let expected =
            ["doctor.txt", "doctor.json", "settings.json", "files.json", "local-api.json", "version.json"];
        assert_eq!(names, expected);
        for (name, content) in &files {
            let text = String::from_utf8(content.clone()).unwrap();
            for secret in &secrets {
                assert!(!text.contains(secret.as_str()), "{name} has {secret}:\n{text}");
            }
            assert!(!text.contains("mail.example"), "{name}:\n{text}");
        }
        // What is to be in it is, and it is said what is.
        let all: String = files.iter().map(|(_, content)| String::from_utf8_lossy(content)).collect();
        for part in ["settings", "keys/node.key", "\"0600\"", "max-streams", "consensus-node"] {
            assert!(all.contains(part), "{part}");
        }
        for name in expected {
            assert!(exit.stdout.contains(&format!("  {name}\n")), "{}", exit.stdout);
        }
    }
    // One that is there is not written over.
    let before = fs::read(&bundle).unwrap();
    let exit = run(&lab, &words, &env);
    assert_eq!(exit.code, Some(70), "{}", exit.stdout);
    assert!(exit.stderr().contains("not written over"), "{}", exit.stderr());
    assert_eq!(fs::read(&bundle).unwrap(), before);
}
