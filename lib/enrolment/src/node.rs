//! `node.sock`: what agent and proxy tell each other beyond ZDS. The agent listens, the proxy connects.
//!
//! ```text
//! proxy  Hello
//! agent  Hello, Listeners ..., ListenersSent
//! proxy  Listeners of the pods that the agent did not name
//! then   proxy  Listeners, Ready, Serving, Holds, Live, Released, Probe
//!        agent  Listeners, Release, Terminating, Successor, ProbeAnswer, Limits
//! ```
//! Messages that only a newer version knows are ignored, so both sides speak the lower of their versions and either may
//! be upgraded first. Deadlines are the callers'.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use underpass_model::{AddressPair, PodUid, limits::PodLimits};

use crate::{
    message::{
        DecodeError, EncodeError, Message, Packet, bad_field, count_descriptors, packet, parse, required, shorten,
    },
    wire::node as wire,
};

/// The version of the protocol that is spoken here. The second brought succession and pods that begin to end.
pub const VERSION: u32 = 2;
/// The most bytes in a packet.
pub const MAX_PACKET: usize = 4096;

/// What the proxy tells the agent.
#[derive(Debug)]
pub enum ToAgent {
    /// First of all.
    Hello {
        /// The version that the proxy speaks.
        version: u32,
        /// Which run of the proxy this is.
        generation: String,
        /// When it started, since the machine did: of two that serve, the younger succeeds the older.
        started: Duration,
    },
    /// The sockets of a pod that the proxy made; the agent keeps them for the next proxy.
    Listeners(Listeners),
    /// The pod's certificate is there, or why it is not.
    Ready {
        /// Which pod.
        pod: PodUid,
        /// There, or why not; long texts are cut when sent.
        outcome: Result<(), String>,
    },
    /// How many captured connections of a pod under release still live.
    Live {
        /// Which pod.
        pod: PodUid,
        /// How many.
        connections: u64,
    },
    /// The peers of a deleted pod have been told.
    Released {
        /// Which pod.
        pod: PodUid,
    },
    /// Who on this node made a connection?
    Probe {
        /// What the answer will carry.
        id: u64,
        /// The pod that it arrived at.
        pod: PodUid,
        /// Its two ends.
        connection: AddressPair,
    },
    /// The proxy takes connections at every pod that it was told to serve.
    Serving,
    /// The proxy stands back and has this pod still, which may have ended while nobody could tell.
    Holds {
        /// Which pod.
        pod: PodUid,
    },
}

/// What the agent tells the proxy.
#[derive(Debug)]
pub enum ToProxy {
    /// The answer to the proxy's hello.
    Hello {
        /// The version that the agent speaks.
        version: u32,
    },
    /// The sockets of a pod that an earlier proxy made.
    Listeners(Listeners),
    /// All pods whose sockets the agent holds have been named.
    ListenersSent,
    /// Stop taking connections of a pod.
    Release {
        /// Which pod.
        pod: PodUid,
        /// Why.
        reason: ReleaseReason,
        /// How long its connections may go on.
        deadline: Duration,
    },
    /// The answer to a probe.
    ProbeAnswer {
        /// The question's.
        id: u64,
        /// Who made the connection.
        origin: Origin,
    },
    /// A younger proxy serves, of this generation; none: it has gone.
    Successor(Option<String>),
    /// A pod begins to end: its peers should look for others, its connections and its own calls go on.
    Terminating {
        /// Which pod.
        pod: PodUid,
    },
    /// What a pod asks to be held to; before the pod itself, or when it changes.
    Limits {
        /// Which pod.
        pod: PodUid,
        /// To what.
        limits: PodLimits,
    },
}

/// The sockets that take a pod's captured connections.
#[derive(Debug)]
pub struct Listeners {
    /// Which pod.
    pub pod: PodUid,
    /// One for each port.
    pub sockets: Vec<ListeningSocket>,
}

/// A listening socket in a pod's network namespace.
#[derive(Debug)]
pub struct ListeningSocket {
    /// The port it is bound to.
    pub port: u16,
    /// The socket.
    pub socket: OwnedFd,
}

/// Why a pod is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReleaseReason {
    /// It ends: tell its peers and close.
    Deleted,
    /// It leaves the mesh: serve what is captured to its end.
    Unenrolled,
}

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The kubelet: a probe.
    Kubelet,
    /// Another process of this node.
    Host,
    /// Nobody on this node: it was only forwarded here.
    Forwarded,
    /// A process of this node that has closed it since.
    Gone,
}

const HELLO: &str = "node hello";
const LISTENERS: &str = "node listeners";
const LISTENERS_SENT: &str = "node listeners_sent";
const READY: &str = "node ready";
const LIVE: &str = "node live";
const RELEASED: &str = "node released";
const PROBE: &str = "node probe";
const SERVING: &str = "node serving";
const HOLDS: &str = "node holds";
const RELEASE: &str = "node release";
const PROBE_ANSWER: &str = "node probe_answer";
const SUCCESSOR: &str = "node successor";
const TERMINATING: &str = "node terminating";
const LIMITS: &str = "node limits";

