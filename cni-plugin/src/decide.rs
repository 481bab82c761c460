//! What follows from what the agent said, or from its silence. Pure.
//!
//! Labels are not among what the runtime tells, so while the agent is away nobody knows which pods are enrolled. The
//! agent leaves on disk which namespaces are: their pods wait, and fail. All others start; one that is enrolled by a
//! label of its own is captured live when the agent is back. Until then it runs outside the mesh, which is the price
//! for a node on which pods start without the agent.

use std::io;

use underpass_enrolment::plugin::{Command, EnrolledNamespaces, Link, PluginFailure, PluginResponse, Pod};
use underpass_model::names::NEVER_ENROLLED;

/// How a pod stands to the mesh, as far as it shows without the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In a namespace that is never enrolled: the mesh itself starts there.
    Excluded,
    /// Perhaps enrolled, by its own label: the agent knows.
    Perhaps,
    /// Not a pod of Kubernetes.
    Stranger,
    /// In an enrolled namespace, or the list of those cannot be read.
    Wanted,
}

/// What came of asking the agent once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It answered.
    Answered(PluginResponse),
    /// It did not, and how that went.
    Away(String),
}

/// Whether there is time for another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// There is.
    Left,
    /// There is not.
    Over,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Try again.
    Again,
    /// Fail: the agent could not be asked.
    FailAway(String),
    /// Fail: the agent says what is missing.
    FailLink(PluginFailure),
    /// Fail: the agent knows no such sandbox.
    FailUnknown(PluginFailure),
    /// Succeed: the agent says how the pod stands.
    Pass {
        /// Captured or not.
        enrolled: bool,
    },
    /// Succeed all the same, and say why.
    PassAnyway(String),
}

/// How a pod stands, by its namespace; `enrolled` is the list that the agent left, or why it cannot be read.
pub(crate) fn standing(pod: Option<&Pod>, enrolled: &io::Result<EnrolledNamespaces>) -> Standing {
    let Some(Pod { namespace, .. }) = pod else { return Standing::Stranger };
    if NEVER_ENROLLED.contains(&namespace.as_str()) {
        return Standing::Excluded;
    }
    match enrolled {
        Ok(list) if list.contains(namespace) => Standing::Wanted,
        Ok(_) => Standing::Perhaps,
        // No agent has ever run here, so nothing was ever enrolled.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Standing::Perhaps,
        Err(_) => Standing::Wanted,
    }
}

/// Whether the agent is to be asked at all. It knows sandboxes that end by their id, so whoever calls.
pub(crate) fn must_ask(command: Command, standing: Standing) -> bool {
    match standing {
        Standing::Excluded => false,
        Standing::Stranger => command == Command::Del,
        Standing::Perhaps | Standing::Wanted => true,
    }
}

