//! Tests of a runtime on real sockets, the same for both shells: each compiles this module and says what it is that is
//! [tested](crate::Tested). The runtime runs for real; in the node's place it has a puppet that passes on what it is told
//! and wants what a test wants.

mod api;
mod fetches;
mod links;
mod sockets;

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::io::{Finish, Input, Outcome, Output};
use consensus_core::time::{Deadline, Now, Reason};
use shell_blocking::log::{Format, Log};
use shell_blocking::runtime_api::{Environment, Machine, Runtime as _};
use shell_blocking::state_dir::StateDir;
use shell_blocking::system;
use shell_blocking::tls::Tls;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server for one connection.
pub(crate) fn server<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        serve(stream)
    });
    (address, thread)
}

/// An address that nobody listens on.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An address that nothing answers at, as behind a firewall that drops what comes: a listener whose queue is full. It is
/// one for as long as what comes with it is held.
pub(crate) fn blackhole() -> (SocketAddr, impl Sized) {
    use rustix::net::{AddressFamily, SocketType};
    let new = || rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let listener = new();
    rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    // Nobody accepts, so that the queue stays full from the first that gets no answer on.
    let mut waiting = Vec::new();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(stream) => waiting.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
                return (address, (listener, waiting));
            }
        }
    }
}

/// A certificate for 127.0.0.1, as the server needs it and as a client that trusts it does.
pub(crate) fn tls_pair() -> (Arc<rustls::ServerConfig>, Tls) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let thread = thread::current().name().unwrap_or_default().replace(':', "-");
    let path = std::env::temp_dir().join(format!("consensus-{}-{thread}-ca", std::process::id()));
    std::fs::write(&path, certificate.pem()).unwrap();
    let tls = Tls::new(Some(&path)).unwrap();
    std::fs::remove_file(path).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (Arc::new(config), tls)
}

/// Stands where the node does.
struct Puppet {
    told: Sender<Input>,
    wanted: Receiver<Output>,
    is_finished: bool,
}

fn over() -> Finish {
    Finish { outcome: Outcome::Done, message: "the test is over".to_owned() }
}

impl Machine for Puppet {
    fn handle_input(&mut self, _now: Now, input: Input) {
        // A signal that one test raises is heard by every runtime of this process.
        if !matches!(input, Input::Tick | Input::Stop) {
            // A test that is over hears nothing.
            let _ = self.told.send(input);
        }
    }

    fn poll_output(&mut self) -> Output {
        // Looks soon whether the test wants something.
        let wait = || Output::Wait(Some(system::now().deadline(Duration::from_millis(1), Reason::Ping)));
        match self.wanted.try_recv() {
            Ok(output) => {
                self.is_finished |= matches!(output, Output::Finish(_));
                output
            }
            Err(TryRecvError::Disconnected) if !self.is_finished => {
                self.is_finished = true;
                Output::Finish(over())
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => wait(),
        }
    }
}

/// A log that can be read.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Where the local API listens, as soon as it says so.
    pub(crate) fn address(&self) -> SocketAddr {
        let begun = Instant::now();
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if let Some(rest) = text.split(r#""address":""#).nth(1) {
                return rest.split('"').next().unwrap().parse().unwrap();
            }
            assert!(begun.elapsed() < PATIENCE, "{text}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What a runtime needs; its local API listens, and the log says where.
pub(crate) fn environment(tls: Tls, state_dir: StateDir) -> (Environment, Lines) {
    let lines = Lines::default();
    let log = Log::to_writer(Box::new(lines.clone()), Format::Json, Level::Debug);
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let proxies = Arc::default();
    (Environment { state_dir, tls, proxies, listen, log, updates: None }, lines)
}

/// A runtime at work.
pub(crate) struct Rig {
    pub(crate) told: Receiver<Input>,
    wants: Sender<Output>,
    /// Of its local API.
    pub(crate) api: SocketAddr,
    driving: JoinHandle<Result<Finish, String>>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with_tls(Tls::default())
    }

    pub(crate) fn with_tls(tls: Tls) -> Self {
        system::raise_file_limit();
        let (tell, told) = channel();
        let (wants, wanted) = channel();
        // Nothing is written to it.
        let (environment, lines) = environment(tls, StateDir::at(&std::env::temp_dir()));
        let puppet = Puppet { told: tell, wanted, is_finished: false };
        let driving = thread::spawn(move || crate::Tested.drive(puppet, environment));
        Self { told, wants, api: lines.address(), driving }
    }

    /// Has the runtime carry something out.
    pub(crate) fn wants(&self, output: Output) {
        self.wants.send(output).unwrap();
    }

    /// What the node is told next.
    pub(crate) fn next(&self) -> Input {
        self.told.recv_timeout(PATIENCE).expect("nothing was told")
    }

    /// What the node is told next, but that something was sent.
    pub(crate) fn next_but_sent(&self) -> Input {
        loop {
            match self.next() {
                Input::LinkSent { .. } | Input::SocketSent { .. } => {}
                input => return input,
            }
        }
    }

    /// Has the runtime end, and gives what was told until then.
    pub(crate) fn finish(self) -> Vec<Input> {
        drop(self.wants);
        assert_eq!(self.driving.join().unwrap(), Ok(over()));
        self.told.try_iter().collect()
    }
}

/// All that comes until the other side has ended, or an error in its place.
pub(crate) fn read_all(mut stream: TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

/// Bytes that are all different from their neighbours.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// A deadline that is a long way off does not keep a runtime from seeing anything else: what this module waits for is
/// short, so that one test says it.
#[test]
fn a_runtime_that_waits_for_nothing_hears_all_the_same() {
    struct Waiting(Sender<Input>, Option<Finish>);
    impl Machine for Waiting {
        fn handle_input(&mut self, _now: Now, input: Input) {
            if let Input::Local { .. } = &input {
                self.1 = Some(Finish { outcome: Outcome::Done, message: String::new() });
            }
            let _ = self.0.send(input);
        }

        fn poll_output(&mut self) -> Output {
            let far = Deadline { at: Duration::MAX, reason: Reason::Silence };
            self.1.take().map_or(Output::Wait(Some(far)), Output::Finish)
        }
    }
    let (environment, lines) = environment(Tls::default(), StateDir::at(&std::env::temp_dir()));
    let (tell, told) = channel();
    let driving = thread::spawn(move || crate::Tested.drive(Waiting(tell, None), environment));
    let mut client = TcpStream::connect(lines.address()).unwrap();
    std::io::Write::write_all(&mut client, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Input::Tick));
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Input::Local { .. })));
    assert!(driving.join().unwrap().is_ok());
}
