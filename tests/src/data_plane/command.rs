//! `consensus-testbed request`: one request of the data plane, shown.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use argh::FromArgs;
use consensus_core::crypto::pure::Pure;
use consensus_core::peer::client::{Answer, Request};

use super::{Carrier, Connection, Failure, Ticket};
use crate::dial::Server;

/// Where a node's local interface is by default.
const NODE: &str = "ws://127.0.0.1:9090/connect";

/// Have a node of a running network fetch a URL, end to end encrypted, and show what came.
#[derive(Clone, Debug, FromArgs)]
#[argh(
    subcommand,
    example = "{command_name} https://example.com/ --header accept:text/html",
    name = "request",
    error_code(2, "usage"),
    error_code(4, "refused by the network or the node"),
    error_code(
        69,
        "the network or the node cannot be reached, or the target gave nothing: it is not there, or the node may not fetch it"
    ),
    error_code(70, "what came is not of the protocol, or not of the node that was asked")
)]
pub struct RequestCommand {
    /// what to fetch
    #[argh(positional)]
    pub url: String,

    /// gateway (default): through the network; node: directly to the node
    #[argh(option, default = "String::from(\"gateway\")")]
    pub via: String,

    /// the network (default http://127.0.0.1:9800)
    #[argh(option, default = "String::from(\"http://127.0.0.1:9800\")")]
    pub server: String,

    /// certificate to trust for an https network
    #[argh(option)]
    pub ca: Option<PathBuf>,

    /// the node to ask (default any that is connected)
    #[argh(option)]
    pub node: Option<String>,

    /// with --via node: its /connect (default ws://127.0.0.1:9090/connect)
    #[argh(option)]
    pub connect: Option<String>,

    /// the HTTP method (default GET, or POST with a body)
    #[argh(option)]
    pub method: Option<String>,

    /// a header, NAME:VALUE; may be repeated
    #[argh(option)]
    pub header: Vec<String>,

    /// the body to send
    #[argh(option)]
    pub body: Option<String>,
}

/// Makes the request and prints the answer: the body to standard output, everything else to standard error. Gives the
/// exit code.
#[must_use]
pub fn run(command: &RequestCommand) -> u8 {
    match exchange(command) {
        Ok(Answer::Response { status, status_text, headers, body }) => {
            eprintln!("{status} {status_text}");
            for (name, value) in headers {
                eprintln!("{name}: {value}");
            }
            eprintln!();
            let mut out = std::io::stdout().lock();
            if out.write_all(&body).and_then(|()| out.flush()).is_ok() { 0 } else { 70 }
        }
        Ok(Answer::Error { code, message }) => {
            eprintln!("consensus-testbed: the node answers {code}: {message}");
            if code == "upstream_error" { 69 } else { 4 }
        }
        Err((code, message)) => {
            eprintln!("consensus-testbed: {message}");
            code
        }
    }
}

fn exchange(command: &RequestCommand) -> Result<Answer, (u8, String)> {
    let usage = |message: String| (2, message);
    let server = Server::new(&command.server, command.ca.clone())
        .map_err(|error| usage(format!("--server: {error}")))?;
    let direct = match (command.via.as_str(), &command.connect) {
        ("gateway", None) => None,
        ("node", url) => Some(url.clone().unwrap_or_else(|| String::from(NODE))),
        ("gateway", Some(_)) => return Err(usage(String::from("--connect is for --via node"))),
        (other, _) => return Err(usage(format!("--via {other}: there are gateway and node"))),
    };
    let mut headers = BTreeMap::new();
    for header in &command.header {
        let (name, value) =
            header.split_once(':').ok_or_else(|| usage(format!("--header {header}: not NAME:VALUE")))?;
        headers.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    let post = || command.body.as_ref().map(|_| String::from("POST"));
    let request = Request {
        target_url: command.url.clone(),
        method: command.method.clone().or_else(post),
        headers,
        body: command.body.clone().map(String::into_bytes),
    };
    let exchange = async {
        let ticket = Ticket::mint(&server, command.node.as_deref(), &request).await?;
        let carrier = match &direct {
            Some(url) => Carrier::direct(url).await?,
            None => Carrier::gateway(&server, &ticket.node_id).await?,
        };
        let connection = Connection::open(Pure, carrier, &ticket.node_id, &ticket.node_key).await?;
        connection.request(&ticket.token, &request).await
    };
    match smol::block_on(exchange) {
        Ok(exchange) => Ok(exchange.answer),
        Err(failure) => {
            let code = match failure {
                Failure::Refused(_) => 4,
                Failure::Unreachable(_) | Failure::Ended { .. } => 69,
                Failure::Malformed(_) => 70,
            };
            Err((code, failure.to_string()))
        }
    }
}
