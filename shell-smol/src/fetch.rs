//! HTTP exchanges with targets.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use consensus_core::guard::Target;
use consensus_core::io::{Audience, Fetch, FetchError, FetchErrorKind, Response};
use consensus_core::proxy::Proxies;
use shell_blocking::budget::Budget;
use shell_blocking::dial::DialError;
use shell_blocking::http::client::Exchange;
use shell_blocking::http::pool::{self, Kept, Pool};
use shell_blocking::http::times::Times;
use shell_blocking::names::Names;
use shell_blocking::tls::Tls;
use smol::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _};

use crate::alarms::{Alarm, Alarms};
use crate::dial::{Limit, Wire, dial_at, dial_through, look_up};

/// What is read at once: a body of 16 KiB and its head in one go.
const READ_BUFFER: usize = 20 * 1024;

/// What all fetches share.
#[derive(Clone, Debug)]
pub(crate) struct Means {
    pub(crate) tls: Tls,
    pub(crate) names: Names,
    pub(crate) pool: Pool<Connection>,
    pub(crate) budget: Budget,
    pub(crate) alarms: Alarms,
    /// For the node's own requests; none for those of others.
    proxies: Arc<Proxies>,
}

/// A connection to a target, and the memory to read it with.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
    buffer: Vec<u8>,
}

impl pool::Connection for Connection {
    fn is_quiet(&mut self) -> bool {
        self.wire.is_quiet()
    }
}

impl Means {
    /// For what the node fetches for others: it goes direct.
    pub(crate) fn new(tls: Tls, budget: Budget) -> Self {
        let (names, pool, alarms) = (Names::default(), Pool::default(), Alarms::default());
        Self { tls, names, pool, budget, alarms, proxies: Arc::default() }
    }

    /// For the node's own requests.
    pub(crate) fn own(tls: Tls, proxies: Arc<Proxies>) -> Self {
        Self { proxies, ..Self::new(tls, Budget::default()) }
    }

    /// Makes the exchange, within its times.
    pub(crate) async fn fetch(&self, fetch: Fetch) -> Result<Response, FetchError> {
        let mut times = Times::new(fetch.bounds, Instant::now());
        let (target, audience) = (fetch.target.clone(), fetch.audience);
        let mut exchange = Exchange::new(fetch, &self.budget)?;
        let mut is_again = false;
        loop {
            let limit = Limit { until: times.connect(Instant::now()), time: times.connect_time() };
            let obtained = self.obtain(&target, audience, limit, is_again).await;
            let (mut kept, is_reused) = obtained.map_err(DialError::into_fetch_error)?;
            times.connected(Instant::now());
            match self.converse(&mut kept.connection, &mut exchange, &times).await {
                Ok(()) => return self.finish(exchange, kept).await,
                // The connection had ended before, and nothing else is known to be wrong.
                Err(error) if is_reused && exchange.rewind(&error) => is_again = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection, and whether it was kept from another fetch.
    async fn obtain(
        &self,
        target: &Target,
        audience: Audience,
        limit: Limit,
        is_again: bool,
    ) -> Result<(Kept<Connection>, bool), DialError> {
        let (wire, address) = match self.proxies.of(target) {
            Some(proxy) => dial_through(proxy, target, audience, &self.tls, &self.names, limit).await?,
            None => {
                let addresses = look_up(target, audience, &self.names, limit).await?;
                let kept = if is_again { None } else { self.pool.take(target, audience, &addresses) };
                if let Some(kept) = kept {
                    return Ok((kept, true));
                }
                dial_at(target, &addresses, &self.tls, limit).await?
            }
        };
        let connection = Connection { wire, buffer: vec![0; READ_BUFFER] };
        Ok((Kept::new(target, audience, address, connection), false))
    }

    /// Writes what there is to write and reads what comes, until the response is complete.
    async fn converse(
        &self,
        connection: &mut Connection,
        exchange: &mut Exchange,
        times: &Times,
    ) -> Result<(), FetchError> {
        let Connection { wire, buffer } = connection;
        let mut writing = Writing::Going;
        let mut late = self.alarms.at(times.answer(exchange.has_begun()));
        while !exchange.is_done() {
            late.set_at(times.answer(exchange.has_begun()));
            let moved =
                poll_fn(|context| poll(context, wire, exchange, &mut writing, buffer, &mut late)).await;
            match moved {
                Ok(Moved::Wrote(count)) => exchange.wrote(count),
                Ok(Moved::Read(0)) => match writing {
                    Writing::Failed(error) => return Err(broken(&error)),
                    Writing::Going | Writing::Flushed => exchange.closed()?,
                },
                Ok(Moved::Read(count)) => exchange.received(buffer.get(..count).unwrap_or_default())?,
                Ok(Moved::Late) => return Err(times.late(exchange.has_begun())),
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(())
    }

    /// Gives the response, and the connection back.
    async fn finish(&self, exchange: Exchange, mut kept: Kept<Connection>) -> Result<Response, FetchError> {
        let (response, is_reusable) = exchange.finish()?;
        if is_reusable {
            self.pool.put(kept);
        } else if matches!(kept.connection.wire, Wire::Tls(_)) {
            // The other side is told in order, if it takes it at once.
            let _ = smol::future::poll_once(kept.connection.wire.close()).await;
        }
        Ok(response)
    }
}

enum Moved {
    Wrote(usize),
    Read(usize),
    Late,
}

enum Writing {
    Going,
    Flushed,
    /// A server may answer and close before it has read all: what it said counts, so it is read first.
    Failed(io::Error),
}

/// Writes and reads, whichever goes on: a server may answer a request, or refuse it, before it has read the whole of
/// it.
fn poll(
    context: &mut Context<'_>,
    wire: &mut Wire,
    exchange: &Exchange,
    writing: &mut Writing,
    buffer: &mut [u8],
    late: &mut Alarm,
) -> Poll<io::Result<Moved>> {
    let to_write = exchange.to_write();
    if matches!(writing, Writing::Going) {
        let written = if to_write.is_empty() {
            Pin::new(&mut *wire).poll_flush(context).map_ok(|()| None)
        } else {
            Pin::new(&mut *wire).poll_write(context, to_write).map_ok(Some)
        };
        match written {
            Poll::Pending => {}
            Poll::Ready(Ok(None)) => *writing = Writing::Flushed,
            Poll::Ready(Ok(Some(0))) => *writing = Writing::Failed(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(Some(count))) => return Poll::Ready(Ok(Moved::Wrote(count))),
            Poll::Ready(Err(error)) => *writing = Writing::Failed(error),
        }
    }
    match Pin::new(wire).poll_read(context, buffer) {
        Poll::Ready(read) => Poll::Ready(read.map(Moved::Read)),
        Poll::Pending => Pin::new(late).poll(context).map(|()| Ok(Moved::Late)),
    }
}

fn broken(error: &io::Error) -> FetchError {
    let detail = format!("the connection broke: {}", shell_blocking::tls::describe(error));
    FetchError { kind: FetchErrorKind::Protocol, detail }
}
