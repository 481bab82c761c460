//! Pods: a network namespace made by the node's CNI chain, and the manifest that tells the mesh of it.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    cni::{self, Sandbox},
    lab::Lab,
    netns,
    objects::{ObjectName, now, set_meta},
    place::{Place, PodName},
    process::end_all,
    topology::{Host, SETTINGS},
};

/// What to make a pod of.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: PodName,
    node: String,
    service_account: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    ports: Vec<(String, u16)>,
}

impl PodSpec {
    /// A pod on a node, with the label `app: NAME` and a service account called as itself.
    #[must_use]
    pub fn new(node: &str, namespace: &str, name: &str) -> Self {
        Self {
            name: PodName::new(namespace, name),
            node: node.to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
        }
    }

    /// Runs it as another service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Adds or replaces a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds or replaces an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Gives a port a name.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_owned(), port));
        self
    }

    fn manifest(&self) -> Value {
        let PodName { namespace, name } = &self.name;
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, port)| json!({ "name": name, "containerPort": port, "protocol": "TCP" }))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "labels": self.labels, "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.service_account,
                "containers": [{ "name": "main", "image": "lab", "ports": ports }],
            },
            "status": { "phase": "Pending" },
        })
    }
}

/// A pod as its manifest has it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: PodName,
    /// Kubernetes' uid.
    pub uid: String,
    /// The node it is on.
    pub node: String,
    /// The account it runs as.
    pub service_account: String,
    /// Its addresses: IPv4 first; none before it runs.
    pub addresses: Vec<IpAddr>,
    /// Whether it is ready for traffic.
    pub ready: bool,
}

impl Pod {
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let text = |path: &str| Some(object.pointer(path)?.as_str()?.to_owned());
        let list = |path: &str| object.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let ready =
            |one: &&Value| one.get("type") == Some(&json!("Ready")) && one.get("status") == Some(&json!("True"));
        Some(Self {
            name: PodName { namespace: text("/metadata/namespace")?, name: text("/metadata/name")? },
            uid: text("/metadata/uid")?,
            node: text("/spec/nodeName")?,
            service_account: text("/spec/serviceAccountName")?,
            addresses: list("/status/podIPs").iter().filter_map(|ip| ip.get("ip")?.as_str()?.parse().ok()).collect(),
            ready: list("/status/conditions").iter().any(|one| ready(&one)),
        })
    }

    /// Where to run programs in it.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::Pod(self.name.clone())
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// If it has none (yet).
    pub fn v4(&self) -> Result<IpAddr> {
        self.address(true)
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// If it has none (yet).
    pub fn v6(&self) -> Result<IpAddr> {
        self.address(false)
    }

    fn address(&self, v4: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().copied().find(|address| address.is_ipv4() == v4);
        found.with_context(|| format!("pod {} has no IPv{} address", self.name, if v4 { 4 } else { 6 }))
    }

    fn sandbox(&self, lab: &Lab) -> Sandbox {
        let netns = netns::handle(&lab.paths().namespace(&self.place()));
        Sandbox {
            container: self.uid.replace('-', ""),
            netns: netns.exists().then_some(netns),
            pod: self.name.clone(),
            uid: self.uid.clone(),
        }
    }
}

fn object_name(pod: &PodName) -> ObjectName {
    ObjectName::new("Pod", Some(&pod.namespace), &pod.name)
}

impl Lab {
    /// Creates a pod: manifest, network namespace, CNI ADD, then its status with addresses and readiness.
    ///
    /// # Errors
    /// If the CNI chain refuses, with what the plugin said; then nothing of the pod stays.
    pub fn pod_add(&self, spec: &PodSpec) -> Result<Pod> {
        let name = spec.name.clone().checked()?;
        self.options().check_node(&spec.node)?;
        ensure!(!self.has_pod(&name)?, "pod {name} exists already");
        self.need(&ObjectName::new("Namespace", None, &name.namespace))?;
        self.need(&ObjectName::new("ServiceAccount", Some(&name.namespace), &spec.service_account))?;
        self.manifests().write(&object_name(&name), spec.manifest())?;
        match self.start_sandbox(&name) {
            Ok(pod) => Ok(pod),
            Err(error) => {
                self.remove_pod(&name).ok();
                Err(error)
            }
        }
    }

    fn start_sandbox(&self, name: &PodName) -> Result<Pod> {
        let pod = self.pod(name)?;
        let namespace = self.paths().namespace(&pod.place());
        // The hosts file must be there before anything runs in the pod.
        self.refresh_names()?;
        netns::add(&namespace, &self.paths().hosts(Some(&name.namespace)))?;
        netns::set(&namespace, &SETTINGS)?;
        let result = self.chain(&pod.node).add(&pod.sandbox(self))?;
        let addresses = cni::addresses(&result)?;
        let host = self.host_of(&pod.node)?;
        self.manifests().change(&object_name(name), |object| {
            if let Some(object) = object.as_object_mut() {
                object.insert("status".to_owned(), status(&addresses, host, true));
            }
        })?;
        self.refresh_names()?;
        self.pod(name)
    }

