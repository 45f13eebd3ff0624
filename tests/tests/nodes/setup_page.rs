//! `setup --browser` over its sockets, without a browser: who is let in, and a whole setup by what a page would send.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use consensus_core::state::MachineRecord;
use consensus_testbed::binaries::Shell;
use consensus_testbed::network::PAYOUT_OPTIONS;
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::{Exit, NodeProcess};
use consensus_testbed::release;
use serde_json::{Value, json};

use crate::installs;
use crate::lab::{LONG, said, with_both_shells};
use crate::setup::{IPV4, StandIn, World};

with_both_shells! {
    only_who_has_the_whole_address_and_comes_from_nowhere_else_gets_anything
    answers_on_the_page_lead_to_a_connected_node
    a_wrong_answer_is_told_and_asked_again
    one_answer_counts_however_many_come_at_once
    killed_and_stopped_it_goes_on_at_another_address
    a_page_that_says_nothing_or_too_much_keeps_nobody_out
    the_release_that_is_installed_goes_on_with_the_same_page_to_a_supervised_node
    a_machine_that_is_not_admitted_is_told_so
    a_machine_that_holds_another_node_is_refused_without_a_page
    what_makes_no_sense_together_is_refused
}

/// The questions of a whole course, and an answer to each.
const ANSWERS: [(&str, &str); 13] = [
    ("welcome", ""),
    ("server", "SERVER"),
    ("agreement", "yes"),
    ("ipv4", ""),
    ("ipv6", ""),
    ("port", "9191"),
    ("email", "operator@example.org"),
    ("code", "CODE"),
    ("contact", ""),
    ("evm_address", PAYOUT_OPTIONS[1]),
    ("solana_address", PAYOUT_OPTIONS[3]),
    ("icp_address", PAYOUT_OPTIONS[5]),
    ("confirm", "yes"),
];

/// A setup that asks on a page.
struct Page {
    node: NodeProcess,
    authority: String,
    token: String,
}

impl Page {
    fn open(world: &World, more: &[&str]) -> Self {
        let mut arguments = vec!["setup", "--browser", "--address-service", &world.service];
        arguments.extend(more);
        let command = world.lab.network.home.command(&world.lab.program, arguments);
        Self::of(NodeProcess::spawn(command).unwrap())
    }

    fn skipping(world: &World) -> Self {
        Self::open(world, &["--skip-release"])
    }

