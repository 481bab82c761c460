//! A publisher behind a TCP socket on loopback, the real client, and a client that is driven by hand.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::Message;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use underpass_discovery::{
    Mesh, Store, View,
    client::{self, ClientOptions, ControlPlane, Requests, StreamError},
    kept::KeptView,
    server::{Batch, Published, Publisher},
    wire::{
        MESSAGE_LIMIT, ResourceType,
        xds::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
};
use underpass_runtime::Shutdown;

const DEADLINE: Duration = Duration::from_secs(10);

/// A control plane that runs.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    task: JoinHandle<()>,
}

pub(crate) async fn serve(publisher: Publisher) -> (Publisher, Serving) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let authenticate = |metadata: &tonic::metadata::MetadataMap| match metadata.get("authorization") {
        Some(token) if token == "Bearer right" => Ok(Arc::from("tester")),
        _ => Err(Status::unauthenticated("wrong token")),
    };
    let service = publisher.service(Arc::new(authenticate), shutdown.clone());
    let stop = shutdown.clone();
    let task = tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_service(service);
        server.serve_with_incoming_shutdown(incoming, async move { stop.requested().await }).await.unwrap();
    });
    (publisher, Serving { address, shutdown, task })
}

impl Serving {
    pub(crate) fn control(&self) -> Control {
        Control::to(self.address)
    }

    pub(crate) async fn stop(self) {
        self.shutdown.request();
        timeout(DEADLINE, self.task).await.unwrap().unwrap();
    }
}

pub(crate) fn publish(publisher: &Publisher, resources: impl IntoIterator<Item = Published>) {
    let mut batch = Batch::new();
    for resource in resources {
        batch.set(resource);
    }
    publisher.commit(batch);
}

/// Where a control plane is; clones can be redirected together.
#[derive(Clone)]
pub(crate) struct Control {
    address: Arc<Mutex<SocketAddr>>,
    token: &'static str,
}

impl Control {
    pub(crate) fn to(address: SocketAddr) -> Self {
        Self { address: Arc::new(Mutex::new(address)), token: "right" }
    }

    pub(crate) fn with_token(self, token: &'static str) -> Self {
        Self { token, ..self }
    }

    pub(crate) fn redirect(&self, address: SocketAddr) {
        *self.address.lock().unwrap() = address;
    }

    pub(crate) async fn try_open(&self) -> Result<Streaming<DeltaDiscoveryResponse>, Status> {
        let (_requests, sent) = mpsc::channel(1);
        match Box::pin(self.open(ReceiverStream::new(sent))).await {
            Ok(stream) => Ok(stream),
            Err(StreamError::Status(status)) => Err(*status),
            Err(other) => panic!("{other}"),
        }
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let address = *self.address.lock().unwrap();
        Endpoint::from_shared(format!("http://{address}"))?.connect().await
    }
}

impl ControlPlane for Control {
    async fn open(&self, requests: Requests) -> Result<Streaming<DeltaDiscoveryResponse>, StreamError> {
        let channel = self.channel().await.map_err(|error| StreamError::Connect(error.into()))?;
        let mut request = Request::new(requests);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        Ok(client.delta_aggregated_resources(request).await?.into_inner())
    }
}

/// The real client, running.
pub(crate) struct Client {
    pub(crate) mesh: Mesh,
    shutdown: Shutdown,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

pub(crate) fn mesh_of(control: Control, on_demand: bool) -> Client {
    client_of(control, on_demand, None)
}

/// One that keeps a copy of its view.
pub(crate) fn keeping(control: Control, kept: KeptView) -> Client {
    client_of(control, false, Some(kept))
}

fn client_of(control: Control, on_demand: bool, kept: Option<KeptView>) -> Client {
    let store = Store::new();
    let client = Client { mesh: store.mesh(), shutdown: Shutdown::new() };
    let metadata = BTreeMap::from([("NODE_NAME".to_owned(), "node-1".to_owned())]);
    let options = ClientOptions { node_id: "node-1".into(), metadata, on_demand, kept };
    tokio::spawn(client::run(control, options, store, client.shutdown.clone()));
    client
}

pub(crate) async fn eventually(mesh: &Mesh, satisfied: impl Fn(&View) -> bool) -> Arc<View> {
    timeout(DEADLINE, mesh.wait_until(satisfied)).await.expect("the view never became as wanted")
}

/// A subscriber driven by hand; it does not say that it understands parts.
pub(crate) struct Raw {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub(crate) held: HashMap<String, String>,
}

impl Raw {
    pub(crate) async fn open(control: &Control, kind: ResourceType, names: &[&str]) -> Self {
        let names = names.iter().map(ToString::to_string).collect();
        Self::start(
            control,
            DeltaDiscoveryRequest {
                type_url: kind.url().into(),
                resource_names_subscribe: names,
                ..Default::default()
            },
        )
        .await
    }

    pub(crate) async fn resume(control: &Control, kind: ResourceType, held: HashMap<String, String>) -> Self {
        Self::start(
            control,
            DeltaDiscoveryRequest {
                type_url: kind.url().into(),
                initial_resource_versions: held,
                ..Default::default()
            },
        )
        .await
    }

    async fn start(control: &Control, mut first: DeltaDiscoveryRequest) -> Self {
        first.node = Some(Node { id: "raw".into(), ..Node::default() });
        let (requests, sent) = mpsc::channel(8);
        requests.send(first).await.unwrap();
        let responses = Box::pin(control.open(ReceiverStream::new(sent))).await.unwrap();
        Self { requests, responses, held: HashMap::new() }
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = timeout(DEADLINE, self.responses.message()).await.unwrap().unwrap().unwrap();
        for bytes in &response.resources {
            let resource = Resource::decode(bytes.clone()).unwrap();
            self.held.insert(resource.name, resource.version);
        }
        response
    }

    pub(crate) async fn answered(&mut self) {
        let response = self.next().await;
        self.answer(&response).await;
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse) {
        let kind = ResourceType::from_url(&response.type_url).unwrap();
        self.answer_nonce(kind, &response.nonce).await;
    }

    pub(crate) async fn answer_nonce(&self, kind: ResourceType, nonce: &str) {
        let answer =
            DeltaDiscoveryRequest { type_url: kind.url().into(), response_nonce: nonce.into(), ..Default::default() };
        self.requests.send(answer).await.unwrap();
    }

    pub(crate) async fn subscribe_url(&self, type_url: &str) {
        let request = DeltaDiscoveryRequest { type_url: type_url.into(), ..Default::default() };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn ended(&mut self) -> Status {
        timeout(DEADLINE, self.responses.message()).await.unwrap().unwrap_err()
    }
}
