//! The local orchestrator: the network's own interface on one port, HTTP and WebSocket, in a thread of its own.

mod gateway;
mod http;
mod record;
mod state;
mod stream;
mod tickets;
mod tunnel;
mod updates;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::data_plane::ticket::Claims;
use consensus_core::peer::offer::Offer;
use consensus_core::peer::orchestrator::{Input, ProxyFailure};
use consensus_core::peer::streams::StreamTarget;
use consensus_core::time::Now;
use consensus_core::wire::message::{ProxyRequest, ProxyResponse};
use futures_rustls::TlsAcceptor;
use smol::{Async, channel, future};

use self::gateway::Door;
pub use self::record::{Journal, Record};
pub use self::state::NodeRecord;
use self::state::{Saved, State};
pub use self::stream::{FromNode, Stream};
use crate::background::Background;
use crate::conn::Conn;
use crate::options::{Bad, Options};

/// How long a port that somebody else has is waited for.
const PORT_PATIENCE: Duration = Duration::from_secs(30);

/// What comes of a proxied request.
pub type Fetched = Result<ProxyResponse, ProxyFailure>;

/// What all connections share.
struct Shared {
    options: Options,
    address: SocketAddr,
    seed: [u8; 32],
    identity: Identity<Pure>,
    state: Mutex<State>,
    journal: Arc<Journal>,
    rng: Mutex<Drbg>,
    started: Instant,
    bad: Mutex<(Option<Bad>, Option<u64>)>,
    connections: AtomicU64,
    tls: Option<TlsAcceptor>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fork_rng(&self) -> Drbg {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fork()
    }

    fn random_hex<const N: usize>(&self) -> String {
        let bytes: [u8; N] = self.rng.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        consensus_core::wire::hex::encode(&bytes)
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.started.elapsed(), unix }
    }

    /// How to misbehave on the next connection.
    fn next_bad(&self) -> Option<Bad> {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        let (how, left) = &mut *bad;
        match left {
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                how.clone()
            }
            None => how.clone(),
        }
    }

    fn fetch(&self, node_id: &str, request: ProxyRequest) -> Option<channel::Receiver<Fetched>> {
        let (sender, fetched) = channel::bounded(1);
        let state = self.state();
        let commands = &state.attached.get(node_id)?.commands;
        commands.try_send(tunnel::Command::Proxy(request, sender)).ok()?;
        Some(fetched)
    }

    /// Writes the state file, where there is one; a failure is told and survived.
    fn save(&self) {
        if let Some(path) = &self.options.state {
            let saved = Saved::of(&self.seed, &self.state());
            if let Err(error) = saved.store(path) {
                eprintln!("consensus-testbed: {}: {error}", path.display());
            }
        }
    }
}

/// A running orchestrator. Dropping it ends it, and every connection with it, as a killed process would.
pub struct Orchestrator {
    shared: Arc<Shared>,
    running: Option<Background>,
}

