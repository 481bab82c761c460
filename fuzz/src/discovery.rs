//! What a control plane says of the mesh.

use std::fmt::Display;

use prost::Message as _;
use underpass_discovery::{
    View,
    wire::{
        convert::{
            Addressed, address_from_wire, policy_from_wire, policy_to_wire, policy_unread, service_to_wire,
            workload_to_wire,
        },
        security::Authorization,
        workload::{Address, address::Type},
    },
};
use underpass_policy::Action;

/// A workload or a service: what is understood is written and understood as the same, and the view has it.
pub(crate) fn address(input: &[u8]) {
    let Ok(message) = Address::decode(input) else { return };
    let known = match address_from_wire(&message) {
        Ok(Some(known)) => known,
        Ok(None) => return,
        Err(error) => return check_words(&error),
    };
    let written = match &known {
        Addressed::Service(service) => Type::Service(service_to_wire(service)),
        Addressed::Workload(workload) => Type::Workload(workload_to_wire(workload)),
    };
    let bytes = Address { r#type: Some(written) }.encode_to_vec();
    let again = Address::decode(bytes.as_slice()).expect("our own bytes");
    assert_eq!(address_from_wire(&again), Ok(Some(known.clone())));
    match known {
        Addressed::Service(service) => {
            let view = View::of([], [service.clone()]);
            assert_eq!(view.service(&service.name).map(|known| &**known), Some(&service));
            for address in &service.addresses {
                let at = view.service_at(address, &service.name.namespace);
                assert_eq!(at.map(|known| &known.name), Some(&service.name));
            }
        }
        Addressed::Workload(workload) => {
            let view = View::of([workload.clone()], []);
            assert_eq!(view.workload(&workload.uid).map(|known| &**known), Some(&workload));
            for service in workload.services.keys() {
                assert_eq!(view.endpoints(service).count(), 1);
            }
        }
    }
}

/// A policy: what is understood is written and understood as the same; what is not, refuses.
pub(crate) fn authorization(input: &[u8]) {
    let message = Authorization::decode(input);
    match message.as_ref().map(policy_from_wire) {
        Ok(Ok(policy)) => {
            let bytes = policy_to_wire(&policy).encode_to_vec();
            let again = Authorization::decode(bytes.as_slice()).expect("our own bytes");
            assert_eq!(policy_from_wire(&again), Ok(policy));
        }
        Ok(Err(error)) => {
            check_words(&error);
            stands_in("a/b", message.as_ref().ok());
        }
        Err(_) => stands_in("a/b", None),
    }
}

fn stands_in(name: &str, message: Option<&Authorization>) {
    let Some(stands) = policy_unread(name, message) else {
        let has_name = |message: &Authorization| {
            !message.name.is_empty() && !message.namespace.is_empty() && !message.namespace.contains('/')
        };
        return assert!(message.is_some_and(|message| !has_name(message)), "left out though it has a name");
    };
    assert_eq!(stands.action, Action::Refuse);
    assert_eq!(stands.dry_run, message.is_some_and(|message| message.dry_run));
    let name = message.map_or_else(|| name.to_owned(), |message| format!("{}/{}", message.namespace, message.name));
    assert_eq!(stands.name.as_str(), name);
}

/// An error repeats little of what it is about.
fn check_words(error: &impl Display) {
    assert!(error.to_string().len() < 8 * 1024);
}
