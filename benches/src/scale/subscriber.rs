//! Node proxies as the operator sees them: discovery's streams as our client has them, but what comes is counted instead
//! of kept. A thousand views of the whole mesh would not fit into one machine; they would all be the same.

mod raw;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use prost::{Message as _, bytes::Bytes};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use underpass_discovery::wire::{
    PARTIAL, ResourceType, UNDERSTANDS_PARTIAL, WILDCARD,
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
};
use underpass_runtime::{
    Backoff,
    control::{Control, ControlOptions},
};

/// How long anything may take that all subscribers do.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests on their way: as many as our client has.
const OUTGOING: usize = 64;

/// Where the operator is, and how its callers prove who they are.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    pub(super) options: ControlOptions,
    /// A token for each node.
    pub(super) tokens: PathBuf,
}

/// What each subscriber wants.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// The whole mesh.
    Everything,
    /// These names, by subscriber.
    Names(Vec<Vec<String>>),
}

/// Subscribers, one for each node.
pub(super) struct Fleet {
    shared: Arc<Shared>,
    orders: watch::Sender<Order>,
    _tasks: JoinSet<()>,
}

/// What holds for all of them.
#[derive(Clone, Copy, Debug, Default)]
struct Order {
    /// Streams opened from here on count as complete.
    generation: u64,
    /// Streams opened under an earlier generation than this end.
    cut_before: u64,
}

struct Shared {
    operator: Operator,
    wish: Wish,
    count: usize,
    /// The generation, and how many of it have all they want.
    complete: watch::Sender<(u64, usize)>,
    /// What each holds; one for all if all want everything.
    held: Vec<Mutex<Held>>,
    received: AtomicU64,
    opened: AtomicU64,
    round: Mutex<Option<Round>>,
}

/// Of one type after another, what is held, name to version.
type Versions = [HashMap<String, String>; ResourceType::ALL.len()];

/// What a subscriber holds.
#[derive(Debug, Default)]
struct Held {
    versions: Versions,
    /// The first requests of a stream by which that is told; made when they are needed.
    opening: Option<[Bytes; ResourceType::ALL.len()]>,
}

/// Something that is about to be told.
#[derive(Debug)]
struct Round {
    names: HashSet<String>,
    awaited: usize,
    told: usize,
    bytes: u64,
    done: Option<oneshot::Sender<Told>>,
}

/// Everybody has been told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// When the last was.
    pub(super) at: Instant,
    /// In how many bytes of messages, all together.
    pub(super) bytes: u64,
}

/// A round that runs.
pub(super) struct Awaited(oneshot::Receiver<Told>, Arc<Shared>);

impl Fleet {
    /// Starts as many, all at once.
    pub(super) fn start(operator: Operator, wish: Wish, count: usize) -> Self {
        let views = match &wish {
            Wish::Everything => 1,
            Wish::Names(_) => count,
        };
        let shared = Arc::new(Shared {
            operator,
            wish,
            count,
            complete: watch::Sender::new((0, 0)),
            held: (0..views).map(|_| Mutex::default()).collect(),
            received: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            round: Mutex::new(None),
        });
        let orders = watch::Sender::new(Order::default());
        let mut tasks = JoinSet::new();
        for number in 0..count {
            tasks.spawn(Arc::clone(&shared).run(number, orders.subscribe()));
        }
        Self { shared, orders, _tasks: tasks }
    }

    /// Waits until all have what they want.
    pub(super) async fn complete(&self) -> Result<()> {
        let mut complete = self.shared.complete.subscribe();
        let all = complete.wait_for(|(_, count)| *count == self.shared.count);
        let is_late = timeout(PATIENCE, all).await.is_err();
        if is_late {
            bail!("only {} of {} subscribers have the mesh", self.shared.complete.borrow().1, self.shared.count);
        }
        Ok(())
    }

    /// Nobody is complete any more: somebody else is about to end all streams.
    pub(super) fn expect_loss(&self) {
        self.order(false);
    }

