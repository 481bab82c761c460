//! Step seven: every connection is accounted for exactly once, however it ends.
//!
//! A [`Record`] is opened before the first step that can fail. It is established when its server is reached, which is when
//! its labels are known; until then it is counted nowhere but among the living. Closed or dropped, it counts, and writes
//! its line.

mod books;
mod line;
mod policy;
mod series;
mod traffic;

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use underpass_hbone::{Held, Meter};
use underpass_model::{Identity, Service, Workload};
use underpass_policy::{Origin, Permit, Refusal};
use underpass_runtime::metrics::catalogue;

pub(crate) use self::{
    books::{Accounts, Books, Live},
    series::Publisher,
    traffic::ResponseFlag,
};
use self::{line::Ending, policy::Said};
use crate::resolve::{NextHop, Resolved};

/// The reason of a connection that went well.
const OK: &str = "ok";

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// Into the pod.
    Inbound,
    /// Out of the pod.
    Outbound,
}

/// One connection's account, while it lives.
pub(crate) struct Record {
    books: Rc<Books>,
    live: Arc<Live>,
    /// Who and where, as far as it is known.
    story: Story,
    /// What policies said of it.
    said: Said,
    closed: bool,
}

/// Who and where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
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

/// How a connection failed: labels for metrics and logs, and the story for people.
pub(crate) struct Failed<'a> {
    /// How far it came.
    pub(crate) step: &'static str,
    /// Istio's word for it.
    pub(crate) flag: ResponseFlag,
    /// The stable label.
    pub(crate) reason: &'static str,
    /// What happened.
    pub(crate) error: &'a dyn std::error::Error,
    /// What policies have against it, if it is they.
    pub(crate) refusal: Option<&'a Refusal>,
}

impl Direction {
    /// In logs and metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Record {
    /// Opens a record of a connection from there; bytes that are under way count there.
    pub(crate) fn open(books: &Rc<Books>, direction: Direction, (client, held): (SocketAddr, &Arc<Held>)) -> Self {
        let meter = Meter { held: Arc::clone(held), ..Meter::default() };
        Self::open_with(books, direction, client, Arc::new(meter))
    }

    /// Opens a record of bytes that are counted elsewhere: by the other half of a joined connection.
    pub(crate) fn open_with(books: &Rc<Books>, direction: Direction, client: SocketAddr, meter: Arc<Meter>) -> Self {
        let source = Party { addr: Some(client), ..Party::default() };
        let story = Story { source, ..Story::default() };
        Self {
            books: Rc::clone(books),
            live: books.enter(direction, client, meter),
            story,
            said: Said::default(),
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
        self.said = Said::permitted(permit);
    }

    /// It has reached its server: it counts as opened, and its bytes count while they flow.
    pub(crate) fn established(&self) -> &Meter {
        self.books.establish(&self.live, &self.story);
        &self.live.meter
    }

    /// What counts its bytes.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.live.meter
    }

    /// It was no connection after all: a handshake that made a tunnel, whose streams have records of their own.
    pub(crate) fn discard(mut self) {
        self.closed = true;
        self.books.leave(&self.live);
    }

    /// Closes it.
    pub(crate) fn close(mut self, outcome: Result<(), Failed<'_>>) {
        self.end(outcome.err().as_ref(), OK);
    }

    /// The only place that counts an end and writes an access line.
    fn end(&mut self, failed: Option<&Failed<'_>>, without: &'static str) {
        self.closed = true;
        self.books.leave(&self.live);
        if let Some(refusal) = failed.and_then(|failed| failed.refusal) {
            self.said = Said::refused(refusal, self.books.ledger());
        }
        let identities = (self.story.source.identity.as_ref(), self.story.destination.identity.as_ref());
        self.said.count_dry_run(identities, self.books.ledger());
        let established = self.books.establish(&self.live, &self.story);
        self.live.flush();
        established.series.close(failed.map_or(ResponseFlag::None, |failed| failed.flag));

        let direction = self.live.direction;
        let reason = failed.map_or(without, |failed| failed.reason);
        let step = failed.map_or(if without == OK { "copy" } else { "unknown" }, |failed| failed.step);
        catalogue::CONNECTIONS_CLOSED.with([direction.label(), step, reason]).increment(1);
        let meter = &self.live.meter;
        let (sent, received) =
            (meter.from_downstream.load(Ordering::Relaxed), meter.to_downstream.load(Ordering::Relaxed));
        let duration = self.live.opened.elapsed();
        let said = &self.said;
        line::write(&Ending { direction, sent, received, duration, reason, failed, said }, &self.story);
    }
}

impl std::ops::Deref for Record {
    type Target = Story;

    fn deref(&self) -> &Story {
        &self.story
    }
}

impl std::ops::DerefMut for Record {
    fn deref_mut(&mut self) -> &mut Story {
        &mut self.story
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.closed {
            self.end(None, "abandoned");
        }
    }
}

#[cfg(test)]
mod tests;
