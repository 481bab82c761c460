//! What a pod's annotations leave out of capture.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::names;

/// What one direction leaves alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    /// Destination ports.
    pub ports: BTreeSet<u16>,
    /// IPv4 networks of the far end, none within another.
    pub v4: Vec<Ipv4Net>,
    /// IPv6 networks of the far end, none within another.
    pub v6: Vec<Ipv6Net>,
}

/// What a pod leaves out of capture, in each direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Connections to the pod: the pod's ports, the clients' networks.
    pub inbound: Excluded,
    /// Connections of the pod: the servers' ports and networks.
    pub outbound: Excluded,
}

/// An annotation that cannot be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExclusionError {
    /// A list of ports holds something else.
    #[error("annotation {annotation}: {value:?} is not a port from 1 to 65535")]
    Port {
        /// The annotation's name.
        annotation: &'static str,
        /// The offending item.
        value: String,
    },
    /// A list of networks holds something else.
    #[error("annotation {annotation}: {value:?} is neither an address nor a network like 10.0.0.0/8")]
    Cidr {
        /// The annotation's name.
        annotation: &'static str,
        /// The offending item.
        value: String,
    },
    /// A list is longer than any rule should be.
    #[error("annotation {annotation}: more than {MOST_ITEMS} items")]
    TooMany {
        /// The annotation's name.
        annotation: &'static str,
    },
}

/// Anonymous sets are matched in logarithmic time, but each is sent to the kernel whole.
const MOST_ITEMS: usize = 256;

impl Exclusions {
    /// Reads the four annotations; a missing or empty one leaves nothing out.
    ///
    /// # Errors
    /// [`ExclusionError`] names the annotation and the item that cannot be read.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, ExclusionError> {
        let direction = |port_list, cidr_list| -> Result<Excluded, ExclusionError> {
            let (v4, v6) = networks(annotations, cidr_list)?;
            Ok(Excluded { ports: ports(annotations, port_list)?, v4, v6 })
        };
        Ok(Self {
            inbound: direction(names::EXCLUDE_INBOUND_PORTS, names::EXCLUDE_INBOUND_CIDRS)?,
            outbound: direction(names::EXCLUDE_OUTBOUND_PORTS, names::EXCLUDE_OUTBOUND_CIDRS)?,
        })
    }
}

fn ports(annotations: &BTreeMap<String, String>, annotation: &'static str) -> Result<BTreeSet<u16>, ExclusionError> {
    let port = |item: &str| {
        let digits = item.bytes().all(|b| b.is_ascii_digit());
        let parsed = item.parse().ok().filter(|&port: &u16| digits && port != 0);
        parsed.ok_or_else(|| ExclusionError::Port { annotation, value: shorten(item) })
    };
    items(annotations, annotation)?.into_iter().map(port).collect()
}

fn networks(
    annotations: &BTreeMap<String, String>,
    annotation: &'static str,
) -> Result<(Vec<Ipv4Net>, Vec<Ipv6Net>), ExclusionError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for item in items(annotations, annotation)? {
        let network = item.parse::<IpNet>().ok().or_else(|| item.parse::<IpAddr>().ok().map(IpNet::from));
        match network {
            Some(IpNet::V4(network)) => v4.push(network.trunc()),
            Some(IpNet::V6(network)) => v6.push(network.trunc()),
            None => return Err(ExclusionError::Cidr { annotation, value: shorten(item) }),
        }
    }
    // The kernel refuses a set whose intervals overlap.
    Ok((Ipv4Net::aggregate(&v4), Ipv6Net::aggregate(&v6)))
}

fn items<'a>(
    annotations: &'a BTreeMap<String, String>,
    annotation: &'static str,
) -> Result<Vec<&'a str>, ExclusionError> {
    let text = annotations.get(annotation).map_or("", String::as_str);
    let items: Vec<&str> =
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).take(MOST_ITEMS + 1).collect();
    if items.len() > MOST_ITEMS { Err(ExclusionError::TooMany { annotation }) } else { Ok(items) }
}

