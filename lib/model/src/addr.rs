//! Addresses as the mesh means them: scoped to a network, or the target of a CONNECT.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

/// The name of a network in which addresses are unique; empty is the cluster's own (the usual case).
pub type Network = Arc<str>;

/// An address within its network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network.
    pub network: Network,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    /// `network/address`: the alias under which discovery knows the owner of an address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// A range of addresses within its network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkRange {
    /// The network.
    pub network: Network,
    /// The range; no bit is set after the prefix.
    pub range: ipnet::IpNet,
}

/// The two ends of one TCP connection, as the accepting side sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressPair {
    /// Who connected.
    pub client: SocketAddr,
    /// What it dialled.
    pub server: SocketAddr,
}

/// The target of an HBONE CONNECT: its `:authority` (RFC 9113, section 8.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A literal address; IPv6 in brackets.
    Address(SocketAddr),
    /// A service's host name, to be resolved by whoever terminates the tunnel.
    Host {
        /// The name, lower case.
        host: Arc<str>,
        /// The service's port.
        port: u16,
    },
}

/// Why a text is no CONNECT target.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// There is no `:port` with a port from 1 to 65535.
    #[error("authority has no port from 1 to 65535")]
    Port,
    /// The host is neither an address (IPv6 in brackets) nor a DNS name.
    #[error("authority's host is neither an address nor a DNS name")]
    Host,
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|&port: &u16| digits && port != 0).ok_or(AuthorityError::Port)?;
        if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: std::net::Ipv6Addr = inner.parse().map_err(|_| AuthorityError::Host)?;
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(address).to_canonical(), port)));
        }
        if let Ok(address) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(address.into(), port)));
        }
        if is_dns_name(host) {
            Ok(Self::Host { host: host.to_ascii_lowercase().into(), port })
        } else {
            Err(AuthorityError::Host)
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// RFC 1123 host name of at most 253 bytes; the last label must not be all digits, else a mistyped address would pass.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let numeric_tail = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !numeric_tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_addresses_and_names_and_refuses_the_rest() {
        for good in ["10.0.0.1:80", "[2001:db8::1]:443", "web.default.svc.cluster.local:8080"] {
            assert_eq!(good.parse::<Authority>().unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("", AuthorityError::Port),
            ("10.0.0.1", AuthorityError::Port),
            ("10.0.0.1:0", AuthorityError::Port),
            ("10.0.0.1:65536", AuthorityError::Port),
            ("10.0.0.1:+80", AuthorityError::Port),
            ("10.0.0.1:http", AuthorityError::Port),
            ("2001:db8::1:80", AuthorityError::Host),
            ("[10.0.0.1]:80", AuthorityError::Host),
            ("[::1:80", AuthorityError::Host),
            ("10.0.0:80", AuthorityError::Host),
            ("10.0.0.256:80", AuthorityError::Host),
            ("user@web:80", AuthorityError::Host),
            ("we b:80", AuthorityError::Host),
            ("-web:80", AuthorityError::Host),
            (":80", AuthorityError::Host),
        ] {
            assert_eq!(bad.parse::<Authority>(), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_the_ipv4_address() {
        assert_eq!(
            "[::ffff:10.0.0.1]:80".parse::<Authority>().unwrap(),
            Authority::Address("10.0.0.1:80".parse().unwrap())
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "[\\[\\]:.0-9a-zA-Z@ -]{0,60}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>().unwrap(), authority);
            }
        }
    }
}
