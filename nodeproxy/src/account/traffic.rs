//! Under which labels a connection is counted: Istio's, so that dashboards made for it work.

use std::sync::Arc;

use underpass_model::{Identity, ServiceName, Workload};
use underpass_runtime::metrics::{SharedString, catalogue::TRAFFIC};

use super::{Direction, Party, Story};

/// What stands for a value that is not known.
const UNKNOWN: &str = "unknown";
/// What stands for every value where there are too many.
const OVERFLOW: &str = "overflow";

/// Labels of one set of series, all but the response flag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Labels {
    /// Who speaks to whom.
    Known(Arc<Traffic>),
    /// Everybody who found no room.
    Overflow(Direction),
}

/// Who speaks to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Traffic {
    direction: Direction,
    source: End,
    destination: End,
    service: Option<(ServiceName, Arc<str>)>,
    mutual_tls: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    principal: Option<Identity>,
    group: Option<Group>,
}

/// Workloads that telemetry does not tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Group {
    owner: Owner,
    canonical_name: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
}

/// What runs workloads, as namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner(pub(crate) Arc<str>, pub(crate) Arc<str>);

/// Why a connection failed, in Istio's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseFlag {
    /// It did not.
    None,
    /// Policy.
    Deny,
    /// No way to the server.
    Connect,
    /// TLS.
    Tls,
    /// HTTP/2.
    Http2,
    /// The tunnel's port did not answer: most likely a network policy drops it.
    NetworkPolicy,
    /// The peer is somebody else, or we cannot prove who we are.
    Identity,
}

impl ResponseFlag {
    /// All of them, each at the place of its number.
    pub(crate) const ALL: [Self; 7] =
        [Self::None, Self::Deny, Self::Connect, Self::Tls, Self::Http2, Self::NetworkPolicy, Self::Identity];

    /// Its value as a label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::Http2 => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Identity => "IDENTITY_ERROR",
        }
    }
}

impl Owner {
    /// Of a workload.
    pub(crate) fn of(workload: &Workload) -> Self {
        let name = if workload.owner.is_empty() { &workload.name } else { &workload.owner };
        Self(Arc::clone(&workload.namespace), Arc::clone(name))
    }
}

impl End {
    fn of(party: &Party) -> Self {
        let group = party.workload.as_deref().map(|workload| Group {
            owner: Owner::of(workload),
            canonical_name: Arc::clone(&workload.canonical_name),
            canonical_revision: Arc::clone(&workload.canonical_revision),
            cluster: Arc::clone(&workload.cluster),
            region: Arc::clone(&workload.locality.region),
            zone: Arc::clone(&workload.locality.zone),
        });
        Self { principal: party.identity.clone(), group }
    }

    /// Workload, its namespace, principal, canonical service and revision, app, version, cluster, region, zone.
    fn values(&self) -> [SharedString; 10] {
        let of = |field: fn(&Group) -> &Arc<str>| known(self.group.as_ref().map(field));
        let (name, revision) = (of(|group| &group.canonical_name), of(|group| &group.canonical_revision));
        let principal = self.principal.as_ref().map(|identity| identity.to_string().into());
        [
            of(|group| &group.owner.1),
            of(|group| &group.owner.0),
            known(principal.as_ref()),
            name.clone(),
            revision.clone(),
            name,
            revision,
            of(|group| &group.cluster),
            of(|group| &group.region),
            of(|group| &group.zone),
        ]
    }
}

impl Labels {
    /// Of a connection as far as it has come.
    pub(crate) fn of(direction: Direction, story: &Story) -> Self {
        let mutual_tls =
            story.hbone_addr.is_some() && story.source.identity.is_some() && story.destination.identity.is_some();
        Self::Known(Arc::new(Traffic {
            direction,
            source: End::of(&story.source),
            destination: End::of(&story.destination),
            service: story.service.as_ref().map(|service| (service.name.clone(), Arc::clone(&service.short_name))),
            mutual_tls,
        }))
    }

    /// Whether all that they name is still there.
    pub(crate) fn live(&self, owner: impl Fn(&Owner) -> bool, service: impl Fn(&ServiceName) -> bool) -> bool {
        match self {
            Self::Overflow(_) => true,
            Self::Known(traffic) => {
                let ends = [&traffic.source, &traffic.destination].into_iter().filter_map(|end| end.group.as_ref());
                ends.map(|group| &group.owner).all(owner) && traffic.service.iter().all(|(name, _)| service(name))
            }
        }
    }

