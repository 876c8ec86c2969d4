//! The PROXY protocol, versions 1 and 2: what a load balancer puts before the bytes of the client that it speaks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header of version 1, its line's end included.
const MAX_V1: usize = 107;
/// Longest header of version 2 that is taken, bytes: addresses and what is told beside them.
const MAX_V2: usize = 4096;
/// How version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What stands at the start of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The header is not complete.
    NeedMore,
    /// It takes so many bytes, and names the client where it speaks for one.
    Done(usize, Option<SocketAddr>),
    /// There is none.
    Bad,
}

/// Reads the header at the start of `buf`.
pub fn parse(buf: &[u8]) -> Proxied {
    let common = |begins: &[u8]| buf.iter().zip(begins).all(|(have, want)| have == want);
    if common(SIGNATURE) {
        if buf.len() < SIGNATURE.len() { Proxied::NeedMore } else { binary(buf) }
    } else if common(b"PROXY ") {
        text(buf)
    } else {
        Proxied::Bad
    }
}

fn text(buf: &[u8]) -> Proxied {
    let seen = buf.get(..MAX_V1).unwrap_or(buf);
    let Some(end) = memchr::memmem::find(seen, b"\r\n") else {
        return if buf.len() >= MAX_V1 { Proxied::Bad } else { Proxied::NeedMore };
    };
    let line = seen.get(..end).and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), from, to, port, to_port] => {
            let address = |text: &str| {
                let address: IpAddr = text.parse().ok()?;
                (address.is_ipv4() == (*family == "TCP4")).then_some(address)
            };
            let number = |text: &str| {
                text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten()
            };
            let (Some(from), Some(_), Some(port), Some(_)) =
                (address(from), address(to), number(port), number(to_port))
            else {
                return Proxied::Bad;
            };
            Some(SocketAddr::new(from, port))
        }
        _ => return Proxied::Bad,
    };
    Proxied::Done(end + 2, client)
}

fn binary(buf: &[u8]) -> Proxied {
    let Some(&[command, family, high, low]) = buf.get(12..16).and_then(|part| part.first_chunk()) else {
        return Proxied::NeedMore;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2 || command >> 4 != 2 || command & 0xf > 1 {
        return Proxied::Bad;
    }
    let Some(told) = buf.get(16..16 + length) else { return Proxied::NeedMore };
    let done = |client| Proxied::Done(16 + length, client);
    // Its own connections (health checks), and transports without addresses of ours.
    if command & 0xf == 0 || !matches!(family, 0x11 | 0x21) {
        return done(None);
    }
    let four = || {
        let from: [u8; 4] = *told.first_chunk()?;
        let port: [u8; 2] = *told.get(8..)?.first_chunk()?;
        told.get(..12)?;
        Some(SocketAddr::new(Ipv4Addr::from(from).into(), u16::from_be_bytes(port)))
    };
    let six = || {
        let from: [u8; 16] = *told.first_chunk()?;
        let port: [u8; 2] = *told.get(32..)?.first_chunk()?;
        told.get(..36)?;
        Some(SocketAddr::new(Ipv6Addr::from(from).into(), u16::from_be_bytes(port)))
    };
    match if family == 0x11 { four() } else { six() } {
        Some(client) => done(Some(client)),
        None => Proxied::Bad,
    }
}
