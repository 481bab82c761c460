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

/// The modes of the mesh, by where they hold. In each list the one that wins comes first.
pub(super) struct Modes<'a> {
    by_namespace: BTreeMap<&'a str, Vec<&'a MeshTlsMode>>,
}

/// What holds for one pod.
#[derive(Debug, PartialEq, Eq)]
struct Effective {
    mode: TlsMode,
    /// The ports that differ.
    except: BTreeSet<u16>,
}

impl<'a> Modes<'a> {
    pub(super) fn of(objects: &'a Objects, notes: &mut Vec<Note>) -> Self {
        let mut by_namespace = BTreeMap::<&str, Vec<(&ObjectName, &MeshTlsMode)>>::new();
        for (name, mode) in &objects.mesh_tls_modes {
            by_namespace.entry(&name.namespace).or_default().push((name, mode));
        }
        for modes in by_namespace.values_mut() {
            // Of several that mean the same the oldest holds, as Gateway API has it; then the first by name.
            modes.sort_by_key(|(name, mode)| {
                let created = mode.metadata.creation_timestamp.clone();
                (created.is_none(), created, *name)
            });
            let mut whole = modes.iter().filter(|(_, mode)| mode.selector().is_none()).map(|(name, _)| *name);
            let Some(holds) = whole.next() else { continue };
            notes.extend(whole.map(|name| Note {
                object: ObjectKey { kind: Kind::MeshTlsMode, name: name.clone() },
                field: "spec.selector",
                problem: format!("{holds} is older and holds for the namespace, so this one does not"),
            }));
        }
        let strip = |(namespace, modes): (&'a str, Vec<(&ObjectName, &'a MeshTlsMode)>)| {
            (namespace, modes.into_iter().map(|(_, mode)| mode).collect())
        };
        Self { by_namespace: by_namespace.into_iter().map(strip).collect() }
    }

    /// The policy that a pod is under by its mode; none where plaintext is taken everywhere.
    pub(super) fn policy(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> Option<Policy> {
        self.effective(namespace, labels).policy()
    }

    /// The most specific object that says something of a port decides: workload, namespace, mesh.
    fn effective(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> Effective {
        let of = |namespace: &str| self.by_namespace.get(namespace).into_iter().flatten().copied();
        let workload = of(namespace).find(|mode| mode.selector().is_some_and(|selector| selector.selects(labels)));
        let whole = |mode: &&MeshTlsMode| mode.selector().is_none();
        let chain = [workload, of(namespace).find(whole), of(SYSTEM_NAMESPACE).find(whole)];
        let specs = || chain.iter().flatten().map(|mode| &mode.spec);
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
}

impl Effective {
    fn policy(&self) -> Option<Policy> {
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
