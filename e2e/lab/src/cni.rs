//! The container runtime's part of CNI: runs the plugins of a chain one after the other, as the specification's
//! section 3 and 4 have it.
//!
//! The chain is a real conflist at version 1.0.0 (Debian's plugins know no newer); each node has its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::{
    netns,
    place::PodName,
    preflight::CNI_DIRECTORIES,
    process::{Output, run},
};

const VERSION: &str = "1.0.0";
const INTERFACE: &str = "eth0";
/// Longer than any plugin of ours waits, so that its own error is seen.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(40);

/// The chain of one node.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The node's network namespace, in which plugins run.
    pub(crate) node_namespace: String,
    /// The conflist.
    pub(crate) conflist: PathBuf,
    /// Where results are kept from ADD to CHECK and DEL.
    pub(crate) cache: PathBuf,
    /// Where our own plugin lies.
    pub(crate) binaries: PathBuf,
}

/// A container as the plugins know it.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) container: String,
    /// The network namespace's path; none on a DEL after it vanished.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) pod: PodName,
    pub(crate) uid: String,
}

impl Chain {
    /// Runs ADD through the chain and returns the last result. On an error DEL undoes what stands.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Result<Value> {
        let mut result: Option<Value> = None;
        for plugin in self.plugins()? {
            match self.invoke("ADD", sandbox, plugin, result.as_ref()) {
                Ok(answer) => result = Some(answer),
                Err(error) => {
                    self.delete(sandbox).ok();
                    return Err(error);
                }
            }
        }
        let result = result.context("the conflist has no plugins")?;
        fs::create_dir_all(&self.cache)?;
        fs::write(self.cached(sandbox), serde_json::to_vec(&result)?)?;
        Ok(result)
    }

    /// Runs CHECK through the chain.
    pub(crate) fn check(&self, sandbox: &Sandbox) -> Result<()> {
        let before = self.result_of(sandbox).context("no ADD is remembered for this container")?;
        for plugin in self.plugins()? {
            self.invoke("CHECK", sandbox, plugin, Some(&before))?;
        }
        Ok(())
    }

    /// Runs DEL through the chain, last plugin first, all of them; the first error is returned.
    pub(crate) fn delete(&self, sandbox: &Sandbox) -> Result<()> {
        let before = self.result_of(sandbox);
        let mut outcome = Ok(());
        for plugin in self.plugins()?.into_iter().rev() {
            let done = self.invoke("DEL", sandbox, plugin, before.as_ref());
            outcome = outcome.and(done.map(drop));
        }
        fs::remove_file(self.cached(sandbox)).ok();
        outcome
    }

    fn cached(&self, sandbox: &Sandbox) -> PathBuf {
        self.cache.join(format!("{}-{INTERFACE}.json", sandbox.container))
    }

    fn result_of(&self, sandbox: &Sandbox) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.cached(sandbox)).ok()?).ok()
    }

    /// The configurations of the conflist, each with the list's name and version, as plugins expect them.
    fn plugins(&self) -> Result<Vec<Value>> {
        let text = fs::read(&self.conflist).with_context(|| format!("reading {}", self.conflist.display()))?;
        let list: Value = serde_json::from_slice(&text)?;
        let name = list.get("name").context("conflist: name")?;
        let plugins = list.get("plugins").and_then(Value::as_array).context("conflist: plugins")?;
        let with_list = |plugin: &Value| {
            let mut plugin = plugin.as_object().context("conflist: plugins[]")?.clone();
            plugin.insert("name".to_owned(), name.clone());
            plugin.insert("cniVersion".to_owned(), VERSION.into());
            Ok(Value::Object(plugin))
        };
        plugins.iter().map(with_list).collect()
    }

    fn invoke(&self, verb: &str, sandbox: &Sandbox, mut config: Value, before: Option<&Value>) -> Result<Value> {
        let plugin = config.get("type").and_then(Value::as_str).context("conflist: plugins[].type")?.to_owned();
        if let (Some(before), Some(config)) = (before, config.as_object_mut()) {
            config.insert("prevResult".to_owned(), before.clone());
        }
        let command = self.command(verb, sandbox, &plugin)?;
        let input = serde_json::to_vec(&config)?;
        let output = netns::inside(&self.node_namespace, || run(command, Some(input), PLUGIN_TIMEOUT))?;
        if !output.success() {
            bail!("CNI {verb} of {plugin} for {}: {}", sandbox.pod, failure(&output));
        }
        if verb != "ADD" {
            return Ok(Value::Null);
        }
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("reading the result of {plugin}: {:?}", output.stdout))
    }

    fn command(&self, verb: &str, sandbox: &Sandbox, plugin: &str) -> Result<Command> {
        let directories: Vec<&Path> = CNI_DIRECTORIES.iter().map(Path::new).chain([self.binaries.as_path()]).collect();
        let binary = directories
            .iter()
            .map(|directory| directory.join(plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| anyhow!("CNI plugin {plugin} is in none of {directories:?}"))?;
        let PodName { namespace, name } = &sandbox.pod;
        let mut command = Command::new(binary);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.container)
            .env("CNI_NETNS", sandbox.netns.as_deref().unwrap_or(Path::new("")))
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", std::env::join_paths(directories)?)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={};\
                     K8S_POD_UID={}",
                    sandbox.container, sandbox.uid
                ),
            );
        Ok(command)
    }
}

/// The error that a plugin printed (section 5 of the specification), or whatever else it printed.
fn failure(output: &Output) -> String {
    let parsed: Option<Value> = serde_json::from_str(&output.stdout).ok();
    let text = |key: &str| parsed.as_ref()?.get(key)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    match (text("msg"), text("details")) {
        (Some(message), Some(details)) => format!("{message}: {details}"),
        (Some(message), None) => message,
        _ => format!("{:?}: {}{}", output.status, output.stdout, output.stderr),
    }
}

/// The addresses of a result.
pub(crate) fn addresses(result: &Value) -> Result<Vec<std::net::IpAddr>> {
    let ips = result.get("ips").and_then(Value::as_array).context("the CNI result has no ips")?;
    let address = |ip: &Value| {
        let text = ip.get("address").and_then(Value::as_str).context("the CNI result has an ip without address")?;
        Ok(text.split('/').next().unwrap_or(text).parse()?)
    };
    let found: Vec<_> = ips.iter().map(address).collect::<Result<_>>()?;
    ensure!(!found.is_empty(), "the CNI result has no ips");
    Ok(found)
}

/// The conflist of a node: bridge and host-local, then, with the mesh, ours.
pub(crate) fn conflist(node: &NodeNetwork<'_>, ours: Option<Value>) -> Value {
    let range = |subnet: &str| json!([{ "subnet": subnet }]);
    let bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": true,
        "hairpinMode": true,
        "mtu": 1500,
        "ipam": {
            "type": "host-local",
            "dataDir": node.allocations,
            "ranges": [range(node.pods_v4), range(node.pods_v6)],
        },
    });
    let plugins: Vec<Value> = [bridge].into_iter().chain(ours).collect();
    json!({ "cniVersion": VERSION, "name": "underpass-lab", "plugins": plugins })
}

/// What a node's conflist is made of.
pub(crate) struct NodeNetwork<'a> {
    pub(crate) allocations: &'a Path,
    pub(crate) pods_v4: &'a str,
    pub(crate) pods_v6: &'a str,
}
