//! Settings of `setup`: what the operator says before being asked.

use consensus_core::setup::{ADDRESS_SERVICES, Answers, Invalid, MAX_SERVICES, QuestionId};

use super::release::REPEATED;
use super::{
    CODE, CONTACT, EMAIL, EMAIL_VERIFICATION_TOKEN, EVM_ADDRESS, ICP_ADDRESS, IPV4, IPV6, MACHINE_ID, PORT,
    SERVER, SOLANA_ADDRESS, Setting, Sources, UsageError, VERIFICATION_ID, read_number,
};

/// What `setup` is told.
#[derive(Clone, Debug)]
pub struct SettingUp {
    /// Answers, as they were given: setup judges them.
    pub given: Answers,
    /// An email address verified earlier.
    pub email_token: Option<String>,
    /// A verification begun earlier.
    pub verification_id: Option<String>,
    /// The code that came by email.
    pub code: Option<String>,
    /// Who is asked for this machine's addresses.
    pub address_services: Vec<String>,
    /// Whether the operator agrees, and is not to be asked.
    pub yes: bool,
    /// Whether the questions are asked on a page.
    pub browser: bool,
    /// Where that is served; 0 is any port that is free.
    pub browser_port: u16,
    /// Whether this program stays.
    pub skip_release: bool,
}

/// A setting of text that setup judges.
const fn raw(option: &'static str, env: &'static [&'static str]) -> Setting<String> {
    Setting::new(option, env, "", |text| Ok(text.to_string()))
}

const VALUES: [(QuestionId, Setting<String>); 10] = [
    (QuestionId::Server, raw(SERVER.option, SERVER.env)),
    (QuestionId::Ipv4, raw(IPV4.option, IPV4.env)),
    (QuestionId::Ipv6, raw(IPV6.option, IPV6.env)),
    (QuestionId::Port, raw(PORT.option, PORT.env)),
    (QuestionId::Email, raw(EMAIL.option, EMAIL.env)),
    (QuestionId::Contact, raw(CONTACT.option, CONTACT.env)),
    (QuestionId::EvmAddress, raw(EVM_ADDRESS.option, EVM_ADDRESS.env)),
    (QuestionId::SolanaAddress, raw(SOLANA_ADDRESS.option, SOLANA_ADDRESS.env)),
    (QuestionId::IcpAddress, raw(ICP_ADDRESS.option, ICP_ADDRESS.env)),
    (QuestionId::Service, raw("--service", &[])),
];

pub(super) const ADDRESS_SERVICE: Setting<Vec<String>> = Setting::new(
    "--address-service",
    &["CONSENSUS_ADDRESS_SERVICES"],
    "1 to 8 https:// or http:// URLs, separated by commas, or none",
    read_services,
);

const BROWSER_PORT: Setting<u16> =
    Setting::new("--browser-port", &[], "a port from 1 to 65535", |text| read_number(text, 1, 65_535));

fn read_services(text: &str) -> Result<Vec<String>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let services: Vec<String> =
        text.split([REPEATED, ',']).map(|service| service.trim().to_string()).collect();
    if services.len() > MAX_SERVICES {
        return Err("there are too many".to_string());
    }
    for service in &services {
        super::read::read_service(service)?;
    }
    Ok(services)
}

