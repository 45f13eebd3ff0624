//! What clients of the network get of a node: the data plane, proxy sessions, raw and public tunnels.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use ::smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ::smol::stream::StreamExt as _;
use ::smol::{Async, Executor, Timer, block_on, channel, future};
use async_tungstenite::tungstenite::Message as WsMessage;
use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::data_plane::ticket;
use consensus_core::limits::MAX_HANDSHAKE;
use consensus_core::peer::client::{Answer, Connecting, Request};
use consensus_core::time::Now;
use consensus_core::wire::base64;
use consensus_testbed::background::Background;
use consensus_testbed::binaries::Shell;
use consensus_testbed::data_plane::{Carrier, Connection, Exchange, Failure, Ticket};
use consensus_testbed::dial::{self, Server, Socket};
use consensus_testbed::network::NODE_ID;
use consensus_testbed::process::{NodeProcess, free_address};
use consensus_testbed::tunnel::{Owner, Target};
use consensus_testbed::upstream;
use serde_json::{Value, json};

use crate::lab::{CONTROL, LONG, Lab, stop, with_both_shells};

with_both_shells! {
    a_client_is_served_through_the_gateway_and_directly
    many_clients_are_served_at_once_each_with_its_own_answer
    clients_that_go_while_their_jobs_run_cost_nobody_else
    a_ticket_pays_once_and_only_for_its_request
    somebody_else_in_the_nodes_place_is_found_out
    the_request_subcommand_shows_the_answer_and_says_what_went_wrong
    a_proxy_session_answers_each_message
    a_raw_tunnel_carries_bytes_until_the_target_closes
    visitors_of_a_public_tunnel_reach_the_owners_target
    a_visitor_that_reads_slowly_holds_up_nobody_and_loses_nothing
    a_public_tunnel_ends_with_its_owner
    streams_end_with_the_tunnel
}

/// Nothing takes as long.
fn wait<T>(work: impl Future<Output = T>) -> T {
    block_on(future::or(work, async {
        Timer::after(LONG).await;
        panic!("still waiting after {LONG:?}")
    }))
}

fn server(lab: &Lab) -> Server {
    Server::new(&lab.network.orchestrator.url(), None).unwrap()
}

/// A node that serves strangers and its local interface.
fn run(lab: &Lab) -> NodeProcess {
    let listen = lab.network.local_api.to_string();
    let node = lab.start(&["run", "--listen", &listen, "--allow-private-targets"]);
    lab.ready(&node, 1);
    node
}

fn get(url: String) -> Request {
    Request { target_url: url, ..Request::default() }
}

async fn mint(lab: &Lab, request: &Request) -> Ticket {
    Ticket::mint(&server(lab), Some(NODE_ID), request).await.unwrap()
}

/// Makes a request through the gateway, paid for with that token.
async fn ask(lab: &Lab, ticket: &Ticket, token: &str, request: &Request) -> Result<Exchange, Failure> {
    let carrier = Carrier::gateway(&server(lab), NODE_ID).await?;
    Connection::open(Pure, carrier, NODE_ID, &ticket.node_key).await?.request(token, request).await
}

fn body_of(exchange: Exchange) -> Vec<u8> {
    assert_eq!((exchange.code, exchange.reason.as_str()), (Some(1000), "data-plane complete"));
    match exchange.answer {
        Answer::Response { status: 200, body, .. } => body,
        other => panic!("{other:?}"),
    }
}

