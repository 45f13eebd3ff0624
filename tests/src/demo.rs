//! The whole course of a node's life on one machine, told as it happens.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::crypto::pure::Pure;
use consensus_core::peer::client::{Answer, Request};
use consensus_core::tunnel::Mode;
use serde_json::{Value, json};

use crate::binaries::{self, Shell};
use crate::client;
use crate::data_plane::{self, Carrier, Connection, Ticket};
use crate::dial::Server;
use crate::network::{Network, PAYOUT_OPTIONS};
use crate::options::Options;
use crate::orchestrator::Record;
use crate::process::NodeProcess;
use crate::trace;
use crate::upstream;

/// Bytes the node fetches for a client.
const FETCHED: usize = 16 * 1024;

/// No step takes as long; it is there so that a demo ends.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Take a fresh node through evaluation, registration, service and verification on this machine, with a network of
/// its own.
///
/// Example: consensus-testbed demo --shell blocking
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "demo")]
pub struct Demo {
    /// which of the two programs: smol (default) or blocking
    #[argh(option, default = "Shell::Smol")]
    pub shell: Shell,

    /// the node's program; without it the shell is built
    #[argh(option)]
    pub node: Option<PathBuf>,

    /// speak TLS, with a certificate authority of the demo's own
    #[argh(switch)]
    pub tls: bool,

    /// record what the node does, run that again, and leave the records in this folder
    #[argh(option)]
    pub trace: Option<PathBuf>,

    /// leave the node's state where it is, and say where
    #[argh(switch)]
    pub keep: bool,
}

/// What went wrong, for people.
type Failure = String;

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |error| format!("{what}: {error}")
}

/// One line of the table at the end.
struct Step {
    name: &'static str,
    outcome: Result<String, Failure>,
    took: Duration,
}

struct Course {
    program: PathBuf,
    network: Network,
    steps: Vec<Step>,
    node_id: String,
    node: Option<NodeProcess>,
    /// Where the node's traces go.
    traces: Option<PathBuf>,
}

/// Runs the demo; `true` when all of it went as it should.
#[must_use]
pub fn run(demo: &Demo) -> bool {
    let mut course = match prepare(demo) {
        Ok(course) => course,
        Err(failure) => {
            eprintln!("consensus-testbed: {failure}");
            return false;
        }
    };
    let begun = Instant::now();
    println!("This network: {} (all of it in this process)", course.network.orchestrator.url());
    println!("This node:    {} ({} shell)", file_name(&course.program), demo.shell.name());
    let passed = course.walk();
    course.table(begun.elapsed());
    if demo.keep {
        course.network.home.keep();
        println!("\nKept: {}", course.network.home.root().display());
    }
    passed
}

fn prepare(demo: &Demo) -> Result<Course, Failure> {
    let program = match &demo.node {
        Some(path) => std::path::absolute(path).map_err(failed("--node"))?,
        None => binaries::build(demo.shell).map_err(failed("building the node"))?,
    };
    // The demo shows how it goes, on whatever machine: `admission` is what judges one.
    let options = Options {
        tls: demo.tls,
        sustained_ms: 5_000,
        window_ms: 1_000,
        speedtest_url: Some(format!("/b/{FETCHED}")),
        ..Options::default()
    };
    let network = Network::with(options).map_err(failed("starting the network"))?;
    let traces = demo.trace.as_deref().map(std::path::absolute).transpose().map_err(failed("--trace"))?;
    if let Some(folder) = &traces {
        std::fs::create_dir_all(folder).map_err(failed("--trace"))?;
    }
    Ok(Course { program, network, steps: Vec::new(), node_id: String::new(), node: None, traces })
}

