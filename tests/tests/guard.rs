//! The guard with real nodes and real connections, in a network in which every address of the world is this machine's:
//! a listener at every address shows what a node connects to for strangers, and what it does not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics and says where")]

use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consensus_core::crypto::pem;
use consensus_core::crypto::pure::Pure;
use consensus_core::guard::Target;
use consensus_core::peer::client::{Answer, Request};
use consensus_core::peer::orchestrator::Input;
use consensus_core::peer::streams::StreamTarget;
use consensus_core::tunnel::Mode;
use consensus_core::wire::base64;
use consensus_core::wire::message::{BodyEncoding, ProxyRequest, StreamData, StreamOpen};
use consensus_testbed::background::Background;
use consensus_testbed::binaries::{self, Shell};
use consensus_testbed::client;
use consensus_testbed::conn::Conn;
use consensus_testbed::data_plane::{Carrier, Connection};
use consensus_testbed::dns::Dns;
use consensus_testbed::namespace::RESOLVER;
use consensus_testbed::network::{NODE_ID, Network};
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;
use consensus_testbed::tls;
use serde_json::{Value, json};
use smol::io::AsyncWriteExt as _;

#[path = "../../core/src/guard/cases.rs"]
mod cases;

use cases::{ALLOWED, BLOCKED};

/// Longer than anything takes on a healthy machine, however busy.
const LONG: Duration = Duration::from_secs(60);

/// What is said of a target that is refused without being looked up.
const REFUSALS: [&str; 3] = [
    "the target is not on the public internet",
    "the URL is not valid",
    "the URL's port is not one to connect to",
];

/// Each function as a test with each shell, in a network of its own.
macro_rules! in_a_network_of_its_own {
    ($($name:ident)*) => {
        mod smol_shell { $(in_a_network_of_its_own!(@ smol_shell Smol $name);)* }
        mod blocking_shell { $(in_a_network_of_its_own!(@ blocking_shell Blocking $name);)* }
    };
    (@ $module:ident $shell:ident $name:ident) => {
        #[test]
        fn $name() {
            let test = concat!(stringify!($module), "::", stringify!($name));
            let shell = consensus_testbed::binaries::Shell::$shell;
            // Built where there is still a network to build with.
            consensus_testbed::binaries::build(shell).unwrap();
            if let Err(error) = consensus_testbed::namespace::run(test, || super::$name(shell)) {
                panic!("{error}");
            }
        }
    };
}

in_a_network_of_its_own! {
    no_spelling_of_a_forbidden_target_gets_a_connection
    without_the_guard_the_listeners_would_have_seen_them
    public_targets_are_connected_to_as_they_were_judged
    a_name_is_refused_for_any_address_that_is_not_public
    a_name_that_changes_is_judged_and_used_by_one_look_up
    a_redirect_to_a_private_address_is_handed_back_and_not_followed
    certificates_are_checked_against_the_name_of_the_pinned_address
    proxy_sessions_are_guarded
    raw_tunnels_are_guarded
    data_plane_requests_are_guarded_and_a_refusal_spends_no_ticket
    the_local_proxy_is_guarded
}

/// A connection that arrived: where, and what its request asked of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    address: IpAddr,
    port: u16,
    /// The `Host` and the path, once they are read.
    asked: Option<(String, String)>,
}

type Arrivals = Arc<Mutex<Vec<Arrival>>>;

/// Servers at all addresses of some ports, and a name server.
struct World {
    network: Network,
    dns: Dns,
    arrivals: Arrivals,
    _servers: Vec<Background>,
    node: NodeProcess,
    node_key: [u8; 32],
    numbers: AtomicU64,
}

