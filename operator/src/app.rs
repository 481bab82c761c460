//! Puts the operator's parts together and runs them.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use imbl::OrdMap;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};
use tonic::{Status as RpcStatus, metadata::MetadataMap, service::InterceptorLayer, transport::Server};
use underpass_discovery::server::Publisher;
use underpass_model::{Identity, TrustDomain};
use underpass_objects::{Snapshot, cluster::Client};
use underpass_runtime::{Shutdown, admin::Readiness, tasks};

use crate::{
    attest::attest,
    ca::{
        self, Attest, Authenticate as _, Authenticator, Authority, CertificateService, FileState, Limits, NodeName,
        NotAttested, OpenError, Prepare, Serving, SharedStore, serving::ServingError, state::FileError,
    },
    census::Count,
    cluster::status::Told,
    config::Config,
    intent,
    publication::Publication,
    pushes::{self, Push},
    revocations,
    source::{self, Source, SourceError, Telling},
    tokens::{NodeTokens, TokensTask},
};

/// How long open calls may take to end after the operator was asked to stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the operator cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The authority's state cannot be used.
    #[error("certificate authority")]
    Authority(#[from] OpenError),
    /// The directory of it cannot.
    #[error("state directory")]
    State(#[from] FileError),
    /// A directory cannot be listed.
    #[error("directory {path} of {what}")]
    Directory {
        /// What should be in it.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// There is no certificate to serve with.
    #[error("serving certificate")]
    Serving(#[from] ServingError),
    /// There are no objects.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// A running operator.
#[derive(Debug)]
pub struct Running {
    /// Where it serves.
    pub address: SocketAddr,
    /// Who signs.
    pub authority: Authority,
    /// What it publishes.
    pub publisher: Publisher,
    /// The objects as it sees them.
    pub objects: watch::Receiver<Snapshot>,
    /// What people should know of their objects.
    pub told: watch::Receiver<Told>,
    /// How far the enrolment of namespaces has come.
    pub counts: watch::Receiver<OrdMap<String, Count>>,
    server: JoinHandle<()>,
}

impl Running {
    /// Completes when it has stopped.
    pub async fn stopped(self) {
        // A panic in it has been reported where it happened.
        let _ended = self.server.await;
    }
}

/// Starts every part; they run until asked to stop.
///
/// # Errors
/// [`StartError`] with the part that cannot begin.
pub async fn start(config: &Config, readiness: &Readiness, shutdown: &Shutdown) -> Result<Running, StartError> {
    let seat = Seat::of(config).await?;
    let authority = Authority::open(seat.store(config)?, config.authority_options(), SystemTime::now()).await?;
    let tls = Serving::config(&authority, &config.serving_names)?;
    let unbound = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(unbound)?;
    let address = listener.local_addr().map_err(unbound)?;

    let publisher = Publisher::new();
    revocations::publish(&authority.told().borrow(), &publisher);
    let (pushes, pushed) = watch::channel(Push::default());
    let telling = Telling::default();
    // After the store, which makes the state directory and sees to it that nobody else can write there.
    let Source { objects, reporting, leads } = match &seat {
        Seat::Cluster(client) => source::of_cluster(client, config.place(), &publisher, &telling, shutdown),
        Seat::Directory { tokens, .. } => source::of_directory(config, tokens, &publisher, shutdown)?,
    };
    let publication = Publication {
        objects: objects.clone(),
        reporting,
        options: config.translate_options(),
        most_lifetime: config.certificate_ttl,
        publisher: publisher.clone(),
        readiness: readiness.clone(),
        telling: telling.clone(),
        pushes,
    };
    // Without any one of these the operator would go on half-dead.
    let callers = seat.callers(config, (&authority, &publisher, leads), shutdown);
    tasks::root("revocations", revocations::run(authority.told(), publisher.clone(), shutdown.clone()), shutdown);
    tasks::root("intent", intent::run(authority.clone(), objects.clone(), shutdown.clone()), shutdown);
    tasks::root("authority", authority.clone().run(shutdown.clone()), shutdown);
    tasks::root("pushes", pushes::measure(publisher.clone(), pushed, shutdown.clone()), shutdown);
    tasks::root("publication", publication.run(readiness.pending("mesh"), shutdown.clone()), shutdown);

    let attest = PodsOnNode { objects: objects.clone(), trust_domain: config.trust_domain.clone() };
    let certificates = CertificateService::new(authority.clone(), callers.clone(), attest).into_server();
    let admit = InterceptorLayer::new(ca::admit(callers.clone()));
    let prepare = Prepare(callers.clone());
    let authenticate = move |metadata: &MetadataMap| subscriber(&callers, metadata);
    let router = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .layer(prepare)
        .layer(admit)
        .add_service(publisher.service(Arc::new(authenticate), shutdown.clone()))
        .add_service(certificates);
    let incoming = ca::accept(listener, tls, Limits::default(), shutdown.clone());
    let stop = shutdown.clone();
    let serve = async move {
        let asked = stop.clone();
        let serving = router.serve_with_incoming_shutdown(incoming, async move { asked.requested().await });
        let overdue = async {
            stop.requested().await;
            time::sleep(FAREWELL).await;
        };
        tokio::select! {
            served = serving => if let Err(error) = served {
                tracing::error!(%error, "serving ended");
            },
            () = overdue => {}
        }
    };
    let server = tasks::root("server", serve, shutdown);
    tracing::info!(%address, trust_domain = %config.trust_domain, "serving discovery and certificates");
    Ok(Running {
        address,
        authority,
        publisher,
        objects,
        told: telling.told.subscribe(),
        counts: telling.counts.subscribe(),
        server,
    })
}

/// What an operator is built on: who keeps the authority's state, and who says which node calls.
enum Seat {
    /// The API server: a Secret, and the tokens of pods.
    Cluster(Client),
    /// Directories.
    Directory { state: PathBuf, tokens: NodeTokens, watch: TokensTask },
}

impl Seat {
    async fn of(config: &Config) -> Result<Self, StartError> {
        if let Some(client) = source::connect(config).await? {
            return Ok(Self::Cluster(client));
        }
        // The command line has seen to it that both are there.
        let (Some(state), Some(directory)) = (&config.state, &config.node_tokens) else {
            return Err(SourceError::None.into());
        };
        let unlistable = |source| StartError::Directory { what: "node tokens", path: directory.clone(), source };
        let (tokens, watch) = NodeTokens::open(directory).map_err(unlistable)?;
        Ok(Self::Directory { state: state.clone(), tokens, watch })
    }

    fn store(&self, config: &Config) -> Result<SharedStore, FileError> {
        match self {
            Self::Cluster(client) => Ok(config.on_kubernetes.store(client.clone(), &config.namespace)),
            Self::Directory { state, .. } => Ok(Arc::new(FileState::open(state)?)),
        }
    }

    /// Who says which node calls. What keeps that up to date, and tells nodes whom to trust, runs until asked to stop.
    fn callers(
        self,
        config: &Config,
        (authority, publisher, leads): (&Authority, &Publisher, watch::Receiver<bool>),
        shutdown: &Shutdown,
    ) -> Authenticator {
        match self {
            Self::Cluster(client) => {
                let bundles = config.on_kubernetes.bundles(
                    client.clone(),
                    &config.namespace,
                    authority.told(),
                    watch::channel(BTreeSet::new()).1,
                );
                tasks::root("roots", bundles.run(leads, shutdown.clone()), shutdown);
                config.on_kubernetes.authenticator(client)
            }
            Self::Directory { tokens, watch, .. } => {
                let publisher = publisher.clone();
                let revoked = move |node: &NodeName| {
                    tracing::info!(%node, "the node's token is no longer good; its streams end");
                    publisher.expel(node.as_str());
                };
                tasks::root("node tokens", watch.run(revoked, shutdown.clone()), shutdown);
                Authenticator::new(tokens)
            }
        }
    }
}

/// A node's proxy subscribes under the name of its node.
fn subscriber(callers: &Authenticator, metadata: &MetadataMap) -> Result<Arc<str>, RpcStatus> {
    let node = callers.authenticate(metadata).map_err(|error| {
        tracing::warn!(%error, "subscription refused to an unknown caller");
        RpcStatus::unauthenticated("who calls is not known")
    })?;
    Ok(node.as_str().into())
}

/// Attests by the newest objects.
struct PodsOnNode {
    objects: watch::Receiver<Snapshot>,
    trust_domain: TrustDomain,
}

impl Attest for PodsOnNode {
    fn attest(&self, node: &NodeName, identity: &Identity) -> Result<(), NotAttested> {
        let objects = Arc::clone(&self.objects.borrow().objects);
        attest(&objects, &self.trust_domain, node.as_str(), identity)
    }
}