fn code_of(exchange: Result<Exchange, Failure>) -> String {
    match exchange.unwrap().answer {
        Answer::Error { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

fn a_client_is_served_through_the_gateway_and_directly(shell: Shell) {
    let lab = Lab::new(shell);
    let node = run(&lab);
    wait(async {
        let request = get(lab.network.upstream.url("/b/300000"));
        let ticket = mint(&lab, &request).await;
        let host =
            format!("ws://{NODE_ID}.node.localhost:{}/connect", lab.network.orchestrator.address().port());
        assert_eq!((ticket.connect_url.as_str(), ticket.node_id.as_str()), (host.as_str(), NODE_ID));
        let exchange = ask(&lab, &ticket, &ticket.token, &request).await.unwrap();
        assert!(body_of(exchange) == upstream::bytes(300_000));

        let request = Request {
            target_url: lab.network.upstream.url("/echo"),
            method: Some(String::from("PUT")),
            headers: [(String::from("content-type"), String::from("a/b"))].into(),
            body: Some((0..=255).collect()),
        };
        let ticket = mint(&lab, &request).await;
        let carrier = Carrier::direct(&format!("ws://{}/connect", lab.network.local_api)).await.unwrap();
        let connection = Connection::open(Pure, carrier, NODE_ID, &ticket.node_key).await.unwrap();
        let exchange = connection.request(&ticket.token, &request).await.unwrap();
        let Answer::Response { headers, .. } = &exchange.answer else { panic!("{exchange:?}") };
        assert_eq!(headers["x-method"], "PUT");
        assert_eq!(Some(body_of(exchange)), request.body);

        let nobody = get(format!("http://{}/", free_address().unwrap()));
        let ticket = mint(&lab, &nobody).await;
        assert_eq!(code_of(ask(&lab, &ticket, &ticket.token, &nobody).await), "upstream_error");
    });
    assert_eq!(lab.connections(), 1);
    stop(node);
}

fn many_clients_are_served_at_once_each_with_its_own_answer(shell: Shell) {
    let lab = Lab::new(shell);
    let node = run(&lab);
    let (lab, executor) = (&lab, Executor::new());
    let client = |number: usize| async move {
        let size = 1000 + number;
        let request = get(lab.network.upstream.url(&format!("/b/{size}")));
        let orchestrator = &lab.network.orchestrator;
        let key = request.dedupe_key(&Pure).unwrap();
        let token = orchestrator.ticket(&orchestrator.claims(NODE_ID, key));
        let ticket = Ticket { token, ..mint(lab, &request).await };
        // Half of them without a gateway between.
        let carrier = if number % 2 == 0 {
            Carrier::gateway(&server(lab), NODE_ID).await.unwrap()
        } else {
            let target = consensus_core::peer::streams::StreamTarget::DataPlane;
            Carrier::Stream(orchestrator.open(NODE_ID, target).unwrap())
        };
        let connection = Connection::open(Pure, carrier, NODE_ID, &ticket.node_key).await.unwrap();
        let exchange = connection.request(&ticket.token, &request).await.unwrap();
        let Answer::Response { body, .. } = exchange.answer else { panic!("{:?}", exchange.answer) };
        assert!(body == upstream::bytes(size), "{number}");
    };
    let clients: Vec<_> = (0..64).map(|number| executor.spawn(client(number))).collect();
    wait(executor.run(async {
        for client in clients {
            client.await;
        }
    }));
    stop(node);
}

fn clients_that_go_while_their_jobs_run_cost_nobody_else(shell: Shell) {
    let lab = Lab::new(shell);
    let node = run(&lab);
    let url = format!("ws://{}/connect", lab.network.local_api);
    let now = Now { monotonic: Duration::ZERO, unix: Duration::ZERO };
    let init = Connecting::start(Pure, NODE_ID, &mut Drbg::new([1; 32]), now).1;
    let come = |number: usize| {
        let (url, init) = (&url, &init);
        async move {
            let mut socket = dial::websocket(url).await.unwrap();
            let said = match number % 4 {
                0 => vec![init.clone(), vec![0; 100_000]],
                1 => vec![init.clone(), init.clone(), init.clone()],
                2 => vec![vec![b'{'; MAX_HANDSHAKE + 1]],
                _ => vec![init.clone()],
            };
            for message in said {
                // The node may have ended it already.
                if socket.send(WsMessage::binary(message)).await.is_err() {
                    return;
                }
            }
            if number % 8 < 4 {
                // And some wait for what comes of it.
                let _ = socket.next().await;
            }
        }
    };
    let executor = Executor::new();
    wait(executor.run(async {
        let clients: Vec<_> = (0..400).map(|number| executor.spawn(come(number))).collect();
        for size in [10, 20] {
            let request = get(lab.network.upstream.url(&format!("/b/{size}")));
            let ticket = mint(&lab, &request).await;
            let exchange = ask(&lab, &ticket, &ticket.token, &request).await.unwrap();
            assert_eq!(body_of(exchange), upstream::bytes(size));
        }
        for client in clients {
            client.await;
        }
        // Nor do those hold it up that are there when it stops.
        let mut late = Vec::new();
        for _ in 0..40 {
            let mut socket = dial::websocket(&url).await.unwrap();
            socket.send(WsMessage::binary(init.clone())).await.unwrap();
            late.push(socket);
        }
        stop(node);
    }));
}

fn a_ticket_pays_once_and_only_for_its_request(shell: Shell) {
    let lab = Lab::new(shell);
    let node = run(&lab);
    let orchestrator = &lab.network.orchestrator;
    wait(async {
        let request = get(lab.network.upstream.url("/b/10"));
        let ticket = mint(&lab, &request).await;
        let good = orchestrator.claims(NODE_ID, request.dedupe_key(&Pure).unwrap());
        let forged = ticket::issue(&Pure, &Pure.signing_key(&[9; 32]), "k", &good);
        let with = |change: fn(&mut ticket::Claims)| {
            let mut claims = good.clone();
            change(&mut claims);
            orchestrator.ticket(&claims)
        };
        for (what, token) in [
            ("another key", forged),
            ("another node", with(|claims| claims.aud = "somebody".into())),
            ("another request", with(|claims| claims.sub = "0".repeat(64).into())),
            ("another scope", with(|claims| claims.scope = "admin".into())),
            ("expired", with(|claims| claims.exp = claims.iat - 10)),
            ("from the future", with(|claims| claims.iat += 60)),
            ("no ticket", String::from("nonsense")),
        ] {
            let refused = ask(&lab, &ticket, &token, &request).await;
            assert_eq!(code_of(refused), "unauthorized", "{what}");
        }
        let other = get(lab.network.upstream.url("/b/11"));
        let token = orchestrator.ticket(&good);
        assert_eq!(code_of(ask(&lab, &ticket, &token, &other).await), "unauthorized");
        assert_eq!(lab.network.upstream.requests(), 0);
        // None of the refusals has burnt it.
        assert_eq!(body_of(ask(&lab, &ticket, &token, &request).await.unwrap()), upstream::bytes(10));
        assert_eq!(code_of(ask(&lab, &ticket, &token, &request).await), "unauthorized");
        assert_eq!(lab.network.upstream.requests(), 1);
    });
    stop(node);
}

fn somebody_else_in_the_nodes_place_is_found_out(shell: Shell) {
    let lab = Lab::new(shell);
    let node = run(&lab);
    wait(async {
        let other_key = Pure.public_key(&Pure.signing_key(&[9; 32]));
        let carrier = Carrier::gateway(&server(&lab), NODE_ID).await.unwrap();
        let failed = Connection::open(Pure, carrier, NODE_ID, &other_key).await.unwrap_err();
        assert!(matches!(failed, Failure::Malformed(_)), "{failed}");
        let carrier = Carrier::gateway(&server(&lab), NODE_ID).await.unwrap();
        let failed = Connection::open(Pure, carrier, "another", &other_key).await.unwrap_err();
        let ended = Failure::Ended { code: Some(1000), reason: String::from("handshake failed") };
        assert_eq!(failed, ended);
        let failed = Carrier::gateway(&server(&lab), "nobody").await.unwrap_err();
        assert!(matches!(failed, Failure::Unreachable(_)), "{failed}");
    });
    stop(node);
}

fn the_request_subcommand_shows_the_answer_and_says_what_went_wrong(shell: Shell) {
    let lab = Lab::new(shell);
    let node = run(&lab);
    let request = |url: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consensus-testbed"));
        command.args(["request", url, "--server", &lab.network.orchestrator.url()]).args(arguments);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, body, rest) = request(&lab.network.upstream.url("/b/16"), &["--node", NODE_ID]);
    assert_eq!((code, body.as_str()), (0, "0000000.0000001."), "{rest}");
    assert!(
        rest.starts_with("200 ") && rest.contains("\ncontent-type: application/octet-stream\n"),
        "{rest}"
    );
    let connect = format!("ws://{}/connect", lab.network.local_api);
    let arguments = ["--via", "node", "--connect", &connect, "--header", "Accept: a/b", "--body", "hello"];
    let (code, body, rest) = request(&lab.network.upstream.url("/echo"), &arguments);
    assert_eq!((code, body.as_str()), (0, "hello"), "{rest}");
    assert!(rest.contains("\nx-method: POST\n"), "{rest}");
    for (url, arguments, expected) in [
        ("http://127.0.0.1:1/", &[][..], 69),
        ("http://127.0.0.1:1/", &["--via", "node", "--connect", "ws://127.0.0.1:1/connect"], 69),
        ("nonsense", &[], 4),
        ("http://a/", &["--node", "nobody"], 4),
        ("http://a/", &["--via", "pigeon"], 2),
        ("http://a/", &["--header", "none"], 2),
    ] {
        let (code, body, rest) = request(url, arguments);
        assert_eq!((code, body.as_str()), (expected, ""), "{url} {arguments:?}: {rest}");
        assert!(rest.starts_with("consensus-testbed: "), "{rest}");
    }
    stop(node);
}

async fn next(socket: &mut Socket) -> WsMessage {
    socket.next().await.unwrap().unwrap()
}

async fn closed(socket: &mut Socket) -> (u16, String) {
    loop {
        if let WsMessage::Close(Some(frame)) = next(socket).await {
            return (frame.code.into(), frame.reason.as_str().to_owned());
        }
    }
}

fn a_proxy_session_answers_each_message(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    wait(async {
        let mut socket = server(&lab).websocket("/ws").await.unwrap();
        for size in [0, 10, 100_000] {
            let url = lab.network.upstream.url(&format!("/b/{size}"));
            socket.send(WsMessage::text(json!({ "id": size, "url": url }).to_string())).await.unwrap();
            let WsMessage::Text(text) = next(&mut socket).await else { panic!() };
            let answer: Value = serde_json::from_str(text.as_str()).unwrap();
            assert_eq!((&answer["id"], &answer["status"]), (&json!(size), &json!(200)), "{answer}");
            assert!(base64::decode(answer["body"].as_str().unwrap()).unwrap() == upstream::bytes(size));
        }
        socket.send(WsMessage::text("{nope")).await.unwrap();
        let WsMessage::Text(text) = next(&mut socket).await else { panic!() };
        assert!(text.as_str().contains("invalid_request"), "{text}");
        socket.close(None).await.unwrap();
    });
    stop(node);
}

/// Sends back what it gets, and closes after an end of transmission.
fn echo_server() -> (SocketAddr, Background) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = |mut stream: Async<TcpStream>| async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            if stream.write_all(&chunk[..count]).await.is_err() || chunk[..count].ends_with(b"\x04") {
                return;
            }
        }
    };
    (address, Background::start("echo", listener, serve).unwrap())
}

