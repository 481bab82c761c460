//! Step seven: every connection is accounted for exactly once, however it ends.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;
use underpass_hbone::Meter;
use underpass_model::{Identity, Service, Workload};
use underpass_policy::{Origin, Permit, PolicyName, Refusal};
use underpass_runtime::Chain;

use crate::resolve::{NextHop, Resolved};

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Into the pod.
    Inbound,
    /// Out of the pod.
    Outbound,
}

/// One connection's story: opened before the first step that can fail, closed once; dropped unclosed it counts as abandoned.
pub(crate) struct Record {
    direction: Direction,
    opened: Instant,
    /// Bytes, counted while they flow.
    pub(crate) meter: Meter,
    /// Who connected.
    pub(crate) source: Party,
    /// Whom they reach.
    pub(crate) destination: Party,
    /// Where the tunnel ends or began, if there is one.
    pub(crate) hbone_addr: Option<SocketAddr>,
    /// Who on this node a stranger is, where that was asked.
    pub(crate) origin: Option<Origin>,
    /// The service that was dialled.
    pub(crate) service: Option<Arc<Service>>,
    /// The policy that allowed or refused it.
    policy: Option<PolicyName>,
    /// What the policies in dry run would have done otherwise.
    dry_run: Option<DryRun>,
    closed: bool,
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Party {
    /// Its address.
    pub(crate) addr: Option<SocketAddr>,
    /// What the mesh knows of it.
    pub(crate) workload: Option<Arc<Workload>>,
    /// The identity that was proven.
    pub(crate) identity: Option<Identity>,
}

/// How a connection failed: one label for metrics and logs, and the story for people.
pub(crate) struct Failed<'a> {
    /// The stable label.
    pub(crate) reason: &'static str,
    /// What happened.
    pub(crate) error: &'a dyn std::error::Error,
    /// What policies have against it, if it is they.
    pub(crate) refusal: Option<&'a Refusal>,
}

/// What the policies in dry run would have done otherwise.
struct DryRun {
    outcome: &'static str,
    policy: Option<PolicyName>,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Record {
    /// Opens a record.
    pub(crate) fn open(direction: Direction, client: SocketAddr) -> Self {
        metrics::counter!("underpass_connections_opened_total", "direction" => direction.label()).increment(1);
        let source = Party { addr: Some(client), ..Party::default() };
        Self {
            direction,
            opened: Instant::now(),
            meter: Meter::default(),
            source,
            destination: Party::default(),
            hbone_addr: None,
            origin: None,
            service: None,
            policy: None,
            dry_run: None,
            closed: false,
        }
    }

    /// Notes where it goes.
    pub(crate) fn reaches(&mut self, resolved: &Resolved, original_dst: SocketAddr) {
        self.service.clone_from(&resolved.service);
        self.destination.workload = resolved.next_hop.endpoint().cloned();
        let (addr, hbone_addr) = match &resolved.next_hop {
            NextHop::Passthrough(to) | NextHop::Plain { to, .. } => (*to, None),
            NextHop::Tunnel(hop) => (original_dst, Some(hop.to)),
        };
        self.destination.addr = Some(addr);
        self.hbone_addr = hbone_addr;
    }

    /// Notes by which policy it is allowed, and what those in dry run have against it.
    pub(crate) fn permitted(&mut self, permit: &Permit) {
        self.policy = permit.policy().cloned();
        self.dry_run =
            permit.dry_run().map(|refusal| DryRun { outcome: refusal.reason(), policy: Some(refusal.policy.clone()) });
    }

    /// Closes it: the only place that writes an access line.
    pub(crate) fn close(mut self, outcome: Result<(), Failed<'_>>) {
        match outcome {
            Ok(()) => self.write("ok", None),
            Err(failed) => {
                if let Some(refusal) = failed.refusal {
                    self.refused(refusal);
                }
                let story = Chain(failed.error).to_string();
                self.write(failed.reason, Some(&story));
            }
        }
    }

    fn refused(&mut self, refusal: &Refusal) {
        self.policy = Some(refusal.policy.clone());
        let allows = DryRun { outcome: "allowed", policy: None };
        self.dry_run = refusal.dry_run_allows.then_some(allows);
        metrics::counter!(
            "underpass_policy_refusals_total",
            "reason" => refusal.reason(),
            "policy" => refusal.policy.to_string(),
            "source_principal" => principal(refusal.source.as_ref()),
            "destination_principal" => refusal.destination.to_string(),
        )
        .increment(1);
    }

    fn rehearsed(&self, dry_run: &DryRun) {
        metrics::counter!(
            "underpass_policy_dry_run_total",
            "outcome" => dry_run.outcome,
            "policy" => dry_run.policy.as_ref().map(ToString::to_string).unwrap_or_default(),
            "source_principal" => principal(self.source.identity.as_ref()),
            "destination_principal" => principal(self.destination.identity.as_ref()),
        )
        .increment(1);
    }

    fn write(&mut self, reason: &'static str, error: Option<&str>) {
        self.closed = true;
        if let Some(dry_run) = &self.dry_run {
            self.rehearsed(dry_run);
        }
        let direction = self.direction.label();
        metrics::counter!("underpass_connections_closed_total", "direction" => direction, "reason" => reason)
            .increment(1);
        let (sent, received) =
            (self.meter.from_downstream.load(Ordering::Relaxed), self.meter.to_downstream.load(Ordering::Relaxed));
        metrics::counter!("underpass_bytes_total", "direction" => direction, "flow" => "from_client").increment(sent);
        metrics::counter!("underpass_bytes_total", "direction" => direction, "flow" => "to_client").increment(received);
        let duration = self.opened.elapsed();
        let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string);
        let (src_identity, dst_identity) = (identity(&self.source), identity(&self.destination));
        let addr = |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string());
        let (src_addr, dst_addr, hbone_addr) =
            (addr(self.source.addr), addr(self.destination.addr), addr(self.hbone_addr));
        let (src, dst) = (self.source.workload.as_deref(), self.destination.workload.as_deref());
        tracing::info!(
            target: "access",
            direction,
            src.addr = src_addr.as_deref(),
            src.workload = src.map(|workload| &*workload.name),
            src.namespace = src.map(|workload| &*workload.namespace),
            src.identity = src_identity.as_deref(),
            src.origin = self.origin.map(origin),
            dst.addr = dst_addr.as_deref(),
            dst.hbone_addr = hbone_addr.as_deref(),
            dst.service = self.service.as_ref().map(|service| &*service.name.hostname),
            dst.workload = dst.map(|workload| &*workload.name),
            dst.namespace = dst.map(|workload| &*workload.namespace),
            dst.identity = dst_identity.as_deref(),
            bytes_sent = sent,
            bytes_recv = received,
            duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            reason,
            policy = self.policy.as_ref().map(PolicyName::as_str),
            dry_run = self.dry_run.as_ref().map(|dry_run| dry_run.outcome),
            dry_run.policy = self.dry_run.as_ref().and_then(|dry_run| dry_run.policy.as_ref()).map(PolicyName::as_str),
            error,
            "connection closed"
        );
    }
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Gone => "gone",
        Origin::Host => "host",
        Origin::Kubelet => "kubelet",
        Origin::Remote => "remote",
    }
}

/// An identity as metrics spell it.
fn principal(identity: Option<&Identity>) -> String {
    identity.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.closed {
            self.write("abandoned", None);
        }
    }
}
