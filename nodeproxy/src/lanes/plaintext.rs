//! What comes to a pod's application in plaintext: from outside the mesh, from the node, from the kubelet.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use underpass_hbone::copy::reset_on_close;
use underpass_model::AddressPair;
use underpass_policy::Origin;

use super::Failure;
use crate::{
    account::{Direction, Record},
    authorize,
    capture::{
        Captured, Knock, original_dst,
        socket::{self, SourceAddress},
    },
    connections::Lease,
    identify,
    tunnel::{DialError, Upstream},
    worker::Worker,
};

/// Carries one connection.
pub(super) async fn run(knock: Knock, worker: Rc<Worker>) {
    let mut record = Record::open(Direction::Inbound, knock.client);
    let outcome = carry(knock, &worker, &mut record).await;
    record.close(outcome.as_ref().copied().map_err(Failure::failed));
}

async fn carry(knock: Knock, worker: &Worker, record: &mut Record) -> Result<(), Failure> {
    let original_dst = match original_dst(&knock.stream) {
        Ok(address) => address,
        Err(error) => {
            reset_on_close(&knock.stream);
            return Err(error.into());
        }
    };
    let captured = Captured { stream: knock.stream, client: knock.client, original_dst, pod: knock.pod };
    record.destination.addr = Some(original_dst);
    match connect(&captured, worker, record).await {
        Ok((application, lease)) => super::copy(captured.stream, application, &lease, &record.meter).await,
        Err(failure) => {
            reset_on_close(&captured.stream);
            Err(failure)
        }
    }
}

async fn connect(captured: &Captured, worker: &Worker, record: &mut Record) -> Result<(Upstream, Lease), Failure> {
    let shared = &worker.shared;
    let view = shared.mesh.view();
    let (client, pod) = (captured.client.ip(), &captured.pod);
    record.destination.workload = view.workload(&pod.workload).cloned();
    let mut caller = identify::stranger(&view, &shared.place.network, client, Origin::Remote);
    if caller.workload.is_none() {
        // No pod that we know: perhaps the node itself.
        let connection = AddressPair { client: captured.client, server: captured.original_dst };
        let origin = shared.probes.origin(&pod.uid, connection).await;
        caller = identify::stranger(&view, &shared.place.network, client, origin);
    }
    record.source.workload.clone_from(&caller.workload);

    let application: SocketAddr = captured.original_dst;
    let permit = authorize::inbound(pod, &caller.source, application)?;
    let lease = pod.connections.admit(permit)?;
    let to = lease.permit().destination();
    let connected = socket::connect(Arc::as_ref(pod).netns(), to, SourceAddress::Keep(client)).await;
    let stream = connected.map_err(|error| DialError::Connect(to, error))?;
    Ok((Upstream::Tcp(stream), lease))
}
