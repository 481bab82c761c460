//! Subscribes to a control plane and feeds the store: one stream for all types, deltas only.
//!
//! A broken stream loses nothing: the store keeps its view, and the next stream begins with the versions that are held,
//! so that only what changed meanwhile is sent. A resource that cannot be understood is refused by name while the good
//! ones of the same response are kept; types and fields that are not known are ignored.
//!
//! On demand, the subscriber starts from nothing and asks for the addresses that readers want to reach.

mod copying;
mod digest;
mod questions;

use std::{collections::BTreeMap, error::Error as _, future::Future, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};
use underpass_runtime::{Backoff, Shutdown, control::Control, metrics::catalogue};

use crate::{
    kept::KeptView,
    store::{Ask, Store},
    wire::{
        MESSAGE_LIMIT, ResourceType, UNDERSTANDS_PARTIAL, WILDCARD,
        xds::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
};
use copying::Copying;
pub(crate) use digest::digest;
use questions::Questions;

/// Who subscribes, and to how much.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// The name under which the control plane knows this subscriber.
    pub node_id: String,
    /// What else it shall know of it, such as `NODE_NAME`.
    pub metadata: BTreeMap<String, String>,
    /// Ask for single addresses instead of holding the whole mesh.
    pub on_demand: bool,
    /// Where a copy of the view is kept, for a start without the control plane. Not used on demand.
    pub kept: Option<KeptView>,
}

/// Requests on their way to the control plane.
pub type Requests = ReceiverStream<DeltaDiscoveryRequest>;

/// Where streams come from.
pub trait ControlPlane: Send + Sync {
    /// Opens a stream.
    fn open(
        &self,
        requests: Requests,
    ) -> impl Future<Output = Result<Streaming<DeltaDiscoveryResponse>, StreamError>> + Send;
}

/// Why a stream ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No connection, or no token.
    #[error("reach the control plane")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The control plane ended it without an error.
    #[error("the control plane closed the stream")]
    Closed,
    /// The control plane refused or broke it.
    #[error("the control plane answered {}: {}", .0.code(), .0.message())]
    Status(#[source] Box<tonic::Status>),
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl ControlPlane for Control {
    async fn open(&self, requests: Requests) -> Result<Streaming<DeltaDiscoveryResponse>, StreamError> {
        let channel = self.channel().await.map_err(|error| StreamError::Connect(error.into()))?;
        let mut request = tonic::Request::new(requests);
        self.authorize(&mut request).await.map_err(|error| StreamError::Connect(error.into()))?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        Ok(client.delta_aggregated_resources(request).await?.into_inner())
    }
}

/// Keeps the store up to date until asked to stop.
pub async fn run(control: impl ControlPlane, options: ClientOptions, mut store: Store, shutdown: Shutdown) {
    // Each node has a stream, and all of them end with one replica of the control plane.
    let mut backoff = Backoff::spread(Duration::from_secs(1), Duration::from_secs(15));
    if options.on_demand {
        store.take_questions();
    }
    let mut questions = Questions::default();
    let mut copying = Copying::new(options.kept.clone().filter(|_| !options.on_demand));
    copying.load(&mut store);
    loop {
        let started = Instant::now();
        let session = Session::open(&control, &options, &mut store, &mut questions, &mut copying);
        let ended = tokio::select! {
            error = async { session.await?.serve().await } => error,
            () = shutdown.requested() => return,
        };
        let Err(error) = ended;
        catalogue::DISCOVERY_CONNECTED.with([]).set(0.0);
        // A stream that lived shows that the control plane is well; one that dies young must not be tried in a hurry.
        if started.elapsed() > SETTLED {
            backoff.reset();
        }
        let delay = backoff.delay();
        let cause = error.source().map(ToString::to_string);
        warn!(%error, cause, delay_ms = delay.as_millis(), "discovery stream ended; the last view stays");
        tokio::select! {
            () = copying.meanwhile(&mut store, tokio::time::sleep(delay)) => {}
            () = shutdown.requested() => return,
        }
    }
}

/// A stream that lived this long was a success.
const SETTLED: Duration = Duration::from_secs(15);

/// Requests that may wait to be sent. Answers are at most one for each response, so this is never full for long.
const OUTGOING: usize = 64;

/// One stream.
struct Session<'a> {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    store: &'a mut Store,
    questions: &'a mut Questions,
    copying: &'a mut Copying,
}

