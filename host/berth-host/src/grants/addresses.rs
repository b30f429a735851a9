//! Which IP addresses are the public internet's, by exact tables.
//!
//! The tables are IANA's special-purpose registries (RFC 6890, as of RFC 8190 and later entries): a block that is not
//! "globally reachable" is not global. Of IPv6 only 2000::/3 is allocated for global unicast, so everything else is
//! not global without being listed. An address that carries an IPv4 address is judged by what it carries, or refused
//! where nobody should use the form any more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    /// `base/prefix`. Nothing if the prefix is too long or the base has bits beyond it.
    pub fn new(base: IpAddr, prefix: u8) -> Option<Self> {
        let network = Self { base, prefix };
        let fits = prefix <= width(base);
        (fits && network.first() == base).then_some(network)
    }

    /// The first address of the block that this base is in.
    pub fn first(self) -> IpAddr {
        match self.base {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & mask4(self.prefix)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & mask6(self.prefix)).into(),
        }
    }

    /// The block that `base/prefix` is in, whatever bits the base has beyond the prefix.
    pub fn around(base: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(width(base));
        let network = Self { base, prefix };
        Self {
            base: network.first(),
            prefix,
        }
    }

    /// Whether an address is in the block. IPv4 and IPv6 are never in each other's blocks.
    pub fn contains(self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => ip.to_bits() & mask4(self.prefix) == base.to_bits(),
            (IpAddr::V6(base), IpAddr::V6(ip)) => ip.to_bits() & mask6(self.prefix) == base.to_bits(),
            _ => false,
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(prefix.min(128)))
        .unwrap_or(0)
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Network {
    Network {
        base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        prefix,
    }
}

const fn v6(head: [u16; 3], prefix: u8) -> Network {
    let [a, b, c] = head;
    Network {
        base: IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)),
        prefix,
    }
}

/// IPv4 blocks that are not globally reachable.
const NOT_GLOBAL_4: [Network; 17] = [
    v4(0, 0, 0, 0, 8),          // "this network", 0.0.0.0 is the machine itself (RFC 791)
    v4(10, 0, 0, 0, 8),         // private (RFC 1918)
    v4(100, 64, 0, 0, 10),      // carrier-grade NAT (RFC 6598), some clouds' metadata
    v4(127, 0, 0, 0, 8),        // loopback (RFC 1122)
    v4(168, 63, 129, 16, 32),   // not in the registry: the virtual address of Azure's platform services
    v4(169, 254, 0, 0, 16),     // link-local (RFC 3927), the clouds' metadata
    v4(172, 16, 0, 0, 12),      // private (RFC 1918)
    v4(192, 0, 0, 0, 24),       // protocol assignments (RFC 6890); its two anycast addresses serve no HTTP
    v4(192, 0, 2, 0, 24),       // documentation (RFC 5737)
    v4(192, 88, 99, 0, 24),     // 6to4 relays (RFC 7526)
    v4(192, 168, 0, 0, 16),     // private (RFC 1918)
    v4(198, 18, 0, 0, 15),      // benchmarks (RFC 2544)
    v4(198, 51, 100, 0, 24),    // documentation (RFC 5737)
    v4(203, 0, 113, 0, 24),     // documentation (RFC 5737)
    v4(224, 0, 0, 0, 4),        // multicast (RFC 5771)
    v4(240, 0, 0, 0, 4),        // reserved (RFC 1112)
    v4(255, 255, 255, 255, 32), // broadcast (RFC 919)
];

/// What is allocated as global unicast (RFC 4291).
const UNICAST_6: Network = v6([0x2000, 0, 0], 3);

/// IPv6 blocks within [`UNICAST_6`] that are not globally reachable.
const NOT_GLOBAL_6: [Network; 4] = [
    v6([0x2001, 0, 0], 23), // protocol assignments (RFC 2928), Teredo among them; none serves HTTP
    v6([0x2001, 0xdb8, 0], 32), // documentation (RFC 3849)
    v6([0x2002, 0, 0], 16), // 6to4 (RFC 7526)
    v6([0x3fff, 0, 0], 20), // documentation (RFC 9637)
];

