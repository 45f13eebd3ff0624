//! Secrets taken out of text that goes to somebody else.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString as _};
use core::cmp::Reverse;

use serde_json::Value;

/// What stands where a secret was.
const HIDDEN: &str = "(not shown)";

/// What is shorter is in every text, and no secret: a port, `true`.
const SHORTEST: usize = 4;

/// Takes known secrets out of texts, and whatever looks like an email address or a URL's password.
#[derive(Default)]
pub struct Redactor {
    /// The longest first, so that none is left in part because another one is a part of it.
    secrets: BTreeSet<(Reverse<usize>, String)>,
}

impl core::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Redactor").field("secrets", &self.secrets.len()).finish()
    }
}

impl Redactor {
    /// Learns a secret: as it is, and each of its lines and words.
    pub fn learn(&mut self, secret: &str) {
        let parts = secret.split(|c: char| c.is_whitespace() || c == '\0');
        for part in parts.chain([secret.trim()]) {
            if part.len() >= SHORTEST {
                self.secrets.insert((Reverse(part.len()), part.to_string()));
            }
        }
    }

    /// Learns every text and number in a JSON value, but for the members named in `open`.
    pub fn learn_value(&mut self, value: &Value, open: &[&str]) {
        match value {
            Value::String(text) => self.learn(text),
            Value::Number(number) => self.learn(&number.to_string()),
            Value::Array(values) => values.iter().for_each(|value| self.learn_value(value, open)),
            Value::Object(members) => {
                for (name, value) in members {
                    if !open.contains(&name.as_str()) {
                        self.learn_value(value, open);
                    }
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// `text` without what was learnt.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_string();
        for (_, secret) in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), HIDDEN);
            }
        }
        without_addresses(&text)
    }

    /// The same value with every text in it as [`apply`](Self::apply) leaves it.
    #[must_use]
    pub fn apply_value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.apply(&text)),
            Value::Array(values) => values.into_iter().map(|value| self.apply_value(value)).collect(),
            Value::Object(members) => {
                members.into_iter().map(|(name, value)| (name, self.apply_value(value))).collect()
            }
            other => other,
        }
    }
}

/// `text` with each word hidden that has an `@`: an email address, or a URL with a user's name.
fn without_addresses(text: &str) -> String {
    let ends =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '<' | '>' | '(' | ')' | '\\');
    let mut out = String::new();
    for piece in text.split_inclusive(ends) {
        let word = piece.trim_end_matches(ends);
        if word.contains('@') {
            out.push_str(HIDDEN);
            out.push_str(piece.strip_prefix(word).unwrap_or_default());
        } else {
            out.push_str(piece);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_learnt_is_hidden_wherever_it_stands_and_whole_before_its_parts() {
        let mut redactor = Redactor::default();
        redactor.learn("abcd");
        redactor.learn("xxabcdyy");
        redactor.learn("-----BEGIN KEY-----\nMC4CAQAwBQ\n-----END KEY-----\n");
        redactor.learn("no");
        assert_eq!(redactor.apply("a xxabcdyy b, abcd! no"), "a (not shown) b, (not shown)! no");
        assert!(!redactor.apply("key=MC4CAQAwBQ").contains("MC4CAQAwBQ"));
    }

    #[test]
    fn members_that_are_open_are_left() {
        let mut redactor = Redactor::default();
        let value =
            json!({ "node_id": "b1c604f617c0", "list": [{ "token": "s3cret-token" }], "code": 123_456 });
        redactor.learn_value(&value, &["node_id"]);
        assert_eq!(
            redactor.apply("b1c604f617c0 s3cret-token 123456"),
            "b1c604f617c0 (not shown) (not shown)"
        );
    }

    #[test]
    fn addresses_and_passwords_in_urls_are_hidden_without_being_known() {
        let redactor = Redactor::default();
        let text = redactor.apply("mail op@example.org, \"http://op:pass@proxy:1/\" and http://proxy:1");
        assert_eq!(text, "mail (not shown), \"(not shown)\" and http://proxy:1");
    }
}