/// What happened.
enum Event {
    Asked(Vec<Ask>),
    CopyDue,
    HeadStartOver,
    ReviewDue,
    Response(DeltaDiscoveryResponse),
}

/// A session never ends well.
enum Never {}

impl<'a> Session<'a> {
    async fn open(
        control: &impl ControlPlane,
        options: &ClientOptions,
        store: &'a mut Store,
        questions: &'a mut Questions,
        copying: &'a mut Copying,
    ) -> Result<Self, StreamError> {
        let (requests, sent) = mpsc::channel(OUTGOING);
        questions.renew(store.view());
        for kind in ResourceType::ALL {
            let first = subscribe(kind, options, store, questions);
            requests.try_send(first).map_err(|_| StreamError::Closed)?;
        }
        // Opening is rare and its future large (more than 4 KiB with TLS): keep it out of the client's own.
        let responses = Box::pin(control.open(ReceiverStream::new(sent)));
        let responses = copying.meanwhile(store, responses).await?;
        info!("discovery stream opened");
        catalogue::DISCOVERY_CONNECTED.with([]).set(1.0);
        Ok(Self { requests, responses, store, questions, copying })
    }

    async fn serve(mut self) -> Result<Never, StreamError> {
        loop {
            match self.next().await? {
                Event::Asked(asks) => self.ask(asks).await?,
                Event::CopyDue => self.copying.save(self.store),
                Event::HeadStartOver => self.copying.believe(self.store),
                Event::ReviewDue => self.review().await?,
                Event::Response(response) => self.take(response).await?,
            }
        }
    }

    async fn next(&mut self) -> Result<Event, StreamError> {
        let mut asks = Vec::new();
        tokio::select! {
            response = self.responses.message() => Ok(Event::Response(response?.ok_or(StreamError::Closed)?)),
            // Both arms lose nothing when the other wins: `message` and `recv_many` are cancel-safe.
            _ = self.store.asks().recv_many(&mut asks, OUTGOING) => Ok(Event::Asked(asks)),
            () = self.copying.due() => Ok(Event::CopyDue),
            () = self.copying.head_start_over() => Ok(Event::HeadStartOver),
            () = self.questions.review_due() => Ok(Event::ReviewDue),
        }
    }

