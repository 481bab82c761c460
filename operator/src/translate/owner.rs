//! What made a pod: the name under which people know it.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use underpass_model::WorkloadKind;
use underpass_objects::pod;

/// The kind and name of a pod's maker; a pod without one made itself.
pub(super) fn owner(pod: &Pod) -> (WorkloadKind, String) {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return (WorkloadKind::Pod, pod::name(pod).name);
    };
    match owner.kind.as_str() {
        "ReplicaSet" => of_replica_set(pod, owner),
        "Job" => of_job(owner),
        "Deployment" => (WorkloadKind::Deployment, owner.name.clone()),
        "CronJob" => (WorkloadKind::CronJob, owner.name.clone()),
        _ => (WorkloadKind::Pod, owner.name.clone()),
    }
}

/// A Deployment names its ReplicaSets by its own name and the hash that it also puts on the pods.
fn of_replica_set(pod: &Pod, owner: &OwnerReference) -> (WorkloadKind, String) {
    let hash = pod::label(pod, "pod-template-hash").filter(|hash| !hash.is_empty());
    let stem = hash.and_then(|hash| owner.name.strip_suffix(hash)).and_then(|stem| stem.strip_suffix('-'));
    match stem.filter(|stem| !stem.is_empty()) {
        Some(deployment) => (WorkloadKind::Deployment, deployment.to_owned()),
        None => (WorkloadKind::Pod, owner.name.clone()),
    }
}

/// A CronJob names its Jobs by its own name and the minute (formerly the second) of their schedule.
fn of_job(owner: &OwnerReference) -> (WorkloadKind, String) {
    let scheduled = owner.name.rsplit_once('-').filter(|(stem, time)| {
        !stem.is_empty() && (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit())
    });
    match scheduled {
        Some((cron_job, _)) => (WorkloadKind::CronJob, cron_job.to_owned()),
        None => (WorkloadKind::Job, owner.name.clone()),
    }
}
