//! The mesh's own kinds for layer 4: who may speak with whom, and whether plaintext is taken.
//!
//! Field names are those of Gateway API's GEP-3779 where it has one. Unlike in the kinds of Kubernetes, a field that is
//! not known is an error: a policy with a misspelt word would say something else than its author meant.

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "cluster")]
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use underpass_model::names::SYSTEM_NAMESPACE;

#[cfg(feature = "cluster")]
use crate::{
    mesh_config::MeshConfig,
    object::{Kind, Object},
};

/// The group of the mesh's own kinds.
pub const GROUP: &str = "underpass.dev";
/// Group and version of the mesh's own kinds, as manifests spell them.
pub const API_VERSION: &str = "underpass.dev/v1alpha1";
/// The name of the one [`MeshTlsMode`] that holds for the whole mesh, in the system namespace.
pub const MESH_WIDE: &str = "default";

/// Who may connect to the pods that it selects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuthorizationPolicy {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: AuthorizationPolicySpec,
    /// What has become of it, as the operator says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ObjectStatus>,
    /// Why what it says is not understood; then it stops whatever its spec selects.
    #[serde(skip)]
    pub unreadable: Option<String>,
}

/// What has become of an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// The generation that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What is true of it, by type.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// What an [`AuthorizationPolicy`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The pods that it is about: one entry.
    #[schemars(length(min = 1, max = 1))]
    pub target_refs: Vec<TargetRef>,
    /// Whether what matches is let pass or stopped.
    #[serde(default)]
    pub action: PolicyAction,
    /// Who shall enforce it.
    #[serde(default)]
    pub enforcement_level: EnforcementLevel,
    /// What matches: any of them. Without rules nothing does.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<PolicyRule>,
    /// Evaluated and reported, never enforced (an extension).
    #[serde(default)]
    pub dry_run: bool,
}

/// What happens to a connection that matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// It passes, and what no such policy matches does not.
    #[default]
    Allow,
    /// It is stopped, whatever else allows it (an extension).
    Deny,
}

/// Who enforces a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnforcementLevel {
    /// A waypoint.
    Application,
    /// The node proxy.
    #[default]
    Network,
}

/// What a policy is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The group of the kind; empty for pods.
    #[serde(default)]
    #[schemars(extend("enum" = [""]))]
    pub group: String,
    /// The kind.
    pub kind: TargetKind,
    /// Which of them; all of the namespace unless it says otherwise.
    #[serde(default)]
    pub selector: Selector,
}

/// The kinds that a policy can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// Pods, by label.
    Pod,
}

/// Pods by label; an empty one selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that must be there with exactly these values.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<Requirement>,
}

/// One condition of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
    "message": "In and NotIn need values, Exists and DoesNotExist have none",
}]))]
pub struct Requirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// What must be true of it.
    pub operator: Operator,
    /// The values that the operator means.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// What must be true of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// It is not there.
    DoesNotExist,
    /// It is there.
    Exists,
    /// It has one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
}

/// What matches: all of what it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRule {
    /// Who connects: any of them. Left out it is anyone, an empty list is no one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub sources: Option<Vec<PolicySource>>,
    /// What of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_attributes: Option<NetworkAttributes>,
}

/// Who connects: the field that its type names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.serviceAccount) == (self.type == 'ServiceAccount')", "message": "serviceAccount belongs to the type ServiceAccount" },
    { "rule": "has(self.spiffe) == (self.type == 'SPIFFE')", "message": "spiffe belongs to the type SPIFFE" },
    { "rule": "has(self.namespace) == (self.type == 'Namespace')", "message": "namespace belongs to the type Namespace" },
    { "rule": "has(self.cidr) == (self.type == 'CIDR')", "message": "cidr belongs to the type CIDR" },
]))]
pub struct PolicySource {
    /// Which of the fields says it.
    #[serde(rename = "type")]
    pub of: SourceType,
    /// A service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountRef>,
    /// A whole identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = "^spiffe://.+"))]
    pub spiffe: Option<String>,
    /// A namespace (an extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// A range of addresses, or one address (an extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 49), extend("x-kubernetes-validations" = [
        { "rule": "isIP(self) || isCIDR(self)", "message": "is neither an address nor a range of addresses" },
    ]))]
    pub cidr: Option<String>,
}

/// How a source is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceType {
    /// By the address that it comes from.
    #[serde(rename = "CIDR")]
    Cidr,
    /// By its namespace.
    Namespace,
    /// By its service account.
    ServiceAccount,
    /// By its identity.
    #[serde(rename = "SPIFFE")]
    Spiffe,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountRef {
    /// Its namespace; the policy's unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its name; `*` is each of the namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What of a connection matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkAttributes {
    /// The port on which the application listens: any of them.
    #[schemars(length(min = 1, max = 64), inner(range(min = 1)), extend("x-kubernetes-list-type" = "set"))]
    pub ports: Vec<u16>,
}

/// Whether pods take plaintext.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeshTlsMode {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: MeshTlsModeSpec,
    /// What has become of it, as the operator says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ObjectStatus>,
}

