//! What is in the cluster, in the proportions of a busy one: nodes of twenty pods, Deployments of ten with a Service and
//! an account of their own, twenty of them to an enrolled namespace. Nothing runs: the bench writes what a kubelet and the
//! mesh's agent would have.

use std::{collections::HashSet, fmt::Debug, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use underpass_model::names::{CAPTURED_CONDITION, ENROLLED, MESH_LABEL, SYSTEM_NAMESPACE};

use super::Size;

/// Requests under way: the API server is not what is measured.
const AT_ONCE: usize = 32;
const REPLICAS: usize = 10;
/// Pods of a namespace.
const CROWD: usize = 20 * REPLICAS;
/// Both of a node proxy.
const PROXY: &str = "underpass-nodeproxy";
const AUDIENCE: &str = "underpass";
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// When everything happened.
const THEN: &str = "2026-01-01T00:00:00Z";

/// What has been made so far.
pub(super) struct Population {
    client: Client,
    size: Size,
    namespaces: HashSet<String>,
}

impl Population {
    /// The mesh's own namespace, and nobody yet.
    pub(super) async fn new(client: Client) -> Result<Self> {
        let this = Self { client, size: Size { nodes: 0, pods: 0 }, namespaces: HashSet::new() };
        this.all::<Namespace>([json!({ "metadata": { "name": SYSTEM_NAMESPACE } })]).await?;
        this.within::<ServiceAccount>([account(SYSTEM_NAMESPACE, PROXY)]).await?;
        Ok(this)
    }

    /// Adds what is missing for a size; who is there stays where it is.
    pub(super) async fn grow(&mut self, to: Size) -> Result<()> {
        let (from, nodes, pods) = (self.size, self.size.nodes..to.nodes, self.size.pods..to.pods);
        self.all::<Node>(nodes.clone().map(node_object)).await.context("nodes")?;
        let namespaces: Vec<String> =
            pods.clone().map(namespace).filter(|name| self.namespaces.insert(name.clone())).collect();
        self.all::<Namespace>(
            namespaces.iter().map(|name| json!({ "metadata": { "name": name, "labels": { MESH_LABEL: ENROLLED } } })),
        )
        .await
        .context("namespaces")?;
        let deployments = || (from.pods.div_ceil(REPLICAS)..to.pods.div_ceil(REPLICAS)).map(|number| number * REPLICAS);
        self.within::<ServiceAccount>(deployments().map(|first| account(&namespace(first), &app(first)))).await?;
        self.within::<Service>(deployments().map(service)).await.context("services")?;
        self.within::<EndpointSlice>(deployments().map(endpoints)).await.context("endpoint slices")?;
        // Later ones join the nodes that are there by then.
        let crowd = pods.map(|number| pod(number, &node(number % to.nodes), to.nodes));
        let proxies = nodes.map(|number| proxy(&node(number), number));
        self.running(proxies.chain(crowd)).await.context("pods")?;
        self.size = to;
        Ok(())
    }

    /// Writes the token of each node's proxy into a file called as the node.
    pub(super) async fn write_tokens(&self, nodes: usize, directory: &Path) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        stream::iter(0..nodes)
            .map(|number| {
                let (pods, accounts) = (pods.clone(), accounts.clone());
                async move {
                    let node = node(number);
                    let pod = pods.get(&format!("{PROXY}-{number}")).await?;
                    let request: TokenRequest = serde_json::from_value(json!({ "metadata": {}, "spec": {
                        "audiences": [AUDIENCE], "expirationSeconds": 86_400,
                        "boundObjectRef": {
                            "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
                        },
                    } }))?;
                    let answer = accounts.create_token_request(PROXY, &PostParams::default(), &request).await?;
                    let token = answer.status.context("no token")?.token;
                    tokio::fs::write(directory.join(node), token).await?;
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Says, as its kubelet would, whether a pod is ready; returns once the API server has accepted it.
    pub(super) async fn set_ready(&self, number: usize, is_ready: bool) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace(number));
        let status = if is_ready { "True" } else { "False" };
        let patch = Patch::Strategic(json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } }));
        api.patch_status(&name(number), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn all<K>(&self, objects: impl IntoIterator<Item = Value>) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        self.create(objects, |_object: &K| Api::all(self.client.clone())).await
    }

    async fn within<K>(&self, objects: impl IntoIterator<Item = Value>) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let api = |object: &K| {
            let namespace = object.meta().namespace.as_deref().unwrap_or_default();
            Api::namespaced(self.client.clone(), namespace)
        };
        self.create(objects, api).await
    }

    async fn create<K>(&self, objects: impl IntoIterator<Item = Value>, api: impl Fn(&K) -> Api<K>) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let api = &api;
        let one = |object: Value| async move {
            let object: K = serde_json::from_value(object)?;
            api(&object).create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        };
        stream::iter(objects).map(one).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Creates pods and says that they run: a status that comes with a new object is not kept.
    async fn running(&self, pods: impl Iterator<Item = Value>) -> Result<()> {
        let one = |object: Value| async move {
            let wanted: Pod = serde_json::from_value(object)?;
            let namespace = wanted.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let made = api.create(&PostParams::default(), &wanted).await?;
            let ObjectMeta { name, .. } = &made.metadata;
            let name = name.clone().unwrap_or_default();
            api.replace_status(&name, &PostParams::default(), &Pod { status: wanted.status, ..made }).await?;
            anyhow::Ok(())
        };
        stream::iter(pods).map(one).buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// The name of a node.
pub(super) fn node(number: usize) -> String {
    format!("node-{number}")
}

/// The name of a pod.
pub(super) fn name(number: usize) -> String {
    format!("{}-6d4cf56db6-{number:06}", app(number))
}

/// The namespace of a pod, and of its Service.
pub(super) fn namespace(number: usize) -> String {
    format!("team-{}", number / CROWD)
}

/// What discovery calls the Service of a pod.
pub(super) fn service_name(number: usize) -> String {
    let (namespace, app) = (namespace(number), app(number));
    format!("{namespace}/{app}.{namespace}.svc.cluster.local")
}

/// The Services of so many pods, each by its first one.
pub(super) fn services(pods: usize) -> impl Iterator<Item = usize> {
    (0..pods).step_by(REPLICAS)
}

/// The Service of a pod, by its first one.
pub(super) fn service_of(number: usize) -> usize {
    number - number % REPLICAS
}

fn app(number: usize) -> String {
    format!("app-{}", number / REPLICAS)
}

fn labels(number: usize) -> Value {
    let app = app(number);
    json!({ "app": app, "app.kubernetes.io/name": app, "version": "v1", "pod-template-hash": "6d4cf56db6" })
}

fn account(namespace: &str, name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": namespace } })
}

fn service(first: usize) -> Value {
    json!({
        "metadata": { "name": app(first), "namespace": namespace(first), "labels": labels(first) },
        "spec": {
            "selector": { "app": app(first) },
            "ports": [
                { "name": "http", "port": 80, "targetPort": "http" },
                { "name": "metrics", "port": 9090, "targetPort": 9090 },
            ],
        },
    })
}

/// What Kubernetes makes for a Service with a selector.
fn endpoints(first: usize) -> Value {
    let endpoint = |number: usize| {
        json!({
            "addresses": [pod_address(number)], "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": { "kind": "Pod", "name": name(number), "namespace": namespace(number) },
        })
    };
    json!({
        "metadata": {
            "name": format!("{}-x7x4k", app(first)), "namespace": namespace(first),
            "labels": {
                "kubernetes.io/service-name": app(first),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "endpoints": (first..first + REPLICAS).map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080 }, { "name": "metrics", "port": 9090 }],
    })
}

fn node_object(number: usize) -> Value {
    let zone = format!("zone-{}", number % 3);
    json!({
        "metadata": { "name": node(number), "labels": {
            "kubernetes.io/hostname": node(number),
            "topology.kubernetes.io/region": "region-1",
            "topology.kubernetes.io/zone": zone,
        } },
    })
}

#[expect(clippy::cast_possible_truncation, reason = "there are 2^23 addresses")]
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(PODS) + number as u32)
}