    /// Ends all streams; their subscribers open them again, as node proxies do.
    pub(super) fn cut(&self) {
        self.order(true);
    }

    fn order(&self, is_cut: bool) {
        self.orders.send_modify(|order| {
            order.generation += 1;
            self.shared.complete.send_replace((order.generation, 0));
            if is_cut {
                order.cut_before = order.generation;
            }
        });
    }

    /// Bytes of messages that have come so far.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Streams that were opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// How many hear of what happens to an endpoint of a service.
    pub(super) fn followers(&self, service: &str) -> usize {
        match &self.shared.wish {
            Wish::Everything => self.shared.count,
            Wish::Names(names) => names.iter().filter(|names| names.iter().any(|name| name == service)).count(),
        }
    }

    /// From now on these names are listened for, until they were said as often as this.
    pub(super) fn listen(&self, names: HashSet<String>, awaited: usize) -> Awaited {
        let (done, told) = oneshot::channel();
        *self.shared.round() = Some(Round { names, awaited, told: 0, bytes: 0, done: Some(done) });
        Awaited(told, Arc::clone(&self.shared))
    }
}

impl Awaited {
    pub(super) async fn told(self) -> Result<Told> {
        if let Ok(Ok(told)) = timeout(PATIENCE, self.0).await {
            return Ok(told);
        }
        let round = self.1.round();
        let (told, awaited) = round.as_ref().map_or((0, 0), |round| (round.told, round.awaited));
        bail!("a change was told {told} times, not {awaited} times")
    }
}

impl Shared {
    async fn run(self: Arc<Self>, number: usize, mut orders: watch::Receiver<Order>) {
        const SETTLED: Duration = Duration::from_secs(15);
        // As our client's, so that they come back as node proxies do.
        let mut backoff = Backoff::spread(Duration::from_secs(1), Duration::from_secs(15));
        // Whoever has not had everything yet holds nothing, even if the others do.
        let mut has_all = false;
        loop {
            let generation = orders.borrow_and_update().generation;
            let begun = Instant::now();
            tokio::select! {
                // Why is in the operator's log, or seen by what is missing in the end.
                _ended = self.session(number, generation, &mut has_all) => {}
                _cut = orders.wait_for(|order| order.cut_before > generation) => {}
            }
            if begun.elapsed() > SETTLED {
                backoff.reset();
            }
            sleep(backoff.delay()).await;
        }
    }

