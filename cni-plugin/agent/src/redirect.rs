//! The nftables rules of a captured pod, as a value: one table of our own, replaced whole in one atomic batch.
//!
//! Pure: nothing here touches a kernel. Only a connection's opening SYN is ever redirected, so connections older than
//! enrolment live on; marks bring replies to kept source addresses back to the node proxy; tunnel packets need no
//! connection tracking and are exempted as narrowly as they can be told from what a client could forge.

mod json;
mod rule;
mod verify;

use std::fmt;

use underpass_model::{
    exclusions::{Excluded, Exclusions},
    names::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, PROXY_MARK, REPLY_MARK},
};

use rule::{Action, Condition as If, Kind, Rule, Side};
pub use rule::{Chain, Hook};
pub use verify::Verified;

/// The table that is ours, for both address families whatever the namespace uses: IPv6 can be switched on later; no other is ever read or written.
pub const TABLE: &str = "underpass";
/// Part of every rule's comment; a change here replaces the rules of running pods at their next reconciliation.
const SCHEMA: u32 = 1;

/// What the rules of one pod depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// What the pod's annotations leave out.
    pub exclusions: Exclusions,
    /// Whether new connections are taken.
    pub phase: Phase,
}

/// How far a pod is under capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// New connections go to the node proxy.
    Captured,
    /// New connections pass; those taken earlier need their marks and their translation until they end.
    Draining,
}

/// The whole table, ready to be written, shown or compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    chains: Vec<Chain>,
}

impl Redirect {
    /// The table for this pod.
    #[must_use]
    pub fn ruleset(&self) -> Ruleset {
        let [raw_prerouting, raw_output] = exemptions();
        let [mark_prerouting, mark_output] = marks();
        let (inbound, outbound) = match self.phase {
            Phase::Captured => (self.inbound(), self.outbound()),
            // The empty chains keep address translation alive for connections that were redirected earlier.
            Phase::Draining => (Vec::new(), Vec::new()),
        };
        let chain = |name, kind, hook, priority, rules| Chain { name, kind, hook, priority, rules };
        Ruleset {
            chains: vec![
                chain("raw_prerouting", Kind::Filter, Hook::Prerouting, -300, raw_prerouting),
                chain("raw_output", Kind::Filter, Hook::Output, -300, raw_output),
                chain("mark_prerouting", Kind::Filter, Hook::Prerouting, -150, mark_prerouting),
                chain("mark_output", Kind::Route, Hook::Output, -150, mark_output),
                chain("inbound", Kind::Nat, Hook::Prerouting, -100, inbound),
                chain("outbound", Kind::Nat, Hook::Output, -100, outbound),
            ],
        }
    }

    fn inbound(&self) -> Vec<Rule> {
        let conditions = vec![
            If::NotLoopback(Hook::Prerouting),
            If::PacketMarkIsNot(vec![PROXY_MARK]),
            If::OpeningSyn,
            If::PortIsNot(Side::Destination, vec![HBONE_PORT]),
            // A redirect would make every connect succeed; closed ports shall refuse as they do without a mesh.
            If::SocketListens,
        ];
        let mut rules = excluded(&self.exclusions.inbound, Side::Source);
        rules.push(Rule { conditions, action: Action::Redirect(INBOUND_PLAINTEXT_PORT) });
        rules
    }

    fn outbound(&self) -> Vec<Rule> {
        let conditions = vec![
            // Whatever the pod says to itself stays between its processes.
            If::NotLoopback(Hook::Output),
            If::PacketMarkIsNot(vec![REPLY_MARK, PROXY_MARK]),
            If::OpeningSyn,
        ];
        let mut rules = excluded(&self.exclusions.outbound, Side::Destination);
        rules.push(Rule { conditions, action: Action::Redirect(OUTBOUND_PORT) });
        rules
    }
}

/// Rules that let through what annotations leave out; `far` is the side on which the pod's peer stands.
fn excluded(excluded: &Excluded, far: Side) -> Vec<Rule> {
    let mut conditions = Vec::new();
    if !excluded.ports.is_empty() {
        conditions.push(If::PortIs(Side::Destination, excluded.ports.iter().copied().collect()));
    }
    if !excluded.v4.is_empty() {
        conditions.push(If::V4In(far, excluded.v4.clone()));
    }
    if !excluded.v6.is_empty() {
        conditions.push(If::V6In(far, excluded.v6.clone()));
    }
    conditions.into_iter().map(|condition| Rule { conditions: vec![condition], action: Action::Accept }).collect()
}

/// The connection tracking zone of what the node proxy opens within the pod.
const PROXY_ZONE: u16 = 1;

/// Tunnel packets go without connection tracking.
///
/// A client can choose 15008 as its own source port. Its packets must stay tracked, or it would walk past capture: so a
/// reply *to* port 15008 is only exempt if it does not come from the ports that capture redirects to, and a packet
/// *from* port 15008 only if the node proxy's own socket awaits it.
fn exemptions() -> [Vec<Rule>; 2] {
    let notrack = |conditions| Rule { conditions, action: Action::Notrack };
    let prerouting = vec![
        notrack(vec![If::NotLoopback(Hook::Prerouting), If::PortIs(Side::Destination, vec![HBONE_PORT])]),
        notrack(vec![
            If::NotLoopback(Hook::Prerouting),
            If::PortIs(Side::Source, vec![HBONE_PORT]),
            If::SocketMarkIs(PROXY_MARK),
        ]),
    ];
    let output = vec![
        // The proxy speaks to the application in its client's name, from a port that the client may come to use itself:
        // then both connections have the same addresses, and only the zone tells them apart. Replies need none, because
        // the client's own connection was redirected and so replies from another port.
        Rule {
            conditions: vec![If::Loopback(Hook::Output), If::Tcp, If::PacketMarkIs(PROXY_MARK)],
            action: Action::SetOriginalZone(PROXY_ZONE),
        },
        notrack(vec![
            If::NotLoopback(Hook::Output),
            If::PacketMarkIs(PROXY_MARK),
            If::PortIs(Side::Source, vec![HBONE_PORT]),
        ]),
        notrack(vec![
            If::NotLoopback(Hook::Output),
            If::PacketMarkIs(PROXY_MARK),
            If::PortIs(Side::Destination, vec![HBONE_PORT]),
            If::PortIsNot(Side::Source, vec![OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT]),
        ]),
    ];
    [prerouting, output]
}

/// Brings replies to a source address that the node proxy kept back to it, instead of out to that address.
///
/// They also hold a reference to connection tracking, without which translated connections would break while draining.
fn marks() -> [Vec<Rule>; 2] {
    let remember = Rule {
        conditions: vec![If::Loopback(Hook::Prerouting), If::Tcp, If::PacketMarkIs(PROXY_MARK), If::OriginalDirection],
        action: Action::SetConnectionMark(REPLY_MARK),
    };
    let recall = Rule {
        conditions: vec![If::ConnectionMarkIs(REPLY_MARK), If::PacketMarkIsNot(vec![PROXY_MARK])],
        action: Action::SetPacketMark(REPLY_MARK),
    };
    [vec![remember], vec![recall]]
}

impl fmt::Display for Ruleset {
    /// As `nft` would write it, for people and snapshots.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE}")?;
        self.chains.iter().try_for_each(|chain| write!(f, "{chain}"))
    }
}

#[cfg(test)]
mod tests;
