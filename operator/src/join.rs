//! Which workloads may be joined without a tunnel where they run on one node: those whose bytes nobody else looks at.
//!
//! Whoever enforces NetworkPolicies does it where a pod's packets cross its interface, and joined bytes do not. So one
//! such object, of whoever's kind and whomever it selects, and none may be joined; nor if objects cannot all be seen.

use underpass_model::{NetworkMode, Workload};

/// Whether any of these kinds (`Kind.group`) is enforced at the interfaces of pods: Kubernetes' own, Calico's, Cilium's
/// and Antrea's policies, the cluster-wide ones too, all end so.
pub(crate) fn needs_interfaces<'a>(mut kinds: impl Iterator<Item = &'a String>) -> bool {
    kinds.any(|kind| kind.split('.').next().is_some_and(|kind| kind.ends_with("NetworkPolicy")))
}

/// Whether a pod has a network namespace of its own, which joining needs.
pub(crate) fn has_own_namespace(workload: &Workload) -> bool {
    workload.uid.is_pod() && workload.network_mode == NetworkMode::Standard
}

#[cfg(test)]
mod tests {
    use underpass_objects::{Objects, manifest};

    use super::*;
    use crate::translate::{Reports, TranslateOptions, Translator};

    #[test]
    fn any_network_policy_of_anybody_counts() {
        for (kind, counts) in [
            ("NetworkPolicy.networking.k8s.io", true),
            ("GlobalNetworkPolicy.crd.projectcalico.org", true),
            ("CiliumClusterwideNetworkPolicy.cilium.io", true),
            ("AdminNetworkPolicy.policy.networking.k8s.io", true),
            ("ClusterNetworkPolicy.crd.antrea.io", true),
            ("Deployment.apps", false),
            ("AuthorizationPolicy.security.istio.io", false),
        ] {
            assert_eq!(needs_interfaces([kind.to_owned()].iter()), counts, "{kind}");
        }
    }

    #[test]
    fn pods_with_a_namespace_of_their_own_are_marked() {
        let pod = |name: &str, spec: &str| {
            format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: a{spec}}}\n")
        };
        let text = pod("own", "") + &pod("host", ", hostNetwork: true");
        let read = manifest::read(text.as_bytes()).unwrap().objects;
        let objects: Objects = read.into_values().map(|located| located.object).collect();
        for (can_join, expected) in [(true, &["own"][..]), (false, &[])] {
            let changes = Translator::new(TranslateOptions::default()).update(&objects, &Reports::default(), can_join);
            let workloads = changes.workloads.values().flatten();
            let marked: Vec<_> = workloads.filter(|one| one.joinable).map(|one| &*one.name).collect();
            assert_eq!(marked, expected);
        }
    }
}
