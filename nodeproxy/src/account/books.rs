//! Which connections live, on which worker, and what they have carried.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use underpass_hbone::Meter;

use super::{
    Direction, Story,
    series::{Ledger, Series},
    traffic::Labels,
};

/// Everything that is being counted; clones are the same. Workers have [`Books`] of their own.
#[derive(Clone)]
pub(crate) struct Accounts {
    pub(crate) ledger: Ledger,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    workers: Mutex<Vec<Arc<LiveSet>>>,
}

/// The living connections of one worker. Others look in when somebody asks for the list.
#[derive(Default)]
struct LiveSet(Mutex<BTreeMap<u64, Arc<Live>>>);

/// One worker's.
pub(crate) struct Books {
    accounts: Accounts,
    live: Arc<LiveSet>,
    /// Weak, so that the ledger can give up series that nobody uses.
    known: RefCell<HashMap<Labels, Weak<Series>>>,
}

/// A connection that lives.
pub(crate) struct Live {
    /// No other connection of this process has it.
    pub(crate) number: u64,
    /// Which way.
    pub(crate) direction: Direction,
    /// Who connected.
    pub(crate) client: SocketAddr,
    /// Since when.
    pub(crate) opened: Instant,
    /// Bytes, counted while they flow. The copying adds here and nowhere else.
    /// Both halves of a connection that is joined on this node have the same.
    pub(crate) meter: Arc<Meter>,
    /// Who and where; set when it has reached its server.
    pub(crate) established: OnceLock<Established>,
}

/// A connection that has reached its server, or has failed to.
pub(crate) struct Established {
    /// Who and where.
    pub(crate) story: Story,
    pub(super) series: Arc<Series>,
    counted: Meter,
}

impl Accounts {
    /// With room for `most` sets of labels.
    pub(crate) fn new(most: usize) -> Self {
        Self { ledger: Ledger::new(most), shared: Arc::default() }
    }

    /// Those of one more worker.
    pub(crate) fn books(&self) -> Books {
        let live = Arc::<LiveSet>::default();
        self.workers().push(Arc::clone(&live));
        Books { accounts: self.clone(), live, known: RefCell::default() }
    }

    /// How many connections live.
    pub(crate) fn live(&self) -> usize {
        self.workers().iter().map(|live| live.lock().len()).sum()
    }

    /// Living connections in the order in which they came, at most `most`, those after number `after`.
    pub(crate) fn page(&self, after: u64, most: usize) -> Vec<Arc<Live>> {
        let mut page = Vec::new();
        for live in self.workers().iter() {
            page.extend(
                live.lock()
                    .range((Bound::Excluded(after), Bound::Unbounded))
                    .take(most)
                    .map(|(_, one)| Arc::clone(one)),
            );
        }
        page.sort_unstable_by_key(|live| live.number);
        page.truncate(most);
        page
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Arc<LiveSet>>> {
        self.shared.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveSet {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Live>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Adds what living connections have carried since the last time, and forgets series that are gone.
    pub(crate) fn flush(&self) {
        self.live.lock().values().for_each(|live| live.flush());
        self.known.borrow_mut().retain(|_, series| series.strong_count() > 0);
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.accounts.ledger
    }

    pub(super) fn enter(&self, direction: Direction, client: SocketAddr, meter: Arc<Meter>) -> Arc<Live> {
        // From 1, so that a list can begin after 0.
        let number = self.accounts.shared.next.fetch_add(1, Relaxed) + 1;
        let live =
            Arc::new(Live { number, direction, client, opened: Instant::now(), meter, established: OnceLock::new() });
        self.live.lock().insert(number, Arc::clone(&live));
        live
    }

    pub(super) fn leave(&self, live: &Live) {
        self.live.lock().remove(&live.number);
    }

    /// Counts a connection as opened under what is known of it now. Later calls change nothing.
    pub(super) fn establish<'a>(&self, live: &'a Live, story: &Story) -> &'a Established {
        live.established.get_or_init(|| {
            let series = self.series(live.direction, story);
            series.opened.fetch_add(1, Relaxed);
            Established { story: story.clone(), series, counted: Meter::default() }
        })
    }

    fn series(&self, direction: Direction, story: &Story) -> Arc<Series> {
        let labels = Labels::of(direction, story);
        let known = self.known.borrow().get(&labels).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let series = self.accounts.ledger.series(direction, labels.clone());
            // Who found no room is not remembered: it would be for ever, and there may be room next time.
            if !series.is_overflow() {
                self.known.borrow_mut().insert(labels, Arc::downgrade(&series));
            }
            series
        })
    }
}

impl Live {
    /// Adds what it has carried since the last time. Only its own worker does.
    pub(super) fn flush(&self) {
        let Some(Established { series, counted, .. }) = self.established.get() else { return };
        let add = |meter: &AtomicU64, counted: &AtomicU64, series: &AtomicU64| {
            let now = meter.load(Relaxed);
            let before = counted.swap(now, Relaxed);
            if now != before {
                series.fetch_add(now - before, Relaxed);
            }
        };
        add(&self.meter.from_downstream, &counted.from_downstream, &series.received);
        add(&self.meter.to_downstream, &counted.to_downstream, &series.sent);
    }
}