/// What an error repeats of a text that a user wrote: enough to find it.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn nothing_is_left_out_unless_an_annotation_says_so() {
        assert_eq!(Exclusions::from_annotations(&annotated(&[])), Ok(Exclusions::default()));
        let empty = annotated(&[(names::EXCLUDE_INBOUND_PORTS, " , "), (names::EXCLUDE_OUTBOUND_CIDRS, "")]);
        assert_eq!(Exclusions::from_annotations(&empty), Ok(Exclusions::default()));
    }

    #[test]
    fn reads_each_annotation_into_its_direction() {
        let exclusions = Exclusions::from_annotations(&annotated(&[
            (names::EXCLUDE_INBOUND_PORTS, "9090, 22,9090"),
            (names::EXCLUDE_OUTBOUND_PORTS, "3306"),
            (names::EXCLUDE_INBOUND_CIDRS, "10.1.2.3/16, 10.1.9.0/24 ,192.0.2.1"),
            (names::EXCLUDE_OUTBOUND_CIDRS, "2001:db8::/32,169.254.169.254"),
        ]))
        .unwrap();
        assert_eq!(exclusions.inbound.ports, BTreeSet::from([22, 9090]));
        assert_eq!(exclusions.outbound.ports, BTreeSet::from([3306]));
        assert_eq!(exclusions.inbound.v4, ["10.1.0.0/16", "192.0.2.1/32"].map(|n| n.parse::<Ipv4Net>().unwrap()));
        assert_eq!(exclusions.outbound.v4, ["169.254.169.254/32"].map(|n| n.parse::<Ipv4Net>().unwrap()));
        assert_eq!(exclusions.outbound.v6, ["2001:db8::/32"].map(|n| n.parse::<Ipv6Net>().unwrap()));
    }

    #[test]
    fn a_bad_item_is_an_error_that_names_its_annotation() {
        for (annotation, value, item) in [
            (names::EXCLUDE_INBOUND_PORTS, "80,http", "http"),
            (names::EXCLUDE_OUTBOUND_PORTS, "0", "0"),
            (names::EXCLUDE_OUTBOUND_PORTS, "65536", "65536"),
            (names::EXCLUDE_OUTBOUND_PORTS, "+80", "+80"),
            (names::EXCLUDE_INBOUND_CIDRS, "10.0.0.0/33", "10.0.0.0/33"),
            (names::EXCLUDE_OUTBOUND_CIDRS, "example.org", "example.org"),
        ] {
            let error = Exclusions::from_annotations(&annotated(&[(annotation, value)])).unwrap_err().to_string();
            assert!(error.contains(annotation) && error.contains(&format!("{item:?}")), "{error}");
        }
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let long = (1..=300).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let error = Exclusions::from_annotations(&annotated(&[(names::EXCLUDE_INBOUND_PORTS, &long)])).unwrap_err();
        assert_eq!(error, ExclusionError::TooMany { annotation: names::EXCLUDE_INBOUND_PORTS });
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn arbitrary_annotations_never_panic(ports in ".*", networks in ".*") {
                drop(Exclusions::from_annotations(&annotated(&[
                    (names::EXCLUDE_INBOUND_PORTS, &ports),
                    (names::EXCLUDE_OUTBOUND_CIDRS, &networks),
                ])));
            }

            #[test]
            fn every_network_that_is_named_is_left_out_and_none_lies_in_another(
                addresses in prop::collection::vec((any::<u32>(), 0_u8..=32), 1..20),
                ports in prop::collection::btree_set(1_u16.., 0..20),
            ) {
                let named: Vec<Ipv4Net> =
                    addresses.iter().map(|(bits, length)| Ipv4Net::new((*bits).into(), *length).unwrap()).collect();
                let join = |items: Vec<String>| items.join(" , ");
                let exclusions = Exclusions::from_annotations(&annotated(&[
                    (names::EXCLUDE_INBOUND_CIDRS, &join(named.iter().map(ToString::to_string).collect())),
                    (names::EXCLUDE_INBOUND_PORTS, &join(ports.iter().map(ToString::to_string).collect())),
                ])).unwrap();
                let networks = &exclusions.inbound.v4;
                prop_assert_eq!(&exclusions.inbound.ports, &ports);
                for network in &named {
                    prop_assert!(networks.iter().any(|wide| wide.contains(&network.trunc())));
                }
                for (position, network) in networks.iter().enumerate() {
                    let others = networks.iter().enumerate().filter(|(other, _)| *other != position);
                    prop_assert!(!others.into_iter().any(|(_, other)| other.contains(network)));
                }
            }
        }
    }
}
