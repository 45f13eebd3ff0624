//! Opening the tunnel's WebSocket.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use consensus_core::io::{Audience, LinkEnd, OpenStage};
use consensus_core::limits::OPEN_TIMEOUT;
use consensus_core::proxy::Proxies;
use tungstenite::handshake::HandshakeError;

use super::channel::{Fair, Socket};
use crate::connect::{Limit, dial};
use crate::dial::DialError;
use crate::names::Names;
use crate::tls::Tls;
use crate::websocket;

/// The node gives an attempt up after [`OPEN_TIMEOUT`] and says so; that is to be heard, and not this thread's own
/// limit, which only sees to it that the thread ends.
const GRACE: Duration = Duration::from_secs(5);

/// Opens a link, on a thread that may block.
pub(super) fn open(
    url: &str,
    proxies: &Proxies,
    tls: &Tls,
    names: &Names,
    cancelled: &Arc<AtomicBool>,
) -> Result<Socket, LinkEnd> {
    let limit = Limit::new(OPEN_TIMEOUT + GRACE, cancelled);
    let target = websocket::target(url)?;
    let request = websocket::request(url, &target)?;
    let transport =
        dial(&target, Audience::Operator, proxies, tls, names, &limit).map_err(DialError::into_link_end)?;
    let upgraded =
        tungstenite::client::client_with_config(request, Fair::new(transport), Some(websocket::config()));
    let mut socket = match upgraded {
        Ok((socket, _)) => socket,
        Err(HandshakeError::Failure(error)) => return Err(websocket::not_upgraded(&error)),
        // The transport waits until its limit and then fails.
        Err(HandshakeError::Interrupted(_)) => {
            let detail = "the server did not answer in time".to_owned();
            return Err(LinkEnd::Unopened { stage: OpenStage::Upgrade, detail });
        }
    };
    let detail = |error: io::Error| LinkEnd::Lost { detail: error.to_string() };
    socket.get_mut().set_nonblocking().map_err(detail)?;
    Ok(socket)
}
