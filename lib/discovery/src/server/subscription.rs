//! One subscriber's subscription to one type: pure state, driven by requests, published states and answers.
//!
//! ```text
//!            begin                 fill                    answer
//!   idle ───────────▶ pushing ───────────▶ outstanding ───────────▶ pushing (more to say) or idle (all said)
//! ```
//! A push is the way from the subscriber's place to one published state. It is cut into responses of bounded size, of
//! which one at a time is unanswered; what is published meanwhile belongs to the next push.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use prost::bytes::Bytes;
use tonic::Status;

use super::state::{Entry, Logged, State, TypeState};
use crate::wire::{
    PARTIAL, ResourceType, WILDCARD,
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

/// Responses are cut so that they carry no more than this, unless a single resource does.
const RESPONSE_BYTES: usize = 1 << 20;
/// Names that one subscriber may ask for.
const ASKED_LIMIT: usize = 262_144;
/// No name is longer.
const NAME_LIMIT: usize = 1024;

/// One subscriber's subscription to one type.
#[derive(Debug)]
pub(super) struct Subscription {
    kind: ResourceType,
    understands_partial: bool,
    /// Everything is subscribed, not single names.
    wildcard: bool,
    asked: HashSet<Arc<str>>,
    /// Asked for and not answered yet; answered even if the subscriber has the latest, for it may have dropped it.
    fresh: HashSet<Arc<str>>,
    /// The next push is of everything, whatever was said before.
    full: bool,
    /// What the subscriber has, name to version. Of everything: only until the first push compared it.
    held: HashMap<Arc<str>, Arc<str>>,
    /// The version up to which everything was said; 0 if nothing was.
    place: u64,
    first: bool,
    push: Option<Push>,
    /// The nonce that must come back before anything else is said.
    outstanding: Option<u64>,
    responses: u64,
}

/// From a place to a state.
#[derive(Debug)]
struct Push {
    state: Arc<State>,
    removed: VecDeque<Arc<str>>,
    queue: VecDeque<Arc<Entry>>,
    /// Where in the log to continue; `None` if the queue is all.
    cursor: Option<u64>,
    /// In a push of everything: what need not be sent.
    known: Option<HashMap<Arc<str>, Arc<str>>>,
    parts: usize,
    all_sent: bool,
}

/// Resources to send, by name, so that each is sent once.
type Chosen = HashMap<Arc<str>, Arc<Entry>>;

/// What a subscriber said of a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted,
    Refused(String),
}

impl Subscription {
    /// Takes a type's first request of a stream.
    pub(super) fn open(
        kind: ResourceType,
        understands_partial: bool,
        request: DeltaDiscoveryRequest,
    ) -> Result<Self, Status> {
        let held = request.initial_resource_versions.iter();
        let mut subscription = Self {
            kind,
            understands_partial,
            wildcard: request.resource_names_subscribe.is_empty(),
            asked: HashSet::new(),
            fresh: HashSet::new(),
            full: request.resource_names_subscribe.is_empty(),
            held: held.map(|(name, version)| (name.as_str().into(), version.as_str().into())).collect(),
            place: 0,
            first: true,
            push: None,
            outstanding: None,
            responses: 0,
        };
        subscription.subscribe(request.resource_names_subscribe)?;
        subscription.unsubscribe(&request.resource_names_unsubscribe);
        if !subscription.wildcard {
            // What it holds it wants to hold on to.
            subscription.asked.extend(subscription.held.keys().cloned());
            subscription.bounded()?;
        }
        Ok(subscription)
    }

    /// Takes a further request; returns what it answers, if it does.
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Answer>, Status> {
        let answered = self.outstanding.is_some_and(|nonce| request.response_nonce == nonce.to_string());
        if answered {
            self.outstanding = None;
            if self.push.as_ref().is_some_and(|push| push.all_sent) {
                self.finish();
            }
        }
        self.subscribe(request.resource_names_subscribe)?;
        self.unsubscribe(&request.resource_names_unsubscribe);
        // Words about a response that is answered already, or that never was, are stale.
        Ok(answered.then(|| request.error_detail.map_or(Answer::Accepted, |status| Answer::Refused(status.message))))
    }

