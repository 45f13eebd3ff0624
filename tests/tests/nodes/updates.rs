//! Updates that the network directs: a real node, a real artifact, a real install directory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::release::manifest::Manifest;
use consensus_core::release::signature::sign;
use consensus_core::wire::hex;
use consensus_testbed::binaries::Shell;
use consensus_testbed::client;
use consensus_testbed::network::NODE_ID;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;
use consensus_testbed::release;
use serde_json::{Value, json};

use crate::lab::{CONTROL, LONG, Lab, disconnected, line, stop, with_both_shells};

with_both_shells! {
    a_directed_update_is_prepared_installed_and_ends_the_node_with_0
    what_the_node_cannot_install_is_refused_with_the_reason
    with_a_pinned_key_only_signed_releases_are_prepared
    an_operators_own_command_installs_what_it_likes
    a_command_that_fails_leaves_the_node_serving
    a_second_prepare_takes_the_place_of_one_that_hangs
    what_was_prepared_outlives_the_server
    a_running_request_ends_before_the_update_and_a_new_one_is_refused
    a_release_on_probation_is_confirmed_when_the_network_answers
    a_rollback_is_told_to_the_network_once
    under_the_wrapper_the_new_release_takes_over_and_stays
    under_the_wrapper_a_release_that_does_not_work_is_given_up_and_the_network_is_told
}

/// The release that the lab's node is of.
pub(crate) const OWN: &str = "0.1.0-1-1";

/// A node that runs from an install directory.
pub(crate) struct Installed {
    pub(crate) lab: Lab,
    pub(crate) dir: PathBuf,
}

impl Installed {
    pub(crate) fn new(shell: Shell) -> Self {
        let mut lab = Lab::new(shell);
        let dir = lab.network.home.root().join("runtime");
        let bin = dir.join("releases").join(OWN).join("bin");
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("consensus-node");
        // A copy only where the two are on different file systems.
        if fs::hard_link(&lab.program, &program).is_err() {
            fs::copy(&lab.program, &program).unwrap();
        }
        lab.program = program;
        let this = Self { lab, dir };
        this.point("current", OWN);
        this.point("last-good", OWN);
        this
    }

    pub(crate) fn point(&self, name: &str, id: &str) {
        let _ = fs::remove_file(self.dir.join(name));
        symlink(format!("releases/{id}"), self.dir.join(name)).unwrap();
    }

    pub(crate) fn target(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.join(name)).unwrap()
    }

    fn start(&self, arguments: &[&str], env: &[(&str, &str)]) -> NodeProcess {
        start(&self.lab, &self.dir, arguments, env)
    }
}

