//! Which of a name's addresses are tried first, and when the next one (Happy Eyeballs, RFC 8305): an address that
//! nothing answers at must not keep a node from one that works.
//!
//! For the operator's own names alone. A stranger's target is connected to at one judged address (protocol.md section
//! 11): more tries would be a choice for an attacker to steer.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

/// How long an address is tried alone before the next one is tried beside it (RFC 8305, section 5).
pub const HEAD_START: Duration = Duration::from_millis(250);

/// How many addresses of one name are tried.
pub const MAX_TRIED: usize = 16;

/// The order in which `addresses` are tried: the system's, which sorts by what is likely to work (RFC 6724), but with
/// the address families in turns (RFC 8305, section 4). No more than [`MAX_TRIED`], each once.
#[must_use]
pub fn order(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let of =
        |same: bool| addresses.iter().filter(move |address| (address.is_ipv4() == first.is_ipv4()) == same);
    let (mut own, mut other) = (of(true), of(false));
    let mut order = Vec::new();
    loop {
        let pair = (own.next(), other.next());
        if pair == (None, None) || order.len() >= MAX_TRIED {
            return order;
        }
        for address in [pair.0, pair.1].into_iter().flatten() {
            if order.len() < MAX_TRIED && !order.contains(address) {
                order.push(*address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn families_take_turns_and_the_systems_first_stays_first() {
        let all =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let (a, b, c) = ("[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1");
        let (x, y) = ("192.0.2.1:1", "192.0.2.2:1");
        assert_eq!(order(&all(&[a, b, c, x, y])), all(&[a, x, b, y, c]));
        assert_eq!(order(&all(&[x, y, a])), all(&[x, a, y]));
        assert_eq!(order(&all(&[x, x, a, x])), all(&[x, a]));
        assert_eq!(order(&all(&[y, x])), all(&[y, x]));
        assert_eq!(order(&[]), []);
        let many: Vec<_> = (0..99).map(|n| format!("192.0.2.{n}:1").parse().unwrap()).collect();
        assert_eq!(order(&many), many[..MAX_TRIED]);
    }
}
