//! How several workers share one listener without a thundering herd.
//!
//! Each worker has an epoll set of its own with every listener in it, added with `EPOLLEXCLUSIVE`: a new connection wakes
//! few of the workers that wait, mostly one (kernel behaviour since 4.5), and who comes too late finds nothing. The set
//! itself is one descriptor in the worker's runtime; nested like this the kernel may wake more than one.
//!
//! A listener from which a full turn was taken rests for a moment, so that a flood in one pod leaves time for what the others
//! carry; one whose pod has no room rests longer, and after a while those who come there are taken to be refused.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    time::{Instant, sleep_until},
};

use underpass_hbone::copy::reset_on_close;

use super::{Door, original_dst::canonical};
use crate::{
    budget::{Amount, Over, Share, is_hopeless},
    connections::Arrival,
    pods::Pod,
};

/// Connections taken from one listener before the next listener has its turn.
const BURST: usize = 16;
/// Listeners looked at in one call.
const EVENTS: usize = 32;
/// How long a listener rests after a turn that did not empty it.
const REST: Duration = Duration::from_millis(1);
/// How long it rests if its pod has no room.
const WAIT: Duration = Duration::from_millis(20);
/// Not looked at for so long, nobody waited there meanwhile: another worker took all.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// The listeners of all pods and the workers' epoll sets. Clones share them.
#[derive(Clone)]
pub(crate) struct Watched(Arc<Shared>);

struct Shared {
    sets: Vec<Arc<EpollSet>>,
    doors: ArcSwap<HashMap<u64, (Arc<Pod>, Door)>>,
}

struct EpollSet(Epoll);

/// One worker's ear at every door.
pub(crate) struct Watch {
    set: AsyncFd<Arc<EpollSet>>,
    watched: Watched,
    ready: VecDeque<Turn>,
    /// Taken out of the set until then.
    resting: Vec<(Instant, u64)>,
    /// Where there was no room.
    behind: HashMap<u64, Behind>,
    tired: bool,
}

/// A listener at which somebody waits for room.
struct Behind {
    since: Instant,
    /// When it was looked at last; somebody who waits is looked at again soon.
    looked: Instant,
}

/// What may still be taken from one listener before the next has its turn.
struct Turn {
    pod: Arc<Pod>,
    door: Door,
    left: usize,
}

/// Somebody connected.
pub(crate) struct Knock {
    /// Where.
    pub(crate) door: Door,
    /// In which pod.
    pub(crate) pod: Arc<Pod>,
    /// The socket.
    pub(crate) stream: TcpStream,
    /// Who.
    pub(crate) client: std::net::SocketAddr,
    /// What it takes of the pod's budget, or that there is no room for it.
    pub(crate) share: Result<Share, Over>,
}

impl Watched {
    /// Nothing to watch yet, by this many workers.
    pub(crate) fn new(workers: usize) -> io::Result<Self> {
        let set = |_| Ok(Arc::new(EpollSet(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)));
        let sets = (0..workers).map(set).collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Shared { sets, doors: ArcSwap::default() })))
    }

    /// The ear of worker number `worker`; to be called on its own runtime.
    pub(crate) fn watch(&self, worker: usize) -> io::Result<Watch> {
        let set = self.0.sets.get(worker).ok_or(io::ErrorKind::NotFound)?;
        #[expect(
            deprecated,
            reason = "its successor is `unsafe`, which we forbid; what that demands holds: the set owns one descriptor, and never another"
        )]
        let set = AsyncFd::with_interest(Arc::clone(set), tokio::io::Interest::READABLE)?;
        let (ready, resting, behind) = (VecDeque::new(), Vec::new(), HashMap::new());
        Ok(Watch { set, watched: self.clone(), ready, resting, behind, tired: false })
    }

    /// All workers begin to accept at a door. Only the control thread calls this.
    pub(crate) fn add(&self, pod: &Arc<Pod>, door: Door) -> io::Result<()> {
        let key = key(pod, door);
        let mut doors = HashMap::clone(&self.0.doors.load());
        doors.insert(key, (Arc::clone(pod), door));
        // Before the first event can come.
        self.0.doors.store(Arc::new(doors));
        self.0.sets.iter().try_for_each(|set| set.add(pod, door))
    }

    /// All workers cease to accept at a door. Closing would not do: the agent holds duplicates of the socket, and an epoll
    /// set forgets a socket only when its last descriptor goes.
    pub(crate) fn remove(&self, pod: &Arc<Pod>, door: Door) {
        let mut doors = HashMap::clone(&self.0.doors.load());
        doors.remove(&key(pod, door));
        // First: a worker that puts a listener back looks here after that.
        self.0.doors.store(Arc::new(doors));
        for set in &self.0.sets {
            set.delete(pod, door);
        }
    }
}

