//! Which pods belong into the mesh: one pure decision for agent, operator and command line.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use underpass_model::names::{ENROLLED, MESH_LABEL, NEVER_ENROLLED, NOT_ENROLLED};

use crate::pod;

/// Whether a pod belongs into the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enrolment {
    /// It does.
    Enrolled,
    /// It does not.
    Not(NotEnrolled),
}

/// Why a pod does not belong into the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotEnrolled {
    /// Its label says so.
    Disabled,
    /// It shares its node's network namespace, in which nothing may be captured.
    HostNetwork,
    /// Neither it nor its namespace carries the label.
    NotLabelled,
    /// Its namespace is one of those that are never enrolled.
    SystemNamespace,
    /// It has ended.
    Terminal,
    /// The label that decides has a value that means nothing.
    UnknownValue,
}

/// Decides for a pod of a namespace; a namespace that is not known counts as one without labels.
#[must_use]
pub fn wanted(namespace: Option<&Namespace>, pod: &Pod) -> Enrolment {
    if pod::is_terminal(pod) {
        return Enrolment::Not(NotEnrolled::Terminal);
    }
    if pod::is_on_host_network(pod) {
        return Enrolment::Not(NotEnrolled::HostNetwork);
    }
    if is_system(&pod::name(pod).namespace) {
        return Enrolment::Not(NotEnrolled::SystemNamespace);
    }
    match pod::label(pod, MESH_LABEL).or_else(|| namespace.and_then(mesh_label)) {
        Some(ENROLLED) => Enrolment::Enrolled,
        Some(NOT_ENROLLED) => Enrolment::Not(NotEnrolled::Disabled),
        Some(_) => Enrolment::Not(NotEnrolled::UnknownValue),
        None => Enrolment::Not(NotEnrolled::NotLabelled),
    }
}

/// Whether pods of the namespace are enrolled unless they say otherwise: what the plugin must hold back while the
/// agent is away.
#[must_use]
pub fn is_enrolled(namespace: &Namespace) -> bool {
    !namespace.metadata.name.as_deref().is_some_and(is_system) && mesh_label(namespace) == Some(ENROLLED)
}

fn mesh_label(namespace: &Namespace) -> Option<&str> {
    namespace.metadata.labels.as_ref()?.get(MESH_LABEL).map(String::as_str)
}

fn is_system(namespace: &str) -> bool {
    NEVER_ENROLLED.contains(&namespace)
}

impl NotEnrolled {
    /// A stable label for status and metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::HostNetwork => "host_network",
            Self::NotLabelled => "not_labelled",
            Self::SystemNamespace => "system_namespace",
            Self::Terminal => "terminal",
            Self::UnknownValue => "unknown_label_value",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YES: Enrolment = Enrolment::Enrolled;

    fn no(why: NotEnrolled) -> Enrolment {
        Enrolment::Not(why)
    }

    #[test]
    fn decides_by_pod_before_namespace_and_never_for_what_cannot_be_captured() {
        use NotEnrolled::{Disabled, HostNetwork, NotLabelled, SystemNamespace, Terminal, UnknownValue};
        // namespace, its label, the pod's label, the rest of the pod, decision
        let table = [
            ("shop", "", "", "", no(NotLabelled)),
            ("shop", "enabled", "", "", YES),
            ("shop", "disabled", "", "", no(Disabled)),
            ("shop", "", "enabled", "", YES),
            ("shop", "disabled", "enabled", "", YES),
            ("shop", "enabled", "disabled", "", no(Disabled)),
            ("shop", "enabled", "disable", "", no(UnknownValue)),
            ("shop", "true", "", "", no(UnknownValue)),
            ("shop", "true", "enabled", "", YES),
            ("shop", "enabled", "", "spec: {hostNetwork: true}", no(HostNetwork)),
            ("shop", "enabled", "enabled", "spec: {hostNetwork: true}", no(HostNetwork)),
            ("shop", "enabled", "enabled", "spec: {hostNetwork: false}", YES),
            ("kube-system", "enabled", "enabled", "", no(SystemNamespace)),
            ("underpass-system", "enabled", "enabled", "", no(SystemNamespace)),
            ("shop", "enabled", "enabled", "status: {phase: Succeeded}", no(Terminal)),
            ("shop", "enabled", "enabled", "status: {phase: Failed}", no(Terminal)),
            ("shop", "enabled", "", "status: {phase: Running}", YES),
            ("shop", "enabled", "", "status: {phase: Pending}", YES),
        ];
        for (name, of_namespace, of_pod, rest, expected) in table {
            let label = |value: &str| match value {
                "" => String::new(),
                value => format!("labels: {{{MESH_LABEL}: '{value}'}}"),
            };
            let namespace: Namespace =
                serde_yaml::from_str(&format!("{{metadata: {{name: {name}, {}}}}}", label(of_namespace))).unwrap();
            let pod = format!("{{metadata: {{name: a, namespace: {name}, {}}}, {rest}}}", label(of_pod));
            let pod: Pod = serde_yaml::from_str(&pod).unwrap();
            assert_eq!(wanted(Some(&namespace), &pod), expected, "{name} {of_namespace:?} {of_pod:?} {rest}");
        }
    }

    #[test]
    fn an_unknown_namespace_leaves_the_decision_to_the_pod() {
        let pod = |labels: &str| serde_yaml::from_str::<Pod>(&format!("{{metadata: {{name: a, {labels}}}}}")).unwrap();
        assert_eq!(wanted(None, &pod("")), no(NotEnrolled::NotLabelled));
        assert_eq!(wanted(None, &pod("labels: {underpass.dev/mesh: enabled}")), YES);
    }

    #[test]
    fn system_namespaces_are_never_on_the_list_of_enrolled_ones() {
        let namespace = |name: &str, value: &str| {
            let yaml = format!("{{metadata: {{name: {name}, labels: {{{MESH_LABEL}: {value}}}}}}}");
            serde_yaml::from_str::<Namespace>(&yaml).unwrap()
        };
        assert!(is_enrolled(&namespace("shop", "enabled")));
        assert!(!is_enrolled(&namespace("shop", "disabled")));
        assert!(!is_enrolled(&namespace("kube-system", "enabled")));
    }
}