impl World {
    fn new(shell: Shell, arguments: &[&str]) -> Self {
        let arrivals = Arrivals::default();
        let mut servers = Vec::new();
        for port in [80, 81, 8080] {
            let arrivals = Arc::clone(&arrivals);
            let serve = move |stream| {
                let number = arrive(&arrivals, &stream);
                answer(Conn::plain(stream), Arc::clone(&arrivals), number)
            };
            servers.push(listen(port, serve));
        }
        let network = Network::with(Options::default()).unwrap();
        network.register_node().unwrap();
        let node_key = fs::read_to_string(network.home.state_dir().join("keys/node.pub")).unwrap();
        let node_key = pem::decode_public(&node_key).unwrap();
        let (pem, acceptor) = tls::authority(&[String::from("named.test")], None).unwrap();
        let ca = network.home.root().join("public-ca.pem");
        fs::write(&ca, pem).unwrap();
        let seen = Arc::clone(&arrivals);
        servers.push(listen(443, move |stream| {
            let number = arrive(&seen, &stream);
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(Conn::tls(stream), seen, number).await;
                }
            }
        }));
        let dns = Dns::start(RESOLVER).unwrap();
        let mut command = network.node(&binaries::build(shell).unwrap(), arguments);
        command.env("CONSENSUS_CA_FILE", ca);
        let node = NodeProcess::spawn(command).unwrap();
        let ready = network.orchestrator.journal().wait(0, LONG, |record| {
            matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
        });
        let numbers = AtomicU64::new(0);
        let world = Self { network, dns, arrivals, _servers: servers, node, node_key, numbers };
        assert!(ready.is_some(), "no session; the node said:\n{}", world.said());
        world
    }

    fn said(&self) -> String {
        self.node.lines(0).iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Has the node fetch something for the network; its answer.
    fn fetch(&self, url: &str) -> Value {
        let id = self.name();
        let request = ProxyRequest {
            id: id.clone(),
            target_url: url.to_owned(),
            method: None,
            headers: None,
            body: None,
            body_encoding: BodyEncoding::Utf8,
        };
        self.ask(Input::Proxy(request), |message| message["reply_to"] == id)
    }

    /// What a fetch was refused with; it must have been.
    fn refusal(&self, url: &str) -> String {
        let answer = self.fetch(url);
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("proxy_failed")), "{url:?}");
        answer["message"].as_str().unwrap().to_owned()
    }

    /// A message of the node that is the answer to an input.
    fn ask(&self, input: Input, is_answer: impl Fn(&Value) -> bool) -> Value {
        self.ask_all([input], is_answer)
    }

    /// A message of the node that is the answer to some inputs, be it to the first of them.
    fn ask_all<const N: usize>(&self, inputs: [Input; N], is_answer: impl Fn(&Value) -> bool) -> Value {
        let journal = self.network.orchestrator.journal();
        let mark = journal.mark();
        for input in inputs {
            assert!(self.network.orchestrator.tell(NODE_ID, input));
        }
        let answer = journal.wait(mark, LONG, |record| match record {
            Record::Message { message, .. } if is_answer(message) => Some(message.clone()),
            _ => None,
        });
        answer.unwrap_or_else(|| panic!("no answer; the node said:\n{}", self.said())).1
    }

    /// A ticket of the network for a GET of this URL.
    fn ticket(&self, url: &str) -> String {
        // A URL that is none has no key; a ticket for it is a ticket all the same.
        let key = get(url).dedupe_key(&Pure).unwrap_or_else(|| String::from("none"));
        let orchestrator = &self.network.orchestrator;
        orchestrator.ticket(&orchestrator.claims(NODE_ID, key))
    }

    /// What a client of the data plane is answered: a status, or the code of an error.
    fn data_plane(&self, url: &str, ticket: &str) -> Result<u16, String> {
        let stream = self.network.orchestrator.open(NODE_ID, StreamTarget::DataPlane).unwrap();
        let exchange = smol::block_on(async {
            let carrier = Carrier::Stream(stream);
            let connection = Connection::open(Pure, carrier, NODE_ID, &self.node_key).await.unwrap();
            connection.request(ticket, &get(url)).await.unwrap()
        });
        match exchange.answer {
            Answer::Response { status, .. } => Ok(status),
            Answer::Error { code, .. } => Err(code),
        }
    }

    fn name(&self) -> String {
        format!("n{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// What arrived since this was asked last.
    fn arrived(&self) -> Vec<Arrival> {
        std::mem::take(&mut *self.arrivals.lock().unwrap())
    }

    /// Fetches from a public address, which must be the only one that was connected to since this was asked last.
    fn assert_only_this_arrives(&self) {
        assert_eq!(self.fetch("http://8.8.8.8/the-end")["status"], 200);
        let end = Arrival {
            address: ip("8.8.8.8"),
            port: 80,
            asked: Some((String::from("8.8.8.8"), String::from("/the-end"))),
        };
        assert_eq!(self.arrived(), [end]);
    }
}

fn get(url: &str) -> Request {
    Request { target_url: url.to_owned(), ..Request::default() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// All literal addresses among the forbidden targets.
fn forbidden_addresses() -> Vec<IpAddr> {
    let literal = |host: &&str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse().map(IpAddr::V6).ok(),
        None => host.parse().map(IpAddr::V4).ok(),
    };
    BLOCKED.iter().filter_map(literal).collect()
}

fn listen<F: Future<Output = ()> + Send + 'static>(
    port: u16,
    serve: impl Fn(smol::Async<std::net::TcpStream>) -> F + Send + 'static,
) -> Background {
    // Of both families: an IPv4 connection arrives at a mapped address.
    let listener = TcpListener::bind(("::", port)).unwrap();
    Background::start("world", listener, serve).unwrap()
}

fn arrive(arrivals: &Arrivals, stream: &smol::Async<std::net::TcpStream>) -> usize {
    let local = stream.get_ref().local_addr().unwrap();
    let mut arrivals = arrivals.lock().unwrap();
    arrivals.push(Arrival { address: local.ip().to_canonical(), port: local.port(), asked: None });
    arrivals.len() - 1
}

/// Answers one request: with a redirect for `/redirect/STATUS/LOCATION`, else with a word.
async fn answer(mut conn: Conn, arrivals: Arrivals, number: usize) {
    let Ok(Some(head)) = conn.peek_head().await else { return };
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let host =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("host: ").map(String::from));
    if let Some(arrival) = arrivals.lock().unwrap().get_mut(number) {
        arrival.asked = Some((host.unwrap_or_default(), path.clone()));
    }
    let redirect = path.strip_prefix("/redirect/").and_then(|rest| rest.split_once('/'));
    let response = match redirect {
        Some((status, location)) => {
            format!(
                "HTTP/1.1 {status} Elsewhere\r\nlocation: {location}\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngone"
            )
        }
        None => String::from("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"),
    };
    let _ = conn.write_all(response.as_bytes()).await;
    let _ = conn.flush().await;
    let _ = conn.close().await;
}

