//! Upgrades of a node's proxy: the next run begins beside the one that serves, in a pod of its own, as a DaemonSet that may
//! surge has it.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_model::names::{ADMIN_PORT, SYSTEM_NAMESPACE};

use crate::{
    http,
    lab::Lab,
    mesh::Program,
    place::{Place, PodName},
    pod::{Pod, PodSpec},
    process::Process,
};

/// A run of a node's proxy that has a successor.
#[derive(Clone, Debug)]
pub struct Former {
    /// Its process, which ends when its last connection does, or at its deadline.
    pub process: Process,
    pod: PodName,
}

impl Lab {
    /// Starts the next run of a node's proxy; once it serves, asks the present one to end, which has stood back then.
    ///
    /// # Errors
    /// If it cannot have a successor ([`Self::can_upgrade`]) or the next one does not serve; then everything is as before.
    pub fn upgrade(&self, node: &str) -> Result<Former> {
        self.can_upgrade(node)?;
        self.take_back(node)?;
        let program = Program::node_proxy(node);
        let (number, process) = (self.proxy_number(node), self.program(&program)?);
        self.forget_ended(node, number)?;
        let former = Former { process: self.rename(process, &former_name(node, number))?, pod: pod_name(node, number) };
        self.set_proxy_number(node, number + 1)?;
        let started = self.add_proxy_pod(node).and_then(|()| self.start_program(&program).map(drop));
        if let Err(error) = started {
            self.take_back_from(node, number)?;
            return Err(error);
        }
        self.ask_to_end(node, number)?;
        Ok(former)
    }

    /// Whether a node's proxy can have a successor; for asking all of several before the first one changes.
    ///
    /// # Errors
    /// If there is no such node, or its agent has ended.
    pub fn can_upgrade(&self, node: &str) -> Result<()> {
        self.options().check_node(node)?;
        can_upgrade(node, self.program(&Program::agent(node)).ok().map(|agent| agent.is_alive()))
    }

    /// Undoes an upgrade that was interrupted before its run began: the run before is the present one again.
    fn take_back(&self, node: &str) -> Result<()> {
        if self.record(&Program::node_proxy(node).process_name()).exists() {
            return Ok(());
        }
        let number = self.proxy_number(node);
        let before = (1..=number).rev().find(|number| self.record(&former_name(node, *number)).exists());
        before.map_or(Ok(()), |before| self.take_back_from(node, before))
    }

    /// Removes what there is of the run after this one, which becomes the present one.
    fn take_back_from(&self, node: &str, number: u32) -> Result<()> {
        let program = Program::node_proxy(node);
        self.kill_program(&program).ok();
        self.pod_delete(&pod_name(node, number + 1)).ok();
        self.set_proxy_number(node, number)?;
        self.rename(self.process(&former_name(node, number))?, &program.process_name()).map(drop)
    }

    /// Asks the runs up to this one to end, also those whose own upgrade was interrupted before it did; each once, for the
    /// second signal ends a proxy with connections and all.
    fn ask_to_end(&self, node: &str, number: u32) -> Result<()> {
        let asked = self.number_in(node, ASKED).unwrap_or(0);
        // First, so that whatever interrupts this here leaves a run too many rather than cut connections.
        self.set_number_in(node, ASKED, number)?;
        for number in asked + 1..=number {
            if let Ok(process) = self.process(&former_name(node, number)) {
                process.signal(Signal::SIGTERM)?;
            }
        }
        Ok(())
    }

    /// Whether a pod is ready: as its object says, but for a node proxy's, whose object nobody keeps up to date. There the
    /// process must live and say so itself.
    #[must_use]
    pub fn is_serving(&self, pod: &Pod) -> bool {
        let Some(name) = process_of(&pod.name, &pod.node, self.proxy_number(&pod.node)) else { return pod.ready };
        self.process(&name).is_ok_and(|process| process.is_alive()) && self.is_proxy_ready(pod).is_ok()
    }

