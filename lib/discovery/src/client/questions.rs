//! Readers' questions on demand: which are open, where nobody was a moment ago, and what is subscribed because somebody
//! asked.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use crate::{
    store::{Ask, Question, Store},
    view::View,
};

/// The questions of all sessions.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: HashMap<String, Open>,
    /// Names that were answered with a resource: their changes are followed.
    followed: HashMap<String, Question>,
    /// Names under which there is nobody. They stay subscribed while this is remembered, so that a push tells of a
    /// newcomer as soon as if the whole mesh were held.
    absent: HashMap<String, Absent>,
    /// How many were followed when it was last looked who is still there.
    reviewed: usize,
    review_at: Option<Instant>,
    /// Names that parts of an unfinished push spoke of.
    heard: HashSet<String>,
}

/// Questions that may be open at a control plane at once; further ones are dropped, which tells their askers.
const OPEN_LIMIT: usize = 4096;

/// Fewer followed names than this are not worth a look whether they are still there.
const REVIEW_FROM: usize = 1024;

/// How long it is remembered that nobody is at an address, so that not each connection to the outside costs a question.
const ABSENCE: Duration = Duration::from_secs(5);
/// Absences that are remembered.
const ABSENT_LIMIT: usize = 4096;

/// What nobody asked for during this time is let go.
const IDLE: Duration = Duration::from_secs(600);
/// How often to look for it.
const REVIEW_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Open {
    question: Question,
    askers: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Absent {
    question: Question,
    until: Instant,
}

impl Questions {
    /// Takes readers' questions; answers at once what is known by now, and returns the names to subscribe to.
    pub(super) fn add(&mut self, asks: Vec<Ask>, store: &Store) -> Vec<String> {
        let (mut names, now) = (Vec::new(), Instant::now());
        for Ask { question, answer } in asks {
            if answer.is_closed() || self.open.len() >= OPEN_LIMIT {
                continue;
            }
            let key = question.key();
            if store.used(&question) || self.absent.get(&key).is_some_and(|absent| now < absent.until) {
                // The asker may have given up: nobody is left to tell.
                let _gone = answer.send(());
                continue;
            }
            self.absent.remove(&key);
            let open = self.open.entry(key.clone()).or_insert_with(|| {
                names.push(key);
                Open { question, askers: Vec::new() }
            });
            open.askers.push(answer);
        }
        names
    }

    /// Answers what a response settled, once its push is whole; returns names to unsubscribe from.
    pub(super) fn settle(&mut self, names: Vec<String>, whole: bool, store: &Store) -> Vec<String> {
        self.heard.extend(names);
        if !whole {
            return Vec::new();
        }
        let (heard, view) = (std::mem::take(&mut self.heard), store.view());
        let mut needless = Vec::new();
        for (key, absent) in heard.iter().filter_map(|name| self.absent.remove_entry(name)) {
            if store.used(&absent.question) {
                self.followed.insert(key, absent.question);
            } else {
                needless.push(key);
            }
        }
        let until = Instant::now() + ABSENCE;
        for (key, open) in self.open.extract_if(|key, open| heard.contains(key) || open.question.known(view)) {
            if open.question.known(view) {
                // Before its asker is told: or a review could take it away again under his eyes.
                store.used(&open.question);
                self.followed.insert(key, open.question);
            } else if self.absent.len() < ABSENT_LIMIT {
                self.absent.insert(key, Absent { question: open.question, until });
            } else {
                needless.push(key);
            }
            for asker in open.askers {
                let _gone = asker.send(());
            }
        }
        if self.followed.len() > 2 * self.reviewed + REVIEW_FROM {
            needless.extend(self.drop_gone(view));
        }
        if !self.absent.is_empty() {
            self.review_by(until);
        }
        if !self.followed.is_empty() {
            self.review_by(Instant::now() + REVIEW_EVERY);
        }
        needless
    }

    /// Completes when it is time for a [`Self::review`].
    pub(super) async fn review_due(&self) {
        match self.review_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Forgets absences, who is gone, and what nobody asked for lately; returns names to unsubscribe from.
    pub(super) fn review(&mut self, store: &mut Store) -> Vec<String> {
        let now = Instant::now();
        if !self.heard.is_empty() {
            // What a part of a push brought has no user yet, who waits for the whole.
            self.review_at = Some(now + ABSENCE);
            return Vec::new();
        }
        let mut needless = store.forget_unused(IDLE);
        for name in &needless {
            self.followed.remove(name);
        }
        needless.retain(|name| !self.open.contains_key(name) && !self.absent.contains_key(name));
        for (name, absent) in self.absent.extract_if(|_, absent| absent.until <= now) {
            // Somebody may have come under another of his names.
            if store.used(&absent.question) {
                self.followed.insert(name, absent.question);
            } else {
                needless.push(name);
            }
        }
        needless.extend(self.drop_gone(store.view()));
        let idle = (!self.followed.is_empty()).then(|| now + REVIEW_EVERY);
        self.review_at = self.absent.values().map(|absent| absent.until).chain(idle).min();
        needless
    }

    fn review_by(&mut self, at: Instant) {
        self.review_at = Some(self.review_at.map_or(at, |before| before.min(at)));
    }

    /// Stops following those who are gone; returns their names.
    fn drop_gone(&mut self, view: &View) -> Vec<String> {
        let gone = self.followed.extract_if(|_, question| !question.known(view)).map(|(name, _)| name).collect();
        self.reviewed = self.followed.len();
        gone
    }

    /// Before a new stream: drops questions whose askers have all given up, and names of those who are gone. Nothing was
    /// heard of newcomers meanwhile.
    pub(super) fn renew(&mut self, view: &View) {
        self.heard.clear();
        self.absent.clear();
        self.drop_gone(view);
        self.open.retain(|_, open| {
            open.askers.retain(|asker| !asker.is_closed());
            !open.askers.is_empty()
        });
    }

    /// What a new stream must subscribe to.
    pub(super) fn subscribed(&self) -> impl Iterator<Item = String> {
        self.open.keys().chain(self.followed.keys()).cloned()
    }
}

#[cfg(test)]
mod tests;