/// NAT64's well-known prefix (RFC 6052): the last 32 bits are the IPv4 address that is meant.
const NAT64: Network = v6([0x64, 0xff9b, 0], 96);

/// Whether an address is one of the public internet.
pub fn is_global(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        ip @ IpAddr::V4(_) => !NOT_GLOBAL_4.iter().any(|n| n.contains(ip)),
        IpAddr::V6(six) if NAT64.contains(six.into()) => {
            let [.., a, b, c, d] = six.octets();
            is_global(Ipv4Addr::new(a, b, c, d).into())
        }
        ip @ IpAddr::V6(_) => UNICAST_6.contains(ip) && !NOT_GLOBAL_6.iter().any(|n| n.contains(ip)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and last address of every block, and their neighbours outside.
    #[test]
    fn special_blocks_are_exact() {
        let table = [
            ("0.0.0.0", false),
            ("0.255.255.255", false),
            ("1.0.0.0", true),
            ("9.255.255.255", true),
            ("10.0.0.0", false),
            ("10.255.255.255", false),
            ("11.0.0.0", true),
            ("100.63.255.255", true),
            ("100.64.0.0", false),
            ("100.100.100.200", false),
            ("100.127.255.255", false),
            ("100.128.0.0", true),
            ("126.255.255.255", true),
            ("127.0.0.1", false),
            ("127.255.255.255", false),
            ("128.0.0.0", true),
            ("168.63.129.15", true),
            ("168.63.129.16", false),
            ("169.253.255.255", true),
            ("169.254.169.254", false),
            ("169.255.0.0", true),
            ("172.15.255.255", true),
            ("172.16.0.0", false),
            ("172.31.255.255", false),
            ("172.32.0.0", true),
            ("191.255.255.255", true),
            ("192.0.0.192", false),
            ("192.0.1.0", true),
            ("192.0.2.1", false),
            ("192.0.3.0", true),
            ("192.88.99.1", false),
            ("192.167.255.255", true),
            ("192.168.0.0", false),
            ("192.168.255.255", false),
            ("192.169.0.0", true),
            ("198.17.255.255", true),
            ("198.18.0.0", false),
            ("198.19.255.255", false),
            ("198.20.0.0", true),
            ("198.51.100.7", false),
            ("203.0.113.7", false),
            ("223.255.255.255", true),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("8.8.8.8", true),
            ("::", false),
            ("::1", false),
            ("::7f00:1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("64:ff9b::808:808", true),
            ("64:ff9b:1::808:808", false),
            ("100::1", false),
            ("1fff::1", false),
            ("2000::1", true),
            ("2001::1", false),
            ("2001:1ff:ffff::1", false),
            ("2001:200::1", true),
            ("2001:db7:ffff::1", true),
            ("2001:db8::1", false),
            ("2001:db9::1", true),
            ("2002:7f00:1::", false),
            ("2003::1", true),
            ("2606:4700::1111", true),
            ("3ffe::1", true),
            ("3fff::1", false),
            ("3fff:fff::1", false),
            ("3fff:1000::1", true),
            ("4000::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ];
        for (text, global) in table {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(is_global(ip), global, "{text}");
        }
    }

    #[test]
    fn network_has_no_bits_beyond_its_prefix() {
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(Network::new(ip, 8), None);
        assert_eq!(Network::around(ip, 8).to_string(), "10.0.0.0/8");
        assert_eq!(Network::new(ip, 33), None);
        let all = Network::new("0.0.0.0".parse().unwrap(), 0).unwrap();
        assert!(all.contains(ip));
        assert!(!all.contains("::1".parse().unwrap()), "families are apart");
        let one = Network::new(ip, 32).unwrap();
        assert!(one.contains(ip) && !one.contains("10.1.2.4".parse().unwrap()));
        assert!(
            Network::new("::".parse().unwrap(), 0)
                .unwrap()
                .contains("fd00::1".parse().unwrap())
        );
    }
}
