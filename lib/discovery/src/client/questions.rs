//! Readers' questions on demand: which are open, and what is subscribed because somebody asked.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use crate::{
    store::{Ask, Question},
    view::View,
};

/// The questions of all sessions.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: HashMap<String, Open>,
    /// Names that were answered with a resource: their changes are followed.
    followed: HashMap<String, Question>,
    /// How many were followed when it was last looked who is still there.
    reviewed: usize,
    /// Names that parts of an unfinished push spoke of.
    heard: HashSet<String>,
}

/// Questions that may be open at a control plane at once; further ones are dropped, which tells their askers.
const OPEN_LIMIT: usize = 4096;

/// Fewer followed names than this are not worth a look whether they are still there.
const REVIEW_FROM: usize = 1024;

#[derive(Debug)]
struct Open {
    question: Question,
    askers: Vec<oneshot::Sender<()>>,
}

impl Questions {
    /// Takes readers' questions; answers at once what is known by now, and returns the names to subscribe to.
    pub(super) fn add(&mut self, asks: Vec<Ask>, view: &View) -> Vec<String> {
        let mut names = Vec::new();
        for Ask { question, answer } in asks {
            if answer.is_closed() || self.open.len() >= OPEN_LIMIT {
                continue;
            }
            if question.known(view) {
                // The asker may have given up: nobody is left to tell.
                let _gone = answer.send(());
                continue;
            }
            let key = question.key();
            let open = self.open.entry(key.clone()).or_insert_with(|| {
                names.push(key);
                Open { question, askers: Vec::new() }
            });
            open.askers.push(answer);
        }
        names
    }

    /// Answers what a response settled, once its push is whole; returns names to unsubscribe from, because nobody is
    /// there: the next reader asks again.
    pub(super) fn settle(&mut self, names: Vec<String>, whole: bool, view: &View) -> Vec<String> {
        self.heard.extend(names);
        if !whole {
            return Vec::new();
        }
        let heard = std::mem::take(&mut self.heard);
        let mut absent = Vec::new();
        for (key, open) in self.open.extract_if(|key, open| heard.contains(key) || open.question.known(view)) {
            if open.question.known(view) {
                self.followed.insert(key, open.question);
            } else {
                absent.push(key);
            }
            for asker in open.askers {
                let _gone = asker.send(());
            }
        }
        if self.followed.len() > 2 * self.reviewed + REVIEW_FROM {
            absent.extend(self.review(view));
        }
        absent
    }

    /// Stops following those who are gone; returns their names.
    fn review(&mut self, view: &View) -> Vec<String> {
        let gone = self.followed.extract_if(|_, question| !question.known(view)).map(|(name, _)| name).collect();
        self.reviewed = self.followed.len();
        gone
    }

    /// Before a new stream: drops questions whose askers have all given up, and names of those who are gone.
    pub(super) fn renew(&mut self, view: &View) {
        self.heard.clear();
        self.review(view);
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
