//! Which workloads may be joined without a tunnel where they run on one node: those whose bytes nobody else looks at.
//!
//! Whoever enforces NetworkPolicies does it where a pod's packets cross its interface, and joined bytes do not. So one
//! such object, of whoever's kind and whomever it selects, and none may be joined; nor if objects cannot all be seen.

use underpass_model::{NetworkMode, Workload};
use underpass_objects::{NetworkPolicies, Snapshot, mesh_config::SameNode};

/// Whether pods of one node may be joined: nobody may be looking at the bytes between them, nor wants them in tunnels.
pub(crate) fn can_join(snapshot: &Snapshot) -> bool {
    snapshot.network_policies == NetworkPolicies::Absent && snapshot.objects.mesh_config().same_node == SameNode::Join
}

/// Whether a pod has a network namespace of its own, which joining needs.
pub(crate) fn has_own_namespace(workload: &Workload) -> bool {
    workload.uid.is_pod() && workload.network_mode == NetworkMode::Standard
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use underpass_objects::{Objects, manifest};

    use super::*;
    use crate::translate::{Reports, TranslateOptions, Translator};

    fn objects(text: &str) -> Objects {
        let read = manifest::read(text.as_bytes()).unwrap();
        read.objects.into_values().map(|located| located.object).collect()
    }

    fn config(spec: &str) -> String {
        format!("apiVersion: underpass.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{{spec}}}\n")
    }

    #[test]
    fn pods_are_joined_if_nobody_looks_and_nobody_wants_otherwise() {
        let present = || NetworkPolicies::Present("NetworkPolicy.networking.k8s.io".into());
        for (spec, network_policies, joined) in [
            ("", NetworkPolicies::Absent, true),
            ("sameNode: Join", NetworkPolicies::Absent, true),
            ("sameNode: Join", present(), false),
            ("", NetworkPolicies::default(), false),
            ("sameNode: Tunnel", NetworkPolicies::Absent, false),
        ] {
            let snapshot =
                Snapshot { objects: Arc::new(objects(&config(spec))), network_policies, ..Snapshot::default() };
            assert_eq!(can_join(&snapshot), joined, "{spec} {}", snapshot.network_policies);
        }
    }

    #[test]
    fn pods_with_a_namespace_of_their_own_are_marked() {
        let pod = |name: &str, spec: &str| {
            format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: a{spec}}}\n")
        };
        let text = pod("own", "") + &pod("host", ", hostNetwork: true");
        let objects = objects(&text);
        for (can_join, expected) in [(true, &["own"][..]), (false, &[])] {
            let changes = Translator::new(TranslateOptions::default()).update(&objects, &Reports::default(), can_join);
            let workloads = changes.workloads.values().flatten();
            let marked: Vec<_> = workloads.filter(|one| one.joinable).map(|one| &*one.name).collect();
            assert_eq!(marked, expected);
        }
    }
}
