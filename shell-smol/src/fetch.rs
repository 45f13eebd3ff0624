//! One HTTP exchange as a client.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use consensus_core::guard::Target;
use consensus_core::io::{Fetch, FetchError, FetchErrorKind, Response};
use shell_blocking::dial::DialError;
use shell_blocking::http::client::Exchange;
use shell_blocking::tls::Tls;
use smol::io::{AsyncRead as _, AsyncWrite as _};
use smol::{Timer, future};

use crate::dial::{Transport, dial};

/// What is read at once: a 16 KiB body and its head in one go.
const READ_BUFFER: usize = 20 * 1024;

/// Makes the exchange, within its time.
pub(crate) async fn fetch(tls: &Tls, request: &Fetch) -> Result<Response, FetchError> {
    let timeout = async {
        Timer::after(request.timeout).await;
        let detail = format!("no complete response within {} s", request.timeout.as_secs());
        Err(FetchError { kind: FetchErrorKind::Timeout, detail })
    };
    future::or(exchange(tls, request), timeout).await
}

async fn exchange(tls: &Tls, request: &Fetch) -> Result<Response, FetchError> {
    let target = Target::parse(&request.url).map_err(FetchError::from)?;
    let mut exchange = Exchange::new(request.clone(), &target, false)?;
    let mut transport = dial(&target, request.audience, tls).await.map_err(DialError::into_fetch_error)?;
    let mut buffer = vec![0; READ_BUFFER];
    let mut flushed = false;
    while !exchange.is_done() {
        let moved =
            poll_fn(|context| poll(context, &mut transport, &exchange, &mut flushed, &mut buffer)).await;
        match moved.map_err(|error| broken(&error))? {
            Moved::Wrote(count) => exchange.wrote(count),
            Moved::Read(0) => exchange.closed()?,
            Moved::Read(count) => exchange.received(buffer.get(..count).unwrap_or_default())?,
        }
    }
    exchange.finish().map(|(response, _)| response)
}

enum Moved {
    Wrote(usize),
    Read(usize),
}

/// Writes what there is to write and reads what comes, whichever goes on: a server may answer a request, or refuse
/// it, before it has read the whole of it.
fn poll(
    context: &mut Context<'_>,
    transport: &mut Transport,
    exchange: &Exchange,
    flushed: &mut bool,
    buffer: &mut [u8],
) -> Poll<io::Result<Moved>> {
    let to_write = exchange.to_write();
    if !to_write.is_empty() {
        if let Poll::Ready(written) = Pin::new(&mut *transport).poll_write(context, to_write) {
            return Poll::Ready(match written {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                written => written.map(Moved::Wrote),
            });
        }
    } else if !*flushed {
        if let Poll::Ready(result) = Pin::new(&mut *transport).poll_flush(context) {
            result?;
            *flushed = true;
        }
    }
    Pin::new(transport).poll_read(context, buffer).map(|read| read.map(Moved::Read))
}

fn broken(error: &io::Error) -> FetchError {
    let detail = format!("the connection broke: {error}");
    FetchError { kind: FetchErrorKind::Protocol, detail }
}
