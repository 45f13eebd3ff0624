//! One request over one address family alone, for both shells and by blocking: who answers says which address they see.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use consensus_core::io::{Fetch, FetchError, FetchErrorKind, Response};
use consensus_core::setup::Family;

use crate::budget::Budget;
use crate::connect::{Limit, dial_at, look_up};
use crate::http::client::Exchange;
use crate::names::Names;
use crate::tls::Tls;

/// The answer; nothing goes over the other family, whatever the name resolves to.
pub(super) fn fetch(
    family: Family,
    fetch: &Fetch,
    tls: &Tls,
    cancelled: &Arc<AtomicBool>,
) -> Result<Response, FetchError> {
    let target = fetch.target.clone();
    let limit = Limit::new(fetch.bounds.whole, cancelled);
    let names = Names::with_resolver(move |host| {
        let found = (host, 0).to_socket_addrs().map_err(|error| error.to_string())?;
        Ok(found.map(|address| address.ip()).filter(|address| family.has(*address)).collect())
    });
    let unopened = |error: crate::dial::DialError| error.into_fetch_error();
    let mut addresses = look_up(&target, fetch.audience, &names, &limit).map_err(unopened)?;
    addresses.retain(|address| family.has(address.ip()));
    if addresses.is_empty() {
        let detail = format!("{}: it has no {} address", target.host, family.name());
        return Err(FetchError { kind: FetchErrorKind::Resolve, detail });
    }
    let (mut transport, _) = dial_at(&target, &addresses, tls, &limit).map_err(unopened)?;
    let mut exchange = Exchange::new(fetch.clone(), &Budget::default())?;
    let broken = |error: std::io::Error| FetchError {
        kind: match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => FetchErrorKind::Timeout,
            _ => FetchErrorKind::Protocol,
        },
        detail: format!("{}: {error}", target.host),
    };
    while !exchange.to_write().is_empty() {
        match transport.write(exchange.to_write()) {
            Ok(count) => exchange.wrote(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    transport.flush().map_err(broken)?;
    let mut buffer = [0; 4096];
    while !exchange.is_done() {
        match transport.read(&mut buffer) {
            Ok(0) => {
                exchange.closed()?;
                break;
            }
            Ok(count) => exchange.received(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    exchange.finish().map(|(response, _)| response)
}
