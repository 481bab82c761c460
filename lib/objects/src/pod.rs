//! Questions about a pod that more than one program asks.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use underpass_model::PodUid;

use crate::object::ObjectName;

/// Its name; its namespace is `default` where the manifest names none.
#[must_use]
pub fn name(pod: &Pod) -> ObjectName {
    ObjectName::new(
        pod.metadata.namespace.as_deref().unwrap_or("default"),
        pod.metadata.name.as_deref().unwrap_or_default(),
    )
}

/// Kubernetes' uid. A manifest that somebody wrote by hand has none; then one that follows from its names, the same
/// for everybody who reads it. None for a pod without a name.
#[must_use]
pub fn uid(pod: &Pod) -> Option<PodUid> {
    let given = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()).map(PodUid::new);
    given.or_else(|| {
        let ObjectName { namespace, name } = name(pod);
        // No namespace has a dot in its name, so no two pods have one uid.
        (!name.is_empty()).then(|| PodUid::new(&format!("manifest.{namespace}.{name}")))
    })
}

/// Whether its manifest gives it a uid.
#[must_use]
pub fn has_own_uid(pod: &Pod) -> bool {
    pod.metadata.uid.as_deref().is_some_and(|uid| !uid.is_empty())
}

/// The node it is scheduled on.
#[must_use]
pub fn node(pod: &Pod) -> Option<&str> {
    spec(pod)?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// The service account it runs as; `default` unless set.
#[must_use]
pub fn service_account(pod: &Pod) -> &str {
    spec(pod).and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Whether it shares its node's network namespace.
#[must_use]
pub fn is_on_host_network(pod: &Pod) -> bool {
    spec(pod).and_then(|spec| spec.host_network).unwrap_or(false)
}

/// Whether it has ended for good and only its record is left.
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(status(pod).and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether it is being deleted.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether its Ready condition is true.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let mut conditions = status(pod).and_then(|status| status.conditions.as_deref()).unwrap_or_default().iter();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Its addresses, the first one first; what is no address is left out.
#[must_use]
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = status(pod) else { return Vec::new() };
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    let mut addresses: Vec<IpAddr> = listed.iter().filter_map(|listed| listed.ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok()));
    }
    addresses
}

/// The value of a label.
#[must_use]
pub fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

fn status(pod: &Pod) -> Option<&PodStatus> {
    pod.status.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn an_empty_pod_has_the_defaults_of_kubernetes() {
        let pod = pod("{metadata: {name: a}}");
        assert_eq!(name(&pod), ObjectName::new("default", "a"));
        assert_eq!((node(&pod), service_account(&pod)), (None, "default"));
        assert!(!is_on_host_network(&pod) && !is_terminal(&pod) && !is_terminating(&pod) && !is_ready(&pod));
        assert!(addresses(&pod).is_empty());
    }

    #[test]
    fn a_pod_without_a_uid_gets_one_of_its_names() {
        for (yaml, expected) in [
            ("{metadata: {name: a}}", Some("manifest.default.a")),
            ("{metadata: {name: a.b, namespace: shop, uid: ''}}", Some("manifest.shop.a.b")),
            ("{metadata: {name: a, uid: u-1}}", Some("u-1")),
            ("{metadata: {}}", None),
        ] {
            assert_eq!(uid(&pod(yaml)).as_ref().map(PodUid::as_str), expected, "{yaml}");
        }
    }

    #[test]
    fn addresses_come_from_the_list_and_else_from_the_single_field() {
        let both = pod("{status: {podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.1}, {ip: nonsense}, {ip: 'fd00::1'}]}}");
        assert_eq!(addresses(&both), ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(addresses(&pod("{status: {podIP: 10.0.0.9}}")), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    }
}
