//! The pods that a new lab has, so that there is something to try: unmodified programs, a client on one node and
//! servers on the other.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use underpass_lab::{Lab, Place, PodName, PodSpec, Probe, eventually};

/// The namespace of the sample.
pub(crate) const NAMESPACE: &str = "demo";
/// What the web server serves: a text that is easy to find on the wire.
pub(crate) const PAGE: &str = "the page that everyone on the wire can read, unless it is encrypted";
const READY: Duration = Duration::from_secs(15);

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: demo}
spec:
  clusterIP: 10.96.0.11
  clusterIPs: [10.96.0.11]
  selector: {app: redis}
  ports: [{name: redis, port: 6379}]
";

pub(crate) fn client() -> Place {
    Place::pod(NAMESPACE, "client")
}

pub(crate) fn pod(name: &str) -> PodName {
    PodName::new(NAMESPACE, name)
}

/// Adds the sample's pods and services and waits until the servers serve.
pub(crate) fn start(lab: &Lab) -> Result<()> {
    lab.apply(SERVICES)?;
    let nodes = lab.options().node_names();
    let (first, last) = nodes.first().zip(nodes.last()).context("a lab has a node")?;
    lab.pod_add(&PodSpec::new(first, NAMESPACE, "client"))?;
    lab.pod_add(&PodSpec::new(last, NAMESPACE, "web").port("http", 8080))?;
    lab.pod_add(&PodSpec::new(last, NAMESPACE, "redis").port("redis", 6379))?;

    let directory = lab.paths().root().join("www");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("index.html"), format!("{PAGE}\n"))?;
    let directory = directory.display().to_string();
    let web = ["python3", "-m", "http.server", "8080", "--bind", "::", "--directory", &directory];
    lab.spawn(&pod("web"), "http", &web)?;
    let redis = [
        "redis-server",
        "--bind",
        "*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        &directory,
    ];
    lab.spawn(&pod("redis"), "redis", &redis)?;
    listening(lab, "web", 8080)?;
    listening(lab, "redis", 6379)
}

fn listening(lab: &Lab, name: &str, port: u16) -> Result<()> {
    let pod = lab.pod(&pod(name))?;
    let address = (pod.v4()?, port).into();
    eventually(READY, &format!("{name} to listen (its log: underpass lab logs {NAMESPACE}.{name}.*)"), || {
        let answer = lab.probe(&pod.node, &Probe::TcpSocket { address })?;
        ensure!(answer.success, "{}", answer.detail);
        Ok(())
    })
}