/// How many TCP connections anybody in this network has tried to open so far.
fn connections_tried() -> io::Result<u64> {
    let counters = fs::read_to_string("/proc/net/snmp")?;
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next(), lines.next());
    let mut pairs = names.into_iter().flatten().zip(values.into_iter().flatten());
    let tried = pairs.find(|(name, _)| *name == "ActiveOpens").and_then(|(_, value)| value.parse().ok());
    tried.ok_or_else(|| io::Error::other("no ActiveOpens"))
}

fn no_spelling_of_a_forbidden_target_gets_a_connection(shell: Shell) {
    let world = World::new(shell, &["control"]);
    let before = connections_tried().unwrap();
    assert!(BLOCKED.len() >= 150);
    for host in BLOCKED {
        for url in [format!("http://{host}/"), format!("https://{host}/"), format!("http://{host}:8080/x")] {
            // By what stands in the URL alone: nothing was looked up.
            let message = world.refusal(&url);
            assert!(REFUSALS.contains(&message.as_str()), "{url:?}: {message}");
        }
    }
    for url in [
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1:80/",
        "file:///etc/passwd",
        "ws://127.0.0.1/",
        "//127.0.0.1/",
    ] {
        world.refusal(url);
    }
    // Not one was so much as tried, at any port.
    assert_eq!(connections_tried().unwrap(), before, "{:?}", world.arrived());
    world.assert_only_this_arrives();
    assert_eq!(connections_tried().unwrap(), before + 1);
}