    /// What a run that has a successor says of itself (`/generation`).
    ///
    /// # Errors
    /// If it has ended.
    pub fn generation_of(&self, former: &Former) -> Result<Value> {
        Ok(serde_json::from_str(&self.former_admin(former, "/generation")?)?)
    }

    /// A page of the administration interface of a run that has a successor.
    ///
    /// # Errors
    /// If it has ended.
    pub fn former_admin(&self, former: &Former, path: &str) -> Result<String> {
        self.admin_page(&former.pod, path)
    }

    pub(crate) fn admin_page(&self, pod: &PodName, path: &str) -> Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT));
        http::get(&self.paths().namespace(&Place::Pod(pod.clone())), address, path)
    }

    /// The pod in which the present run of a node's proxy is.
    pub(crate) fn proxy_pod_name(&self, node: &str) -> PodName {
        pod_name(node, self.proxy_number(node))
    }

    pub(crate) fn add_proxy_pod(&self, node: &str) -> Result<()> {
        let PodName { namespace, name } = self.proxy_pod_name(node);
        self.pod_add(&PodSpec::new(node, &namespace, &name).service_account("underpass-nodeproxy")).map(drop)
    }

    /// Remembers a process under another name; its log stays where it is.
    fn rename(&self, process: Process, name: &str) -> Result<Process> {
        let former = self.record(&process.name);
        let renamed = Process { name: name.to_owned(), ..process };
        fs::write(self.record(name), serde_json::to_vec(&renamed)?)?;
        fs::remove_file(former)?;
        Ok(renamed)
    }

    /// Removes the pods of runs before this one that have ended.
    fn forget_ended(&self, node: &str, number: u32) -> Result<()> {
        for number in 1..number {
            let record = self.record(&former_name(node, number));
            if record.exists() && !self.process(&former_name(node, number))?.is_alive() {
                let pod = pod_name(node, number);
                // Somebody may have deleted it, or been interrupted after doing so.
                if self.has_pod(&pod)? {
                    self.pod_delete(&pod)?;
                }
                fs::remove_file(record)?;
            }
        }
        Ok(())
    }

    fn proxy_number(&self, node: &str) -> u32 {
        self.number_in(node, NUMBER).unwrap_or(1)
    }

    fn set_proxy_number(&self, node: &str, number: u32) -> Result<()> {
        self.set_number_in(node, NUMBER, number)
    }

    fn number_in(&self, node: &str, file: &str) -> Option<u32> {
        fs::read_to_string(self.paths().node(node).join(file)).ok()?.parse().ok()
    }

    fn set_number_in(&self, node: &str, file: &str, number: u32) -> Result<()> {
        fs::write(self.paths().node(node).join(file), number.to_string()).context("counting the runs of the proxy")
    }
}

/// The file in which runs of a node's proxy are counted.
const NUMBER: &str = "nodeproxy-number";
/// The file that tells up to which of them they were asked to end.
const ASKED: &str = "nodeproxy-asked";

/// `agent` tells whether the node's agent lives; none if it was never started.
fn can_upgrade(node: &str, agent: Option<bool>) -> Result<()> {
    match agent {
        Some(true) => Ok(()),
        Some(false) => bail!(
            "the agent of {node} has ended, so nothing can hand the listeners over: start it with `underpass lab restart {node}.agent`"
        ),
        None => bail!("{node} has no proxy: the lab was started without the mesh"),
    }
}

fn pod_name(node: &str, number: u32) -> PodName {
    let first = format!("nodeproxy-{node}");
    PodName::new(SYSTEM_NAMESPACE, &if number == 1 { first } else { format!("{first}-{number}") })
}

/// Under which name the process is remembered that runs in a pod; none if the pod is no node proxy's.
fn process_of(pod: &PodName, node: &str, present: u32) -> Option<String> {
    let number = (1..=present).find(|number| pod_name(node, *number) == *pod)?;
    Some(if number == present { Program::node_proxy(node).process_name() } else { former_name(node, number) })
}

