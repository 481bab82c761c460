//! Which contents of which file are in force when several files may claim one object.

use std::collections::{BTreeMap, BTreeSet};

use super::FileError;
use crate::{manifest::Manifest, object::ObjectKey};

/// One file: what is in force of it, and what it would like instead.
///
/// No two files have one object in force; [`settle`] keeps it so.
#[derive(Debug)]
pub(super) struct FileState {
    good: Manifest,
    offered: Option<Manifest>,
    /// What the offer was read from, if somebody wants to know when it comes into force.
    contents: Option<Vec<u8>>,
    accepted: Option<Vec<u8>>,
    /// Nothing of the file has ever been in force.
    never: bool,
    problem: Option<FileError>,
}

impl Default for FileState {
    fn default() -> Self {
        let good = Manifest::default();
        Self { good, offered: None, contents: None, accepted: None, never: true, problem: None }
    }
}

impl FileState {
    /// Takes what was read of the file; [`settle`] decides whether it comes into force.
    pub(super) fn offer(&mut self, read: Result<Manifest, FileError>, contents: Option<Vec<u8>>) {
        self.contents = contents.filter(|_| read.is_ok());
        match read {
            Ok(manifest) => (self.offered, self.problem) = (Some(manifest), None),
            Err(error) => (self.offered, self.problem) = (None, Some(error)),
        }
    }

    /// What is in force.
    pub(super) fn good(&self) -> &Manifest {
        &self.good
    }

    /// Why that is not what the file says now.
    pub(super) fn problem(&self) -> Option<&FileError> {
        self.problem.as_ref()
    }

    /// Nothing of the file has ever been in force, in this process or as far as the one before left word.
    pub(super) fn is_lost(&self) -> bool {
        self.never && self.problem.is_some()
    }

    /// The contents that came into force since the last call.
    pub(super) fn take_accepted(&mut self) -> Option<Vec<u8>> {
        self.accepted.take()
    }

    /// Brings the offer into force; objects that are as before stay the same value, so that others may compare pointers.
    fn accept(&mut self) {
        let Some(mut offered) = self.offered.take() else { return };
        for (key, located) in &mut offered.objects {
            if let Some(before) = self.good.objects.get(key).filter(|before| before.object == located.object) {
                located.object = before.object.clone();
            }
        }
        (self.good, self.problem, self.never) = (offered, None, false);
        self.accepted = self.contents.take();
    }

    fn claims(&self, accepted: bool) -> &Manifest {
        if accepted { self.offered.as_ref().unwrap_or(&self.good) } else { &self.good }
    }
}

/// A file that offers an object which another one has.
struct Conflict {
    loser: String,
    error: FileError,
}

/// Brings offers into force as far as no object has two homes then. Who held an object before keeps it, else the first
/// file by name wins; the others fall back to what they had. An offer that lost is tried again each time, because the
/// other file may have let go.
pub(super) fn settle(files: &mut BTreeMap<String, FileState>) {
    let mut accepted: BTreeSet<String> =
        files.iter().filter(|(_, file)| file.offered.is_some()).map(|(name, _)| name.clone()).collect();
    // Each round takes at least one offer out, and without offers there is no conflict.
    loop {
        let conflicts = conflicts(files, &accepted);
        if conflicts.is_empty() {
            break;
        }
        for Conflict { loser, error } in conflicts {
            accepted.remove(&loser);
            if let Some(file) = files.get_mut(&loser) {
                file.problem = Some(error);
            }
        }
    }
    for name in accepted {
        if let Some(file) = files.get_mut(&name) {
            file.accept();
        }
    }
}

fn conflicts(files: &BTreeMap<String, FileState>, accepted: &BTreeSet<String>) -> Vec<Conflict> {
    let mut holders: BTreeMap<&ObjectKey, &str> = BTreeMap::new();
    // Those who held an object before come first, then the rest by name.
    for before in [true, false] {
        for (name, file) in files {
            for key in file.claims(accepted.contains(name)).objects.keys() {
                if !before || file.good.objects.contains_key(key) {
                    holders.entry(key).or_insert(name);
                }
            }
        }
    }
    let mut conflicts = Vec::new();
    for name in accepted {
        let Some(file) = files.get(name) else { continue };
        let lost = file.claims(true).objects.iter().find_map(|(key, located)| {
            let other = *holders.get(key)?;
            (other != name).then(|| FileError::Elsewhere {
                line: located.line,
                key: Box::new(key.clone()),
                other: other.to_owned(),
            })
        });
        conflicts.extend(lost.map(|error| Conflict { loser: name.clone(), error }));
    }
    conflicts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest;

    fn manifest(pods: &BTreeSet<u8>) -> Manifest {
        let pod = |name| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{name}}}\n");
        manifest::read(pods.iter().map(pod).collect::<String>().as_bytes()).unwrap()
    }

    proptest! {
        #[test]
        fn an_object_has_one_home_and_every_file_is_whole(
            steps in prop::collection::vec((0..4_u8, prop::collection::btree_set(0..5_u8, 0..4), any::<bool>()), 1..12),
        ) {
            let mut files = BTreeMap::<String, FileState>::new();
            let mut latest = BTreeMap::new();
            for (file, pods, is_broken) in steps {
                let name = format!("{file}.yaml");
                let offered = manifest(&pods);
                let read = if is_broken { Err(FileError::Unreadable("broken".into())) } else { Ok(offered.clone()) };
                files.entry(name.clone()).or_default().offer(read, None);
                latest.insert(name, (offered, is_broken));
                settle(&mut files);
                let mut seen = BTreeSet::new();
                for key in files.values().flat_map(|file| file.good().objects.keys()) {
                    prop_assert!(seen.insert(key.clone()), "{} has two homes", key);
                }
                for (name, file) in &files {
                    let (offered, is_broken) = &latest[name];
                    let in_force = file.good() == offered && !is_broken;
                    prop_assert!(in_force || file.problem().is_some(), "{} is out of force without a word", name);
                }
            }
        }
    }
}