fn a_raw_tunnel_carries_bytes_until_the_target_closes(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let (address, _echo) = echo_server();
    let path = |port: u16| format!("/raw?node={NODE_ID}&host=127.0.0.1&port={port}");
    wait(async {
        let (mut socket, mut echoed) =
            (server(&lab).websocket(&path(address.port())).await.unwrap(), Vec::new());
        let sent = [vec![b'x'; 1_000_000], b"the end\x04".to_vec()].concat();
        socket.send(WsMessage::binary(sent.clone())).await.unwrap();
        while echoed.len() < sent.len() {
            let WsMessage::Binary(data) = next(&mut socket).await else { panic!() };
            echoed.extend_from_slice(&data);
        }
        assert!(echoed == sent);
        assert_eq!(closed(&mut socket).await, (1000, String::from("target closed")));
        let nobody = free_address().unwrap().port();
        let mut socket = server(&lab).websocket(&path(nobody)).await.unwrap();
        let (code, reason) = closed(&mut socket).await;
        assert_eq!(code, 1011, "{reason}");
        assert!(server(&lab).websocket("/raw?node=nobody&host=h&port=1").await.is_err());
    });
    lab.assert_serves();
    stop(node);
}

/// An owner that leads visitors to that address, in a thread of its own until it is dropped.
struct Owned {
    url: String,
    host: String,
    stop: Option<channel::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Owned {
    fn start(lab: &Lab, target: SocketAddr) -> Self {
        let owner = wait(Owner::connect(&server(lab), Some(NODE_ID))).unwrap();
        let (url, host) = (owner.url().to_owned(), format!("{}.tunnel.localhost", owner.tunnel_id()));
        let (stop, stopped) = channel::bounded::<()>(1);
        let thread = std::thread::spawn(move || {
            let target = Target::parse(&target.to_string()).unwrap();
            block_on(future::or(async { drop(owner.serve(target).await) }, async {
                let _ = stopped.recv().await;
            }));
        });
        Self { url, host, stop: Some(stop), thread: Some(thread) }
    }

    /// A visitor, its request sent.
    fn visit(&self, lab: &Lab, path: &str) -> TcpStream {
        visit(lab, &self.host, path)
    }
}

fn visit(lab: &Lab, host: &str, path: &str) -> TcpStream {
    let mut visitor = TcpStream::connect(lab.network.orchestrator.address()).unwrap();
    visitor.set_read_timeout(Some(LONG)).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    visitor.write_all(head.as_bytes()).unwrap();
    visitor
}

impl Drop for Owned {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn read_all(mut visitor: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    visitor.read_to_end(&mut answer).unwrap();
    answer
}

fn upstream_address(lab: &Lab) -> SocketAddr {
    lab.network.upstream.url("").strip_prefix("http://").unwrap().parse().unwrap()
}

fn visitors_of_a_public_tunnel_reach_the_owners_target(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let owner = Owned::start(&lab, upstream_address(&lab));
    let port = lab.network.orchestrator.address().port();
    assert_eq!(owner.url, format!("http://{}:{port}", owner.host));
    for size in [0, 1, 1_000_000] {
        let answer = read_all(owner.visit(&lab, &format!("/b/{size}")));
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(answer.ends_with(&upstream::bytes(size)));
    }
    // Nobody there: the owner resets, and the visitor is told.
    let nowhere = Owned::start(&lab, free_address().unwrap());
    let answer = String::from_utf8(read_all(nowhere.visit(&lab, "/"))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("target reset"), "{answer}");
    assert!(read_all(visit(&lab, "nobody.tunnel.localhost", "/")).starts_with(b"HTTP/1.1 404 "));
    stop(node);
}

fn a_visitor_that_reads_slowly_holds_up_nobody_and_loses_nothing(shell: Shell) {
    // More than the sockets on the way hold.
    const SLOW: usize = 5_000_000;
    const QUICK: usize = 100_000;
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let (address, _echo) = echo_server();
    let owner = Owned::start(&lab, address);
    let (slow_body, quick_body) = (upstream::bytes(SLOW), upstream::bytes(QUICK));
    // Everything a visitor sends comes back, its head first.
    let pass = |quick: Option<&mpsc::Receiver<()>>| {
        let body = if quick.is_some() { &slow_body } else { &quick_body };
        let mut visitor = owner.visit(&lab, "/");
        let mut writer = visitor.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(body).unwrap());
            if let Some(quick) = quick {
                // Reads nothing until all the others are done.
                for _ in 0..8 {
                    quick.recv_timeout(LONG).unwrap();
                }
            }
            let head = b"connection: close\r\n\r\n";
            let mut got = vec![0; body.len()];
            let mut first = Vec::new();
            while !first.ends_with(head) {
                let mut byte = [0];
                visitor.read_exact(&mut byte).unwrap();
                first.push(byte[0]);
            }
            visitor.read_exact(&mut got).unwrap();
            assert!(got == *body);
        });
    };
    std::thread::scope(|scope| {
        let (done, quick) = mpsc::channel();
        let pass = &pass;
        scope.spawn(move || pass(Some(&quick)));
        for _ in 0..8 {
            let done = done.clone();
            scope.spawn(move || {
                pass(None);
                done.send(()).unwrap();
            });
        }
    });
    lab.assert_serves();
    stop(node);
}

