//! What scenarios share: a lab with pods in it, servers that behave oddly, and callers of them.
//!
//! Scenarios that only call use one lab together, [`world`]; those that break something make their own, [`alone`].

pub mod churn;
pub mod crowd;
pub mod envoy;
pub mod neighbours;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use underpass_lab::{Lab, Options, Place, Pod, PodSpec, Process, ScopedLab, eventually};
use underpass_model::names::{ENROLLED, MESH_LABEL};

const SERVER: &str = include_str!("../programs/server.py");
const CLIENT: &str = include_str!("../programs/client.py");

/// Long enough for anything that is not load.
pub const SHORT: Duration = Duration::from_secs(60);
/// Long enough for large transfers on a busy machine.
pub const LONG: Duration = Duration::from_secs(240);

/// The namespace whose pods are enrolled.
pub const MESH: &str = "mesh";
/// The namespace whose pods are not.
pub const PLAIN: &str = "plain";

/// A lab with pods of both kinds on both nodes.
#[derive(Debug)]
pub struct World {
    /// The lab.
    pub lab: ScopedLab,
    /// Captured, on `node-a`; runs servers as well, to call itself.
    pub client: Pod,
    /// Captured, a server on `node-a`.
    pub near: Pod,
    /// Captured, a server on `node-b`.
    pub far: Pod,
    /// Not captured, on `node-a`; runs servers as well.
    pub plain_client: Pod,
    /// Not captured, a server on `node-b`.
    pub plain_far: Pod,
}

/// The lab that harmless scenarios share while any of them runs.
///
/// # Panics
/// If it does not come up.
#[must_use]
#[expect(clippy::panic, reason = "this is called by tests alone, for which an error and a panic are the same")]
pub fn world() -> Arc<World> {
    static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(world) = shared.upgrade() {
        return world;
    }
    let world = Arc::new(World::make().unwrap_or_else(|error| panic!("{error:?}")));
    *shared = Arc::downgrade(&world);
    world
}

/// A lab of a scenario's own.
///
/// # Errors
/// If it does not come up.
pub fn alone() -> Result<ScopedLab> {
    alone_with(|_| ())
}

/// [`alone`], with options of its own.
///
/// # Errors
/// If it does not come up.
pub fn alone_with(choose: impl FnOnce(&mut Options)) -> Result<ScopedLab> {
    // Whatever scenarios show, it is shown with the rights that the programs have in a cluster.
    let lab = ScopedLab::up(|options| {
        options.confined = true;
        choose(options);
    })?;
    lab.label_namespace(MESH, MESH_LABEL, Some(ENROLLED))?;
    lab.label_namespace(PLAIN, "kind", Some("plain"))?;
    Ok(lab)
}

impl World {
    fn make() -> Result<Self> {
        let lab = alone()?;
        lab.apply(SERVICES)?;
        let world = Self {
            client: server(&lab, &PodSpec::new("node-a", MESH, "client"))?,
            near: server(&lab, &PodSpec::new("node-a", MESH, "near").label("role", "server").port("web", 8080))?,
            far: server(&lab, &PodSpec::new("node-b", MESH, "far").label("role", "server").port("web", 8080))?,
            plain_client: server(&lab, &PodSpec::new("node-a", PLAIN, "client"))?,
            plain_far: server(&lab, &PodSpec::new("node-b", PLAIN, "far").label("role", "server").port("web", 8080))?,
            lab,
        };
        for destination in [&world.near, &world.far] {
            wait_authenticated(&world.lab, &world.client, destination)?;
        }
        Ok(world)
    }

