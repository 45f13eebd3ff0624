//! What is asked of the network on the way: the region, and the verification of the email address (protocol.md
//! section 7).

use alloc::format;
use alloc::string::ToString as _;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Setup, is_refusal};
use crate::io::{FetchError, Outcome as End, Response};
use crate::registration::{
    EmailStart, EmailStarted, EmailVerified, EmailVerify, MAX_CODE_TRIES, failure_text, is_success,
    json_body, read_region, unreachable_text,
};
use crate::setup::answers;
use crate::setup::progress::{Held, is_token};
use crate::setup::{Purpose, QuestionId, Step, TellKind};
use crate::state::Stamp;
use crate::text::printable;
use crate::time::{Now, unix_of_iso8601};

/// Codes that one setup has sent: somebody's mailbox is no place to fill.
const MAX_EMAILS: u32 = 5;

/// How long a code or a token holds where the server does not say, in seconds.
const HOLDS: u64 = 600;

impl Setup {
    /// The next step of the verification.
    pub(super) fn email(&mut self, now: Now) -> Option<Step> {
        let Some(email) = self.answers.get(&QuestionId::Email).cloned() else {
            let held = self.progress.token.as_ref().map(|held| held.email.as_str()).unwrap_or_default();
            let verified = answers::read(QuestionId::Email, held, self.settings.allow_private).ok();
            return Some(self.ask(QuestionId::Email, verified.as_deref()));
        };
        let Some(held) = self.verification(&email, now) else {
            self.session.code_tries = 0;
            self.session.emails += 1;
            if self.session.emails > MAX_EMAILS {
                let text = format!("{MAX_EMAILS} codes were sent, and none came back; try again later");
                self.end(End::Refused, text);
                return None;
            }
            let body = json_body(&EmailStart { email });
            return self.request(Purpose::EmailStart, "POST", "/node/email/start", body);
        };
        let verification_id = held.text.clone();
        match self.session.code.clone() {
            None => Some(self.ask(QuestionId::Code, None)),
            Some(code) => {
                let body = json_body(&EmailVerify { email, verification_id, code });
                self.request(Purpose::EmailVerify, "POST", "/node/email/verify", body)
            }
        }
    }

    pub(super) fn on_fetched(&mut self, purpose: Purpose, answer: Result<Response, FetchError>, now: Now) {
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                // A code that was typed may be wrong all the same.
                self.session.code = None;
                return self.end(End::Unreachable, unreachable_text(&error));
            }
        };
        match purpose {
            Purpose::Region => self.on_region(&response),
            Purpose::EmailStart => self.on_email_started(&response, now),
            Purpose::EmailVerify => self.on_email_verified(&response, now),
        }
    }

    fn on_region(&mut self, response: &Response) {
        let region = match read_region(response) {
            Ok((region, place)) => {
                self.tell(TellKind::Text, format!("Region: {place}."));
                region
            }
            // The server decides about it again when the node joins: not knowing it is no reason to stop.
            Err(why) => {
                self.tell(TellKind::Warning, format!("The region is not known: {why}"));
                None
            }
        };
        let ipv4 = self.answers.get(&QuestionId::Ipv4).cloned().unwrap_or_default();
        self.session.region = Some((ipv4, region));
    }

    fn on_email_started(&mut self, response: &Response, now: Now) {
        self.session.code = None;
        if is_refusal(response) {
            // Not offered again: it would be refused again.
            self.answers.remove(&QuestionId::Email);
            self.defaults.remove(&QuestionId::Email);
            self.session.problem = Some(failure_text(response));
            return;
        }
        let Some(started) = self.body::<EmailStarted>("email/start", response) else { return };
        if !is_token(&started.verification_id) {
            return self.unreadable("email/start");
        }
        let email = self.answers.get(&QuestionId::Email).cloned().unwrap_or_default();
        let expires_at = expiry(started.expires_at.as_ref(), now);
        if started.dev_code.is_some() {
            let text = "This is a development network: the code came with its answer, and no email was sent.";
            self.tell(TellKind::Text, text.to_string());
        } else {
            self.tell(TellKind::Personal, format!("A code was sent to {}.", printable(&email)));
        }
        self.session.code = started.dev_code;
        self.progress.verification = Some(Held { email, text: started.verification_id, expires_at });
        self.session.dirty = true;
    }

    fn on_email_verified(&mut self, response: &Response, now: Now) {
        self.session.code = None;
        if is_refusal(response) {
            self.session.code_tries += 1;
            let why = failure_text(response);
            if matches!(response.status, 404 | 410) || self.session.code_tries >= MAX_CODE_TRIES {
                self.progress.verification = None;
                self.session.dirty = true;
                self.tell(TellKind::Warning, format!("{why}. Another code is sent."));
            } else {
                self.session.problem = Some(why);
            }
            return;
        }
        let Some(verified) = self.body::<EmailVerified>("email/verify", response) else { return };
        if !is_token(&verified.email_verification_token) {
            return self.unreadable("email/verify");
        }
        let email = self.answers.get(&QuestionId::Email).cloned().unwrap_or_default();
        let expires_at = expiry(verified.expires_at.as_ref(), now);
        self.progress.token = Some(Held { email, text: verified.email_verification_token, expires_at });
        self.progress.verification = None;
        self.session.dirty = true;
        self.tell(TellKind::Text, "The email address is verified.".to_string());
    }

    /// The body of a 2xx answer; anything else ends setup.
    fn body<T: DeserializeOwned>(&mut self, what: &str, response: &Response) -> Option<T> {
        if !is_success(response) {
            self.end(End::Refused, failure_text(response));
            return None;
        }
        let body = serde_json::from_slice(&response.body).ok();
        if body.is_none() {
            self.unreadable(what);
        }
        body
    }

    fn unreadable(&mut self, what: &str) {
        self.end(End::Refused, format!("the server's answer to {what} cannot be read"));
    }
}

/// When something runs out, in unix seconds: the server says a number, or a date.
fn expiry(said: Option<&Value>, now: Now) -> u64 {
    let said = match said {
        Some(Value::Number(number)) => number.as_f64().map(|seconds| seconds as u64),
        Some(Value::String(text)) => unix_of_iso8601(text),
        _ => None,
    };
    let seconds = said.and_then(|said| Stamp::Number(said).unix_seconds()).unwrap_or(0);
    // What is new and over already is of a server whose clock is another; it judges itself what holds.
    if seconds > now.unix_seconds() { seconds } else { now.unix_seconds().saturating_add(HOLDS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use serde_json::json;

    #[test]
    fn a_server_says_when_in_seconds_milliseconds_or_a_date() {
        let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1000) };
        for (said, expected) in [
            (json!(1_795_391_521), 1_795_391_521),
            (json!(1_795_391_521_000_u64), 1_795_391_521),
            (json!(1_795_391_521.5), 1_795_391_521),
            (json!("2026-11-22T23:52:01.000Z"), 1_795_391_521),
            (json!("soon"), 1600),
            (json!(null), 1600),
            (json!(-1), 1600),
            (json!(1_795_391_521_000_500_u64), 1600),
            (json!(999), 1600),
        ] {
            assert_eq!(expiry(Some(&said), now), expected, "{said}");
        }
        assert_eq!(expiry(None, now), 1600);
    }
}
