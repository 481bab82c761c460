//! How far the enrolment of each namespace has come: pure, and the same whether it then stands in the namespace's status
//! or on a debugging page.

use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, ordmap::DiffItem};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use underpass_model::{
    label::{self, ANNOTATIONS, LABELS},
    names::{ENROLLED, MESH_LABEL, NOT_ENROLLED},
};
use underpass_objects::{
    CaptureState, Enrolment, Objects,
    enrolment::{self, NotEnrolled},
};

use crate::translate::Reports;

/// Names of waiting pods, and mistakes, that a message has room for.
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
    /// What stands in its own metadata or its pods' under the mesh's prefix and means nothing, in words.
    pub unknown_keys: Vec<String>,
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
    /// Nothing of it has to do with the mesh, but somebody seems to have wanted that.
    UnknownKey,
    /// Its label says what nobody understands.
    UnknownLabelValue,
}

/// The namespaces of which something is to be told anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// All of them.
    pub namespaces: BTreeSet<String>,
    /// Those in which something else means nothing than before.
    pub mistaken: BTreeSet<String>,
}

impl Census {
    /// Brings it to another state of the objects; says what is to be told now. Costs what is in the namespaces that the
    /// change concerns.
    pub fn update(&mut self, objects: &Objects, reports: &Reports) -> News {
        let mut concerned: BTreeSet<String> = keys(&self.objects.namespaces, &objects.namespaces).into_iter().collect();
        concerned.extend(keys(&self.objects.pods, &objects.pods).into_iter().map(|name| name.namespace));
        if let (Reports::Apart(old), Reports::Apart(new)) = (&self.reports, reports) {
            let of = |uid| new.get(&uid).or_else(|| old.get(&uid)).map(|report| report.namespace.clone());
            concerned.extend(keys(old, new).into_iter().filter_map(of));
        }
        (self.objects, self.reports) = (objects.clone(), reports.clone());
        let mut mistaken = BTreeSet::new();
        concerned.retain(|namespace| {
            let count = count(objects, reports, namespace);
            let before = match count.is_of_interest() {
                true => self.counts.insert(namespace.clone(), count.clone()),
                false => self.counts.remove(namespace),
            };
            let before = before.unwrap_or_default();
            if !count.unknown_keys.is_empty() && count.unknown_keys != before.unknown_keys {
                mistaken.insert(namespace.clone());
            }
            before != count
        });
        News { namespaces: concerned, mistaken }
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
    count.unknown_label = label.filter(|value| ![ENROLLED, NOT_ENROLLED].contains(&value.as_str()));
    // Annotations of namespaces mean nothing to the mesh.
    count.unknown_keys.extend(namespace.into_iter().flat_map(|namespace| unknown_keys(&namespace.metadata, &[])));
    for (pod_name, pod) in objects.pods_in(name) {
        let of_pod = unknown_keys(&pod.metadata, &ANNOTATIONS);
        count.unknown_keys.extend(of_pod.map(|problem| format!("pod {}: {problem}", pod_name.name)));
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

/// What of an object's metadata looks as if it were meant for the mesh, in words.
fn unknown_keys(metadata: &ObjectMeta, annotations: &'static [&'static str]) -> impl Iterator<Item = String> {
    let sides = [("label", &metadata.labels, &LABELS[..]), ("annotation", &metadata.annotations, annotations)];
    sides.into_iter().flat_map(|(what, map, known)| {
        let keys = map.iter().flat_map(BTreeMap::keys);
        label::unknown(keys, known).map(move |error| format!("{what}: {error}"))
    })
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
        } else if !self.unknown_keys.is_empty() {
            Some(Enrolled::UnknownKey)
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
        parts.extend(self.mistakes());
        if self.wanted > 0 || self.is_enrolled || parts.is_empty() {
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

    /// A few of the keys that mean nothing, for people.
    #[must_use]
    pub fn mistakes(&self) -> Option<String> {
        let more = self.unknown_keys.len().saturating_sub(NAMED);
        let named = self.unknown_keys.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
        match (named.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(named),
            (false, more) => Some(format!("{named}; and {more} more like these")),
        }
    }
}

impl Enrolled {
    /// The reason of the condition.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::AllCaptured => "AllCaptured",
            Self::Leaving => "Leaving",
            Self::UnknownKey => "UnknownKey",
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

    #[test]
    fn a_mistake_is_told_when_it_comes_up_and_again_only_after_it_was_gone() {
        let mut census = Census::default();
        let (wrong, enabled) = ("underpass.dev/mehs: enabled", "underpass.dev/mesh: enabled");
        let both = format!("{wrong}, {enabled}");
        for (label, pod, is_told) in [
            (wrong, "", true),
            (&both, "", false),
            (&both, CAPTURED, false),
            (enabled, CAPTURED, false),
            (&both, "", true),
        ] {
            let news = census.update(&objects(label, &[("a", pod)]), &Reports::OnPods);
            assert_eq!(news.mistaken.contains("shop"), is_told, "{label} {pod}");
        }
    }

    #[test]
    fn a_message_has_room_for_a_few_mistakes() {
        let label = "underpass.dev/a: x, underpass.dev/b: x, underpass.dev/c: x, underpass.dev/d: x";
        let told = count(&objects(label, &[]), &Reports::OnPods, "shop").mistakes().unwrap();
        assert!(told.contains("underpass.dev/c") && told.ends_with("; and 1 more like these"), "{told}");
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
                "underpass.dev/mehs: enabled",
                &[("a", "")],
                Some(Enrolled::UnknownKey),
                "label: the mesh knows no \"underpass.dev/mehs\" here: it knows underpass.dev/mesh",
            ),
            (
                enabled,
                &[("a, annotations: {underpass.dev/limit-connections: '1', underpass.dev/wrong: x}", CAPTURED)],
                Some(Enrolled::AllCaptured),
                "pod a: annotation: the mesh knows no \"underpass.dev/wrong\" here: it knows \
                 underpass.dev/exclude-inbound-cidrs, underpass.dev/exclude-inbound-ports, \
                 underpass.dev/exclude-outbound-cidrs, underpass.dev/exclude-outbound-ports, \
                 underpass.dev/limit-buffered-bytes, underpass.dev/limit-connections, \
                 underpass.dev/limit-descriptors, underpass.dev/limit-handshakes; 1 of 1 pods captured",
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
            assert_eq!(changed.namespaces.contains("shop"), is_told, "{label} {pod}");
        }
        assert!(census.counts().is_empty());
    }
}