fn a_public_tunnel_ends_with_its_owner(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let (address, _echo) = echo_server();
    let owner = Owned::start(&lab, address);
    let mut visitor = owner.visit(&lab, "/");
    let mut first = [0; 4];
    visitor.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"GET ");
    let host = owner.host.clone();
    drop(owner);
    // What was on its way still arrives, and then the end.
    assert!(read_all(visitor).ends_with(b"\r\n\r\n"));
    assert!(read_all(visit(&lab, &host, "/")).starts_with(b"HTTP/1.1 404 "));
    let messages = lab.messages();
    let reason = |message: &Value| message["reason"].as_str().unwrap_or_default().to_owned();
    let ended =
        |message: &Value| message["type"] == "stream_close" && reason(message) == "tunnel owner closed";
    assert!(messages.iter().any(ended), "{messages:?}");
    stop(node);
}

fn streams_end_with_the_tunnel(shell: Shell) {
    let mut lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let (closed, ends) = channel::unbounded();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let _target = Background::start("target", listener, move |mut stream| {
        let closed = closed.clone();
        async move {
            let _ = stream.write_all(b"hello").await;
            let _ = closed.send(stream.read_to_end(&mut Vec::new()).await.is_ok()).await;
        }
    });
    wait(async {
        let path = format!("/raw?node={NODE_ID}&host=127.0.0.1&port={port}");
        let mut socket = server(&lab).websocket(&path).await.unwrap();
        assert_eq!(next(&mut socket).await, WsMessage::binary(&b"hello"[..]));
        lab.network.orchestrator.go_down();
        ends.recv().await.unwrap();
    });
    lab.network.orchestrator.come_back().unwrap();
    lab.ready(&node, 2);
    lab.assert_serves();
    stop(node);
}
