//! How far the enrolment of each namespace has come: pure, and the same whether it then stands in the namespace's status
//! or on a debugging page.

use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, ordmap::DiffItem};
use underpass_model::names::MESH_LABEL;
use underpass_objects::{
    CaptureState, Enrolment, Objects,
    enrolment::{self, NotEnrolled},
};

use crate::translate::Reports;

/// Names of waiting pods that a message has room for.
const NAMED: usize = 3;

/// Namespaces with something to tell.
#[derive(Debug, Default)]
pub struct Census {
    objects: Objects,
    reports: Reports,
    counts: OrdMap<String, Count>,
}

/// What is counted in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The namespace's label says that it is enrolled.
    pub is_enrolled: bool,
    /// Its label says what nobody understands.
    pub unknown_label: Option<String>,
    /// Pods that belong into the mesh.
    pub wanted: usize,
    /// Those of them that are captured.
    pub captured: usize,
    /// Pods that are captured still, and belong out of it.
    pub leaving: usize,
    /// A few of those that wait.
    pub waiting: Vec<String>,
    /// Pods that are left out of an enrolled namespace, by why.
    pub left_out: BTreeMap<&'static str, usize>,
}

/// What people are told of a namespace's enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// Every pod that belongs into the mesh is captured.
    AllCaptured,
    /// Some are not yet.
    Waiting,
    /// It leaves, and some pods are captured still.
    Leaving,
    /// Its label says what nobody understands.
    UnknownLabelValue,
}

impl Census {
    /// Brings it to another state of the objects; the namespaces of which something else is to be told now. Costs what is
    /// in the namespaces that the change concerns.
    pub fn update(&mut self, objects: &Objects, reports: &Reports) -> BTreeSet<String> {
        let mut concerned: BTreeSet<String> = keys(&self.objects.namespaces, &objects.namespaces).into_iter().collect();
        concerned.extend(keys(&self.objects.pods, &objects.pods).into_iter().map(|name| name.namespace));
        if let (Reports::Apart(old), Reports::Apart(new)) = (&self.reports, reports) {
            let of = |uid| new.get(&uid).or_else(|| old.get(&uid)).map(|report| report.namespace.clone());
            concerned.extend(keys(old, new).into_iter().filter_map(of));
        }
        (self.objects, self.reports) = (objects.clone(), reports.clone());
        concerned.retain(|namespace| {
            let count = count(objects, reports, namespace);
            let before = match count.is_of_interest() {
                true => self.counts.insert(namespace.clone(), count.clone()),
                false => self.counts.remove(namespace),
            };
            before.unwrap_or_default() != count
        });
        concerned
    }

    /// The namespaces with something to tell.
    #[must_use]
    pub fn counts(&self) -> &OrdMap<String, Count> {
        &self.counts
    }
}

fn count(objects: &Objects, reports: &Reports, name: &str) -> Count {
    let namespace = objects.namespaces.get(name).map(AsRef::as_ref);
    let mut count = Count { is_enrolled: namespace.is_some_and(enrolment::is_enrolled), ..Count::default() };
    let label = namespace.and_then(|namespace| namespace.metadata.labels.as_ref()?.get(MESH_LABEL)).cloned();
    count.unknown_label = label.filter(|value| !["enabled", "disabled"].contains(&value.as_str()));
    for (pod_name, pod) in objects.pods_in(name) {
        let is_captured = reports.of(pod).is_some_and(|report| report.state == CaptureState::Captured);
        match (enrolment::wanted(namespace, pod), is_captured) {
            (Enrolment::Enrolled, true) => {
                count.wanted += 1;
                count.captured += 1;
            }
            (Enrolment::Enrolled, false) => {
                count.wanted += 1;
                if count.waiting.len() < NAMED {
                    count.waiting.push(pod_name.name.clone());
                }
            }
            (Enrolment::Not(NotEnrolled::Terminal), _) => {}
            (Enrolment::Not(why), is_captured) => {
                count.leaving += usize::from(is_captured);
                if count.is_enrolled {
                    *count.left_out.entry(why.reason()).or_default() += 1;
                }
            }
        }
    }
    count
}

impl Count {
    fn is_of_interest(&self) -> bool {
        self.enrolled().is_some()
    }

    /// What to tell; nothing of a namespace that has nothing to do with the mesh.
    #[must_use]
    pub fn enrolled(&self) -> Option<Enrolled> {
        if self.unknown_label.is_some() {
            Some(Enrolled::UnknownLabelValue)
        } else if self.leaving > 0 && self.wanted == 0 {
            Some(Enrolled::Leaving)
        } else if self.captured < self.wanted {
            Some(Enrolled::Waiting)
        } else if self.is_enrolled || self.wanted > 0 {
            Some(Enrolled::AllCaptured)
        } else {
            None
        }
    }

