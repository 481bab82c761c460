//! Which workloads may be joined without a tunnel where they run on one node: those whose bytes nobody else looks at.
//!
//! Whoever enforces NetworkPolicies does it where a pod's packets cross its interface, and joined bytes do not. So one
//! such object, of whoever's kind and whomever it selects, and none may be joined; nor if objects cannot all be seen.

use underpass_model::{NetworkMode, Workload};

/// Whether a pod has a network namespace of its own, which joining needs.
pub(crate) fn has_own_namespace(workload: &Workload) -> bool {
    workload.uid.is_pod() && workload.network_mode == NetworkMode::Standard
}

#[cfg(test)]
mod tests {
    use underpass_objects::{Objects, manifest};

    use crate::translate::{Reports, TranslateOptions, Translator};

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
