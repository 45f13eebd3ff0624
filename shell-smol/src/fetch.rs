//! One HTTP exchange as a client.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use consensus_core::guard::Target;
use consensus_core::io::{Fetch, FetchError, FetchErrorKind, Response};
use shell_blocking::budget::Budget;
use shell_blocking::dial::DialError;
use shell_blocking::http::client::Exchange;
use shell_blocking::tls::Tls;
use smol::io::{AsyncRead as _, AsyncWrite as _};
use smol::{Timer, future};

use crate::dial::{Transport, dial};

/// What is read at once: a 16 KiB body and its head in one go.
const READ_BUFFER: usize = 20 * 1024;

/// Makes the exchange, within its time.
pub(crate) async fn fetch(tls: &Tls, request: Fetch, budget: &Budget) -> Result<Response, FetchError> {
    let time = request.timeout;
    let timeout = async move {
        Timer::after(time).await;
        let detail = format!("no complete response within {} s", time.as_secs());
        Err(FetchError { kind: FetchErrorKind::Timeout, detail })
    };
    future::or(exchange(tls, request, budget), timeout).await
}

async fn exchange(tls: &Tls, request: Fetch, budget: &Budget) -> Result<Response, FetchError> {
    let target = Target::parse(&request.url).map_err(FetchError::from)?;
    let audience = request.audience;
    let mut exchange = Exchange::new(request, &target, false, budget)?;
    let mut transport = dial(&target, audience, tls).await.map_err(DialError::into_fetch_error)?;
    let mut buffer = vec![0; READ_BUFFER];
    let mut writing = Writing::Going;
    while !exchange.is_done() {
        let moved =
            poll_fn(|context| poll(context, &mut transport, &exchange, &mut writing, &mut buffer)).await;
        match moved {
            Ok(Moved::Wrote(count)) => exchange.wrote(count),
            Ok(Moved::Read(0)) => match writing {
                Writing::Failed(error) => return Err(broken(&error)),
                Writing::Going | Writing::Flushed => exchange.closed()?,
            },
            Ok(Moved::Read(count)) => exchange.received(buffer.get(..count).unwrap_or_default())?,
            Err(error) => return Err(broken(&error)),
        }
    }
    exchange.finish().map(|(response, _)| response)
}

enum Moved {
    Wrote(usize),
    Read(usize),
}

enum Writing {
    Going,
    Flushed,
    /// A server may answer and close before it has read all: what it said counts, so it is read first.
    Failed(io::Error),
}

/// Writes what there is to write and reads what comes, whichever goes on: a server may answer a request, or refuse
/// it, before it has read the whole of it.
fn poll(
    context: &mut Context<'_>,
    transport: &mut Transport,
    exchange: &Exchange,
    writing: &mut Writing,
    buffer: &mut [u8],
) -> Poll<io::Result<Moved>> {
    let to_write = exchange.to_write();
    if matches!(writing, Writing::Going) {
        let written = if to_write.is_empty() {
            Pin::new(&mut *transport).poll_flush(context).map_ok(|()| None)
        } else {
            Pin::new(&mut *transport).poll_write(context, to_write).map_ok(Some)
        };
        match written {
            Poll::Pending => {}
            Poll::Ready(Ok(None)) => *writing = Writing::Flushed,
            Poll::Ready(Ok(Some(0))) => *writing = Writing::Failed(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(Some(count))) => return Poll::Ready(Ok(Moved::Wrote(count))),
            Poll::Ready(Err(error)) => *writing = Writing::Failed(error),
        }
    }
    Pin::new(transport).poll_read(context, buffer).map_ok(Moved::Read)
}

fn broken(error: &io::Error) -> FetchError {
    let detail = format!("the connection broke: {}", shell_blocking::tls::describe(error));
    FetchError { kind: FetchErrorKind::Protocol, detail }
}
