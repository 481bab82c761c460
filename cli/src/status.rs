//! `underpass status`: what runs, what is enrolled, and what users should look at.

use std::process::ExitCode;

use anyhow::Result;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Namespace};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
};
use serde_json::Value;
use underpass_model::names::{ENROLLED, ENROLLED_CONDITION, MESH_LABEL, SYSTEM_NAMESPACE};

use crate::{
    cluster::{self, Cluster, named},
    manifests::{self, Choice},
    screen,
};

/// Say what of the mesh runs, which namespaces are in it, and which policies are not in force. Fails if anything is not
/// as it should be
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: cluster::Options,
    #[command(flatten)]
    choice: Choice,
}

/// Kinds of ours whose status says whether they are in force, with their plurals.
const POLICIES: [(&str, &str); 3] =
    [("AuthorizationPolicy", "authorizationpolicies"), ("MeshConfig", "meshconfigs"), ("MeshTLSMode", "meshtlsmodes")];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    cluster::on(status(arguments))
}

async fn status(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = Cluster::connect(&arguments.cluster).await?;
    let mut well = parts(&cluster, &arguments.choice).await?;
    well &= namespaces(&cluster).await?;
    well &= policies(&cluster).await?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Workloads of the mesh, and who leads.
async fn parts(cluster: &Cluster, choice: &Choice) -> Result<bool> {
    screen::heading("Mesh");
    let mut well = true;
    for object in choice.objects()?.iter().filter(|object| manifests::is_workload(object)) {
        let found = cluster.get(object).await?;
        let (is_well, text) = part(found.as_ref());
        well &= is_well;
        let line = format!("{}: {text}", named(object));
        if is_well { screen::good(&line) } else { screen::bad(&line) }
    }
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), SYSTEM_NAMESPACE);
    let lease = leases.get_opt("underpass-operator").await?;
    if let Some(leader) = lease.and_then(|lease| lease.spec?.holder_identity).filter(|holder| !holder.is_empty()) {
        screen::note(&format!("the operator that writes is {leader}"));
    }
    Ok(well)
}

fn part(found: Option<&DynamicObject>) -> (bool, String) {
    let Some(found) = found else { return (false, "is not installed".into()) };
    match manifests::progress(found) {
        Some((wanted, ready)) => (ready >= wanted, format!("{ready} of {wanted} ready")),
        None => (false, "not seen by its controller yet".into()),
    }
}

async fn namespaces(cluster: &Cluster) -> Result<bool> {
    screen::heading("Namespaces");
    let all = Api::<Namespace>::all(cluster.client.clone()).list(&ListParams::default()).await?.items;
    let rows: Vec<(bool, Vec<String>)> = all.iter().filter_map(enrolment).collect();
    if rows.is_empty() {
        screen::note("none is enrolled: kubectl label namespace NAME underpass.dev/mesh=enabled");
    } else {
        let cells: Vec<Vec<String>> = rows.iter().map(|(_, row)| row.clone()).collect();
        screen::table(&["NAMESPACE", "ENROLLED", "SINCE", "PODS"], &cells);
    }
    Ok(rows.iter().all(|(well, _)| *well))
}

