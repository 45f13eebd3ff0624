//! The status page of a node that serves, with each of the programs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use consensus_testbed::binaries::{self, Shell};
use consensus_testbed::client;
use consensus_testbed::network::{NODE_ID, Network};
use consensus_testbed::process::NodeProcess;
use consensus_testbed::webdriver::{Browser, key};
use serde_json::{Value, json};

/// Longer than anything takes on a healthy machine, however busy.
const LONG: Duration = Duration::from_secs(60);

/// What no page may make anything of.
const MARKUP: &str = "<img src=x onerror=alert(1)>";

#[test]
#[ignore = "needs Chromium"]
fn smol() {
    figures_move_while_traffic_runs_and_agree_with_the_metrics(Shell::Smol);
}

#[test]
#[ignore = "needs Chromium"]
fn blocking() {
    figures_move_while_traffic_runs_and_agree_with_the_metrics(Shell::Blocking);
}

pub(crate) fn screenshots() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots")
}

/// A figure of the page, as it is and not as it is said.
fn figure(browser: &Browser, id: &str) -> Option<u64> {
    let value = browser.script("return document.getElementById(arguments[0]).value", &[id.into()]).unwrap();
    value.as_str()?.parse().ok()
}

/// The value of a series.
fn series(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

fn figures_move_while_traffic_runs_and_agree_with_the_metrics(shell: Shell) {
    let network = Network::start(false).unwrap();
    network.register_node().unwrap();
    // The network gives a node its domain, and has a say in what is told: it may not become markup.
    let config = network.home.state_dir().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let domain = format!("{NODE_ID}.node.example.org");
    std::fs::write(&config, text.replace(&domain, MARKUP)).unwrap();
    let listen = network.local_api.to_string();
    let arguments = ["run", "--allow-private-targets", "--listen", &listen];
    let node = NodeProcess::spawn(network.node(&binaries::build(shell).unwrap(), arguments)).unwrap();
    node.wait_for(0, LONG, |line| line.event() == "listening").unwrap();
    node.wait_for(0, LONG, |line| line.event() == "connected").unwrap();
    let browser = Browser::start().unwrap();
    browser.set_dark(false).unwrap();
    browser.set_size(1100, 1500).unwrap();
    browser.goto(&format!("http://{listen}/")).unwrap();
    browser.wait_for("return document.getElementById('word').textContent == 'serving'", LONG).unwrap();
    let fetch = |url: String| {
        let path = format!("/node/tunnel/proxy/{NODE_ID}");
        network.post(&path, &json!({ "target_url": url, "method": "GET" })).unwrap()
    };
    fetch("ftp://nowhere/".to_owned());
    fetch("ftp://nowhere/".to_owned());
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                assert_eq!(fetch(network.upstream.url("/b/20000")).status, 200);
            }
        });
        let (mut seen, end) = (Vec::new(), Instant::now() + LONG);
        while seen.len() < 3 {
            match figure(&browser, "requests") {
                Some(now) if seen.last().is_none_or(|last| now > *last) => seen.push(now),
                _ => assert!(Instant::now() < end, "{seen:?}"),
            }
        }
        // And a line that is not flat.
        let drawn = "return [...document.querySelectorAll('.chart > path.one')].slice(0, 3).every((path) =>
            new Set((path.getAttribute('d') || '').split(/[ML]/).map((point) => point.split(' ')[1])).size > 2)";
        browser.wait_for(drawn, LONG).unwrap();
        stopped.store(true, Ordering::Relaxed);
    });
    let text = client::get(&format!("http://{listen}/metrics"), None).unwrap().body;
    let text = text.as_str().unwrap();
    let metric = |name: &str| series(text, &format!("consensus_node_{name}"));
    let requests = metric("requests_total");
    assert_eq!(requests, network.upstream.requests());
    browser
        .wait_for(&format!("return document.getElementById('requests').value == '{requests}'"), LONG)
        .unwrap();
    for (id, name) in [
        ("failed", "request_failures_total"),
        ("bytes", "response_body_bytes_total"),
        ("streams", "streams_total"),
        ("over_limit", "over_limit_total"),
        ("warnings", "events_total{level=\"warn\"}"),
    ] {
        assert_eq!(figure(&browser, id), Some(metric(name)), "{id}");
    }
    assert_eq!(figure(&browser, "failed"), Some(2));
    keyboard(&browser);
    let title = browser.script("return document.title", &[]).unwrap();
    assert_eq!(title, "serving – Consensus node");
    assert_eq!(browser.script("return document.images.length", &[]).unwrap(), 0);
    assert_eq!(browser.script("return document.getElementById('domain').textContent", &[]).unwrap(), MARKUP);
    looks(&browser, shell);
    let console = browser.console().unwrap();
    assert!(console.is_empty(), "{console:?}");
    node.terminate().unwrap();
    assert_eq!(node.wait(LONG).unwrap().code, Some(0));
    browser.wait_for("return document.getElementById('word').textContent == 'no answer'", LONG).unwrap();
    assert!(figure(&browser, "requests").is_some(), "what it said last stays");
}

