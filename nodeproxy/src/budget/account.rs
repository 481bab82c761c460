//! Who has how much of what: counted by all workers, never behind a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use underpass_hbone::Held;
use underpass_model::limits::PodLimits;
use underpass_runtime::metrics::{
    SharedString,
    catalogue::{BUDGET_LIMIT, BUDGET_REFUSED, BUDGET_USED, BUDGET_WAITS},
    transient,
};

use super::{Amount, Limits, Over, Supply, admit};
use crate::pods::Pods;

/// Longer than the handshake of a peer that means it takes, also over a slow way.
const HONEST: Duration = Duration::from_millis(500);

/// What all workloads of this node proxy share.
#[derive(Debug)]
pub(crate) struct Node {
    /// Descriptors that the process may have.
    process: u64,
    taken: AtomicU64,
    pods: AtomicU64,
}

/// One workload's.
#[derive(Debug)]
pub(crate) struct Budget {
    node: Arc<Node>,
    limits: ArcSwap<Limits>,
    connections: AtomicU64,
    descriptors: AtomicU64,
    handshakes: AtomicU64,
    /// Wakes handshakes that have to make room, the oldest first.
    crowd: Notify,
    held: Arc<Held>,
    waits: [AtomicU64; Over::ALL.len()],
    refused: [AtomicU64; Over::ALL.len()],
}

/// What a connection or a tunnel has of its workload's budget. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    amount: Amount,
}

impl Node {
    /// Of a process that may have this many descriptors.
    pub(crate) fn new(process: u64) -> Self {
        Self { process, taken: AtomicU64::new(0), pods: AtomicU64::new(0) }
    }

    /// How many pods there are.
    pub(crate) fn share_among(&self, pods: usize) {
        self.pods.store(pods as u64, Relaxed);
    }

    fn supply(&self) -> Supply {
        Supply::new(self.process, self.pods.load(Relaxed))
    }
}

impl Budget {
    /// Nothing is taken yet.
    pub(crate) fn new(node: Arc<Node>, asked: &PodLimits) -> Self {
        let limits = Limits::new(asked);
        Self {
            node,
            limits: ArcSwap::from_pointee(limits),
            connections: AtomicU64::new(0),
            descriptors: AtomicU64::new(0),
            handshakes: AtomicU64::new(0),
            crowd: Notify::new(),
            held: Arc::new(Held::new(limits.buffered_bytes)),
            waits: Default::default(),
            refused: Default::default(),
        }
    }

    /// Changes what the workload may have. What it has it keeps.
    pub(crate) fn limit(&self, asked: &PodLimits) {
        let limits = Limits::new(asked);
        self.held.limit(limits.buffered_bytes);
        self.limits.store(Arc::new(limits));
    }

    /// The bytes that wait in its connections.
    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// Takes this much, if there is room for it.
    pub(crate) fn take(self: &Arc<Self>, amount: Amount) -> Result<Share, Over> {
        // First it is taken, then judged: two that do so at once see each other, and at worst both come again.
        let has = self.add(amount);
        let taken = self.node.taken.fetch_add(amount.descriptors, Relaxed);
        let share = Share { budget: Arc::clone(self), amount };
        admit(has, amount, &self.limits.load(), taken, self.node.supply()).map(|()| share)
    }

    /// Takes this much, whether or not there is room: for what has been judged already.
    pub(crate) fn owe(self: &Arc<Self>, amount: Amount) -> Share {
        self.add(amount);
        self.node.taken.fetch_add(amount.descriptors, Relaxed);
        Share { budget: Arc::clone(self), amount }
    }

    /// Notes that its listeners are left alone for a while. Handshakes that only take up room end meanwhile.
    pub(crate) fn waits(&self, over: Over) {
        count(&self.waits, over);
        if over == Over::Handshakes {
            (0..self.spare()).for_each(|_| self.crowd.notify_one());
        }
    }

    /// Completes when a handshake that began now shall end for the sake of others: it has lasted longer than that of a
    /// peer which means it, there is no room for one more, and none is older.
    pub(crate) async fn crowded_out(&self) {
        tokio::time::sleep(HONEST).await;
        loop {
            self.crowd.notified().await;
            // There may have been nobody when somebody was called, and others have made room, too.
            let taken = self.handshakes.load(Relaxed).saturating_add(self.spare());
            if taken > self.limits.load().most.handshakes {
                return;
            }
        }
    }

    /// For how many handshakes room is made at once.
    fn spare(&self) -> u64 {
        (self.limits.load().most.handshakes / 16).clamp(1, 16)
    }

    /// Notes that a connection was refused.
    pub(crate) fn refused(&self, over: Over) {
        count(&self.refused, over);
    }

    /// Adds, and says what there was before.
    fn add(&self, amount: Amount) -> Amount {
        Amount {
            connections: self.connections.fetch_add(amount.connections, Relaxed),
            descriptors: self.descriptors.fetch_add(amount.descriptors, Relaxed),
            handshakes: self.handshakes.fetch_add(amount.handshakes, Relaxed),
        }
    }

    fn give_back(&self, amount: Amount) {
        self.connections.fetch_sub(amount.connections, Relaxed);
        self.descriptors.fetch_sub(amount.descriptors, Relaxed);
        self.handshakes.fetch_sub(amount.handshakes, Relaxed);
        self.node.taken.fetch_sub(amount.descriptors, Relaxed);
    }
}

fn count(counters: &[AtomicU64], over: Over) {
    if let Some(counter) = counters.get(over as usize) {
        counter.fetch_add(1, Relaxed);
    }
}

impl Share {
    /// The handshake is over.
    pub(crate) fn shaken(&mut self) {
        self.keep(Amount { handshakes: 0, ..self.amount });
    }

