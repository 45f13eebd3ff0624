//! A node under a real PM2: installed as a release, made a service, updated by the network, and taken away again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::tunnel::Mode;
use serde_json::json;
use shell_blocking::release::build::build;

use crate::binaries::{self, Shell};
use crate::network::{NODE_ID, Network};
use crate::orchestrator::Record;
use crate::process::{Exit, NodeProcess};
use crate::release;

/// Longer than anything here takes, however busy the machine is.
const LONG: Duration = Duration::from_secs(120);

/// How often is looked where nothing can be awaited.
const POLL: Duration = Duration::from_millis(100);

/// What PM2 calls the node.
const NAME: &str = "testbed-node";

/// In the environment of whoever starts the node. PM2 writes the environments of its apps into files.
const SECRET: (&str, &str) = ("CONSENSUS_EMAIL_VERIFICATION_TOKEN", "not-for-pm2");

/// Put a node under a real PM2, have the network update it, and see that the new release runs and PM2 counts one restart.
///
/// Example: cargo run --release -p consensus-testbed -- pm2 --pm2 node_modules/.bin/pm2
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "pm2")]
pub struct Pm2 {
    /// the program pm2
    #[argh(option)]
    pub pm2: PathBuf,

    /// which of the two programs: smol (default) or blocking
    #[argh(option, default = "Shell::Smol")]
    pub shell: Shell,
}

/// Runs it; `true` when all of it came as it should.
#[must_use]
pub fn run(options: &Pm2) -> bool {
    let result = Site::new(options).and_then(|site| {
        let result = site.course();
        // The daemon would stay; it is this site's alone.
        let _ = site.pm2(&["kill"]);
        result.map_err(|why| format!("{why}\n{}", site.story()))
    });
    if let Err(why) = &result {
        eprintln!("consensus-testbed: {why}");
    }
    result.is_ok()
}

struct Site {
    network: Network,
    program: PathBuf,
    dir: PathBuf,
    pm2: PathBuf,
}

impl Site {
    fn new(options: &Pm2) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("setting up: {error}");
        let program = binaries::build(options.shell).map_err(failed)?;
        let pm2 = fs::canonicalize(options.pm2.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        let network = Network::start(false).map_err(failed)?;
        network.register_node().map_err(failed)?;
        fs::create_dir_all(network.home.root().join("machine")).map_err(failed)?;
        // A blank, for every script on the way.
        let dir = network.home.root().join("run time");
        Ok(Self { network, program, dir, pm2 })
    }

