//! Capture reports on a cluster: conditions of the pod itself.
//!
//! The node's agent says `underpass.dev/Captured` (true: it takes tunnels; false: it leaves), the operator answers a
//! report of leaving with `underpass.dev/Withdrawn`. As with files, a report has a number and an answer names it: an
//! answer that comes late is never taken for that to the next report. Conditions, because the right to write a pod's
//! status is a smaller one than to write the pod, and because people can wait for them and make them readiness gates.
//!
//! Here is how they are read; how they are written is in `cluster::report`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use tokio::{sync::watch, time};
use underpass_model::{
    PodUid,
    names::{CAPTURED_CONDITION, WITHDRAWN_CONDITION},
};

use crate::{
    object::ObjectName,
    pod,
    snapshot::Snapshot,
    status::{CaptureReport, CaptureState},
};

const REPORT: &str = "; report ";
const OF_AGENT: &str = " of the agent on ";
const ANSWER: &str = "; answers report ";

/// What the agent reports on a pod; `None` if nothing, or nothing that can be read.
#[must_use]
pub fn capture(object: &Pod) -> Option<CaptureReport> {
    let condition = condition(object, CAPTURED_CONDITION)?;
    let state = match condition.status.as_str() {
        "True" => CaptureState::Captured,
        "False" => CaptureState::Leaving,
        _ => return None,
    };
    let (_, said) = condition.message.as_deref()?.rsplit_once(REPORT)?;
    let (generation, node) = said.split_once(OF_AGENT)?;
    let ObjectName { namespace, name } = pod::name(object);
    let pod_uid = pod::uid(object)?.as_str().to_owned();
    Some(CaptureReport { pod_uid, namespace, name, node: node.into(), state, generation: generation.parse().ok()? })
}

/// The report of leaving that the operator has answered.
#[must_use]
pub fn withdrawn(object: &Pod) -> Option<u64> {
    let condition = condition(object, WITHDRAWN_CONDITION)?;
    let (_, generation) = condition.message.as_deref()?.rsplit_once(ANSWER)?;
    generation.parse().ok().filter(|_| condition.status == "True")
}

/// For agents: waits until a report of leaving is answered, or its pod is gone; false if neither happened in time.
pub async fn wait_withdrawn(
    snapshots: &mut watch::Receiver<Snapshot>,
    uid: &PodUid,
    name: &ObjectName,
    generation: u64,
    deadline: Duration,
) -> bool {
    let answered = snapshots.wait_for(|snapshot| {
        let object = snapshot.objects.pods.get(name).filter(|object| pod::uid(object).as_ref() == Some(uid));
        object.map_or_else(|| snapshot.is_sure(), |object| withdrawn(object) == Some(generation))
    });
    matches!(time::timeout(deadline, answered).await, Ok(Ok(_)))
}

fn condition<'a>(object: &'a Pod, of_type: &str) -> Option<&'a PodCondition> {
    let conditions = object.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == of_type)
}

/// The message of a report: for people first, then what [`capture`] reads.
#[cfg(feature = "cluster")]
pub(crate) fn report_message(report: &CaptureReport) -> String {
    let text = match report.state {
        CaptureState::Captured => "its connections go through the node proxy",
        CaptureState::Leaving => "it leaves the mesh",
    };
    format!("{text}{REPORT}{}{OF_AGENT}{}", report.generation, report.node)
}

/// The message of an answer: for people first, then what [`withdrawn`] reads.
#[cfg(feature = "cluster")]
pub(crate) fn answer_message(generation: u64) -> String {
    format!("no node proxy begins a tunnel to it{ANSWER}{generation}")
}
