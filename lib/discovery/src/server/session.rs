//! One subscriber's stream: requests in, published states in, responses out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost_types::value::Kind;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};
use underpass_runtime::{Shutdown, tasks};

use super::{
    registry::Place,
    state::State,
    subscription::{Answer, Subscription},
};
use crate::wire::{
    ResourceType, UNDERSTANDS_PARTIAL,
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
};

/// The responses of one stream.
pub(super) type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

/// Responses that wait for the transport: one of each type is unanswered at most.
const OUTGOING: usize = ResourceType::ALL.len();

/// Who opens a stream says within this time what for.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// One subscriber's stream.
pub(super) struct Session {
    requests: Streaming<DeltaDiscoveryRequest>,
    states: watch::Receiver<Option<Arc<State>>>,
    place: Place,
    understands_partial: bool,
    subscriptions: BTreeMap<ResourceType, Subscription>,
}

impl Session {
    pub(super) fn new(
        requests: Streaming<DeltaDiscoveryRequest>,
        states: watch::Receiver<Option<Arc<State>>>,
        place: Place,
    ) -> Self {
        Self { requests, states, place, understands_partial: false, subscriptions: BTreeMap::new() }
    }

    /// Serves until either side ends.
    pub(super) fn start(mut self, shutdown: Shutdown) -> Responses {
        let (outgoing, responses) = mpsc::channel(OUTGOING);
        tasks::spawn("discovery subscriber", async move {
            info!(subscriber = self.place.name(), "subscriber came");
            let expelled = self.place.expulsion();
            let ended = tokio::select! {
                ended = self.serve(&outgoing) => ended,
                () = expelled => Err(Status::aborted("the stream must be opened anew")),
                () = shutdown.requested() => Err(Status::unavailable("the control plane stops")),
                () = outgoing.closed() => Ok(()),
            };
            let cause = ended.as_ref().err().map(Status::message);
            info!(subscriber = self.place.name(), cause, "subscriber went");
            if let Err(status) = ended {
                // No room means that the subscriber does not read: it need not be told.
                let _untold = outgoing.try_send(Err(status));
            }
        });
        ReceiverStream::new(responses)
    }

    async fn serve(&mut self, outgoing: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>) -> Result<(), Status> {
        let first = timeout(FIRST_REQUEST, self.requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no request"))??;
        let Some(first) = first else { return Ok(()) };
        self.take(first)?;
        loop {
            for response in self.responses()? {
                if outgoing.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(()),
                },
                changed = self.states.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
    }

    fn take(&mut self, mut request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(node) = request.node.take() {
            self.place.set_node_id(&node.id);
            self.understands_partial |= understands_partial(&node);
        }
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            debug!(subscriber = self.place.name(), type_url = request.type_url, "request for a type that is not known");
            return Ok(());
        };
        let Some(subscription) = self.subscriptions.get_mut(&kind) else {
            let subscription = Subscription::open(kind, self.understands_partial, request)?;
            self.subscriptions.insert(kind, subscription);
            return Ok(());
        };
        if let Some(Answer::Refused(message)) = subscription.request(request)? {
            warn!(subscriber = self.place.name(), ?kind, message, "subscriber refused resources");
            self.place.set_refusal(kind, &message);
        }
        Ok(())
    }

    /// What is to be said now.
    fn responses(&mut self) -> Result<Vec<DeltaDiscoveryResponse>, Status> {
        let Some(state) = self.states.borrow_and_update().clone() else { return Ok(Vec::new()) };
        let mut responses = Vec::new();
        // Policies before the workloads that name them: a policy that is named but not known refuses.
        for subscription in self.subscriptions.values_mut().rev() {
            responses.extend(subscription.next(&state)?);
        }
        let answered = self.subscriptions.values().map(Subscription::answered).min();
        self.place.set_answered(answered.unwrap_or(0));
        Ok(responses)
    }
}

fn understands_partial(node: &Node) -> bool {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(UNDERSTANDS_PARTIAL));
    value.is_some_and(|value| value.kind == Some(Kind::BoolValue(true)))
}
