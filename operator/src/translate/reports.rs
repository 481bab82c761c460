//! Where the agents' reports on capture are found.

use std::borrow::Cow;

use imbl::OrdMap;
use k8s_openapi::api::core::v1::Pod;
use underpass_model::PodUid;
use underpass_objects::{CaptureReport, pod, report};

/// The agents' reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Reports {
    /// Each stands on its pod.
    OnPods,
    /// By pod.
    Apart(OrdMap<PodUid, CaptureReport>),
}

impl Reports {
    /// The report on a pod.
    #[must_use]
    pub fn of(&self, pod: &Pod) -> Option<Cow<'_, CaptureReport>> {
        match self {
            Self::OnPods => report::capture(pod).map(Cow::Owned),
            Self::Apart(reports) => reports.get(&pod::uid(pod)?).map(Cow::Borrowed),
        }
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self::Apart(OrdMap::new())
    }
}
