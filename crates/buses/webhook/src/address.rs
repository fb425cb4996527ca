//! Which addresses a webhook may reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Resolves names and drops every address that is not public. Asked at each new connection, so
/// what is checked is what is connected to.
#[derive(Debug)]
pub(super) struct PublicResolver;

/// A name that has no public address.
#[derive(Debug)]
pub(super) struct NotPublic;

impl std::fmt::Display for NotPublic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name has no public address; set allow_private_addresses to post to it")
    }
}

impl std::error::Error for NotPublic {}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            public(found.collect())
        })
    }
}

fn public(found: Vec<SocketAddr>) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    if found.is_empty() {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    }
    let public: Vec<_> = found.into_iter().filter(|address| is_public(address.ip())).collect();
    if public.is_empty() {
        return Err(NotPublic.into());
    }
    Ok(Box::new(public.into_iter()))
}

/// Whether an address is one of the public internet: none of the special-purpose blocks of the IANA
/// registries (RFC 6890 and later), also where it is an IPv4 address inside an IPv6 one.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        // Carrier-grade NAT, protocol assignments, 6to4 relays, benchmarks.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || a >= 240;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [first, second, ..] = segments;
    let v4_at = |index: usize| {
        let bytes = (u32::from(segments[index]) << 16) | u32::from(segments[index + 1]);
        is_public_v4(Ipv4Addr::from(bytes))
    };
    match segments {
        // IPv4-mapped, and the well-known NAT64 prefix: what counts is the address within.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => v4_at(6),
        // 6to4 has it behind its prefix.
        [0x2002, ..] => v4_at(1),
        // Of what is left only 2000::/3 is in use: that leaves out loopback, unique local, link
        // and site local, multicast and IPv4-compatible addresses.
        _ if first & 0xe000 != 0x2000 => false,
        // Protocol assignments with Teredo (2001::/23), documentation.
        [0x2001, ..] => second >= 0x200 && second != 0xdb8,
        [0x3fff, ..] => second >= 0x1000,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn of_a_names_addresses_only_the_public_ones_are_used() {
        let found = ["127.0.0.1:0", "1.1.1.1:0", "[::1]:0"].map(|text| text.parse().unwrap());
        let kept: Vec<SocketAddr> = public(found.to_vec()).unwrap().collect();
        assert_eq!(kept, ["1.1.1.1:0".parse().unwrap()]);
        let none = public(vec!["10.0.0.1:0".parse().unwrap()]);
        assert!(none.err().unwrap().downcast_ref::<NotPublic>().is_some());
    }
}