/// Everything is reached and worked by keys alone, and has a name.
fn keyboard(browser: &Browser) {
    let active = |what: &str| browser.script(&format!("return document.activeElement.{what}"), &[]).unwrap();
    browser.press(key::TAB).unwrap();
    assert_eq!(active("id"), "pause");
    browser.press(" ").unwrap();
    assert_eq!(active("getAttribute('aria-pressed')"), "true");
    // Nothing moves while it is looked at.
    for chart in ["Requests a second", "Bytes a second", "Latency", "Under way"] {
        browser.press(key::TAB).unwrap();
        assert_eq!(active("getAttribute('aria-label')"), chart);
    }
    let value = || active("getAttribute('aria-valuetext')").as_str().unwrap().to_owned();
    assert!(value().ends_with(", now"), "{}", value());
    browser.press("\u{e012}").unwrap();
    assert!(value().contains(", at "), "{}", value());
    assert_eq!(active("querySelector('.cursor').getAttribute('visibility')"), "visible");
    browser.press(key::ESCAPE).unwrap();
    assert!(value().ends_with(", now"), "{}", value());
    browser.press(key::TAB).unwrap();
    assert_eq!(active("id"), "events");
    let unnamed = browser
        .script(
            "return [...document.querySelectorAll('button, a, [tabindex]')].filter((element) => !(element.textContent
                .trim() || element.getAttribute('aria-label') || element.getAttribute('aria-labelledby')))
                .map((element) => element.outerHTML)",
            &[],
        )
        .unwrap();
    assert_eq!(unnamed, json!([]));
    browser.click("#pause").unwrap();
}

/// Both colour schemes, with enough contrast for text; and a narrow screen that needs no scrolling sideways.
fn looks(browser: &Browser, shell: Shell) {
    let mut backs: Vec<Value> = Vec::new();
    for (dark, name) in [(false, "light"), (true, "dark")] {
        browser.set_dark(dark).unwrap();
        let contrast = browser.script(CONTRAST, &[]).unwrap();
        assert!(contrast["least"].as_f64() > Some(4.5), "{name}: {contrast}");
        backs.push(contrast["back"].clone());
        browser.screenshot(&screenshots().join(format!("status-{}-{name}.png", shell.name()))).unwrap();
    }
    assert_ne!(backs[0], backs[1]);
    browser.set_size(360, 1600).unwrap();
    let over = browser
        .script("return document.documentElement.scrollWidth - document.documentElement.clientWidth", &[]);
    assert_eq!(over.unwrap(), 0);
    browser.screenshot(&screenshots().join(format!("status-{}-narrow.png", shell.name()))).unwrap();
}

/// The least contrast (WCAG 2.2) of a text with what is behind it, and the page's own background.
pub(crate) const CONTRAST: &str = "
    const parts = (color) => color.match(/[0-9.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = parts(color).map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const back = getComputedStyle(at).backgroundColor;
            if (parts(back)[3] !== 0) return back;
        }
        return 'rgb(255, 255, 255)';
    };
    let least = { least: 99 };
    for (const element of document.querySelectorAll('h1, h2, dt, dd, p, td, th, a, button, strong, figcaption, text')) {
        if (!element.textContent.trim()) continue;
        const style = getComputedStyle(element);
        const [a, b] = [light(element.localName === 'text' ? style.fill : style.color), light(behind(element))];
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (contrast < least.least) least = { least: contrast, what: element.outerHTML.slice(0, 80) };
    }
    least.back = getComputedStyle(document.body).backgroundColor;
    return least;";