    /// The same for people.
    #[must_use]
    pub fn message(&self) -> String {
        let mut parts = Vec::new();
        if let Some(value) = &self.unknown_label {
            parts.push(format!("label {MESH_LABEL}: {value:?} means nothing, \"enabled\" or \"disabled\" does"));
        }
        if self.wanted > 0 || self.unknown_label.is_none() {
            parts.push(format!("{} of {} pods captured", self.captured, self.wanted));
        }
        if !self.waiting.is_empty() {
            let more = (self.wanted - self.captured).saturating_sub(self.waiting.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            parts.push(format!("waiting: {}{more}", self.waiting.join(", ")));
        }
        if self.leaving > 0 {
            parts.push(format!("{} leaving", self.leaving));
        }
        parts.extend(self.left_out.iter().map(|(why, count)| format!("{count} left out: {why}")));
        parts.join("; ")
    }
}

impl Enrolled {
    /// The reason of the condition.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::AllCaptured => "AllCaptured",
            Self::Leaving => "Leaving",
            Self::UnknownLabelValue => "UnknownLabelValue",
            Self::Waiting => "Waiting",
        }
    }
}

fn keys<K: Ord + Clone, V: Clone + PartialEq>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> Vec<K> {
    let key = |item: DiffItem<'_, '_, K, V>| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key.clone(),
    };
    old.diff(new).map(key).collect()
}

#[cfg(test)]
mod tests {
    use underpass_objects::manifest;

    use super::*;

    fn objects(namespace: &str, pods: &[(&str, &str)]) -> Objects {
        let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{namespace}}}}}\n");
        for (name, rest) in pods {
            text += &format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n{rest}\n");
        }
        manifest::read(text.as_bytes()).unwrap().objects.into_values().map(|located| located.object).collect()
    }

    const CAPTURED: &str = "status: {conditions: [{type: underpass.dev/Captured, status: 'True', message: 'x; report 1 of the agent on a'}]}";

    #[test]
    fn a_namespace_is_enrolled_when_its_pods_are_captured() {
        let enabled = "underpass.dev/mesh: enabled";
        let host = "spec: {hostNetwork: true}";
        let table = [
            ("", &[("a", "")][..], None, "0 of 0 pods captured"),
            (enabled, &[], Some(Enrolled::AllCaptured), "0 of 0 pods captured"),
            (enabled, &[("a", "")], Some(Enrolled::Waiting), "0 of 1 pods captured; waiting: a"),
            (enabled, &[("a", CAPTURED), ("b", "")], Some(Enrolled::Waiting), "1 of 2 pods captured; waiting: b"),
            (
                enabled,
                &[("a", CAPTURED), ("h", host)],
                Some(Enrolled::AllCaptured),
                "1 of 1 pods captured; 1 left out: host_network",
            ),
            ("", &[("a", CAPTURED)], Some(Enrolled::Leaving), "0 of 0 pods captured; 1 leaving"),
            (
                "underpass.dev/mesh: 'yes'",
                &[],
                Some(Enrolled::UnknownLabelValue),
                "label underpass.dev/mesh: \"yes\" means nothing, \"enabled\" or \"disabled\" does",
            ),
            (
                enabled,
                &[("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "status: {phase: Succeeded}")],
                Some(Enrolled::Waiting),
                "0 of 4 pods captured; waiting: a, b, c and 1 more",
            ),
        ];
        for (label, pods, enrolled, message) in table {
            let count = count(&objects(label, pods), &Reports::OnPods, "shop");
            assert_eq!((count.enrolled(), count.message().as_str()), (enrolled, message), "{label} {pods:?}");
        }
    }

    #[test]
    fn only_what_is_different_is_told_again() {
        let mut census = Census::default();
        let enabled = "underpass.dev/mesh: enabled";
        let steps = [
            (enabled, "", true),
            (enabled, "spec: {nodeName: b}", false),
            (enabled, CAPTURED, true),
            ("", CAPTURED, true),
            ("", "", true),
            ("", "", false),
        ];
        for (label, pod, is_told) in steps {
            let changed = census.update(&objects(label, &[("a", pod)]), &Reports::OnPods);
            assert_eq!(changed.contains("shop"), is_told, "{label} {pod}");
        }
        assert!(census.counts().is_empty());
    }
}
