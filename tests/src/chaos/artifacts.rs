//! A server of artifacts that fails as it is told to.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::fault::Fault;

/// A connection that is stalled is left so for a while; the node gives up first, or is told of another release.
const STALL: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Offer {
    name: String,
    bytes: Arc<Vec<u8>>,
    fault: Option<Fault>,
}

/// One artifact at a time, at a free port of this machine.
pub(super) struct Artifacts {
    address: SocketAddr,
    offer: Arc<Mutex<Offer>>,
}

impl Artifacts {
    pub(super) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let offer = Arc::new(Mutex::new(Offer::default()));
        let shared = Arc::clone(&offer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let offer = Arc::clone(&shared);
                // Whoever goes away in the middle is what this is about.
                std::thread::spawn(move || drop(answer(&stream, &offer)));
            }
        });
        Ok(Self { address, offer })
    }

    /// Serves these bytes from now on, with that fault; gives the URL. Cuts and stalls happen once.
    pub(super) fn publish(&self, name: &str, bytes: Vec<u8>, fault: Fault) -> String {
        let mut offer = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        *offer = Offer { name: name.to_owned(), bytes: Arc::new(bytes), fault: Some(fault) };
        format!("http://{}/{name}", self.address)
    }
}

fn answer(stream: &TcpStream, offer: &Mutex<Offer>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.take(64 * 1024));
    let (mut path, mut from) = (String::new(), 0);
    reader.read_line(&mut path)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("range") {
                let start = value.trim().trim_start_matches("bytes=").trim_end_matches('-');
                from = start.parse::<usize>().unwrap_or(0);
            }
        }
    }
    let mut stream = stream;
    let (name, bytes, fault) = {
        let mut offer = offer.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = match offer.fault {
            // Once: what is asked for again is answered.
            Some(Fault::Cut(_) | Fault::Stall(_)) => offer.fault.take(),
            other => other,
        };
        (offer.name.clone(), Arc::clone(&offer.bytes), fault)
    };
    if path.split(' ').nth(1) != Some(&format!("/{name}")) || from > bytes.len() {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let length = bytes.len();
    let status = match from {
        0 => String::from("200 OK"),
        from => format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{length}", length - 1),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\netag: \"{name}\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        length - from
    );
    stream.write_all(head.as_bytes())?;
    let place = |permille: u64| (length * usize::try_from(permille).unwrap_or(0) / 1000).max(from);
    match fault {
        Some(Fault::Cut(at)) => stream.write_all(&bytes[from..place(at)]),
        Some(Fault::Stall(at)) => {
            stream.write_all(&bytes[from..place(at)])?;
            std::thread::sleep(STALL);
            Ok(())
        }
        Some(Fault::Corrupt(at)) => {
            let mut bytes = bytes.to_vec();
            let at = place(at).min(length - 1);
            bytes[at] ^= 1;
            stream.write_all(&bytes[from..])
        }
        _ => stream.write_all(&bytes[from..]),
    }
}
