//! Takes the start-up taint off each node whose agent is ready; only by the operator that leads.
//!
//! Whoever makes nodes may register them with the taint, so that no pod starts there before it can be captured. Nobody
//! else may take it off: the right to change nodes cannot be narrowed to one's own, so agents do not have it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time};
use underpass_model::names::{AGENT_NOT_READY_TAINT, SYSTEM_NAMESPACE};
use underpass_objects::{Objects, Snapshot, pod};
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::FIELD_MANAGER;

/// How an agent's pod is known.
const AGENT: (&str, &str) = ("app.kubernetes.io/name", "underpass-agent");
/// Nodes are looked at once in so long at most: every change of any pod is an occasion.
const PACE: Duration = Duration::from_millis(500);
/// What could not be written is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);
/// A write that takes longer is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes taints off; see [`Self::run`].
pub struct TaintTask {
    /// Asked as this operator.
    pub client: Client,
    /// Whether to write.
    pub leads: watch::Receiver<bool>,
    /// Nodes, and the agents on them.
    pub objects: watch::Receiver<Snapshot>,
}

impl std::fmt::Debug for TaintTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaintTask").field("leads", &self.leads).finish_non_exhaustive()
    }
}

/// The nodes that have the taint still, and an agent that is ready.
fn due(objects: &Objects) -> Vec<&str> {
    let tainted = |node: &&Arc<Node>| taints(node).iter().any(is_ours);
    let names = objects.nodes.iter().filter(|(_, node)| tainted(node)).map(|(name, _)| name.as_str());
    let tainted: BTreeSet<&str> = names.collect();
    if tainted.is_empty() {
        return Vec::new();
    }
    let agents = objects.pods_in(SYSTEM_NAMESPACE).map(|(_, pod)| pod);
    let ready = agents
        .filter(|agent| pod::label(agent, AGENT.0) == Some(AGENT.1))
        .filter(|agent| pod::is_ready(agent) && !pod::is_terminating(agent));
    let nodes: BTreeSet<&str> = ready.filter_map(|agent| pod::node(agent)).collect();
    tainted.intersection(&nodes).copied().collect()
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

fn is_ours(taint: &Taint) -> bool {
    taint.key == AGENT_NOT_READY_TAINT
}

/// What to change of a node: its other taints stay, those too that somebody adds at this moment.
fn change(node: &Node) -> Option<Value> {
    let (ours, others): (Vec<&Taint>, Vec<&Taint>) = taints(node).iter().partition(|taint| is_ours(taint));
    let revision = &node.metadata.resource_version;
    (!ours.is_empty()).then(|| json!({ "metadata": { "resourceVersion": revision }, "spec": { "taints": others } }))
}

impl TaintTask {
    /// Takes off whatever is due while it leads, until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        while self.leads.wait_for(|leads| *leads).await.is_ok() {
            let objects = Arc::clone(&self.objects.borrow_and_update().objects);
            let mut is_done = true;
            for node in due(&objects) {
                let failure = match time::timeout(PATIENCE, Box::pin(self.lift(node))).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_elapsed) => "no answer in time".to_owned(),
                };
                catalogue::OPERATOR_WRITE_ERRORS.with(["taint"]).increment(1);
                tracing::warn!(error = failure, node, "its start-up taint stays");
                is_done = false;
            }
            time::sleep(if is_done { PACE } else { AGAIN }).await;
            if is_done && self.objects.changed().await.is_err() {
                return;
            }
        }
    }

    async fn lift(&self, name: &str) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let Some(change) = api.get_opt(name).await?.as_ref().and_then(change) else { return Ok(()) };
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        api.patch(name, &parameters, &Patch::Merge(change)).await?;
        tracing::info!(node = name, "its agent is ready, and its start-up taint is off");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use underpass_objects::manifest;

    use super::*;

    fn agent(more: &str, labels: &str, namespace: &str, is_ready: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: agent, namespace: {namespace}, labels: {{{labels}}}{more}}}\n\
             spec: {{nodeName: a}}\nstatus: {{conditions: [{{type: Ready, status: '{is_ready}'}}]}}\n"
        )
    }

    #[test]
    fn a_node_is_due_when_it_has_the_taint_and_an_agent_that_is_ready() {
        const LABEL: &str = "app.kubernetes.io/name: underpass-agent";
        let ours = "spec: {taints: [{key: underpass.dev/agent-not-ready, effect: NoSchedule}]}";
        let other = "spec: {taints: [{key: node.kubernetes.io/not-ready, effect: NoSchedule}]}";
        let ready = agent("", LABEL, SYSTEM_NAMESPACE, "True");
        let going = agent(", deletionTimestamp: 2026-01-01T00:00:00Z", LABEL, SYSTEM_NAMESPACE, "True");
        for (spec, agent, expected) in [
            (ours, &ready, &["a"][..]),
            (other, &ready, &[]),
            ("", &ready, &[]),
            (ours, &String::new(), &[]),
            (ours, &agent("", LABEL, SYSTEM_NAMESPACE, "False"), &[]),
            (ours, &going, &[]),
            // Anybody may make pods with any label, but not there.
            (ours, &agent("", LABEL, "shop", "True"), &[]),
            (ours, &agent("", "app.kubernetes.io/name: other", SYSTEM_NAMESPACE, "True"), &[]),
        ] {
            let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n{spec}\n");
            let text = format!("{}---\n{}{agent}", node("a"), node("b"));
            let read = manifest::read(text.as_bytes()).unwrap().objects;
            let objects: Objects = read.into_values().map(|located| located.object).collect();
            assert_eq!(due(&objects), expected, "{text}");
        }
    }

    #[test]
    fn only_the_one_taint_goes() {
        let node = |taints: Value| -> Node {
            let metadata = json!({ "name": "a", "resourceVersion": "7" });
            serde_json::from_value(json!({ "metadata": metadata, "spec": { "taints": taints } })).unwrap()
        };
        let ours = json!({ "key": AGENT_NOT_READY_TAINT, "effect": "NoExecute" });
        let other = json!({ "key": "gpu", "value": "yes", "effect": "NoSchedule" });
        let change_of = |taints| change(&node(taints));
        let changed = change_of(json!([ours, other])).unwrap();
        assert_eq!(changed, json!({ "metadata": { "resourceVersion": "7" }, "spec": { "taints": [other] } }));
        assert_eq!(change_of(json!([ours])).unwrap()["spec"]["taints"], json!([]));
        assert_eq!(change_of(json!([other])), None);
    }
}