    /// It goes onwards in a tunnel, which has a descriptor of its own.
    pub(crate) fn in_a_tunnel(&mut self) {
        self.keep(Amount { descriptors: self.amount.descriptors.min(1), ..self.amount });
    }

    fn keep(&mut self, keep: Amount) {
        let Amount { connections, descriptors, handshakes } = self.amount;
        self.amount = keep;
        self.budget.give_back(Amount {
            connections: connections - keep.connections,
            descriptors: descriptors - keep.descriptors,
            handshakes: handshakes - keep.handshakes,
        });
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.amount);
    }
}

/// Adds the budgets of all pods to a page of metrics. Their series end with them.
#[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 of anything here")]
pub(crate) fn write(pods: &Pods, page: &mut String) {
    let series = transient::Snapshot::new(&[&BUDGET_USED, &BUDGET_LIMIT, &BUDGET_WAITS, &BUDGET_REFUSED]);
    for pod in pods.all().values() {
        let (budget, limits) = (&pod.budget, pod.budget.limits.load());
        let values =
            |what| [Arc::clone(&pod.namespace).into(), Arc::clone(&pod.name).into(), SharedString::const_str(what)];
        for (what, used, most) in [
            ("buffered_bytes", budget.held.bytes(), limits.buffered_bytes),
            (Over::Connections.budget(), budget.connections.load(Relaxed), limits.most.connections),
            (Over::Descriptors.budget(), budget.descriptors.load(Relaxed), limits.most.descriptors),
            (Over::Handshakes.budget(), budget.handshakes.load(Relaxed), limits.most.handshakes),
        ] {
            series.gauge(&BUDGET_USED, &values(what), used as f64);
            if most != u64::MAX {
                series.gauge(&BUDGET_LIMIT, &values(what), most as f64);
            }
        }
        for (over, (waits, refused)) in Over::ALL.into_iter().zip(budget.waits.iter().zip(&budget.refused)) {
            for (metric, number) in [(&BUDGET_WAITS, waits), (&BUDGET_REFUSED, refused)] {
                match number.load(Relaxed) {
                    0 => {}
                    number => series.counter(metric, &values(over.budget()), number),
                }
            }
        }
    }
    page.push_str(&series.render());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(process: u64, asked: &PodLimits) -> Arc<Budget> {
        let node = Arc::new(Node::new(process));
        node.share_among(1);
        Arc::new(Budget::new(node, asked))
    }

    fn used(budget: &Budget) -> (Amount, u64) {
        (budget.add(Amount::default()), budget.node.taken.load(Relaxed))
    }

    #[test]
    fn what_is_taken_is_given_back_in_parts_or_whole_and_a_refusal_takes_nothing() {
        let budget = budget(20_000, &PodLimits { connections: Some(1), ..PodLimits::default() });
        let mut redirected = budget.take(Amount::REDIRECTED).unwrap();
        assert_eq!(used(&budget), (Amount::REDIRECTED, 2));
        assert_eq!(budget.take(Amount::STREAM).unwrap_err(), Over::Connections);
        assert_eq!(used(&budget), (Amount::REDIRECTED, 2));
        redirected.in_a_tunnel();
        assert_eq!(used(&budget), (Amount { connections: 1, descriptors: 1, handshakes: 0 }, 1));
        let mut peer = budget.take(Amount::PEER).unwrap();
        peer.shaken();
        assert_eq!(used(&budget), (Amount { connections: 1, descriptors: 2, handshakes: 0 }, 2));
        drop((redirected, peer));
        assert_eq!(used(&budget), (Amount::default(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_handshakes_make_room_for_others_and_only_where_there_is_none() {
        let budget = budget(20_000, &PodLimits { handshakes: Some(2), ..PodLimits::default() });
        let mut old = std::pin::pin!(budget.crowded_out());
        let (_first, second) = (budget.take(Amount::PEER).unwrap(), budget.take(Amount::PEER).unwrap());
        let pending = |moment| tokio::time::sleep(moment);
        tokio::select! { () = old.as_mut() => panic!("nobody wants its place"), () = pending(HONEST * 9) => {} }
        let mut young = std::pin::pin!(budget.crowded_out());
        tokio::select! { () = young.as_mut() => panic!("it is young"), () = pending(HONEST / 2) => {} }
        let over = budget.take(Amount::PEER).unwrap_err();
        budget.waits(over);
        old.await;
        // Called, but there is room by now.
        drop(second);
        budget.waits(over);
        tokio::select! { () = young.as_mut() => panic!("there is room"), () = pending(HONEST * 9) => {} }
        let _third = budget.take(Amount::PEER).unwrap();
        budget.waits(over);
        young.await;
    }

    #[test]
    fn a_lowered_limit_takes_nothing_away_and_admits_nobody() {
        let budget = budget(20_000, &PodLimits::default());
        let held: Vec<_> = (0..5).map(|_| budget.take(Amount::STREAM).unwrap()).collect();
        budget.limit(&PodLimits { connections: Some(3), ..PodLimits::default() });
        assert_eq!(budget.take(Amount::STREAM).unwrap_err(), Over::Connections);
        assert_eq!(used(&budget).0.connections, 5);
        drop(held);
        assert!(budget.take(Amount::STREAM).is_ok());
    }

    #[test]
    fn many_threads_never_take_more_than_there_is_and_leave_nothing_behind() {
        let budget = budget(100, &PodLimits::default());
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let held: Vec<_> = (0..30).filter_map(|_| budget.take(Amount::STREAM).ok()).collect();
                        most.fetch_max(held.len() as u64, Relaxed);
                    }
                });
            }
        });
        assert!(most.load(Relaxed) <= 70);
        assert_eq!(used(&budget), (Amount::default(), 0));
    }
}