    /// Any program, with the environment of an operator whose PM2 is this site's.
    fn run(&self, program: &Path, arguments: &[&str]) -> Result<Exit, String> {
        let mut command = self.network.node(program, arguments);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.pm2.display()))
            .env("PM2_HOME", self.network.home.root().join("pm2"))
            .env("CONSENSUS_NODE_INSTALL_DIR", &self.dir)
            .env("CONSENSUS_PM2_NAME", NAME)
            .env("NODE_PORT", self.network.local_api.port().to_string())
            .env(SECRET.0, SECRET.1);
        NodeProcess::run(command, LONG).map_err(|error| format!("{}: {error}", program.display()))
    }

    fn pm2(&self, arguments: &[&str]) -> Result<Exit, String> {
        self.run(Path::new("pm2"), arguments)
    }

    /// The installed program, to an exit code.
    fn node(&self, arguments: &[&str], code: i32) -> Result<String, String> {
        let exit = self.run(&self.dir.join("current/bin/consensus-node"), arguments)?;
        expect(&exit, code, &arguments.join(" "))
    }

    /// A release of this version with the scripts of this project.
    fn tarball(&self, version: &str) -> Result<Vec<u8>, String> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        build(&release::manifest(version), &self.program, &scripts).map_err(|error| error.to_string())
    }

    fn wait<T>(&self, what: &str, find: impl FnMut(&Record) -> Option<T>) -> Result<T, String> {
        let found = self.network.orchestrator.journal().wait(0, LONG, find);
        found.map(|(_, value)| value).ok_or_else(|| format!("the network never saw: {what}"))
    }

    fn ready(&self, number: u64) -> Result<(), String> {
        self.wait(&format!("session {number}"), |record| match record {
            Record::Ready { connection, mode: Mode::Control, .. } if *connection == number => Some(()),
            _ => None,
        })
    }

    /// The node's answer to an update message.
    fn answer(&self, id: Option<String>, wanted: &str) -> Result<(), String> {
        let id = id.ok_or("the node has no session")?;
        let answer = self.wait(wanted, |record| match record {
            Record::Message { message, .. } if message["reply_to"] == id.as_str() => Some(message.clone()),
            _ => None,
        })?;
        if answer["type"] == wanted { Ok(()) } else { Err(format!("not {wanted} but {answer}")) }
    }

    fn ended(&self, number: u64, code: u16) -> Result<(), String> {
        let found = self.wait(&format!("the end of session {number}"), |record| match record {
            Record::Ended { connection, code, .. } if *connection == number => Some(*code),
            _ => None,
        })?;
        if found == Some(code) {
            Ok(())
        } else {
            Err(format!("session {number} ended with {found:?}, not {code}"))
        }
    }

    /// What `service status` says, once it has all these lines in it.
    fn status(&self, lines: &[&str]) -> Result<String, String> {
        let end = Instant::now() + LONG;
        loop {
            let said = self.node(&["service", "status"], 0)?;
            if lines.iter().all(|line| said.contains(line)) {
                return Ok(said);
            }
            if Instant::now() >= end {
                return Err(format!("`service status` does not say {lines:?}:\n{said}"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn course(&self) -> Result<(), String> {
        let begun = Instant::now();
        let done = |what: &str| println!("{:>5.1} s  {what}", begun.elapsed().as_secs_f64());
        let tarball = self.network.home.root().join("first.tgz");
        fs::write(&tarball, self.tarball("1.0.0")?)
            .map_err(|error| format!("{}: {error}", tarball.display()))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-release.sh");
        expect(&self.run(&script, &[&tarball.to_string_lossy()])?, 0, "install-release.sh")?;
        done("release 1.0.0 is installed by its script");

        let install = ["service", "install", "--supervisor", "pm2", "--allow-private-targets"];
        self.node(&install, 0)?;
        self.ready(1)?;
        let said = self.status(&["online", "1.0.0", "restarts  0"])?;
        self.node(&install, 4)?;
        self.keeps_no_secret(&said)?;
        done("start-pm2.sh has PM2 keep it, and it is connected");

        let tarball = self.tarball("1.1.0")?;
        let manifest = self.network.orchestrator.publish_release(release::manifest("1.1.0"), tarball);
        self.answer(self.network.orchestrator.prepare_update(NODE_ID, "u-1", manifest), "update_ready")?;
        done("it prepared release 1.1.0, as the network told it");
        self.answer(self.network.orchestrator.apply_update(NODE_ID, "u-1", 0), "ack")?;
        self.ended(1, 1012)?;
        self.ready(2)?;
        self.status(&["online", "1.1.0, proved", "restarts  1"])?;
        let request = json!({ "target_url": self.network.upstream.url("/b/100"), "method": "GET" });
        let answer = self.network.post(&format!("/node/tunnel/proxy/{NODE_ID}"), &request);
        match answer {
            Ok(answer) if answer.status == 200 => {}
            other => return Err(format!("the new release does not serve: {other:?}")),
        }
        done("release 1.1.0 is connected, proved and serves; PM2 restarted once");

        self.node(&["service", "uninstall"], 0)?;
        self.ended(2, 1000)?;
        self.node(&["service", "status"], 3)?;
        let list = self.pm2(&["jlist"])?.stdout;
        if list.contains(NAME) {
            return Err(format!("PM2 still has it: {list}"));
        }
        done("PM2 has stopped it in good order and does not keep it any more");
        Ok(())
    }

    /// Neither the node's process nor a file of PM2 has what only the operator should have.
    fn keeps_no_secret(&self, status: &str) -> Result<(), String> {
        let pid = status.split("process ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let environment = fs::read(format!("/proc/{}/environ", pid.unwrap_or("none")))
            .map_err(|error| format!("the environment of process {pid:?}: {error}"))?;
        let saved = self.network.home.root().join("pm2/dump.pm2");
        let saved = fs::read(&saved).map_err(|error| format!("{}: {error}", saved.display()))?;
        for (what, data) in [("the node's environment", environment), ("PM2's file", saved)] {
            let text = String::from_utf8_lossy(&data);
            if !text.contains("CONSENSUS_NODE_INSTALL_DIR") {
                return Err(format!("{what} does not have the node's settings"));
            }
            if text.contains(SECRET.1) {
                return Err(format!("{what} has a secret of the operator"));
            }
        }
        Ok(())
    }

    /// What was seen and said.
    fn story(&self) -> String {
        let seen = self.network.orchestrator.journal().since(0);
        let mut story: Vec<String> = seen.iter().map(|(_, record)| record.to_string()).collect();
        let logs = self.network.home.root().join("pm2/logs");
        for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            story.push(format!("{}:", entry.path().display()));
            story.extend(lines[lines.len().saturating_sub(40)..].iter().map(ToString::to_string));
        }
        story.join("\n")
    }
}

fn expect(exit: &Exit, code: i32, what: &str) -> Result<String, String> {
    if exit.code == Some(code) {
        Ok(exit.stdout.clone())
    } else {
        Err(format!("{what}: ended with {:?}, not {code}:\n{}{}", exit.code, exit.stdout, exit.stderr()))
    }
}