    async fn session(&self, number: usize, generation: u64, has_all: &mut bool) -> Result<()> {
        let token_file = self.operator.tokens.join(super::population::node(number));
        let control = Control::new(ControlOptions { token_file, ..self.operator.options.clone() });
        let (requests, sent) = mpsc::channel(OUTGOING);
        requests.try_send(introduction(number))?;
        for opening in self.opening(number, *has_all) {
            requests.try_send(opening)?;
        }
        let mut responses = raw::open(&control, sent).await?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut heard = HashSet::new();
        let mut membership = None;
        loop {
            let message = responses.message().await?.context("the stream ended")?;
            let bytes = message.len() as u64;
            self.received.fetch_add(bytes, Ordering::Relaxed);
            let response = DeltaDiscoveryResponse::decode(message)?;
            let kind = ResourceType::from_url(&response.type_url).context("a type that was not asked for")?;
            let answer = DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce.clone(),
                ..DeltaDiscoveryRequest::default()
            };
            // As in our client the answer is the last word, after the view has it.
            self.take(number, kind, &response, membership.is_some().then_some(bytes))?;
            if !response.system_version_info.starts_with(PARTIAL) {
                heard.insert(kind);
            }
            requests.send(answer.encode_to_vec().into()).await?;
            if membership.is_none() && heard.len() == ResourceType::ALL.len() {
                *has_all = true;
                membership = Some(Membership::begin(&self.complete, generation));
            }
        }
    }

    /// Notes what a response says, as far as it matters: if it is this one's to know what is held, and, with its bytes,
    /// if it may be what is listened for.
    fn take(
        &self,
        number: usize,
        kind: ResourceType,
        response: &DeltaDiscoveryResponse,
        bytes: Option<u64>,
    ) -> Result<()> {
        let held = self.held.get(number);
        if held.is_none() && bytes.is_none() {
            return Ok(());
        }
        let decode = |bytes: &Bytes| Resource::decode(bytes.clone());
        let resources = response.resources.iter().map(decode).collect::<Result<Vec<Resource>, _>>()?;
        if let Some(bytes) = bytes {
            self.note(resources.iter().map(|resource| resource.name.as_str()), bytes);
        }
        let Some(held) = held else { return Ok(()) };
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        held.opening = None;
        let Some(versions) = held.versions.get_mut(kind as usize) else { return Ok(()) };
        versions.extend(resources.into_iter().map(|resource| (resource.name, resource.version)));
        for name in &response.removed_resources {
            versions.remove(name);
        }
        Ok(())
    }

    fn note<'a>(&self, names: impl Iterator<Item = &'a str>, bytes: u64) {
        let mut current = self.round();
        let Some(round) = current.as_mut() else { return };
        let told = names.filter(|name| round.names.contains(*name)).count();
        if told == 0 {
            return;
        }
        round.told += told;
        round.bytes += bytes;
        if round.told >= round.awaited
            && let Some(done) = round.done.take()
        {
            // Who listened may have lost patience.
            let _unheard = done.send(Told { at: Instant::now(), bytes: round.bytes });
        }
    }

    fn round(&self) -> MutexGuard<'_, Option<Round>> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first request of each type, by somebody who has had everything before or has not.
    fn opening(&self, number: usize, has_all: bool) -> [Bytes; ResourceType::ALL.len()] {
        let names = match &self.wish {
            Wish::Everything => None,
            Wish::Names(names) => names.get(number),
        };
        let openings = |versions: &Versions| ResourceType::ALL.map(|kind| first(kind, versions, names));
        let Some(held) = self.held.get(number).or(self.held.first()).filter(|_| has_all) else {
            return openings(&Versions::default());
        };
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { versions, opening } = &mut *held;
        opening.get_or_insert_with(|| openings(versions)).clone()
    }
}

fn first(kind: ResourceType, versions: &Versions, names: Option<&Vec<String>>) -> Bytes {
    let mut request = DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        initial_resource_versions: versions.get(kind as usize).cloned().unwrap_or_default(),
        ..DeltaDiscoveryRequest::default()
    };
    if let Some(names) = names.filter(|_| kind == ResourceType::Address) {
        // As our client says it: not everything.
        request.resource_names_unsubscribe.push(WILDCARD.to_owned());
        request.resource_names_subscribe = [WILDCARD.to_owned()].into_iter().chain(names.iter().cloned()).collect();
    }
    request.encode_to_vec().into()
}

/// Says who subscribes; a request of a type that nobody knows, so that the others are the same for all.
fn introduction(number: usize) -> Bytes {
    use prost_types::{Struct, Value, value::Kind};
    let partial = (UNDERSTANDS_PARTIAL.to_owned(), Value { kind: Some(Kind::BoolValue(true)) });
    let metadata = Some(Struct { fields: [partial].into() });
    let node = Node { id: format!("nodeproxy~{}", super::population::node(number)), metadata, ..Node::default() };
    DeltaDiscoveryRequest { node: Some(node), ..DeltaDiscoveryRequest::default() }.encode_to_vec().into()
}

/// One of those who have all they want, while it is here.
struct Membership<'a> {
    complete: &'a watch::Sender<(u64, usize)>,
    generation: u64,
}

impl<'a> Membership<'a> {
    fn begin(complete: &'a watch::Sender<(u64, usize)>, generation: u64) -> Self {
        let this = Self { complete, generation };
        this.count(1);
        this
    }

    fn count(&self, by: isize) {
        self.complete.send_if_modified(|(generation, count)| {
            let counts = *generation == self.generation;
            if counts {
                *count = count.saturating_add_signed(by);
            }
            counts
        });
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.count(-1);
    }
}
