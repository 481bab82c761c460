use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::*;
use crate::{
    server::{Change, Published},
    wire::xds::{Resource, Status as Refusal},
};

const KIND: ResourceType = ResourceType::Address;

fn published(name: &str, aliases: &[&str], part_of: &[&str], body: &[u8]) -> Change {
    Change::Set(Published {
        kind: KIND,
        name: name.into(),
        aliases: aliases.iter().map(|&alias| alias.into()).collect(),
        part_of: part_of.iter().map(|&whole| whole.into()).collect(),
        body: body.to_vec(),
    })
}

fn removed(name: &str) -> Change {
    Change::Remove(KIND, name.to_owned())
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// A publisher and one subscriber that remembers what it was told.
struct Pair {
    state: Arc<State>,
    subscription: Subscription,
    held: BTreeMap<String, String>,
    unanswered: Option<DeltaDiscoveryResponse>,
}

impl Pair {
    fn new(state: Vec<Change>, first: DeltaDiscoveryRequest) -> Self {
        let mut published = State::default();
        published.apply(state);
        let held = first.initial_resource_versions.clone().into_iter().collect();
        let subscription = Subscription::open(KIND, true, first).unwrap();
        Self { state: Arc::new(published), subscription, held, unanswered: None }
    }

    fn commit(&mut self, changes: Vec<Change>) {
        let mut state = (*self.state).clone();
        state.apply(changes);
        self.state = Arc::new(state);
    }

    /// The next response, as names of what changed and what is gone.
    fn next(&mut self) -> Option<(Vec<String>, Vec<String>)> {
        let response = self.subscription.next(&self.state).unwrap()?;
        assert!(self.unanswered.is_none(), "one response at a time");
        let bytes: usize = response.resources.iter().map(Bytes::len).sum();
        assert!(bytes <= RESPONSE_BYTES || response.resources.len() == 1, "{bytes} bytes at once");
        for name in &response.removed_resources {
            self.held.remove(name);
        }
        let mut changed = Vec::new();
        for bytes in &response.resources {
            let resource = Resource::decode(bytes.clone()).unwrap();
            self.held.insert(resource.name.clone(), resource.version);
            changed.push(resource.name);
        }
        changed.sort_unstable();
        let gone = response.removed_resources.clone();
        self.unanswered = Some(response);
        Some((changed, gone))
    }

    fn answer(&mut self) {
        if let Some(response) = self.unanswered.take() {
            let request = DeltaDiscoveryRequest { response_nonce: response.nonce, ..Default::default() };
            assert_eq!(self.subscription.request(request).unwrap(), Some(Answer::Accepted));
        }
    }

    fn drain(&mut self) -> Vec<(Vec<String>, Vec<String>)> {
        self.answer();
        let mut said = Vec::new();
        while let Some(next) = self.next() {
            said.push(next);
            self.answer();
        }
        assert_eq!(self.subscription.answered(), self.state.version());
        said
    }

    fn ask(&mut self, request: DeltaDiscoveryRequest) {
        assert_eq!(self.subscription.request(request).unwrap(), None);
    }

    fn resume(&mut self) {
        let wildcard = self.subscription.wildcard;
        let mut first = subscribe(if wildcard { &[] } else { &[WILDCARD] });
        if !wildcard {
            first.resource_names_unsubscribe.push(WILDCARD.to_owned());
            first.resource_names_subscribe.extend(self.subscription.asked.iter().map(ToString::to_string));
        }
        first.initial_resource_versions = self.held.clone().into_iter().collect();
        self.subscription = Subscription::open(KIND, true, first).unwrap();
        self.unanswered = None;
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_first_list_and_a_star_both_mean_everything() {
    for first in [&[][..], &[WILDCARD]] {
        let mut pair =
            Pair::new(vec![published("a", &[], &[], b"1"), published("b", &[], &[], b"1")], subscribe(first));
        assert_eq!(pair.drain(), [(names(&["a", "b"]), names(&[]))]);
    }
}

#[test]
fn the_first_request_is_answered_even_if_there_is_nothing() {
    let mut pair = Pair::new(vec![], subscribe(&[]));
    assert_eq!(pair.drain(), [(names(&[]), names(&[]))]);
    let mut nothing = subscribe(&[WILDCARD]);
    nothing.resource_names_unsubscribe.push(WILDCARD.to_owned());
    let mut pair = Pair::new(vec![published("a", &[], &[], b"1")], nothing);
    assert_eq!(pair.drain(), [(names(&[]), names(&[]))]);
}

#[test]
fn only_what_changed_is_said_and_nothing_twice() {
    let mut pair = Pair::new(vec![published("a", &[], &[], b"1"), published("b", &[], &[], b"1")], subscribe(&[]));
    pair.drain();
    pair.commit(vec![published("a", &[], &[], b"1"), published("b", &[], &[], b"2")]);
    assert_eq!(pair.drain(), [(names(&["b"]), names(&[]))]);
    pair.commit(vec![removed("a"), removed("never")]);
    assert_eq!(pair.drain(), [(names(&[]), names(&["a"]))]);
    pair.commit(vec![published("b", &[], &[], b"2")]);
    assert_eq!(pair.drain(), []);
}

#[test]
fn a_slow_subscriber_is_told_the_latest_of_everything_once() {
    let mut pair = Pair::new(vec![published("a", &[], &[], b"0")], subscribe(&[]));
    pair.next();
    for round in 1..=1000_u32 {
        pair.commit(vec![
            published("a", &[], &[], &round.to_be_bytes()),
            published("b", &[], &[], &round.to_be_bytes()),
        ]);
        pair.commit(vec![published("c", &[], &[], b"1")]);
        pair.commit(vec![removed("c")]);
        assert_eq!(pair.next(), None, "one response is unanswered");
    }
    assert_eq!(pair.drain(), [(names(&["a", "b"]), names(&["c"]))]);
}

#[test]
fn who_comes_back_is_sent_what_differs_and_told_what_is_gone() {
    let state = || vec![published("a", &[], &[], b"1"), published("b", &[], &[], b"1"), published("c", &[], &[], b"1")];
    let mut pair = Pair::new(state(), subscribe(&[]));
    pair.drain();
    let mut first = subscribe(&[]);
    first.initial_resource_versions = pair.held.clone().into_iter().collect();
    // A control plane that started anew and has another mesh.
    let mut state = state();
    state.extend([removed("a"), published("b", &[], &[], b"2"), published("d", &[], &[], b"1")]);
    let mut pair = Pair::new(state, first);
    assert_eq!(pair.drain(), [(names(&["b", "d"]), names(&["a"]))]);
}

#[test]
fn an_answer_counts_only_with_the_nonce_that_is_open() {
    let mut pair = Pair::new(vec![published("a", &[], &[], b"1")], subscribe(&[]));
    pair.next();
    for nonce in ["", "0", "2", "none"] {
        pair.ask(DeltaDiscoveryRequest { response_nonce: nonce.into(), ..Default::default() });
        assert_eq!(pair.subscription.answered(), 0);
    }
    let refusal = Refusal { code: 3, message: "a: no".into(), details: vec![] };
    let request =
        DeltaDiscoveryRequest { response_nonce: "1".into(), error_detail: Some(refusal), ..Default::default() };
    assert_eq!(pair.subscription.request(request.clone()).unwrap(), Some(Answer::Refused("a: no".into())));
    assert_eq!(pair.subscription.request(request).unwrap(), None, "answered already");
    pair.unanswered = None;
    assert_eq!(pair.drain(), [], "what was refused is not sent again unchanged");
}

#[test]
fn asked_by_name_or_alias_it_says_who_is_there_and_who_is_not() {
    let state = vec![
        published("pod", &["net/10.0.0.1"], &["svc"], b"1"),
        published("svc", &["net/10.96.0.1"], &[], b"1"),
        published("other", &["net/10.0.0.2"], &[], b"1"),
    ];
    for (asked, present, absent) in [
        ("pod", names(&["pod"]), names(&[])),
        ("net/10.0.0.1", names(&["pod"]), names(&[])),
        ("net/10.0.0.9", names(&[]), names(&["net/10.0.0.9"])),
        ("svc", names(&["pod", "svc"]), names(&[])),
        ("net/10.96.0.1", names(&["pod", "svc"]), names(&[])),
    ] {
        let mut pair = Pair::new(state.clone(), subscribe(&[asked]));
        assert_eq!(pair.drain(), [(present.clone(), absent.clone())], "{asked}");
        pair.ask(subscribe(&[asked]));
        assert_eq!(pair.drain(), [(present, absent)], "{asked}: asked again, answered again");
    }
}

#[test]
fn only_what_was_asked_for_is_followed() {
    let mut pair = Pair::new(
        vec![published("a", &["x"], &[], b"1"), published("b", &["y"], &[], b"1")],
        subscribe(&["x", "later"]),
    );
    assert_eq!(pair.drain(), [(names(&["a"]), names(&["later"]))]);
    pair.commit(vec![published("b", &["y"], &[], b"2"), published("later", &[], &[], b"1")]);
    assert_eq!(pair.drain(), [(names(&["later"]), names(&[]))]);
    // The address moves to another, which is followed from then on.
    pair.commit(vec![published("a", &["z"], &[], b"1"), published("b", &["x"], &[], b"2")]);
    assert_eq!(pair.drain(), [(names(&["b"]), names(&["a"]))]);
    pair.commit(vec![published("a", &["z"], &[], b"3"), removed("b")]);
    assert_eq!(pair.drain(), [(names(&[]), names(&["b"]))]);
    let unsubscribe = DeltaDiscoveryRequest { resource_names_unsubscribe: names(&["later"]), ..Default::default() };
    pair.ask(unsubscribe);
    pair.commit(vec![published("later", &[], &[], b"2")]);
    assert_eq!(pair.drain(), [(names(&[]), names(&["later"]))], "it is told that it no longer hears of it");
}

#[test]
fn a_subscriber_can_go_from_names_to_everything_and_back() {
    let mut pair = Pair::new(vec![published("a", &[], &[], b"1"), published("b", &[], &[], b"1")], subscribe(&["a"]));
    pair.drain();
    pair.ask(subscribe(&[WILDCARD]));
    assert_eq!(pair.drain(), [(names(&["b"]), names(&[]))]);
    pair.ask(DeltaDiscoveryRequest { resource_names_unsubscribe: names(&[WILDCARD]), ..Default::default() });
    assert_eq!(pair.drain(), [(names(&["a"]), names(&[]))]);
    pair.commit(vec![published("a", &[], &[], b"2"), published("b", &[], &[], b"2")]);
    assert_eq!(pair.drain(), [(names(&["a"]), names(&[]))]);
}

#[test]
fn the_first_push_is_split_only_for_those_who_understand() {
    let big = vec![7; RESPONSE_BYTES * 2 / 3];
    let mut state = State::default();
    state.apply((0..3).map(|number| published(&format!("{number}"), &[], &[], &big)).collect());
    let state = Arc::new(state);

    let mut whole = Subscription::open(KIND, false, subscribe(&[])).unwrap();
    let response = whole.next(&state).unwrap().unwrap();
    assert_eq!((response.resources.len(), response.system_version_info.starts_with(PARTIAL)), (3, false));

    let mut split = Subscription::open(KIND, true, subscribe(&[])).unwrap();
    let mut marks = Vec::new();
    while let Some(response) = split.next(&state).unwrap() {
        marks.push(response.system_version_info.starts_with(PARTIAL));
        assert_eq!(split.answered(), 0, "not before all is said");
        split.request(DeltaDiscoveryRequest { response_nonce: response.nonce, ..Default::default() }).unwrap();
    }
    assert_eq!((marks, split.answered()), (vec![true, true, false], state.version()));
}

#[test]
fn what_a_first_push_leaves_unsaid_while_the_mesh_changes_is_said_after_it() {
    let big = vec![7; RESPONSE_BYTES * 2 / 3];
    let mut pair = Pair::new(
        vec![published("a", &[], &[], &big), published("b", &[], &[], &big), published("c", &[], &[], &big)],
        subscribe(&[]),
    );
    assert_eq!(pair.next(), Some((names(&["a"]), names(&[]))));
    pair.commit(vec![published("b", &[], &[], b"new"), removed("c"), removed("a")]);
    pair.drain();
    assert_eq!(pair.held.into_keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn who_is_further_behind_than_removals_are_remembered_must_come_back() {
    let mut pair = Pair::new(vec![published("a", &[], &[], b"1")], subscribe(&[]));
    pair.drain();
    let many = || (0..17_000).map(|number| format!("{number}"));
    pair.commit(many().map(|name| published(&name, &[], &[], b"")).collect());
    pair.commit(many().map(|name| removed(&name)).collect());
    assert_eq!(pair.subscription.next(&pair.state).unwrap_err().code(), tonic::Code::Aborted);
    pair.resume();
    assert_eq!(pair.drain(), [(names(&[]), names(&[]))]);
}

#[test]
fn bounds_what_a_subscriber_may_ask() {
    let mut pair = Pair::new(vec![], subscribe(&["a"]));
    let long = "x".repeat(NAME_LIMIT + 1);
    assert_eq!(pair.subscription.request(subscribe(&[&long])).unwrap_err().code(), tonic::Code::InvalidArgument);
    let many = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=ASKED_LIMIT).map(|number| number.to_string()).collect(),
        ..Default::default()
    };
    assert_eq!(pair.subscription.request(many).unwrap_err().code(), tonic::Code::ResourceExhausted);
}

#[derive(Clone, Debug)]
enum Step {
    Answer,
    Ask(usize),
    Next,
    Remove(usize),
    Resume,
    Set { name: usize, alias: usize, part: bool, body: u8 },
}

const NAMES: [&str; 4] = ["p", "q", "r", "s"];
const ALIASES: [&str; 3] = ["x", "y", "z"];

fn any_step() -> impl Strategy<Value = Step> {
    let set = (0..4_usize, 0..3_usize, any::<bool>(), any::<u8>());
    prop_oneof![
        3 => Just(Step::Answer),
        1 => (0..7_usize).prop_map(Step::Ask),
        3 => Just(Step::Next),
        1 => (0..4_usize).prop_map(Step::Remove),
        1 => Just(Step::Resume),
        3 => set.prop_map(|(name, alias, part, body)| Step::Set { name, alias, part, body }),
    ]
}

fn take(pair: &mut Pair, step: &Step, named: bool) {
    match *step {
        Step::Answer => pair.answer(),
        Step::Ask(which) if named => {
            let asked = NAMES.iter().chain(&ALIASES).nth(which).unwrap();
            pair.ask(subscribe(&[asked]));
        }
        Step::Ask(_) => {}
        Step::Next => drop(pair.next()),
        Step::Remove(name) => pair.commit(vec![removed(NAMES[name])]),
        Step::Resume => pair.resume(),
        Step::Set { name, alias, part, body } => {
            // Some are so big that pushes are split.
            let body = vec![body % 3; if body % 4 == 0 { RESPONSE_BYTES / 2 } else { 1 }];
            let part_of: &[&str] = if part && name > 0 { &NAMES[..1] } else { &[] };
            pair.commit(vec![published(NAMES[name], &[ALIASES[alias]], part_of, &body)]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_a_subscriber_to_everything_ends_with_everything(steps in vec(any_step(), 0..40)) {
        let mut pair = Pair::new(vec![], subscribe(&[]));
        for step in &steps {
            take(&mut pair, step, false);
        }
        pair.drain();
        let there: BTreeMap<String, String> = NAMES
            .iter()
            .filter_map(|name| pair.state.of(KIND).entry(name))
            .map(|entry| (entry.name.to_string(), entry.version.to_string()))
            .collect();
        prop_assert_eq!(&pair.held, &there);
    }

    #[test]
    fn whatever_happens_a_subscriber_to_names_has_them_all_and_nothing_stale(steps in vec(any_step(), 0..40)) {
        let mut pair = Pair::new(vec![], subscribe(&["p"]));
        let mut asked = vec!["p"];
        for step in &steps {
            if let Step::Ask(which) = step {
                asked.push(NAMES.iter().chain(&ALIASES).nth(*which).unwrap());
            }
            take(&mut pair, step, true);
        }
        pair.drain();
        for (name, version) in &pair.held {
            let entry = pair.state.of(KIND).entry(name);
            prop_assert_eq!(entry.map(|entry| &*entry.version), Some(version.as_str()), "{} is stale", name);
        }
        for asked in asked {
            for entry in pair.state.of(KIND).resolve(asked) {
                prop_assert!(pair.held.contains_key(&*entry.name), "{} was asked for by {}", entry.name, asked);
            }
        }
    }
}
