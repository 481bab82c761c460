//! Upgrades of a node's proxy: the next run begins beside the one that serves, in a pod of its own, as a DaemonSet that may
//! surge has it.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_model::names::{ADMIN_PORT, SYSTEM_NAMESPACE};

use crate::{
    http,
    lab::Lab,
    mesh::Program,
    place::{Place, PodName},
    pod::PodSpec,
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
    /// If the next one does not serve; then everything is as before.
    pub fn upgrade(&self, node: &str) -> Result<Former> {
        let program = Program::node_proxy(node);
        let name = program.process_name();
        let (number, process) = (self.proxy_number(node), self.program(&program)?);
        self.forget_ended(node, number)?;
        let former = Former { process: self.rename(process, &former_name(node, number))?, pod: pod_name(node, number) };
        self.set_proxy_number(node, number + 1)?;
        let started = self.add_proxy_pod(node).and_then(|()| self.start_program(&program).map(drop));
        if let Err(error) = started {
            self.kill_program(&program).ok();
            self.pod_delete(&self.proxy_pod_name(node)).ok();
            self.set_proxy_number(node, number)?;
            self.rename(former.process, &name)?;
            return Err(error);
        }
        former.process.signal(Signal::SIGTERM)?;
        Ok(former)
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
                self.pod_delete(&pod_name(node, number))?;
                fs::remove_file(record)?;
            }
        }
        Ok(())
    }

    fn proxy_number(&self, node: &str) -> u32 {
        let number = fs::read_to_string(self.paths().node(node).join(NUMBER));
        number.ok().and_then(|number| number.parse().ok()).unwrap_or(1)
    }

    fn set_proxy_number(&self, node: &str, number: u32) -> Result<()> {
        fs::write(self.paths().node(node).join(NUMBER), number.to_string()).context("counting the runs of the proxy")
    }
}

/// The file in which runs of a node's proxy are counted.
const NUMBER: &str = "nodeproxy-number";

fn pod_name(node: &str, number: u32) -> PodName {
    let first = format!("nodeproxy-{node}");
    PodName::new(SYSTEM_NAMESPACE, &if number == 1 { first } else { format!("{first}-{number}") })
}

fn former_name(node: &str, number: u32) -> String {
    format!("{node}.nodeproxy.{number}")
}
