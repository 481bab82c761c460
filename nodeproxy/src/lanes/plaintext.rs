//! What comes to a pod's application in plaintext: from outside the mesh, from the node, from the kubelet.

use std::rc::Rc;

use underpass_model::AddressPair;
use underpass_policy::{Origin, Source};

use super::Failure;
use crate::{
    account::{Direction, Record},
    authorize::{AdmitError, Judged},
    capture::{
        Captured, Knock,
        socket::{self, SourceAddress},
    },
    connections::{Arrival, Lease},
    identify,
    tunnel::{DialError, Upstream},
    worker::Worker,
};

/// Carries one connection.
pub(super) async fn run(knock: Knock, arrival: Arrival, worker: Rc<Worker>) {
    let mut record = Record::open(&worker.books, Direction::Inbound, (knock.client, knock.pod.budget.held()));
    let outcome = carry(knock, &arrival, &worker, &mut record).await;
    record.close(outcome.as_ref().copied().map_err(Failure::failed));
}

async fn carry(knock: Knock, arrival: &Arrival, worker: &Worker, record: &mut Record) -> Result<(), Failure> {
    let (captured, share) = Captured::of(knock)?;
    record.destination.addr = Some(captured.original_dst);
    if share.is_err() {
        record.destination.workload = worker.shared.mesh.view().workload(&captured.pod.workload).cloned();
    }
    let _share = share.inspect_err(|over| captured.pod.budget.refused(*over))?;
    let (application, lease) = connect(&captured, arrival, worker, record).await?;
    super::copy(captured.stream, application, &lease, record.established()).await
}

async fn connect<'a>(
    captured: &Captured,
    arrival: &'a Arrival,
    worker: &Worker,
    record: &mut Record,
) -> Result<(Upstream, Lease<'a>), Failure> {
    let shared = &worker.shared;
    let view = shared.mesh.view();
    let (client, pod) = (captured.client.ip(), &captured.pod);
    record.destination.workload = view.workload(&pod.workload).cloned();
    record.destination.identity = Some(pod.identity.clone());
    let mut caller = identify::stranger(&view, &shared.place.network, client, Origin::Remote);
    if !caller.workload.as_ref().is_some_and(|workload| workload.uid.is_pod()) {
        // No pod that we know: perhaps the node itself, whose address may also be an endpoint of a service.
        let connection = AddressPair { client: captured.client, server: captured.original_dst };
        let origin = shared.probes.origin(&pod.uid, connection).await;
        record.origin = Some(origin);
        caller = identify::stranger(&view, &shared.place.network, client, origin);
    }
    record.source.workload.clone_from(&caller.workload);

    let is_gone = matches!(caller.source, Source::Stranger(_, Origin::Gone));
    let judged = Judged { source: caller.source, client, application: captured.original_dst };
    let lease = match pod.gate().admit(arrival, (&shared.mesh, &shared.place.network), judged).await {
        // Most likely the kubelet that wanted to see no more than an open port.
        Err(AdmitError::Denied(_)) if is_gone => return Err(Failure::ClosedEarly),
        admitted => admitted?,
    };
    record.permitted(lease.permit());
    let to = lease.permit().destination();
    let connected = socket::connect_end(pod.netns(), to, SourceAddress::Client(client));
    let stream = lease.unless_ended(connected).await?.map_err(|error| DialError::Connect(to, error))?;
    Ok((Upstream::Tcp(stream), lease))
}