/// What follows from an attempt.
pub(crate) fn judge(command: Command, standing: Standing, attempt: Attempt, time: Time) -> Verdict {
    match (command, attempt) {
        (Command::Del, Attempt::Answered(PluginResponse { error: Some(failure), .. })) => {
            Verdict::PassAnyway(format!("the node agent could not let go of the pod: {failure}"))
        }
        (Command::Check, Attempt::Answered(PluginResponse { error: Some(failure), .. }))
            if failure.link == Link::Attachment =>
        {
            Verdict::FailUnknown(failure)
        }
        (_, Attempt::Answered(PluginResponse { error: Some(failure), .. })) => Verdict::FailLink(failure),
        (_, Attempt::Answered(PluginResponse { error: None, enrolled })) => Verdict::Pass { enrolled },
        (Command::Del, Attempt::Away(cause)) => Verdict::PassAnyway(format!("the node agent is away: {cause}")),
        (Command::Gc, Attempt::Away(cause)) => Verdict::FailAway(cause),
        (Command::Add | Command::Check, Attempt::Away(cause)) => match (standing, command, time) {
            (Standing::Wanted, Command::Add, Time::Left) => Verdict::Again,
            (Standing::Wanted, _, _) => Verdict::FailAway(cause),
            (Standing::Perhaps | Standing::Excluded | Standing::Stranger, _, _) => {
                Verdict::PassAnyway(format!("the node agent is away and will see to the pod when it is back: {cause}"))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str) -> Pod {
        Pod { namespace: namespace.to_owned(), name: "web-0".to_owned(), uid: String::new() }
    }

    #[test]
    fn a_pods_standing_follows_from_its_namespace() {
        let list = || Ok(EnrolledNamespaces::from_text("shop\nkube-system\nunderpass-system"));
        let unreadable = |kind| Err(io::Error::from(kind));
        for (pod, list, expected) in [
            (None, list(), Standing::Stranger),
            (Some(pod("shop")), list(), Standing::Wanted),
            (Some(pod("lab")), list(), Standing::Perhaps),
            (Some(pod("kube-system")), list(), Standing::Excluded),
            (Some(pod("underpass-system")), list(), Standing::Excluded),
            (Some(pod("shop")), unreadable(io::ErrorKind::NotFound), Standing::Perhaps),
            (Some(pod("shop")), unreadable(io::ErrorKind::PermissionDenied), Standing::Wanted),
            (Some(pod("kube-system")), unreadable(io::ErrorKind::PermissionDenied), Standing::Excluded),
        ] {
            assert_eq!(standing(pod.as_ref(), &list), expected, "{pod:?} {list:?}");
        }
        for command in [Command::Add, Command::Check, Command::Del] {
            assert!(must_ask(command, Standing::Wanted) && must_ask(command, Standing::Perhaps));
            assert!(!must_ask(command, Standing::Excluded));
            assert_eq!(must_ask(command, Standing::Stranger), command == Command::Del);
        }
    }

    #[test]
    fn an_answer_is_the_answer_whatever_the_list_says() {
        let rules = PluginFailure { link: Link::Rules, message: "nft failed".to_owned() };
        let unknown = PluginFailure { link: Link::Attachment, message: "no such sandbox".to_owned() };
        let failed = |failure: &PluginFailure| PluginResponse { enrolled: false, error: Some(failure.clone()) };
        let passes = |verdict: Verdict| matches!(verdict, Verdict::PassAnyway(_));
        for standing in [Standing::Perhaps, Standing::Wanted] {
            for time in [Time::Left, Time::Over] {
                let judge = |command, answer| judge(command, standing, Attempt::Answered(answer), time);
                for enrolled in [true, false] {
                    for command in [Command::Add, Command::Check, Command::Del, Command::Gc] {
                        assert_eq!(judge(command, PluginResponse::done(enrolled)), Verdict::Pass { enrolled });
                    }
                }
                assert_eq!(judge(Command::Add, failed(&rules)), Verdict::FailLink(rules.clone()));
                assert_eq!(judge(Command::Add, failed(&unknown)), Verdict::FailLink(unknown.clone()));
                assert_eq!(judge(Command::Check, failed(&rules)), Verdict::FailLink(rules.clone()));
                assert_eq!(judge(Command::Check, failed(&unknown)), Verdict::FailUnknown(unknown.clone()));
                assert_eq!(judge(Command::Gc, failed(&rules)), Verdict::FailLink(rules.clone()));
                assert!(passes(judge(Command::Del, failed(&rules))), "a pod must be able to end");
            }
        }
    }

    #[test]
    fn silence_stops_only_pods_of_enrolled_namespaces() {
        use Standing::{Perhaps, Wanted};
        use Time::{Left, Over};
        let fail = || Some(Verdict::FailAway("no socket".to_owned()));
        // None: passes, and says why.
        for (command, standing, time, expected) in [
            (Command::Add, Wanted, Left, Some(Verdict::Again)),
            (Command::Add, Wanted, Over, fail()),
            (Command::Add, Perhaps, Left, None),
            (Command::Add, Perhaps, Over, None),
            (Command::Check, Wanted, Left, fail()),
            (Command::Check, Wanted, Over, fail()),
            (Command::Check, Perhaps, Left, None),
            (Command::Del, Wanted, Left, None),
            (Command::Del, Wanted, Over, None),
            (Command::Del, Perhaps, Left, None),
            (Command::Gc, Perhaps, Left, fail()),
        ] {
            let verdict = judge(command, standing, Attempt::Away("no socket".to_owned()), time);
            match expected {
                Some(expected) => assert_eq!(verdict, expected, "{command:?} {standing:?} {time:?}"),
                None => assert!(
                    matches!(&verdict, Verdict::PassAnyway(why) if why.contains("no socket")),
                    "{command:?} {standing:?} {time:?}: {verdict:?}"
                ),
            }
        }
    }
}