    /// Everything that concerns the subscriber was said and answered up to this version.
    pub(super) fn answered(&self) -> u64 {
        self.place
    }

    /// The next response, if there is something to say and the last one was answered.
    pub(super) fn next(&mut self, state: &Arc<State>) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        if self.outstanding.is_some() {
            return Ok(None);
        }
        let push = match self.push.take() {
            Some(push) => push,
            None if self.place == state.version() && self.fresh.is_empty() && !self.full => return Ok(None),
            None => self.begin(state)?,
        };
        Ok(self.respond(push))
    }

    fn subscribe(&mut self, names: Vec<String>) -> Result<(), Status> {
        for name in names {
            if name.len() > NAME_LIMIT {
                return Err(Status::invalid_argument(format!("resource name of {} bytes", name.len())));
            }
            if name == WILDCARD {
                self.full |= !self.wildcard;
                self.wildcard = true;
                continue;
            }
            let name: Arc<str> = name.into();
            self.asked.insert(name.clone());
            self.fresh.insert(name);
        }
        self.bounded()
    }

    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD && self.wildcard {
                self.wildcard = false;
                self.full = false;
                // What is held of them was never noted: they are said again.
                self.fresh.extend(self.asked.iter().cloned());
                continue;
            }
            self.asked.remove(name.as_str());
            self.fresh.remove(name.as_str());
        }
    }

    fn bounded(&self) -> Result<(), Status> {
        if self.asked.len() > ASKED_LIMIT || self.fresh.len() > ASKED_LIMIT {
            return Err(Status::resource_exhausted(format!("more than {ASKED_LIMIT} names asked for")));
        }
        Ok(())
    }

    fn begin(&mut self, state: &Arc<State>) -> Result<Push, Status> {
        let published = state.of(self.kind);
        if self.place > 0 && !self.full && !published.remembers(self.place) {
            return Err(Status::aborted("too far behind; begin a new stream with the versions that are held"));
        }
        let mut push = Push {
            state: state.clone(),
            removed: VecDeque::new(),
            queue: VecDeque::new(),
            cursor: None,
            known: None,
            parts: 0,
            all_sent: false,
        };
        let mut chosen = HashMap::new();
        if self.wildcard {
            push.cursor = Some(self.place);
            if std::mem::take(&mut self.full) {
                push.cursor = Some(0);
                let known = std::mem::take(&mut self.held);
                push.removed = known.keys().filter(|name| published.entry(name).is_none()).cloned().collect();
                push.known = Some(known);
            }
        } else if self.place == 0 {
            self.compare(published, &mut push, &mut chosen);
        } else {
            self.follow_changes(published, &mut push, &mut chosen);
        }
        self.answer_questions(published, &mut push, &mut chosen);
        if !self.wildcard {
            let named = chosen.values().map(|entry| (entry.name.clone(), entry.version.clone()));
            self.held.extend(named);
        }
        push.queue = chosen.into_values().collect();
        Ok(push)
    }

    fn answer_questions(&mut self, published: &TypeState, push: &mut Push, chosen: &mut Chosen) {
        for name in std::mem::take(&mut self.fresh) {
            let found = published.resolve(&name);
            if found.is_empty() {
                self.held.remove(&name);
                push.removed.push_back(name);
            }
            chosen.extend(found.into_iter().map(|entry| (entry.name.clone(), entry)));
        }
    }

    /// At the beginning: what the subscriber brought along, against what is published.
    fn compare(&mut self, published: &TypeState, push: &mut Push, chosen: &mut Chosen) {
        self.held.retain(|name, version| match published.entry(name) {
            Some(entry) if entry.version == *version => true,
            Some(entry) => {
                chosen.insert(name.clone(), entry.clone());
                true
            }
            None => {
                push.removed.push_back(name.clone());
                false
            }
        });
    }

    fn follow_changes(&mut self, published: &TypeState, push: &mut Push, chosen: &mut Chosen) {
        for (_, logged) in published.after(self.place) {
            match logged {
                Logged::Set(entry) if self.follows(entry) => {
                    if !self.held.contains_key(&entry.name) {
                        let found = published.resolve(&entry.name);
                        chosen.extend(found.into_iter().map(|part| (part.name.clone(), part)));
                    }
                    chosen.insert(entry.name.clone(), entry.clone());
                }
                Logged::Set(entry) => self.drop_held(&entry.name, push),
                Logged::Removed(name) => self.drop_held(name, push),
            }
        }
    }

    /// The subscriber has something that is gone or is nothing to it any more.
    fn drop_held(&mut self, name: &Arc<str>, push: &mut Push) {
        if self.held.remove(name).is_some() {
            push.removed.push_back(name.clone());
        }
    }

    fn follows(&self, entry: &Entry) -> bool {
        let asked = |name: &Arc<str>| self.asked.contains(name);
        asked(&entry.name)
            || entry.aliases.iter().any(asked)
            || entry.part_of.iter().any(|whole| self.held.contains_key(whole))
    }

    fn respond(&mut self, mut push: Push) -> Option<DeltaDiscoveryResponse> {
        let limit = if self.first && !self.understands_partial { usize::MAX } else { RESPONSE_BYTES };
        let part = push.fill(self.kind, limit);
        push.all_sent = part.last;
        let silent = part.is_empty() && push.parts == 0 && !self.first;
        push.parts += 1;
        let version = push.state.version();
        self.push = Some(push);
        if silent {
            self.finish();
            return None;
        }
        self.responses += 1;
        self.outstanding = Some(self.responses);
        let system_version_info = if part.last { version.to_string() } else { format!("{PARTIAL}{version}") };
        Some(DeltaDiscoveryResponse {
            system_version_info,
            resources: part.resources,
            type_url: self.kind.url().to_owned(),
            nonce: self.responses.to_string(),
            removed_resources: part.removed,
        })
    }

    /// The push is over and answered.
    fn finish(&mut self) {
        if let Some(push) = self.push.take() {
            self.place = push.state.version();
            self.first = false;
        }
    }
}

