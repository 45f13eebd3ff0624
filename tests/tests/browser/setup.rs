//! Setup on its page, from an empty home to a registered node, with each of the programs; and what other pages get of
//! it, which is nothing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use consensus_core::setup::AGREEMENT;
use consensus_testbed::binaries::{self, Shell};
use consensus_testbed::network::{Network, PAYOUT_OPTIONS};
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;
use consensus_testbed::webdriver::{Browser, key};
use serde_json::{Value, json};

use crate::page::{CONTRAST, screenshots};

/// Longer than anything takes on a healthy machine, however busy.
const LONG: Duration = Duration::from_secs(90);

const IPV4: &str = "203.0.114.7";

/// What no page may make anything of.
const MARKUP: &str = "<img src=x onerror=alert(1)>";

/// A network that mails its codes, and a setup that asks on a page.
struct World {
    network: Network,
    node: NodeProcess,
    url: String,
}

impl World {
    fn new(shell: Shell) -> Self {
        let network = Network::with(Options { no_dev_code: true, ..Options::default() }).unwrap();
        let arguments = ["setup", "--browser", "--skip-release", "--address-service", "none"];
        let command = network.home.command(&binaries::build(shell).unwrap(), arguments);
        let node = NodeProcess::spawn(command).unwrap();
        let end = Instant::now() + LONG;
        let url = loop {
            let stdout = node.stdout();
            let mut lines = stdout.lines().map(str::trim);
            if let Some(url) = lines.find(|line| line.starts_with("http://") && line.ends_with('/')) {
                break url.to_owned();
            }
            assert!(Instant::now() < end, "{stdout}");
            std::thread::sleep(Duration::from_millis(10));
        };
        Self { network, node, url }
    }

    fn server(&self) -> String {
        self.network.orchestrator.url()
    }

    fn code(&self) -> String {
        let records = self.network.orchestrator.journal().since(0);
        let mut codes = records.into_iter().filter_map(|(_, record)| match record {
            Record::EmailCode { code, .. } => Some(code),
            _ => None,
        });
        codes.next_back().unwrap()
    }

