//! `from=`: lists of addresses, networks and patterns, with negation.

use std::net::IpAddr;

use crate::escape::escape_bounded;
use crate::pattern::{self, Case};

/// A list of addresses that a key may be used from.
///
/// As in sshd an item is an address, a network in CIDR notation, or a pattern with `*` and `?`
/// that is held against the address as text; a leading `!` negates. The address must match an
/// item, and no negated one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceList {
    items: Vec<Item>,
}

/// Why a text is no such list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// An item is empty.
    #[error("the list of addresses has an empty item")]
    Empty,
    /// A network is malformed, or has bits beyond its mask.
    #[error("the list of addresses has a malformed network \"{0}\"")]
    Network(String),
    /// A negated item that no address can match, such as a name: without DNS there is no telling
    /// whom it was to keep out.
    #[error("the list of addresses excludes \"{0}\", and names can't be checked here")]
    NegatedName(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    negated: bool,
    matcher: Matcher,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Matcher {
    Network { address: IpAddr, prefix_bits: u8 },
    Pattern(Vec<u8>),
}

impl SourceList {
    /// Reads the value of a `from=`.
    ///
    /// # Errors
    /// An item that is empty, malformed, or that can't be checked.
    pub fn parse(text: &[u8]) -> Result<Self, SourceError> {
        let items = text.split(|&byte| byte == b',').map(Item::parse).collect::<Result<_, _>>()?;
        Ok(Self { items })
    }

    /// Reads a list of addresses and networks only, without negation: the `source-address` of a
    /// certificate (OpenSSH's PROTOCOL.certkeys).
    ///
    /// # Errors
    /// Anything else.
    pub fn parse_networks(text: &[u8]) -> Result<Self, SourceError> {
        let list = Self::parse(text)?;
        for (item, text) in list.items.iter().zip(text.split(|&byte| byte == b',')) {
            if item.negated || matches!(item.matcher, Matcher::Pattern(_)) {
                return Err(SourceError::Network(escape_bounded(text, 60)));
            }
        }
        Ok(list)
    }

    /// Whether the key may be used from this address.
    #[must_use]
    pub fn permits(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        let text = source.to_string();
        let mut permitted = false;
        for item in &self.items {
            if item.matcher.matches(source, text.as_bytes()) {
                if item.negated {
                    return false;
                }
                permitted = true;
            }
        }
        permitted
    }
}

impl Item {
    fn parse(item: &[u8]) -> Result<Self, SourceError> {
        let (text, negated) = item.strip_prefix(b"!").map_or((item, false), |rest| (rest, true));
        if text.is_empty() {
            return Err(SourceError::Empty);
        }
        let shown = || escape_bounded(text, 60);
        if let Some(network) = parse_network(text) {
            let (address, prefix_bits) = network.ok_or_else(|| SourceError::Network(shown()))?;
            return Ok(Self { negated, matcher: Matcher::Network { address, prefix_bits } });
        }
        if negated && !could_match_an_address(text) {
            return Err(SourceError::NegatedName(shown()));
        }
        Ok(Self { negated, matcher: Matcher::Pattern(text.to_vec()) })
    }
}

impl Matcher {
    fn matches(&self, source: IpAddr, text: &[u8]) -> bool {
        match self {
            Self::Network { address, prefix_bits } => {
                let (bits, width) = to_bits(source);
                let (network, network_width) = to_bits(*address);
                let host_bits = u32::from(width.saturating_sub(*prefix_bits));
                width == network_width
                    && bits.checked_shr(host_bits) == network.checked_shr(host_bits)
            }
            Self::Pattern(pattern) => pattern::matches(text, pattern, Case::Ignored),
        }
    }
}

/// `None` if this is neither an address nor looks like a network; `Some(None)` if it looks like a
/// network and is none, which must not be taken for a pattern that merely matches nothing.
fn parse_network(text: &[u8]) -> Option<Option<(IpAddr, u8)>> {
    let Some(text) = std::str::from_utf8(text).ok() else {
        return text.contains(&b'/').then_some(None);
    };
    match text.split_once('/') {
        None => text.parse().ok().map(|address| Some((address, to_bits(address).1))),
        Some((address, prefix)) => Some(parse_cidr(address, prefix)),
    }
}

fn parse_cidr(address: &str, prefix: &str) -> Option<(IpAddr, u8)> {
    // `parse` takes a sign, which sshd takes too but nobody means.
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let address: IpAddr = address.parse().ok()?;
    let prefix_bits: u8 = prefix.parse().ok()?;
    let (bits, width) = to_bits(address);
    let host_bits = width.checked_sub(prefix_bits)?;
    // sshd refuses bits beyond the mask: one of the two is a mistake.
    let beyond = if host_bits == 128 { bits } else { bits & ((1 << host_bits) - 1) };
    (beyond == 0).then_some((address, prefix_bits))
}

/// The address as a number, and how many bits it has.
fn to_bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

/// Whether some address written as text matches this pattern, which is no address itself.
fn could_match_an_address(pattern: &[u8]) -> bool {
    let wild = pattern.iter().any(|byte| b"*?".contains(byte));
    wild && pattern.iter().all(|byte| byte.is_ascii_hexdigit() || b"*?.:".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(list: &str, source: &str) -> bool {
        SourceList::parse(list.as_bytes()).unwrap().permits(source.parse().unwrap())
    }

    #[test]
    fn fault_84_from_takes_addresses_networks_and_patterns() {
        assert!(permits("192.0.2.1", "192.0.2.1"));
        assert!(!permits("192.0.2.1", "192.0.2.10"));
        assert!(permits("10.0.0.0/8", "10.255.0.1") && !permits("10.0.0.0/8", "11.0.0.1"));
        assert!(permits("0.0.0.0/0", "203.0.113.9") && !permits("0.0.0.0/0", "2001:db8::1"));
        assert!(permits("::/0", "2001:db8::1") && !permits("::/0", "203.0.113.9"));
        assert!(permits("2001:db8::/32", "2001:db8:1::1"));
        assert!(!permits("2001:db8::/32", "2001:db9::1"));
        assert!(permits("192.0.2.0/31", "192.0.2.1") && !permits("192.0.2.0/31", "192.0.2.2"));
        assert!(permits("192.0.2.*", "192.0.2.77") && permits("192.0.2.7?", "192.0.2.77"));
        assert!(permits("*", "2001:db8::1") && permits("2001:DB8:*", "2001:db8::1"));
        assert!(permits("host.example,192.0.2.0/24", "192.0.2.3"));
        assert!(!permits("host.example,*.example.com", "192.0.2.3"));
        // The same address, however it is written.
        assert!(permits("2001:0db8:0:0::0001", "2001:db8::1"));
        assert!(permits("::1/128", "::1"));
    }

    #[test]
    fn fault_77_networks_only_are_addresses_and_networks() {
        let list = SourceList::parse_networks(b"10.0.0.0/8,2001:db8::1").unwrap();
        assert!(list.permits([10, 1, 2, 3].into()) && !list.permits([11, 0, 0, 1].into()));
        for text in
            ["", "*", "10.*", "host", "!10.0.0.0/8", "10.0.0.0/8,!10.1.0.0/16", "10.0.0.1/8"]
        {
            assert!(SourceList::parse_networks(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn fault_84_from_negation_beats_everything_in_any_order() {
        assert!(!permits("10.0.0.0/8,!10.1.0.0/16", "10.1.2.3"));
        assert!(!permits("!10.1.0.0/16,10.0.0.0/8", "10.1.2.3"));
        assert!(permits("!10.1.0.0/16,10.0.0.0/8", "10.2.2.3"));
        assert!(!permits("*,!192.0.2.1", "192.0.2.1") && permits("*,!192.0.2.1", "192.0.2.2"));
        assert!(!permits("*,!10.*", "10.9.9.9"));
        // Only exclusions let nobody in.
        assert!(!permits("!192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn fault_84_from_sees_mapped_addresses_as_what_they_are() {
        assert!(permits("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(permits("192.0.2.*", "::ffff:192.0.2.1"));
        assert!(!permits("!192.0.2.0/24,*", "::ffff:192.0.2.1"));
    }

    #[test]
    fn fault_84_from_that_cannot_be_checked_is_refused() {
        let error = |list: &str| SourceList::parse(list.as_bytes()).unwrap_err();
        for list in ["", ",", "a,,b", "192.0.2.1,", "!", "*,!"] {
            assert_eq!(error(list), SourceError::Empty, "{list}");
        }
        for list in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::/129",
            "2001:db8::1/32",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10/8",
            "/8",
            "host/8",
            "10.0.0.0/8/8",
            "10.0.0.0/256",
            "10.0.0.0/-1",
            "!10.0.0.1/8",
        ] {
            assert!(matches!(error(list), SourceError::Network(_)), "{list}");
        }
        for list in ["*,!evil.example", "*,!*.example", "*,!10.1", "!fe80::1%eth0,*"] {
            assert!(matches!(error(list), SourceError::NegatedName(_)), "{list}");
        }
        assert!(matches!(SourceList::parse(b"\xff/8"), Err(SourceError::Network(_))));
        assert!(SourceList::parse(b"\xff").is_ok_and(|list| !list.permits([10, 0, 0, 1].into())));
    }
}
