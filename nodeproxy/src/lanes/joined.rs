//! Two pods of this node, joined without a tunnel: the called pod's half, which judges, connects and accounts as for a
//! peer's stream. The caller's half carries the bytes, and each half ends when the other does.

use std::{rc::Rc, sync::Arc};

use tokio::sync::oneshot;
use underpass_hbone::CopyError;
use underpass_model::{Identity, SerialNumber};

use super::{
    Failure,
    inbound::{self, Ends, Target},
};
use crate::{
    account::{Direction, Record},
    connections::Arrival,
    tunnel::joined::{Answer, Call, Joined},
    worker::{self, Worker},
};

/// Starts the called pod's half.
pub(super) fn answer(call: Call, answer: Answer, worker: &Rc<Worker>) {
    worker::carry(half(call, answer, Rc::clone(worker)));
}

async fn half(call: Call, answer: Answer, worker: Rc<Worker>) {
    let arrival = call.pod.connections.arrive();
    let mut record = Record::open_with(&worker.books, Direction::Inbound, call.client, Arc::clone(&call.meter));
    record.source.identity = Some(call.peer.clone());
    let outcome = answer_for(call, answer, (&arrival, &worker), &mut record).await;
    record.close(outcome.as_ref().copied().map_err(Failure::failed));
}

/// Completes when a certificate of one of them is revoked. Those are their present ones: a later one would have been good.
fn revoked(worker: &Worker, ends: [&Identity; 2]) -> impl Future<Output = SerialNumber> + use<> {
    let certificates = &worker.shared.certificates;
    let [caller, called] = ends.map(|identity| {
        let shown = certificates.credentials(identity).map(|credentials| credentials.shown.clone());
        // Without one nothing was ever shown that could be revoked.
        certificates.revocations().wait(shown.unwrap_or_default())
    });
    async move {
        tokio::select! {
            serial = caller => serial,
            serial = called => serial,
        }
    }
}

async fn answer_for(
    call: Call,
    mut answer: Answer,
    (arrival, worker): (&Arrival, &Worker),
    record: &mut Record,
) -> Result<(), Failure> {
    let target = Target { authority: Ok(call.authority), told: call.told };
    let ends = Ends { pod: call.pod, peer: call.peer, client: call.client, hbone: call.hbone };
    let connected = tokio::select! {
        connected = inbound::connect(target, (&ends, arrival), worker, record) => connected,
        () = answer.closed() => return Err(Failure::Cancelled),
    };
    match connected {
        Ok((application, lease, _share)) => {
            record.established();
            let (over, ended) = oneshot::channel();
            // As a tunnel is cut when what its peer showed is revoked. In a box: it waits nearly always, and is large.
            let revoked = Box::pin(revoked(worker, [&ends.peer, &ends.pod.identity]));
            let joined = Joined { application, peer: ends.pod.identity.clone(), over };
            answer.send(Ok(joined)).map_err(|_| Failure::Cancelled)?;
            let ended = tokio::select! {
                ended = lease.unless_ended(ended) => ended?,
                serial = revoked => return Err(CopyError::revoked(serial).into()),
            };
            // A caller's half that is dropped has reset the connection.
            Ok(ended.unwrap_or_else(|_| Err(CopyError::downstream_reset()))?)
        }
        Err(failure) => {
            drop(answer.send(Err(inbound::status(&failure))));
            Err(failure)
        }
    }
}
