//! The mesh's own objects, which are part of this program: those of `deploy/manifests`.

use anyhow::{Context as _, Result, anyhow};
use kube::api::DynamicObject;
use serde_json::{Value, json};
use underpass_objects::manifest;

const DEFAULT: &str = include_str!("../../deploy/manifests/underpass.yaml");
const HA: &str = include_str!("../../deploy/manifests/underpass-ha.yaml");
/// Where the manifests have their images from, and of which release.
const REGISTRY: &str = "underpass.dev";
const TAG: &str = env!("CARGO_PKG_VERSION");

/// Which variant of them.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Choice {
    /// For production: three operators, spread over zones, and patient drains
    #[arg(long)]
    pub(crate) ha: bool,
    /// Where the images agent, nodeproxy and operator are
    #[arg(long, default_value = REGISTRY, value_name = "REGISTRY")]
    pub(crate) registry: String,
    /// Their tag
    #[arg(long, default_value = TAG, value_name = "TAG")]
    pub(crate) tag: String,
}

impl Choice {
    /// The manifests as text.
    pub(crate) fn text(&self) -> String {
        let text = if self.ha { HA } else { DEFAULT };
        ["agent", "nodeproxy", "operator"].into_iter().fold(text.to_owned(), |text, part| {
            let from = format!("image: \"{REGISTRY}/{part}:{TAG}\"");
            text.replace(&from, &format!("image: {}", json!(format!("{}/{part}:{}", self.registry, self.tag))))
        })
    }

    /// The objects, in the order in which they are made.
    pub(crate) fn objects(&self) -> Result<Vec<DynamicObject>> {
        let values =
            manifest::values(&self.text()).map_err(|error| anyhow!("the manifests of this program: {error}"))?;
        values.into_iter().map(object).collect()
    }
}

pub(crate) fn object(value: Value) -> Result<DynamicObject> {
    serde_json::from_value(value).context("an object of the manifests")
}

/// Whether an object is of that kind.
pub(crate) fn is(object: &DynamicObject, kind: &str) -> bool {
    object.types.as_ref().is_some_and(|types| types.kind == kind)
}

/// Whether an object runs pods, so that there is something to wait for.
pub(crate) fn is_workload(object: &DynamicObject) -> bool {
    is(object, "DaemonSet") || is(object, "Deployment")
}

/// The DaemonSet that cleans every node, made of the agents': the same place, rights and files, another verb.
pub(crate) fn cleaners(agents: &DynamicObject) -> Result<DynamicObject> {
    const NAME: &str = "underpass-cleanup";
    let labels = json!({ "app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "underpass" });
    let part = |path: &str| agents.data.pointer(path).and_then(Value::as_object).cloned();
    let mut pod = part("/spec/template/spec").context("the agents have no pods")?;
    let mut container = part("/spec/template/spec/containers/0").context("the agents' pods have no container")?;
    let flags = container.get("args").and_then(Value::as_array).cloned().unwrap_or_default();
    let is_place = |flag: &Value| flag.as_str().is_some_and(|flag| flag.starts_with("--cni-"));
    let places: Vec<Value> = flags.into_iter().filter(is_place).collect();
    container.retain(|key, _| !["livenessProbe", "readinessProbe", "ports"].contains(&key.as_str()));
    let with = |name: &str, verb: &[&str]| {
        let mut container = container.clone();
        container.insert("name".into(), name.into());
        container.insert("args".into(), verb.iter().copied().map(Value::from).chain(places.clone()).collect());
        json!([container])
    };
    // The second starts once the first has done its work: a pod that runs says that its node is clean.
    pod.insert("initContainers".into(), with("cleanup", &["uninstall"]));
    pod.insert("containers".into(), with("stay", &["uninstall", "--stay"]));
    // Neither needs the API server, nor has rights there any more.
    pod.insert("automountServiceAccountToken".into(), false.into());
    pod.retain(|key, _| !["serviceAccountName", "serviceAccount"].contains(&key.as_str()));
    object(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": NAME, "namespace": agents.metadata.namespace },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "100%" } },
        },
    }))
}

/// How many pods of a workload there shall be, and how many of them are there, new and ready.
pub(crate) fn progress(workload: &DynamicObject) -> Option<(u64, u64)> {
    let generation = workload.metadata.generation?;
    let status = workload.data.get("status")?;
    if status.get("observedGeneration")?.as_i64()? < generation {
        return None;
    }
    let number = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or(0);
    if is(workload, "DaemonSet") {
        let wanted = status.get("desiredNumberScheduled")?.as_u64()?;
        return Some((wanted, number("numberReady").min(number("updatedNumberScheduled"))));
    }
    let wanted = workload.data.pointer("/spec/replicas")?.as_u64()?;
    Some((wanted, number("availableReplicas").min(number("updatedReplicas"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_read_and_their_images_can_be_elsewhere() {
        for ha in [false, true] {
            let choice = Choice { ha, registry: "registry.example:5000/mesh".into(), tag: "1.2.3".into() };
            let objects = choice.objects().unwrap();
            let count = |kind: &str| objects.iter().filter(|object| is(object, kind)).count();
            assert_eq!([count("Namespace"), count("DaemonSet"), count("Deployment")], [1, 2, 1], "{ha}");
            let text = choice.text();
            assert_eq!(text.matches("registry.example:5000/mesh/").count(), 3);
            assert!(!text.contains("underpass.dev/agent:"));
        }
    }

    #[test]
    fn cleaners_run_where_the_agents_ran_with_another_verb() {
        let choice = Choice { registry: REGISTRY.into(), tag: TAG.into(), ..Choice::default() };
        let objects = choice.objects().unwrap();
        let named = |object: &&DynamicObject| object.metadata.name.as_deref() == Some("underpass-agent");
        let agents = objects.iter().filter(named).find(|object| is(object, "DaemonSet")).unwrap();
        let cleaners = cleaners(agents).unwrap();
        let pod = &cleaners.data["spec"]["template"]["spec"];
        assert_eq!(pod["initContainers"][0]["args"], json!(["uninstall"]));
        assert_eq!(pod["containers"][0]["args"], json!(["uninstall", "--stay"]));
        assert_eq!(pod["hostPID"], json!(true));
        assert_eq!(pod["volumes"], agents.data["spec"]["template"]["spec"]["volumes"]);
        assert_eq!(pod.get("serviceAccountName"), None);
        assert_ne!(cleaners.data["spec"]["selector"], agents.data["spec"]["selector"]);
    }

    #[test]
    fn a_workload_is_there_once_its_newest_pods_are() {
        let workload = |kind: &str, seen: i64, status: Value| {
            let mut status = status;
            status["observedGeneration"] = json!(seen);
            object(json!({
                "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": "a", "generation": 2 },
                "spec": { "replicas": 3 }, "status": status,
            }))
            .unwrap()
        };
        let nodes = json!({ "desiredNumberScheduled": 4, "numberReady": 4, "updatedNumberScheduled": 1 });
        assert_eq!(progress(&workload("DaemonSet", 2, nodes.clone())), Some((4, 1)));
        assert_eq!(progress(&workload("DaemonSet", 1, nodes)), None);
        let replicas = json!({ "availableReplicas": 2, "updatedReplicas": 3 });
        assert_eq!(progress(&workload("Deployment", 2, replicas)), Some((3, 2)));
        assert_eq!(progress(&workload("Deployment", 2, json!({}))), Some((3, 0)));
    }
}