impl Watch {
    /// The next connection at any door.
    pub(crate) async fn knock(&mut self) -> io::Result<(Knock, Arrival)> {
        loop {
            if let Some(knock) = self.accept()? {
                return Ok(knock);
            }
            if std::mem::take(&mut self.tired) {
                // What was taken shall get on before more is.
                tokio::task::yield_now().await;
                continue;
            }
            let next = self.resting.iter().map(|(until, _)| *until).min();
            let rested = async {
                match next {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let mut guard = tokio::select! {
                guard = self.set.readable() => guard?,
                () = rested => {
                    self.wake();
                    continue;
                }
            };
            let mut events = [EpollEvent::empty(); EVENTS];
            let count = guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO)?;
            if count == 0 {
                guard.clear_ready();
                continue;
            }
            let doors = self.watched.0.doors.load();
            for event in events.iter().take(count) {
                if let Some((pod, door)) = doors.get(&event.data()) {
                    // A level-triggered event comes again as long as somebody waits, so the end of a turn loses nobody.
                    self.ready.push_back(Turn { pod: Arc::clone(pod), door: *door, left: BURST });
                }
            }
        }
    }
}

impl Watch {
    /// Somebody who waits at a door that had an event.
    fn accept(&mut self) -> io::Result<Option<(Knock, Arrival)>> {
        while let (false, Some(turn)) = (self.tired, self.ready.front_mut()) {
            let (pod, door) = (Arc::clone(&turn.pod), turn.door);
            // It counts before it is taken: whoever finds the doors shut, or the queue empty, and counts after that, counts it.
            let arrival = pod.connections.arrive();
            if !pod.is_open() {
                // Whoever waits there is another process's to take.
                self.ready.pop_front();
                continue;
            }
            let share = pod.budget.take(door.price());
            if let Err(over) = share
                && !is_hopeless(over, waiting(&mut self.behind, key(&pod, door), Instant::now()))
            {
                self.ready.pop_front();
                pod.budget.waits(over);
                self.rest(&pod, door, WAIT);
                continue;
            }
            let accepted = pod.listeners.socket(door).accept();
            turn.left -= 1;
            let is_over = turn.left == 0;
            if is_over || accepted.is_err() {
                self.ready.pop_front();
            }
            if is_over && accepted.is_ok() {
                self.tired = true;
                self.rest(&pod, door, REST);
            }
            match accepted {
                Ok((socket, address)) => {
                    if share.is_ok() {
                        // The first is served: the patience of the next begins now.
                        self.behind.remove(&key(&pod, door));
                    }
                    socket.set_nonblocking(true)?;
                    let stream = TcpStream::from_std(socket.into())?;
                    if door != Door::Hbone || share.is_err() {
                        // Whoever dialled was told that it is connected: until the bytes have been carried to their end,
                        // an orderly close would be a lie. A tunnel's end is told inside of it.
                        reset_on_close(&stream);
                    }
                    let client = address.as_socket().map(canonical).ok_or(io::ErrorKind::InvalidData)?;
                    return Ok(Some((Knock { door, pod, stream, client, share }, arrival)));
                }
                // Another worker was faster, or nobody is left.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(self.behind.remove(&key(&pod, door))),
                // The client gave up while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Leaves a listener alone for a while; others are served meanwhile.
    fn rest(&mut self, pod: &Arc<Pod>, door: Door, time: Duration) {
        self.set.get_ref().delete(pod, door);
        self.resting.push((Instant::now() + time, key(pod, door)));
    }

    /// Puts listeners back that have rested, unless they are gone.
    fn wake(&mut self) {
        let now = Instant::now();
        let doors = |key: u64| self.watched.0.doors.load().get(&key).cloned();
        let rested: Vec<u64> = self.resting.extract_if(.., |(until, _)| *until <= now).map(|(_, key)| key).collect();
        for key in rested {
            let Some((pod, door)) = doors(key) else {
                self.behind.remove(&key);
                continue;
            };
            match self.set.get_ref().add(&pod, door) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    tracing::warn!(%error, "a listener cannot be watched; it is tried again");
                    self.resting.push((now + WAIT, key));
                }
                Ok(()) | Err(_) => {}
            }
            if doors(key).is_none() {
                // It went just now, and whoever took it out may have come too early.
                self.set.get_ref().delete(&pod, door);
            }
        }
    }
}

impl EpollSet {
    fn add(&self, pod: &Pod, door: Door) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        Ok(self.0.add(pod.listeners.socket(door), EpollEvent::new(flags, key(pod, door)))?)
    }

    fn delete(&self, pod: &Pod, door: Door) {
        if let Err(error) = self.0.delete(pod.listeners.socket(door)) {
            tracing::debug!(%error, "a listener was not watched");
        }
    }
}

impl AsRawFd for EpollSet {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// How long somebody has been waiting at a listener without room.
fn waiting(behind: &mut HashMap<u64, Behind>, key: u64, now: Instant) -> Duration {
    let known = behind.entry(key).or_insert(Behind { since: now, looked: now });
    if now - known.looked > FORGOTTEN {
        known.since = now;
    }
    known.looked = now;
    now - known.since
}

impl Door {
    /// What who comes here takes of the pod's budget.
    fn price(self) -> Amount {
        match self {
            Self::Hbone => Amount::PEER,
            Self::Outbound | Self::Plaintext => Amount::REDIRECTED,
        }
    }
}

/// Pods get numbers that are never used again, so a late event cannot mean another pod.
fn key(pod: &Pod, door: Door) -> u64 {
    (pod.number << 2) | door as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_begins_anew_where_nobody_was_seen_waiting() {
        let (mut behind, begun) = (HashMap::new(), Instant::now());
        // Milliseconds from the start; what has been waited.
        for (now, expected) in [(0, 0), (20, 20), (900, 900), (1900, 1900), (2901, 0), (2921, 20)] {
            let waited = waiting(&mut behind, 7, begun + Duration::from_millis(now));
            assert_eq!(waited, Duration::from_millis(expected), "at {now}");
        }
    }
}
