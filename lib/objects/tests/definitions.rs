//! `deploy/crds/` holds the CustomResourceDefinitions of the types in `policy.rs` and `mesh_config.rs`.
//!
//! After a change of them: `UNDERPASS_WRITE_REFERENCE=1 cargo test -p underpass-objects --test definitions`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests, which clippy does not see")]

use std::{fs, path::Path};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use underpass_objects::{
    mesh_config::{self, MeshConfigSpec},
    policy::{AuthorizationPolicySpec, MeshTlsModeSpec, ObjectStatus},
};

struct Definition {
    kind: &'static str,
    plural: &'static str,
    about: &'static str,
    /// The name that all of them have, if there is one for the cluster.
    only: Option<&'static str>,
    spec: Value,
    columns: &'static [(&'static str, &'static str)],
}

fn definitions() -> [Definition; 3] {
    [
        Definition {
            kind: "AuthorizationPolicy",
            plural: "authorizationpolicies",
            about: "Who may connect to the pods that it selects.",
            only: None,
            spec: schema::<AuthorizationPolicySpec>(),
            columns: &[("Action", ".spec.action"), ("Accepted", ACCEPTED), ("Programmed", PROGRAMMED)],
        },
        Definition {
            kind: "MeshConfig",
            plural: "meshconfigs",
            about: "What holds for the whole mesh.",
            only: Some(mesh_config::NAME),
            spec: schema::<MeshConfigSpec>(),
            columns: &[("Accepted", ACCEPTED), ("Programmed", PROGRAMMED)],
        },
        Definition {
            kind: "MeshTLSMode",
            plural: "meshtlsmodes",
            about: "Whether pods take plaintext.",
            only: None,
            spec: schema::<MeshTlsModeSpec>(),
            columns: &[("Mode", ".spec.mode"), ("Accepted", ACCEPTED), ("Programmed", PROGRAMMED)],
        },
    ]
}

const ACCEPTED: &str = r#".status.conditions[?(@.type=="Accepted")].status"#;
const PROGRAMMED: &str = r#".status.conditions[?(@.type=="Programmed")].status"#;
const HEAD: &str = "# Made of lib/objects/src/policy.rs by lib/objects/tests/definitions.rs; edit there.\n";

impl Definition {
    fn object(&self) -> Value {
        let mut columns: Vec<Value> = self
            .columns
            .iter()
            .map(|(name, path)| json!({ "name": name, "type": "string", "jsonPath": path }))
            .collect();
        columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
        let mut schema = json!({
            "type": "object",
            "description": self.about,
            "required": ["spec"],
            "properties": { "spec": self.spec, "status": schema::<ObjectStatus>() },
        });
        if let Some(name) = self.only {
            let rule = format!("self.metadata.name == '{name}'");
            let message = format!("there is one for the mesh, and its name is {name}");
            let rules = json!([{ "rule": rule, "message": message }]);
            schema.as_object_mut().unwrap().insert("x-kubernetes-validations".into(), rules);
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.underpass.dev", self.plural) },
            "spec": {
                "group": "underpass.dev",
                "scope": if self.only.is_some() { "Cluster" } else { "Namespaced" },
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_lowercase(),
                    "categories": ["underpass"],
                },
                "versions": [{
                    "name": "v1alpha1",
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": schema },
                }],
            },
        })
    }
}

/// A type's schema as Kubernetes wants it: structural.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

fn structural(schema: &mut Value) {
    match schema {
        Value::Array(parts) => parts.iter_mut().for_each(structural),
        Value::Object(fields) => {
            of_fields(fields);
            fields.values_mut().for_each(structural);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn of_fields(fields: &mut Map<String, Value>) {
    // A field of that name, not the schema's own title.
    if fields.get("title").is_some_and(Value::is_string) {
        fields.remove("title");
    }
    // The API server drops unknown fields by itself (and says so), and wants no other word on it.
    if fields.get("additionalProperties") == Some(&json!(false)) {
        fields.remove("additionalProperties");
    }
    // What is empty unless given is left out, not written into every object.
    let is_word = |value: &Value| value.is_boolean() || value.as_str().is_some_and(|text| !text.is_empty());
    if fields.get("default").is_some_and(|value| !is_word(value)) {
        fields.remove("default");
    }
    if fields.get("format") == Some(&json!("uint16")) {
        fields.remove("format");
    }
    // Who may be left out is not nullable for that.
    if let Some(Value::Array(types)) = fields.get("type") {
        let some = types.iter().find(|name| **name != json!("null")).cloned().unwrap();
        fields.insert("type".into(), some);
    }
    if let Some(Value::Array(words)) = fields.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    while let Some(choice) = ["oneOf", "anyOf", "allOf"].into_iter().find(|choice| fields.contains_key(*choice)) {
        flatten(fields, choice);
    }
}

/// An enum's words with a description each become one list of words; an optional part becomes the part.
fn flatten(fields: &mut Map<String, Value>, choice: &str) {
    let Some(Value::Array(parts)) = fields.remove(choice) else { return };
    let parts: Vec<Value> = parts.into_iter().filter(|part| part["type"] != "null").collect();
    let word = |part: &Value| part.get("const").cloned().or_else(|| part["enum"].get(0).cloned());
    let words: Option<Vec<Value>> = parts.iter().map(word).collect();
    if let (Some(words), true) = (words, parts.len() > 1 || choice == "oneOf") {
        let told: Vec<String> = parts
            .iter()
            .filter_map(|part| Some(format!("{}: {}", word(part)?.as_str()?, part["description"].as_str()?)))
            .collect();
        let about = fields.get("description").and_then(Value::as_str).unwrap_or_default();
        let about = format!("{about}\n{}", told.join("\n"));
        fields.insert("description".into(), about.trim().into());
        fields.insert("type".into(), "string".into());
        fields.insert("enum".into(), words.into());
        return;
    }
    let [part] = parts.as_slice() else { panic!("{choice} of {parts:?} is not structural") };
    for (name, value) in part.as_object().unwrap() {
        fields.entry(name.clone()).or_insert(value.clone());
    }
}

#[test]
fn the_definitions_are_what_the_types_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    for definition in definitions() {
        let path = directory.join(format!("{}.yaml", definition.plural));
        let text = format!("{HEAD}{}", serde_yaml::to_string(&definition.object()).unwrap());
        if std::env::var_os("UNDERPASS_WRITE_REFERENCE").is_some() {
            fs::create_dir_all(&directory).unwrap();
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(
            fs::read_to_string(&path).unwrap_or_default(),
            text,
            "{} is not up to date, see above",
            path.display()
        );
    }
}

/// What the API server would refuse: words that are not structural, costs without bounds.
#[test]
fn they_are_structural_and_their_rules_have_bounds() {
    fn look(path: &str, schema: &Value) {
        let Value::Object(fields) = schema else { return };
        for name in ["$ref", "oneOf", "anyOf", "allOf", "const", "definitions", "nullable"] {
            assert!(!fields.contains_key(name), "{path}: {name}");
        }
        assert!(fields["type"].is_string(), "{path}: {schema}");
        if fields["type"] == "array" && !path.starts_with(".status") {
            assert!(fields.contains_key("maxItems"), "{path} has no bound");
        }
        assert!(!(fields.contains_key("properties") && fields.contains_key("additionalProperties")), "{path}");
        for (name, part) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
            look(&format!("{path}.{name}"), part);
        }
        for name in ["items", "additionalProperties"] {
            fields.get(name).inspect(|part| look(&format!("{path}.{name}"), part));
        }
    }
    for definition in definitions() {
        look("", &definition.object()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    }
}
