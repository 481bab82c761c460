//! What one workload may take of this node proxy, so that nobody's appetite is anybody else's hunger.
//!
//! Deciding stands here and is pure; [`account`] counts. Whoever would be too many waits in the kernel's queue at first,
//! as room may come within moments, and is reset with a reason later, as an open connection that nobody serves is worse
//! than none. A peer's request in a tunnel is answered that the service is unavailable, so that the peer may try another
//! endpoint.

mod account;
mod counted;

use std::time::Duration;

use underpass_model::limits::PodLimits;

pub(crate) use account::{Budget, Node, Share, write};
pub(crate) use counted::Counted;

/// What runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Over {
    /// The workload has as many connections as it may.
    #[error("the workload has as many connections as it may have")]
    Connections,
    /// The workload has as many descriptors as it may.
    #[error("the workload has as many descriptors as it may have")]
    Descriptors,
    /// As many peers are shaking hands with it as may at once.
    #[error("as many peers shake hands with the workload as may at once")]
    Handshakes,
    /// The node's descriptors are scarce, and the workload has more than what every workload is sure of.
    #[error("the node's descriptors are scarce, and the workload has its share of them")]
    Node,
}

impl Over {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Connections, Self::Descriptors, Self::Handshakes, Self::Node];

    /// The stable label in logs and metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Connections => "budget_connections",
            Self::Descriptors => "budget_descriptors",
            Self::Handshakes => "budget_handshakes",
            Self::Node => "budget_node",
        }
    }

    /// As the metrics call the budget.
    pub(crate) fn budget(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Descriptors => "descriptors",
            Self::Handshakes => "handshakes",
            Self::Node => "node",
        }
    }
}

/// How much of each; taken, asked for, or left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Connections, the streams of peers' tunnels among them.
    pub(crate) connections: u64,
    /// Descriptors that connections and tunnels take.
    pub(crate) descriptors: u64,
    /// Peers whose handshake is under way.
    pub(crate) handshakes: u64,
}

impl Amount {
    /// A connection that was redirected to us: its own socket, and the one onwards.
    pub(crate) const REDIRECTED: Self = Self { connections: 1, descriptors: 2, handshakes: 0 };
    /// A connection that came in a tunnel: the socket to the application.
    pub(crate) const STREAM: Self = Self { connections: 1, descriptors: 1, handshakes: 0 };
    /// A tunnel of a peer, which begins with a handshake.
    pub(crate) const PEER: Self = Self { connections: 0, descriptors: 1, handshakes: 1 };
    /// A tunnel to a peer.
    pub(crate) const TUNNEL: Self = Self { connections: 0, descriptors: 1, handshakes: 0 };
}

/// What one workload may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// At once.
    pub(crate) most: Amount,
    /// Bytes that were read of its connections and wait to be written; above, its applications are read from in small
    /// pieces only.
    pub(crate) buffered_bytes: u64,
}

/// What there is for all workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Supply {
    /// Descriptors for connections and tunnels.
    pub(crate) descriptors: u64,
    /// Workloads that share them.
    pub(crate) pods: u64,
}

/// Handshakes are short, and those that are not make room ([`Budget::crowded_out`]).
const HANDSHAKES: u64 = 256;
/// As much as 64 connections that carry bulk may have in their windows.
const BUFFERED_BYTES: u64 = 64 << 20;
/// What a process needs besides: logs, files, the agent, the operator, whoever asks for pages.
const OWN: u64 = 512;
/// A pod's namespace and listeners, and a spare.
const OF_A_POD: u64 = 5;
/// As long as there may soon be room, waiting is better than an error.
const PATIENCE: Duration = Duration::from_secs(3);

impl Supply {
    /// Of a process that may have this many descriptors.
    pub(crate) fn new(process: u64, pods: u64) -> Self {
        let own = OWN.min(process / 4).saturating_add(pods.saturating_mul(OF_A_POD));
        Self { descriptors: process.saturating_sub(own), pods }
    }

    /// What anybody may take.
    fn common(self) -> u64 {
        self.descriptors / 4 * 3
    }

    /// What every workload is sure of, whatever the others take: the shares of all are what is not common.
    fn sure(self) -> u64 {
        (self.descriptors - self.common()) / self.pods.max(1)
    }
}

impl Limits {
    /// What a workload asked for, and what goes without saying.
    pub(crate) fn new(asked: &PodLimits) -> Self {
        Self {
            most: Amount {
                connections: asked.connections.unwrap_or(u64::MAX),
                descriptors: asked.descriptors.unwrap_or(u64::MAX),
                handshakes: asked.handshakes.unwrap_or(HANDSHAKES),
            },
            buffered_bytes: asked.buffered_bytes.unwrap_or(BUFFERED_BYTES),
        }
    }
}