/// Behind those of the node proxies.
fn pod_address(number: usize) -> Ipv4Addr {
    address((1 << 20) + number)
}

fn pod(number: usize, node: &str, nodes: usize) -> Value {
    let variable = |index: usize| json!({ "name": format!("SETTING_{index}"), "value": "a value as settings have it" });
    let captured = json!({
        "type": CAPTURED_CONDITION, "status": "True", "reason": "Captured", "lastTransitionTime": THEN,
        "message": format!("its connections go through the node proxy; report 1 of the agent on {node}"),
    });
    json!({
        "metadata": {
            "name": name(number), "namespace": namespace(number), "labels": labels(number),
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "9090" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-6d4cf56db6", app(number)),
                "uid": format!("00000000-0000-4000-8000-{:012}", number / REPLICAS), "controller": true,
            }],
        },
        "spec": {
            "nodeName": node, "serviceAccountName": app(number),
            "containers": [{
                "name": "app", "image": format!("registry.example/team/{}:v1", app(number)),
                "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "metrics", "containerPort": 9090 }],
                "env": (0..10).map(variable).collect::<Vec<_>>(),
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
                "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" } },
            }],
        },
        "status": status("app", pod_address(number), number % nodes, &[captured]),
    })
}

/// A node's proxy, which is in no mesh itself.
fn proxy(node: &str, number: usize) -> Value {
    json!({
        "metadata": {
            "name": format!("{PROXY}-{number}"), "namespace": SYSTEM_NAMESPACE,
            "labels": { "app.kubernetes.io/name": PROXY },
        },
        "spec": {
            "nodeName": node, "serviceAccountName": PROXY,
            "containers": [{ "name": "proxy", "image": "registry.example/underpass-nodeproxy:v1" }],
        },
        "status": status("proxy", address(number), number, &[]),
    })
}

