//! `underpass lab`: the mesh on one machine.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use underpass_lab::{Lab, ObjectName, Options, Place, Pod, PodName, PodSpec, until};
use underpass_objects::{Kind, guarded::is_network_policy};

use self::checks::{change_of_annotation, change_of_label, kinds};
use crate::screen::{Progress, caution, say};

mod checks;
mod demo;
mod sample;
mod status;

const EXAMPLES: &str = "\
Examples:
  underpass lab up                                    two nodes, the mesh, and a small sample
  underpass lab exec client -- curl -s http://web/    run any program in a pod
  underpass lab label namespace demo underpass.dev/mesh=enabled
  underpass lab exec fabric -- tcpdump -n -A -i br0   look at the wire between the nodes
  underpass lab down                                  leave nothing behind";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Which lab; several may run at once. Unless given, the one that is up; a new one is called `lab`, the demo's `demo`.
    #[arg(long, global = true, env = "UNDERPASS_LAB")]
    name: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a lab: nodes, the mesh, and a sample (client, web, redis) in namespace `demo`.
    Up(Up),
    /// Show programs, pods, and which pods are captured.
    Status {
        /// How to print it.
        #[arg(short, long, default_value = "table")]
        output: OutputFormat,
    },
    /// Run a program in a pod, on a node (`node-a`), on `outside`, `control` or the `fabric`.
    #[command(after_help = "Examples:\n  underpass lab exec client -- redis-cli -h redis ping\n  \
        underpass lab exec --background http demo/web -- python3 -m http.server 8081")]
    Exec(Exec),
    /// Set labels of a namespace or pod (`KEY=VALUE`), or remove them (`KEY-`).
    #[command(after_help = "Examples:\n  underpass lab label namespace demo underpass.dev/mesh=enabled\n  \
        underpass lab label namespace demo underpass.dev/mesh-\n  \
        underpass lab label pod demo/web underpass.dev/mesh=disabled")]
    Label {
        /// What to label.
        kind: Labelled,
        /// Its name; a pod's may be NAMESPACE/NAME.
        object: String,
        /// `KEY=VALUE` or `KEY-`.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Set annotations of a pod (`KEY=VALUE`), or remove them (`KEY-`).
    #[command(after_help = "Examples:\n  underpass lab annotate demo/web underpass.dev/limit-connections=100\n  \
        underpass lab annotate demo/web underpass.dev/limit-connections-")]
    Annotate {
        /// NAMESPACE/NAME or NAME.
        pod: String,
        /// `KEY=VALUE` or `KEY-`.
        #[arg(required = true)]
        annotations: Vec<String>,
    },
    /// Delete an object that was applied; for pods there is `pod delete`.
    #[command(after_help = "Examples:\n  underpass lab delete AuthorizationPolicy demo/nobody\n  \
        underpass lab delete MeshConfig default")]
    Delete {
        /// Its kind, as in manifests.
        kind: String,
        /// NAMESPACE/NAME, or the name alone of what has no namespace.
        object: String,
    },
    /// Write or replace objects from a file of Kubernetes manifests (`-` for standard input).
    Apply {
        /// The file.
        #[arg(short, long)]
        filename: PathBuf,
    },
    /// Add and delete pods.
    #[command(subcommand)]
    Pod(PodVerb),
    /// Show the log of a program; without a name, which there are.
    Logs {
        /// Such as `operator`, `node-a.agent`, `node-b.nodeproxy`, or `demo.web.http`.
        program: Option<String>,
        /// Go on as it grows.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show what a node's proxy counts, as Prometheus would scrape it.
    Metrics {
        /// The node, such as `node-a`.
        node: String,
    },
    /// Start the next run of a node's proxy beside the present one, which lets its connections end.
    #[command(after_help = "The present run stands back once the next one serves. What then becomes of it: \
        docs/operations/lifecycle.md.\n\nExamples:\n  underpass lab upgrade node-a\n  \
        underpass lab upgrade node-a node-b")]
    Upgrade {
        /// The nodes, such as `node-a`, one after the other.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Start programs of the mesh again; one that runs is ended first.
    #[command(after_help = "Examples:\n  underpass lab restart node-a.agent\n  underpass lab restart operator")]
    Restart {
        /// Such as `operator`, `node-a.agent` or, where it has ended, `node-a.nodeproxy`.
        #[arg(required = true, value_name = "PROGRAM")]
        programs: Vec<String>,
    },
    /// Walk through what the mesh does, in about a minute, showing what is observed.
    Demo,
    /// End a lab: programs, network namespaces and files.
    Down {
        /// End every lab of this machine.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Args)]
struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
    /// Without the sample's pods.
    #[arg(long)]
    empty: bool,
    /// Without the mesh: pods joined by the CNI reference plugins alone.
    #[arg(long)]
    without_mesh: bool,
}

#[derive(Args)]
struct Exec {
    /// Start it in the background under this name; its output goes to `lab logs POD.NAME`.
    #[arg(long, value_name = "NAME")]
    background: Option<String>,
    /// Where: NAMESPACE/NAME or NAME of a pod, or a node, `outside`, `control`, `fabric`.
    #[arg(value_name = "POD")]
    place: String,
    /// What to run.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Subcommand)]
enum PodVerb {
    /// Add a pod: a network namespace made by the node's CNI chain.
    #[command(after_help = "Example:\n  underpass lab pod add node-a demo/other --label app=web")]
    Add {
        /// The node to put it on.
        node: String,
        /// NAMESPACE/NAME.
        pod: String,
        /// The service account it runs as; unless given, one that is called like the pod.
        #[arg(long)]
        service_account: Option<String>,
        /// Labels, `KEY=VALUE`.
        #[arg(long)]
        label: Vec<String>,
        /// Annotations, `KEY=VALUE`.
        #[arg(long)]
        annotation: Vec<String>,
    },
    /// Delete a pod, gracefully.
    Delete {
        /// NAMESPACE/NAME or NAME.
        pod: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Labelled {
    #[value(alias = "ns")]
    Namespace,
    Pod,
}

#[derive(Clone, Copy, ValueEnum)]
enum OutputFormat {
    Json,
    Table,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let name = arguments.name.as_deref();
    let lab = || Lab::attach(&meant(name)?);
    match arguments.verb {
        Verb::Up(options) => {
            heed_signals()?;
            up(name.unwrap_or(DEFAULT), &options)?;
        }
        Verb::Status { output } => {
            // It asks the proxies, each where it runs.
            need_root()?;
            status::show(&lab()?, output)?;
        }
        Verb::Exec(exec) => return run_in(&lab()?, &exec),
        Verb::Label { kind, object, labels } => label(&lab()?, kind, &object, &labels)?,
        Verb::Annotate { pod, annotations } => annotate(&lab()?, &pod, &annotations)?,
        Verb::Delete { kind, object } => delete(&lab()?, &kind, &object)?,
        Verb::Apply { filename } => apply(&lab()?, &filename)?,
        Verb::Pod(verb) => pod(&lab()?, verb)?,
        Verb::Logs { program, follow } => logs(&lab()?, program.as_deref(), follow)?,
        Verb::Metrics { node } => say(lab()?.metrics(&node)?.trim_end()),
        Verb::Upgrade { nodes } => upgrade(&lab()?, &nodes)?,
        Verb::Restart { programs } => restart(&lab()?, &programs)?,
        Verb::Demo => {
            heed_signals()?;
            return demo::walk(name.unwrap_or(demo::NAME));
        }
        Verb::Down { all } => down(name, all)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Within what time a program that cannot run has said so.
const AT_ONCE: Duration = Duration::from_millis(300);
/// What `up` calls a lab.
const DEFAULT: &str = "lab";

/// The lab that is meant: the one that was named, or the only one there is.
fn meant(name: Option<&str>) -> Result<String> {
    if let Some(name) = name {
        return Ok(name.to_owned());
    }
    let labs = Lab::names_by_hand();
    ensure!(labs.len() < 2, "several labs are up: choose one with --name ({})", labs.join(", "));
    Ok(labs.into_iter().next().unwrap_or_else(|| DEFAULT.to_owned()))
}

fn up(name: &str, up: &Up) -> Result<()> {
    let mut options = Options::new(name)?;
    options.number = Lab::free_number();
    options.nodes = up.nodes;
    options.mesh = !up.without_mesh;
    let progress = Progress::new();
    Lab::up_with(options, &mut |step| progress.step(step), |lab, tell| {
        if up.empty {
            return Ok(());
        }
        tell("starting the sample: client, web and redis in namespace demo");
        sample::start(lab)
    })?;
    progress.step(&format!("lab {name} is up"));
    Ok(())
}

fn run_in(lab: &Lab, exec: &Exec) -> Result<ExitCode> {
    need_root()?;
    let argv: Vec<&str> = exec.command.iter().map(String::as_str).collect();
    let place = place(lab, &exec.place)?;
    if let Some(program) = exec.command.first() {
        checks::check_program(program, &env::var_os("PATH").unwrap_or_default(), Path::is_file)?;
    }
    if let Some(name) = &exec.background {
        let process = lab.spawn(place, name, &argv)?;
        // A program that is not there, or does not like its arguments, says so at once.
        if until(AT_ONCE, "it to end", || !process.is_alive()).is_ok() {
            bail!("{} ended at once; it said: {}", process.name, process.output().trim());
        }
        say(&format!(
            "{} runs as process {}; its output: underpass lab logs {}",
            process.name, process.pid, process.name
        ));
        return Ok(ExitCode::SUCCESS);
    }
    // In this process's place, so that signals, the terminal and the exit code are the program's own.
    let error = lab.exec(place, &argv).exec();
    bail!("running {:?}: {error}", exec.command)
}

fn place(lab: &Lab, text: &str) -> Result<Place> {
    Ok(match text {
        "control" => Place::Control,
        "fabric" => Place::Fabric,
        "outside" => Place::Outside,
        node if lab.options().node_names().iter().any(|name| name == node) => Place::node(node),
        pod => Place::Pod(lab.find_pod(pod)?),
    })
}

fn label(lab: &Lab, kind: Labelled, object: &str, labels: &[String]) -> Result<()> {
    // All or none.
    let labels = labels.iter().map(|text| change_of_label(text)).collect::<Result<Vec<_>>>()?;
    if matches!(kind, Labelled::Namespace) {
        checks::check_namespace(object, &lab.namespaces()?)?;
    }
    for (key, value) in labels {
        match kind {
            Labelled::Namespace => lab.label_namespace(object, &key, value.as_deref())?,
            Labelled::Pod => lab.label_pod(&lab.find_pod(object)?, &key, value.as_deref())?,
        }
    }
    say(&format!("{object} labelled"));
    match kind {
        Labelled::Namespace => warn_of_ended_agents(lab, |pod| pod.name.namespace == object),
        Labelled::Pod => {
            let name = lab.find_pod(object)?;
            warn_of_ended_agents(lab, |pod| pod.name == name)
        }
    }
}

/// The objects are written either way: whoever looks at these pods should know that nobody else does.
fn warn_of_ended_agents(lab: &Lab, changed: impl Fn(&Pod) -> bool) -> Result<()> {
    let nodes: Vec<String> = lab.pods()?.into_iter().filter(changed).map(|pod| pod.node).collect();
    checks::unheard(&nodes, &lab.nodes_without_agent()).iter().for_each(|line| caution(line));
    Ok(())
}

fn annotate(lab: &Lab, pod: &str, annotations: &[String]) -> Result<()> {
    let annotations = annotations.iter().map(|text| change_of_annotation(text)).collect::<Result<Vec<_>>>()?;
    let pod = lab.find_pod(pod)?;
    for (key, value) in annotations {
        lab.annotate_pod(&pod, &key, value.as_deref())?;
    }
    say(&format!("{pod} annotated"));
    warn_of_ended_agents(lab, |changed| changed.name == pod)
}

fn delete(lab: &Lab, kind: &str, object: &str) -> Result<()> {
    let found = Kind::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(kind));
    // What the mesh does not read may have been applied all the same, to see what comes of it.
    let kind = match found {
        Some(kind) => kind.as_str(),
        None if is_network_policy(kind) => kind,
        None => bail!("{kind} is none of the kinds that the lab has: {}", kinds()),
    };
    let (namespace, name) = object.split_once('/').map_or((None, object), |(of, name)| (Some(of), name));
    let has_namespace = found.is_none_or(Kind::is_namespaced);
    ensure!(
        has_namespace == namespace.is_some(),
        "the name of {} {kind} is {}",
        checks::article(kind),
        if has_namespace { "NAMESPACE/NAME" } else { "NAME" }
    );
    lab.delete(&ObjectName::new(kind, namespace, name))?;
    say(&format!("{kind} {object} deleted"));
    Ok(())
}

fn apply(lab: &Lab, file: &PathBuf) -> Result<()> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())?
    } else {
        fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
    };
    checks::check_manifests(lab, &text)?;
    for object in lab.apply(&text)? {
        let namespace = object.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        say(&format!("{} {namespace}{} written", object.kind, object.name));
    }
    Ok(())
}

fn pod(lab: &Lab, verb: PodVerb) -> Result<()> {
    need_root()?;
    match verb {
        PodVerb::Add { node, pod, service_account, label, annotation } => {
            let (namespace, name) = pod.split_once('/').context("a new pod's name is NAMESPACE/NAME")?;
            checks::refuse_own_pod(&PodName::new(namespace, name))?;
            let mut spec = PodSpec::new(&node, namespace, name);
            if let Some(account) = service_account {
                spec = spec.service_account(&account);
            }
            for text in label {
                let (key, value) = change_of_label(&text)?;
                spec = spec.label(&key, &value.context("a new pod's labels are KEY=VALUE")?);
            }
            for text in annotation {
                let (key, value) = change_of_annotation(&text)?;
                spec = spec.annotation(&key, &value.context("a new pod's annotations are KEY=VALUE")?);
            }
            let pod = lab.pod_add(&spec)?;
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            say(&format!("{} runs on {} at {}", pod.name, pod.node, addresses.join(", ")));
        }
        PodVerb::Delete { pod } => {
            let name = lab.find_pod(&pod)?;
            checks::refuse_own_pod(&name)?;
            lab.pod_delete(&name)?;
            say(&format!("{name} deleted"));
        }
    }
    Ok(())
}

fn upgrade(lab: &Lab, nodes: &[String]) -> Result<()> {
    need_root()?;
    // All or none.
    nodes.iter().try_for_each(|node| lab.can_upgrade(node))?;
    for node in nodes {
        let former = lab.upgrade(node)?;
        let (name, pid) = (&former.process.name, former.process.pid);
        // It may have ended already.
        let connections = lab.generation_of(&former).ok().and_then(|page| page.get("connections")?.as_u64());
        say(&match connections {
            Some(connections) => {
                format!("{node} has a new proxy; {name} (process {pid}) lets {connections} connections end")
            }
            None => format!("{node} has a new proxy; {name} (process {pid}) had nothing left to do"),
        });
    }
    Ok(())
}

fn restart(lab: &Lab, programs: &[String]) -> Result<()> {
    need_root()?;
    for name in programs {
        let process = lab.restart(name)?;
        say(&format!("{name} runs as process {}", process.pid));
    }
    Ok(())
}

/// Whoever interrupts what takes its time, or ends it, shall not be left with half of it.
fn heed_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupts, mut terminations) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            while tokio::select! { came = interrupts.recv() => came, came = terminations.recv() => came }.is_some() {
                underpass_lab::interrupt();
            }
        });
    });
    Ok(())
}

fn logs(lab: &Lab, program: Option<&str>, follow: bool) -> Result<()> {
    let Some(program) = program else {
        lab.processes().iter().for_each(|process| say(&process.name));
        return Ok(());
    };
    let known = lab.processes();
    let found = known.iter().find(|process| process.name == program).with_context(|| {
        let names: Vec<&str> = known.iter().map(|process| process.name.as_str()).collect();
        format!("no program {program} was started in this lab: there are {}", names.join(", "))
    })?;
    let log = &found.log;
    if follow {
        let error = Command::new("tail").args(["-n", "+1", "-f"]).arg(log).exec();
        bail!("running tail: {error}");
    }
    say(fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?.trim_end());
    Ok(())
}

fn down(name: Option<&str>, all: bool) -> Result<()> {
    need_root()?;
    let names = if all { Lab::names() } else { vec![meant(name)?] };
    for name in names {
        let existed = Lab::down(&name)?;
        say(&if existed {
            format!("lab {name} is down; nothing of it is left")
        } else {
            format!("no lab called {name} is up")
        });
    }
    Ok(())
}

/// For verbs that enter or change namespaces; `up` checks more and says so itself.
fn need_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this needs root, as network namespaces do: run the same command with sudo"
    );
    Ok(())
}