/// What a [`MeshTlsMode`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.mode) || (has(self.ports) && size(self.ports) > 0)",
    "message": "says neither a mode nor that of a port",
}]))]
pub struct MeshTlsModeSpec {
    /// For every port of which nothing is said; left out, a broader object decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// Which pods of the namespace; left out it is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For single ports.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port"]))]
    pub ports: Vec<PortMode>,
}

/// Whether plaintext is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum TlsMode {
    /// Plaintext and tunnels.
    Permissive,
    /// Tunnels only.
    Strict,
}

/// Whether one port takes plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMode {
    /// The port on which the application listens.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What it takes.
    pub mode: TlsMode,
}

/// The schema of conditions, as Kubernetes' own kinds have them.
fn conditions(_generator: &mut SchemaGenerator) -> Schema {
    let text = |most: u32| json_schema!({ "type": "string", "maxLength": most });
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "message": text(32_768),
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "reason": text(1024),
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "type": text(316),
            },
        },
    })
}

/// A field that has the right shape and the wrong contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field's path.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Invalid {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl AuthorizationPolicySpec {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        let [target] = self.target_refs.as_slice() else {
            let problem = format!("needs exactly one entry, not {}", self.target_refs.len());
            return Err(Invalid::new("spec.targetRefs", problem));
        };
        if !target.group.is_empty() {
            return Err(Invalid::new("spec.targetRefs[0].group", "pods are of the core group, written \"\""));
        }
        target.selector.check("spec.targetRefs[0].selector")?;
        for (index, rule) in self.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            for (index, source) in rule.sources.iter().flatten().enumerate() {
                source.check(&format!("{path}.sources[{index}]"))?;
            }
            if let Some(attributes) = &rule.network_attributes {
                ports(&format!("{path}.networkAttributes.ports"), attributes.ports.iter().copied())?;
            }
        }
        Ok(())
    }
}

impl AuthorizationPolicy {
    /// The pods that it is about.
    #[must_use]
    pub fn selector(&self) -> Option<&Selector> {
        self.spec.target_refs.first().map(|target| &target.selector)
    }
}

impl PolicySource {
    fn check(&self, path: &str) -> Result<(), Invalid> {
        let fields = [
            ("serviceAccount", SourceType::ServiceAccount, self.service_account.is_some()),
            ("spiffe", SourceType::Spiffe, self.spiffe.is_some()),
            ("namespace", SourceType::Namespace, self.namespace.is_some()),
            ("cidr", SourceType::Cidr, self.cidr.is_some()),
        ];
        for (name, of, is_there) in fields {
            match (of == self.of, is_there) {
                (true, false) => return Err(Invalid::new(format!("{path}.{name}"), "is missing for this type")),
                (false, true) => return Err(Invalid::new(format!("{path}.{name}"), "belongs to another type")),
                (true, true) | (false, false) => {}
            }
        }
        let account = self.service_account.as_ref();
        let texts = [
            ("serviceAccount.name", account.map(|account| &account.name)),
            ("serviceAccount.namespace", account.and_then(|account| account.namespace.as_ref())),
            ("namespace", self.namespace.as_ref()),
        ];
        if let Some((name, _)) = texts.into_iter().find(|(_, text)| text.is_some_and(|text| text.is_empty())) {
            return Err(Invalid::new(format!("{path}.{name}"), "is empty"));
        }
        if self.spiffe.as_deref().is_some_and(|id| id.strip_prefix("spiffe://").is_none_or(str::is_empty)) {
            return Err(Invalid::new(format!("{path}.spiffe"), "does not begin with spiffe://"));
        }
        if self.cidr.as_deref().is_some_and(|text| range(text).is_none()) {
            return Err(Invalid::new(format!("{path}.cidr"), "is neither an address nor a range of addresses"));
        }
        Ok(())
    }

    /// The range of addresses, if that is how it is named.
    #[must_use]
    pub fn range(&self) -> Option<IpNet> {
        self.cidr.as_deref().and_then(range)
    }
}

fn range(text: &str) -> Option<IpNet> {
    let single = || text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address));
    text.parse::<IpNet>().ok().map(|range| range.trunc()).or_else(single)
}

impl Selector {
    /// Whether labels are among those that it means.
    #[must_use]
    pub fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let label = |key: &str| labels.and_then(|labels| labels.get(key));
        self.match_labels.iter().all(|(key, value)| label(key) == Some(value))
            && self.match_expressions.iter().all(|wanted| wanted.holds(label(&wanted.key)))
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    fn check(&self, path: &str) -> Result<(), Invalid> {
        for (index, wanted) in self.match_expressions.iter().enumerate() {
            let needs_values = matches!(wanted.operator, Operator::In | Operator::NotIn);
            if needs_values == wanted.values.is_empty() {
                let problem = if needs_values { "must not be empty for this operator" } else { "must be empty" };
                return Err(Invalid::new(format!("{path}.matchExpressions[{index}].values"), problem));
            }
        }
        Ok(())
    }
}

