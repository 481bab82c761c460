//! What the operator makes of each object of the mesh's own kinds, for people: pure, and the same whether it then stands in
//! the object's status or on a debugging page.

use underpass_objects::{Kind, ObjectKey, Objects, Origin, Problem};

use crate::translate::Note;

/// Of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub key: ObjectKey,
    /// Of which generation; 0 where nobody counts them.
    pub generation: i64,
    /// Whether it holds as it stands, in a word.
    pub accepted: Accepted,
    /// The same for people.
    pub message: String,
}

/// Whether an object holds as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It does.
    Accepted,
    /// Another one holds in its place.
    Conflicted,
    /// It says what this release does not understand.
    Invalid,
    /// Only a waypoint could enforce it.
    NeedsWaypoint,
}

impl Accepted {
    /// The reason of the condition.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Conflicted => "Conflicted",
            Self::Invalid => "Invalid",
            Self::NeedsWaypoint => "NeedsWaypoint",
        }
    }
}

/// Of every object of the mesh's own kinds.
pub fn verdicts<'a>(objects: &Objects, problems: &[Problem], notes: impl Iterator<Item = &'a Note>) -> Vec<Verdict> {
    let notes: Vec<&Note> = notes.filter(|note| note.object.kind.is_own()).collect();
    let own = Kind::ALL.into_iter().filter(|kind| kind.is_own());
    let in_force = own.flat_map(|kind| objects.keys(kind));
    // What was never understood and has nothing in its place.
    let lost = problems.iter().filter_map(|problem| match &problem.origin {
        Origin::Object(key) if objects.get(key).is_none() => Some(key.clone()),
        Origin::Object(_) | Origin::Kind(_) | Origin::File(_) => None,
    });
    in_force.chain(lost).map(|key| verdict(key, objects, problems, &notes)).collect()
}

fn verdict(key: ObjectKey, objects: &Objects, problems: &[Problem], notes: &[&Note]) -> Verdict {
    let generation = objects.get(&key).and_then(|object| object.metadata().generation).unwrap_or(0);
    let misread = problems.iter().find(|problem| problem.origin == Origin::Object(key.clone()));
    let note = notes.iter().find(|note| note.object == key);
    let (accepted, message) = match (misread, note) {
        (Some(problem), _) => (Accepted::Invalid, not_understood(problem)),
        (None, Some(note)) => (of_field(key.kind, note.field), format!("{}: {}", note.field, note.problem)),
        (None, None) => (Accepted::Accepted, "it holds as it stands".into()),
    };
    Verdict { key, generation, accepted, message }
}

fn not_understood(problem: &Problem) -> String {
    let meanwhile = if problem.is_lost { "no earlier state of it is known" } else { "its last good state holds" };
    format!("{}; {meanwhile}", problem.error)
}

fn of_field(kind: Kind, field: &str) -> Accepted {
    match (kind, field) {
        (_, "spec.enforcementLevel") => Accepted::NeedsWaypoint,
        (Kind::MeshTlsMode, "spec.selector") => Accepted::Conflicted,
        _ => Accepted::Invalid,
    }
}
