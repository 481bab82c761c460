//! What connections add to, and how it reaches the page that Prometheus reads.
//!
//! Workers add to plain numbers. Whoever makes the page moves them into the recorder, and touches those that did not
//! change, so that the recorder forgets only what the ledger has given up.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use underpass_discovery::{Mesh, View};
use underpass_runtime::metrics::{
    Counter, Counters, Listed as _, SharedString,
    catalogue::{self, TCP_CLOSED, TCP_FAILED, TCP_OPENED, TCP_RECEIVED, TCP_SENT},
    transient::TransientSeries,
};

use super::{
    Direction,
    traffic::{Labels, Owner, ResponseFlag},
};

/// How long a series is shown after the ledger gave it up: several scrapes.
const SHOWN: Duration = Duration::from_secs(300);
/// How often the mesh is asked who is gone.
const REVIEW: Duration = Duration::from_secs(30);

/// The counters of one set of labels; numbers here have not reached the recorder yet.
#[derive(Debug)]
pub(crate) struct Series {
    labels: Labels,
    pub(super) opened: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    closed: [AtomicU64; ResponseFlag::ALL.len()],
    /// Of the recorder; used by whoever makes the page alone.
    handles: OnceLock<Handles>,
}

struct Handles {
    opened: Counter,
    received: Counter,
    sent: Counter,
    /// Closed and failed, per flag, made when a flag occurs.
    closed: [OnceLock<(Counter, Option<Counter>)>; ResponseFlag::ALL.len()],
}

/// All series; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Ledger(Arc<Book>);

#[derive(Debug)]
struct Book {
    most: usize,
    series: Mutex<HashMap<Labels, Arc<Series>>>,
    overflow: [Arc<Series>; 2],
    overflowed: AtomicU64,
    /// The labels under which policies' words are counted.
    verdicts: Mutex<HashSet<(&'static str, [SharedString; 4])>>,
}

impl Series {
    fn new(labels: Labels) -> Self {
        Self {
            labels,
            opened: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            closed: Default::default(),
            handles: OnceLock::new(),
        }
    }

    /// Whether it is that of those who found no room.
    pub(super) fn is_overflow(&self) -> bool {
        matches!(self.labels, Labels::Overflow(_))
    }

    /// One connection has ended.
    pub(super) fn close(&self, flag: ResponseFlag) {
        if let Some(closed) = self.closed.get(flag as usize) {
            closed.fetch_add(1, Relaxed);
        }
    }

    fn publish(&self, recorder: &TransientSeries) {
        let handles = self.handles.get_or_init(|| Handles::of(&self.labels, recorder));
        handles.opened.increment(self.opened.swap(0, Relaxed));
        handles.received.increment(self.received.swap(0, Relaxed));
        handles.sent.increment(self.sent.swap(0, Relaxed));
        for ((flag, closed), handle) in ResponseFlag::ALL.into_iter().zip(&self.closed).zip(&handles.closed) {
            let number = closed.swap(0, Relaxed);
            if number > 0 || handle.get().is_some() || flag == ResponseFlag::None {
                let (closed, failed) = handle.get_or_init(|| {
                    let values = self.labels.values(flag);
                    let failed = (flag != ResponseFlag::None).then(|| recorder.counter(&TCP_FAILED, &values));
                    (recorder.counter(&TCP_CLOSED, &values), failed)
                });
                closed.increment(number);
                failed.iter().for_each(|failed| failed.increment(number));
            }
        }
    }
}

impl Handles {
    fn of(labels: &Labels, recorder: &TransientSeries) -> Self {
        let values = labels.values(ResponseFlag::None);
        let counter = |metric| recorder.counter(metric, &values);
        Self {
            opened: counter(&TCP_OPENED),
            received: counter(&TCP_RECEIVED),
            sent: counter(&TCP_SENT),
            closed: Default::default(),
        }
    }
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handles")
    }
}

