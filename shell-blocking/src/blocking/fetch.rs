//! One HTTP exchange on a thread that may block.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use consensus_core::guard::Target;
use consensus_core::io::{Fetch, FetchError, FetchErrorKind, Response};

use super::connect::{Limit, Transport, dial};
use crate::budget::Budget;
use crate::http::client::Exchange;
use crate::tls::{self, Tls};

/// Read at once.
const READ_BUFFER: usize = 16 * 1024;

/// Carries out `fetch`. Ends soon after `cancelled` is set.
pub(super) fn fetch(
    tls: &Tls,
    fetch: Fetch,
    cancelled: &Arc<AtomicBool>,
    budget: &Budget,
) -> Result<Response, FetchError> {
    let limit = Limit { until: Instant::now() + fetch.timeout, cancelled: Arc::clone(cancelled) };
    exchange(tls, fetch, &limit, budget).map_err(|error| {
        // Whatever it looked like where it was noticed.
        if limit.is_cancelled() {
            FetchError { kind: FetchErrorKind::Cancelled, detail: "cancelled".to_owned() }
        } else if Instant::now() >= limit.until {
            FetchError { kind: FetchErrorKind::Timeout, detail: "the time was up".to_owned() }
        } else {
            error
        }
    })
}

fn exchange(tls: &Tls, fetch: Fetch, limit: &Limit, budget: &Budget) -> Result<Response, FetchError> {
    let target = Target::parse(&fetch.url)?;
    let audience = fetch.audience;
    // Connections are not kept for another exchange yet. A pool of them, by address, scheme and name, belongs here.
    let mut exchange = Exchange::new(fetch, &target, false, budget)?;
    let mut transport =
        dial(&target, audience, tls, limit).map_err(crate::dial::DialError::into_fetch_error)?;
    // A server may answer and close before it has read all: what it said counts, not that the writing failed.
    let written = write(&mut exchange, &mut transport);
    let read = read(&mut exchange, &mut transport);
    if exchange.is_done() {
        let (response, _) = exchange.finish()?;
        transport.end_writing();
        return Ok(response);
    }
    written.map_err(broken)?;
    read?;
    exchange.finish().map(|(response, _)| response)
}

fn write(exchange: &mut Exchange, transport: &mut Transport) -> io::Result<()> {
    loop {
        let bytes = exchange.to_write();
        if bytes.is_empty() {
            return transport.flush();
        }
        let written = transport.write(bytes)?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        exchange.wrote(written);
    }
}

fn read(exchange: &mut Exchange, transport: &mut Transport) -> Result<(), FetchError> {
    let mut buffer = vec![0; READ_BUFFER];
    while !exchange.is_done() {
        match transport.read(&mut buffer) {
            Ok(0) => return exchange.closed(),
            Ok(length) => exchange.received(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    Ok(())
}

fn broken(error: io::Error) -> FetchError {
    let detail = format!("the connection broke: {}", tls::describe(&error));
    FetchError { kind: FetchErrorKind::Protocol, detail }
}
