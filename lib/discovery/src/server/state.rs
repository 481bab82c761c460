//! What is published at one instant: immutable and shared by all subscribers, the next one built on the last.

use std::{collections::HashSet, fmt::Write as _, sync::Arc};

use imbl::{HashMap, OrdMap, OrdSet};
use prost::{Message, bytes::Bytes};
use sha2::{Digest as _, Sha256};

use super::{Change, Published};
use crate::wire::{ResourceType, xds};

/// Everything that is published.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The place of the latest change; each change of whatever type has its own.
    version: u64,
    types: [TypeState; ResourceType::ALL.len()],
}

/// What is published of one type.
#[derive(Clone, Debug, Default)]
pub(super) struct TypeState {
    entries: HashMap<Arc<str>, Arc<Entry>>,
    /// Each name once, at its latest change: where a subscriber continues from its own place.
    log: OrdMap<u64, Logged>,
    /// Where in the log removed names are.
    tombstones: HashMap<Arc<str>, u64>,
    /// Removals up to here are forgotten.
    horizon: u64,
    aliases: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    parts: HashMap<Arc<str>, OrdSet<Arc<str>>>,
}

/// A published resource.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) aliases: Vec<Arc<str>>,
    pub(super) part_of: Vec<Arc<str>>,
    /// The encoded `Resource`, the same bytes for every subscriber.
    pub(super) encoded: Bytes,
    place: u64,
}

/// What happened at a place of the log.
#[derive(Clone, Debug)]
pub(super) enum Logged {
    Removed(Arc<str>),
    Set(Arc<Entry>),
}

/// Removals that are remembered for those who are behind. Beyond, who is further behind must begin a new stream.
const TOMBSTONES: usize = 16_384;

impl State {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn of(&self, kind: ResourceType) -> &TypeState {
        let [addresses, authorizations, revocations] = &self.types;
        match kind {
            ResourceType::Address => addresses,
            ResourceType::Authorization => authorizations,
            ResourceType::Revocation => revocations,
        }
    }

    pub(super) fn apply(&mut self, changes: Vec<Change>) {
        // The first commit counts as a change, so that version 0 always means "nothing said yet".
        self.version = self.version.max(1);
        for kind in ResourceType::ALL {
            if changes.iter().any(|change| matches!(change, Change::Replace(replaced) if *replaced == kind)) {
                self.retain(kind, &changes);
            }
        }
        for change in changes {
            match change {
                Change::Replace(_) => {}
                Change::Remove(kind, name) => {
                    let place = self.version + 1;
                    if self.of_mut(kind).remove(&name, place) {
                        self.version = place;
                    }
                }
                Change::Set(resource) => {
                    let place = self.version + 1;
                    if self.of_mut(resource.kind).set(resource, place) {
                        self.version = place;
                    }
                }
            }
        }
    }

    fn retain(&mut self, kind: ResourceType, changes: &[Change]) {
        let kept = |change: &Change| match change {
            Change::Set(resource) if resource.kind == kind => Some(resource.name.clone()),
            Change::Remove(..) | Change::Replace(_) | Change::Set(_) => None,
        };
        let kept: HashSet<Arc<str>> = changes.iter().filter_map(kept).collect();
        let gone: Vec<Arc<str>> = self.of(kind).entries.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        for name in gone {
            let place = self.version + 1;
            if self.of_mut(kind).remove(&name, place) {
                self.version = place;
            }
        }
    }

    fn of_mut(&mut self, kind: ResourceType) -> &mut TypeState {
        let [addresses, authorizations, revocations] = &mut self.types;
        match kind {
            ResourceType::Address => addresses,
            ResourceType::Authorization => authorizations,
            ResourceType::Revocation => revocations,
        }
    }
}

impl TypeState {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// Everything that happened after a place, in order.
    pub(super) fn after(&self, place: u64) -> impl Iterator<Item = (u64, &Logged)> {
        self.log.range(place.saturating_add(1)..).map(|(place, logged)| (*place, logged))
    }

    /// True if the log still tells all removals after a place.
    pub(super) fn remembers(&self, place: u64) -> bool {
        place >= self.horizon
    }

