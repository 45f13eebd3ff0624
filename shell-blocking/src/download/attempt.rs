//! One try: a connection, redirects, and what comes of the tarball.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target, USER_AGENT};
use consensus_core::io::{Bounds, Fetch, FetchError, FetchErrorKind, Response};
use consensus_core::limits::MAX_HTTP_HEAD;
use consensus_core::release::artifact::ContentRange;
use url::Url;

use super::partial::Partial;
use super::{Download, Progress};
use crate::budget::Budget;
use crate::connect::{Limit, Transport, dial};
use crate::dial::DialError;
use crate::http::client::Exchange;
use crate::http::times::seconds;
use crate::names::Names;
use crate::state_dir::FileError;
use crate::tls;

/// Redirects that are followed. Hosts of releases need one or two.
const MAX_REDIRECTS: usize = 5;

/// What is read at once.
const READ_BUFFER: usize = 64 * 1024;

/// Why a try did not bring all.
pub(super) enum Trouble {
    /// Another try may bring the rest.
    Again(String),
    /// What is there and what the server has do not fit together.
    Anew(String),
    /// The server has something else.
    Refused(String),
    /// This machine.
    File(FileError),
}

impl From<FileError> for Trouble {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// What a response's head says to do.
enum Next {
    /// Its body is the tarball, from where the partial file ends.
    Take,
    /// It is elsewhere.
    Follow(Target),
}

pub(super) struct Attempt<'a> {
    pub(super) request: &'a Download,
    pub(super) partial: &'a mut Partial,
    pub(super) progress: &'a mut dyn FnMut(Progress),
    pub(super) cancelled: &'a Arc<AtomicBool>,
    pub(super) until: Instant,
}