fn without_the_guard_the_listeners_would_have_seen_them(shell: Shell) {
    let world = World::new(shell, &["control", "--allow-private-targets"]);
    let mut seen = 0;
    for host in BLOCKED {
        let url = format!("http://{host}/");
        let answer = world.fetch(&url);
        let arrived = world.arrived();
        if answer["status"] == 200 {
            assert_eq!(arrived.len(), 1, "{url:?}");
            seen += 1;
        }
    }
    // The others are no URLs, or the system itself connects to no such address.
    println!("{seen} of {} arrived", BLOCKED.len());
    assert!(seen >= 150, "{seen} of {}", BLOCKED.len());
}

fn public_targets_are_connected_to_as_they_were_judged(shell: Shell) {
    let world = World::new(shell, &["control"]);
    for (host, address, port) in [
        ("203.0.114.10", "203.0.114.10", 80),
        ("134744072", "8.8.8.8", 80),
        ("010.8.8.8", "8.8.8.8", 80),
        ("8.8.8.8.", "8.8.8.8", 80),
        ("10.0.0.1@8.8.8.8", "8.8.8.8", 80),
        ("8.8.8.8:81", "8.8.8.8", 81),
        ("[2606:4700::1111]", "2606:4700::1111", 80),
        ("[2606:4700::1111]:8080", "2606:4700::1111", 8080),
        ("[::ffff:8.8.8.8]", "8.8.8.8", 80),
        ("[64:ff9b::8.8.8.8]", "64:ff9b::8.8.8.8", 80),
        ("[2002:808:808::1]", "2002:808:808::1", 80),
    ] {
        assert_eq!(world.fetch(&format!("http://{host}/"))["status"], 200, "{host}");
        let arrived: Vec<_> = world.arrived().into_iter().map(|a| (a.address, a.port)).collect();
        assert_eq!(arrived, [(ip(address), port)], "{host}");
    }
    let named = ip("198.41.0.4");
    for host in ALLOWED {
        let url = format!("http://{host}/p?q");
        let target = Target::parse(&url).unwrap();
        if target.literal.is_none() && target.host != "localhost" {
            world.dns.set(target.host.trim_end_matches('.'), &[named]);
        } else if target.literal.is_none() {
            continue;
        }
        assert_eq!(world.fetch(&url)["status"], 200, "{url}");
        let expected = Arrival {
            address: target.literal.map_or(named, |literal| literal.to_canonical()),
            port: target.port,
            asked: Some((target.host_header(), target.path_and_query.clone())),
        };
        assert_eq!(world.arrived(), [expected], "{url}");
    }
    // Of several public addresses, one of them.
    let several = [ip("203.0.114.10"), ip("203.0.114.11"), ip("2606:4700::1111")];
    world.dns.set("several.test", &several);
    assert_eq!(world.fetch("http://several.test/")["status"], 200);
    let arrived = world.arrived();
    assert!(arrived.len() == 1 && several.contains(&arrived[0].address), "{arrived:?}");
}