    fn of(node: NodeProcess) -> Self {
        let end = Instant::now() + LONG;
        let url = loop {
            let stdout = node.stdout();
            let found = stdout.lines().find_map(|line| line.trim().strip_prefix("http://"));
            if let Some(url) = found.filter(|url| url.ends_with('/')) {
                break url.to_owned();
            }
            assert!(Instant::now() < end, "no address: {stdout}\n{}", said(&node));
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut parts = url.split('/');
        let (authority, token) = (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned());
        assert!(authority.starts_with("127.0.0.1:") && token.len() == 43, "{url}");
        Self { node, authority, token }
    }

    /// One request as it is: `TOKEN` in it is the token. The status, the head, and the body.
    fn send(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.authority).unwrap();
        stream.write_all(request.replace("TOKEN", &self.token).as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n"))
    }

    fn post(&self, headers: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let (status, _, body) = self.send(&format!(
            "POST /TOKEN/answer HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        ));
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The headers of a browser that has the page open.
    fn own(&self) -> String {
        let at = &self.authority;
        format!(
            "host: {at}\r\norigin: http://{at}\r\nsec-fetch-site: same-origin\r\ncontent-type: application/json\r\n"
        )
    }

    fn view(&self, after: u64) -> Value {
        let (status, _, body) = self.get(&format!("/TOKEN/view?after={after}"), &self.own());
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until it shows something.
    fn until<T>(&self, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
        let end = Instant::now() + LONG;
        let mut view = self.view(0);
        loop {
            if let Some(found) = find(&view) {
                return found;
            }
            assert!(Instant::now() < end && view["finish"].is_null(), "never {what}: {view:#}");
            view = self.view(view["version"].as_u64().unwrap());
        }
    }

    /// Waits for a question.
    fn question(&self, id: &str) -> Value {
        self.until(id, |view| {
            let question = &view["question"];
            (question["id"] == id).then(|| question.clone())
        })
    }

    fn answer(&self, question: &Value, text: &str) -> (u16, Value) {
        let answer =
            json!({ "number": question["number"], "text": text, "name": "Jo Doe", "words": "I AGREE" });
        self.post(&self.own(), &answer)
    }

    /// Answers a question when it comes.
    fn give(&self, world: &World, id: &str, text: &str) -> Value {
        let question = self.question(id);
        let text = match text {
            "SERVER" => world.url(),
            "CODE" => world.code(),
            other => other.to_owned(),
        };
        let (status, body) = self.answer(&question, &text);
        assert_eq!((status, body), (200, json!({})), "{id}");
        question
    }

    /// How it ended, as the page is told.
    fn end(&self) -> Value {
        let end = Instant::now() + LONG;
        let mut view = self.view(0);
        while view["finish"].is_null() {
            assert!(Instant::now() < end, "{view:#}");
            view = self.view(view["version"].as_u64().unwrap());
        }
        view
    }

    /// The end of the process, which never said the token where it is kept.
    fn exit(self) -> Exit {
        let exit = self.node.wait(LONG).unwrap();
        assert!(!exit.stderr().contains(&self.token), "{}", exit.stderr());
        exit
    }
}

fn only_who_has_the_whole_address_and_comes_from_nowhere_else_gets_anything(shell: Shell) {
    let world = World::with_email(shell);
    let page = Page::skipping(&world);
    let host = format!("host: {}\r\n", page.authority);
    for path in ["/TOKEN/", "/TOKEN/page.css", "/TOKEN/page.js", "/TOKEN/view"] {
        let (status, head, body) = page.get(path, &host);
        assert_eq!(status, 200, "{path}");
        assert!(!body.contains(&page.token) && !body.is_empty(), "{path}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(head.contains(header), "{path}: {header}: {head}");
        }
        assert!(!head.contains("access-control-") && !head.contains("set-cookie"), "{head}");
    }
    let other = format!("{}{}", &page.token[..42], if page.token.ends_with('A') { 'B' } else { 'A' });
    let port = page.authority.split_once(':').unwrap().1;
    let foreign = [
        (403, "/".to_owned(), host.clone()),
        (403, "/view".to_owned(), host.clone()),
        (403, "/TOKEN".to_owned(), host.clone()),
        (403, "/page.js?TOKEN/".to_owned(), host.clone()),
        (403, format!("/{other}/"), host.clone()),
        (403, format!("/{other}/view"), host.clone()),
        (421, "/TOKEN/".to_owned(), format!("host: evil.example:{port}\r\n")),
        (421, "/TOKEN/view".to_owned(), format!("host: localhost:{port}\r\n")),
        (421, "/TOKEN/view".to_owned(), "host: 127.0.0.1\r\n".to_owned()),
        (403, "/TOKEN/view".to_owned(), format!("{host}sec-fetch-site: cross-site\r\n")),
        (403, "/TOKEN/".to_owned(), format!("{host}sec-fetch-site: same-site\r\n")),
        (403, "/TOKEN/view".to_owned(), format!("{host}origin: http://evil.example\r\n")),
        (400, "/TOKEN/".to_owned(), String::new()),
        (400, "/TOKEN/".to_owned(), format!("{host}{host}")),
    ];
    for (expected, path, headers) in &foreign {
        let (status, head, body) = page.get(path, headers);
        assert_eq!(status, *expected, "{path} {headers}: {body}");
        assert!(body.len() < 120 && !head.contains("access-control-"), "{path} {headers}: {head}{body}");
    }
    let own = page.own();
    let begin = json!({ "number": 0, "text": "" });
    for (wrong, headers) in [
        (403, own.replace("origin: http://", "origin: https://")),
        (403, own.replace("same-origin", "cross-site")),
        (403, own.replace(&format!("origin: http://{}", page.authority), "origin: null")),
        (403, own.replace(&format!("origin: http://{}\r\n", page.authority), "")),
        (421, own.replace(&format!("host: {}", page.authority), "host: evil.example")),
        (415, own.replace("application/json", "text/plain")),
    ] {
        let (status, body) = page.post(&headers, &begin);
        assert_eq!(status, wrong, "{headers}: {body}");
    }
    assert_eq!(page.view(0)["question"]["id"], "welcome", "nothing of that was done");
    assert_eq!(page.post(&own, &json!({ "number": 1, "text": "" })).0, 409, "of another question");
    assert_eq!(page.post(&own, &begin).0, 200);
    page.question("server");
    page.node.terminate().unwrap();
    assert_eq!(page.exit().code, Some(70));
}

fn answers_on_the_page_lead_to_a_connected_node(shell: Shell) {
    let world = World::with_email(shell);
    let page = Page::skipping(&world);
    for (id, text) in ANSWERS {
        let question = page.give(&world, id, text);
        match id {
            "agreement" => assert_eq!(question["agreement"], consensus_core::setup::AGREEMENT),
            "ipv4" => assert_eq!(question["default"], IPV4),
            "email" => {
                let view = page.view(0);
                let actions = view["actions"].as_array().unwrap();
                assert!(
                    actions.len() > 3 && actions.iter().all(|action| action["percent"] == 100),
                    "{view:#}"
                );
                assert!(!view["windows"].as_array().unwrap().is_empty(), "{view:#}");
            }
            _ => {}
        }
    }
    let view = page.end();
    assert_eq!(view["finish"]["outcome"], "done", "{view:#}");
    assert!(view["news"].to_string().contains("Region: local-1, Localhost, ZZ"), "{view:#}");
    let exit = page.exit();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    assert!(!exit.stderr().contains("operator@example.org"), "no log gets an address: {}", exit.stderr());
    assert_eq!((world.emails(), world.evaluations()), (1, 1));
    world.assert_set_up();
}

fn a_wrong_answer_is_told_and_asked_again(shell: Shell) {
    let world = World::with_email(shell);
    let page = Page::skipping(&world);
    page.give(&world, "welcome", "");
    let question = page.question("server");
    for wrong in ["", "network.example", "https://a/b"] {
        let (status, body) = page.answer(&question, wrong);
        assert_eq!(status, 422, "{wrong}");
        let why = body["message"].as_str().unwrap();
        assert!(why.contains("; for example https://network.example"), "{why}");
        // Also to a page that is loaded again.
        let asked = page.question("server");
        assert_eq!((&asked["problem"], &asked["number"]), (&why.into(), &question["number"]));
    }
    page.give(&world, "server", "SERVER");
    let agreement = page.question("agreement");
    for (name, words, wanted) in [
        ("", "I AGREE", "name"),
        ("Jo", "", "I AGREE"),
        ("Jo", "I agree", "I AGREE"),
        ("Jo", "yes", "I AGREE"),
    ] {
        let answer = json!({ "number": agreement["number"], "text": "yes", "name": name, "words": words });
        let (status, body) = page.post(&page.own(), &answer);
        assert_eq!(status, 422);
        assert!(body["message"].as_str().unwrap().contains(wanted), "{body}");
    }
    let nameless = json!({ "number": agreement["number"], "text": "yes" });
    assert_eq!(page.post(&page.own(), &nameless).0, 422);
    page.give(&world, "agreement", "yes");
    let ipv4 = page.question("ipv4");
    assert_eq!(page.answer(&ipv4, "10.0.0.1").0, 422);
    assert_eq!(page.answer(&agreement, "yes").0, 409, "that was answered");
    // An end is told, too.
    page.node.terminate().unwrap();
    let view = page.end();
    assert!(view["finish"]["message"].as_str().unwrap().contains("setup-progress.json"), "{view:#}");
    assert_eq!(page.exit().code, Some(70));
}

fn one_answer_counts_however_many_come_at_once(shell: Shell) {
    let world = World::with_email(shell);
    let page = Page::skipping(&world);
    page.give(&world, "welcome", "");
    page.give(&world, "server", "SERVER");
    page.give(&world, "agreement", "yes");
    // Each of them would be a wrong answer to the question that follows.
    for (id, text, next) in [("ipv4", "", "ipv6"), ("ipv6", "2606:4700::1", "port")] {
        let question = page.question(id);
        let statuses = std::thread::scope(|scope| {
            let posts: Vec<_> = (0..16).map(|_| scope.spawn(|| page.answer(&question, text).0)).collect();
            posts.into_iter().map(|post| post.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
        assert_eq!(page.question(next)["problem"], Value::Null);
    }
    assert_eq!(page.question("port")["number"], 5, "no question was passed over");
}

fn killed_and_stopped_it_goes_on_at_another_address(shell: Shell) {
    let world = World::with_email(shell);
    let mut tokens = Vec::new();
    for (number, (id, text)) in ANSWERS.into_iter().enumerate().skip(1) {
        let page = Page::skipping(&world);
        tokens.push(page.token.clone());
        page.give(&world, "welcome", "");
        if number > 1 {
            let reuse = page.give(&world, "resume", "yes")["reuse"].clone();
            assert!(!reuse.as_array().unwrap().is_empty(), "{id}");
        }
        page.give(&world, id, text);
        if id == "confirm" {
            assert_eq!(page.end()["finish"]["outcome"], "done");
            assert_eq!(page.exit().code, Some(0));
            break;
        }
        page.question(ANSWERS[number + 1].0);
        assert_eq!(world.progress()["version"], 1);
        if number % 2 == 0 {
            page.node.terminate().unwrap();
            assert_eq!(page.exit().code, Some(70));
        }
        // Dropped, it is killed.
    }
    let count = tokens.len();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), count, "each its own");
    assert_eq!((world.emails(), world.evaluations()), (1, 1), "what held was used again");
    world.assert_set_up();
}

fn a_page_that_says_nothing_or_too_much_keeps_nobody_out(shell: Shell) {
    let world = World::with_email(shell);
    let page = Page::skipping(&world);
    let silent: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(&page.authority).unwrap()).collect();
    page.give(&world, "welcome", "");
    drop(silent);
    let host = format!("host: {}\r\n", page.authority);
    let long = |length: usize| {
        page.send(&format!(
            "POST /TOKEN/answer HTTP/1.1\r\n{}content-length: {length}\r\nconnection: close\r\n\r\n{}",
            page.own(),
            "x".repeat(length.min(20_000))
        ))
        .0
    };
    assert_eq!((long(17_000), long(1 << 40)), (413, 413));
    assert_eq!(page.get("/TOKEN/", &format!("{host}x: {}\r\n", "x".repeat(100_000))).0, 431);
    assert_eq!(page.send("nonsense\r\n\r\n").0, 400);
    // Who is not let in has one answer and no place among the requests under way, which are few: whoever sends many and
    // reads no answer would hold those.
    let two = format!("GET /wrong/view HTTP/1.1\r\n{host}\r\n").repeat(2);
    let (status, _, rest) = page.send(&two);
    assert!(status == 403 && !rest.contains("HTTP/1.1"), "{status}: {rest}");
    page.question("server");
}

fn the_release_that_is_installed_goes_on_with_the_same_page_to_a_supervised_node(shell: Shell) {
    let world = World::with_email(shell);
    let orchestrator = &world.lab.network.orchestrator;
    let tarball = installs::tarball("0.3.0", &fs::read(&world.lab.program).unwrap());
    orchestrator.require(orchestrator.publish_release(release::manifest("0.3.0"), tarball));
    let stand_in = StandIn::new(&world);
    let options = ["setup", "--browser", "--user", "--supervisor", "systemd", "--allow-private-targets"];
    let mut command = world.lab.network.home.command(&world.lab.program, options);
    command.args(["--address-service", &world.service, "--port", "9191"]);
    command.env("NODE_PORT", world.lab.network.local_api.port().to_string());
    stand_in.put_before(&mut command);
    let page = Page::of(NodeProcess::spawn(command).unwrap());
    for (id, text) in ANSWERS.into_iter().take(3) {
        page.give(&world, id, text);
    }
    // In between nobody listens, and what is asked for is lost.
    let (end, view) = (Instant::now() + LONG, format!("/{}/view", page.token));
    let asks = |answer: &str| answer.contains("\"id\":\"ipv4\"");
    let try_view = || {
        let mut stream = TcpStream::connect(&page.authority)?;
        let own = page.own();
        stream.write_all(format!("GET {view} HTTP/1.1\r\nconnection: close\r\n{own}\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    while !try_view().is_ok_and(|answer| asks(&answer)) {
        assert!(Instant::now() < end, "{}", said(&page.node));
        std::thread::sleep(Duration::from_millis(20));
    }
    let view = page.view(0);
    assert!(view["news"].to_string().contains("This is the required release, 0.3.0"), "{view:#}");
    for (id, text) in ANSWERS.into_iter().skip(3).filter(|(id, _)| *id != "port") {
        page.give(&world, id, text);
    }
    assert_eq!(page.give(&world, "service", "yes")["yes_no"], true);
    let view = page.end();
    assert_eq!(view["finish"]["outcome"], "done", "{view:#}");
    assert!(view["news"].to_string().contains("is connected to the network"), "{view:#}");
    assert_eq!(orchestrator.attached().len(), 1);
    assert_eq!(page.node.stdout().matches("http://").count(), 1, "{}", page.node.stdout());
    assert_eq!(page.exit().code, Some(0));
}

fn a_machine_that_is_not_admitted_is_told_so(shell: Shell) {
    let world = World::new(shell, Options { min_memory_mb: 1_000_000_000, ..Options::default() });
    let page = Page::skipping(&world);
    for (id, text) in ANSWERS.into_iter().take(6) {
        page.give(&world, id, text);
    }
    let view = page.end();
    assert_eq!(view["finish"]["outcome"], "refused", "{view:#}");
    assert!(view["finish"]["message"].as_str().unwrap().contains("no email was sent"), "{view:#}");
    assert_eq!(page.exit().code, Some(4));
    let codes = world.lab.network.orchestrator.journal().since(0);
    assert!(!codes.iter().any(|(_, record)| matches!(record, Record::EmailCode { .. })));
}

fn a_machine_that_holds_another_node_is_refused_without_a_page(shell: Shell) {
    let world = World::with_email(shell);
    let machine = world.lab.network.home.root().join("machine");
    fs::create_dir_all(&machine).unwrap();
    let mut record = MachineRecord::parse(br#"{"machine_id":"m1"}"#).unwrap();
    record.register("/srv/other", "n9", 1);
    fs::write(machine.join("machine.json"), record.emit()).unwrap();
    let exit = world.lab.run(&["setup", "--browser"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(4), ""), "{}", exit.stderr());
    assert!(exit.stderr().contains("n9") && exit.stderr().contains("/srv/other"), "{}", exit.stderr());
}

fn what_makes_no_sense_together_is_refused(shell: Shell) {
    let world = World::with_email(shell);
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (code, words, wanted) in [
        (2, &["--browser", "--yes"][..], "--yes asks nothing, and --browser is for questions"),
        (2, &["--browser-port", "8000"], "give --browser too"),
        (2, &["--browser", "--browser-port", "0"], "--browser-port"),
        (70, &["--browser", "--browser-port", &port], "choose another with --browser-port"),
    ] {
        let exit = world.lab.run(&[&["setup"][..], words].concat());
        assert_eq!(exit.code, Some(code), "{words:?}: {}", exit.stderr());
        assert!(exit.stderr().contains(wanted), "{words:?}: {}", exit.stderr());
    }
    drop(taken);
    let page = Page::open(&world, &["--browser-port", &port]);
    assert_eq!(page.authority, format!("127.0.0.1:{port}"));
}
