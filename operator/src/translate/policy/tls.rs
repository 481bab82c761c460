//! MeshTLSModes to policies that stop plaintext.
//!
//! One policy stands for each way in which ports may differ, not for each object: the workloads of a whole mesh share it.
//! Its name has a colon, which no object's name can have.

use std::collections::{BTreeMap, BTreeSet};

use underpass_model::names::SYSTEM_NAMESPACE;
use underpass_objects::{
    Kind, ObjectKey, ObjectName, Objects,
    policy::{MeshTlsMode, TlsMode},
};
use underpass_policy::{Action, AllOf, AnyOf, Clause, Field, Match, Pattern, Policy, PolicyName, Rule, Scope};

use crate::translate::Note;

/// What holds for one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::translate) struct Effective {
    mode: TlsMode,
    /// The ports that differ.
    except: BTreeSet<u16>,
}

/// The modes of a namespace, the one that wins first: of several that mean the same the oldest holds, as Gateway API has
/// it; then the first by name.
fn in_order<'a>(objects: &'a Objects, namespace: &str) -> Vec<(&'a ObjectName, &'a MeshTlsMode)> {
    let mut modes: Vec<_> = objects.modes_in(namespace).map(|(name, mode)| (name, mode.as_ref())).collect();
    modes.sort_by_key(|(name, mode)| {
        let created = mode.metadata.creation_timestamp.clone();
        (created.is_none(), created, *name)
    });
    modes
}

/// The modes of a namespace that mean the same as one that is older.
pub(in crate::translate) fn notes(objects: &Objects, namespace: &str) -> Vec<Note> {
    let modes = in_order(objects, namespace);
    let mut whole = modes.iter().filter(|(_, mode)| mode.selector().is_none()).map(|(name, _)| *name);
    let Some(holds) = whole.next() else { return Vec::new() };
    let note = |name: &ObjectName| Note {
        object: ObjectKey { kind: Kind::MeshTlsMode, name: name.clone() },
        field: "spec.selector",
        problem: format!("{holds} is older and holds for the namespace, so this one does not"),
    };
    whole.map(note).collect()
}

/// What holds for a pod: the most specific object that says something of a port decides: workload, namespace, mesh.
pub(in crate::translate) fn effective(
    objects: &Objects,
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> Effective {
    let own = in_order(objects, namespace);
    let mesh = in_order(objects, SYSTEM_NAMESPACE);
    let of = |modes: &[(&ObjectName, &MeshTlsMode)], holds: &dyn Fn(&MeshTlsMode) -> bool| {
        modes.iter().find(|(_, mode)| holds(mode)).map(|(_, mode)| mode.spec.clone())
    };
    let selects = |mode: &MeshTlsMode| mode.selector().is_some_and(|selector| selector.selects(labels));
    let is_whole = |mode: &MeshTlsMode| mode.selector().is_none();
    let chain = [of(&own, &selects), of(&own, &is_whole), of(&mesh, &is_whole)];
    let specs = || chain.iter().flatten();
    let mode = specs().find_map(|spec| spec.mode).unwrap_or(TlsMode::Permissive);
    let of_port = |port: u16| {
        let says = specs().find_map(|spec| {
            let own = spec.ports.iter().find(|own| own.port == port).map(|own| own.mode);
            own.or(spec.mode)
        });
        says.unwrap_or(TlsMode::Permissive)
    };
    let named = specs().flat_map(|spec| &spec.ports).map(|port| port.port);
    Effective { mode, except: named.filter(|&port| of_port(port) != mode).collect() }
}

impl Effective {
    /// The policy that a pod is under by its mode; none where plaintext is taken everywhere.
    pub(in crate::translate) fn policy(&self) -> Option<Policy> {
        let ports = || self.except.iter().copied();
        let listed = || self.except.iter().map(|port| format!("-{port}")).collect::<String>();
        let (name, destination_ports) = match (self.mode, self.except.is_empty()) {
            (TlsMode::Permissive, true) => return None,
            (TlsMode::Permissive, false) => (format!("mesh-tls-mode:strict-on{}", listed()), Field::any(ports())),
            (TlsMode::Strict, true) => ("mesh-tls-mode:strict".to_owned(), Field::default()),
            (TlsMode::Strict, false) => (format!("mesh-tls-mode:strict-except{}", listed()), Field::none(ports())),
        };
        let without_identity =
            Match { principals: Field::none([Pattern::Presence]), destination_ports, ..Match::default() };
        let clause = Clause::Matches(AnyOf::from_iter([without_identity]));
        Some(Policy {
            name: PolicyName::new(SYSTEM_NAMESPACE, &name),
            scope: Scope::Named,
            action: Action::Deny,
            rules: AnyOf::from_iter([Rule { clauses: AllOf::from_iter([clause]) }]),
            dry_run: false,
        })
    }
}
