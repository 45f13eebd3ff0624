//! A network and a node program, and the ways tests look at them. What goes wrong here panics with what was said.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use consensus_core::tunnel::Mode;
use consensus_testbed::binaries::{self, Shell};
use consensus_testbed::client::Answer;
use consensus_testbed::network::{NODE_ID, Network};
use consensus_testbed::options::{Bad, Options};
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, Line, NodeProcess};
use serde_json::{Value, json};

/// Longer than anything takes on a healthy machine, however busy.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Each function as a test with each shell.
macro_rules! with_both_shells {
    ($($name:ident)*) => {
        mod smol {
            $(#[test] fn $name() { super::$name(consensus_testbed::binaries::Shell::Smol); })*
        }
        mod blocking {
            $(#[test] fn $name() { super::$name(consensus_testbed::binaries::Shell::Blocking); })*
        }
    };
}
pub(crate) use with_both_shells;

/// A network, and the program of one shell.
pub(crate) struct Lab {
    pub(crate) network: Network,
    pub(crate) program: PathBuf,
}

impl Lab {
    /// A network of these options, and no node yet.
    pub(crate) fn with(shell: Shell, options: Options) -> Self {
        Self { network: Network::with(options).unwrap(), program: binaries::build(shell).unwrap() }
    }

    /// A well-behaved network with a registered node.
    pub(crate) fn new(shell: Shell) -> Self {
        Self::registered(shell, Options::default())
    }

    /// A network of these options with a registered node.
    pub(crate) fn registered(shell: Shell, options: Options) -> Self {
        let lab = Self::with(shell, options);
        lab.network.register_node().unwrap();
        lab
    }

    /// A network that misbehaves once.
    pub(crate) fn bad_once(shell: Shell, bad: Bad) -> Self {
        let options = Options { bad: Some(bad), bad_connections: Some(1), ..Options::default() };
        Self::registered(shell, options)
    }

    /// Starts a node.
    pub(crate) fn start(&self, arguments: &[&str]) -> NodeProcess {
        NodeProcess::spawn(self.network.node(&self.program, arguments)).unwrap()
    }

    /// Runs a node to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Exit {
        NodeProcess::run(self.network.node(&self.program, arguments), LONG).unwrap()
    }

    /// Waits for a record, from a mark on.
    pub(crate) fn record<T>(
        &self,
        node: &NodeProcess,
        mark: usize,
        what: &str,
        find: impl FnMut(&Record) -> Option<T>,
    ) -> (Instant, T) {
        let journal = self.network.orchestrator.journal();
        journal.wait(mark, LONG, find).unwrap_or_else(|| {
            let seen: Vec<String> = journal.since(0).iter().map(|(_, record)| record.to_string()).collect();
            panic!(
                "the server never saw: {what}\nit saw:\n{}\nthe node said:\n{}",
                seen.join("\n"),
                said(node)
            )
        })
    }

    /// Waits for the control session of tunnel connection `number`: when it was ready.
    pub(crate) fn ready(&self, node: &NodeProcess, number: u64) -> Instant {
        let (at, ()) =
            self.record(node, 0, &format!("session on connection {number}"), |record| match record {
                Record::Ready { connection, mode: Mode::Control, .. } if *connection == number => Some(()),
                _ => None,
            });
        at
    }

    /// Waits for a heartbeat on tunnel connection `number`: when it was seen.
    pub(crate) fn heartbeat(&self, node: &NodeProcess, number: u64) -> Instant {
        let (at, ()) =
            self.record(node, 0, &format!("heartbeat on connection {number}"), |record| match record {
                Record::Message { connection, message }
                    if *connection == number && message["type"] == "heartbeat" =>
                {
                    Some(())
                }
                _ => None,
            });
        at
    }

    /// Waits for the end of tunnel connection `number`: the node's close code.
    pub(crate) fn ended(&self, node: &NodeProcess, number: u64) -> (Option<u16>, String) {
        let (_, end) = self.record(node, 0, &format!("end of connection {number}"), |record| match record {
            Record::Ended { connection, code, reason } if *connection == number => {
                Some((*code, reason.clone()))
            }
            _ => None,
        });
        end
    }

    /// How many tunnel connections there were.
    pub(crate) fn connections(&self) -> usize {
        let records = self.network.orchestrator.journal().since(0);
        records.iter().filter(|(_, record)| matches!(record, Record::Tunnel { .. })).count()
    }

    /// The messages of the node so far.
    pub(crate) fn messages(&self) -> Vec<Value> {
        let records = self.network.orchestrator.journal().since(0);
        let message = |(_, record)| match record {
            Record::Message { message, .. } => Some(message),
            _ => None,
        };
        records.into_iter().filter_map(message).collect()
    }

    /// Has the registered node fetch something for a client of the network.
    pub(crate) fn proxy(&self, request: &Value) -> Answer {
        self.network.post(&format!("/node/tunnel/proxy/{NODE_ID}"), request).unwrap()
    }

    /// Has the registered node fetch a few bytes and checks them.
    pub(crate) fn assert_serves(&self) {
        let url = self.network.upstream.url("/b/1000");
        let answer = self.proxy(&json!({ "target_url": url, "method": "GET" }));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let body = consensus_core::wire::base64::decode(answer.body["body"].as_str().unwrap());
        assert_eq!(body.unwrap(), consensus_testbed::upstream::bytes(1000));
    }
}

/// Waits for a line of the node's log.
pub(crate) fn line(node: &NodeProcess, mark: usize, what: &str, matches: impl FnMut(&Line) -> bool) -> Line {
    node.wait_for(mark, LONG, matches)
        .unwrap_or_else(|| panic!("the node never said: {what}\nit said:\n{}", said(node)))
}

/// Waits for the node to say that a session or an attempt ended, and why: the text must have these words.
pub(crate) fn disconnected(node: &NodeProcess, mark: usize, words: &str) -> Line {
    line(node, mark, &format!("disconnected, {words}"), |line| {
        line.event() == "disconnected" && line.text.contains(words)
    })
}

/// All that a node said so far.
pub(crate) fn said(node: &NodeProcess) -> String {
    node.lines(0).iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// Asks a node to stop; it must end with 0.
pub(crate) fn stop(node: NodeProcess) -> Exit {
    node.terminate().unwrap();
    let exit = node.wait(LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    exit
}

/// The arguments of a node that serves, with a quick eye for a dead server.
pub(crate) const CONTROL: [&str; 6] =
    ["control", "--allow-private-targets", "--ping-seconds", "1", "--silence-seconds", "3"];
