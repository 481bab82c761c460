//! What peers send through tunnels: one mutual TLS connection, many CONNECT streams.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use http::StatusCode;
use tokio::net::TcpStream;
use underpass_hbone::{AcceptError, Baggage, Incoming, RequestError, ServerConnection, ServerOptions, server};
use underpass_identity::tls::Expected;
use underpass_model::{Authority, Identity};
use underpass_policy::Denial;

use super::Failure;
use crate::{
    account::{Direction, Record},
    authorize::Judged,
    budget::{Amount, Over, Share},
    capture::{
        Knock, canonical,
        socket::{self, SourceAddress},
    },
    connections::{Arrival, Ended, Lease, OpenTunnel},
    identify,
    pods::Pod,
    resolve::inbound::{Application, backed_service, resolve},
    tunnel::DialError,
    waits,
    worker::{self, Worker},
};

/// What all streams of one tunnel share.
pub(super) struct Ends {
    pub(super) pod: Arc<Pod>,
    pub(super) peer: Identity,
    pub(super) client: SocketAddr,
    /// Where the tunnel ends: this pod's address and HBONE port.
    pub(super) hbone: SocketAddr,
}

/// Serves one tunnel to its end.
pub(super) async fn tunnel(knock: Knock, open: OpenTunnel, worker: Rc<Worker>) {
    let (client, pod) = (knock.client, Arc::clone(&knock.pod));
    let mut record = Record::open(&worker.books, Direction::Inbound, (client, pod.budget.held()));
    match handshake(knock, &worker).await {
        // The tunnel has its share until it ends.
        Ok((connection, hbone, _share)) => {
            record.discard();
            let ends = Rc::new(Ends { pod, peer: connection.peer().clone(), client, hbone });
            streams(connection, open, &ends, &worker).await;
        }
        Err(failure) => {
            record.destination.workload = worker.shared.mesh.view().workload(&pod.workload).cloned();
            record.close(Err(failure.failed()));
        }
    }
}

async fn handshake(knock: Knock, worker: &Worker) -> Result<(ServerConnection, SocketAddr, Share), Failure> {
    let (connections, budget) = (knock.pod.connections.clone(), Arc::clone(&knock.pod.budget));
    let mut share = knock.share.inspect_err(|over| knock.pod.budget.refused(*over))?;
    let own = &knock.pod.identity;
    // It takes its place among the handshakes, but nobody is to make room for others because of what we lack.
    let credentials = tokio::select! {
        credentials = waits::credentials(&worker.shared.certificates, own) => credentials?,
        () = connections.ended() => return Err(Ended::Pod.into()),
    };
    let shaken = async {
        let hbone = canonical(knock.stream.local_addr().map_err(AcceptError::Tls)?);
        let expected = Expected::TrustDomain(own.trust_domain().clone());
        let revocations = worker.shared.certificates.revocations().clone();
        let options = ServerOptions { revocations, held: Arc::clone(budget.held()), ..ServerOptions::default() };
        let accept = server::accept(knock.stream, &credentials.server, &expected, &options);
        let connection = waits::measured("handshake", accept).await?;
        Ok::<_, Failure>((connection, hbone))
    };
    tokio::select! {
        shaken = shaken => {
            let (connection, hbone) = shaken?;
            share.shaken();
            Ok((connection, hbone, share))
        }
        () = connections.ended() => Err(Ended::Pod.into()),
        () = budget.crowded_out() => {
            budget.refused(Over::Handshakes);
            Err(Over::Handshakes.into())
        }
    }
}

/// Takes streams until the tunnel ends. A pod that begins to end or ends, or a proxy that stands back, says so to the peer
/// (GOAWAY).
async fn streams(mut connection: ServerConnection, mut open: OpenTunnel, ends: &Rc<Ends>, worker: &Rc<Worker>) {
    let goodbye = connection.shutdown_handle();
    let mut leaving = std::pin::pin!(async {
        tokio::select! {
            () = ends.pod.connections.ended() => {}
            () = open.farewell() => {}
        }
    });
    let mut said = false;
    loop {
        tokio::select! {
            incoming = connection.next() => {
                let Some(incoming) = incoming else { return };
                worker::carry(stream(incoming, Rc::clone(ends), Rc::clone(worker)));
            }
            () = &mut leaving, if !said => {
                said = true;
                goodbye.drain();
            }
        }
    }
}