fn a_name_is_refused_for_any_address_that_is_not_public(shell: Shell) {
    let world = World::new(shell, &["control"]);
    let public = [ip("203.0.114.10"), ip("2606:4700::1111")];
    let before = connections_tried().unwrap();
    let addresses = forbidden_addresses();
    assert!(addresses.len() > 100);
    let refused = |name: &str, addresses: &[IpAddr]| {
        world.dns.set(name, addresses);
        let message = world.refusal(&format!("http://{name}/"));
        assert_eq!(message, "refused: the target is not on the public internet", "{name}: {addresses:?}");
        assert_eq!(world.dns.look_ups(name), 1);
    };
    for (number, private) in addresses.iter().enumerate() {
        refused(&format!("private{number}.test"), &[*private]);
        // Before and after public ones, of either family.
        refused(&format!("first{number}.test"), &[*private, public[0], public[1]]);
        refused(&format!("last{number}.test"), &[public[0], public[1], *private]);
    }
    // Names that the system knows without asking anybody.
    for name in ["localhost", "LOCALHOST", "ip6-localhost", "intranet"] {
        let message = world.refusal(&format!("http://{name}/"));
        assert_eq!(message, "refused: the target is not on the public internet", "{name}");
    }
    // Names of digits are none; names that look like an address at their begin are names like others.
    refused("127.0.0.1.test", &[ip("127.0.0.1")]);
    refused("xn--bcher-kva.test", &[ip("fd00::1")]);
    world.dns.set("nowhere.test", &[]);
    for name in ["nowhere.test", "unknown.test", "localhost.", "intranet."] {
        assert!(world.refusal(&format!("http://{name}/")).starts_with("the name does not resolve: "));
    }
    assert_eq!(connections_tried().unwrap(), before, "{:?}", world.arrived());
    world.assert_only_this_arrives();
}

fn a_name_that_changes_is_judged_and_used_by_one_look_up(shell: Shell) {
    let world = World::new(shell, &["control"]);
    let (public, private) = (ip("203.0.114.10"), ip("127.0.0.1"));
    for (number, private) in [private, ip("10.0.0.1"), ip("::1"), ip("fd00::1")].into_iter().enumerate() {
        // Public when it is judged, private ever after.
        let name = format!("public-first{number}.test");
        world.dns.change(&name, &[&[public], &[private]]);
        assert_eq!(world.fetch(&format!("http://{name}/"))["status"], 200);
        assert_eq!(world.dns.look_ups(&name), 1, "a second look-up can be fooled");
        let arrived = world.arrived();
        assert_eq!(arrived.len(), 1);
        assert_eq!((arrived[0].address, &arrived[0].asked.as_ref().unwrap().0), (public, &name));
        // Whatever it is taken for later on, nothing private is connected to.
        for _ in 0..4 {
            world.fetch(&format!("http://{name}/"));
        }
        assert!(world.arrived().iter().all(|arrival| arrival.address == public));

        // The other way round: private when it is judged.
        let name = format!("private-first{number}.test");
        world.dns.change(&name, &[&[private], &[public]]);
        let message = world.refusal(&format!("http://{name}/"));
        assert_eq!(message, "refused: the target is not on the public internet");
        assert_eq!(world.dns.look_ups(&name), 1);
        assert_eq!(world.arrived(), []);
    }
    world.assert_only_this_arrives();
}

fn a_redirect_to_a_private_address_is_handed_back_and_not_followed(shell: Shell) {
    let world = World::new(shell, &["control"]);
    world.dns.set("private.test", &[ip("192.168.0.1")]);
    for status in [301, 302, 303, 307, 308] {
        for location in
            ["http://127.0.0.1/", "http://[::1]/", "http://private.test/", "//10.0.0.1/", "/elsewhere"]
        {
            let answer = world.fetch(&format!("http://203.0.114.10/redirect/{status}/{location}"));
            assert_eq!(answer["status"], status);
            assert_eq!(answer["headers"]["location"], location);
            assert_eq!(base64::decode(answer["body"].as_str().unwrap()).unwrap(), b"gone");
            let arrived: Vec<IpAddr> = world.arrived().iter().map(|arrival| arrival.address).collect();
            assert_eq!(arrived, [ip("203.0.114.10")]);
        }
    }
    assert_eq!(world.dns.look_ups("private.test"), 0);
}