fn start(lab: &Lab, dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> NodeProcess {
    let mut command: Command = lab.network.node(&lab.program, arguments);
    command.env("CONSENSUS_NODE_INSTALL_DIR", dir).envs(env.iter().copied());
    NodeProcess::spawn(command).unwrap()
}

/// A release that does nothing, published.
pub(crate) fn publish(lab: &Lab, version: &str) -> Manifest {
    let manifest = release::manifest(version);
    let tarball = release::tarball(&manifest, format!("#!/bin/sh\n# {version}\n").as_bytes()).unwrap();
    lab.network.orchestrator.publish_release(manifest, tarball)
}

pub(crate) fn prepare(lab: &Lab, update_id: &str, manifest: Manifest) -> String {
    lab.network.orchestrator.prepare_update(NODE_ID, update_id, manifest).unwrap()
}

pub(crate) fn apply(lab: &Lab, update_id: &str, restart_after_ms: u64) -> String {
    lab.network.orchestrator.apply_update(NODE_ID, update_id, restart_after_ms).unwrap()
}

/// The node's answer to a request.
pub(crate) fn answer(lab: &Lab, node: &NodeProcess, id: &str) -> Value {
    let (_, message) = lab.record(node, 0, &format!("an answer to {id}"), |record| match record {
        Record::Message { message, .. } if message["reply_to"] == id => Some(message.clone()),
        _ => None,
    });
    message
}

pub(crate) fn assert_failed(answer: &Value, code: &str, words: &str) {
    assert_eq!((&answer["type"], &answer["code"]), (&json!("update_failed"), &json!(code)), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains(words), "{words}: {answer}");
}

fn a_directed_update_is_prepared_installed_and_ends_the_node_with_0(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let listen = lab.network.local_api.to_string();
    let node = installed.start(&["run", "--listen", &listen, "--allow-private-targets"], &[]);
    lab.ready(&node, 1);
    let unprepared = answer(lab, &node, &apply(lab, "u-1", 0));
    assert_failed(&unprepared, "update_not_prepared", "no update is prepared");

    let ready = answer(lab, &node, &prepare(lab, "u-1", publish(lab, "0.2.0")));
    assert_eq!(ready["type"], "update_ready", "{ready}");
    assert_eq!((&ready["update_id"], &ready["target_version"]), (&json!("u-1"), &json!("0.2.0")));
    assert_eq!(ready["current_version"], "0.1.0");
    let artifact = PathBuf::from(ready["artifact_path"].as_str().unwrap());
    assert!(artifact.starts_with(lab.network.home.state_dir().join("downloads")), "{}", artifact.display());
    assert_eq!(fs::metadata(&artifact).unwrap().permissions().mode() & 0o777, 0o600);
    let health = client::get(&format!("http://{listen}/health"), None).unwrap();
    assert_eq!(
        (&health.body["update"]["state"], &health.body["update"]["version"]),
        (&json!("prepared"), &json!("0.2.0"))
    );
    assert_eq!(installed.target("current"), installed.target("last-good"), "nothing is installed yet");

    let ack = answer(lab, &node, &apply(lab, "u-1", 10));
    assert_eq!(ack["type"], "ack");
    assert_eq!(lab.ended(&node, 1), (Some(1012), "node update apply requested".to_owned()));
    let exit = node.wait(LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    let current = installed.target("current");
    assert!(current.starts_with(installed.dir.canonicalize().unwrap().join("releases")));
    let program = fs::read_to_string(current.join("bin/consensus-node")).unwrap();
    assert!(program.contains("# 0.2.0"), "{program}");
    assert!(installed.target("last-good").ends_with(OWN), "the old release is there to come back to");
    // It was a clean stop: the next process takes tickets of any age.
    let spent = fs::read_to_string(lab.network.home.state_dir().join("spent-tickets.json")).unwrap();
    assert!(!spent.contains("serving"), "{spent}");
}

fn what_the_node_cannot_install_is_refused_with_the_reason(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let node = installed.start(&CONTROL, &[]);
    lab.ready(&node, 1);
    let good = publish(lab, "0.2.0");
    let npm = Manifest { artifact: "npm-tarball".into(), ..good.clone() };
    assert_failed(&answer(lab, &node, &prepare(lab, "u", npm)), "prepare_failed", "npm-tarball");
    let old = Manifest { version: "0.0.1".into(), ..good.clone() };
    assert_failed(&answer(lab, &node, &prepare(lab, "u", old)), "prepare_failed", "older");
    let gone = Manifest { download_url: Some(lab.network.upstream.url("/gone")), ..good.clone() };
    assert_failed(&answer(lab, &node, &prepare(lab, "u", gone)), "prepare_failed", "404");
    let tarball = release::pack(&[("README", 0o644, b"nothing")]).unwrap();
    let orchestrator = &lab.network.orchestrator;
    let empty = orchestrator.publish_release(release::manifest("0.2.1"), tarball);
    assert_failed(&answer(lab, &node, &prepare(lab, "u", empty)), "prepare_failed", "release-manifest.json");
    let inside = release::manifest("0.9.9");
    let tarball = release::tarball(&inside, b"#!/bin/sh\n").unwrap();
    let other = orchestrator.publish_release(release::manifest("0.2.2"), tarball);
    assert_failed(&answer(lab, &node, &prepare(lab, "u", other)), "prepare_failed", "0.9.9");
    lab.assert_serves();
    stop(node);

    // A program from elsewhere would be started again as what it is.
    let lab = Lab::new(shell);
    let node = start(&lab, &installed.dir, &CONTROL, &[]);
    lab.ready(&node, 1);
    let refused = answer(&lab, &node, &prepare(&lab, "u", publish(&lab, "0.2.0")));
    assert_failed(&refused, "prepare_failed", "install directory");
    stop(node);
}

fn with_a_pinned_key_only_signed_releases_are_prepared(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let key = Identity::from_seed(Pure, &[42; 32]);
    let pinned = hex::encode(key.public_key());
    let node = installed.start(&[&CONTROL[..], &["--release-key", &pinned]].concat(), &[]);
    lab.ready(&node, 1);
    let mut manifest = publish(lab, "0.2.0");
    assert_failed(&answer(lab, &node, &prepare(lab, "u", manifest.clone())), "prepare_failed", "not signed");
    manifest.set_expires(1);
    assert!(sign(&Pure, &key, &mut manifest));
    assert_failed(&answer(lab, &node, &prepare(lab, "u", manifest.clone())), "prepare_failed", "expired");
    manifest.set_expires(1 << 40);
    assert!(sign(&Pure, &key, &mut manifest));
    let ready = answer(lab, &node, &prepare(lab, "u", manifest));
    assert_eq!(ready["type"], "update_ready", "{ready}");
    stop(node);
}

fn an_operators_own_command_installs_what_it_likes(shell: Shell) {
    let lab = Lab::new(shell);
    let done = lab.network.home.root().join("done");
    let command = format!(
        "echo installing; cp \"$CONSENSUS_NODE_ARTIFACT_PATH\" {0}; \
         echo \"$CONSENSUS_NODE_UPDATE_ID $CONSENSUS_NODE_TARGET_VERSION\" > {0}.txt",
        done.display()
    );
    let node = lab.start(&[&CONTROL[..], &["--update-command", &command]].concat());
    lab.ready(&node, 1);
    let manifest = Manifest { artifact: "npm-tarball".into(), ..release::manifest("3.0.0") };
    let manifest = lab.network.orchestrator.publish_release(manifest, b"anything".to_vec());
    let ready = answer(&lab, &node, &prepare(&lab, "u-7", manifest));
    assert_eq!(ready["type"], "update_ready", "{ready}");
    answer(&lab, &node, &apply(&lab, "u-7", 0));
    assert_eq!(lab.ended(&node, 1).0, Some(1012));
    let exit = node.wait(LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert!(exit.stderr().contains("the update command says: installing"), "{}", exit.stderr());
    assert_eq!(fs::read(&done).unwrap(), b"anything");
    assert_eq!(fs::read_to_string(done.with_extension("txt")).unwrap(), "u-7 3.0.0\n");
}

fn a_command_that_fails_leaves_the_node_serving(shell: Shell) {
    let lab = Lab::new(shell);
    let dir = lab.network.home.root().join("runtime");
    let node = start(&lab, &dir, &CONTROL, &[("CONSENSUS_NODE_UPDATE_COMMAND", "echo no luck; exit 3")]);
    lab.ready(&node, 1);
    answer(&lab, &node, &prepare(&lab, "u", publish(&lab, "0.2.0")));
    let mark = lab.network.orchestrator.journal().mark();
    let id = apply(&lab, "u", 0);
    let (_, failed) = lab.record(&node, mark, "apply_failed", |record| match record {
        Record::Message { message, .. } if message["type"] == "update_failed" => Some(message.clone()),
        _ => None,
    });
    assert_eq!(failed["reply_to"], id.as_str());
    assert_failed(&failed, "apply_failed", "exit status: 3");
    assert!(!failed.to_string().contains("no luck"), "what it says is the operator's alone: {failed}");
    line(&node, 0, "what the command says", |line| line.text.contains("no luck"));
    lab.assert_serves();
    assert_eq!(lab.connections(), 1);
    stop(node);
}

fn a_second_prepare_takes_the_place_of_one_that_hangs(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let node = installed.start(&CONTROL, &[]);
    lab.ready(&node, 1);
    // Nobody ever accepts, and so nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut hanging = publish(lab, "0.2.0");
    hanging.download_url = Some(format!("http://{}/x.tgz", silent.local_addr().unwrap()));
    let first = prepare(lab, "u-1", hanging);
    line(&node, 0, "a download", |line| line.event() == "update_preparing");
    let second = prepare(lab, "u-2", publish(lab, "0.3.0"));
    assert_failed(&answer(lab, &node, &first), "prepare_failed", "taken its place");
    let ready = answer(lab, &node, &second);
    assert_eq!(ready["target_version"], "0.3.0", "{ready}");
    stop(node);
}

fn what_was_prepared_outlives_the_server(shell: Shell) {
    let mut installed = Installed::new(shell);
    let node = installed.start(&CONTROL, &[]);
    let manifest = publish(&installed.lab, "0.2.0");
    installed.lab.ready(&node, 1);
    answer(&installed.lab, &node, &prepare(&installed.lab, "u", manifest.clone()));
    let mark = node.mark();
    installed.lab.network.orchestrator.go_down();
    disconnected(&node, mark, "");
    installed.lab.network.orchestrator.come_back().unwrap();
    let lab = &installed.lab;
    lab.ready(&node, 2);
    // The answer comes without another download.
    let downloads = || {
        let records = lab.network.orchestrator.journal().since(0);
        let is_download = |record: &Record| match record {
            Record::Http { path, .. } => path.starts_with("/artifacts/"),
            _ => false,
        };
        records.iter().filter(|(_, record)| is_download(record)).count()
    };
    let before = downloads();
    assert_eq!(answer(lab, &node, &prepare(lab, "u", manifest))["type"], "update_ready");
    assert_eq!(downloads(), before);
    answer(lab, &node, &apply(lab, "u", 0));
    assert_eq!(lab.ended(&node, 2).0, Some(1012));
    assert_eq!(node.wait(LONG).unwrap().code, Some(0));
}

fn a_running_request_ends_before_the_update_and_a_new_one_is_refused(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let node = installed.start(&CONTROL, &[]);
    lab.ready(&node, 1);
    answer(lab, &node, &prepare(lab, "u", publish(lab, "0.2.0")));
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", target.local_addr().unwrap());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| lab.proxy(&json!({ "target_url": url })));
        let (mut stream, _) = target.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        assert_eq!(answer(lab, &node, &apply(lab, "u", 0))["type"], "ack");
        let refused = lab.proxy(&json!({ "target_url": lab.network.upstream.url("/b/1") }));
        assert_eq!((refused.status, &refused.body["error"]), (502, &json!("proxy_failed")));
        assert!(refused.body["message"].as_str().unwrap().contains("restarts"), "{}", refused.body);
        assert!(installed.target("current").ends_with(OWN), "not while a request runs");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlast").unwrap();
        let answer = running.join().unwrap();
        assert_eq!((answer.status, &answer.body["body"]), (200, &json!("bGFzdA==")), "{}", answer.body);
    });
    assert_eq!(lab.ended(&node, 1).0, Some(1012));
    assert_eq!(node.wait(LONG).unwrap().code, Some(0));
    assert!(!installed.target("current").ends_with(OWN));
}

fn a_release_on_probation_is_confirmed_when_the_network_answers(shell: Shell) {
    let mut installed = Installed::new(shell);
    let before = installed.dir.join("releases/0.0.9-1-1/bin");
    fs::create_dir_all(&before).unwrap();
    fs::write(before.join("consensus-node"), "#!/bin/sh\n").unwrap();
    installed.point("last-good", "0.0.9-1-1");
    installed.lab.network.orchestrator.go_down();
    let node = installed.start(&CONTROL, &[]);
    disconnected(&node, 0, "cannot be reached");
    assert!(installed.target("last-good").ends_with("0.0.9-1-1"), "to have started is not enough");
    installed.lab.network.orchestrator.come_back().unwrap();
    let confirmed = line(&node, 0, "a confirmation", |line| line.event() == "update_confirmed");
    assert!(confirmed.text.contains("0.1.0"), "{}", confirmed.text);
    assert!(installed.target("last-good").ends_with(OWN));
    stop(node);
}

fn a_rollback_is_told_to_the_network_once(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let failed = format!(
        "release=0.2.0-5-5\nreason=it did not reconnect\nversion=0.2.0\nsha256={}\nprobation=180\nupdate={}\n",
        "ab".repeat(32),
        hex::encode(b"u-9")
    );
    fs::write(installed.dir.join("rolled-back"), failed).unwrap();
    let failures = || {
        lab.messages().into_iter().filter(|message| message["type"] == "update_failed").collect::<Vec<_>>()
    };
    let node = installed.start(&CONTROL, &[]);
    lab.heartbeat(&node, 1);
    line(&node, 0, "the rollback", |line| line.event() == "update_rolled_back");
    // What came before the answer to this has been said.
    let asked = apply(lab, "u-9", 0);
    answer(lab, &node, &asked);
    let told = failures();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((&told[0]["update_id"], &told[0]["code"]), (&json!("u-9"), &json!("apply_failed")));
    assert!(told[0]["message"].as_str().unwrap().contains("did not reconnect"), "{}", told[0]);
    // Written down by the thread that writes files, in order: before the end of a clean stop.
    stop(node);
    let node = installed.start(&CONTROL, &[]);
    lab.heartbeat(&node, 2);
    answer(lab, &node, &apply(lab, "u-9", 0));
    assert_eq!(failures().len(), 3, "only the answer to the apply is new");
    stop(node);
}

/// A node under the wrapper, as a supervisor starts it.
pub(crate) fn start_wrapped(installed: &Installed, env: &[(&str, &str)]) -> NodeProcess {
    let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/run-node.sh");
    start_by(installed, &wrapper, &CONTROL, env)
}

pub(crate) fn start_by(
    installed: &Installed,
    program: &Path,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> NodeProcess {
    let mut command = installed.lab.network.node(program, arguments);
    command.env("CONSENSUS_NODE_INSTALL_DIR", &installed.dir).envs(env.iter().copied());
    NodeProcess::spawn(command).unwrap()
}

fn under_the_wrapper_the_new_release_takes_over_and_stays(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let manifest = release::manifest("0.2.0");
    let tarball = release::tarball(&manifest, &fs::read(&lab.program).unwrap()).unwrap();
    let manifest = lab.network.orchestrator.publish_release(manifest, tarball);
    let node = start_wrapped(&installed, &[]);
    lab.ready(&node, 1);
    let ready = answer(lab, &node, &prepare(lab, "u-1", manifest));
    assert_eq!(ready["type"], "update_ready", "{ready}");
    answer(lab, &node, &apply(lab, "u-1", 0));
    assert_eq!(lab.ended(&node, 1).0, Some(1012));
    lab.ready(&node, 2);
    line(&node, 0, "a confirmation", |line| line.event() == "update_confirmed");
    assert_eq!(installed.target("last-good"), installed.target("current"));
    assert!(!installed.target("current").ends_with(OWN));
    lab.assert_serves();
    stop(node);
}

fn under_the_wrapper_a_release_that_does_not_work_is_given_up_and_the_network_is_told(shell: Shell) {
    let installed = Installed::new(shell);
    let lab = &installed.lab;
    let manifest = release::manifest("0.2.0");
    let tarball = release::tarball(&manifest, b"#!/bin/sh\nexit 7\n").unwrap();
    let manifest = lab.network.orchestrator.publish_release(manifest, tarball);
    let node = start_wrapped(&installed, &[]);
    lab.ready(&node, 1);
    answer(lab, &node, &prepare(lab, "u-1", manifest.clone()));
    answer(lab, &node, &apply(lab, "u-1", 0));
    assert_eq!(lab.ended(&node, 1).0, Some(1012));
    lab.ready(&node, 2);
    let (_, failed) = lab.record(&node, 0, "the rollback", |record| match record {
        Record::Message { message, .. } if message["type"] == "update_failed" => Some(message.clone()),
        _ => None,
    });
    assert_failed(&failed, "apply_failed", "did not reconnect");
    assert_eq!(failed["update_id"], "u-1");
    assert!(installed.target("current").ends_with(OWN));
    lab.assert_serves();
    let again = answer(lab, &node, &prepare(lab, "u-2", manifest));
    assert_failed(&again, "prepare_failed", "not tried again");
    stop(node);
}
