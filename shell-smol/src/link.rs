//! The tunnel's WebSocket: opened, then worked to its end.

use std::sync::Arc;

use async_tungstenite::{WebSocketStream, client_async_with_config};
use consensus_core::io::{Audience, Input, LinkEnd, LinkId};
use consensus_core::limits::OPEN_TIMEOUT;
use consensus_core::proxy::Proxies;
use shell_blocking::dial::DialError;
use shell_blocking::names::Names;
use shell_blocking::tls::Tls;
use shell_blocking::websocket;
use smol::channel::Sender;
use smol::{Executor, Task};

use crate::channel::{Channel, Fair, Far, Name, work};
use crate::dial::{Limit, dial};
use crate::fetch::Means;
use crate::runtime::{Busy, Happened};

/// The runtime's end of a link. Dropping it ends the transport at once.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) channel: Channel,
    task: Task<()>,
}

impl Link {
    /// Opens a link; what becomes of it arrives at `happened`.
    pub(crate) fn open(
        executor: &Executor<'static>,
        id: LinkId,
        url: String,
        proxies: Arc<Proxies>,
        means: &Means,
        happened: Sender<Happened>,
    ) -> Self {
        let (channel, far) = Channel::new(means.budget.clone());
        let (tls, names) = (means.tls.clone(), means.names.clone());
        let task = executor.spawn(async move {
            let socket = connect(&url, &proxies, &tls, &names).await;
            run(id, socket, happened, far).await;
        });
        Self { id, channel, task }
    }

    /// Sends what is unsent and a close frame. `busy` is dropped when the transport has ended.
    pub(crate) fn close(self, code: u16, reason: String, busy: Busy) {
        self.channel.close(code, reason, busy);
        self.task.detach();
    }

    /// Of a link that has ended for the node: resolves when its transport has ended as well.
    pub(crate) async fn ended(self) {
        self.task.await;
    }
}

async fn run(
    link: LinkId,
    socket: Result<WebSocketStream<Fair>, LinkEnd>,
    happened: Sender<Happened>,
    far: Far,
) {
    match socket {
        Err(end) => {
            let _ = happened.send(Happened::Input(Input::LinkEnded { link, end })).await;
        }
        Ok(socket) => {
            let _ = happened.send(Happened::Input(Input::LinkOpened { link })).await;
            work(Name::Link(link), socket, None, far, &happened).await;
        }
    }
}

async fn connect(
    url: &str,
    proxies: &Proxies,
    tls: &Tls,
    names: &Names,
) -> Result<WebSocketStream<Fair>, LinkEnd> {
    let target = websocket::target(url)?;
    let request = websocket::request(url, &target)?;
    // The node gives an attempt up and says so; that is to be heard, and not this limit.
    let limit = Limit::new(OPEN_TIMEOUT * 2);
    let wire = dial(&target, Audience::Operator, proxies, tls, names, limit).await;
    let transport = Box::new(wire.map_err(DialError::into_link_end)?);
    match client_async_with_config(request, Fair::new(transport), Some(websocket::config())).await {
        Ok((socket, _)) => Ok(socket),
        Err(error) => Err(websocket::not_upgraded(&error)),
    }
}