    /// The process ends well, and the machine is a node.
    fn assert_set_up(self) {
        let exit = self.node.wait(LONG).unwrap();
        assert_eq!(exit.code, Some(0), "{}", exit.stderr());
        let state = self.network.home.state_dir();
        let config: Value = serde_json::from_slice(&fs::read(state.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["ipv4"], IPV4);
        let joined = self.network.orchestrator.journal().since(0);
        assert_eq!(joined.iter().filter(|(_, record)| matches!(record, Record::Joined { .. })).count(), 1);
    }
}

/// Waits until the page asks for something, which is when its control has the focus.
fn asked(browser: &Browser, label: &str) {
    let js = format!(
        "const at = document.activeElement;
        const label = document.querySelector('label[for=value]') || at;
        return document.getElementById('form').hidden === false && !document.querySelector('[aria-disabled]')
            && (label.textContent.includes({label:?}) || at.textContent.includes({label:?}))"
    );
    browser.wait_for(&js, LONG).unwrap();
}

fn titled(browser: &Browser, title: &str) {
    let js = format!("return document.getElementById('title').textContent === {title:?}");
    browser.wait_for(&js, LONG).unwrap();
}

#[test]
#[ignore = "needs Chromium"]
fn keys_alone_lead_to_a_registered_node() {
    let world = World::new(Shell::Smol);
    let browser = Browser::start().unwrap();
    browser.set_dark(true).unwrap();
    browser.set_size(1100, 1000).unwrap();
    browser.goto(&world.url).unwrap();
    asked(&browser, "Begin");
    look(&browser, "keys-1-welcome");
    browser.press(key::ENTER).unwrap();
    let give = |label: &str, text: &str| {
        asked(&browser, label);
        browser.press(&format!("{text}{}", key::ENTER)).unwrap();
    };
    give("The network's server", &world.server());
    // The agreement: the text, the name, the words, and then the button, which opens at the text's end.
    titled(&browser, "Agreement");
    let accept = "return [...document.querySelectorAll('#buttons button')].find((b) => b.textContent === 'Accept').disabled";
    browser.wait_for("return !document.getElementById('agreement').hidden", LONG).unwrap();
    let active = |what: &str| browser.script(&format!("return document.activeElement.{what}"), &[]).unwrap();
    assert_eq!(active("id"), "title");
    browser.press(key::TAB).unwrap();
    assert_eq!(active("id"), "agreement");
    focus_is_seen(&browser);
    browser.press(&format!("{0}Jo Doe{0}I AGREE{1}", key::TAB, key::ENTER)).unwrap();
    assert_eq!(browser.script(accept, &[]).unwrap(), true, "nobody has read it");
    look(&browser, "keys-2-agreement");
    let back = format!("{}{}{1}", key::SHIFT, key::TAB);
    browser.press(&back).unwrap();
    assert_eq!(active("id"), "agreement");
    browser.press(key::END).unwrap();
    browser.wait_for(&format!("return !({})", accept.trim_start_matches("return ")), LONG).unwrap();
    browser.press(&key::TAB.repeat(3)).unwrap();
    assert_eq!(active("textContent"), "Accept");
    focus_is_seen(&browser);
    browser.press(key::ENTER).unwrap();
    give("Public IPv4 address", IPV4);
    give("Public IPv6 address", "");
    give("Port that the network is told", "");
    titled(&browser, "Evaluation");
    browser.wait_for("return document.querySelectorAll('#chart .bar').length > 0", LONG).unwrap();
    look(&browser, "keys-3-evaluation");
    give("Your email address", "operator@example.org");
    asked(&browser, "The code that was sent");
    give("The code that was sent", &world.code());
    give("How the network can reach you", "");
    // By the button of no wallet, which is told, and then typed.
    asked(&browser, "EVM address");
    browser.press(&format!("{}{}{}", key::TAB, key::TAB, key::ENTER)).unwrap();
    browser
        .wait_for("return document.getElementById('problem').textContent.includes('no MetaMask')", LONG)
        .unwrap();
    browser.press(&format!("{}{}", key::SHIFT, key::TAB.repeat(2))).unwrap();
    assert_eq!(active("id"), "value");
    give("EVM address", PAYOUT_OPTIONS[1]);
    give("Solana address", PAYOUT_OPTIONS[3]);
    give("ICP principal", PAYOUT_OPTIONS[5]);
    asked(&browser, "Registration");
    look(&browser, "keys-4-confirm");
    assert_eq!(active("id"), "title", "what is told is read first");
    browser.press(key::TAB).unwrap();
    assert_eq!(active("textContent"), "Register");
    browser.press(key::ENTER).unwrap();
    titled(&browser, "Done");
    look(&browser, "keys-5-done");
    let console = browser.console().unwrap();
    // What was refused at its form is told by the browser, too.
    assert!(console.iter().all(|line| line.contains("status of 422")), "{console:?}");
    world.assert_set_up();
}

/// Wallets that stand in for those of a browser: two that give an address, and one that is asked twice.
fn wallets(browser: &Browser) {
    let source = format!(
        "window.ethereum = {{ request: async ({{ method }}) => method === 'eth_requestAccounts' ? ['{}'] : [] }};
        window.solana = {{ connect: async () => ({{ publicKey: {{ toString: () => '{}' }} }}) }};
        let refused = false;
        window.ic = {{ plug: {{
            requestConnect: async () => {{ if (!refused) {{ refused = true; throw new Error('{MARKUP}'); }} return 'allowed'; }},
            principalId: '{}',
        }} }};",
        PAYOUT_OPTIONS[1], PAYOUT_OPTIONS[3], PAYOUT_OPTIONS[5]
    );
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": source })).unwrap();
}

#[test]
#[ignore = "needs Chromium"]
fn a_pointer_and_wallets_lead_to_a_registered_node() {
    let world = World::new(Shell::Blocking);
    let browser = Browser::start().unwrap();
    wallets(&browser);
    browser.set_dark(false).unwrap();
    browser.set_size(1100, 1000).unwrap();
    browser.goto(&world.url).unwrap();
    let go_on = "#buttons button.main";
    let shown = |label: &str, name: &str| {
        asked(&browser, label);
        looks(&browser, name);
    };
    let give = |label: &str, text: &str| {
        asked(&browser, label);
        browser.script("document.getElementById('value').value = ''", &[]).unwrap();
        browser.type_into("#value", text).unwrap();
        browser.click(go_on).unwrap();
    };
    shown("Begin", "1-welcome");
    browser.click(go_on).unwrap();
    shown("The network's server", "2-network");
    give("The network's server", MARKUP);
    browser
        .wait_for("return document.getElementById('problem').textContent.includes('for example https')", LONG)
        .unwrap();
    looks(&browser, "2-network-wrong");
    // A page that is loaded again shows where setup is, and what was wrong.
    browser.goto(&world.url).unwrap();
    browser
        .wait_for("return document.getElementById('problem').textContent.includes('for example https')", LONG)
        .unwrap();
    give("The network's server", &world.server());
    titled(&browser, "Agreement");
    browser.wait_for("return document.querySelectorAll('#agreement p').length > 5", LONG).unwrap();
    looks(&browser, "3-agreement");
    let read =
        browser.script("return document.getElementById('agreement').textContent.replace(/\\s/g, '')", &[]);
    assert_eq!(read.unwrap(), AGREEMENT.split_whitespace().collect::<String>(), "the whole text");
    browser.type_into("#name", "Jo Doe").unwrap();
    browser.type_into("#words", "I agree").unwrap();
    browser
        .script("const box = document.getElementById('agreement'); box.scrollTop = box.scrollHeight", &[])
        .unwrap();
    browser.wait_for("return !document.querySelector('#buttons button.main').disabled", LONG).unwrap();
    browser.click(go_on).unwrap();
    browser
        .wait_for("return document.getElementById('problem').textContent.includes('I AGREE')", LONG)
        .unwrap();
    browser.script("document.getElementById('words').value = ''", &[]).unwrap();
    browser.type_into("#words", "I AGREE").unwrap();
    browser.click(go_on).unwrap();
    shown("Public IPv4 address", "4-addresses");
    give("Public IPv4 address", IPV4);
    asked(&browser, "Public IPv6 address");
    browser.click("#buttons button:nth-child(2)").unwrap();
    give("Port that the network is told", "9191");
    titled(&browser, "Evaluation");
    browser.wait_for("return document.querySelectorAll('#chart .bar').length > 0", LONG).unwrap();
    looks(&browser, "5-evaluation");
    shown("Your email address", "6-email");
    give("Your email address", "operator@example.org");
    shown("The code that was sent", "6-code");
    give("The code that was sent", "000000x");
    browser.wait_for("return document.getElementById('problem').textContent !== ''", LONG).unwrap();
    asked(&browser, "The code that was sent");
    // The question comes again, with a form of its own.
    browser.script("document.getElementById('value').dataset.old = true", &[]).unwrap();
    browser.click("#buttons button:nth-child(2)").unwrap();
    browser
        .wait_for("return !document.querySelector('[data-old]') && document.getElementById('value')", LONG)
        .unwrap();
    give("The code that was sent", &world.code());
    give("How the network can reach you", "me");
    for (label, wallet, option) in
        [("EVM address", "MetaMask", 1), ("Solana address", "Phantom", 3), ("ICP principal", "Plug", 5)]
    {
        asked(&browser, label);
        assert_eq!(
            browser
                .script("return document.querySelector('#buttons button:nth-child(2)').textContent", &[])
                .unwrap(),
            format!("Use {wallet}")
        );
        browser.click("#buttons button:nth-child(2)").unwrap();
        if wallet == "Plug" {
            let refused =
                format!("return document.getElementById('problem').textContent === 'Plug: {MARKUP}'");
            browser.wait_for(&refused, LONG).unwrap();
            assert_eq!(browser.script("return document.images.length", &[]).unwrap(), 0);
            looks(&browser, "7-wallet");
            browser.click("#buttons button:nth-child(2)").unwrap();
        }
        let filled =
            format!("return document.getElementById('value').value === '{}'", PAYOUT_OPTIONS[option]);
        browser.wait_for(&filled, LONG).unwrap();
        browser.click(go_on).unwrap();
    }
    shown("Registration", "8-registration");
    browser.click(go_on).unwrap();
    titled(&browser, "Done");
    looks(&browser, "9-done");
    let console = browser.console().unwrap();
    assert!(console.iter().all(|line| line.contains("status of 422")), "{console:?}");
    world.assert_set_up();
}

/// One picture.
fn look(browser: &Browser, name: &str) {
    browser.screenshot(&screenshots().join(format!("setup-{name}.png"))).unwrap();
}

/// Both colour schemes with enough contrast; a narrow screen without scrolling sideways; nothing that the checks of
/// axe-core call serious.
fn looks(browser: &Browser, name: &str) {
    for (dark, scheme) in [(true, "dark"), (false, "light")] {
        browser.set_dark(dark).unwrap();
        let contrast = browser.script(CONTRAST, &[]).unwrap();
        assert!(contrast["least"].as_f64() > Some(4.5), "{name}, {scheme}: {contrast}");
        accessible(browser, &format!("{name}, {scheme}"));
        look(browser, &format!("{name}-{scheme}"));
    }
    browser.set_size(320, 1400).unwrap();
    let over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.script(over, &[]).unwrap(), 0, "{name}");
    look(browser, &format!("{name}-narrow"));
    browser.set_size(1100, 1000).unwrap();
}

