//! A name server for tests: answers from a table, differently from one look-up to the next where it is told to, and
//! counts.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The types of question that are answered.
const A: u16 = 1;
const AAAA: u16 = 28;

/// A datagram without extensions holds no more (RFC 1035, 2.3.4).
const MAX_DATAGRAM: usize = 512;

#[derive(Default)]
struct Name {
    /// The addresses of the first look-up, of the second, and so on; the last stays.
    look_ups: Vec<Vec<IpAddr>>,
    asked: BTreeMap<u16, usize>,
}

type Names = Arc<Mutex<BTreeMap<String, Name>>>;

/// A running name server; it ends when it is dropped.
pub struct Dns {
    address: SocketAddr,
    names: Names,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dns").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Dns {
    /// Starts one that knows no name.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        let address = socket.local_addr()?;
        let (names, stopping) = (Names::default(), Arc::new(AtomicBool::new(false)));
        let (known, stop) = (Arc::clone(&names), Arc::clone(&stopping));
        let thread = std::thread::Builder::new().name(String::from("dns")).spawn(move || {
            let mut question = [0; MAX_DATAGRAM];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(reply) = answer(&question[..length], &known) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        })?;
        Ok(Self { address, names, stopping, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a name known by its addresses, at most a dozen of each kind.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.change(name, &[addresses]);
    }

    /// Makes a name known that changes: the addresses of its first look-up, of the second, and so on; the last
    /// stay. Both kinds of address asked for once are one look-up.
    pub fn change(&self, name: &str, look_ups: &[&[IpAddr]]) {
        let look_ups = look_ups.iter().map(|addresses| addresses.to_vec()).collect();
        let name = name.to_ascii_lowercase();
        self.with(|names| names.insert(name, Name { look_ups, asked: BTreeMap::new() }));
    }

    /// How often a name was looked up.
    #[must_use]
    pub fn look_ups(&self, name: &str) -> usize {
        let most = |name: &Name| name.asked.values().copied().max().unwrap_or_default();
        self.with(|names| names.get(&name.to_ascii_lowercase()).map_or(0, most))
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Name>) -> T) -> T {
        f(&mut self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Anything wakes it.
        let woken = UdpSocket::bind((self.address.ip(), 0)).and_then(|own| own.send_to(&[0], self.address));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// The reply to a query of one question (RFC 1035, 4); what is none gets none.
fn answer(query: &[u8], names: &Names) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    if header[2] & 0x80 != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let end = at + 4;
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..end)?;

    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    let known = names.get_mut(&labels.join("."));
    // No error, or no such name; recursion was asked for and is to be had.
    let code = if known.is_some() { 0 } else { 3 };
    let mut records = Vec::new();
    if let Some(name) = known {
        let asked = name.asked.entry(kind).or_default();
        let addresses = name.look_ups.get(*asked).or(name.look_ups.last());
        *asked += 1;
        for address in addresses.into_iter().flatten() {
            match (kind, address) {
                (A, IpAddr::V4(address)) => records.push(record(kind, &address.octets())),
                (AAAA, IpAddr::V6(address)) => records.push(record(kind, &address.octets())),
                _ => {}
            }
        }
    }
    let mut reply = header[..2].to_vec();
    reply.extend([0x84 | (header[2] & 1), 0x80 | code, 0, 1]);
    reply.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
    reply.extend([0; 4]);
    reply.extend(question);
    reply.extend(records.concat());
    (reply.len() <= MAX_DATAGRAM).then_some(reply)
}

/// A record of the name in the question, not to be kept.
fn record(kind: u16, address: &[u8]) -> Vec<u8> {
    let mut record = vec![0xc0, 12];
    record.extend(kind.to_be_bytes());
    // Internet, for 0 seconds.
    record.extend([0, 1, 0, 0, 0, 0, 0]);
    record.extend([u8::try_from(address.len()).unwrap_or_default()]);
    record.extend(address);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(kind: u8) -> Vec<u8> {
        let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(b"\x04Name\x04test\x00\x00");
        query.extend([kind, 0, 1]);
        query
    }

    #[test]
    fn a_name_changes_from_one_look_up_to_the_next_and_is_counted() {
        let dns = Dns::start(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        dns.change("name.test", &[&[ip("1.2.3.4"), ip("2000::1")], &[ip("5.6.7.8"), ip("9.9.9.9")]]);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ask = |kind| {
            client.send_to(&query(kind), dns.address()).unwrap();
            let mut reply = [0; MAX_DATAGRAM];
            let length = client.recv(&mut reply).unwrap();
            reply[..length].to_vec()
        };
        let first = ask(1);
        assert_eq!(first[..8], [7, 8, 0x85, 0x80, 0, 1, 0, 1]);
        assert!(first.ends_with(&[0, 4, 1, 2, 3, 4]));
        assert!(ask(28).ends_with(&[0, 16, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!(dns.look_ups("NAME.test"), 1);
        assert_eq!(ask(1)[7], 2);
        assert!(ask(1).ends_with(&[9, 9, 9, 9]));
        assert_eq!(ask(28)[7], 0, "of a kind that it has not");
        assert_eq!(dns.look_ups("name.test"), 3);
        dns.change("name.test", &[]);
        assert_eq!(ask(1)[3], 0x80);
        assert_eq!(answer(&query(1), &Names::default()).unwrap()[3], 0x83, "no such name");
        assert_eq!(answer(&query(1)[..20], &Names::default()), None);
    }
}
