//! Turns of those who move much: on a worker one at a time, and before each the kernel is asked who else is ready.
//!
//! A worker's tasks run in the order in which they were woken. Without this whoever is quiet would wait at each step of
//! its way, and there are eight between two pods, for everything that all bulk transfers of the worker can move at once.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use underpass_runtime::tasks;

use crate::buffers;

/// What a task may move in a turn: two large reads. It takes about a fifth of a millisecond to carry them on.
const MOST: usize = 2 * buffers::LARGEST;
/// Who moved less than this when it was last polled is quiet, and does not wait.
const MUCH: usize = buffers::LARGEST;

/// The turns of one task.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    moved: Cell<usize>,
    /// Only of those who ever moved much.
    place: OnceCell<Rc<Place>>,
}

impl Turn {
    /// Ready when the task may move [`MOST`] bytes: at once unless it moved much the last time.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.moved.get() < MUCH {
            self.moved.set(0);
            return Poll::Ready(());
        }
        let place = self.place.get_or_init(Rc::default);
        match place.stage.get() {
            Stage::Elsewhere => stand_in_line(place),
            Stage::Waits => {}
            Stage::Called => {
                place.stage.set(Stage::Elsewhere);
                self.moved.set(0);
                return Poll::Ready(());
            }
        }
        place.task.register(cx.waker());
        Poll::Pending
    }

    /// Counts what was moved.
    pub(crate) fn spend(&self, bytes: usize) {
        self.moved.set(self.moved.get().saturating_add(bytes));
    }

    /// Ends the turn if its bytes are used up: nothing else would wake the task for what it could not move.
    pub(crate) fn pass_if_over(&self, cx: &mut Context<'_>) {
        if self.is_over() {
            self.pass(cx);
        }
    }

    /// Ends the turn of a task that has more to do: it is polled again when its next one begins.
    pub(crate) fn pass(&self, cx: &mut Context<'_>) {
        self.moved.set(MOST);
        // Not yet: whoever has had a turn stands in line again.
        let _later = self.poll(cx);
    }

    /// Whether the turn is over.
    pub(crate) fn is_over(&self) -> bool {
        self.moved.get() >= MOST
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(place) = self.place.get().filter(|place| place.stage.get() == Stage::Waits) {
            // Where the thread itself ends nobody waits.
            let _ended = LINE.try_with(|line| line.borrow_mut().places.retain(|other| !Rc::ptr_eq(other, place)));
        }
    }
}

/// Where a task waits. (What wakes the task for another reason does not end its waiting.)
#[derive(Debug, Default)]
struct Place {
    stage: Cell<Stage>,
    task: AtomicWaker,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not in the line.
    #[default]
    Elsewhere,
    /// In the line.
    Waits,
    /// Its turn has come.
    Called,
}

/// Who waits on this thread.
#[derive(Default)]
struct Line {
    places: VecDeque<Rc<Place>>,
    has_caller: bool,
}

thread_local! {
    static LINE: RefCell<Line> = RefCell::default();
}

fn stand_in_line(place: &Rc<Place>) {
    place.stage.set(Stage::Waits);
    let had_caller = LINE.with_borrow_mut(|line| {
        line.places.push_back(Rc::clone(place));
        std::mem::replace(&mut line.has_caller, true)
    });
    if !had_caller {
        tasks::spawn_local("turns", Caller.call());
    }
}

/// Calls those who wait, one after the other; one for each line.
struct Caller;

impl Caller {
    async fn call(self) {
        loop {
            // Until the runtime has asked the kernel who else is ready: those are before whom we call then.
            tokio::task::yield_now().await;
            let Some(next) = LINE.with_borrow_mut(|line| line.places.pop_front()) else { return };
            next.stage.set(Stage::Called);
            // Whether it takes its turn at once, later or never is its own affair.
            next.task.wake();
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ended = LINE.try_with(|line| line.borrow_mut().has_caller = false);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Write as _, os::unix::net::UnixStream, pin::pin};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// Who had turns, in order.
    type Log = Rc<RefCell<Vec<u32>>>;

    /// Moves much, for ever, and is woken all the time by something else.
    fn greedy(name: u32, log: &Log) -> tokio::task::JoinHandle<()> {
        let (log, turn) = (Rc::clone(log), Turn::default());
        spawn_local(poll_fn(move |cx| {
            if turn.poll(cx).is_ready() {
                log.borrow_mut().push(name);
                turn.spend(MOST);
                turn.pass(cx);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }

    #[tokio::test]
    async fn between_two_turns_those_run_who_became_ready() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let log = Log::default();
        let quiet = async {
            let tasks: Vec<_> = (0..20).map(|name| greedy(name, &log)).collect();
            let near = tokio::net::UnixStream::from_std(near).unwrap();
            let mut readable = pin!(near.readable());
            // From the first poll on the kernel is asked.
            poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx).is_pending())).await;
            yield_now().await;
            (&far).write_all(b"x").unwrap();
            let before = log.borrow().len();
            readable.await.unwrap();
            let turns = log.borrow().len() - before;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            turns
        };
        let turns = LocalSet::new().run_until(quiet).await;
        assert!(turns <= 2, "{turns} turns came before the quiet one");
    }

    #[tokio::test]
    async fn turns_go_round_and_who_is_gone_holds_nobody_up() {
        let log = Log::default();
        let run = async {
            let tasks: Vec<_> = (0..4).map(|name| greedy(name, &log)).collect();
            for gone in [None, Some(1), Some(0)] {
                if let Some(gone) = gone {
                    tasks[gone].abort();
                }
                while log.borrow().len() < 40 {
                    yield_now().await;
                }
                let mut turns = std::mem::take(&mut *log.borrow_mut());
                let round = turns.split_off(turns.len() - 12);
                let names: std::collections::BTreeSet<_> = round.iter().copied().collect();
                assert_eq!(names.len(), 4 - gone.map_or(0, |gone| 2 - gone), "{round:?}");
                for (had, next) in round.iter().zip(&round[names.len()..]) {
                    assert_eq!(had, next, "each has one turn a round: {round:?}");
                }
            }
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn who_moves_little_never_waits() {
        let turn = Turn::default();
        let polls = poll_fn(|cx| {
            let ready = (0..100).filter(|_| {
                turn.spend(MUCH - 1);
                turn.poll(cx).is_ready()
            });
            Poll::Ready(ready.count())
        });
        assert_eq!(polls.await, 100);
        assert!(turn.place.get().is_none());
    }
}