/// What axe-core finds; and what it does not look for.
fn accessible(browser: &Browser, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/axe/node_modules/axe-core/axe.min.js");
    let axe = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; the step `browser` of .ci/run installs it", path.display())
    });
    browser.script(&format!("if (!window.axe) {{ {axe} }}"), &[]).unwrap();
    let found = browser
        .script(
            "return axe.run(document, { resultTypes: ['violations'] }).then(({ violations, passes }) => ({
                passes: passes.length,
                serious: violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
                    .map(({ id, nodes }) => id + ': ' + nodes.map(({ html }) => html).join(' ')),
                others: violations.map(({ id, impact }) => impact + ' ' + id),
            }))",
            &[],
        )
        .unwrap();
    assert!(found["passes"].as_u64() > Some(10), "{name}: {found}");
    assert_eq!(found["serious"], json!([]), "{name}: {found}");
    assert_eq!(found["others"], json!([]), "{name}: {found}");
    let wrong = browser
        .script(
            "const wrong = [];
            if (document.documentElement.lang !== 'en') wrong.push('language');
            const levels = [...document.querySelectorAll('h1, h2, h3')].filter((h) => h.checkVisibility()).map((h) => +h.localName[1]);
            if (levels[0] !== 1 || levels.some((level, i) => level > (levels[i - 1] || 0) + 1)) wrong.push('headings ' + levels);
            for (const input of document.querySelectorAll('input')) {
                if (![...input.labels].some((label) => label.textContent.trim())) wrong.push('no label: ' + input.outerHTML);
                const described = (input.getAttribute('aria-describedby') || '').split(' ');
                if (!described.includes('problem')) wrong.push('nothing says what is wrong: ' + input.outerHTML);
            }
            for (const button of document.querySelectorAll('button')) if (!button.textContent.trim()) wrong.push('no name');
            for (const id of ['problem', 'work', 'heard', 'link']) {
                if (!['alert', 'status'].includes(document.getElementById(id).getAttribute('role'))) wrong.push('silent: ' + id);
            }
            if (document.querySelectorAll('[aria-current=step]').length !== 1) wrong.push('where is it?');
            if (document.querySelector('[tabindex]:not([tabindex=\"0\"], [tabindex=\"-1\"])')) wrong.push('order');
            return wrong;",
            &[],
        )
        .unwrap();
    assert_eq!(wrong, json!([]), "{name}");
}