async fn stream(incoming: Incoming, ends: Rc<Ends>, worker: Rc<Worker>) {
    let arrival = ends.pod.connections.arrive();
    let mut record = Record::open(&worker.books, Direction::Inbound, (ends.client, ends.pod.budget.held()));
    record.source.identity = Some(ends.peer.clone());
    record.hbone_addr = Some(ends.hbone);
    let outcome = carry(incoming, (&ends, &arrival), &worker, &mut record).await;
    record.close(outcome.as_ref().copied().map_err(Failure::failed));
}

async fn carry(
    mut incoming: Incoming,
    (ends, arrival): (&Ends, &Arrival),
    worker: &Worker,
    record: &mut Record,
) -> Result<(), Failure> {
    let target = Target::of(&incoming);
    let connected = tokio::select! {
        connected = connect(target, (ends, arrival), worker, record) => connected,
        // Who opens and resets must not leave us with sockets on their way.
        () = incoming.cancelled() => return Err(Failure::Cancelled),
    };
    match connected {
        Ok((application, lease, _share)) => {
            let own = record.destination.workload.as_deref().map(Baggage::of).unwrap_or_default();
            let stream = incoming.accept(&own)?;
            super::copy_inbound(stream, application, &lease, record.established()).await
        }
        Err(failure) => {
            incoming.refuse(status(&failure));
            Err(failure)
        }
    }
}

/// What a CONNECT asks for.
pub(super) struct Target {
    pub(super) authority: Result<Authority, RequestError>,
    /// The service that the peer says it dialled.
    pub(super) told: Option<Arc<str>>,
}

impl Target {
    fn of(incoming: &Incoming) -> Self {
        Self { authority: incoming.authority.clone(), told: incoming.headers.forwarded.host.clone() }
    }
}

/// Judges and connects.
pub(super) async fn connect<'a>(
    target: Target,
    (ends, arrival): (&Ends, &'a Arrival),
    worker: &Worker,
    record: &mut Record,
) -> Result<(TcpStream, Lease<'a>, Share), Failure> {
    let shared = &worker.shared;
    let view = shared.mesh.view();
    let pod = &ends.pod;
    let caller = identify::peer(&view, &shared.place.network, &ends.peer, ends.client.ip());
    record.source.workload.clone_from(&caller.workload);
    record.destination.workload = view.workload(&pod.workload).cloned();
    record.destination.identity = Some(pod.identity.clone());

    let Application { address, service } = resolve(&view, &pod.workload, ends.hbone.ip(), &target.authority?)?;
    record.destination.addr = Some(address);
    // What the peer says it dialled is telemetry, and only believed of services that this pod backs.
    record.service = service.or_else(|| backed_service(&view, &pod.workload, target.told.as_deref()?));
    let judged = Judged { source: caller.source, client: ends.client.ip(), application: address };
    let lease = pod.gate().admit(arrival, (&shared.mesh, &shared.place.network), judged).await?;
    record.permitted(lease.permit());
    let share = lease.unless_ended(waits::room(&pod.budget, Amount::STREAM)).await??;
    let to = lease.permit().destination();
    let connected = socket::connect_end(pod.netns(), to, SourceAddress::Client(ends.client.ip()));
    let application = lease.unless_ended(connected).await?.map_err(|error| DialError::Connect(to, error))?;
    Ok((application, lease, share))
}

/// What the peer is told; people read it in logs, other proxies only see that it is not 200.
pub(super) fn status(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Request(error) => error.status(),
        Failure::ResolveInbound(error) if error.is_peers_fault() => StatusCode::BAD_REQUEST,
        Failure::Authorize(Denial::ForeignTrustDomain { .. } | Denial::Policy(_)) => StatusCode::UNAUTHORIZED,
        Failure::Authorize(Denial::OwnPort(_) | Denial::Loopback(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Accept(_)
        | Failure::Answer(_)
        | Failure::Ask(_)
        | Failure::Budget(_)
        | Failure::Cancelled
        | Failure::Capture(_)
        | Failure::Certificate(_)
        | Failure::ClosedEarly
        | Failure::Copy(_)
        | Failure::Dial(_)
        | Failure::Ended(_)
        | Failure::OwnUnknown(_)
        | Failure::Resolve(_)
        | Failure::ResolveInbound(_)
        | Failure::View => StatusCode::SERVICE_UNAVAILABLE,
    }
}
