//! Which node proxy follows which: of two that serve, the younger succeeds the older, which then takes no more
//! connections. When the younger goes, the older is told that it is alone again.

use std::time::Duration;

use underpass_enrolment::node::ToProxy;
use underpass_model::PodUid;

use super::{NodeSession, Proxies, ReleaseReason, SessionId, State};

impl Proxies {
    /// A proxy takes connections at every pod.
    pub(super) fn serving(&self, id: SessionId) {
        let mut state = self.lock();
        if let Some(session) = state.node.iter_mut().find(|session| session.id == id) {
            session.serving = true;
            tracing::info!(session = id, generation = session.generation, "a node proxy serves");
        }
        state.tell_successors();
    }

    /// A proxy that stands back has a pod still: it is told if the pod has ended while it could not be.
    pub(super) fn holds(&self, id: SessionId, pod: &PodUid) {
        let mut state = self.lock();
        if !state.served.contains_key(pod) {
            state.tell_end(pod, |node| node.id == id);
        }
    }

    /// Tells the proxies that a pod begins to end, once, and those that connect later.
    pub fn terminating(&self, uid: &PodUid) {
        let mut state = self.lock();
        let Some(served) = state.served.get_mut(uid).filter(|served| !served.terminating) else { return };
        served.terminating = true;
        state.node.retain(|node| node.tell.try_send(ToProxy::Terminating { pod: uid.clone() }).is_ok());
    }
}

impl State {
    /// Tells each proxy of its successor where that has changed.
    pub(super) fn tell_successors(&mut self) {
        let successors: Vec<Option<String>> =
            self.node.iter().map(|node| successor(&self.node, node).map(|next| next.generation.clone())).collect();
        let mut successors = successors.into_iter();
        self.node.retain_mut(|node| {
            let successor = successors.next().flatten();
            if node.successor == successor {
                return true;
            }
            node.successor.clone_from(&successor);
            // One that does not keep up hears when it connects again.
            node.tell.try_send(ToProxy::Successor(successor)).is_ok()
        });
    }

    /// Tells those of these who have a successor that a pod is gone: they hear nothing on ZDS any more. To others it could
    /// come after the pod's next sandbox.
    pub(super) fn tell_end(&mut self, uid: &PodUid, whom: impl Fn(&NodeSession) -> bool) {
        self.node.retain(|node| {
            let end = ToProxy::Release { pod: uid.clone(), reason: ReleaseReason::Deleted, deadline: Duration::ZERO };
            node.successor.is_none() || !whom(node) || node.tell.try_send(end).is_ok()
        });
    }
}

