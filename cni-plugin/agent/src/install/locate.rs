//! Where the container runtime of this node looks for network configurations and plugins: it is asked, by its command
//! line and its configuration, and the kubelet's command line says which runtime it is. Pure but for [`Host`].

mod runtime;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use runtime::{Runtime, Settings};

/// A process of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: u32,
    /// The file name of its program.
    pub program: String,
    /// Its arguments, without the program.
    pub arguments: Vec<String>,
}

/// The files of the node, as one of its processes sees them.
pub trait Host {
    /// The text of a file; none if it is not there or no text.
    fn read(&self, process: u32, path: &Path) -> Option<String>;
    /// The names in a directory, in order; empty if it is not there.
    fn list(&self, process: u32, directory: &Path) -> Vec<String>;
}

/// The directories that a runtime uses, as it sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The runtime's process; its view of the file system counts.
    pub process: u32,
    /// Its program.
    pub runtime: &'static str,
    /// Where network configurations are.
    pub configurations: PathBuf,
    /// Where plugins are looked for, first one first.
    pub binaries: Vec<PathBuf>,
}

/// Why the directories are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// No runtime that is known here.
    #[error("neither containerd nor CRI-O runs on this node, as far as the agent can see; name the directories")]
    NoRuntime,
    /// More than one, and the kubelet does not say which is its own.
    #[error(
        "several container runtimes run on this node ({0}), and the kubelet does not say which is its own; name the directories"
    )]
    Several(String),
    /// Its configuration cannot be read.
    #[error("the configuration of {runtime} in {path} is no TOML: {problem}")]
    Malformed {
        /// Which runtime.
        runtime: &'static str,
        /// Which file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
}

impl LocateError {
    /// A stable label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoRuntime => "runtime_unknown",
            Self::Several(_) => "runtime_ambiguous",
            Self::Malformed { .. } => "runtime_configuration_malformed",
        }
    }
}

/// Finds them.
///
/// # Errors
/// [`LocateError`].
pub fn locate(processes: &[Process], host: &impl Host) -> Result<Location, LocateError> {
    let mut found = Vec::new();
    for process in processes {
        let Some(runtime) = Runtime::of(&process.program) else { continue };
        found.push((process, runtime, runtime.settings(process, host)?));
    }
    let asked: BTreeSet<String> = processes.iter().filter_map(|process| endpoint(process, host)).collect();
    let serves = |settings: &Settings| asked.contains(socket(&settings.socket));
    if !asked.is_empty() && found.iter().any(|(_, _, settings)| serves(settings)) {
        found.retain(|(_, _, settings)| serves(settings));
    }
    let (process, runtime, settings) = match found.as_slice() {
        [] => return Err(LocateError::NoRuntime),
        [one] => one,
        [first, rest @ ..] if rest.iter().all(|other| other.2 == first.2) => first,
        several => {
            let names: Vec<_> =
                several.iter().map(|(process, runtime, _)| format!("{} {}", runtime.name(), process.id)).collect();
            return Err(LocateError::Several(names.join(", ")));
        }
    };
    let Settings { configurations, binaries, .. } = settings.clone();
    Ok(Location { process: process.id, runtime: runtime.name(), configurations, binaries })
}

/// Programs that are or contain the kubelet.
const KUBELETS: [&str; 4] = ["kubelet", "kubelite", "k3s", "hyperkube"];
const ENDPOINT: &str = "container-runtime-endpoint";
const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// The socket of the runtime that a kubelet was told to use, by its arguments or its file.
fn endpoint(process: &Process, host: &impl Host) -> Option<String> {
    let is_kubelet = KUBELETS.contains(&process.program.as_str())
        // A multi-call program has the kubelet as its first argument.
        || process.arguments.first().is_some_and(|first| first == "kubelet");
    if !is_kubelet {
        return None;
    }
    let told = option(&process.arguments, &[ENDPOINT]).or_else(|| {
        let file = option(&process.arguments, &["config"]);
        let text = host.read(process.id, Path::new(file.as_deref().unwrap_or(KUBELET_CONFIG)))?;
        // One flat key of a YAML file that kubeadm writes; anything fancier is as if it were not there.
        let value = text.lines().find_map(|line| line.strip_prefix("containerRuntimeEndpoint:"))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    });
    told.map(|told| socket(&told).to_owned()).filter(|socket| !socket.is_empty())
}

/// The path of a socket, however it is written.
fn socket(endpoint: &str) -> &str {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    path.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(path)
}

/// The last value of an option, as `--name value`, `--name=value`, `-n value` or `-name value`.
fn option(arguments: &[String], names: &[&str]) -> Option<String> {
    options(arguments, names).pop()
}

fn options(arguments: &[String], names: &[&str]) -> Vec<String> {
    let mut values = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { continue };
        match flag.split_once('=') {
            Some((name, value)) if names.contains(&name) => values.push(value.to_owned()),
            None if names.contains(&flag) => values.extend(arguments.next().cloned()),
            Some(_) | None => {}
        }
    }
    values
}

#[cfg(test)]
mod tests;