    /// Takes a pod's network namespace away without a word to anybody, as a sandbox that crashes does.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn vanish(&self, pod: &Pod) -> Result<()> {
        netns::remove(&self.paths().namespace(&pod.place()))
    }

    /// Marks a pod as being deleted: the beginning of its grace, in which its programs run on.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn pod_terminate(&self, name: &PodName) -> Result<()> {
        self.pod(name)?;
        self.manifests().change(&object_name(name), |object| {
            if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
                metadata.insert("deletionTimestamp".to_owned(), now().into());
                metadata.insert("deletionGracePeriodSeconds".to_owned(), 30.into());
            }
        })?;
        self.refresh_names()
    }

    /// Deletes a pod as a cluster does: it is marked, its programs end, CNI DEL runs, then it is gone.
    ///
    /// # Errors
    /// If a step fails; the later ones are done all the same.
    pub fn pod_delete(&self, name: &PodName) -> Result<()> {
        self.pod_terminate(name)?;
        self.remove_pod(name)
    }

    fn remove_pod(&self, name: &PodName) -> Result<()> {
        let pod = self.pod(name)?;
        let namespace = self.paths().namespace(&pod.place());
        end_all(&netns::processes(&namespace)?);
        let detached = self.chain(&pod.node).delete(&pod.sandbox(self));
        let removed = netns::remove(&namespace);
        self.manifests().remove(&object_name(name))?;
        self.refresh_names()?;
        detached.and(removed)
    }

    /// Runs CNI CHECK for a pod.
    ///
    /// # Errors
    /// What the plugin found.
    pub fn pod_check(&self, name: &PodName) -> Result<()> {
        let pod = self.pod(name)?;
        self.chain(&pod.node).check(&pod.sandbox(self))
    }

    /// Sets whether a pod is ready for traffic.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn pod_ready(&self, name: &PodName, ready: bool) -> Result<()> {
        let pod = self.pod(name)?;
        let host = self.host_of(&pod.node)?;
        self.manifests().change(&object_name(name), |object| {
            if let Some(object) = object.as_object_mut() {
                object.insert("status".to_owned(), status(&pod.addresses, host, ready));
            }
        })?;
        self.refresh_names()
    }

    /// Sets a pod's label, or removes it with none.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn label_pod(&self, name: &PodName, key: &str, value: Option<&str>) -> Result<()> {
        self.manifests().change(&object_name(name), |object| set_meta(object, "labels", key, value))?;
        self.refresh_names()
    }

    /// Sets a namespace's label, or removes it with none.
    ///
    /// # Errors
    /// If the manifest cannot be written.
    pub fn label_namespace(&self, namespace: &str, key: &str, value: Option<&str>) -> Result<()> {
        let name = ObjectName::new("Namespace", None, namespace);
        self.need(&name)?;
        self.manifests().change(&name, |object| set_meta(object, "labels", key, value))
    }

    /// Sets a pod's annotation, or removes it with none.
    ///
    /// # Errors
    /// If the manifest cannot be written.
    pub fn annotate_pod(&self, name: &PodName, key: &str, value: Option<&str>) -> Result<()> {
        self.manifests().change(&object_name(name), |object| set_meta(object, "annotations", key, value))
    }

    /// The names of all namespaces.
    ///
    /// # Errors
    /// If a manifest cannot be read.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        let name = |object: &Value| Some(object.pointer("/metadata/name")?.as_str()?.to_owned());
        Ok(self.manifests().all("Namespace")?.iter().filter_map(name).collect())
    }

    /// A pod by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod(&self, name: &PodName) -> Result<Pod> {
        let object = self.manifests().get(&object_name(&name.clone().checked()?))?;
        Pod::of(&object).with_context(|| format!("the manifest of pod {name} lacks a field"))
    }

    pub(crate) fn has_pod(&self, name: &PodName) -> Result<bool> {
        Ok(self.manifests().find(&object_name(name))?.is_some())
    }

    /// All pods, those of the mesh itself included.
    ///
    /// # Errors
    /// If a manifest cannot be read.
    pub fn pods(&self) -> Result<Vec<Pod>> {
        Ok(self.manifests().all("Pod")?.iter().filter_map(Pod::of).collect())
    }

    /// Writes a bare manifest if there is none.
    fn need(&self, name: &ObjectName) -> Result<()> {
        if self.manifests().find(name)?.is_some() {
            return Ok(());
        }
        let metadata = match &name.namespace {
            Some(namespace) => json!({ "name": name.name, "namespace": namespace }),
            None => json!({ "name": name.name }),
        };
        self.manifests().write(name, json!({ "apiVersion": "v1", "kind": name.kind, "metadata": metadata }))
    }

    fn host_of(&self, node: &str) -> Result<Host> {
        let index = self.options().node_names().iter().position(|name| name == node).context("no such node")?;
        Ok(Host::node(index))
    }
}

fn status(addresses: &[IpAddr], host: Host, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    let since = now();
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "lastTransitionTime": since });
    json!({
        "phase": "Running",
        "hostIP": host.v4(),
        "hostIPs": [{ "ip": host.v4() }, { "ip": host.v6() }],
        "podIP": addresses.first(),
        "podIPs": addresses.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>(),
        "startTime": since,
        "conditions": [
            condition("PodScheduled", "True"),
            condition("Initialized", "True"),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
    })
}