    /// What a name or alias asked for means: the resources themselves, and those that are part of them.
    pub(super) fn resolve(&self, asked: &str) -> Vec<Arc<Entry>> {
        let named = self.entries.get(asked).into_iter();
        let aliased = self.aliases.get(asked).into_iter().flatten().filter_map(|name| self.entries.get(name));
        let mut found: Vec<Arc<Entry>> = named.chain(aliased).cloned().collect();
        let parts: Vec<Arc<Entry>> = found
            .iter()
            .flat_map(|whole| self.parts.get(&whole.name).into_iter().flatten())
            .filter_map(|name| self.entries.get(name))
            .cloned()
            .collect();
        found.extend(parts);
        found
    }

    /// False if it is published like this already.
    fn set(&mut self, resource: Published, place: u64) -> bool {
        let version: Arc<str> = digest(&resource).into();
        if self.entries.get(&resource.name).is_some_and(|held| held.version == version) {
            return false;
        }
        self.unlog(&resource.name);
        let entry = Arc::new(Entry::new(resource, version, place));
        for alias in &entry.aliases {
            self.aliases.entry(alias.clone()).or_default().insert(entry.name.clone());
        }
        for whole in &entry.part_of {
            self.parts.entry(whole.clone()).or_default().insert(entry.name.clone());
        }
        self.log.insert(place, Logged::Set(entry.clone()));
        self.entries.insert(entry.name.clone(), entry);
        true
    }

    fn remove(&mut self, name: &str, place: u64) -> bool {
        let Some(entry) = self.entries.get(name).cloned() else { return false };
        self.unlog(name);
        self.entries.remove(name);
        self.log.insert(place, Logged::Removed(entry.name.clone()));
        self.tombstones.insert(entry.name.clone(), place);
        if self.tombstones.len() > TOMBSTONES {
            self.forget_oldest_removals();
        }
        true
    }

    /// Takes a name's latest change, and what was found by it, out of the indexes.
    fn unlog(&mut self, name: &str) {
        if let Some(place) = self.tombstones.remove(name) {
            self.log.remove(&place);
        }
        let Some(entry) = self.entries.get(name).cloned() else { return };
        self.log.remove(&entry.place);
        for alias in &entry.aliases {
            withdraw(&mut self.aliases, alias, name);
        }
        for whole in &entry.part_of {
            withdraw(&mut self.parts, whole, name);
        }
    }

    /// Half of them at once, so that the sorting is paid for by as many removals.
    fn forget_oldest_removals(&mut self) {
        let mut places: Vec<(u64, Arc<str>)> =
            self.tombstones.iter().map(|(name, place)| (*place, name.clone())).collect();
        places.sort_unstable();
        for (place, name) in places.into_iter().take(TOMBSTONES / 2) {
            self.log.remove(&place);
            self.tombstones.remove(&name);
            self.horizon = place;
        }
    }
}

impl Entry {
    fn new(resource: Published, version: Arc<str>, place: u64) -> Self {
        let Published { kind, name, aliases, part_of, body } = resource;
        let message = xds::Resource {
            version: version.to_string(),
            name: name.to_string(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            resource: Some(prost_types::Any { type_url: kind.url().to_owned(), value: body }),
        };
        Self { name, version, aliases, part_of, encoded: message.encode_to_vec().into(), place }
    }
}

fn withdraw(index: &mut HashMap<Arc<str>, OrdSet<Arc<str>>>, key: &Arc<str>, name: &str) {
    let Some(names) = index.get_mut(key) else { return };
    names.remove(name);
    if names.is_empty() {
        index.remove(key);
    }
}

/// 64 bits of a digest of all that a subscriber could see: enough for telling versions of one name apart, and short,
/// because a subscriber that comes back sends one for each resource that it holds.
fn digest(resource: &Published) -> String {
    const BYTES: usize = 8;
    let mut hash = Sha256::new();
    for text in resource.aliases.iter().chain(&resource.part_of) {
        hash.update(text.len().to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update([0xff; 8]);
    hash.update(&resource.body);
    hash.finalize().iter().take(BYTES).fold(String::with_capacity(2 * BYTES), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ok = write!(text, "{byte:02x}");
        text
    })
}
