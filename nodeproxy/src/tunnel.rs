//! Step five: the way onwards is opened. Nothing is dialled without a lease.

pub(crate) mod joined;

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use http::StatusCode;
use tokio::{net::TcpStream, sync::oneshot};
use underpass_hbone::{
    Baggage, ConnectHeaders, ConnectRequest, Forwarded, Meter, OpenError, TraceParent, TunnelKey, TunnelStream,
};
use underpass_identity::store::StoreError;
use underpass_model::Identity;

use self::joined::{Answer, Call, Joined};
use crate::{
    budget::{Amount, Counted},
    capture::socket::{self, SourceAddress},
    connections::Lease,
    identify::Caller,
    pods::Pod,
    resolve::{NextHop, Resolved, TunnelHop},
    waits,
    worker::Worker,
};

/// The opened way.
pub(crate) enum Upstream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A stream in a tunnel, and who ends it.
    Tunnel(Box<TunnelStream>, Identity),
    /// Another pod of this node, without a tunnel.
    Joined(Joined),
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// This pod has no certificate.
    #[error("no certificate for {0}")]
    Certificate(Identity, #[source] StoreError),
    /// TCP could not connect.
    #[error("connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// The tunnel could not be opened.
    #[error("tunnel to {0}")]
    Tunnel(SocketAddr, #[source] OpenError),
}

impl DialError {
    /// The stable label of this failure in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Certificate(_, error) => error.reason(),
            Self::Connect(_, error) => connect_reason(error),
            Self::Tunnel(_, error) => error.reason(),
        }
    }

    /// Whether another endpoint may be tried: no byte of the application can have reached anyone.
    pub(crate) fn retry_elsewhere(&self) -> bool {
        match self {
            Self::Certificate(..) => false,
            Self::Connect(..) => true,
            Self::Tunnel(_, error) => error.retry_elsewhere(),
        }
    }
}

/// The stable label of a failed TCP connect.
pub(crate) fn connect_reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect_refused",
        io::ErrorKind::TimedOut => "connect_timeout",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "connect_unreachable",
        _ => "connect_failed",
    }
}

/// Who dials, for whom.
pub(crate) struct Dialler<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) caller: &'a Caller,
    pub(crate) client: SocketAddr,
    pub(crate) meter: &'a Arc<Meter>,
    /// Starts what answers where a neighbour is called without a tunnel.
    pub(crate) answer: fn(Call, Answer, &Rc<Worker>),
}

impl Dialler<'_> {
    /// Opens the way that was permitted.
    pub(crate) async fn dial(&self, resolved: &Resolved, lease: &Lease<'_>) -> Result<Upstream, DialError> {
        match &resolved.next_hop {
            NextHop::Passthrough(_) | NextHop::Plain { .. } => {
                let to = lease.permit().destination();
                // The application's own choice of source address, where it made one, is kept.
                let source = SourceAddress::Own(self.client.ip());
                let source = if self.client.is_ipv4() == to.is_ipv4() { source } else { SourceAddress::Any };
                let connected = socket::connect_end(self.pod.netns(), to, source).await;
                connected.map(Upstream::Tcp).map_err(|error| DialError::Connect(to, error))
            }
            NextHop::Tunnel(hop) => match self.neighbour(hop) {
                Some(neighbour) => self.join(neighbour, hop, resolved).await,
                None => self.tunnel(hop, resolved).await,
            },
        }
    }

    /// The pod that a tunnel would reach, if it may be joined and is beyond doubt who is expected. In doubt the tunnel's
    /// handshake tells.
    fn neighbour(&self, hop: &TunnelHop) -> Option<Arc<Pod>> {
        let neighbour = hop.may_join.then(|| self.worker.shared.pods.named(&hop.endpoint.uid)).flatten()?;
        let is_expected = hop.expect.contains(&neighbour.identity);
        let can_prove_it = self.worker.shared.certificates.credentials(&neighbour.identity).is_some();
        let is_there = neighbour.is_open() && neighbour.has(hop.to.ip());
        (is_expected && can_prove_it && is_there).then_some(neighbour)
    }

    async fn join(&self, pod: Arc<Pod>, hop: &TunnelHop, resolved: &Resolved) -> Result<Upstream, DialError> {
        let own = &self.pod.identity;
        let credentials = waits::credentials(&self.worker.shared.certificates, own).await;
        credentials.map_err(|error| DialError::Certificate(own.clone(), error))?;
        let call = Call {
            pod,
            peer: own.clone(),
            client: self.client,
            hbone: hop.to,
            authority: hop.authority.clone(),
            told: resolved.service.as_ref().map(|service| Arc::clone(&service.name.hostname)),
            meter: Arc::clone(self.meter),
        };
        let refused = |status| DialError::Tunnel(hop.to, OpenError::Refused { address: hop.to, status });
        let (answer, answered) = oneshot::channel();
        (self.answer)(call, answer, self.worker);
        let answered = answered.await.unwrap_or(Err(StatusCode::SERVICE_UNAVAILABLE));
        answered.map(Upstream::Joined).map_err(refused)
    }

    async fn tunnel(&self, hop: &TunnelHop, resolved: &Resolved) -> Result<Upstream, DialError> {
        let own = &self.pod.identity;
        let certificates = &self.worker.shared.certificates;
        let credentials = waits::credentials(certificates, own).await;
        let credentials = credentials.map_err(|error| DialError::Certificate(own.clone(), error))?;
        let key = TunnelKey {
            pod: self.pod.uid.clone(),
            own: own.clone(),
            destination: hop.endpoint.uid.clone(),
            address: hop.to,
            expect: Arc::clone(&hop.expect),
        };
        let host = resolved.service.as_ref().map(|service| Arc::clone(&service.name.hostname));
        let request = ConnectRequest {
            authority: hop.authority.clone(),
            headers: ConnectHeaders {
                baggage: self.caller.workload.as_deref().map(Baggage::of).unwrap_or_default(),
                forwarded: Forwarded { client: Some(self.client), host },
                traceparent: TraceParent::new(fastrand::u128(1..), fastrand::u64(1..)),
            },
        };
        let dial = async || {
            let connected = socket::connect(self.pod.netns(), hop.to, SourceAddress::Any).await?;
            // It outlives the connection that it is made for, which has paid for a way onwards.
            Ok(Counted::new(connected, self.pod.budget.owe(Amount::TUNNEL)))
        };
        let opened = self.worker.pool.open(&key, &request, &credentials.client, dial).await;
        let tunnel = opened.map_err(|error| DialError::Tunnel(hop.to, error))?;
        Ok(Upstream::Tunnel(Box::new(tunnel.stream), tunnel.peer))
    }
}
