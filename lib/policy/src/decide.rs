//! The decision.

use std::{net::SocketAddr, sync::Arc};

use underpass_model::{Identity, TrustDomain, names::OWN_PORTS};

use crate::{
    facts::{Facts, Hop, Origin, Source},
    matcher::Seen,
    refusal::{Objection, Refusal},
    rule::{Action, Policy, PolicyName},
};

/// The policies that a workload is under, as one view of the mesh has them. Cheap to clone and to compare.
///
/// Policies are the destination's: what leaves a pod is judged by an empty set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    mesh: Arc<[Arc<Policy>]>,
    namespace: Arc<[Arc<Policy>]>,
    named: Arc<[Named]>,
}

/// A policy that a workload's record names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Known(Arc<Policy>),
    Unknown(PolicyName),
}

/// Leave to dial one destination for one source. Only [`PolicySet::authorize`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    destination: SocketAddr,
    policy: Option<PolicyName>,
    dry_run: Option<Box<Refusal>>,
}

/// Why a connection may not be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denial {
    /// The peer's identity is of another trust domain than this workload's.
    #[error("{peer} is not of trust domain {wanted}")]
    ForeignTrustDomain {
        /// Who called.
        peer: Identity,
        /// Whom we know.
        wanted: TrustDomain,
    },
    /// The pod's own loopback cannot be the destination of a connection that left or entered the pod.
    #[error("{0} is a loopback address")]
    Loopback(SocketAddr),
    /// The destination is one of the node proxy's own listeners: a loop or an attack.
    #[error("{0} is a port of the node proxy itself")]
    OwnPort(SocketAddr),
    /// The destination's policies are against it.
    #[error("{0}")]
    Policy(Box<Refusal>),
}

impl Permit {
    /// What may be dialled.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The policy that allows it; none if it needs no leave.
    #[must_use]
    pub fn policy(&self) -> Option<&PolicyName> {
        self.policy.as_ref()
    }

    /// What would be against it if the policies in dry run were in force.
    #[must_use]
    pub fn dry_run(&self) -> Option<&Refusal> {
        self.dry_run.as_deref()
    }
}

impl Denial {
    /// The stable label of this denial in logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ForeignTrustDomain { .. } => "foreign_trust_domain",
            Self::Loopback(_) => "loopback_destination",
            Self::OwnPort(_) => "own_port",
            Self::Policy(refusal) => refusal.reason(),
        }
    }

    /// What policies have against it, if it is they.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Policy(refusal) => Some(refusal),
            Self::ForeignTrustDomain { .. } | Self::Loopback(_) | Self::OwnPort(_) => None,
        }
    }
}

impl PolicySet {
    /// The policies of the mesh, of a namespace, and those that a workload's record names.
    #[must_use]
    pub fn new(mesh: Arc<[Arc<Policy>]>, namespace: Arc<[Arc<Policy>]>) -> Self {
        Self { mesh, namespace, named: Arc::default() }
    }

    /// With those that a workload's record names: known, or not.
    #[must_use]
    pub fn with_named(mut self, named: impl IntoIterator<Item = Result<Arc<Policy>, PolicyName>>) -> Self {
        let named = named.into_iter().map(|named| named.map_or_else(Named::Unknown, Named::Known));
        self.named = named.collect();
        self
    }

