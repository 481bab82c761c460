//! The objects, their revisions, and what happened.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::merge;

/// The plural name, namespace (empty for kinds of the cluster) and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind's plural name.
    pub plural: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A kind as a request's path names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Group and version, as objects spell them.
    pub api_version: String,
    /// Its plural name.
    pub plural: String,
    /// The namespace asked about; empty for all.
    pub namespace: String,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) revision: u64,
    pub(super) key: Key,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// Why a write did not happen: a status code and what there is to say.
pub(super) struct Refusal(pub(super) u16, pub(super) String);

/// How an object is changed.
pub(super) enum Change {
    Replace(Value),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

#[derive(Debug, Default)]
pub(super) struct Store {
    revision: u64,
    /// Events up to here are forgotten.
    horizon: u64,
    objects: BTreeMap<Key, Value>,
    events: Vec<Event>,
}

impl Key {
    /// Makes a key of its parts.
    #[must_use]
    pub fn new(plural: &str, namespace: &str, name: &str) -> Self {
        Self { plural: plural.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl Store {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    pub(super) fn of(&self, plural: &str) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects.iter().filter(move |(key, _)| key.plural == plural)
    }

    /// What happened after a revision; `None` if that is forgotten.
    pub(super) fn after(&self, revision: u64) -> Option<Vec<Event>> {
        let first = self.events.partition_point(|event| event.revision <= revision);
        (revision >= self.horizon).then(|| self.events.get(first..).unwrap_or_default().to_vec())
    }

    pub(super) fn forget_history(&mut self) {
        // What comes next is new to everybody, so that who is up to date is behind as well.
        self.revision += 1;
        self.horizon = self.revision;
        self.events.clear();
    }

    pub(super) fn put(&mut self, object: Value) {
        let key = key_of(&object);
        self.write(key, object);
    }

    pub(super) fn create(&mut self, resource: &Resource, mut object: Value) -> Result<Value, Refusal> {
        let metadata = fields(&mut object, "metadata");
        if let (None, Some(prefix)) = (metadata.get("name"), metadata.get("generateName").and_then(Value::as_str)) {
            let name = format!("{prefix}{}", self.revision + 1);
            metadata.insert("name".into(), name.into());
        }
        let key = Key::new(&resource.plural, &resource.namespace, text(&object, "/metadata/name"));
        if self.objects.contains_key(&key) {
            return Err(Refusal(409, format!("{} {:?} already exists", key.plural, key.name)));
        }
        self.complete(resource, &mut object);
        Ok(self.write(key, object))
    }

    fn complete(&self, resource: &Resource, object: &mut Value) {
        let named = resource.namespace.clone();
        if !named.is_empty() {
            fields(object, "metadata").entry("namespace").or_insert_with(|| named.into());
        }
        if let Value::Object(object) = object {
            object.entry("apiVersion").or_insert_with(|| resource.api_version.clone().into());
        }
    }

    /// Changes an object, or its status only.
    pub(super) fn change(
        &mut self,
        resource: &Resource,
        name: &str,
        change: &Change,
        of_status: bool,
    ) -> Result<Value, Refusal> {
        let key = Key::new(&resource.plural, &resource.namespace, name);
        let before = self.objects.get(&key).cloned();
        let (Change::Replace(said) | Change::Merge(said) | Change::Strategic(said) | Change::Apply(said)) = change;
        let Some(before) = before else {
            return match change {
                Change::Apply(object) if !of_status => self.create(resource, object.clone()),
                _ => Err(Refusal(404, format!("{} {name:?} not found", key.plural))),
            };
        };
        for precondition in ["/metadata/uid", "/metadata/resourceVersion"] {
            if said.pointer(precondition).is_some_and(|said| before.pointer(precondition) != Some(said)) {
                return Err(Refusal(409, format!("{precondition} is another one: the object has been modified")));
            }
        }
        let mut after = before.clone();
        match change {
            Change::Replace(object) => after = object.clone(),
            Change::Merge(patch) => merge::merge(&mut after, patch),
            Change::Strategic(patch) | Change::Apply(patch) => merge::strategic(&mut after, patch),
        }
        // Each half is written for itself, and who an object is never.
        let (mut kept, status) = if of_status { (before.clone(), after) } else { (after, before.clone()) };
        if let Value::Object(kept) = &mut kept {
            match status.get("status") {
                Some(status) => drop(kept.insert("status".into(), status.clone())),
                None => drop(kept.remove("status")),
            }
        }
        for (field, value) in before.get("metadata").and_then(Value::as_object).into_iter().flatten() {
            if ["uid", "creationTimestamp", "generation", "resourceVersion"].contains(&field.as_str()) {
                fields(&mut kept, "metadata").insert(field.clone(), value.clone());
            }
        }
        Ok(if kept == before { before } else { self.write(key, kept) })
    }

    pub(super) fn delete(&mut self, key: &Key) -> Option<Value> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut last = before;
        fields(&mut last, "metadata").insert("resourceVersion".into(), self.revision.to_string().into());
        let event = Event { revision: self.revision, key: key.clone(), before: Some(last.clone()), after: None };
        self.events.push(event);
        Some(last)
    }

    fn write(&mut self, key: Key, mut object: Value) -> Value {
        self.revision += 1;
        let before = self.objects.get(&key).cloned();
        let kept =
            |field: &str| before.as_ref().and_then(|before| before.pointer(&format!("/metadata/{field}"))).cloned();
        let is_changed = before.as_ref().is_some_and(|before| before.get("spec") != object.get("spec"));
        let generation = kept("generation").and_then(|number| number.as_u64()).unwrap_or(1) + u64::from(is_changed);
        let defaults = [
            ("uid", kept("uid").unwrap_or_else(|| format!("uid-{}", self.revision).into())),
            ("creationTimestamp", kept("creationTimestamp").unwrap_or_else(|| json!("2026-01-01T00:00:00Z"))),
        ];
        let metadata = fields(&mut object, "metadata");
        metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        metadata.insert("generation".into(), generation.into());
        for (field, value) in defaults {
            metadata.entry(field).or_insert(value);
        }
        let event = Event { revision: self.revision, key: key.clone(), before, after: Some(object.clone()) };
        self.events.push(event);
        self.objects.insert(key, object.clone());
        object
    }
}

/// The key of an object that says what it is.
fn key_of(object: &Value) -> Key {
    let kind = text(object, "/kind").to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    Key::new(&plural, text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// An object's field as a map, made if missing.
#[expect(clippy::expect_used, reason = "it was made one just before")]
fn fields<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let field = object.as_object_mut().expect("an object").entry(name).or_insert_with(|| json!({}));
    if !field.is_object() {
        *field = json!({});
    }
    field.as_object_mut().expect("an object")
}
