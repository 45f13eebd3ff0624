//! A node under a real supervisor: installed as a release, made a service, updated by the network, started again after a
//! crash, and taken away; and then all of it by `setup`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::service::Supervisor;
use consensus_core::tunnel::Mode;
use serde_json::json;
use shell_blocking::release::build::build;

use crate::binaries::{self, Shell};
use crate::network::{NODE_ID, Network, PAYOUT_OPTIONS};
use crate::orchestrator::Record;
use crate::process::{Exit, NodeProcess};
use crate::release;

/// Longer than anything here takes, however busy the machine is.
const LONG: Duration = Duration::from_secs(120);

/// How often is looked where nothing can be awaited.
const POLL: Duration = Duration::from_millis(100);

/// What PM2 calls the node.
const NAME: &str = "testbed-node";

/// Any ordinary user, by number.
const OTHER_USER: &str = "1";

/// In the environment of whoever starts the node. PM2 writes the environments of its apps into files.
const SECRET: (&str, &str) = ("CONSENSUS_EMAIL_VERIFICATION_TOKEN", "not-for-pm2");

/// Where Debian, Fedora and Arch have it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Put a node under a real PM2 or systemd, have the network update it, let it crash, and see that it comes back each time
/// and that the supervisor counts what there was.
///
/// For systemd, /run/systemd/system has to be there: .ci/systemd.sh sees to it in a namespace.
///
/// Example: cargo run -p consensus-testbed -- supervise --pm2 node_modules/.bin/pm2
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "supervise")]
pub struct Supervise {
    /// the program pm2; without it, the systemd of a user is started
    #[argh(option)]
    pub pm2: Option<PathBuf>,

    /// which of the two programs: smol (default) or blocking
    #[argh(option, default = "Shell::Smol")]
    pub shell: Shell,
}