    /// Whether no policy says anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mesh.is_empty() && self.namespace.is_empty() && self.named.is_empty()
    }

    /// Decides. Every lane asks, for every connection, before anything is dialled.
    ///
    /// Policies speak about what reaches an application: a DENY that matches stops it; without any ALLOW it passes, else
    /// one must match. The kubelet's probes pass whatever policies say, for a pod that fails its probes is no safer.
    ///
    /// # Errors
    /// [`Denial`], with the fact or the policy that stands against it.
    pub fn authorize(&self, facts: &Facts<'_>) -> Result<Permit, Denial> {
        possible(facts)?;
        let is_probe = matches!(facts.source, Source::Stranger(_, Origin::Kubelet));
        if facts.hop != Hop::Application || is_probe || self.is_empty() {
            return Ok(Permit { destination: facts.destination, policy: None, dry_run: None });
        }
        let (enforced, rehearsed) = self.tally(&Seen::of(facts));
        let refusal = |(objection, policy)| Box::new(Refusal::new(objection, policy, facts));
        let dry_run = rehearsed.verdict().map_err(refusal);
        match enforced.verdict() {
            Ok(policy) => {
                Ok(Permit { destination: facts.destination, policy: policy.cloned(), dry_run: dry_run.err() })
            }
            Err(against) => {
                let mut refusal = refusal(against);
                refusal.dry_run_allows = dry_run.is_ok();
                Err(Denial::Policy(refusal))
            }
        }
    }

    /// What the policies in force say, and what all of them would.
    fn tally(&self, seen: &Seen<'_>) -> (Tally<'_>, Tally<'_>) {
        let (mut enforced, mut rehearsed) = (Tally::default(), Tally::default());
        for policy in self.known() {
            let matches = seen.is_matched_by(policy);
            rehearsed.take(policy, matches);
            if !policy.dry_run {
                enforced.take(policy, matches);
            }
        }
        for named in self.named.iter() {
            if let Named::Unknown(name) = named {
                enforced.unknown = first(enforced.unknown, name);
                rehearsed.unknown = first(rehearsed.unknown, name);
            }
        }
        (enforced, rehearsed)
    }

    fn known(&self) -> impl Iterator<Item = &Policy> {
        let named = self.named.iter().filter_map(|named| match named {
            Named::Known(policy) => Some(policy),
            Named::Unknown(_) => None,
        });
        self.mesh.iter().chain(self.namespace.iter()).chain(named).map(Arc::as_ref)
    }
}

/// What some policies say of a connection. Where several say the same the first by name stands for them, so that their
/// order means nothing.
#[derive(Default)]
struct Tally<'a> {
    denies: Option<&'a PolicyName>,
    unreadable: Option<&'a PolicyName>,
    unknown: Option<&'a PolicyName>,
    /// Allows something, whatever it is.
    would_allow: Option<&'a PolicyName>,
    allows: Option<&'a PolicyName>,
}

impl<'a> Tally<'a> {
    fn take(&mut self, policy: &'a Policy, matches: bool) {
        let name = &policy.name;
        match policy.action {
            Action::Allow => {
                self.would_allow = first(self.would_allow, name);
                if matches {
                    self.allows = first(self.allows, name);
                }
            }
            Action::Deny if matches => self.denies = first(self.denies, name),
            Action::Deny => {}
            Action::Refuse => self.unreadable = first(self.unreadable, name),
        }
    }

    /// The policy that lets it pass, if it needs one; or what is against it.
    fn verdict(&self) -> Result<Option<&'a PolicyName>, (Objection, &'a PolicyName)> {
        let against = [
            (Objection::Denied, self.denies),
            (Objection::Unreadable, self.unreadable),
            (Objection::Unknown, self.unknown),
            (Objection::NotAllowed, self.would_allow.filter(|_| self.allows.is_none())),
        ];
        let against = against.into_iter().find_map(|(objection, policy)| Some((objection, policy?)));
        against.map_or(Ok(self.allows), Err)
    }
}

fn first<'a>(known: Option<&'a PolicyName>, other: &'a PolicyName) -> Option<&'a PolicyName> {
    Some(known.map_or(other, |known| known.min(other)))
}

/// What holds whatever policies say.
fn possible(facts: &Facts<'_>) -> Result<(), Denial> {
    let destination = facts.destination;
    let wanted = facts.own.trust_domain();
    if let Source::Peer(peer) = facts.source
        && peer.trust_domain() != wanted
    {
        return Err(Denial::ForeignTrustDomain { peer: peer.clone(), wanted: wanted.clone() });
    }
    if destination.ip().is_loopback() {
        return Err(Denial::Loopback(destination));
    }
    // A stranger's machine may well use 15008 for something of its own; a workload of the mesh never does.
    if facts.hop != Hop::Passthrough && OWN_PORTS.contains(&destination.port()) {
        return Err(Denial::OwnPort(destination));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
