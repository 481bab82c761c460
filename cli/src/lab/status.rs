//! `underpass lab status`: one screen.

use anyhow::Result;
use serde_json::json;
use underpass_lab::{Lab, Pod};

use super::{OutputFormat, warn_of_ended_agents};
use crate::screen::{heading, say, table};

pub(crate) fn show(lab: &Lab, output: OutputFormat) -> Result<()> {
    let (pods, processes) = (lab.pods()?, lab.processes());
    let mesh = |pod: &Pod| lab.capture_state(pod).unwrap_or_else(|| "no".to_owned());
    let state = |alive: bool| if alive { "runs" } else { "ended" };
    match output {
        OutputFormat::Json => {
            let programs: Vec<_> = processes
                .iter()
                .map(|one| json!({ "name": one.name, "pid": one.pid, "alive": one.is_alive(), "log": one.log }))
                .collect();
            let pods: Vec<_> = pods
                .iter()
                .map(|pod| {
                    json!({
                        "namespace": pod.name.namespace, "name": pod.name.name, "uid": pod.uid, "node": pod.node,
                        "serviceAccount": pod.service_account, "addresses": pod.addresses, "ready": lab.is_serving(pod),
                        "captured": lab.capture_state(pod),
                    })
                })
                .collect();
            say(&serde_json::to_string_pretty(
                &json!({ "name": lab.options().name, "root": lab.paths().root(), "programs": programs, "pods": pods }),
            )?);
        }
        OutputFormat::Table => {
            say(&format!(
                "lab {}: {} nodes, files in {}",
                lab.options().name,
                lab.options().nodes,
                lab.paths().root().display()
            ));
            heading("Programs");
            let rows: Vec<_> = processes
                .iter()
                .map(|one| vec![one.name.clone(), one.pid.to_string(), state(one.is_alive()).to_owned()])
                .collect();
            table(&["PROGRAM", "PID", "STATE"], &rows);
            heading("Pods");
            let rows: Vec<_> = pods
                .iter()
                .map(|pod| {
                    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
                    let ready = if lab.is_serving(pod) { "yes" } else { "no" };
                    vec![
                        pod.name.to_string(),
                        pod.node.clone(),
                        addresses.join(","),
                        pod.service_account.clone(),
                        ready.to_owned(),
                        mesh(pod),
                    ]
                })
                .collect();
            table(&["POD", "NODE", "ADDRESSES", "SERVICE ACCOUNT", "READY", "CAPTURED"], &rows);
        }
    }
    warn_of_ended_agents(lab, |_| true)
}
