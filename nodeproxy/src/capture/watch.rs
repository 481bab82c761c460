//! How several workers share one listener without a thundering herd.
//!
//! Each worker has an epoll set of its own with every listener in it, added with `EPOLLEXCLUSIVE`: a new connection wakes
//! few of the workers that wait, mostly one (kernel behaviour since 4.5), and who comes too late finds nothing. The set
//! itself is one descriptor in the worker's runtime; nested like this the kernel may wake more than one.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use arc_swap::ArcSwap;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::{io::unix::AsyncFd, net::TcpStream};

use underpass_hbone::copy::reset_on_close;

use super::{Door, original_dst::canonical};
use crate::pods::Pod;

/// Connections taken from one listener before the next listener has its turn.
const BURST: usize = 16;
/// Listeners looked at in one call.
const EVENTS: usize = 32;

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
        Ok(Watch { set, watched: self.clone(), ready: VecDeque::new() })
    }

    /// All workers begin to accept at a door. Only the control thread calls this.
    pub(crate) fn add(&self, pod: &Arc<Pod>, door: Door) -> io::Result<()> {
        let key = key(pod, door);
        let mut doors = HashMap::clone(&self.0.doors.load());
        doors.insert(key, (Arc::clone(pod), door));
        // Before the first event can come.
        self.0.doors.store(Arc::new(doors));
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        self.0.sets.iter().try_for_each(|set| Ok(set.0.add(pod.listeners.socket(door), EpollEvent::new(flags, key))?))
    }

    /// All workers cease to accept at a door. Closing would not do: the agent holds duplicates of the socket, and an epoll
    /// set forgets a socket only when its last descriptor goes.
    pub(crate) fn remove(&self, pod: &Arc<Pod>, door: Door) {
        for set in &self.0.sets {
            if let Err(error) = set.0.delete(pod.listeners.socket(door)) {
                tracing::debug!(%error, "a listener was not watched");
            }
        }
        let mut doors = HashMap::clone(&self.0.doors.load());
        doors.remove(&key(pod, door));
        self.0.doors.store(Arc::new(doors));
    }
}

impl Watch {
    /// The next connection at any door.
    pub(crate) async fn knock(&mut self) -> io::Result<Knock> {
        loop {
            if let Some(knock) = self.accept()? {
                return Ok(knock);
            }
            let mut guard = self.set.readable().await?;
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
    fn accept(&mut self) -> io::Result<Option<Knock>> {
        while let Some(turn) = self.ready.front_mut() {
            let (pod, door) = (Arc::clone(&turn.pod), turn.door);
            if !pod.is_open() {
                // Whoever waits there is another process's to take.
                self.ready.pop_front();
                continue;
            }
            let accepted = pod.listeners.socket(door).accept();
            turn.left -= 1;
            if turn.left == 0 || accepted.is_err() {
                self.ready.pop_front();
            }
            match accepted {
                Ok((socket, address)) => {
                    socket.set_nonblocking(true)?;
                    let stream = TcpStream::from_std(socket.into())?;
                    if door != Door::Hbone {
                        // Whoever dialled was told that it is connected: until the bytes have been carried to their end,
                        // an orderly close would be a lie. A tunnel's end is told inside of it.
                        reset_on_close(&stream);
                    }
                    let client = address.as_socket().map(canonical).ok_or(io::ErrorKind::InvalidData)?;
                    return Ok(Some(Knock { door, pod, stream, client }));
                }
                // Another worker was faster, or the client gave up while it waited.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl AsRawFd for EpollSet {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Pods get numbers that are never used again, so a late event cannot mean another pod.
fn key(pod: &Pod, door: Door) -> u64 {
    (pod.number << 2) | door as u64
}