fn certificates_are_checked_against_the_name_of_the_pinned_address(shell: Shell) {
    let world = World::new(shell, &["control"]);
    for name in ["named.test", "other.test"] {
        world.dns.set(name, &[ip("203.0.114.10")]);
    }
    assert_eq!(world.fetch("https://named.test/")["status"], 200);
    assert!(world.refusal("https://other.test/").starts_with("TLS failed"));
    assert!(world.refusal("https://203.0.114.10/").starts_with("TLS failed"));
    let arrived: Vec<_> =
        world.arrived().into_iter().map(|arrival| (arrival.address, arrival.port)).collect();
    assert_eq!(arrived, [(ip("203.0.114.10"), 443); 3]);
}

fn proxy_sessions_are_guarded(shell: Shell) {
    let world = World::new(shell, &["control"]);
    world.dns.set("private.test", &[ip("203.0.114.10"), ip("10.0.0.1")]);
    world.dns.set("public.test", &[ip("203.0.114.10")]);
    let orchestrator = &world.network.orchestrator;
    let open = StreamOpen { stream_id: String::from("s"), target: String::from("proxy-session") };
    assert!(orchestrator.tell(NODE_ID, Input::Send(open.encode(0))));
    let fetch = |url: &str| {
        let data = base64::encode(json!({ "id": 1, "url": url }).to_string().as_bytes());
        let data = StreamData { stream_id: String::from("s"), data, encoding: Some(String::from("base64")) };
        let answer = world.ask(Input::Send(data.encode(0)), |message| message["type"] == "stream_data");
        let datum = base64::decode(answer["data"].as_str().unwrap()).unwrap();
        serde_json::from_slice::<Value>(&datum).unwrap()
    };
    let before = connections_tried().unwrap();
    for url in BLOCKED
        .iter()
        .map(|host| format!("http://{host}/"))
        .chain([String::from("http://private.test/"), String::from("http://localhost/")])
    {
        let answer = fetch(&url);
        assert!(
            answer["error"] == "fetch_failed" || answer["error"] == "invalid_request",
            "{url:?}: {answer}"
        );
    }
    assert_eq!(connections_tried().unwrap(), before, "{:?}", world.arrived());
    assert_eq!(fetch("http://public.test/")["status"], 200);
    assert_eq!(world.arrived().len(), 1);
    world.assert_only_this_arrives();
}

fn raw_tunnels_are_guarded(shell: Shell) {
    let world = World::new(shell, &["control"]);
    world.dns.set("private.test", &[ip("203.0.114.10"), ip("10.0.0.1")]);
    world.dns.set("public.test", &[ip("203.0.114.10")]);
    world.dns.change("changes.test", &[&[ip("203.0.114.10")], &[ip("127.0.0.1")]]);
    let ask = |host: &str, port: u16, first: &[u8]| {
        let stream_id = world.name();
        let target = json!({ "kind": "raw-tunnel", "host": host, "port": port }).to_string();
        let open = StreamOpen { stream_id: stream_id.clone(), target };
        let data = StreamData { stream_id: stream_id.clone(), data: base64::encode(first), encoding: None };
        let ends = |message: &Value| message["type"] == "stream_close" && message["stream_id"] == *stream_id;
        let answers =
            |message: &Value| message["type"] == "stream_data" && message["stream_id"] == *stream_id;
        let inputs = [open.encode(0), data.encode(0)].map(Input::Send);
        world.ask_all(inputs, |message| ends(message) || answers(message))
    };
    let before = connections_tried().unwrap();
    for host in
        BLOCKED.iter().copied().chain(["private.test", "localhost", "intranet", "127.0.0.1 ", "10.0.0.1/8"])
    {
        let answer = ask(host, 80, b"x");
        assert_eq!(answer["type"], "stream_close", "{host:?}: {answer}");
    }
    // IPv6 without brackets, at another port.
    for address in forbidden_addresses() {
        assert_eq!(ask(&address.to_string(), 8080, b"x")["type"], "stream_close", "{address}");
    }
    assert_eq!(connections_tried().unwrap(), before, "{:?}", world.arrived());
    // What is public is connected to, names by one look-up.
    for (host, address) in [
        ("203.0.114.10", "203.0.114.10"),
        ("2606:4700::1111", "2606:4700::1111"),
        ("[2606:4700::1111]", "2606:4700::1111"),
        ("public.test", "203.0.114.10"),
        ("changes.test", "203.0.114.10"),
    ] {
        let answer = ask(host, 80, b"GET /raw HTTP/1.1\r\nhost: h\r\n\r\n");
        let answer = base64::decode(answer["data"].as_str().unwrap()).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{host}");
        let arrived: Vec<IpAddr> = world.arrived().iter().map(|arrival| arrival.address).collect();
        assert_eq!(arrived, [ip(address)], "{host}");
    }
    assert_eq!(world.dns.look_ups("changes.test"), 1);
    world.assert_only_this_arrives();
}

