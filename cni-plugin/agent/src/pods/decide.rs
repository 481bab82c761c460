//! What to do next about a pod: pure.

use crate::memory::Standing;

/// What is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Situation {
    /// What its object wants; `None` if there is no object.
    pub(super) wanted: Option<bool>,
    /// Whether its namespace's object, which nobody has seen, may make it wanted.
    pub(super) undecided: bool,
    /// Whether what the object says, or its absence, may be due to a manifest that cannot be read: since the agent
    /// started, not all could be.
    pub(super) doubted: bool,
    /// How far it is captured.
    pub(super) standing: Standing,
    /// Whether its network namespace is held.
    pub(super) has_netns: bool,
    /// Whether its network namespace may be looked for: a pod that starts has no address by which to know it, and one
    /// that ends may have lost its own to another.
    pub(super) findable: bool,
    /// Whether proxies were asked to serve it.
    pub(super) served: bool,
    /// Whether an ADD waits for an answer.
    pub(super) adding: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for the object of a pod whose ADD has come, or of its namespace.
    AwaitObject,
    /// Answer a waiting ADD: the pod is not for the mesh.
    Decline,
    /// Nothing is left of the pod.
    End,
    /// Bring it under capture.
    Enrol,
    /// Its object is gone: after a while, give it up.
    GiveUp,
    /// Let it go gently.
    Leave,
    /// Nothing to do until something changes.
    Rest,
    /// Look after the rules now and then.
    Watch,
    /// An enrolment was begun and is wanted no more.
    Withdraw,
}

impl Situation {
    pub(super) fn step(self) -> Step {
        let rests = match (self.wanted, self.standing) {
            (Some(true), _) | (Some(false), Standing::Out) => false,
            // Nothing is taken from a pod because of somebody's broken file.
            (None, _) | (Some(false), Standing::Captured | Standing::Leaving | Standing::Draining) => self.doubted,
        };
        if rests {
            return if self.adding { Step::AwaitObject } else { Step::Rest };
        }
        match (self.wanted, self.standing) {
            (None, _) if self.adding => Step::AwaitObject,
            (None, Standing::Out) if !self.has_netns && !self.served => Step::End,
            (None, _) => Step::GiveUp,
            (Some(true), Standing::Captured) => Step::Watch,
            (Some(true), Standing::Out) if !self.has_netns && !self.findable => {
                if self.served {
                    Step::Withdraw
                } else {
                    Step::Rest
                }
            }
            (Some(true), Standing::Out | Standing::Leaving | Standing::Draining) => Step::Enrol,
            (Some(false), Standing::Out) if self.adding && self.undecided => Step::AwaitObject,
            (Some(false), Standing::Out) if self.adding => Step::Decline,
            (Some(false), Standing::Out) if self.served => Step::Withdraw,
            (Some(false), Standing::Out) => Step::Rest,
            (Some(false), Standing::Captured | Standing::Leaving | Standing::Draining) => Step::Leave,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Captured, Draining, Leaving, Out};

    #[test]
    fn every_situation_has_its_step() {
        let (yes, no, gone) = (Some(true), Some(false), None);
        // wanted, standing, has a namespace, served, adding: step
        for (wanted, standing, has_netns, served, adding, step) in [
            (yes, Out, false, false, false, Step::Enrol),
            (yes, Out, true, true, true, Step::Enrol),
            (yes, Captured, true, true, false, Step::Watch),
            (yes, Leaving, true, true, false, Step::Enrol),
            (yes, Draining, true, true, false, Step::Enrol),
            (no, Out, false, false, false, Step::Rest),
            (no, Out, true, false, false, Step::Rest),
            (no, Out, true, false, true, Step::Decline),
            (no, Out, true, true, false, Step::Withdraw),
            (no, Captured, true, true, false, Step::Leave),
            (no, Leaving, true, true, false, Step::Leave),
            (no, Draining, true, true, false, Step::Leave),
            (gone, Out, true, false, true, Step::AwaitObject),
            (gone, Captured, true, true, true, Step::AwaitObject),
            (gone, Out, false, false, false, Step::End),
            (gone, Out, true, false, false, Step::GiveUp),
            (gone, Out, false, true, false, Step::GiveUp),
            (gone, Captured, true, true, false, Step::GiveUp),
            (gone, Draining, true, true, false, Step::GiveUp),
        ] {
            let situation = Situation {
                wanted,
                undecided: false,
                doubted: false,
                standing,
                has_netns,
                findable: true,
                served,
                adding,
            };
            assert_eq!(situation.step(), step, "{situation:?}");
        }
    }

    const QUIET: Situation = Situation {
        wanted: None,
        undecided: false,
        doubted: false,
        standing: Out,
        has_netns: true,
        findable: true,
        served: true,
        adding: false,
    };

    #[test]
    fn while_manifests_cannot_be_read_nothing_is_taken_away() {
        for standing in [Out, Captured, Leaving, Draining] {
            for wanted in [None, Some(false)] {
                let doubted = Situation { wanted, doubted: true, standing, served: false, ..QUIET };
                assert_eq!(doubted.step(), Step::Rest, "{doubted:?}");
            }
            let captured = Situation { doubted: true, standing, adding: true, ..QUIET };
            assert_eq!(captured.step(), Step::AwaitObject, "{captured:?}");
            let wanted = Situation { wanted: Some(true), doubted: true, standing, ..QUIET };
            assert_eq!(wanted.step(), Situation { doubted: false, ..wanted }.step(), "what is wanted is done");
        }
    }

    #[test]
    fn an_unknown_namespace_is_waited_for_and_an_ending_pod_not_looked_for() {
        let adding = Situation { wanted: Some(false), undecided: true, adding: true, ..QUIET };
        assert_eq!(adding.step(), Step::AwaitObject);
        assert_eq!(Situation { adding: false, served: false, ..adding }.step(), Step::Rest);
        let ending = Situation { wanted: Some(true), has_netns: false, findable: false, served: false, ..QUIET };
        assert_eq!(ending.step(), Step::Rest);
        assert_eq!(Situation { served: true, ..ending }.step(), Step::Withdraw);
        assert_eq!(Situation { has_netns: true, ..ending }.step(), Step::Enrol);
    }
}