impl Message for ToAgent {
    const NAME: &'static str = "node message to the agent";
    const LIMIT: usize = MAX_PACKET;

    fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        const REPEATED: usize = 1024;
        use wire::to_agent::Payload;
        let mut descriptors = Vec::new();
        let payload = match self {
            Self::Hello { version, generation, started } => Payload::Hello(wire::AgentHello {
                version: *version,
                generation: generation.clone(),
                started_ms: millis(*started),
            }),
            Self::Listeners(listeners) => {
                descriptors = listeners.descriptors();
                Payload::Listeners(listeners.to_wire())
            }
            Self::Ready { pod, outcome } => {
                let error = match outcome {
                    Ok(()) => "",
                    Err(why) if why.is_empty() => "failed without a reason",
                    Err(why) => shorten(why, REPEATED),
                };
                Payload::Ready(wire::Ready { pod_uid: pod.to_string(), error: error.to_owned() })
            }
            Self::Live { pod, connections } => {
                Payload::Live(wire::Live { pod_uid: pod.to_string(), connections: *connections })
            }
            Self::Released { pod } => Payload::Released(wire::Released { pod_uid: pod.to_string() }),
            Self::Probe { id, pod, connection } => Payload::Probe(wire::Probe {
                id: *id,
                pod_uid: pod.to_string(),
                client: connection.client.to_string(),
                server: connection.server.to_string(),
            }),
            Self::Serving => Payload::Serving(wire::Serving {}),
            Self::Holds { pod } => Payload::Holds(wire::Holds { pod_uid: pod.to_string() }),
        };
        packet::<Self>(&wire::ToAgent { payload: Some(payload) }, descriptors)
    }

    fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Self>, DecodeError> {
        use wire::to_agent::Payload;
        let Some(payload) = parse::<Self, wire::ToAgent>(bytes)?.payload else { return Ok(None) };
        let (message, expected) = match &payload {
            Payload::Hello(_) => (HELLO, 0),
            Payload::Listeners(listeners) => (LISTENERS, listeners.ports.len()),
            Payload::Ready(_) => (READY, 0),
            Payload::Live(_) => (LIVE, 0),
            Payload::Released(_) => (RELEASED, 0),
            Payload::Probe(_) => (PROBE, 0),
            Payload::Serving(_) => (SERVING, 0),
            Payload::Holds(_) => (HOLDS, 0),
        };
        count_descriptors(message, expected, &descriptors)?;
        let pod = |uid| pod_uid(message, uid);
        Ok(Some(match payload {
            Payload::Hello(hello) => Self::Hello {
                version: hello.version,
                generation: hello.generation,
                started: Duration::from_millis(hello.started_ms),
            },
            Payload::Listeners(listeners) => Self::Listeners(Listeners::from_wire(listeners, descriptors)?),
            Payload::Ready(ready) => {
                let outcome = if ready.error.is_empty() { Ok(()) } else { Err(ready.error) };
                Self::Ready { pod: pod(ready.pod_uid)?, outcome }
            }
            Payload::Live(live) => Self::Live { pod: pod(live.pod_uid)?, connections: live.connections },
            Payload::Released(released) => Self::Released { pod: pod(released.pod_uid)? },
            Payload::Probe(probe) => {
                let (client, server) = (address("client", &probe.client)?, address("server", &probe.server)?);
                Self::Probe { id: probe.id, pod: pod(probe.pod_uid)?, connection: AddressPair { client, server } }
            }
            Payload::Serving(wire::Serving {}) => Self::Serving,
            Payload::Holds(holds) => Self::Holds { pod: pod(holds.pod_uid)? },
        }))
    }
}

impl Message for ToProxy {
    const NAME: &'static str = "node message to the proxy";
    const LIMIT: usize = MAX_PACKET;

    fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        use wire::to_proxy::Payload;
        let mut descriptors = Vec::new();
        let payload = match self {
            Self::Hello { version } => Payload::Hello(wire::ProxyHello { version: *version }),
            Self::Listeners(listeners) => {
                descriptors = listeners.descriptors();
                Payload::Listeners(listeners.to_wire())
            }
            Self::ListenersSent => Payload::ListenersSent(wire::ListenersSent {}),
            Self::Release { pod, reason, deadline } => Payload::Release(wire::Release {
                pod_uid: pod.to_string(),
                reason: wire::ReleaseReason::from(*reason).into(),
                deadline_ms: millis(*deadline),
            }),
            Self::ProbeAnswer { id, origin } => {
                Payload::ProbeAnswer(wire::ProbeAnswer { id: *id, origin: wire::Origin::from(*origin).into() })
            }
            Self::Successor(generation) => {
                Payload::Successor(wire::Successor { generation: generation.clone().unwrap_or_default() })
            }
            Self::Terminating { pod } => Payload::Terminating(wire::Terminating { pod_uid: pod.to_string() }),
            Self::Limits { pod, limits } => Payload::Limits(wire::Limits {
                pod_uid: pod.to_string(),
                connections: limits.connections,
                descriptors: limits.descriptors,
                handshakes: limits.handshakes,
                buffered_bytes: limits.buffered_bytes,
            }),
        };
        packet::<Self>(&wire::ToProxy { payload: Some(payload) }, descriptors)
    }

    fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Self>, DecodeError> {
        use wire::to_proxy::Payload;
        let Some(payload) = parse::<Self, wire::ToProxy>(bytes)?.payload else { return Ok(None) };
        let (message, expected) = match &payload {
            Payload::Hello(_) => (HELLO, 0),
            Payload::Listeners(listeners) => (LISTENERS, listeners.ports.len()),
            Payload::ListenersSent(_) => (LISTENERS_SENT, 0),
            Payload::Release(_) => (RELEASE, 0),
            Payload::ProbeAnswer(_) => (PROBE_ANSWER, 0),
            Payload::Successor(_) => (SUCCESSOR, 0),
            Payload::Terminating(_) => (TERMINATING, 0),
            Payload::Limits(_) => (LIMITS, 0),
        };
        count_descriptors(message, expected, &descriptors)?;
        Ok(Some(match payload {
            Payload::Hello(hello) => Self::Hello { version: hello.version },
            Payload::Listeners(listeners) => Self::Listeners(Listeners::from_wire(listeners, descriptors)?),
            Payload::ListenersSent(wire::ListenersSent {}) => Self::ListenersSent,
            Payload::Release(release) => Self::Release {
                reason: release_reason(release.reason)?,
                pod: pod_uid(RELEASE, release.pod_uid)?,
                deadline: Duration::from_millis(release.deadline_ms),
            },
            Payload::ProbeAnswer(answer) => Self::ProbeAnswer { id: answer.id, origin: origin(answer.origin)? },
            Payload::Successor(successor) => {
                Self::Successor((!successor.generation.is_empty()).then_some(successor.generation))
            }
            Payload::Terminating(wire::Terminating { pod_uid: uid }) => {
                Self::Terminating { pod: pod_uid(TERMINATING, uid)? }
            }
            Payload::Limits(asked) => {
                let wire::Limits { pod_uid: uid, connections, descriptors, handshakes, buffered_bytes } = asked;
                let limits = PodLimits { connections, descriptors, handshakes, buffered_bytes };
                Self::Limits { pod: pod_uid(LIMITS, uid)?, limits }
            }
        }))
    }
}

impl Listeners {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(|listening| listening.socket.as_fd()).collect()
    }

    fn to_wire(&self) -> wire::Listeners {
        let ports = self.sockets.iter().map(|listening| listening.port.into()).collect();
        wire::Listeners { pod_uid: self.pod.to_string(), ports }
    }

    /// Pairs ports with descriptors, which must be as many.
    fn from_wire(listeners: wire::Listeners, descriptors: Vec<OwnedFd>) -> Result<Self, DecodeError> {
        let port = |port: u32| {
            u16::try_from(port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| bad_field(LISTENERS, "ports", &port.to_string()))
        };
        let sockets = listeners.ports.into_iter().zip(descriptors);
        let sockets = sockets.map(|(number, socket)| Ok(ListeningSocket { port: port(number)?, socket }));
        Ok(Self { sockets: sockets.collect::<Result<_, _>>()?, pod: pod_uid(LISTENERS, listeners.pod_uid)? })
    }
}

impl From<ReleaseReason> for wire::ReleaseReason {
    fn from(reason: ReleaseReason) -> Self {
        match reason {
            ReleaseReason::Deleted => Self::Deleted,
            ReleaseReason::Unenrolled => Self::Unenrolled,
        }
    }
}

impl From<Origin> for wire::Origin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Kubelet => Self::Kubelet,
            Origin::Host => Self::Host,
            Origin::Forwarded => Self::Forwarded,
            Origin::Gone => Self::Gone,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn release_reason(number: i32) -> Result<ReleaseReason, DecodeError> {
    match wire::ReleaseReason::try_from(number) {
        Ok(wire::ReleaseReason::Deleted) => Ok(ReleaseReason::Deleted),
        Ok(wire::ReleaseReason::Unenrolled) => Ok(ReleaseReason::Unenrolled),
        Ok(wire::ReleaseReason::Unspecified) | Err(_) => Err(bad_field(RELEASE, "reason", &number.to_string())),
    }
}

fn origin(number: i32) -> Result<Origin, DecodeError> {
    match wire::Origin::try_from(number) {
        Ok(wire::Origin::Kubelet) => Ok(Origin::Kubelet),
        Ok(wire::Origin::Host) => Ok(Origin::Host),
        Ok(wire::Origin::Forwarded) => Ok(Origin::Forwarded),
        Ok(wire::Origin::Gone) => Ok(Origin::Gone),
        Ok(wire::Origin::Unspecified) | Err(_) => Err(bad_field(PROBE_ANSWER, "origin", &number.to_string())),
    }
}

fn pod_uid(message: &'static str, uid: String) -> Result<PodUid, DecodeError> {
    required(message, "pod_uid", uid).map(|uid| PodUid::new(&uid))
}

fn address(field: &'static str, text: &str) -> Result<SocketAddr, DecodeError> {
    text.parse().map_err(|_| bad_field(PROBE, field, text))
}

#[cfg(test)]
mod tests;
