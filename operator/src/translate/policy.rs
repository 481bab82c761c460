//! AuthorizationPolicies and MeshTLSModes to the policies of the mesh, and to the names by which workloads are under
//! them.
//!
//! A policy without a selector is found by its namespace (in the system namespace: by the whole mesh), any other by the
//! records of the pods that it selects. What the node proxy cannot enforce is not left out: it stops whatever it selects.

pub(super) mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use underpass_model::names::SYSTEM_NAMESPACE;
use underpass_objects::{
    Kind, ObjectKey, ObjectName, pod,
    policy::{AuthorizationPolicy, EnforcementLevel, PolicyAction, PolicyRule, PolicySource, Selector, SourceType},
};
use underpass_policy::{
    Action, AllOf, AnyOf, Clause, Field, Match, Pattern, Policy, PolicyName, Rule, Scope, ServiceAccount,
};

use super::{Note, Part, Sight};

/// Every name of a namespace's service accounts.
const EVERY_ACCOUNT: &str = "*";

/// The names of the policies that select a pod.
pub(super) fn selecting(sight: &Sight<'_>, pod: &Pod) -> BTreeSet<Arc<str>> {
    let namespace = pod::name(pod).namespace;
    // A selector in the system namespace speaks of pods wherever they are.
    let near = [SYSTEM_NAMESPACE, &namespace].into_iter();
    let policies = near.flat_map(|namespace| sight.objects.policies_in(namespace));
    let selecting = policies.filter(|(_, policy)| narrow(policy).is_some_and(|selector| selector.selects(labels(pod))));
    selecting.map(|(name, _)| PolicyName::new(&name.namespace, &name.name).as_str().into()).collect()
}

/// What a policy selects, if that is not all of its namespace: then the workloads name it.
pub(super) fn narrow(policy: &AuthorizationPolicy) -> Option<&Selector> {
    policy.selector().filter(|selector| !selector.is_empty())
}

/// A pod's labels.
pub(super) fn labels(pod: &Pod) -> Option<&BTreeMap<String, String>> {
    pod.metadata.labels.as_ref()
}

/// The policy that an object means.
pub(super) fn of(name: &ObjectName, object: &AuthorizationPolicy) -> Part<Policy> {
    let mut notes = Vec::new();
    let value = policy(name, object, &mut notes);
    Part { value, notes }
}

fn policy(name: &ObjectName, object: &AuthorizationPolicy, notes: &mut Vec<Note>) -> Policy {
    let spec = &object.spec;
    let rules: Option<AnyOf<Rule>> = spec.rules.iter().map(|written| rule(&name.namespace, written)).collect();
    let against = match (&object.unreadable, spec.enforcement_level, &rules) {
        (Some(problem), ..) => Some(("spec", problem.as_str())),
        (None, EnforcementLevel::Application, _) => Some(("spec.enforcementLevel", "only a waypoint could enforce it")),
        (None, EnforcementLevel::Network, None) => Some(("spec.rules", "a source is not well formed")),
        (None, EnforcementLevel::Network, Some(_)) => None,
    };
    if let Some((field, problem)) = against {
        let object = ObjectKey { kind: Kind::AuthorizationPolicy, name: name.clone() };
        notes.push(Note { object, field, problem: format!("{problem}, so whatever it selects is refused") });
    }
    let action = match (against, spec.action) {
        (Some(_), _) => Action::Refuse,
        (None, PolicyAction::Allow) => Action::Allow,
        (None, PolicyAction::Deny) => Action::Deny,
    };
    Policy {
        name: PolicyName::new(&name.namespace, &name.name),
        scope: scope(&name.namespace, object.selector()),
        action,
        rules: rules.unwrap_or_default(),
        dry_run: spec.dry_run,
    }
}

fn scope(namespace: &str, selector: Option<&Selector>) -> Scope {
    match selector {
        Some(selector) if !selector.is_empty() => Scope::Named,
        Some(_) | None if namespace == SYSTEM_NAMESPACE => Scope::Mesh,
        Some(_) | None => Scope::Namespace,
    }
}

/// `None` if a source is not well formed; files with such objects are not taken, but others may bring them.
fn rule(namespace: &str, rule: &PolicyRule) -> Option<Rule> {
    let mut clauses = Vec::new();
    if let Some(sources) = &rule.sources {
        // Of an empty list no match is made, and then the clause never holds: no one.
        let matches: Option<Vec<Match>> = sources.iter().map(|source| from(namespace, source)).collect();
        clauses.push(Clause::Matches(AnyOf::from_iter(matches?)));
    }
    if let Some(attributes) = &rule.network_attributes {
        let destination_ports = Field::any(attributes.ports.iter().copied());
        clauses.push(Clause::Matches(AnyOf::from_iter([Match { destination_ports, ..Match::default() }])));
    }
    Some(Rule { clauses: AllOf::from_iter(clauses) })
}

fn from(namespace: &str, source: &PolicySource) -> Option<Match> {
    let whole_namespace = |namespace: &str| Field::any([Pattern::Exact(namespace.into())]);
    Some(match source.of {
        SourceType::Cidr => Match { source_ips: Field::any([source.range()?]), ..Match::default() },
        SourceType::Namespace => {
            Match { namespaces: whole_namespace(source.namespace.as_deref()?), ..Match::default() }
        }
        SourceType::ServiceAccount => {
            let account = source.service_account.as_ref()?;
            let namespace = account.namespace.as_deref().unwrap_or(namespace);
            if account.name == EVERY_ACCOUNT {
                return Some(Match { namespaces: whole_namespace(namespace), ..Match::default() });
            }
            let account = ServiceAccount { namespace: namespace.into(), name: account.name.as_str().into() };
            Match { service_accounts: Field::any([account]), ..Match::default() }
        }
        SourceType::Spiffe => {
            let principal = source.spiffe.as_deref()?.strip_prefix("spiffe://")?;
            Match { principals: Field::any([Pattern::Exact(principal.into())]), ..Match::default() }
        }
    })
}

#[cfg(test)]
mod tests;