impl Sources<'_> {
    /// What `setup` is told.
    ///
    /// # Errors
    /// A wrong value of those that setup does not judge itself.
    pub fn setting_up(&self) -> Result<SettingUp, UsageError> {
        let mut given = Answers::new();
        for (id, setting) in &VALUES {
            if let Some(text) = self.get(setting)? {
                given.insert(*id, text);
            }
        }
        // Used by the registration at the end; a wrong one is told before anything is done.
        self.get(&MACHINE_ID)?;
        let (verification_id, code) = (self.get(&VERIFICATION_ID)?, self.get(&CODE)?);
        if verification_id.is_some() && code.is_none() {
            return Err(UsageError::new("--verification-id is of a code; give --code too"));
        }
        let services = self.get(&ADDRESS_SERVICE)?;
        let (yes, browser) = (self.switch("--yes"), self.switch("--browser"));
        if yes && browser {
            let text = "--yes asks nothing, and --browser is for questions; give one of them";
            return Err(UsageError::new(text));
        }
        let browser_port = self.get(&BROWSER_PORT)?;
        if browser_port.is_some() && !browser {
            return Err(UsageError::new(
                "--browser-port is where the page of --browser is; give --browser too",
            ));
        }
        Ok(SettingUp {
            given,
            email_token: self.get(&EMAIL_VERIFICATION_TOKEN)?,
            verification_id,
            code,
            address_services: services
                .unwrap_or_else(|| ADDRESS_SERVICES.iter().map(|service| (*service).to_string()).collect()),
            yes,
            browser,
            browser_port: browser_port.unwrap_or_default(),
            skip_release: self.switch("--skip-release"),
        })
    }

    /// What the next `setup` has to be told again, as words for a shell: not the answers, which are kept where this one
    /// got so far and are nobody else's business, and no secrets.
    #[must_use]
    pub fn said_again(&self) -> Vec<String> {
        let of_people =
            VALUES.iter().filter(|(id, _)| !matches!(id, QuestionId::Server | QuestionId::Service));
        let of_people: Vec<_> = of_people.map(|(_, setting)| setting.option).collect();
        let secret = [CODE.option, VERIFICATION_ID.option, EMAIL_VERIFICATION_TOKEN.option];
        self.said(|option| !of_people.contains(&option) && !secret.contains(&option))
    }

    /// How a question is answered beforehand, in words; `None` where it cannot be.
    #[must_use]
    pub fn names_of(id: QuestionId) -> Option<String> {
        if id == QuestionId::Code {
            return Some(CODE.names());
        }
        VALUES.iter().find(|(of, _)| *of == id).map(|(_, setting)| setting.names())
    }

    /// A wrong answer that was given beforehand, with where it came from.
    #[must_use]
    pub fn wrong_answer(&self, invalid: &Invalid) -> UsageError {
        let setting = VALUES.iter().find(|(id, _)| *id == invalid.id).map(|(_, setting)| setting);
        let found = setting.and_then(|setting| self.find(setting).ok().flatten());
        let (origin, text) = found.map(|found| (found.origin, found.text)).unwrap_or_default();
        super::wrong(&origin, &text, &format!("such as {}", invalid.example), &invalid.reason)
    }
}

#[cfg(test)]
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "a method is of one lifetime, a closure of any"
)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    fn with<T>(options: &[(&str, &str)], env: &[(&str, &str)], look: impl FnOnce(&Sources<'_>) -> T) -> T {
        let options: BTreeMap<_, _> =
            options.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        let find =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        look(&Sources { options: &options, env: &find, file: None })
    }

    #[test]
    fn what_is_given_comes_from_options_then_the_environment() {
        let env = [("CONSENSUS_NODE_IPV4", "1.1.1.1"), ("CONSENSUS_NODE_IPV6", "none"), ("NODE_PORT", "80")];
        let told =
            with(&[("--ipv4", "8.8.8.8"), ("--yes", "true")], &env, |sources| sources.setting_up()).unwrap();
        let expected = [(QuestionId::Ipv4, "8.8.8.8"), (QuestionId::Ipv6, "none"), (QuestionId::Port, "80")];
        assert_eq!(told.given, expected.map(|(id, text)| (id, text.to_string())).into());
        assert!(told.yes && !told.skip_release);
        assert_eq!(told.address_services, ADDRESS_SERVICES);
    }

    #[test]
    fn services_are_a_list_of_urls_or_none() {
        let of = |text: &str| {
            with(&[("--address-service", text)], &[], |sources| sources.setting_up())
                .map(|told| told.address_services)
        };
        assert_eq!(of("none").unwrap(), Vec::<String>::new());
        assert_eq!(of("http://a/x?y, https://b").unwrap(), ["http://a/x?y", "https://b"]);
        assert_eq!(of(&format!("http://a{REPEATED}http://b")).unwrap().len(), 2);
        for wrong in ["", "a", "ftp://a", "http://a,,http://b", &["http://a"; 9].join(",")] {
            assert!(of(wrong).unwrap_err().to_string().starts_with("--address-service: "), "{wrong}");
        }
        for (options, word) in [
            (&[("--yes", "true"), ("--browser", "true")][..], "--browser"),
            (&[("--browser-port", "80")], "give --browser"),
            (&[("--browser", "true"), ("--browser-port", "0")], "--browser-port"),
        ] {
            let error = with(options, &[], |sources| sources.setting_up()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let half = with(&[("--verification-id", "v")], &[], |sources| sources.setting_up()).unwrap_err();
        assert!(half.to_string().contains("--code"));
    }

    #[test]
    fn a_wrong_answer_is_told_with_where_it_came_from() {
        let invalid = Invalid { id: QuestionId::Port, reason: "no port".into(), example: "9090" };
        let error = with(&[], &[("NODE_PORT", "x\u{1b}")], |sources| sources.wrong_answer(&invalid));
        let text = error.to_string();
        assert!(
            text.starts_with("NODE_PORT: ") && text.contains("no port") && text.contains("9090"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
        assert_eq!(Sources::names_of(QuestionId::Email).unwrap(), "--email");
        assert_eq!(Sources::names_of(QuestionId::Confirm), None);
    }
}