fn file_name(path: &std::path::Path) -> impl Display + '_ {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Text in lines of at most so many columns, as far as its words are shorter.
fn folded(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

impl Course {
    /// Step by step, until one fails.
    fn walk(&mut self) -> bool {
        self.step(
            "evaluate",
            "The node opens an encrypted tunnel and shows what the machine can do: the server asks for one \
             measurement after the other, here in short.",
            Self::evaluate,
        ) && self.step(
            "register",
            "The operator's address is verified with a code, the node signs the server's nonce, and gets its name.",
            Self::register,
        ) && self.step(
            "run",
            "The node serves: one tunnel that it keeps open, and a local interface for its operator.",
            Self::serve,
        ) && self.step(
            "look at it",
            "The operator asks the local interface how the node is.",
            Self::health,
        ) && self.step(
            "proxied request",
            "A client asks the network, the network asks the node through the tunnel, the node fetches.",
            Self::proxy,
        ) && self.step("post through it", "The same with a body, which comes back as it was sent.", Self::echo)
            && self.step(
                "data plane",
                "A client gets a ticket and makes a request that nobody between can read: the node proves who it is, \
                 the ticket pays once.",
                Self::data_plane,
            )
            && self.step(
                "verify",
                "The node signs what it runs; the server checks it.",
                Self::verify,
            )
            && self.step("stop", "The operator stops the node (SIGTERM); it takes its leave.", Self::stop)
            && (self.traces.is_none()
                || self.step(
                    "replay",
                    "What the node was told is told to its core again: it does the same.",
                    Self::replay,
                ))
    }

    fn step(
        &mut self,
        name: &'static str,
        about: &str,
        run: fn(&mut Self) -> Result<String, Failure>,
    ) -> bool {
        let text = format!("{}. {name}: {about}", self.steps.len() + 1);
        println!("\n{}", folded(&text, 77).join("\n   "));
        let begun = Instant::now();
        let outcome = run(self);
        let took = begun.elapsed();
        match &outcome {
            Ok(what) => println!("   -> {what}"),
            Err(failure) => {
                println!("   FAILED: {failure}");
                if let Some(node) = &self.node {
                    println!("   The node's last words:");
                    let lines = node.lines(0);
                    for line in lines.iter().rev().take(10).rev() {
                        println!("     {}", line.text);
                    }
                }
            }
        }
        let passed = outcome.is_ok();
        self.steps.push(Step { name, outcome, took });
        passed
    }

    fn command(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let words = std::iter::once(subcommand).chain(arguments.iter().copied());
        println!("   $ {} {}", file_name(&self.program), words.clone().collect::<Vec<_>>().join(" "));
        let mut command = self.network.node(&self.program, words);
        if matches!(subcommand, "eval" | "run") {
            if let Some(path) = self.trace_of(subcommand) {
                command.arg("--trace").arg(path).arg("--trace-secrets");
            }
        }
        command
    }

    fn trace_of(&self, subcommand: &str) -> Option<PathBuf> {
        self.traces.as_ref().map(|folder| folder.join(format!("{subcommand}.trace")))
    }

    fn replay(&mut self) -> Result<String, Failure> {
        let mut lines = Vec::new();
        for subcommand in ["eval", "run"] {
            let path = self.trace_of(subcommand).ok_or("no trace was asked for")?;
            let trace = trace::read(&path).map_err(failed("reading a trace"))?;
            let text = trace::replay(&trace)?;
            println!("   {text}");
            lines.push(format!("{subcommand} {} KiB", trace.len() / 1024));
        }
        Ok(format!("{}: the same, bit for bit", lines.join(", ")))
    }

    fn run_to_end(&self, subcommand: &str, arguments: &[&str]) -> Result<(), Failure> {
        let node = NodeProcess::spawn(self.command(subcommand, arguments)).map_err(failed("starting"))?;
        let exit = node.wait(STEP_TIMEOUT).map_err(failed(subcommand))?;
        self.expect_success(subcommand, exit.code, &exit.stderr())
    }

    fn expect_success(&self, subcommand: &str, code: Option<i32>, stderr: &str) -> Result<(), Failure> {
        if code == Some(0) {
            return Ok(());
        }
        let tail: Vec<&str> = stderr.lines().rev().take(8).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n     ");
        Err(format!("{subcommand} ended with {code:?}; it said:\n     {tail}"))
    }

    fn evaluate(&mut self) -> Result<String, Failure> {
        let node = NodeProcess::spawn(self.command("eval", &["--allow-private-targets"]))
            .map_err(failed("starting"))?;
        let mut mark = 0;
        // Each answer as it comes, in the node's own words.
        while let Some(line) = node.wait_for(mark, STEP_TIMEOUT, |line| line.event() == "eval_finished") {
            mark = node.mark_after(&line, mark);
            let action = line.value["action"].as_str().unwrap_or("?").to_owned();
            println!("     {action:<26} {}", line.value["summary"].as_str().unwrap_or(""));
        }
        let exit = node.wait(STEP_TIMEOUT).map_err(failed("eval"))?;
        self.expect_success("eval", exit.code, &exit.stderr())?;
        let records = self.network.orchestrator.journal().since(0);
        let measured =
            records.iter().filter(|(_, r)| matches!(r, Record::Evaluated { ok: true, .. })).count();
        if !records.iter().any(|(_, record)| matches!(record, Record::Offered { .. })) {
            return Err(String::from("the server made no offer"));
        }
        Ok(format!("{measured} measurements, admitted"))
    }

    fn register(&mut self) -> Result<String, Failure> {
        let journal = self.network.orchestrator.journal();
        let mark = journal.mark();
        let mut arguments = vec!["--email", "operator@example.org", "--contact", "operator@example.org"];
        arguments.extend(["--ipv4", "127.0.0.1", "--port", "9090"]);
        arguments.extend(PAYOUT_OPTIONS);
        self.run_to_end("register", &arguments)?;
        let code = journal.wait(mark, Duration::ZERO, |record| match record {
            Record::EmailCode { code, .. } => Some(code.clone()),
            _ => None,
        });
        if let Some((_, code)) = code {
            println!("     the code was {code}: a network for trying out gives it to the node itself");
        }
        let joined = journal.wait(mark, Duration::ZERO, |record| match record {
            Record::Joined { node_id } => Some(node_id.clone()),
            _ => None,
        });
        let (_, node_id) = joined.ok_or("the server knows of no new node")?;
        self.node_id = node_id;
        Ok(format!("registered as {}", self.node_id))
    }

    fn serve(&mut self) -> Result<String, Failure> {
        let journal = self.network.orchestrator.journal();
        let mark = journal.mark();
        let listen = self.network.local_api.to_string();
        let arguments = ["--listen", listen.as_str(), "--allow-private-targets"];
        let node = NodeProcess::spawn(self.command("run", &arguments)).map_err(failed("starting"))?;
        let started = node.started();
        self.node = Some(node);
        let journal = self.network.orchestrator.journal();
        let (at, session) = journal
            .wait(mark, STEP_TIMEOUT, |record| match record {
                Record::Ready { mode: Mode::Control, session_id, .. } => Some(session_id.clone()),
                _ => None,
            })
            .ok_or("no control session")?;
        journal
            .wait(mark, STEP_TIMEOUT, |record| match record {
                Record::Message { message, .. } if message["type"] == "heartbeat" => Some(()),
                _ => None,
            })
            .ok_or("no heartbeat")?;
        let ready = at.duration_since(started).as_secs_f64() * 1e3;
        Ok(format!("connected {ready:.0} ms after start, session {}…, heartbeat", &session[..8]))
    }

    fn health(&mut self) -> Result<String, Failure> {
        let url = format!("http://{}/health", self.network.local_api);
        println!("   GET {url}");
        // The tunnel may be up before the local interface is.
        let end = Instant::now() + Duration::from_secs(5);
        let answer = loop {
            match client::get(&url, None) {
                Ok(answer) => break answer,
                Err(error) if Instant::now() > end => return Err(format!("no answer: {error}")),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        if answer.status != 200 || answer.body["registered"] != true || answer.body["node_id"] != self.node_id
        {
            return Err(format!("{}: {}", answer.status, answer.body));
        }
        Ok(format!("healthy, and registered as {}", self.node_id))
    }

    fn through_the_node(&self, request: &Value) -> Result<Vec<u8>, Failure> {
        let path = format!("/node/tunnel/proxy/{}", self.node_id);
        println!("   POST {path} {request}");
        let answer = self.network.post(&path, request).map_err(failed("the network"))?;
        if answer.status != 200 || answer.body["status"] != 200 {
            return Err(format!("{}: {}", answer.status, answer.body));
        }
        let body = answer.body["body"].as_str().and_then(consensus_core::wire::base64::decode);
        body.ok_or_else(|| String::from("the body is not base64"))
    }

    fn proxy(&mut self) -> Result<String, Failure> {
        let before = self.network.upstream.requests();
        let url = self.network.upstream.url(&format!("/b/{FETCHED}"));
        let body = self.through_the_node(&json!({ "target_url": url, "method": "GET" }))?;
        if body != upstream::bytes(FETCHED) {
            return Err(format!("{} bytes came back, and not the right ones", body.len()));
        }
        if self.network.upstream.requests() != before + 1 {
            return Err(String::from("the upstream was not asked exactly once"));
        }
        Ok(format!("{FETCHED} bytes, every one right"))
    }

    fn echo(&mut self) -> Result<String, Failure> {
        let sent = "to be, or not to be: ümläuts";
        let request = json!({
            "target_url": self.network.upstream.url("/echo"), "method": "POST", "body": sent,
            "headers": { "content-type": "text/plain" },
        });
        let body = self.through_the_node(&request)?;
        if body != sent.as_bytes() {
            return Err(format!("sent {sent:?}, got {:?}", String::from_utf8_lossy(&body)));
        }
        Ok(format!("{} bytes, as they were sent", body.len()))
    }

    fn data_plane(&mut self) -> Result<String, Failure> {
        let orchestrator = &self.network.orchestrator;
        let server =
            Server::new(&orchestrator.url(), orchestrator.ca_file()).map_err(failed("the network"))?;
        let target_url = self.network.upstream.url(&format!("/b/{FETCHED}"));
        println!("   POST /tickets {{\"node_id\":\"{}\",\"target_url\":\"{target_url}\"}}", self.node_id);
        let request = Request { target_url, ..Request::default() };
        let (exchange, again) = smol::block_on(async {
            let ticket = Ticket::mint(&server, Some(&self.node_id), &request).await?;
            println!("   {}", ticket.connect_url);
            let once = || async {
                let carrier = Carrier::gateway(&server, &ticket.node_id).await?;
                let connection = Connection::open(Pure, carrier, &ticket.node_id, &ticket.node_key).await?;
                connection.request(&ticket.token, &request).await
            };
            Ok::<_, data_plane::Failure>((once().await?, once().await?))
        })
        .map_err(|failure| failure.to_string())?;
        match exchange.answer {
            Answer::Response { status: 200, body, .. } if body == upstream::bytes(FETCHED) => {}
            other => return Err(format!("not what was asked for: {other:?}")),
        }
        match again.answer {
            Answer::Error { code, .. } if code == "unauthorized" => {}
            other => return Err(format!("the ticket paid twice: {other:?}")),
        }
        Ok(format!("{FETCHED} bytes, every one right; the ticket paid once"))
    }

    fn verify(&mut self) -> Result<String, Failure> {
        self.run_to_end("verify", &[])?;
        let checked = self.network.orchestrator.journal().since(0).into_iter().any(|(_, record)| {
            matches!(record, Record::Http { path, status: 200, .. } if path.starts_with("/node/verify-integrity/"))
        });
        if checked { Ok(String::from("the server took the signature")) } else { Err("nobody asked".into()) }
    }

    fn stop(&mut self) -> Result<String, Failure> {
        let node = self.node.take().ok_or("no node runs")?;
        let journal = self.network.orchestrator.journal();
        let mark = journal.mark();
        node.terminate().map_err(failed("SIGTERM"))?;
        let exit = node.wait(STEP_TIMEOUT).map_err(failed("run"))?;
        self.expect_success("run", exit.code, &exit.stderr())?;
        let (_, (code, reason)) = journal
            .wait(mark, Duration::from_secs(5), |record| match record {
                Record::Ended { code, reason, .. } => Some((*code, reason.clone())),
                _ => None,
            })
            .ok_or("the tunnel is still open")?;
        if code != Some(1000) {
            return Err(format!("the tunnel ended with {code:?}, {reason}"));
        }
        Ok(format!("exit 0, the tunnel closed with 1000 \"{reason}\""))
    }

    fn table(&self, took: Duration) {
        println!("\n  {:<15} {:<51} {:>9}", "step", "what happened", "took");
        println!("  {:-<15} {:-<51} {:->9}", "", "", "");
        for step in &self.steps {
            let (mark, what) = match &step.outcome {
                Ok(what) => ("", what.as_str()),
                Err(failure) => ("FAILED: ", failure.lines().next().unwrap_or_default()),
            };
            let mut lines = folded(&format!("{mark}{what}"), 51).into_iter();
            let first = lines.next().unwrap_or_default();
            println!("  {:<15} {first:<51} {:>6} ms", step.name, step.took.as_millis());
            for line in lines {
                println!("  {:<15} {line}", "");
            }
        }
        let passed = self.steps.iter().all(|step| step.outcome.is_ok());
        let word = if passed { "All of it worked" } else { "Not all of it worked" };
        println!("\n{word}, in {:.1} s.", took.as_secs_f64());
    }
}
