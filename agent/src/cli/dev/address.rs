//! Loopback addresses: each network has one of its own (127.0.0.0/8 is all this machine), so that networks side by side never meet and
//! a gateway that is started again finds its port free.

use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Tries before giving up: each fails only if somebody has the very same address and port.
const TRIES: u32 = 32;
/// Ports below those from which the kernel takes ports of outgoing connections.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A free address for a gateway. It is not held: the chance that somebody takes it meanwhile is one in a hundred thousand million.
pub fn choose() -> Result<SocketAddr> {
    let mut last = None;
    for _ in 0..TRIES {
        let mut random = [0; 5];
        getrandom::fill(&mut random).context("the kernel gave no randomness")?;
        let [a, b, c, high, low] = random;
        // 127.0.x.y and 127.255.x.y are left to others.
        let host = Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254));
        let port = PORTS.start + u16::from_be_bytes([high, low]) % (PORTS.end - PORTS.start);
        let address = SocketAddr::from((host, port));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no try was made"), anyhow::Error::new))
        .context("no free loopback address was found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_loopback_and_differ() {
        let chosen: std::collections::HashSet<SocketAddr> = (0..50).map(|_| choose().unwrap()).collect();
        assert_eq!(chosen.len(), 50);
        for address in chosen {
            assert!(address.ip().is_loopback() && PORTS.contains(&address.port()), "{address}");
        }
    }
}