impl Requirement {
    fn holds(&self, label: Option<&String>) -> bool {
        match self.operator {
            Operator::DoesNotExist => label.is_none(),
            Operator::Exists => label.is_some(),
            Operator::In => label.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => label.is_none_or(|value| !self.values.contains(value)),
        }
    }
}

impl MeshTlsMode {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        let spec = &self.spec;
        if spec.mode.is_none() && spec.ports.is_empty() {
            return Err(Invalid::new("spec.mode", "is missing, and no port is named either"));
        }
        if !spec.ports.is_empty() {
            ports("spec.ports", spec.ports.iter().map(|port| port.port))?;
        }
        if let Some(selector) = &spec.selector {
            selector.check("spec.selector")?;
        }
        if self.metadata.namespace.as_deref() == Some(SYSTEM_NAMESPACE) {
            if self.metadata.name.as_deref() != Some(MESH_WIDE) {
                let problem = format!("the one of the whole mesh is called {MESH_WIDE:?}");
                return Err(Invalid::new("metadata.name", problem));
            }
            if spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()) {
                return Err(Invalid::new("spec.selector", "the one of the whole mesh has none"));
            }
        }
        Ok(())
    }

    /// The pods of its namespace that it is about; none if it is all.
    #[must_use]
    pub fn selector(&self) -> Option<&Selector> {
        self.spec.selector.as_ref().filter(|selector| !selector.is_empty())
    }
}

/// Reads an object of the mesh's own kinds as an API server gives it. An error comes with what stands for the object
/// where leaving it out would let pass what it means to stop; of the spec that keeps whom it selects, if that can be read.
#[cfg(feature = "cluster")]
pub(crate) fn read(
    kind: Kind,
    metadata: &ObjectMeta,
    data: serde_json::Value,
) -> Result<Object, (String, Option<Object>)> {
    let part = |path: &str| data.pointer(path).cloned().unwrap_or_default();
    // Whatever it says, it only tells what the operator last wrote.
    let status: Option<ObjectStatus> = serde_json::from_value(part("/status")).ok();
    match kind {
        Kind::AuthorizationPolicy => {
            let target_refs = serde_json::from_value(part("/spec/targetRefs")).unwrap_or_default();
            let make = |spec, unreadable| {
                let policy =
                    AuthorizationPolicy { metadata: metadata.clone(), spec, status: status.clone(), unreadable };
                Object::AuthorizationPolicy(Arc::new(policy))
            };
            let checked = spec(data).and_then(|spec: AuthorizationPolicySpec| check(spec.check()).map(|()| spec));
            checked.map(|spec| make(spec, None)).map_err(|problem| {
                let spec = AuthorizationPolicySpec { target_refs, ..AuthorizationPolicySpec::default() };
                (problem.clone(), Some(make(spec, Some(problem))))
            })
        }
        Kind::MeshConfig => {
            let wrap = |config| Object::MeshConfig(Arc::new(config));
            let spec = spec(data)
                .map_err(|problem| (problem, Some(wrap(MeshConfig::in_doubt(metadata.clone(), status.clone())))))?;
            let config = MeshConfig { metadata: metadata.clone(), spec, status };
            check(config.check()).map_err(|problem| (problem, None)).map(|()| wrap(config))
        }
        Kind::MeshTlsMode => {
            let selector = serde_json::from_value(part("/spec/selector")).unwrap_or_default();
            let make = |spec| MeshTlsMode { metadata: metadata.clone(), spec, status: status.clone() };
            let wrap = |mode| Object::MeshTlsMode(Arc::new(mode));
            let spec = spec(data).map_err(|problem| {
                let spec = MeshTlsModeSpec { mode: Some(TlsMode::Strict), selector, ports: Vec::new() };
                (problem, Some(wrap(make(spec))))
            })?;
            // What is understood and only stands where it may not is left out.
            let mode = make(spec);
            check(mode.check()).map_err(|problem| (problem, None)).map(|()| wrap(mode))
        }
        Kind::EndpointSlice | Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service | Kind::ServiceAccount => {
            Err((format!("{kind} is not a kind of the mesh's own"), None))
        }
    }
}

#[cfg(feature = "cluster")]
fn spec<S: serde::de::DeserializeOwned>(data: serde_json::Value) -> Result<S, String> {
    #[derive(Deserialize)]
    struct Body<S> {
        spec: S,
    }
    let body: Result<Body<S>, _> = serde_path_to_error::deserialize(data);
    body.map(|body| body.spec).map_err(|error| format!("{}: {}", error.path(), error.inner()))
}

#[cfg(feature = "cluster")]
fn check(checked: Result<(), Invalid>) -> Result<(), String> {
    checked.map_err(|Invalid { field, problem }| format!("{field}: {problem}"))
}

fn ports(path: &str, ports: impl ExactSizeIterator<Item = u16>) -> Result<(), Invalid> {
    let (count, distinct) = (ports.len(), ports.collect::<BTreeSet<u16>>());
    let problem = match distinct.first() {
        None => "is empty",
        Some(0) => "0 is no port",
        Some(_) if distinct.len() < count => "names a port twice",
        Some(_) => return Ok(()),
    };
    Err(Invalid::new(path, problem))
}

#[cfg(test)]
mod tests;