/// What has the focus has a ring around it.
fn focus_is_seen(browser: &Browser) {
    let ring = browser
        .script(
            "const style = getComputedStyle(document.activeElement);
            return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && parseFloat(style.outlineOffset) >= 1",
            &[],
        )
        .unwrap();
    assert_eq!(ring, true);
}

/// A web site: whatever is asked for is this page. Gives its port.
fn site(html: String) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let html = html.clone();
            // A browser opens connections that it says nothing on.
            std::thread::spawn(move || answer(stream, &html));
        }
    });
    port
}

fn answer(mut stream: TcpStream, html: &str) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{html}",
        html.len()
    );
}

/// Even one that has come to know the whole address.
#[test]
#[ignore = "needs Chromium"]
fn another_site_and_another_name_get_nothing() {
    let world = World::new(Shell::Smol);
    let browser = Browser::start_with(&["--host-resolver-rules=MAP evil.example 127.0.0.1"]).unwrap();
    let html = format!(
        "<!doctype html><title>evil</title><script>
        const at = '{0}', got = [];
        const post = (more) => fetch(at + 'answer', {{ method: 'POST', body: '{{\"number\":0,\"text\":\"\"}}', ...more }});
        const json = {{ 'content-type': 'application/json' }};
        const tries = [
            fetch(at + 'view'), fetch(at), post({{}}), post({{ headers: json }}),
            fetch(at + 'view', {{ mode: 'no-cors' }}).then((r) => r.text()).then((t) => {{ if (!t) throw 0; }}),
            post({{ mode: 'no-cors' }}).then((r) => {{ if (r.type === 'opaque') throw 0; }}),
            new Promise((yes, no) => {{
                const script = document.createElement('script');
                [script.src, script.onload, script.onerror] = [at + 'page.js', yes, no];
                document.head.append(script);
            }}),
        ];
        Promise.allSettled(tries).then((all) => {{
            document.title = all.map(({{ status }}) => status).join(' ');
        }});
        </script>
        <body><iframe id=frame src='{0}'></iframe>
        <form id=form method=post enctype=text/plain action='{0}answer'><input name='{{\"number\":0,\"text\":\"' value='\"}}'></form>",
        world.url
    );
    let port = site(html);
    let nothing = ["rejected"; 7].join(" ");
    for host in ["evil.example", "127.0.0.1"] {
        // The second is the same site to a browser, at another port.
        browser.goto(&format!("http://{host}:{port}/")).unwrap();
        let title = browser.wait_for("return document.title.includes('ed') && document.title", LONG).unwrap();
        assert_eq!(title, nothing, "{host}");
        let framed = "try { return document.getElementById('frame').contentDocument.body.innerText } catch { return 'not to be read' }";
        let framed = browser.script(framed, &[]).unwrap();
        assert!(!framed.to_string().contains("Welcome"), "{framed}");
        browser.script("document.getElementById('form').submit()", &[]).unwrap();
        let refused = browser
            .wait_for("return document.body.innerText.includes('foreign_') && document.body.innerText", LONG);
        assert!(!refused.unwrap().to_string().contains("Welcome"));
    }
    // A name that was made to point here.
    let rebound = world.url.replace("127.0.0.1", "evil.example");
    browser.goto(&rebound).unwrap();
    let text = browser.script("return document.body.innerText", &[]).unwrap();
    assert!(text.as_str().unwrap().contains("wrong_host"), "{text}");
    let asked = browser.script("return fetch('view').then((r) => r.status + ' ' + r.type)", &[]).unwrap();
    assert_eq!(asked, "421 basic");
    // Nothing was begun, and the operator still can.
    browser.goto(&world.url).unwrap();
    asked_to_begin(&browser);
    world.node.terminate().unwrap();
    titled(&browser, "Setup has ended");
    look(&browser, "stopped");
    assert_eq!(world.node.wait(LONG).unwrap().code, Some(70));
    assert!(!world.network.home.state_dir().join("setup-progress.json").exists());
}

fn asked_to_begin(browser: &Browser) {
    asked(browser, "Begin");
    browser.wait_for("return document.querySelectorAll('#buttons button').length === 1", LONG).unwrap();
}
