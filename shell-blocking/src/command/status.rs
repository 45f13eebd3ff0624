//! `status`: how the node of this machine is, as its local API says it.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use consensus_core::io::Outcome;
use consensus_core::status::{Found, question};

use super::{Failure, Setup, print};
use crate::runtime_api::Runtime;
use crate::settings::{Sources, UsageError};

pub(super) fn run<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    stdout: &mut dyn Write,
) -> Result<u8, Failure> {
    let authority = reached_at(sources.listen()?).to_string();
    let question = question(&authority)
        .map_err(|error| Failure::Usage(UsageError::new(&format!("--listen: {authority}: {error}"))))?;
    let environment = setup.environment(&setup.state_dir())?;
    let found = Found::of(runtime.fetch(&environment, &question));
    let text = if sources.options.contains_key("--json") {
        format!("{}\n", found.to_json())
    } else {
        found.to_text(&authority, R::PROGRAM)
    };
    let printed = print(stdout, &text);
    // What could not be said is no answer.
    Ok(if printed == Outcome::Done.exit_code() { found.outcome().exit_code() } else { printed })
}

/// Whoever listens at every address of the machine is reached at its loopback.
pub(super) fn reached_at(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_asked_at_the_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(reached_at(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
