//! The programs of the mesh in a lab: where each runs, with which flags, and how to end and start it.

use std::{
    fs,
    io::Read,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use underpass_model::names::{METRICS_PORT, OPERATOR_PORT, READY_PORT, SYSTEM_NAMESPACE};

use crate::{
    http, lab::Lab, netns, place::Place, pod::Pod, preflight::PROBER, process::Process, topology::CONTROL,
    wait::eventually,
};

/// How long a program of the mesh may take until it serves.
const START: Duration = Duration::from_secs(60);

/// What an agent needs: programming namespaces (rules and routes; entering them) and looking at other processes (the
/// kubelet's sockets, the container runtime's files).
pub const AGENT_CAPABILITIES: [&str; 3] = ["net_admin", "sys_admin", "sys_ptrace"];
/// What a node proxy needs: entering namespaces, marks and foreign source addresses on its sockets.
pub const NODE_PROXY_CAPABILITIES: [&str; 2] = ["net_admin", "sys_admin"];

/// A program of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// The node agent of a node.
    Agent(String),
    /// The node proxy of a node.
    NodeProxy(String),
    /// The operator.
    Operator,
}

impl Program {
    /// The agent of a node.
    #[must_use]
    pub fn agent(node: &str) -> Self {
        Self::Agent(node.to_owned())
    }

    /// The node proxy of a node.
    #[must_use]
    pub fn node_proxy(node: &str) -> Self {
        Self::NodeProxy(node.to_owned())
    }

    /// Under which name the lab remembers its process.
    #[must_use]
    pub fn process_name(&self) -> String {
        match self {
            Self::Agent(node) => format!("{node}.agent"),
            Self::NodeProxy(node) => format!("{node}.nodeproxy"),
            Self::Operator => "operator".to_owned(),
        }
    }
}

impl Lab {
    /// The part of a conflist that is ours.
    pub(crate) fn plugin_config(&self, node: &str) -> Value {
        let directory = self.paths().node(node);
        json!({
            "type": "underpass-cni",
            "agentSocket": directory.join("plugin.sock"),
            "enrolledNamespaces": directory.join("enrolled-namespaces"),
            "logFile": self.paths().logs().join(format!("{node}.cni.log")),
        })
    }

    pub(crate) fn start_mesh(&self, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let nodes = self.options().node_names();
        fs::create_dir(self.paths().tokens())?;
        for node in &nodes {
            self.write_token(node)?;
        }
        tell("starting the operator and the node agents");
        self.spawn_program(&Program::Operator)?;
        for node in &nodes {
            self.spawn_program(&Program::agent(node))?;
        }
        self.wait_program(&Program::Operator)?;
        for node in &nodes {
            self.wait_program(&Program::agent(node))?;
        }
        tell("starting a node proxy on each node, in a pod of its own");
        for node in &nodes {
            self.add_proxy_pod(node)?;
            self.spawn_program(&Program::node_proxy(node))?;
        }
        nodes.iter().try_for_each(|node| self.wait_program(&Program::node_proxy(node)))
    }

    fn write_token(&self, node: &str) -> Result<()> {
        let mut bytes = [0_u8; 32];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = self.paths().tokens().join(node);
        fs::write(&file, token)?;
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(())
    }

    pub(crate) fn start_probers(&self) -> Result<()> {
        for node in self.options().node_names() {
            let directory = self.paths().node(&node);
            let binary = self.options().binaries.join(PROBER);
            let socket = directory.join("prober.sock");
            let argv = [&*binary.to_string_lossy(), &*socket.to_string_lossy()].map(ToOwned::to_owned);
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let process = self.spawn(Place::node(&node), "prober", &argv)?;
            fs::write(directory.join("prober.pid"), process.pid.to_string())?;
        }
        Ok(())
    }

    /// Starts a program of the mesh and waits until it serves.
    ///
    /// # Errors
    /// If it does not, with the end of its log.
    pub fn start_program(&self, program: &Program) -> Result<Process> {
        self.spawn_program(program)?;
        self.wait_program(program)?;
        self.program(program)
    }

