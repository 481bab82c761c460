//! Chains, rules, conditions and actions: exactly the vocabulary that capture needs, printed as `nft` would.

use std::fmt::{self, Display};

use ipnet::{Ipv4Net, Ipv6Net};
use underpass_model::names::MARK_MASK;

/// One base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) rules: Vec<Rule>,
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Filter,
    Nat,
    /// Looks the route up again after a change of mark.
    Route,
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the pod's processes send.
    Output,
    /// Packets that arrive, before their route is looked up.
    Prerouting,
}

/// All conditions hold: then the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    ConnectionMarkIs(u32),
    Loopback(Hook),
    NotLoopback(Hook),
    /// SYN without FIN, RST or ACK: what decides capture, so that no stream is taken mid-way.
    OpeningSyn,
    /// The packet goes the way of the connection's first.
    OriginalDirection,
    PacketMarkIs(u32),
    PacketMarkIsNot(Vec<u32>),
    PortIs(Side, Vec<u16>),
    PortIsNot(Side, Vec<u16>),
    /// A socket of this namespace would take the packet.
    SocketListens,
    SocketMarkIs(u32),
    Tcp,
    V4In(Side, Vec<Ipv4Net>),
    V6In(Side, Vec<Ipv6Net>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Destination,
    Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Notrack,
    Redirect(u16),
    SetConnectionMark(u32),
    /// Tracks the connection's first direction apart from those of other zones.
    SetOriginalZone(u16),
    SetPacketMark(u32),
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

impl Hook {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        }
    }

    fn interface(self) -> &'static str {
        match self {
            Self::Output => "oifname",
            Self::Prerouting => "iifname",
        }
    }
}

impl Side {
    pub(super) fn port(self) -> &'static str {
        match self {
            Self::Destination => "dport",
            Self::Source => "sport",
        }
    }

    pub(super) fn address(self) -> &'static str {
        match self {
            Self::Destination => "daddr",
            Self::Source => "saddr",
        }
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, hook) = (self.kind.name(), self.hook.name());
        writeln!(f, "  chain {}: type {kind} hook {hook} priority {}", self.name, self.priority)?;
        self.rules.iter().try_for_each(|rule| writeln!(f, "    {rule}"))
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.conditions.iter().try_for_each(|condition| write!(f, "{condition} "))?;
        self.action.fmt(f)
    }
}

impl Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionMarkIs(mark) => write!(f, "ct mark & {MARK_MASK:#x} == {mark:#x}"),
            Self::Loopback(hook) => write!(f, "{} \"lo\"", hook.interface()),
            Self::NotLoopback(hook) => write!(f, "{} != \"lo\"", hook.interface()),
            Self::OpeningSyn => f.write_str("tcp flags & (fin | syn | rst | ack) == syn"),
            Self::OriginalDirection => f.write_str("ct direction original"),
            Self::PacketMarkIs(mark) => write!(f, "meta mark & {MARK_MASK:#x} == {mark:#x}"),
            Self::PacketMarkIsNot(marks) => {
                let marks = marks.iter().map(|mark| format!("{mark:#x}"));
                write!(f, "meta mark & {MARK_MASK:#x} != {}", set(marks))
            }
            Self::PortIs(side, ports) => write!(f, "tcp {} {}", side.port(), set(ports)),
            Self::PortIsNot(side, ports) => write!(f, "tcp {} != {}", side.port(), set(ports)),
            Self::SocketListens => f.write_str("socket transparent { 0, 1 }"),
            Self::SocketMarkIs(mark) => write!(f, "socket mark & {MARK_MASK:#x} == {mark:#x}"),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::V4In(side, networks) => write!(f, "ip {} {}", side.address(), set(networks)),
            Self::V6In(side, networks) => write!(f, "ip6 {} {}", side.address(), set(networks)),
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Notrack => f.write_str("notrack"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::SetConnectionMark(mark) => write!(f, "ct mark set {mark:#x}"),
            Self::SetOriginalZone(zone) => write!(f, "ct original zone set {zone}"),
            Self::SetPacketMark(mark) => write!(f, "meta mark set {mark:#x}"),
        }
    }
}

/// One item as it is, several as a set.
fn set(items: impl IntoIterator<Item: Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.len() == 1 { items.concat() } else { format!("{{ {} }}", items.join(", ")) }
}