/// Runs it; `true` when all of it came as it should.
#[must_use]
pub fn run(options: &Supervise) -> bool {
    let result = Site::new(options).and_then(|mut site| {
        let result = site.start().and_then(|()| site.course()).and_then(|()| match site.supervisor {
            Supervisor::Systemd => site.in_the_machines_unit(),
            _ => Ok(()),
        });
        let result = result.and_then(|()| site.set_up_anew());
        site.stop();
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
    supervisor: Supervisor,
    /// Where pm2 is.
    tools: Option<PathBuf>,
    systemd: Option<Child>,
}

impl Site {
    fn new(options: &Supervise) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("setting up: {error}");
        let program = binaries::build(options.shell).map_err(failed)?;
        let folder = |pm2: &PathBuf| fs::canonicalize(pm2.parent().unwrap_or(Path::new(".")));
        let tools = options.pm2.as_ref().map(folder).transpose().map_err(failed)?;
        let supervisor = if tools.is_some() { Supervisor::Pm2 } else { Supervisor::Systemd };
        let network = Network::start(false).map_err(failed)?;
        network.register_node().map_err(failed)?;
        fs::create_dir_all(network.home.root().join("machine")).map_err(failed)?;
        // A blank, for every script on the way.
        let dir = network.home.root().join("run time");
        Ok(Self { network, program, dir, supervisor, tools, systemd: None })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.network.home.root().join(name)
    }

    /// Starts the supervisor, where it does not start itself.
    fn start(&mut self) -> Result<(), String> {
        if self.supervisor != Supervisor::Systemd {
            return Ok(());
        }
        let runtime = self.at("run");
        let made = fs::create_dir(&runtime)
            .and_then(|()| fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)))
            .and_then(|()| fs::File::create(self.at("systemd.log")));
        let log = made.map_err(|error| format!("{}: {error}", runtime.display()))?;
        let mut command = Command::new(SYSTEMD);
        command.args(["--user", "--log-target=console"]).env_clear().env("HOME", self.network.home.root());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("XDG_RUNTIME_DIR", &runtime);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.systemd = Some(child.map_err(|error| format!("{SYSTEMD}: {error}"))?);
        let end = Instant::now() + LONG;
        while !runtime.join("systemd/private").exists() {
            let ended = self.systemd.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(format!("{SYSTEMD} --user ends, {status}: is there /run/systemd/system?"));
            }
            if Instant::now() >= end {
                return Err(format!("{SYSTEMD} --user does not listen"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The supervisor would stay; it is this site's alone.
    fn stop(&mut self) {
        match self.systemd.take() {
            Some(mut child) => {
                let _ = self.run(Path::new("systemctl"), &["--user", "exit"]);
                let _ = child.wait();
            }
            None => {
                let _ = self.run(Path::new("pm2"), &["kill"]);
            }
        }
    }

    /// Any program, with the environment of an operator whose PM2 is this site's.
    fn run(&self, program: &Path, arguments: &[&str]) -> Result<Exit, String> {
        let mut command = self.network.node(program, arguments);
        if let Some(tools) = &self.tools {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", tools.display()));
        }
        command
            .env("PM2_HOME", self.at("pm2"))
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env("CONSENSUS_NODE_INSTALL_DIR", &self.dir)
            .env("CONSENSUS_PM2_NAME", NAME)
            .env("NODE_PORT", self.network.local_api.port().to_string())
            .env(SECRET.0, SECRET.1);
        NodeProcess::run(command, LONG).map_err(|error| format!("{}: {error}", program.display()))
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
        let (name, running) = match self.supervisor {
            Supervisor::Pm2 => ("PM2", "online"),
            _ => ("systemd", "active (running)"),
        };
        let tarball = self.at("first.tgz");
        fs::write(&tarball, self.tarball("1.0.0")?)
            .map_err(|error| format!("{}: {error}", tarball.display()))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-release.sh");
        expect(&self.run(&script, &[&tarball.to_string_lossy()])?, 0, "install-release.sh")?;
        done("release 1.0.0 is installed by its script");

        let supervisor = self.supervisor.name();
        let install = ["service", "install", "--user", "--supervisor", supervisor, "--allow-private-targets"];
        self.node(&install, 0)?;
        self.ready(1)?;
        let said = self.status(&[running, "1.0.0", "restarts  0"])?;
        self.node(&install, 4)?;
        self.keeps_no_secret(&said)?;
        done(&format!("{name} keeps it, and it is connected"));

        let tarball = self.tarball("1.1.0")?;
        let manifest = self.network.orchestrator.publish_release(release::manifest("1.1.0"), tarball);
        self.answer(self.network.orchestrator.prepare_update(NODE_ID, "u-1", manifest), "update_ready")?;
        done("it prepared release 1.1.0, as the network told it");
        self.answer(self.network.orchestrator.apply_update(NODE_ID, "u-1", 0), "ack")?;
        self.ended(1, 1012)?;
        self.ready(2)?;
        // PM2 is to see an update; to systemd it is the wrapper's own business.
        let restarts = if self.supervisor == Supervisor::Pm2 { 1 } else { 0 };
        let said = self.status(&[running, "1.1.0, proved", &format!("restarts  {restarts}")])?;
        self.serves()?;
        done(&format!(
            "release 1.1.0 is connected, proved and serves; restarts that {name} counts: {restarts}"
        ));

        let node = node_of(&said)?;
        expect(&self.run(Path::new("kill"), &["-KILL", &node])?, 0, "kill")?;
        self.ready(3)?;
        self.status(&[running, "1.1.0, proved", &format!("restarts  {}", restarts + 1)])?;
        self.serves()?;
        done(&format!("it was killed, and serves again; {name} counts one more"));

        self.node(&["service", "uninstall"], 0)?;
        self.ended(3, 1000)?;
        self.node(&["service", "status"], 3)?;
        if self.supervisor == Supervisor::Pm2 {
            let list = self.run(Path::new("pm2"), &["jlist"])?.stdout;
            if list.contains(NAME) {
                return Err(format!("PM2 still has it: {list}"));
            }
        }
        done(&format!("{name} has stopped it in good order and does not keep it any more"));
        Ok(())
    }

    /// The node in the unit of the whole machine, with everything that it forbids, as a user of its own: it can still
    /// update itself. What starts it is the systemd of a user all the same, so the unit is told where it is.
    fn in_the_machines_unit(&self) -> Result<(), String> {
        let begun = Instant::now();
        let done = |what: &str| println!("{:>5.1} s  {what}", begun.elapsed().as_secs_f64());
        let root = self.network.home.root().to_string_lossy().into_owned();
        expect(&self.run(Path::new("chown"), &["-R", OTHER_USER, &root])?, 0, "chown")?;
        let install =
            ["service", "install", "--supervisor", "systemd", "--allow-private-targets", "--dry-run"];
        let said = self.node(&install, 0)?;
        let unit: String = said
            .lines()
            .skip_while(|line| !line.contains("/etc/systemd/system/"))
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| !line.ends_with("network-online.target"))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = format!("{}/node.env", self.dir.display());
        let unit = unit
            .replace("multi-user.target", "default.target")
            .replace("/etc/consensus-node/node.env", &settings);
        let path = self.at(".config/systemd/user/consensus-node.service");
        fs::write(&path, unit).map_err(|error| format!("{}: {error}", path.display()))?;
        for arguments in [&["--user", "daemon-reload"][..], &["--user", "start", "consensus-node.service"]] {
            expect(&self.run(Path::new("systemctl"), arguments)?, 0, "systemctl")?;
        }
        self.ready(4)?;
        let said = self.status(&["active (running)", "1.1.0, proved"])?;
        let node = node_of(&said)?;
        let path = format!("/proc/{node}/status");
        let its = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        for wanted in [&format!("Uid:\t{OTHER_USER}\t") as &str, "CapEff:\t0000000000000000", "Seccomp:\t2"] {
            if !its.contains(wanted) {
                return Err(format!("{path} does not have {wanted:?}:\n{its}"));
            }
        }
        self.serves()?;
        done("it runs in the machine's unit, as another user, without capabilities and behind seccomp");
        let manifest =
            self.network.orchestrator.publish_release(release::manifest("1.2.0"), self.tarball("1.2.0")?);
        self.answer(self.network.orchestrator.prepare_update(NODE_ID, "u-2", manifest), "update_ready")?;
        self.answer(self.network.orchestrator.apply_update(NODE_ID, "u-2", 0), "ack")?;
        self.ended(4, 1012)?;
        self.ready(5)?;
        self.status(&["active (running)", "1.2.0, proved"])?;
        self.serves()?;
        done("it updated itself in there");
        self.node(&["service", "uninstall"], 0)?;
        self.ended(5, 1000)
    }

    /// `setup` alone, from an empty home: it leaves a node that the supervisor keeps and that is connected.
    fn set_up_anew(&self) -> Result<(), String> {
        let begun = Instant::now();
        let done = |what: &str| println!("{:>5.1} s  {what}", begun.elapsed().as_secs_f64());
        let (supervisor, running) = match self.supervisor {
            Supervisor::Pm2 => ("pm2", "online"),
            _ => ("systemd", "active (running)"),
        };
        for folder in [&self.network.home.state_dir(), &self.at("machine"), &self.dir] {
            fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        let orchestrator = &self.network.orchestrator;
        let manifest = orchestrator.publish_release(release::manifest("2.0.0"), self.tarball("2.0.0")?);
        orchestrator.require(manifest);
        let mut arguments = vec!["setup", "--yes", "--service", "yes", "--supervisor", supervisor, "--user"];
        arguments.extend(["--email", "operator@example.org", "--ipv4", "203.0.114.7", "--ipv6", "none"]);
        arguments.extend(["--address-service", "none", "--allow-private-targets"]);
        arguments.extend(PAYOUT_OPTIONS);
        let set_up = self.run(&self.program, &arguments)?;
        expect(&set_up, 0, "setup")?;
        let attached = orchestrator.attached();
        let [node] = attached.as_slice() else { return Err(format!("attached: {attached:?}")) };
        if !set_up.stderr().contains(&format!("Node {node} runs, and is connected")) {
            return Err(format!("setup does not say so:\n{}", set_up.stderr()));
        }
        self.keeps_no_secret(&self.status(&[running, "2.0.0"])?)?;
        done(&format!("from nothing: setup ends with a connected node that {supervisor} keeps"));

        // Beside the node that runs.
        expect(&self.run(&self.program, &arguments)?, 0, "setup, again")?;
        if orchestrator.attached() != attached {
            return Err(format!("setup, again: {:?} in place of {attached:?}", orchestrator.attached()));
        }
        done("setup again leaves it as it is");
        self.node(&["service", "uninstall"], 0)?;
        self.node(&["service", "status"], 3)?;
        Ok(())
    }

    fn serves(&self) -> Result<(), String> {
        let request = json!({ "target_url": self.network.upstream.url("/b/100"), "method": "GET" });
        match self.network.post(&format!("/node/tunnel/proxy/{NODE_ID}"), &request) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("the node does not serve: {other:?}")),
        }
    }

    /// Neither the node's process nor a file of its supervisor has what only the operator should have.
    fn keeps_no_secret(&self, status: &str) -> Result<(), String> {
        let kept = match self.supervisor {
            Supervisor::Pm2 => self.at("pm2/dump.pm2"),
            _ => self.at(".config/systemd/user/consensus-node.service"),
        };
        for path in [PathBuf::from(format!("/proc/{}/environ", node_of(status)?)), kept] {
            let data = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let text = String::from_utf8_lossy(&data);
            if !text.contains("CONSENSUS_NODE_INSTALL_DIR") {
                return Err(format!("{} does not have the node's settings", path.display()));
            }
            if text.contains(SECRET.1) {
                return Err(format!("{} has a secret of the operator", path.display()));
            }
        }
        Ok(())
    }

    /// What was seen and said.
    fn story(&self) -> String {
        let seen = self.network.orchestrator.journal().since(0);
        let mut story: Vec<String> = seen.iter().map(|(_, record)| record.to_string()).collect();
        let logs = fs::read_dir(self.at("pm2/logs")).into_iter().flatten().flatten();
        for path in logs.map(|entry| entry.path()).chain([self.at("systemd.log")]) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            story.push(format!("{}:", path.display()));
            story.extend(lines[lines.len().saturating_sub(40)..].iter().map(ToString::to_string));
        }
        story.join("\n")
    }
}

/// The node's process: the child of the one that `service status` tells.
fn node_of(status: &str) -> Result<String, String> {
    let wrapper = status.split("process ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let wrapper = wrapper.ok_or_else(|| format!("there is no process in {status}"))?;
    let path = format!("/proc/{wrapper}/task/{wrapper}/children");
    let children = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // While a release is on probation, there is a nap beside it.
    let is_node = |pid: &&str| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.ends_with("bin/consensus-node"))
    };
    children
        .split_whitespace()
        .find(is_node)
        .map(str::to_owned)
        .ok_or_else(|| format!("{path} has no node: {children}"))
}

fn expect(exit: &Exit, code: i32, what: &str) -> Result<String, String> {
    if exit.code == Some(code) {
        Ok(exit.stdout.clone())
    } else {
        Err(format!("{what}: ended with {:?}, not {code}:\n{}{}", exit.code, exit.stdout, exit.stderr()))
    }
}
