//! A headless Chromium, driven through `chromedriver` by the W3C WebDriver protocol: what a page shows, and what is
//! typed on it.
//!
//! Both programs are Debian packages (`chromium`, `chromium-driver`). Nothing here goes to another machine.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use consensus_core::wire::base64;
use http_types::Method;
use serde_json::{Value, json};

use crate::client;
use crate::process::Home;

/// Between two looks at a page.
const POLL: Duration = Duration::from_millis(25);

/// What `chromedriver` says of its port, before and after the number.
const STARTED: (&str, &str) = ("started successfully on port ", ".");

/// Keys that are no character, for [`Browser::press`].
pub mod key {
    /// Goes to the next control.
    pub const TAB: &str = "\u{e004}";
    /// Presses a button, or sends a form.
    pub const ENTER: &str = "\u{e007}";
    /// Closes what is open.
    pub const ESCAPE: &str = "\u{e00c}";
    /// Held for the rest of what is pressed at once.
    pub const SHIFT: &str = "\u{e008}";
    /// Goes down in a list.
    pub const DOWN: &str = "\u{e015}";
    /// Goes to the end.
    pub const END: &str = "\u{e010}";
}

/// A browser with one page. Dropping it ends it.
pub struct Browser {
    driver: Child,
    _says: BufReader<ChildStdout>,
    /// Of the session, once there is one.
    url: String,
    _profile: Home,
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Browser {
    /// Starts one, at a port that is free, with an empty profile.
    ///
    /// # Errors
    /// The programs are missing, or no browser comes of them.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts one with these arguments as well.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(arguments: &[&str]) -> io::Result<Self> {
        let profile = Home::new()?;
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("HOME", profile.root()).env("TMPDIR", profile.root());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().map_err(|error| {
            io::Error::other(format!("chromedriver: {error}; install the Debian package chromium-driver"))
        })?;
        let stdout = driver.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut browser =
            Self { driver, _says: BufReader::new(stdout), url: String::new(), _profile: profile };
        let port = port(&mut browser._says)?;
        let driver = format!("http://127.0.0.1:{port}/session");
        let mut all = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--window-size=1100,900",
        ];
        all.extend(arguments);
        let options = json!({ "args": all });
        let wanted = json!({
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
        });
        let session = ask(Method::Post, &driver, Some(&json!({"capabilities": {"alwaysMatch": wanted}})))?;
        let id = session["sessionId"].as_str().ok_or_else(|| io::Error::other("a session without an id"))?;
        browser.url = format!("{driver}/{id}");
        Ok(browser)
    }

    /// Opens a page and waits until it is loaded.
    ///
    /// # Errors
    /// It cannot be.
    pub fn goto(&self, url: &str) -> io::Result<()> {
        self.post("/url", &json!({ "url": url })).map(drop)
    }

    /// Runs the body of a function in the page: what it returns, a promise's value where it is one. `args` are its
    /// `arguments`.
    ///
    /// # Errors
    /// It throws.
    pub fn script(&self, js: &str, args: &[Value]) -> io::Result<Value> {
        self.post("/execute/sync", &json!({ "script": js, "args": args }))
    }

    /// Runs it again and again until it returns something that is neither null nor false: that.
    ///
    /// # Errors
    /// The time is up; the error has the text of the page.
    pub fn wait_for(&self, js: &str, timeout: Duration) -> io::Result<Value> {
        let end = Instant::now() + timeout;
        loop {
            // What is on its way to another page may throw.
            let last = self.script(js, &[]);
            match &last {
                Ok(value) if !value.is_null() && *value != Value::Bool(false) => return last,
                _ if Instant::now() < end => std::thread::sleep(POLL),
                _ => {
                    let page = self.script("return document.body.innerText", &[]);
                    return Err(io::Error::other(format!(
                        "never so: {js}\nlast: {last:?}\nthe page: {page:?}"
                    )));
                }
            }
        }
    }

    /// Clicks on the first element that the CSS selector names, as a user does: it has to be in sight.
    ///
    /// # Errors
    /// There is none, or something covers it.
    pub fn click(&self, selector: &str) -> io::Result<()> {
        let element = self.element(selector)?;
        self.post(&format!("/element/{element}/click"), &json!({})).map(drop)
    }

    /// Types into the first element that the CSS selector names, after what is there.
    ///
    /// # Errors
    /// There is none, or it takes no text.
    pub fn type_into(&self, selector: &str, text: &str) -> io::Result<()> {
        let element = self.element(selector)?;
        self.post(&format!("/element/{element}/value"), &json!({ "text": text })).map(drop)
    }

    /// Presses keys one after the other, wherever the focus is; [`key`] has those without a character.
    ///
    /// # Errors
    /// The browser takes none.
    pub fn press(&self, keys: &str) -> io::Result<()> {
        let mut actions = Vec::new();
        let (mut held, shift) = (false, key::SHIFT);
        for key in keys.chars().map(String::from) {
            if key == shift {
                held = true;
                actions.push(json!({ "type": "keyDown", "value": key }));
                continue;
            }
            actions.push(json!({ "type": "keyDown", "value": key }));
            actions.push(json!({ "type": "keyUp", "value": key }));
        }
        if held {
            actions.push(json!({ "type": "keyUp", "value": shift }));
        }
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.post("/actions", &actions).map(drop)
    }

    /// Writes what is in sight to a PNG file, and makes its folder.
    ///
    /// # Errors
    /// There is no picture, or it cannot be written.
    pub fn screenshot(&self, path: &Path) -> io::Result<()> {
        let picture = ask(Method::Get, &format!("{}/screenshot", self.url), None)?;
        let bytes = picture.as_str().and_then(base64::decode);
        let bytes = bytes.ok_or_else(|| io::Error::other("a screenshot that is no base64"))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, bytes)
    }

    /// Has pages believe that the user wants dark ones, or light ones.
    ///
    /// # Errors
    /// The browser does not know how.
    pub fn set_dark(&self, dark: bool) -> io::Result<()> {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features })).map(drop)
    }

    /// Makes the page so large, in CSS pixels.
    ///
    /// # Errors
    /// The browser does not know how.
    pub fn set_size(&self, width: u32, height: u32) -> io::Result<()> {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics).map(drop)
    }

    /// A command of the Chrome `DevTools` protocol: its result.
    ///
    /// # Errors
    /// The browser refuses it.
    pub fn devtools(&self, command: &str, parameters: &Value) -> io::Result<Value> {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// What pages wrote to the console since it was last asked for, violations of their policy among it.
    ///
    /// # Errors
    /// The browser keeps none.
    pub fn console(&self) -> io::Result<Vec<String>> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }))?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        Ok(entries
            .iter()
            .map(|entry| {
                let text = |name: &str| entry[name].as_str().unwrap_or_default();
                format!("{}: {}", text("level"), text("message"))
            })
            .collect())
    }

    /// The name by which the protocol knows the first element of the selector.
    fn element(&self, selector: &str) -> io::Result<String> {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }))?;
        let name = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        name.map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("{selector}: an element without a name")))
    }

    fn post(&self, path: &str, body: &Value) -> io::Result<Value> {
        ask(Method::Post, &format!("{}{path}", self.url), Some(body))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver alone knows its browser's processes.
        if !self.url.is_empty() {
            let _ = ask(Method::Delete, &self.url, None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The port that the driver took, which it says once it listens.
fn port(says: &mut impl io::BufRead) -> io::Result<u16> {
    for line in says.lines() {
        let line = line?;
        let after = line.split_once(STARTED.0).map(|(_, after)| after);
        if let Some(port) = after.and_then(|after| after.strip_suffix(STARTED.1)) {
            return port.parse().map_err(io::Error::other);
        }
    }
    Err(io::Error::other("chromedriver ended before it listened"))
}

/// One command: its `value`, or what was wrong.
fn ask(method: Method, url: &str, body: Option<&Value>) -> io::Result<Value> {
    let answer = client::send(method, url, body, &[], None)?;
    let value = &answer.body["value"];
    if answer.status == 200 {
        return Ok(value.clone());
    }
    let text = |name: &str| value[name].as_str().unwrap_or_default();
    Err(io::Error::other(format!("{}: {}", text("error"), text("message"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_one_the_driver_names() {
        let said = "Starting ChromeDriver 1.2\nOnly local connections are allowed.\n\
            ChromeDriver was started successfully on port 4711.\n";
        assert_eq!(port(&mut said.as_bytes()).unwrap(), 4711);
        assert!(port(&mut "nothing of the kind\n".as_bytes()).is_err());
    }
}
