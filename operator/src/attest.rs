//! Which identities a node may have certificates for: those of the pods that run on it, and no others.

use underpass_model::{Identity, TrustDomain};
use underpass_objects::{Objects, pod};

use crate::ca::NotAttested;

/// Decides by the objects as they are. Pods on the host's network are never captured, so they need no certificate; one
/// that is being deleted may still talk, so it does.
///
/// # Errors
/// [`NotAttested`] if no such pod runs on the node.
pub fn attest(
    objects: &Objects,
    trust_domain: &TrustDomain,
    node: &str,
    identity: &Identity,
) -> Result<(), NotAttested> {
    let mut pods = objects.pods_in(identity.namespace());
    let runs_here = pods.any(|(_, pod)| {
        pod::node(pod) == Some(node)
            && pod::service_account(pod) == identity.service_account()
            && !pod::is_terminal(pod)
            && !pod::is_on_host_network(pod)
    });
    if runs_here && identity.trust_domain() == trust_domain { Ok(()) } else { Err(NotAttested::NotOnNode) }
}

#[cfg(test)]
mod tests {
    use underpass_objects::manifest;

    use super::*;

    #[test]
    fn a_node_speaks_for_its_running_pods_only() {
        let pod = |name: &str, spec: &str, rest: &str| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop{rest}\nspec: {{{spec}}}\n"
            )
        };
        // `rest` closes the metadata, so that it may also hold a status.
        let manifests = pod("web", "nodeName: a, serviceAccountName: web", "}")
            + &pod("plain", "nodeName: a", "}")
            + &pod("other", "nodeName: b, serviceAccountName: other", "}")
            + &pod("ended", "nodeName: a, serviceAccountName: ended", "}\nstatus: {phase: Succeeded}")
            + &pod("host", "nodeName: a, serviceAccountName: host, hostNetwork: true", "}")
            + &pod("nowhere", "serviceAccountName: nowhere", "}")
            + &pod("going", "nodeName: a, serviceAccountName: going", ", deletionTimestamp: '2026-01-01T00:00:00Z'}");
        let objects: Objects =
            manifest::read(manifests.as_bytes()).unwrap().objects.into_values().map(|located| located.object).collect();
        let table = [
            ("a", "spiffe://cluster.local/ns/shop/sa/web", true),
            ("a", "spiffe://cluster.local/ns/shop/sa/default", true),
            ("a", "spiffe://cluster.local/ns/shop/sa/going", true),
            ("b", "spiffe://cluster.local/ns/shop/sa/other", true),
            ("a", "spiffe://cluster.local/ns/shop/sa/other", false),
            ("b", "spiffe://cluster.local/ns/shop/sa/web", false),
            ("", "spiffe://cluster.local/ns/shop/sa/nowhere", false),
            ("a", "spiffe://cluster.local/ns/other/sa/web", false),
            ("a", "spiffe://cluster.local/ns/shop/sa/ended", false),
            ("a", "spiffe://cluster.local/ns/shop/sa/host", false),
            ("a", "spiffe://cluster.local/ns/shop/sa/nobody", false),
            ("a", "spiffe://else.where/ns/shop/sa/web", false),
        ];
        for (node, identity, allowed) in table {
            let decision = attest(&objects, &TrustDomain::default(), node, &identity.parse().unwrap());
            assert_eq!(decision.is_ok(), allowed, "{node} {identity}");
        }
    }
}
