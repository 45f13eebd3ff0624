//! The driver itself: what other tests here rely on.

use std::fs;
use std::time::Duration;

use consensus_testbed::process::Home;
use consensus_testbed::webdriver::{Browser, key};

const LONG: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs Chromium"]
fn a_page_is_typed_on_looked_at_and_photographed() {
    let home = Home::new().unwrap();
    let page = home.root().join("page.html");
    let text = "<!doctype html><title>t</title><input id=a><button id=b \
        onclick=\"document.title = document.getElementById('a').value\">B</button>";
    fs::write(&page, text).unwrap();
    let browser = Browser::start().unwrap();
    browser.set_size(320, 200).unwrap();
    browser.goto(&format!("file://{}", page.display())).unwrap();
    browser.type_into("#a", "typed").unwrap();
    browser.press(&format!("!{}{}", key::TAB, key::ENTER)).unwrap();
    assert_eq!(browser.wait_for("return document.title != 't' && document.title", LONG).unwrap(), "typed!");
    browser.click("#a").unwrap();
    assert_eq!(
        browser.script("return document.activeElement.id + arguments[0]", &["1".into()]).unwrap(),
        "a1"
    );
    for dark in [true, false] {
        browser.set_dark(dark).unwrap();
        let is_dark = browser.script("return matchMedia('(prefers-color-scheme: dark)').matches", &[]);
        assert_eq!(is_dark.unwrap(), dark);
    }
    let picture = home.root().join("folder/picture.png");
    browser.screenshot(&picture).unwrap();
    let picture = fs::read(&picture).unwrap();
    // Signature, length and name of the first chunk, and then the width and the height.
    assert_eq!(picture[..4], *b"\x89PNG");
    assert_eq!(picture[16..24], [0, 0, 1, 64, 0, 0, 0, 200]);
    browser.script("console.error('said')", &[]).unwrap();
    let console = browser.console().unwrap();
    assert!(console.iter().any(|line| line.contains("said")), "{console:?}");
    assert!(browser.script("throw new Error('thrown')", &[]).unwrap_err().to_string().contains("thrown"));
    assert!(browser.click("#nowhere").is_err());
}
