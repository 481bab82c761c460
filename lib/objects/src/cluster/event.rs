//! Events: what users see of an object with `kubectl describe`. Best effort, as everywhere in Kubernetes.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use crate::object::{Kind, ObjectName};

/// Something that users should know of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind of object.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
    /// Its uid.
    pub uid: String,
    /// How bad it is.
    pub severity: Severity,
    /// One stable word in camel case.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Good to know.
    Normal,
    /// Somebody should look.
    Warning,
}

/// In bytes; longer messages are refused by the API server.
const LONGEST: usize = 1024;

/// Writes one, from a program on a node or in a pod of that name.
///
/// # Errors
/// As the API server or the way to it says.
pub async fn emit(client: &Client, program: &str, instance: &str, event: &Event) -> Result<(), kube::Error> {
    let event = written(program, instance, event);
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api: Api<v1::Event> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &event).await.map(drop)
}

fn written(program: &str, instance: &str, event: &Event) -> v1::Event {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    // Told apart by the time, as usual.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let Event { kind, name, uid, .. } = event;
    v1::Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{clock:x}", name.name)),
            // Of objects without a namespace they are in the default one.
            namespace: text(&name.namespace).or_else(|| text("default")),
            ..ObjectMeta::default()
        },
        involved_object: v1::ObjectReference {
            api_version: text(kind.api_version()),
            kind: text(kind.as_str()),
            name: text(&name.name),
            namespace: text(&name.namespace),
            uid: text(uid),
            ..v1::ObjectReference::default()
        },
        type_: text(match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }),
        reason: text(event.reason),
        message: text(beginning(&event.message)),
        source: Some(v1::EventSource { component: text(program), host: text(instance) }),
        reporting_component: text(program),
        reporting_instance: text(instance),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..v1::Event::default()
    }
}

fn beginning(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_about_its_object_and_no_longer_than_allowed() {
        let event = Event {
            kind: Kind::Pod,
            name: ObjectName::new("shop", "web-0"),
            uid: "u1".into(),
            severity: Severity::Warning,
            reason: "MeshCaptureFailed",
            message: "…".repeat(5000),
        };
        let written = written("underpass-agent", "node-1", &event);
        let about = &written.involved_object;
        assert_eq!((about.kind.as_deref(), about.api_version.as_deref()), (Some("Pod"), Some("v1")));
        assert_eq!((about.namespace.as_deref(), about.uid.as_deref()), (Some("shop"), Some("u1")));
        assert!(written.metadata.name.unwrap().starts_with("web-0."));
        assert_eq!(written.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(written.type_.as_deref(), Some("Warning"));
        assert!((LONGEST - 3..=LONGEST).contains(&written.message.unwrap().len()));
    }
}