    async fn ask(&mut self, asks: Vec<Ask>) -> Result<(), StreamError> {
        let names = self.questions.add(asks, self.store);
        if names.is_empty() {
            return Ok(());
        }
        let request = DeltaDiscoveryRequest {
            type_url: ResourceType::Address.url().to_owned(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await
    }

    /// Lets go of what nobody asked for lately.
    async fn review(&mut self) -> Result<(), StreamError> {
        let names = self.questions.review(self.store);
        if names.is_empty() {
            return Ok(());
        }
        let request = DeltaDiscoveryRequest {
            type_url: ResourceType::Address.url().to_owned(),
            resource_names_unsubscribe: names,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<(), StreamError> {
        let Some(kind) = ResourceType::from_url(&response.type_url) else {
            // To answer would subscribe to the type.
            debug!(type_url = response.type_url, "response of a type that is not known");
            return Ok(());
        };
        let digest = digest(kind, &response);
        debug!(
            ?kind,
            changed = digest.delta.changed.len(),
            removed = digest.delta.removed.len(),
            refused = digest.refused.len(),
            version = response.system_version_info,
            "discovery response"
        );
        let (names, complete) = (digest.names, digest.delta.complete);
        self.store.apply(digest.delta);
        self.copying.changed();
        let settled = match kind {
            ResourceType::Address => self.questions.settle(names, complete, self.store),
            ResourceType::Authorization | ResourceType::Revocation => Vec::new(),
        };
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: refusal(&digest.refused),
            resource_names_unsubscribe: settled,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(answer).await
    }

    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), StreamError> {
        self.requests.send(request).await.map_err(|_| StreamError::Closed)
    }
}

/// A type's first request of a stream.
fn subscribe(
    kind: ResourceType,
    options: &ClientOptions,
    store: &Store,
    questions: &Questions,
) -> DeltaDiscoveryRequest {
    let mut request = DeltaDiscoveryRequest {
        node: Some(node(options)),
        type_url: kind.url().to_owned(),
        initial_resource_versions: store.versions(kind),
        ..DeltaDiscoveryRequest::default()
    };
    if options.on_demand && kind == ResourceType::Address {
        // An empty list would mean everything; everything and its withdrawal in one request mean nothing yet.
        request.resource_names_subscribe.push(WILDCARD.to_owned());
        request.resource_names_unsubscribe.push(WILDCARD.to_owned());
        request.resource_names_subscribe.extend(questions.subscribed());
    }
    request
}

fn node(options: &ClientOptions) -> Node {
    use prost_types::{Struct, Value, value::Kind};
    let text = |text: &String| Value { kind: Some(Kind::StringValue(text.clone())) };
    let mut fields: BTreeMap<_, _> = options.metadata.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    fields.insert(UNDERSTANDS_PARTIAL.to_owned(), Value { kind: Some(Kind::BoolValue(true)) });
    Node { id: options.node_id.clone(), metadata: Some(Struct { fields }), ..Node::default() }
}

/// What the control plane hears of refused resources.
fn refusal(refused: &[String]) -> Option<Status> {
    const NAMED: usize = 20;
    if refused.is_empty() {
        return None;
    }
    let mut message = refused.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    if let Some(more) = refused.len().checked_sub(NAMED).filter(|&more| more > 0) {
        message.push_str(&format!("; and {more} more"));
    }
    warn!(refused = message, "resources refused");
    Some(Status { code: tonic::Code::InvalidArgument as i32, message, details: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_first_and_counts_the_others() {
        assert_eq!(refusal(&[]), None);
        let refused: Vec<String> = (0..23).map(|number| format!("r{number}: no")).collect();
        let message = refusal(&refused).unwrap().message;
        assert!(message.starts_with("r0: no; r1: no; ") && message.ends_with("r19: no; and 3 more"), "{message}");
    }

    /// Refuses everybody, and notes when they came.
    struct Away(std::sync::Arc<std::sync::Mutex<Vec<Instant>>>);

    impl ControlPlane for Away {
        async fn open(&self, _: Requests) -> Result<Streaming<DeltaDiscoveryResponse>, StreamError> {
            self.0.lock().unwrap().push(Instant::now());
            Err(StreamError::Closed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_lose_their_streams_at_one_moment_do_not_come_back_at_one() {
        const NODES: usize = 1000;
        let (came, stop) = (std::sync::Arc::default(), Shutdown::new());
        let clients = (0..NODES).map(|_| {
            let away = Away(std::sync::Arc::clone(&came));
            run(away, ClientOptions::default(), Store::new(), stop.clone())
        });
        let clients: tokio::task::JoinSet<()> = clients.collect();
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(10)).await;
        stop.request();
        clients.join_all().await;
        let mut tenths = vec![0; 101];
        for came in came.lock().unwrap().iter().skip(NODES) {
            tenths[came.duration_since(begun).as_millis() as usize / 100] += 1;
        }
        // Evenly, a tenth of them comes in the first tenth of a second, and fewer later on.
        let most = tenths.iter().max().unwrap();
        assert!(*most < NODES / 5, "{most} of {NODES} within a tenth of a second: {tenths:?}");
        assert!(tenths.iter().take(11).sum::<usize>() > NODES / 2, "and they do come soon: {tenths:?}");
    }

    #[test]
    fn everything_and_its_withdrawal_in_one_request_subscribe_to_nothing_yet() {
        let options = ClientOptions { on_demand: true, ..ClientOptions::default() };
        let first = |kind| subscribe(kind, &options, &Store::new(), &Questions::default());
        let addresses = first(ResourceType::Address);
        assert_eq!((addresses.resource_names_subscribe.len(), addresses.resource_names_unsubscribe.len()), (1, 1));
        assert!(first(ResourceType::Authorization).resource_names_subscribe.is_empty(), "policies: always all");
    }
}