    /// Their values, in the order of [`TRAFFIC`].
    pub(crate) fn values(&self, flag: ResponseFlag) -> [SharedString; TRAFFIC.len()] {
        let flag = SharedString::const_str(flag.label());
        match self {
            Self::Known(traffic) => traffic.values(flag),
            Self::Overflow(direction) => {
                let mut values = [const { SharedString::const_str(OVERFLOW) }; TRAFFIC.len()];
                for (value, (name, _)) in values.iter_mut().zip(TRAFFIC) {
                    match name {
                        "reporter" => *value = reporter(*direction),
                        "request_protocol" => *value = SharedString::const_str("tcp"),
                        "response_flags" => value.clone_from(&flag),
                        _ => {}
                    }
                }
                values
            }
        }
    }
}

impl Traffic {
    fn values(&self, flag: SharedString) -> [SharedString; TRAFFIC.len()] {
        let [sw, sn, sp, sc, sr, sa, sv, scl, sre, sz] = self.source.values();
        let [dw, dn, dp, dc, dr, da, dv, dcl, dre, dz] = self.destination.values();
        let service = self.service.as_ref();
        let host = known(service.map(|(name, _)| &name.hostname));
        let short = known(service.map(|(_, short)| short));
        let namespace = known(service.map(|(name, _)| &name.namespace));
        let security = SharedString::const_str(if self.mutual_tls { "mutual_tls" } else { UNKNOWN });
        let (reporter, tcp) = (reporter(self.direction), SharedString::const_str("tcp"));
        [
            reporter, sw, sn, sp, sc, sr, sa, sv, scl, sre, sz, dw, dn, dp, dc, dr, da, dv, dcl, dre, dz, host, short,
            namespace, tcp, flag, security,
        ]
    }
}

fn reporter(direction: Direction) -> SharedString {
    SharedString::const_str(match direction {
        Direction::Inbound => "destination",
        Direction::Outbound => "source",
    })
}

fn known(value: Option<&Arc<str>>) -> SharedString {
    match value {
        Some(value) if !value.is_empty() => Arc::clone(value).into(),
        _ => SharedString::const_str(UNKNOWN),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use super::*;

    pub(in crate::account) fn named(labels: &Labels, flag: ResponseFlag) -> HashMap<&'static str, String> {
        let values = labels.values(flag);
        TRAFFIC.iter().zip(values).map(|((name, _), value)| (*name, value.to_string())).collect()
    }

    #[test]
    fn every_label_has_its_own_value() {
        let view = crate::account::tests::view();
        let story = crate::account::tests::story(&view);
        let labels = named(&Labels::of(Direction::Outbound, &story), ResponseFlag::Deny);
        let expected = [
            ("reporter", "source"),
            ("source_workload", "shop"),
            ("source_workload_namespace", "front"),
            ("source_principal", "spiffe://cluster.local/ns/front/sa/shop-sa"),
            ("source_canonical_service", "shop-name"),
            ("source_canonical_revision", "shop-v1"),
            ("source_app", "shop-name"),
            ("source_version", "shop-v1"),
            ("source_cluster", "shop-cluster"),
            ("source_region", "shop-region"),
            ("source_zone", "shop-zone"),
            ("destination_workload", "till"),
            ("destination_workload_namespace", "back"),
            ("destination_principal", "spiffe://cluster.local/ns/back/sa/till-sa"),
            ("destination_canonical_service", "till-name"),
            ("destination_canonical_revision", "till-v1"),
            ("destination_app", "till-name"),
            ("destination_version", "till-v1"),
            ("destination_cluster", "till-cluster"),
            ("destination_region", "till-region"),
            ("destination_zone", "till-zone"),
            ("destination_service", "till.back.svc.cluster.local"),
            ("destination_service_name", "till-short"),
            ("destination_service_namespace", "back"),
            ("request_protocol", "tcp"),
            ("response_flags", "DENY"),
            ("connection_security_policy", "mutual_tls"),
        ];
        assert_eq!(labels, expected.map(|(name, value)| (name, value.to_owned())).into());
    }

    #[test]
    fn what_is_not_known_is_called_unknown() {
        let labels = named(&Labels::of(Direction::Inbound, &Story::default()), ResponseFlag::None);
        for (name, value) in labels {
            let expected = match name {
                "reporter" => "destination",
                "request_protocol" => "tcp",
                "response_flags" => "-",
                _ => "unknown",
            };
            assert_eq!(value, expected, "{name}");
        }
    }

    #[test]
    fn overflow_keeps_reporter_protocol_and_flag_apart() {
        let labels = named(&Labels::Overflow(Direction::Inbound), ResponseFlag::Tls);
        assert_eq!((&*labels["reporter"], &*labels["response_flags"]), ("destination", "TLS_FAILURE"));
        assert_eq!((&*labels["source_workload"], &*labels["destination_service"]), ("overflow", "overflow"));
    }
}
