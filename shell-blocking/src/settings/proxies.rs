//! Settings of outbound proxies: the variables that other programs read too. They have no option, because a command line
//! is seen by every user of the machine, and a proxy's URL may hold a password.

use consensus_core::proxy::{Bypass, Proxies, Proxy};

use super::{Setting, Sources, UsageError};

const FORM: &str =
    "http://[USER:PASSWORD@]HOST[:PORT] of a proxy that makes tunnels; nothing, or no variable, for none";

// What is said of a refusal names the variable in capitals, whichever was set.
pub(super) const HTTPS_PROXY: Setting<Proxy> =
    Setting::new("", &["https_proxy", "HTTPS_PROXY"], FORM, |text| Proxy::parse(text, "HTTPS_PROXY"))
        .secret()
        .key("https-proxy");
pub(super) const HTTP_PROXY: Setting<Proxy> =
    Setting::new("", &["http_proxy", "HTTP_PROXY"], FORM, |text| Proxy::parse(text, "HTTP_PROXY"))
        .secret()
        .key("http-proxy");
pub(super) const ALL_PROXY: Setting<Proxy> =
    Setting::new("", &["all_proxy", "ALL_PROXY"], FORM, |text| Proxy::parse(text, "ALL_PROXY"))
        .secret()
        .key("all-proxy");
pub(super) const NO_PROXY: Setting<Bypass> = Setting::new(
    "",
    &["no_proxy", "NO_PROXY"],
    "hosts, .suffixes, addresses, networks such as 10.0.0.0/8, or *, with commas between",
    |text| Ok(Bypass::parse(text)),
)
.key("no-proxy");

impl Sources<'_> {
    /// What the node's own connections go through.
    ///
    /// # Errors
    /// A wrong value.
    pub fn proxies(&self) -> Result<Proxies, UsageError> {
        Ok(Proxies {
            https: self.get(&HTTPS_PROXY)?,
            http: self.get(&HTTP_PROXY)?,
            all: self.get(&ALL_PROXY)?,
            bypass: self.get(&NO_PROXY)?.unwrap_or_default(),
        })
    }
}

/// What the operator should know of them.
#[must_use]
pub fn warnings(proxies: &Proxies) -> Vec<String> {
    let unread = &proxies.bypass.unread;
    if unread.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "NO_PROXY: passed over, because it is {}: {}",
        NO_PROXY.allowed.replacen("hosts", "none of hosts", 1),
        unread.join(", ")
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn proxies(env: &[(&str, &str)]) -> Result<Proxies, UsageError> {
        let find = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Sources { options: &BTreeMap::new(), env: &find, file: None }.proxies()
    }

    #[test]
    fn variables_count_in_either_case_and_an_empty_one_is_none() {
        let found =
            proxies(&[("HTTPS_PROXY", "http://a:1"), ("http_proxy", "b:1"), ("ALL_PROXY", "")]).unwrap();
        assert_eq!(found.https.unwrap().to_string(), "a:1");
        assert_eq!(found.http.unwrap().to_string(), "b:1");
        assert_eq!(found.all, None);
        let found = proxies(&[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1")]).unwrap();
        assert_eq!(found.https.unwrap().to_string(), "b:1");
    }

    #[test]
    fn a_wrong_one_is_named_and_its_password_is_not() {
        let error = proxies(&[("ALL_PROXY", "socks5://op:s3cret@p:1")]).unwrap_err().to_string();
        assert!(error.starts_with("ALL_PROXY: ") && error.contains("SOCKS"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        let found = proxies(&[("NO_PROXY", "<local>,a.example")]).unwrap();
        let told = warnings(&found).concat();
        assert!(told.contains("<local>") && !told.contains("a.example"), "{told}");
    }
}
