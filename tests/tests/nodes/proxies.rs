//! Nodes whose way out is a proxy: what goes through it, what never does, and what is said of one that is in the way.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use consensus_core::tunnel::Mode;
use consensus_testbed::binaries::Shell;
use consensus_testbed::connect_proxy::{ConnectProxy, Manner};
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, NodeProcess, free_address};
use consensus_testbed::release;

use crate::exit_codes::register_arguments;
use crate::lab::{CONTROL, LONG, Lab, disconnected, stop, with_both_shells};

with_both_shells! {
    all_of_the_nodes_own_goes_through_a_proxy_and_nothing_of_others
    a_proxy_of_debian_lets_a_node_through_that_has_its_password
    a_proxy_that_refuses_is_told_with_its_words_and_what_to_do
    a_proxy_that_is_not_there_is_told_as_such
    what_no_proxy_names_goes_direct
    a_proxy_that_cannot_be_used_is_a_usage_error
}

/// A name that this machine cannot look up: only the proxy knows it.
const NAME: &str = "orchestrator.invalid";

/// A password that no line of a log may have.
const PASSWORD: &str = "s3cret";

fn run(lab: &Lab, arguments: &[&str], env: &[(&str, &str)]) -> Exit {
    let mut command = lab.network.node(&lab.program, arguments);
    command.envs(env.iter().copied());
    let exit = NodeProcess::run(command, LONG).unwrap();
    assert!(!exit.stderr().contains(PASSWORD), "{}", exit.stderr());
    exit
}

/// Waits for a control session.
fn ready(lab: &Lab, node: &NodeProcess) {
    lab.record(node, 0, "a control session", |record| {
        matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
    });
}

#[track_caller]
fn done(exit: &Exit) {
    assert_eq!(exit.code, Some(0), "{}{}", exit.stdout, exit.stderr());
}

fn all_of_the_nodes_own_goes_through_a_proxy_and_nothing_of_others(shell: Shell) {
    let options =
        Options { tls: true, cert_name: vec![NAME.to_owned(), "localhost".to_owned()], ..Options::default() };
    let lab = Lab::with(shell, options);
    let address = lab.network.orchestrator.address();
    let proxy = ConnectProxy::start(Manner::Tunnel([(NAME.to_owned(), address)].into())).unwrap();
    let url = format!("https://{NAME}:{}", address.port());
    let variable = format!("http://op:{PASSWORD}@{}", proxy.address());
    // A proxy for http is set as well: nothing of others may go there.
    let env = [("CONSENSUS_SERVER_URL", &*url), ("HTTPS_PROXY", &*variable), ("http_proxy", &*variable)];

    lab.network.admit_node().unwrap();
    done(&run(&lab, &register_arguments(&[]), &env));
    let registered = proxy.heads().len();
    assert!(registered > 0);
    done(&run(&lab, &["verify"], &env));
    let manifest = release::manifest("9.9.9");
    let tarball = release::tarball(&manifest, b"#!/bin/sh\n").unwrap();
    let _ = lab.network.orchestrator.publish_release(manifest, tarball);
    let exit = run(&lab, &["update", "--download", "--allow-private-targets"], &env);
    done(&exit);

    let mut command = lab.network.node(&lab.program, CONTROL);
    command.envs(env);
    let before = proxy.heads().len();
    let node = NodeProcess::spawn(command).unwrap();
    ready(&lab, &node);
    assert_eq!(proxy.heads().len(), before + 1, "the tunnel");
    // What the network has fetched: though strangers may reach private addresses here, it goes direct.
    let id = lab.network.orchestrator.attached().remove(0);
    let target = lab.network.upstream.url("/b/1000");
    let request = serde_json::json!({ "target_url": target, "method": "GET" });
    let answer = lab.network.post(&format!("/node/tunnel/proxy/{id}"), &request).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    stop(node);
    for head in proxy.heads() {
        assert!(head.starts_with(&format!("CONNECT {NAME}:{} HTTP/1.1\r\n", address.port())), "{head}");
        assert!(head.contains("\r\nProxy-Authorization: Basic b3A6czNjcmV0\r\n"), "{head}");
    }
    assert_eq!(proxy.heads().len(), before + 1, "nothing of others");
}

/// Debian's tinyproxy, with a user and a password; ended when it is dropped.
struct Tinyproxy {
    process: Child,
    address: SocketAddr,
}