    /// Starts a program of the mesh again by the name that its process has; one that runs is ended first.
    ///
    /// # Errors
    /// If no such program was started, or it is a node's proxy that runs, whose connections would be cut, or it does not
    /// serve; with the end of its log.
    pub fn restart(&self, name: &str) -> Result<Process> {
        let nodes = self.options().node_names();
        let of_node = |node: &String| [Program::agent(node), Program::node_proxy(node)];
        let mut all: Vec<Program> = nodes.iter().flat_map(of_node).collect();
        all.push(Program::Operator);
        all.retain(|program| self.program(program).is_ok());
        let Some(program) = all.iter().find(|program| program.process_name() == name) else {
            let known: Vec<String> = all.iter().map(Program::process_name).collect();
            bail!("no program of the mesh is called {name}: there are {}", known.join(", "));
        };
        let process = self.program(program)?;
        if let (Program::NodeProxy(node), true) = (program, process.is_alive()) {
            bail!("{name} runs: `underpass lab upgrade {node}` starts the next one and cuts no connection");
        }
        process.stop()?;
        self.start_program(program)
    }

    /// The process of a program of the mesh.
    ///
    /// # Errors
    /// If it was never started.
    pub fn program(&self, program: &Program) -> Result<Process> {
        self.process(&program.process_name())
    }

    /// Asks a program of the mesh to end, and waits.
    ///
    /// # Errors
    /// If it does not go.
    pub fn stop_program(&self, program: &Program) -> Result<()> {
        self.program(program)?.stop()
    }

    /// Ends a program of the mesh without a word to it.
    ///
    /// # Errors
    /// If it does not go.
    pub fn kill_program(&self, program: &Program) -> Result<()> {
        self.program(program)?.kill()
    }

