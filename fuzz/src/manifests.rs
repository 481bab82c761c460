//! Manifests that somebody wrote, and what the operator makes of them.

use underpass_discovery::wire::convert::{
    Addressed, address_from_wire, policy_from_wire, policy_to_wire, service_to_wire, workload_to_wire,
};
use underpass_discovery::wire::workload::{Address, address::Type};
use underpass_objects::{Objects, manifest};
use underpass_operator::translate::{Reports, TranslateOptions, translate};
use underpass_policy::{Action, AnyOf, Policy, Rule};

/// A file: read whole or not at all, with an error that leads to a line of it. What the operator makes of it, node
/// proxies understand.
pub(crate) fn read(input: &[u8]) {
    let lines = 1 + input.iter().filter(|&&byte| byte == b'\n').count();
    let found = match manifest::read(input) {
        Ok(found) => found,
        Err(error) => {
            assert!((1..=lines).contains(&error.line()), "{error}");
            return assert!(error.to_string().len() < 8 * 1024);
        }
    };
    for (key, located) in &found.objects {
        assert_eq!(located.object.key().as_ref(), Some(key));
        assert!((1..=lines).contains(&located.line), "{key}");
    }
    twice(input, found.objects.len());
    let objects: Objects = found.objects.into_values().map(|located| located.object).collect();
    published(&objects);
}

/// The same once more in the same file is a duplicate.
fn twice(input: &[u8], objects: usize) {
    let twice = manifest::read(&[input, b"\n---\n", input].concat());
    match objects {
        0 => assert!(twice.is_ok_and(|found| found.objects.is_empty())),
        _ => assert_eq!(twice.map_err(|error| error.reason()), Err("duplicate")),
    }
}

fn published(objects: &Objects) {
    let mesh = translate(objects, &Reports::default(), &TranslateOptions::default());
    for (uid, mut workload) in mesh.workloads {
        assert_eq!(uid, workload.uid);
        if workload.service_account.is_empty() {
            // On the wire nothing means this one.
            workload.service_account = "default".into();
        }
        let message = Address { r#type: Some(Type::Workload(workload_to_wire(&workload))) };
        assert_eq!(address_from_wire(&message), Ok(Some(Addressed::Workload(workload))));
    }
    for (name, service) in mesh.services {
        assert_eq!(name, service.name);
        let message = Address { r#type: Some(Type::Service(service_to_wire(&service))) };
        assert_eq!(address_from_wire(&message), Ok(Some(Addressed::Service(service))));
    }
    for policy in mesh.policies.into_values() {
        assert_eq!(policy_from_wire(&policy_to_wire(&policy)), Ok(as_sent(policy)));
    }
}

/// On the wire there is no word for "refuse": it is a deny of everything.
fn as_sent(policy: Policy) -> Policy {
    match policy.action {
        Action::Refuse => Policy { action: Action::Deny, rules: AnyOf::from_iter([Rule::open()]), ..policy },
        Action::Allow | Action::Deny => policy,
    }
}