/// One response's worth of a push.
#[derive(Debug, Default)]
struct Part {
    removed: Vec<String>,
    resources: Vec<Bytes>,
    bytes: usize,
    /// Nothing of the push is left.
    last: bool,
}

impl Part {
    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.resources.is_empty()
    }

    /// Reserves room; the first one always fits.
    fn room(&mut self, bytes: usize, limit: usize) -> bool {
        let fits = self.bytes == 0 || self.bytes.saturating_add(bytes) <= limit;
        if fits {
            self.bytes = self.bytes.saturating_add(bytes);
        }
        fits
    }

    fn remove(&mut self, name: &str, limit: usize) -> bool {
        let fits = self.room(name.len(), limit);
        if fits {
            self.removed.push(name.to_owned());
        }
        fits
    }

    fn send(&mut self, entry: &Entry, limit: usize) -> bool {
        let fits = self.room(entry.encoded.len(), limit);
        if fits {
            self.resources.push(entry.encoded.clone());
        }
        fits
    }
}

impl Push {
    fn fill(&mut self, kind: ResourceType, limit: usize) -> Part {
        let mut part = Part::default();
        while let Some(name) = self.removed.front() {
            if !part.remove(name, limit) {
                return part;
            }
            self.removed.pop_front();
        }
        while let Some(entry) = self.queue.front() {
            if !part.send(entry, limit) {
                return part;
            }
            self.queue.pop_front();
        }
        let Some(from) = self.cursor else { return Part { last: true, ..part } };
        for (place, logged) in self.state.of(kind).after(from) {
            let fits = match logged {
                Logged::Set(entry) if self.knows(entry) => true,
                Logged::Set(entry) => part.send(entry, limit),
                // A push of everything starts from what the subscriber holds, not from the log.
                Logged::Removed(_) if self.known.is_some() => true,
                Logged::Removed(name) => part.remove(name, limit),
            };
            if !fits {
                return part;
            }
            self.cursor = Some(place);
        }
        Part { last: true, ..part }
    }

    fn knows(&self, entry: &Entry) -> bool {
        let known = self.known.as_ref().and_then(|known| known.get(&entry.name));
        known.is_some_and(|version| *version == entry.version)
    }
}

#[cfg(test)]
mod tests;