    /// A port of a pod's IPv4 address, as text.
    ///
    /// # Errors
    /// If the pod has no address.
    pub fn at(pod: &Pod, port: u16) -> Result<String> {
        Ok(format!("{}:{port}", pod.v4()?))
    }
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: servers, namespace: mesh}
spec:
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, 'fd96::20']
  selector: {role: server}
  ports: [{name: web, port: 80, targetPort: web}, {name: echo, port: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: mesh}
spec:
  clusterIP: None
  selector: {role: server}
  ports: [{name: web, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: outsiders, namespace: plain}
spec:
  clusterIP: 10.96.0.21
  clusterIPs: [10.96.0.21]
  selector: {role: server}
  ports: [{name: web, port: 80, targetPort: web}]
";

/// Adds a pod and starts the odd servers in it; returns when they serve.
///
/// # Errors
/// If the pod or the servers do not start.
pub fn server(lab: &Lab, spec: &PodSpec) -> Result<Pod> {
    let pod = lab.pod_add(spec)?;
    serve(lab, &pod)?;
    Ok(pod)
}

/// Starts the odd servers in a pod; returns when they serve.
///
/// # Errors
/// If they do not start.
pub fn serve(lab: &Lab, pod: &Pod) -> Result<()> {
    serve_by(lab, pod, &["python3", "-c"])
}

fn serve_by(lab: &Lab, pod: &Pod, interpreter: &[&str]) -> Result<()> {
    let process = lab.spawn(pod.place(), "servers", &[interpreter, &[SERVER, &pod.name.name]].concat())?;
    process.wait_for_output("serving", SHORT)
}

/// Runs a caller of the odd servers and returns what it saw.
///
/// # Errors
/// If it failed.
pub fn call(lab: &Lab, from: impl Into<Place>, what: &str, to: (&str, u16)) -> Result<String> {
    call_with(lab, from, what, to, "")
}

/// [`call`] with an argument.
///
/// # Errors
/// If it failed.
pub fn call_with(lab: &Lab, from: impl Into<Place>, what: &str, to: (&str, u16), argument: &str) -> Result<String> {
    let port = to.1.to_string();
    let output = lab.run(from, &["python3", "-c", CLIENT, what, to.0, &port, argument], LONG)?;
    Ok(output.ok().with_context(|| format!("{what} {} {}", to.0, to.1))?.trim_end().to_owned())
}

/// Starts a caller of the odd servers in the background.
///
/// # Errors
/// If it does not start.
pub fn begin(lab: &Lab, from: impl Into<Place>, name: &str, what: &str, to: (&str, u16)) -> Result<Process> {
    lab.spawn(from, name, &["python3", "-c", CLIENT, what, to.0, &to.1.to_string()])
}

/// Starts Redis in a pod; returns when it serves.
///
/// # Errors
/// If it does not start.
pub fn redis(lab: &Lab, pod: &Pod) -> Result<Process> {
    let addresses = ["--bind", "*", "-::*", "--protected-mode", "no"];
    let files = ["--save", "", "--appendonly", "no", "--dir", "/tmp"];
    let process = lab.spawn(pod.place(), "redis", &[&["redis-server"], &addresses[..], &files].concat())?;
    process.wait_for_output("eady to accept", SHORT)?;
    Ok(process)
}

/// Gets a page with `curl`.
///
/// # Errors
/// If that fails.
pub fn get(lab: &Lab, from: impl Into<Place>, url: &str) -> Result<String> {
    let output = lab.run(from, &["curl", "-sS", "--fail", "--max-time", "30", url], SHORT)?;
    Ok(output.ok().with_context(|| format!("getting {url}"))?.trim_end().to_owned())
}

/// Waits until calls between two captured pods are authenticated: the mesh has heard of both.
///
/// # Errors
/// After the deadline.
pub fn wait_authenticated(lab: &Lab, client: &Pod, server: &Pod) -> Result<()> {
    let url = format!("http://{}:8080/", server.v4()?);
    eventually(SHORT, &format!("{} to be authenticated at {}", client.name, server.name), || {
        get(lab, client.place(), &url)?;
        let known = inbound(lab, server, client)?.last().cloned().context("no access line")?;
        let identity = known.get("src.identity").and_then(Value::as_str);
        if identity != Some(&*identity_of(client)) {
            // Whoever reads this has no other trace of what the caller's proxy made of it.
            let lines = lab.access_log(&client.node)?;
            let sent = lines.iter().rfind(|line| said(line, "direction") == "outbound");
            bail!("the last one came as {identity:?}: {known}; the caller's proxy said last: {sent:?}");
        }
        Ok(())
    })
}

/// The lines of the access log on connections that came into one pod from another's address.
///
/// # Errors
/// If the log cannot be read.
pub fn inbound(lab: &Lab, server: &Pod, client: &Pod) -> Result<Vec<Value>> {
    inbound_from(lab, server, &client.addresses)
}

/// The lines of the access log on connections that came into a pod from any of these addresses.
///
/// # Errors
/// If the log cannot be read.
pub fn inbound_from(lab: &Lab, server: &Pod, from: &[IpAddr]) -> Result<Vec<Value>> {
    let address = |line: &Value, key: &str| said(line, key).parse::<SocketAddr>().ok().map(|at| at.ip().to_canonical());
    let ours = |line: &Value| {
        said(line, "direction") == "inbound"
            && address(line, "src.addr").is_some_and(|ip| from.contains(&ip))
            && address(line, "dst.addr").is_some_and(|ip| server.addresses.contains(&ip))
    };
    Ok(lab.access_log(&server.node)?.into_iter().filter(ours).collect())
}

/// What a line of the access log says of something; empty if nothing.
#[must_use]
pub fn said<'a>(line: &'a Value, key: &str) -> &'a str {
    line.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The identity that a pod has in the lab's mesh.
#[must_use]
pub fn identity_of(pod: &Pod) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{}", pod.name.namespace, pod.service_account)
}
