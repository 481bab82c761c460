//! How capture reports and their answers are written: patches of a pod's status. What they mean is in [`crate::report`].

use std::time::SystemTime;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use underpass_model::names::{CAPTURED_CONDITION, WITHDRAWN_CONDITION};

use crate::{
    object::ObjectName,
    report::{answer_message, report_message},
    status::{CaptureReport, CaptureState},
};

/// Who writes, as the API server records it.
const AGENT: &str = "underpass-agent";
const OPERATOR: &str = "underpass-operator";

/// Why a pod's status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The pod is gone, or another one has its name.
    #[error("the pod is gone")]
    Gone,
    /// The API server says no, or nothing.
    #[error("status of the pod cannot be written")]
    Api(#[from] Box<kube::Error>),
}

/// For agents: puts a report in the place of the one before, and says which generation it became. An answer to an
/// earlier one goes with it.
///
/// # Errors
/// [`ReportError`] if it cannot be written; then the one before stands.
pub async fn report(client: &Client, report: &CaptureReport) -> Result<u64, ReportError> {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let generation = u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX).max(report.generation.saturating_add(1));
    let report = CaptureReport { generation, ..report.clone() };
    let (status, reason) = match report.state {
        CaptureState::Captured => ("True", "Captured"),
        CaptureState::Leaving => ("False", "Leaving"),
    };
    let captured = condition(CAPTURED_CONDITION, status, reason, &report_message(&report));
    let name = ObjectName::new(&report.namespace, &report.name);
    patch(client, AGENT, &name, &report.pod_uid, &[captured, no_condition(WITHDRAWN_CONDITION)]).await?;
    Ok(generation)
}

/// For agents: a pod that is not captured any more has no report. One that is gone needs nothing.
///
/// # Errors
/// [`ReportError`] if the report stays.
pub async fn forget(client: &Client, pod: &ObjectName, uid: &str) -> Result<(), ReportError> {
    let conditions = [no_condition(CAPTURED_CONDITION), no_condition(WITHDRAWN_CONDITION)];
    match patch(client, AGENT, pod, uid, &conditions).await {
        Err(ReportError::Gone) => Ok(()),
        outcome => outcome,
    }
}

/// For the operator: answers that report of leaving.
///
/// # Errors
/// [`ReportError`] if the answer cannot be written.
pub async fn answer(client: &Client, report: &CaptureReport, acknowledged: bool) -> Result<(), ReportError> {
    let reason = if acknowledged { "Acknowledged" } else { "DeadlinePassed" };
    let withdrawn = condition(WITHDRAWN_CONDITION, "True", reason, &answer_message(report.generation));
    let name = ObjectName::new(&report.namespace, &report.name);
    patch(client, OPERATOR, &name, &report.pod_uid, &[withdrawn]).await
}

fn condition(of_type: &str, status: &str, reason: &str, message: &str) -> Value {
    // Whole seconds: Kubernetes keeps no finer ones.
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    json!({
        "type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": now.to_string(),
    })
}

fn no_condition(of_type: &str) -> Value {
    json!({ "$patch": "delete", "type": of_type })
}

/// The uid makes it an error to mean a pod that is gone and hit its successor.
async fn patch(
    client: &Client,
    manager: &str,
    pod: &ObjectName,
    uid: &str,
    conditions: &[Value],
) -> Result<(), ReportError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let parameters = PatchParams { field_manager: Some(manager.into()), ..PatchParams::default() };
    let body = json!({ "metadata": { "uid": uid }, "status": { "conditions": conditions } });
    match api.patch_status(&pod.name, &parameters, &Patch::Strategic(body)).await {
        Ok(_pod) => Ok(()),
        // Another uid is a conflict.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Err(ReportError::Gone),
        Err(error) => Err(ReportError::Api(Box::new(error))),
    }
}