/// A row about a namespace that is enrolled, or has pods that are or were.
fn enrolment(namespace: &Namespace) -> Option<(bool, Vec<String>)> {
    let name = namespace.metadata.name.clone()?;
    let labels = namespace.metadata.labels.as_ref();
    let is_labelled = labels.and_then(|labels| labels.get(MESH_LABEL)).is_some_and(|value| value == ENROLLED);
    let conditions = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
    let condition = conditions.into_iter().flatten().find(|condition| condition.type_ == ENROLLED_CONDITION);
    let Some(condition) = condition else {
        // No operator has seen it, or it has no pods.
        return is_labelled.then(|| (true, vec![name, "no pods".into(), String::new(), String::new()]));
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let since = condition.last_transition_time.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
    Some((condition.status == "True", vec![name, text(&condition.reason), since, text(&condition.message)]))
}

async fn policies(cluster: &Cluster) -> Result<bool> {
    let mut complaints = Vec::new();
    let mut count = 0;
    for (kind, plural) in POLICIES {
        let kind = GroupVersionKind::gvk("underpass.dev", "v1alpha1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let all = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource).list(&ListParams::default()).await;
        let items = match all {
            Ok(list) => list.items,
            // The kind is not installed, so there are none.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error.into()),
        };
        count += items.len();
        complaints.extend(items.iter().filter_map(|item| complaint(&kind.kind, item)));
    }
    screen::heading("Policies");
    complaints.iter().for_each(|complaint| screen::bad(complaint));
    if complaints.is_empty() {
        screen::good(&format!("{count}, all in force as they were written"));
    }
    Ok(complaints.is_empty())
}

/// What is wrong with a policy, by its conditions: each must be there, true, and about what the policy says now.
fn complaint(kind: &str, policy: &DynamicObject) -> Option<String> {
    let metadata = &policy.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let name = match metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    };
    let conditions = policy.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    for wanted in ["Accepted", "Programmed"] {
        let text = |condition: &Value, key: &str| condition.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let Some(condition) = conditions.iter().find(|condition| text(condition, "type") == wanted) else {
            return Some(format!("{name}: no operator has said anything of it"));
        };
        let seen = condition.get("observedGeneration").and_then(Value::as_i64);
        if seen.is_some() && seen < metadata.generation {
            return Some(format!("{name}: its newest change has not been taken up yet"));
        }
        if text(condition, "status") != "True" {
            return Some(format!("{name}: {}: {}", text(condition, "reason"), text(condition, "message")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_enrolled_namespace_is_shown_with_what_the_operator_says_of_it() {
        let row = |labels: Value, conditions: Value| {
            let namespace =
                json!({ "metadata": { "name": "shop", "labels": labels }, "status": { "conditions": conditions } });
            enrolment(&serde_json::from_value(namespace).unwrap())
        };
        let condition = |status: &str, reason: &str| json!([{ "type": ENROLLED_CONDITION, "status": status, "reason": reason, "message": "1 of 2 pods captured" }]);
        let label = json!({ MESH_LABEL: ENROLLED });
        assert_eq!(row(json!({}), json!([])), None);
        assert_eq!(row(label.clone(), json!([])).unwrap().1[1], "no pods");
        let (well, cells) = row(label, condition("False", "Waiting")).unwrap();
        assert!(!well && cells[1] == "Waiting" && cells[3] == "1 of 2 pods captured", "{cells:?}");
        // Its label is gone, but pods of it have their own.
        assert!(row(json!({}), condition("True", "AllCaptured")).unwrap().0);
    }

    #[test]
    fn a_policy_is_complained_of_unless_it_is_in_force_as_it_is_written() {
        let policy = |generation: i64, conditions: Value| {
            let object = json!({
                "apiVersion": "underpass.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "p", "namespace": "shop", "generation": generation },
                "status": { "conditions": conditions },
            });
            complaint("AuthorizationPolicy", &serde_json::from_value(object).unwrap())
        };
        let condition = |of: &str, status: &str| json!({ "type": of, "status": status, "reason": "NeedsWaypoint", "message": "why", "observedGeneration": 2 });
        let both = |accepted: &str| json!([condition("Accepted", accepted), condition("Programmed", "True")]);
        assert_eq!(policy(2, both("True")), None);
        for (conditions, generation, said) in [
            (json!([]), 2, "no operator"),
            (json!([condition("Accepted", "True")]), 2, "no operator"),
            (both("True"), 3, "newest change"),
            (both("False"), 2, "NeedsWaypoint: why"),
        ] {
            let complaint = policy(generation, conditions).unwrap();
            assert!(complaint.starts_with("AuthorizationPolicy shop/p: ") && complaint.contains(said), "{complaint}");
        }
    }

    #[test]
    fn a_part_is_well_when_all_of_it_is_ready() {
        assert_eq!(part(None), (false, "is not installed".into()));
        let deployment = |ready: u64| {
            let object = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a", "generation": 1 },
                "spec": { "replicas": 2 },
                "status": { "observedGeneration": 1, "availableReplicas": ready, "updatedReplicas": 2 },
            });
            serde_json::from_value::<DynamicObject>(object).unwrap()
        };
        assert_eq!(part(Some(&deployment(1))), (false, "1 of 2 ready".into()));
        assert_eq!(part(Some(&deployment(2))), (true, "2 of 2 ready".into()));
    }
}