impl Tinyproxy {
    fn start(folder: &Path) -> Option<Self> {
        let address = free_address().unwrap();
        let config = folder.join("tinyproxy.conf");
        let (ip, port) = (address.ip(), address.port());
        let text = format!("Port {port}\nListen {ip}\nAllow {ip}\nLogLevel Info\nBasicAuth op {PASSWORD}\n");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("tinyproxy");
        command
            .args(["-d", "-c"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = command.spawn().ok()?;
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("Accepting connections")),
            "tinyproxy does not come up"
        );
        // It goes on to say things, and must not wait for somebody to read them.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Some(Self { process, address })
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn a_proxy_of_debian_lets_a_node_through_that_has_its_password(shell: Shell) {
    let lab = Lab::with(shell, Options::default());
    let Some(proxy) = Tinyproxy::start(lab.network.home.root()) else {
        let _ = writeln!(std::io::stderr(), "\nskipped: tinyproxy is not installed");
        return;
    };
    let right = format!("http://op:{PASSWORD}@{}", proxy.address);
    let (none, wrong) = (format!("http://{}", proxy.address), format!("http://op:wrong@{}", proxy.address));
    lab.network.admit_node().unwrap();
    for (variable, advice) in [(&none, "USER:PASSWORD"), (&wrong, "does not take the user name and password")]
    {
        let exit = run(&lab, &register_arguments(&[]), &[("HTTP_PROXY", variable)]);
        assert_eq!(exit.code, Some(69), "{}", exit.stderr());
        let said = exit.stderr();
        // tinyproxy's own answer to a wrong password is 401.
        assert!(said.contains(" 407 ") || said.contains(" 401 Unauthorized"), "{said}");
        assert!(said.contains(advice), "{said}");
    }
    let env = [("HTTP_PROXY", &*right)];
    done(&run(&lab, &register_arguments(&[]), &env));
    let mut command = lab.network.node(&lab.program, CONTROL);
    command.envs(env);
    let node = NodeProcess::spawn(command).unwrap();
    ready(&lab, &node);
    assert_eq!(lab.network.orchestrator.attached().len(), 1);
    stop(node);
}

fn a_proxy_that_refuses_is_told_with_its_words_and_what_to_do(shell: Shell) {
    let lab = Lab::new(shell);
    for (answer, words, advice) in [
        ("HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\n\r\n", "407 Who are you", "USER:PASSWORD"),
        ("HTTP/1.0 403 Filtered\r\nContent-Length: 2\r\n\r\nno", "403 Filtered", "NO_PROXY"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 Bad Gateway", "try later"),
        ("220 mail.example ESMTP\r\n", "does not answer in HTTP", "ALL_PROXY"),
        ("", "closes the connection", "ALL_PROXY"),
    ] {
        let proxy = ConnectProxy::start(Manner::Answer(answer.to_owned())).unwrap();
        let variable = format!("http://{}", proxy.address());
        let env = [("ALL_PROXY", &*variable)];
        let exit = run(&lab, &["verify"], &env);
        let said = exit.stderr();
        assert_eq!(exit.code, Some(69), "{said}");
        assert!(
            said.contains(words) && said.contains(advice) && said.contains(&proxy.address().to_string()),
            "{said}"
        );

        let mut command = lab.network.node(&lab.program, CONTROL);
        command.envs(env);
        let mut node = NodeProcess::spawn(command).unwrap();
        let line = disconnected(&node, 0, words);
        assert!(line.text.contains("proxy") && line.text.contains(advice), "{}", line.text);
        assert!(node.is_running(), "it tries again");
        assert_eq!(lab.connections(), 0);
    }
}

fn a_proxy_that_is_not_there_is_told_as_such(shell: Shell) {
    let lab = Lab::new(shell);
    let nobody = format!("http://{}", free_address().unwrap());
    let exit = run(&lab, &["verify"], &[("HTTP_PROXY", &nobody)]);
    assert_eq!(exit.code, Some(69), "{}", exit.stderr());
    assert!(exit.stderr().contains("the proxy cannot be reached"), "{}", exit.stderr());
    assert!(exit.stderr().contains("HTTP_PROXY"), "{}", exit.stderr());
}

fn what_no_proxy_names_goes_direct(shell: Shell) {
    let lab = Lab::new(shell);
    let nobody = format!("http://{}", free_address().unwrap());
    for list in ["127.0.0.0/8", "*", "example.org, 127.0.0.1"] {
        done(&run(&lab, &["verify"], &[("HTTP_PROXY", &*nobody), ("NO_PROXY", list)]));
    }
    let exit = run(&lab, &["verify"], &[("HTTP_PROXY", &*nobody), ("no_proxy", "127.0.0.1:1,<local>")]);
    assert_eq!(exit.code, Some(69), "{}", exit.stderr());
    assert!(exit.stderr().contains("<local>"), "what is passed over is told: {}", exit.stderr());
    // One for https is none for http.
    done(&run(&lab, &["verify"], &[("HTTPS_PROXY", &*nobody)]));
}

fn a_proxy_that_cannot_be_used_is_a_usage_error(shell: Shell) {
    let lab = Lab::new(shell);
    let value = format!("socks5://op:{PASSWORD}@127.0.0.1:1080");
    let exit = run(&lab, &["verify"], &[("ALL_PROXY", &*value)]);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
    assert!(exit.stderr().contains("ALL_PROXY") && exit.stderr().contains("SOCKS"), "{}", exit.stderr());
}