/// Whether a workload that has `has` may have `more`, where `taken` descriptors are in use by all.
pub(crate) fn admit(has: Amount, more: Amount, limits: &Limits, taken: u64, supply: Supply) -> Result<(), Over> {
    let most = limits.most;
    // Who takes none of something is not stopped for the want of it.
    let lacks = |has: u64, more: u64, most: u64| more > 0 && has.saturating_add(more) > most;
    if lacks(has.connections, more.connections, most.connections) {
        return Err(Over::Connections);
    }
    if lacks(has.handshakes, more.handshakes, most.handshakes) {
        return Err(Over::Handshakes);
    }
    if lacks(has.descriptors, more.descriptors, most.descriptors) {
        return Err(Over::Descriptors);
    }
    let scarce = lacks(taken, more.descriptors, supply.common());
    if scarce && lacks(has.descriptors, more.descriptors, supply.sure()) { Err(Over::Node) } else { Ok(()) }
}

/// Whether to reset whoever comes to a door at which the first has been waiting this long.
pub(crate) fn is_hopeless(over: Over, waiting: Duration) -> bool {
    match over {
        // Those under way end within moments, or make room.
        Over::Handshakes => false,
        Over::Connections | Over::Descriptors | Over::Node => waiting >= PATIENCE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(connections: u64, descriptors: u64, handshakes: u64) -> Amount {
        Amount { connections, descriptors, handshakes }
    }

    #[test]
    fn each_budget_stops_what_would_take_more_of_it_and_nothing_else() {
        let asked = PodLimits {
            connections: Some(10),
            descriptors: Some(20),
            handshakes: Some(3),
            buffered_bytes: Some(1 << 20),
        };
        let limits = Limits::new(&asked);
        let supply = Supply::new(20_000, 10);
        let (redirected, stream, peer) = (Amount::REDIRECTED, Amount::STREAM, Amount::PEER);
        for (has, more, expected) in [
            (has(0, 0, 0), redirected, Ok(())),
            (has(9, 18, 3), redirected, Ok(())),
            (has(10, 0, 0), redirected, Err(Over::Connections)),
            (has(10, 0, 0), stream, Err(Over::Connections)),
            (has(10, 0, 0), peer, Ok(())),
            (has(0, 19, 0), redirected, Err(Over::Descriptors)),
            (has(0, 19, 0), stream, Ok(())),
            (has(0, 20, 0), peer, Err(Over::Descriptors)),
            (has(0, 0, 3), peer, Err(Over::Handshakes)),
            (has(0, 0, 3), stream, Ok(())),
            // Limits that were lowered beneath what is in use.
            (has(50, 50, 50), stream, Err(Over::Connections)),
        ] {
            assert_eq!(admit(has, more, &limits, 0, supply), expected, "{has:?} {more:?}");
        }
    }

    #[test]
    fn where_descriptors_are_scarce_only_who_has_less_than_its_share_gets_more() {
        let limits = Limits::new(&PodLimits::default());
        let supply = Supply { descriptors: 1000, pods: 10 };
        assert_eq!((supply.common(), supply.sure()), (750, 25));
        for (own, taken, expected) in [
            (0, 0, Ok(())),
            (700, 700, Ok(())),
            (748, 748, Ok(())),
            (749, 749, Err(Over::Node)),
            (0, 749, Ok(())),
            (23, 900, Ok(())),
            (24, 900, Err(Over::Node)),
            (23, 998, Ok(())),
        ] {
            let has = has(own / 2, own, 0);
            assert_eq!(admit(has, Amount::REDIRECTED, &limits, taken, supply), expected, "{own} of {taken}");
        }
    }

    #[test]
    fn however_greedy_the_others_are_every_share_is_there_and_no_more_than_there_is() {
        for (process, pods) in [(1024, 1), (1024, 30), (20_000, 3), (20_000, 110), (1_000_000, 250)] {
            let limits = Limits::new(&PodLimits::default());
            let supply = Supply::new(process, pods);
            let mut has = vec![Amount::default(); usize::try_from(pods).unwrap()];
            let mut taken = 0;
            // The first takes all that it can get; then the others, one after the other.
            for pod in &mut has {
                while admit(*pod, Amount::STREAM, &limits, taken, supply).is_ok() {
                    pod.connections += 1;
                    pod.descriptors += 1;
                    taken += 1;
                }
            }
            assert!(taken <= supply.descriptors, "{taken} of {supply:?}");
            assert!(has.iter().all(|pod| pod.descriptors >= supply.sure()), "{has:?}");
            assert!(supply.descriptors + pods * OF_A_POD <= process);
        }
    }

    #[test]
    fn more_pods_than_descriptors_leave_nothing_and_nothing_panics() {
        let supply = Supply::new(100, 1000);
        assert_eq!(supply, Supply { descriptors: 0, pods: 1000 });
        let limits = Limits::new(&PodLimits::default());
        assert_eq!(admit(Amount::default(), Amount::STREAM, &limits, 0, supply), Err(Over::Node));
        assert_eq!(admit(Amount::default(), Amount::STREAM, &limits, 0, Supply::new(u64::MAX, 0)), Ok(()));
    }

    #[test]
    fn who_waits_in_vain_is_told_so_after_a_while() {
        let (soon, late) = (Duration::from_millis(2999), PATIENCE);
        for over in Over::ALL {
            assert!(!is_hopeless(over, soon));
            assert_eq!(is_hopeless(over, late), over != Over::Handshakes, "{over:?}");
        }
    }
}
