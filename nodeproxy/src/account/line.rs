//! The access line: one a connection, when it ends, with ztunnel's names.

use std::{net::SocketAddr, time::Duration};

use underpass_policy::{Origin, PolicyName};
use underpass_runtime::Chain;

use super::{Direction, Failed, Party, Story, policy::Said};

/// What a line says besides who and where.
pub(super) struct Ending<'a> {
    pub(super) direction: Direction,
    /// From client to server.
    pub(super) sent: u64,
    /// From server to client.
    pub(super) received: u64,
    pub(super) duration: Duration,
    pub(super) reason: &'static str,
    pub(super) failed: Option<&'a Failed<'a>>,
    pub(super) said: &'a Said,
}

/// Both levels have the same fields, which the macro of `tracing` must see as text.
macro_rules! line {
    ($level:ident, $ending:ident, $story:ident, $texts:ident, $error:ident) => {
        tracing::$level!(
            target: "access",
            { src.addr = $texts.src_addr.as_deref(),
            src.workload = name(&$story.source),
            src.namespace = namespace(&$story.source),
            src.identity = $texts.src_identity.as_deref(),
            src.cluster = cluster(&$story.source),
            src.origin = $story.origin.map(origin),
            dst.addr = $texts.dst_addr.as_deref(),
            dst.hbone_addr = $texts.hbone_addr.as_deref(),
            dst.service = $story.service.as_ref().map(|service| &*service.name.hostname),
            dst.workload = name(&$story.destination),
            dst.namespace = namespace(&$story.destination),
            dst.identity = $texts.dst_identity.as_deref(),
            dst.cluster = cluster(&$story.destination),
            direction = $ending.direction.label(),
            bytes_sent = $ending.sent,
            bytes_recv = $ending.received,
            duration = $texts.duration,
            reason = $ending.reason,
            policy = $ending.said.policy.as_ref().map(PolicyName::as_str),
            dry_run = $ending.said.dry_run.as_ref().map(|dry_run| dry_run.outcome),
            dry_run.policy =
                $ending.said.dry_run.as_ref().and_then(|dry_run| dry_run.policy.as_ref()).map(PolicyName::as_str),
            error = $error },
            "connection complete"
        )
    };
}

struct Texts {
    src_addr: Option<String>,
    src_identity: Option<String>,
    dst_addr: Option<String>,
    dst_identity: Option<String>,
    hbone_addr: Option<String>,
    duration: String,
}

/// Writes it: as information if the connection went well, else as a warning.
pub(super) fn write(ending: &Ending<'_>, story: &Story) {
    let wanted = tracing::enabled!(target: "access", tracing::Level::INFO)
        || tracing::enabled!(target: "access", tracing::Level::WARN);
    if !wanted {
        return;
    }
    let addr = |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string());
    let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string);
    let texts = Texts {
        src_addr: addr(story.source.addr),
        src_identity: identity(&story.source),
        dst_addr: addr(story.destination.addr),
        dst_identity: identity(&story.destination),
        hbone_addr: addr(story.hbone_addr),
        duration: format!("{}ms", ending.duration.as_millis()),
    };
    let error = ending.failed.map(|failed| Chain(failed.error).to_string());
    let error = error.as_deref();
    if ending.reason == super::OK {
        line!(info, ending, story, texts, error)
    } else {
        line!(warn, ending, story, texts, error)
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

fn name(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.name)
}

fn namespace(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.namespace)
}

fn cluster(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.cluster)
}
