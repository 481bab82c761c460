//! What a scenario runs: Deployments of the scenarios' own program, each with a Service.

use serde_json::{Value, json};

use crate::Cluster;

/// A container of the scenarios' program, called `app`, with these arguments; `more` are further fields of it.
#[must_use]
pub fn container(cluster: &Cluster, arguments: &[&str], more: &Value) -> Value {
    let own = json!({
        "name": "app",
        "image": format!("e2e.local/app:{}", cluster.tag()),
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
    });
    let fields = [&own, more].into_iter().filter_map(Value::as_object).flatten();
    fields.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A Deployment of the server that says who it is, and its Service on port 80.
#[derive(Clone, Debug)]
pub struct Workload {
    name: String,
    replicas: u16,
    node: Option<String>,
    label: String,
}

impl Workload {
    /// One pod, on any node.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), replicas: 1, node: None, label: name.to_owned() }
    }

    /// So many pods.
    #[must_use]
    pub fn replicas(mut self, replicas: u16) -> Self {
        self.replicas = replicas;
        self
    }

    /// Its pods run on this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Its pods have another workload's label `app`, so that Services take them for that one's.
    #[must_use]
    pub fn labelled(mut self, app: &str) -> Self {
        self.label = app.to_owned();
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The objects, as text.
    pub(crate) fn manifests(&self, tag: &str) -> String {
        let labels = json!({ "app": self.label, "workload": self.name });
        let node = self.node.as_ref().map(|node| json!({ "kubernetes.io/hostname": node }));
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": self.name } });
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": self.name },
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "serviceAccountName": self.name,
                        "nodeSelector": node,
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{
                            "name": "app",
                            "image": format!("e2e.local/app:{tag}"),
                            "imagePullPolicy": "IfNotPresent",
                            "args": ["serve", self.name, "8080"],
                            "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
                        }],
                    },
                },
            },
        });
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name },
            "spec": { "selector": { "app": self.label }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
        });
        [account, deployment, service].map(|object| format!("{object}\n")).join("---\n")
    }
}
