//! What a pod's application dials.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::time::timeout;
use underpass_discovery::View;
use underpass_model::{NetworkAddress, PodUid, Service, Workload, WorkloadUid};

use super::{Failure, joined};
use crate::{
    account::{Direction, Record},
    authorize,
    balance::{Active, Place},
    capture::{Captured, Knock},
    connections::{Arrival, Lease},
    identify,
    resolve::{Question, Resolved, resolve},
    tunnel::{DialError, Dialler, Upstream},
    waits,
    worker::{Shared, Worker},
};

/// How long a connection waits, on demand, for what the mesh knows of the pod that makes it.
const OWN_PATIENCE: Duration = Duration::from_millis(100);
/// Endpoints of a service that are tried for one connection.
const TRIES: usize = 3;

/// Carries one connection.
pub(super) async fn run(knock: Knock, arrival: Arrival, worker: Rc<Worker>) {
    let mut record = Record::open(&worker.books, Direction::Outbound, (knock.client, knock.pod.budget.held()));
    let outcome = carry(knock, &arrival, &worker, &mut record).await;
    record.close(outcome.as_ref().copied().map_err(Failure::failed));
}

async fn carry(knock: Knock, arrival: &Arrival, worker: &Rc<Worker>, record: &mut Record) -> Result<(), Failure> {
    let (captured, share) = Captured::of(knock)?;
    record.destination.addr = Some(captured.original_dst);
    if share.is_err() {
        record.source.workload = worker.shared.mesh.view().workload(&captured.pod.workload).cloned();
    }
    let mut share = share.inspect_err(|over| captured.pod.budget.refused(*over))?;
    let (upstream, lease, _active) = connect(&captured, arrival, worker, record).await?;
    // Of a joined connection the socket onwards is the called pod's.
    if matches!(upstream, Upstream::Tunnel(..) | Upstream::Joined(_)) {
        share.in_a_tunnel();
    }
    super::copy(captured.stream, upstream, &lease, record.established()).await
}

/// On demand: learns who is at an address. Without an answer, an address that may be the mesh's is refused: whoever is
/// there may be one to whom nobody should speak in plaintext. The caller is asked for as well, so that it is known whose
/// the connection is; without that it goes on after a moment.
async fn ask(worker: &Worker, (own, address): (IpAddr, IpAddr)) -> Result<(), Failure> {
    let shared = &worker.shared;
    if !shared.mesh.is_on_demand() {
        return Ok(());
    }
    let who = |address| NetworkAddress { network: shared.place.network.clone(), address };
    let (own, there) = (who(own), who(address));
    let (asked, _known_or_late) = tokio::join!(shared.mesh.ask(&there), timeout(OWN_PATIENCE, shared.mesh.ask(&own)));
    let ranges = &shared.mesh_ranges;
    match asked {
        Ok(_known) => Ok(()),
        Err(_) if !ranges.is_empty() && !ranges.iter().any(|range| range.contains(&address)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where a service has session affinity, the pod keeps the endpoint that it was connected to. Who is sent to a waypoint
/// keeps none: the choice is the waypoint's.
fn keep(shared: &Shared, pod: &PodUid, resolved: &Resolved, endpoint: &WorkloadUid) {
    let Some(service) = resolved.service.as_ref().filter(|service| service.waypoint.is_none()) else { return };
    if let Some(time) = service.load_balancing.affinity {
        shared.sessions.keep(pod, &service.name, endpoint.clone(), time);
    }
}

type Connected<'a> = (Upstream, Lease<'a>, Option<Active>);

async fn connect<'a>(
    captured: &Captured,
    arrival: &'a Arrival,
    worker: &Rc<Worker>,
    record: &mut Record,
) -> Result<Connected<'a>, Failure> {
    let shared = &worker.shared;
    if !waits::view(&shared.mesh).await {
        return Err(Failure::View);
    }
    ask(worker, (captured.client.ip(), captured.original_dst.ip())).await?;
    let view: Arc<View> = shared.mesh.view();
    let caller = identify::local(&view, &captured.pod);
    record.source.identity = Some(captured.pod.identity.clone());
    record.source.workload.clone_from(&caller.workload);
    let place = caller.workload.as_deref().map_or_else(|| shared.place.clone(), Place::of);

    // Policies may look at the client's address, which a tunnel would have chosen, and not the application.
    let is_usual = |own: &Workload| own.joinable && own.addresses.contains(&captured.client.ip());
    let may_join = !shared.always_tunnel && caller.workload.as_deref().is_some_and(is_usual);

    let kept = |service: &Service| shared.sessions.kept(&captured.pod.uid, &service.name);
    let mut avoid = Vec::new();
    let mut failed: Option<DialError> = None;
    loop {
        let question = Question {
            view: &view,
            original_dst: captured.original_dst,
            namespace: &captured.pod.namespace,
            pod: &captured.pod.uid,
            kept: &kept,
            place: &place,
            may_join,
            avoid: &avoid,
        };
        let resolved = match resolve(&question, |uid| worker.loads.of(uid), fastrand::f64) {
            Ok(resolved) => resolved,
            // That nobody else is left says less than why the last one failed.
            Err(nobody) => return Err(failed.map_or_else(|| nobody.into(), Failure::from)),
        };
        let permit = authorize::outbound(&captured.pod, (&caller.source, captured.client.ip()), &resolved.next_hop)?;
        let lease = arrival.admit(permit, None)?;
        record.reaches(&resolved, captured.original_dst);
        let endpoint = resolved.next_hop.endpoint().map(|endpoint| endpoint.uid.clone());
        let active = endpoint.as_ref().map(|uid| worker.loads.begin(uid));

        let dialler = Dialler {
            worker,
            pod: &captured.pod,
            caller: &caller,
            client: captured.client,
            meter: record.meter(),
            answer: joined::answer,
        };
        match lease.unless_ended(dialler.dial(&resolved, &lease)).await? {
            Ok(upstream) => {
                if let Some(uid) = &endpoint {
                    worker.loads.reached(uid);
                    keep(shared, &captured.pod.uid, &resolved, uid);
                }
                match &upstream {
                    Upstream::Tcp(_) => {}
                    Upstream::Tunnel(_, peer) => record.destination.identity = Some(peer.clone()),
                    Upstream::Joined(joined) => {
                        record.destination.identity = Some(joined.peer.clone());
                        record.hbone_addr = None;
                    }
                }
                return Ok((upstream, lease, active));
            }
            Err(error) => {
                let retry = error.retry_elsewhere();
                if let (Some(uid), true) = (&endpoint, retry) {
                    worker.loads.failed(uid);
                }
                // Only a service leaves us a choice; whoever dialled a pod's address meant that pod.
                let again = retry && resolved.service.is_some() && avoid.len() + 1 < TRIES;
                let (Some(uid), true) = (endpoint, again) else { return Err(error.into()) };
                tracing::debug!(endpoint = %uid, reason = error.reason(), "trying another endpoint");
                avoid.push(uid);
                failed = Some(error);
            }
        }
    }
}