impl Attempt<'_> {
    /// Goes on until all has come.
    pub(super) fn run(&mut self) -> Result<(), Trouble> {
        let mut target = self.request.artifact.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            match self.ask(&target)? {
                Some(elsewhere) => target = elsewhere,
                None => return Ok(()),
            }
        }
        Err(Trouble::Refused(format!("its URL leads over more than {MAX_REDIRECTS} redirects")))
    }

    fn limit(&self, time: Duration) -> Limit {
        let limit = Limit::new(time, self.cancelled);
        Limit { until: limit.until.min(self.until), ..limit }
    }

    /// Asks one server. Gives where it sends to, if it does.
    fn ask(&mut self, target: &Target) -> Result<Option<Target>, Trouble> {
        let fetch = self.fetch(target);
        let audience = fetch.audience;
        let budget = Budget::default();
        let mut exchange = Exchange::new(fetch, &budget).map_err(|error| Trouble::Refused(error.detail))?;
        let limit = self.limit(self.request.patience.connect);
        let Download { proxies, tls, .. } = self.request;
        let connected = dial(target, audience, proxies, tls, &Names::default(), &limit);
        let mut transport = connected.map_err(|error| unconnected(target, error))?;
        self.write(&mut transport, &mut exchange).map_err(|error| self.broken(&error))?;
        let mut buffer = vec![0; READ_BUFFER];
        let mut is_taken = false;
        loop {
            transport.tcp().keep_to(self.limit(self.request.patience.stall));
            let came = match transport.read(&mut buffer) {
                Ok(0) => exchange.closed().map_err(failed),
                Ok(count) => exchange.received(&buffer[..count]).map_err(failed),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(self.broken(&error)),
            };
            if let (false, Some(response)) = (is_taken, exchange.response()) {
                match self.judge(target, response)? {
                    Next::Follow(elsewhere) => return Ok(Some(elsewhere)),
                    Next::Take => is_taken = true,
                }
            }
            if is_taken {
                self.take(&exchange.take_body())?;
            }
            came?;
            if exchange.is_done() {
                return self.check_length().map(|()| None);
            }
        }
    }

    fn fetch(&self, target: &Target) -> Fetch {
        let mut headers = vec![
            ("accept".to_string(), "application/gzip, application/octet-stream, */*".to_string()),
            ("accept-encoding".to_string(), "identity".to_string()),
            ("user-agent".to_string(), USER_AGENT.to_string()),
        ];
        let have = self.partial.length();
        if have > 0 {
            headers.push(("range".to_string(), format!("bytes={have}-")));
            if let Some(etag) = self.partial.etag() {
                headers.push(("if-range".to_string(), etag.to_string()));
            }
        }
        let whole = self.request.patience.whole;
        // The body goes through in parts, and `take` counts them.
        let (max_head, max_body) = (MAX_HTTP_HEAD, usize::MAX);
        let bounds = Bounds { connect: whole, first_byte: whole, whole, max_head, max_body };
        Fetch {
            audience: self.request.audience(target),
            method: "GET".to_string(),
            target: target.clone(),
            headers,
            body: None,
            bounds,
        }
    }

    fn write(&self, transport: &mut Transport, exchange: &mut Exchange) -> io::Result<()> {
        transport.tcp().keep_to(self.limit(self.request.patience.stall));
        while !exchange.to_write().is_empty() {
            match transport.write(exchange.to_write()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => exchange.wrote(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        transport.flush()
    }

    /// What to do with a response. Prepares the partial file for its body.
    fn judge(&mut self, target: &Target, response: &Response) -> Result<Next, Trouble> {
        let header = |name: &str| {
            let mut values = response.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
            match (values.next(), values.next()) {
                (Some((_, value)), None) => Some(value.trim()),
                _ => None,
            }
        };
        let (have, size) = (self.partial.length(), self.request.artifact.size);
        match response.status {
            301 | 302 | 303 | 307 | 308 => {
                return redirect(target, header("location")).map(Next::Follow).map_err(Trouble::Refused);
            }
            200 | 206 if header("content-encoding").is_some_and(|coding| coding != "identity") => {
                return Err(Trouble::Refused("the server sends it in another encoding".to_string()));
            }
            // The whole, asked for or not.
            200 => self.partial.begin(header("etag"))?,
            206 if have == 0 => {
                return Err(Trouble::Refused("the server sends a part that nobody asked for".to_string()));
            }
            206 => {
                let range = header("content-range").and_then(ContentRange::parse);
                if !range.is_some_and(|range| range.continues(have, size)) {
                    return Err(Trouble::Anew(
                        "the server sends another part than was asked for".to_string(),
                    ));
                }
                if self.partial.etag().is_some_and(|own| header("etag").is_some_and(|tag| tag != own)) {
                    return Err(Trouble::Anew("the server's file was replaced".to_string()));
                }
            }
            416 if have > 0 => return Err(Trouble::Anew("the server's file is shorter".to_string())),
            408 | 425 | 429 | 500..=599 => {
                let (status, reason) = (response.status, &response.reason);
                return Err(Trouble::Again(format!("{} answers HTTP {status} {reason}", target.origin())));
            }
            status => {
                let reason = &response.reason;
                return Err(Trouble::Refused(format!("{} answers HTTP {status} {reason}", target.origin())));
            }
        }
        let announced = header("content-length").and_then(|text| text.parse::<u64>().ok());
        let all = announced.map(|length| self.partial.length().saturating_add(length));
        match (all, size) {
            (Some(all), None) if all > self.request.artifact.max_size() => Err(self.too_large()),
            (Some(all), Some(size)) if all != size => {
                let text = format!("the server's file has {all} bytes, the manifest says {size}");
                Err(if self.partial.length() > 0 { Trouble::Anew(text) } else { Trouble::Refused(text) })
            }
            _ => {
                self.tell(all);
                Ok(Next::Take)
            }
        }
    }

    fn tell(&mut self, total: Option<u64>) {
        let total = self.request.artifact.size.or(total);
        (self.progress)(Progress { received: self.partial.length(), total });
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if bytes.is_empty() {
            return Ok(());
        }
        let most = self.request.artifact.max_size();
        if bytes.len() as u64 > most.saturating_sub(self.partial.length()) {
            return Err(self.too_large());
        }
        self.partial.append(bytes)?;
        self.tell(None);
        Ok(())
    }

    /// The response is complete; so must the file be. One that ends with its connection may have been cut.
    fn check_length(&self) -> Result<(), Trouble> {
        match (self.partial.length(), self.request.artifact.size) {
            (length, Some(size)) if length != size => {
                Err(Trouble::Again(format!("the answer ended after {length} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    fn too_large(&self) -> Trouble {
        Trouble::Refused(format!("the server sends more than {} bytes", self.request.artifact.max_size()))
    }

    fn broken(&self, error: &io::Error) -> Trouble {
        Trouble::Again(match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock if Instant::now() >= self.until => {
                format!("it took longer than {}", seconds(self.request.patience.whole))
            }
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                format!("the server sent nothing for {}", seconds(self.request.patience.stall))
            }
            _ => format!("the connection broke: {}", tls::describe(error)),
        })
    }
}

fn failed(error: FetchError) -> Trouble {
    match error.kind {
        FetchErrorKind::TooLarge => Trouble::Refused(error.detail),
        _ => Trouble::Again(error.detail),
    }
}

fn unconnected(target: &Target, error: DialError) -> Trouble {
    let is_final = matches!(error, DialError::Forbidden(_));
    let text = format!("{}: {}", target.origin(), error.into_fetch_error().detail);
    if is_final { Trouble::Refused(text) } else { Trouble::Again(text) }
}

/// Where a redirect leads.
fn redirect(from: &Target, location: Option<&str>) -> Result<Target, String> {
    let location = location.ok_or("the server redirects to nowhere")?;
    let base = Url::parse(&from.url()).map_err(|error| error.to_string())?;
    let url = base.join(location).map_err(|_| "the server redirects to what is no URL".to_string())?;
    let target = Target::parse(url.as_str()).map_err(|error| format!("the server redirects: {error}"))?;
    if from.scheme == Scheme::Https && target.scheme != Scheme::Https {
        return Err("the server redirects from https to http".to_string());
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_relative_or_whole_and_never_leave_https() {
        let https = Target::parse("https://a.example/x/y?z").unwrap();
        assert_eq!(redirect(&https, Some("../b?c")).unwrap().url(), "https://a.example/b?c");
        assert_eq!(redirect(&https, Some("//b.example/")).unwrap().url(), "https://b.example/");
        for location in
            [None, Some("http://a.example/"), Some("file:///etc/passwd"), Some("https://"), Some("http://[")]
        {
            assert!(redirect(&https, location).is_err(), "{location:?}");
        }
        let http = Target::parse("http://a.example/").unwrap();
        assert_eq!(redirect(&http, Some("https://b.example/")).unwrap().scheme, Scheme::Https);
        assert_eq!(redirect(&http, Some("/b")).unwrap().url(), "http://a.example/b");
    }
}
