//! Step four: whether a connection may be. The facts are gathered here; `lib/policy` decides.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use underpass_discovery::{Mesh, View};
use underpass_model::{Identity, Network, NetworkAddress, Workload, WorkloadUid};
use underpass_policy::{Denial, Facts, Hop, Objection, Origin, Permit, PolicySet, Source};

use crate::{
    connections::{Arrival, Ended, Lease},
    pods::Pod,
    resolve::NextHop,
};

/// How long a connection waits until this pod is known, and with it what it is under.
const OWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection waits for a policy that is named but not known: mostly it is just under way.
const POLICY_DEADLINE: Duration = Duration::from_secs(1);

/// Why a connection is not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    /// Not allowed.
    #[error("denied")]
    Denied(#[from] Denial),
    /// The pod goes.
    #[error("ended")]
    Ended(#[from] Ended),
    /// Nobody told yet what this pod is under.
    #[error("workload {0} is not known yet, nor what it is under")]
    OwnUnknown(WorkloadUid),
}

/// What an inbound connection is judged by, kept so that it can be judged again.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// Who speaks.
    pub(crate) source: Source,
    /// The address that the connection came from.
    pub(crate) client: IpAddr,
    /// The application.
    pub(crate) application: SocketAddr,
}

/// Where connections come into a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate<'a> {
    /// Discovery's name of the pod.
    pub(crate) workload: &'a WorkloadUid,
    /// Who it is.
    pub(crate) own: &'a Identity,
}

/// May this pod connect there? Policies are the destination's; here only what holds without them is asked.
pub(crate) fn outbound(pod: &Pod, caller: (&Source, IpAddr), next_hop: &NextHop) -> Result<Permit, Denial> {
    let (hop, destination) = match next_hop {
        NextHop::Passthrough(to) => (Hop::Passthrough, *to),
        NextHop::Plain { to, .. } => (Hop::Workload, *to),
        NextHop::Tunnel(hop) => match hop.authority {
            underpass_model::Authority::Address(target) => (Hop::Workload, target),
            underpass_model::Authority::Host { port, .. } => (Hop::Workload, SocketAddr::new(hop.to.ip(), port)),
        },
    };
    let (source, client) = caller;
    PolicySet::default().authorize(&Facts { source, client, own: &pod.identity, hop, destination })
}

impl Judged {
    /// May it reach the application, under these policies?
    pub(crate) fn judge(&self, own: &Identity, policies: &PolicySet) -> Result<Permit, Denial> {
        let Self { source, client, application } = self;
        let facts = Facts { source, client: *client, own, hop: Hop::Application, destination: *application };
        policies.authorize(&facts)
    }

    /// Nothing that a view could tell matters.
    fn is_above_policies(&self) -> bool {
        matches!(self.source, Source::Stranger(_, Origin::Kubelet))
    }
}

impl Gate<'_> {
    /// Judges a connection and registers it. What changes from here on is noticed: either by whoever judges live
    /// connections again, or, if that passed before this one was registered, by the second look here.
    pub(crate) async fn admit<'a>(
        &self,
        arrival: &'a Arrival,
        (mesh, network): (&Mesh, &Network),
        judged: Judged,
    ) -> Result<Lease<'a>, AdmitError> {
        if judged.is_above_policies() {
            let permit = judged.judge(self.own, &PolicySet::default())?;
            return Ok(arrival.admit(permit, Some(judged))?);
        }
        let view = self.known(mesh, network, judged.application.ip()).await?;
        let record = view.workload(self.workload).cloned().ok_or_else(|| self.unknown())?;
        let judge = |view: &View| self.judge(view, &record, &judged);
        let permit = match judge(&view) {
            Err(denial) if is_doubtful(&denial) => {
                let settled = mesh.wait_until(|view| !judge(view).is_err_and(|denial| is_doubtful(&denial)));
                let view = timeout(POLICY_DEADLINE, settled).await.unwrap_or(view);
                judge(&view)?
            }
            judged => judged?,
        };
        let lease = arrival.admit(permit, Some(judged.clone()))?;
        judge(&mesh.view())?;
        Ok(lease)
    }

    /// A workload that is gone from the view is under what its last record names, and what holds for everybody: its end is
    /// the agent's to tell.
    fn judge(&self, view: &View, last: &Arc<Workload>, judged: &Judged) -> Result<Permit, Denial> {
        let record = view.workload(self.workload).unwrap_or(last);
        judged.judge(self.own, &view.policies(record))
    }

    /// The view, as soon as it tells of this pod.
    async fn known(&self, mesh: &Mesh, network: &Network, own: IpAddr) -> Result<Arc<View>, AdmitError> {
        let tells = |view: &View| view.is_complete() && view.workload(self.workload).is_some();
        let view = mesh.view();
        if tells(&view) {
            return Ok(view);
        }
        let told = async {
            if mesh.wait_complete(OWN_DEADLINE).await {
                // Without discovery on demand this asks nobody; with it, the pod's own record comes only when asked for.
                let address = NetworkAddress { network: network.clone(), address: own };
                if let Err(error) = mesh.ask(&address).await {
                    tracing::debug!(%error, workload = %self.workload, "asking for a pod's own record");
                }
            }
            mesh.wait_until(tells).await
        };
        timeout(OWN_DEADLINE, told).await.map_err(|_elapsed| self.unknown())
    }

    fn unknown(&self) -> AdmitError {
        AdmitError::OwnUnknown(self.workload.clone())
    }
}

/// What stands against the connection may be gone in a moment: a policy that is named but not known.
pub(crate) fn is_doubtful(denial: &Denial) -> bool {
    denial.refusal().is_some_and(|refusal| refusal.objection == Objection::Unknown)
}

#[cfg(test)]
mod tests;