fn status(container: &str, address: Ipv4Addr, node: usize, more: &[Value]) -> Value {
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": THEN });
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "startTime": THEN, "qosClass": "Burstable",
        "hostIP": Ipv4Addr::new(10, 0, (node / 250) as u8, (node % 250) as u8),
        "conditions": kinds.map(condition).iter().chain(more).collect::<Vec<_>>(),
        "containerStatuses": [{
            "name": container, "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example/team/app:v1", "imageID": format!("registry.example/team/app@sha256:{:064}", 1),
            "containerID": format!("containerd://{:064}", 1), "state": { "running": { "startedAt": THEN } },
        }],
    })
}

#[cfg(test)]
mod tests {
    use underpass_objects::{CaptureState, report};

    use super::*;

    #[test]
    fn pods_are_captured_and_each_has_an_address_of_its_own() {
        let pods: Vec<Pod> = (0..300)
            .map(|number| serde_json::from_value(pod(number, &node(number % 7), 7)).unwrap())
            .chain((0..300).map(|number| serde_json::from_value(proxy(&node(number), number)).unwrap()))
            .collect();
        let captured = |pod: &&Pod| report::capture(pod).is_some_and(|report| report.state == CaptureState::Captured);
        // What is counted needs the pod's uid, which the API server gives.
        let known = pods
            .iter()
            .map(|pod| Pod { metadata: ObjectMeta { uid: Some("u".into()), ..pod.metadata.clone() }, ..pod.clone() });
        assert_eq!(known.collect::<Vec<_>>().iter().filter(captured).count(), 300);
        let addresses = pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone());
        assert_eq!(addresses.collect::<HashSet<_>>().len(), 600);
    }

    #[test]
    fn discovery_knows_services_by_the_name_that_is_asked_for() {
        let name = underpass_model::ServiceName::parse(&service_name(25)).unwrap();
        assert_eq!(name.to_string(), "team-0/app-2.team-0.svc.cluster.local");
    }
}