    /// Starts a program of the mesh without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_program(&self, program: &Program) -> Result<Process> {
        let (place, argv) = match program {
            Program::Agent(node) => (Place::node(node), self.agent_command(node)),
            Program::NodeProxy(node) => (Place::Pod(self.proxy_pod_name(node)), self.proxy_command(node)),
            Program::Operator => (Place::Control, self.operator_command()),
        };
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.start(&program.process_name(), self.exec(place, &argv))
    }

    pub(crate) fn wait_program(&self, program: &Program) -> Result<()> {
        let process = self.program(program)?;
        let what = format!("{} to serve", program.process_name());
        eventually(START, &what, || {
            let ready = self.is_ready(program);
            if ready.is_err() && !process.is_alive() {
                // No use in waiting any longer; the log is shown by whoever asked.
                return Ok(Err(format!("{} ended:\n{}", process.name, process.output())));
            }
            ready.map(Ok)
        })?
        .or_else(|ended| bail!(ended))
    }

    fn is_ready(&self, program: &Program) -> Result<()> {
        match program {
            Program::Agent(node) => {
                let socket = self.paths().node(node).join("plugin.sock");
                std::os::unix::net::UnixStream::connect(&socket).context("connecting to the plugin's socket")?;
                Ok(())
            }
            Program::NodeProxy(node) => self.is_proxy_ready(&self.proxy_pod(node)?),
            Program::Operator => {
                fs::metadata(self.paths().operator_root()).context("looking for the operator's root certificate")?;
                let address = SocketAddr::new(CONTROL.v4().parse::<IpAddr>()?, OPERATOR_PORT);
                netns::inside(&self.paths().namespace(&Place::Control), || {
                    std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
                    Ok(())
                })
            }
        }
    }

    /// Whether the node proxy in a pod says that it serves.
    pub(crate) fn is_proxy_ready(&self, pod: &Pod) -> Result<()> {
        let address = SocketAddr::new(pod.v4()?, READY_PORT);
        http::get(&self.paths().namespace(&Place::node(&pod.node)), address, "/healthz/ready").map(drop)
    }

    /// The nodes whose agent was started and has ended: nothing there follows what is written.
    #[must_use]
    pub fn nodes_without_agent(&self) -> Vec<String> {
        let has_ended = |node: &String| self.program(&Program::agent(node)).is_ok_and(|agent| !agent.is_alive());
        self.options().node_names().into_iter().filter(has_ended).collect()
    }

    /// The file in which a node's proxy keeps its copy of the mesh.
    #[must_use]
    pub fn kept_view(&self, node: &str) -> PathBuf {
        self.paths().node(node).join("view")
    }

    /// The pod that a node's proxy runs in.
    ///
    /// # Errors
    /// If the lab is without the mesh.
    pub fn proxy_pod(&self, node: &str) -> Result<Pod> {
        self.pod(&self.proxy_pod_name(node))
    }

    /// What a node's proxy counts, in Prometheus' text format.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metrics(&self, node: &str) -> Result<String> {
        self.options().check_node(node)?;
        let address = SocketAddr::new(self.proxy_pod(node)?.v4()?, METRICS_PORT);
        http::get(&self.paths().namespace(&Place::node(node)), address, "/metrics")
    }

    /// A page of a node proxy's administration interface, which listens on its loopback only.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn proxy_admin(&self, node: &str, path: &str) -> Result<String> {
        self.admin_page(&self.proxy_pod_name(node), path)
    }

    /// The lines of a node's access log so far, those of every run of its proxy, one object for each connection that ended.
    ///
    /// # Errors
    /// If the lab is without the mesh.
    pub fn access_log(&self, node: &str) -> Result<Vec<Value>> {
        let output = self.program(&Program::node_proxy(node))?.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|line| line.get("target").and_then(Value::as_str) == Some("access")).collect())
    }

    /// What the node agents report of a pod's capture: none if nothing, else `captured` or `leaving`.
    #[must_use]
    pub fn capture_state(&self, pod: &Pod) -> Option<String> {
        let file = self.paths().status().join("capture").join(format!("{}.json", pod.uid));
        let report: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        Some(report.get("state")?.as_str()?.to_ascii_lowercase())
    }

    /// Waits until a pod is captured, or is not.
    ///
    /// # Errors
    /// After the deadline.
    pub fn wait_captured(&self, pod: &Pod, captured: bool, deadline: Duration) -> Result<()> {
        let what = format!("pod {} to be {}", pod.name, if captured { "captured" } else { "released" });
        let wanted = captured.then(|| "captured".to_owned());
        eventually(deadline, &what, || {
            let state = self.capture_state(pod);
            if state == wanted { Ok(()) } else { bail!("its state is {state:?}") }
        })
    }

    fn operator_command(&self) -> Vec<String> {
        let paths = self.paths();
        let mut argv = self.command_of("underpass-operator");
        argv.extend([
            format!("--objects={}", paths.objects().display()),
            format!("--status={}", paths.status().display()),
            format!("--state={}", paths.operator().display()),
            format!("--node-tokens={}", paths.tokens().display()),
            format!("--listen={}:{OPERATOR_PORT}", CONTROL.v4()),
            format!("--trust-domain={}", self.options().trust_domain),
        ]);
        argv.extend(self.options().operator_flags.iter().cloned());
        argv
    }

    fn agent_command(&self, node: &str) -> Vec<String> {
        let paths = self.paths();
        let directory = paths.node(node);
        let mut argv = self.confined(&AGENT_CAPABILITIES);
        argv.extend(self.command_of("underpass-agent"));
        argv.extend([
            format!("--node-name={node}"),
            format!("--objects={}", paths.objects().display()),
            format!("--status={}", paths.status().display()),
            format!("--plugin-socket={}", directory.join("plugin.sock").display()),
            format!("--zds-socket={}", directory.join("zds.sock").display()),
            format!("--node-socket={}", directory.join("node.sock").display()),
            format!("--state={}", directory.join("agent").display()),
            format!("--enrolled-namespaces={}", directory.join("enrolled-namespaces").display()),
            format!("--kubelet-pid-file={}", directory.join("prober.pid").display()),
        ]);
        argv
    }

    fn proxy_command(&self, node: &str) -> Vec<String> {
        let paths = self.paths();
        let directory = paths.node(node);
        let mut argv = self.confined(&NODE_PROXY_CAPABILITIES);
        argv.extend(self.command_of("underpass-nodeproxy"));
        argv.extend([
            format!("--node-name={node}"),
            format!("--operator-address=https://{}:{OPERATOR_PORT}", CONTROL.v4()),
            format!("--operator-root={}", paths.operator_root().display()),
            format!("--operator-name=underpass-operator.{SYSTEM_NAMESPACE}.svc"),
            format!("--token-file={}", paths.tokens().join(node).display()),
            format!("--zds-socket={}", directory.join("zds.sock").display()),
            format!("--node-socket={}", directory.join("node.sock").display()),
            format!("--trust-domain={}", self.options().trust_domain),
            format!("--view-file={}", self.kept_view(node).display()),
            format!("--certificates-file={}", paths.memory().join(node).display()),
            // So that the access log can be read back.
            "--log-format=json".to_owned(),
        ]);
        argv.extend(self.options().node_proxy_flags.iter().cloned());
        argv
    }

    /// What a program runs under so that it can have these capabilities and no others, as in its container.
    fn confined(&self, capabilities: &[&str]) -> Vec<String> {
        if !self.options().confined {
            return Vec::new();
        }
        let allowed: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        ["setpriv", &format!("--bounding-set=-all{allowed}"), "--inh-caps=-all", "--no-new-privs", "--"]
            .map(str::to_owned)
            .into()
    }

    fn command_of(&self, program: &str) -> Vec<String> {
        vec![self.options().binaries.join(program).display().to_string()]
    }
}