impl std::fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orchestrator").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Orchestrator {
    /// Starts to listen, and serves in a thread of its own.
    ///
    /// # Errors
    /// The address cannot be listened at, the state file cannot be read, or there is no randomness.
    pub fn start(options: Options, mut journal: Journal) -> io::Result<Self> {
        if options.quiet {
            journal.leave_traffic_out();
        }
        let mut fresh = [0; 32];
        getrandom::fill(&mut fresh).map_err(io::Error::other)?;
        let mut rng = Drbg::new(fresh);
        let saved = options.state.as_deref().map(Saved::load).transpose()?.flatten();
        let (seed, state) = saved.unwrap_or_else(|| (rng.bytes(), State::default()));
        let tls = if options.tls {
            let (pem, acceptor) = crate::tls::authority(&options.cert_name, options.cert_dates)?;
            std::fs::write(&options.ca_out, pem)?;
            Some(acceptor)
        } else {
            None
        };
        let listener = TcpListener::bind(options.listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            identity: Identity::from_seed(Pure, &seed),
            seed,
            state: Mutex::new(state),
            journal: Arc::new(journal),
            rng: Mutex::new(rng),
            started: Instant::now(),
            bad: Mutex::new((options.bad.clone(), options.bad_connections)),
            connections: AtomicU64::new(0),
            tls,
            address,
            options,
        });
        shared.save();
        let mut orchestrator = Self { shared, running: None };
        orchestrator.serve(listener)?;
        Ok(orchestrator)
    }

    /// Cuts every connection without a word and stops listening: what nodes see of a server that is killed.
    pub fn go_down(&mut self) {
        self.running = None;
        let mut state = self.shared.state();
        state.attached.clear();
        state.tunnels.clear();
    }

    /// Serves again at the same address, with what was known before.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub fn come_back(&mut self) -> io::Result<()> {
        self.go_down();
        // Meanwhile the port may have become somebody's own end of a connection.
        let end = Instant::now() + PORT_PATIENCE;
        loop {
            match TcpListener::bind(self.address()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                bound => return self.serve(bound?),
            }
        }
    }

    fn serve(&mut self, listener: TcpListener) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let serve = move |stream| connection(Arc::clone(&shared), stream);
        self.running = Some(Background::start("orchestrator", listener, serve)?);
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What a node's `--server` needs. With TLS it has the name of the certificate.
    #[must_use]
    pub fn url(&self) -> String {
        if self.shared.tls.is_some() {
            format!("https://localhost:{}", self.address().port())
        } else {
            format!("http://{}", self.address())
        }
    }

    /// Where the authority's certificate was written, with TLS.
    #[must_use]
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.shared.tls.is_some().then(|| self.shared.options.ca_out.clone())
    }

    /// The server's signing key as SPKI PEM.
    #[must_use]
    pub fn public_key_pem(&self) -> &str {
        self.shared.identity.public_key_pem()
    }

    /// The server's signing key as JWK.
    #[must_use]
    pub fn public_key_jwk(&self) -> serde_json::Value {
        http::jwk(&self.shared)
    }

    /// What it saw and did.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// Misbehaves from the next tunnel connection on, for that many of them (`None`: for all).
    pub fn misbehave(&self, bad: Option<Bad>, connections: Option<u64>) {
        *self.shared.bad.lock().unwrap_or_else(PoisonError::into_inner) = (bad, connections);
    }

    /// Registers a node as if it had joined long ago.
    pub fn adopt(&self, node_id: &str, public_key_pem: &str) {
        let record = NodeRecord {
            public_key_pem: public_key_pem.to_owned(),
            ipv4: String::from("203.0.113.7"),
            ipv6: None,
            port: 9090,
            contact: String::from("operator@example.org"),
            registered_at: self.shared.now().unix_seconds(),
        };
        self.shared.state().nodes.insert(node_id.to_owned(), record);
        self.shared.save();
    }

    /// Offers a key to join, as if its node had passed an evaluation.
    #[must_use]
    pub fn offer(&self, public_key: [u8; 32]) -> Offer {
        let offer = Offer {
            join_id: self.shared.random_hex::<16>(),
            nonce: self.shared.fork_rng().bytes(),
            expires_at: self.shared.now().unix_seconds() + 600,
            public_key,
        };
        self.shared.state().offers.insert(offer.join_id.clone(), offer.clone());
        offer
    }

    /// The nodes that have a control session.
    #[must_use]
    pub fn attached(&self) -> Vec<String> {
        self.shared.state().attached.keys().cloned().collect()
    }

    /// Has a node's control session fetch something; what comes of it arrives at the receiver, or nothing does when
    /// the session ends. `None` when the node has none.
    pub fn fetch(&self, node_id: &str, request: ProxyRequest) -> Option<channel::Receiver<Fetched>> {
        self.shared.fetch(node_id, request)
    }

    /// Opens a stream on a node's control session; `None` when the node has none.
    #[must_use]
    pub fn open(&self, node_id: &str, target: StreamTarget) -> Option<Stream> {
        self.shared.open_stream(Some(node_id), target, "client closed")
    }

    /// The claims of a ticket that is good for one request, which is named by its dedupe key.
    #[must_use]
    pub fn claims(&self, node_id: &str, dedupe_key: String) -> Claims<'static> {
        self.shared.claims(node_id, dedupe_key)
    }

    /// A ticket of these claims, whatever they are, signed with the server's key.
    #[must_use]
    pub fn ticket(&self, claims: &Claims<'_>) -> String {
        self.shared.issue(claims)
    }

    /// Gives a node's control session an input; `false` when the node has none.
    pub fn tell(&self, node_id: &str, input: Input) -> bool {
        let state = self.shared.state();
        let Some(attached) = state.attached.get(node_id) else { return false };
        attached.commands.try_send(tunnel::Command::Input(input)).is_ok()
    }
}

/// One connection, from its first byte to its end.
async fn connection(shared: Arc<Shared>, stream: Async<TcpStream>) {
    let mut conn = match &shared.tls {
        None => Conn::plain(stream),
        Some(acceptor) => match with_timeout(acceptor.accept(stream)).await {
            Some(Ok(stream)) => Conn::tls(stream),
            _ => return,
        },
    };
    // Keep-alive: one head after the other, each looked at before async-h1 sees it.
    loop {
        let head = match with_timeout(conn.peek_head()).await {
            Some(Ok(Some(head))) => head,
            Some(Ok(None)) | None => return,
            Some(Err(_)) => return http::refuse(conn).await,
        };
        if tunnel::is_upgrade(&head) {
            let number = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
            return tunnel::serve(&shared, conn, number).await;
        }
        if let Some(door) = Door::of(&head) {
            return gateway::serve(&shared, conn, door).await;
        }
        if !http::serve_one(&shared, conn.clone()).await {
            return;
        }
    }
}

/// What a peer must do before it is worth anything to us, it must do soon.
async fn with_timeout<T>(work: impl Future<Output = T>) -> Option<T> {
    future::or(async { Some(work.await) }, async {
        smol::Timer::after(Duration::from_secs(30)).await;
        None
    })
    .await
}