fn former_name(node: &str, number: u32) -> String {
    format!("{node}.nodeproxy.{number}")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{Options, paths::Paths};

    const NODE: &str = "node-a";

    /// A lab of files alone: without programs and network namespaces.
    fn files(directory: &tempfile::TempDir) -> Lab {
        let paths = Paths::below(directory.path(), "files");
        for directory in [paths.objects(), paths.staging(), paths.logs(), paths.pids(), paths.node(NODE)] {
            fs::create_dir_all(directory).unwrap();
        }
        Lab::with(Options::new("files").unwrap(), paths)
    }

    fn sleeper(lab: &Lab, name: &str) -> Process {
        let mut command = Command::new("sleep");
        command.arg("60");
        lab.start(name, command).unwrap()
    }

    #[test]
    fn a_proxy_has_a_successor_only_where_an_agent_lives() {
        assert!(can_upgrade(NODE, Some(true)).is_ok());
        for (agent, part) in [(Some(false), "the agent of node-a has ended"), (None, "without the mesh")] {
            let told = can_upgrade(NODE, agent).unwrap_err().to_string();
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn every_run_has_its_pod_and_its_process() {
        for (pod, present, process) in [
            ("nodeproxy-node-a", 1, Some("node-a.nodeproxy")),
            ("nodeproxy-node-a", 3, Some("node-a.nodeproxy.1")),
            ("nodeproxy-node-a-2", 3, Some("node-a.nodeproxy.2")),
            ("nodeproxy-node-a-3", 3, Some("node-a.nodeproxy")),
            ("nodeproxy-node-a-4", 3, None),
            ("nodeproxy-node-b", 1, None),
        ] {
            let found = process_of(&PodName::new(SYSTEM_NAMESPACE, pod), NODE, present);
            assert_eq!(found.as_deref(), process, "{pod} of {present}");
        }
        assert_eq!(process_of(&PodName::new("demo", "nodeproxy-node-a"), NODE, 1), None);
    }

    #[test]
    fn a_run_that_has_ended_is_forgotten_even_when_its_pod_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let lab = files(&directory);
        sleeper(&lab, "node-a.nodeproxy.1").kill().unwrap();
        lab.forget_ended(NODE, 2).unwrap();
        assert!(!lab.record("node-a.nodeproxy.1").exists());
    }

    #[test]
    fn an_upgrade_that_was_interrupted_is_taken_back_whatever_it_had_done() {
        // Whether the count had been raised by then.
        for number in [2, 3] {
            let directory = tempfile::tempdir().unwrap();
            let lab = files(&directory);
            let serving = sleeper(&lab, "node-a.nodeproxy.2");
            lab.set_proxy_number(NODE, number).unwrap();
            lab.take_back(NODE).unwrap();
            let present = lab.program(&Program::node_proxy(NODE)).unwrap();
            assert_eq!((present.pid, lab.proxy_number(NODE)), (serving.pid, 2), "{number}");
            assert!(present.is_alive() && !lab.record("node-a.nodeproxy.2").exists(), "{number}");
            present.kill().unwrap();
        }
    }

    #[test]
    fn runs_are_asked_to_end_once_and_those_of_interrupted_upgrades_too() {
        let directory = tempfile::tempdir().unwrap();
        let lab = files(&directory);
        // The first was asked before, and still lets its connections end.
        let runs = [1, 2, 3].map(|number| sleeper(&lab, &former_name(NODE, number)));
        lab.set_number_in(NODE, ASKED, 1).unwrap();
        lab.ask_to_end(NODE, 3).unwrap();
        for run in &runs[1..] {
            crate::until(std::time::Duration::from_secs(5), &run.name, || !run.is_alive()).unwrap();
        }
        assert!(runs[0].is_alive());
        assert_eq!(lab.number_in(NODE, ASKED), Some(3));
        runs[0].kill().unwrap();
    }
}