impl Ledger {
    /// An empty one with room for `most` sets of labels.
    pub(crate) fn new(most: usize) -> Self {
        let overflow = |direction| Arc::new(Series::new(Labels::Overflow(direction)));
        Self(Arc::new(Book {
            most,
            series: Mutex::default(),
            overflow: [overflow(Direction::Inbound), overflow(Direction::Outbound)],
            overflowed: AtomicU64::default(),
            verdicts: Mutex::default(),
        }))
    }

    /// Whether what policies say may be counted under these labels: those known already, and as many as connections may
    /// have. They name policies and identities that stay for ever in the recorder.
    pub(super) fn has_room(&self, metric: &Counters<4>, values: &[SharedString; 4]) -> bool {
        let mut known = self.0.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (metric.name(), values.clone());
        let has_room = known.contains(&key) || known.len() < self.0.most;
        if has_room {
            known.insert(key);
        } else {
            self.0.overflowed.fetch_add(1, Relaxed);
        }
        has_room
    }

    /// The series with these labels, or the one of those that found no room.
    pub(super) fn series(&self, direction: Direction, labels: Labels) -> Arc<Series> {
        let mut all = self.lock();
        if let Some(series) = all.get(&labels) {
            return Arc::clone(series);
        }
        if all.len() >= self.0.most {
            self.0.overflowed.fetch_add(1, Relaxed);
            let [inbound, outbound] = &self.0.overflow;
            return Arc::clone(if direction == Direction::Inbound { inbound } else { outbound });
        }
        let series = Arc::new(Series::new(labels.clone()));
        all.insert(labels, Arc::clone(&series));
        series
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Labels, Arc<Series>>> {
        self.0.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what names somebody who is gone and is used by no connection.
    pub(super) fn review(&self, view: &View) -> Vec<Series> {
        let owners: HashSet<Owner> = view.workloads().map(|workload| Owner::of(workload)).collect();
        let mut all = self.lock();
        let gone =
            |labels: &&Labels| !labels.live(|owner| owners.contains(owner), |service| view.service(service).is_some());
        let gone: Vec<Labels> = all.keys().filter(gone).cloned().collect();
        let mut taken = Vec::new();
        for labels in gone {
            if let Some(series) = all.remove(&labels) {
                // Workers remember series weakly, so one that is not in use cannot come back to life.
                match Arc::try_unwrap(series) {
                    Ok(series) => taken.push(series),
                    Err(used) => drop(all.insert(labels, used)),
                }
            }
        }
        taken
    }
}

/// Writes the ledger's part of the page.
pub(crate) struct Publisher {
    ledger: Ledger,
    recorder: TransientSeries,
    mesh: Mesh,
    reviewed: Instant,
}

impl Publisher {
    /// For this ledger; the mesh says who is gone.
    pub(crate) fn new(ledger: Ledger, mesh: Mesh) -> Self {
        let recorder = TransientSeries::new(&[&TCP_OPENED, &TCP_CLOSED, &TCP_FAILED, &TCP_RECEIVED, &TCP_SENT], SHOWN);
        Self { ledger, recorder, mesh, reviewed: Instant::now() }
    }

    /// Adds it.
    pub(crate) fn write(&mut self, page: &mut String) {
        self.review();
        // Out of the lock: workers that meet a new pair wait for it.
        let all: Vec<_> = self.ledger.lock().values().cloned().collect();
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 of them")]
        catalogue::LABEL_SETS.with([]).set(all.len() as f64);
        all.iter().for_each(|series| series.publish(&self.recorder));
        let overflowed = self.ledger.0.overflowed.load(Relaxed);
        catalogue::OVERFLOWED.with([]).absolute(overflowed);
        if overflowed > 0 {
            self.ledger.0.overflow.iter().for_each(|series| series.publish(&self.recorder));
        }
        page.push_str(&self.recorder.render());
    }

    fn review(&mut self) {
        let view = self.mesh.view();
        if self.reviewed.elapsed() >= REVIEW && view.is_complete() {
            self.reviewed = Instant::now();
            let gone = self.ledger.review(&view);
            gone.iter().for_each(|series| series.publish(&self.recorder));
        }
    }
}