/// The youngest that serves, if it is younger than this one.
fn successor<'a>(sessions: &'a [NodeSession], of: &NodeSession) -> Option<&'a NodeSession> {
    let follows = |other: &&NodeSession| other.serving && other.started > of.started;
    sessions.iter().filter(follows).max_by_key(|other| other.started)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use underpass_enrolment::{
        node::{Listeners, ListeningSocket},
        zds::WorkloadInfo,
    };

    use super::*;
    use crate::proxies::node::Greeting;

    struct Proxy {
        id: SessionId,
        told: mpsc::Receiver<ToProxy>,
    }

    impl Proxy {
        fn connects(proxies: &Proxies, generation: &str, started: u64) -> Self {
            let (tell, told) = mpsc::channel(8);
            let greeting = Greeting { generation: generation.to_owned(), started: Duration::from_secs(started) };
            let (id, _) = proxies.open_node(greeting, tell);
            Self { id, told }
        }

        /// What it was told of a successor since it was asked last.
        fn heard(&mut self) -> Vec<Option<String>> {
            let successor = |message| match message {
                ToProxy::Successor(generation) => Some(generation),
                _ => None,
            };
            std::iter::from_fn(|| self.told.try_recv().ok()).filter_map(successor).collect()
        }
    }

    #[test]
    fn the_older_hears_of_the_younger_once_that_serves_and_again_when_it_has_gone() {
        let proxies = Proxies::default();
        let mut old = Proxy::connects(&proxies, "old", 1);
        proxies.serving(old.id);
        let mut new = Proxy::connects(&proxies, "new", 2);
        assert_eq!(old.heard(), [], "a proxy that has only connected follows nobody");
        proxies.serving(new.id);
        proxies.serving(new.id);
        assert_eq!(old.heard(), [Some("new".to_owned())]);
        assert_eq!(new.heard(), []);
        proxies.close_node(new.id);
        assert_eq!(old.heard(), [None]);
    }

    #[test]
    fn age_decides_and_not_who_connected_last() {
        let proxies = Proxies::default();
        let mut new = Proxy::connects(&proxies, "new", 2);
        // As after the agent's restart: both serve, the older comes back last, perhaps by two sessions for a moment.
        let mut old = Proxy::connects(&proxies, "old", 1);
        let mut old_again = Proxy::connects(&proxies, "old", 1);
        for proxy in [&new, &old, &old_again] {
            proxies.serving(proxy.id);
        }
        assert_eq!(new.heard(), []);
        assert_eq!((old.heard(), old_again.heard()), (vec![Some("new".to_owned())], vec![Some("new".to_owned())]));
        // Of three the youngest counts; one that dies in between changes nothing for the oldest.
        let mut newest = Proxy::connects(&proxies, "newest", 3);
        proxies.serving(newest.id);
        assert_eq!((new.heard(), newest.heard()), (vec![Some("newest".to_owned())], vec![]));
        old.heard();
        proxies.close_node(new.id);
        assert_eq!(old.heard(), []);
    }

    #[test]
    fn listeners_that_an_older_proxy_makes_are_given_to_the_younger_and_never_the_other_way() {
        let (proxies, pod) = (Proxies::default(), PodUid::new("a"));
        let info = WorkloadInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() };
        proxies.serve_pod(&pod, info, None);
        let [mut old, mut new] = [("old", 1), ("new", 2)].map(|(name, age)| Proxy::connects(&proxies, name, age));
        let made = || {
            let socket = std::fs::File::open("/dev/null").unwrap().into();
            Listeners { pod: pod.clone(), sockets: vec![ListeningSocket { port: 15008, socket }] }
        };
        let given =
            |proxy: &mut Proxy| matches!(proxy.told.try_recv(), Ok(ToProxy::Listeners(given)) if given.pod == pod);
        proxies.keep(old.id, made());
        assert!(given(&mut new) && !given(&mut old));
        proxies.keep(new.id, made());
        assert!(!given(&mut new) && !given(&mut old));
    }

    #[test]
    fn a_proxy_that_stood_back_hears_of_pods_that_ended_while_it_was_away_and_no_other_does() {
        let (proxies, here, gone) = (Proxies::default(), PodUid::new("here"), PodUid::new("gone"));
        let info = WorkloadInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() };
        proxies.serve_pod(&here, info, None);
        let [mut old, mut new] = [("old", 1), ("new", 2)].map(|(name, age)| Proxy::connects(&proxies, name, age));
        proxies.holds(old.id, &gone);
        assert!(old.told.try_recv().is_err(), "nobody follows it: it hears on ZDS");
        proxies.serving(new.id);
        assert_eq!(old.heard(), [Some("new".to_owned())]);
        for (proxy, pod) in [(&old, &here), (&old, &gone), (&new, &gone)] {
            proxies.holds(proxy.id, pod);
        }
        let Ok(ToProxy::Release { pod, reason, .. }) = old.told.try_recv() else { panic!("it is told nothing") };
        assert_eq!((pod, reason), (gone, ReleaseReason::Deleted));
        assert!(old.told.try_recv().is_err() && new.told.try_recv().is_err());
    }

    #[test]
    fn of_two_proxies_the_youngers_word_on_a_certificate_counts_and_outlives_the_older() {
        let (proxies, pod) = (Proxies::default(), PodUid::new("a"));
        let info = WorkloadInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() };
        proxies.serve_pod(&pod, info, None);
        let [old, new] = [("old", 1), ("new", 2)].map(|(name, age)| Proxy::connects(&proxies, name, age));
        let (zds, _asks, _) = proxies.open_zds();
        proxies.accept(zds, &pod, Ok(()));
        proxies.ready(new.id, &pod, Ok(()));
        proxies.ready(old.id, &pod, Err("not yet".to_owned()));
        assert_eq!(proxies.lacks(&pod), None);
        proxies.close_node(old.id);
        assert_eq!(proxies.lacks(&pod), None, "the younger has said it, and says it once");
        proxies.close_node(new.id);
        assert!(proxies.lacks(&pod).is_some());
    }

    #[test]
    fn that_a_pod_begins_to_end_is_told_once_and_to_those_who_come_later() {
        let (proxies, pod) = (Proxies::default(), PodUid::new("a"));
        let info = WorkloadInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() };
        proxies.serve_pod(&pod, info, None);
        let mut there = Proxy::connects(&proxies, "there", 1);
        proxies.terminating(&pod);
        proxies.terminating(&pod);
        let mut late = Proxy::connects(&proxies, "late", 2);
        for proxy in [&mut there, &mut late] {
            assert!(matches!(proxy.told.try_recv(), Ok(ToProxy::Terminating { pod: told }) if told == pod));
            assert!(proxy.told.try_recv().is_err());
        }
    }
}