fn data_plane_requests_are_guarded_and_a_refusal_spends_no_ticket(shell: Shell) {
    let world = World::new(shell, &["control"]);
    world.dns.set("private.test", &[ip("203.0.114.10"), ip("10.0.0.1")]);
    world.dns.set("public.test", &[ip("203.0.114.10")]);
    let before = connections_tried().unwrap();
    let urls = BLOCKED
        .iter()
        .map(|host| format!("http://{host}/"))
        .chain([String::from("http://private.test/"), String::from("http://localhost/")]);
    for url in urls {
        let code = world.data_plane(&url, &world.ticket(&url)).unwrap_err();
        assert!(code == "upstream_error" || code == "bad_request", "{url:?}: {code}");
    }
    let ticket = world.ticket("http://127.0.0.1/");
    for _ in 0..2 {
        assert_eq!(world.data_plane("http://127.0.0.1/", &ticket).unwrap_err(), "upstream_error");
    }
    assert_eq!(connections_tried().unwrap(), before, "{:?}", world.arrived());
    let ticket = world.ticket("http://public.test/");
    assert_eq!(world.data_plane("http://public.test/", &ticket), Ok(200));
    assert_eq!(world.data_plane("http://public.test/", &ticket).unwrap_err(), "unauthorized");
    assert_eq!(world.arrived().len(), 1);
    world.assert_only_this_arrives();
}

fn the_local_proxy_is_guarded(shell: Shell) {
    let world = World::new(shell, &["run", "--listen", "127.0.0.1:9090"]);
    world.dns.set("private.test", &[ip("203.0.114.10"), ip("10.0.0.1")]);
    world.dns.set("public.test", &[ip("203.0.114.10")]);
    let listening = world.node.wait_for(0, LONG, |line| line.text.contains("9090"));
    assert!(listening.is_some(), "{}", world.said());
    let fetch =
        |url: &str| client::post("http://127.0.0.1:9090/proxy", &json!({ "target_url": url }), None).unwrap();
    let before = connections_tried().unwrap();
    let urls = BLOCKED
        .iter()
        .map(|host| format!("http://{host}/"))
        .chain([String::from("http://private.test/"), String::from("http://localhost/")]);
    let mut asked = 0;
    for url in urls {
        let answer = fetch(&url);
        assert!(answer.status >= 400 && answer.body["status"].is_null(), "{url:?}: {answer:?}");
        asked += 1;
    }
    // Each is one connection of this test's own.
    assert_eq!(connections_tried().unwrap(), before + asked, "{:?}", world.arrived());
    assert_eq!(fetch("http://public.test/").body["status"], 200);
    assert_eq!(world.arrived().len(), 1);
    world.assert_only_this_arrives();
}
