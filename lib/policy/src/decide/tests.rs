//! One row a rule of the decision.

use std::net::IpAddr;

use super::*;
use crate::{
    matcher::Pattern,
    rule::{AllOf, AnyOf, Clause, Field, Match, Rule, Scope},
};

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn peer(account: &str) -> Source {
    Source::Peer(identity(account))
}

fn stranger(origin: Origin) -> Source {
    Source::Stranger("192.0.2.1".parse().unwrap(), origin)
}

fn from_account(account: &str) -> Rule {
    let name = format!("cluster.local/ns/shop/sa/{account}");
    let wanted = Match { principals: Field::any([Pattern::Exact(name.into())]), ..Match::default() };
    Rule { clauses: AllOf::from_iter([Clause::Matches(AnyOf::from_iter([wanted]))]) }
}

fn without_principal() -> Rule {
    let wanted = Match { principals: Field::none([Pattern::Presence]), ..Match::default() };
    Rule { clauses: AllOf::from_iter([Clause::Matches(AnyOf::from_iter([wanted]))]) }
}

fn policy(name: &str, action: Action, rules: impl IntoIterator<Item = Rule>) -> Policy {
    let name = PolicyName::new("shop", name);
    Policy { name, scope: Scope::Namespace, action, rules: rules.into_iter().collect(), dry_run: false }
}

fn dry(policy: Policy) -> Policy {
    Policy { dry_run: true, ..policy }
}

fn set(policies: impl IntoIterator<Item = Policy>) -> PolicySet {
    PolicySet::new(Arc::default(), policies.into_iter().map(Arc::new).collect())
}

fn judge(set: &PolicySet, source: &Source) -> Result<Permit, Denial> {
    let own = identity("db");
    let client: IpAddr = "10.0.0.9".parse().unwrap();
    let destination = "10.0.0.1:5432".parse().unwrap();
    set.authorize(&Facts { source, client, own: &own, hop: Hop::Application, destination })
}

/// `allowed [by POLICY]` or `REASON by POLICY`.
fn word(set: &PolicySet, source: &Source) -> String {
    match judge(set, source) {
        Ok(permit) => permit.policy().map_or("allowed".into(), |policy| format!("allowed by {}", policy.name())),
        Err(Denial::Policy(refusal)) => format!("{} by {}", refusal.reason(), refusal.policy.name()),
        Err(denial) => denial.reason().into(),
    }
}

#[test]
fn what_holds_whatever_policies_say() {
    let own: Identity = identity("own");
    let friend = peer("b");
    let foreign = Source::Peer("spiffe://elsewhere/ns/a/sa/b".parse().unwrap());
    let stranger = stranger(Origin::Remote);
    for (source, hop, destination, expected) in [
        (&friend, Hop::Application, "10.0.0.1:80", None),
        (&foreign, Hop::Application, "10.0.0.1:80", Some("foreign_trust_domain")),
        (&stranger, Hop::Application, "10.0.0.1:80", None),
        (&friend, Hop::Application, "10.0.0.1:15001", Some("own_port")),
        (&friend, Hop::Application, "10.0.0.1:15006", Some("own_port")),
        (&friend, Hop::Application, "10.0.0.1:15008", Some("own_port")),
        (&stranger, Hop::Application, "10.0.0.1:15006", Some("own_port")),
        (&friend, Hop::Application, "127.0.0.1:80", Some("loopback_destination")),
        (&friend, Hop::Workload, "10.0.0.1:15008", Some("own_port")),
        (&friend, Hop::Passthrough, "192.0.2.9:15008", None),
        (&friend, Hop::Passthrough, "[::1]:80", Some("loopback_destination")),
    ] {
        let client = "10.0.0.9".parse().unwrap();
        let facts = Facts { source, client, own: &own, hop, destination: destination.parse().unwrap() };
        let denied = PolicySet::default().authorize(&facts).err().map(|denial| denial.reason());
        assert_eq!(denied, expected, "{source:?} {hop:?} {destination}");
    }
}

#[test]
fn the_table_of_decisions() {
    use Action::{Allow, Deny, Refuse};
    let (web, job, plain) = (peer("web"), peer("job"), stranger(Origin::Remote));
    let allow_web = || policy("allow-web", Allow, [from_account("web")]);
    let deny_web = || policy("deny-web", Deny, [from_account("web")]);
    let strict = || policy("strict", Deny, [without_principal()]);
    let nothing = |action| policy("nothing", action, []);
    let everything = |action| policy("everything", action, [Rule::open()]);
    let table: [(&str, Vec<Policy>, &Source, &str); 16] = [
        ("without policies all is open", vec![], &plain, "allowed"),
        ("only denies: the rest is open", vec![deny_web()], &job, "allowed"),
        ("a deny that matches", vec![deny_web()], &web, "policy_denied by deny-web"),
        ("a deny wins over an allow", vec![allow_web(), deny_web()], &web, "policy_denied by deny-web"),
        ("an allow that matches", vec![allow_web()], &web, "allowed by allow-web"),
        ("an allow that does not", vec![allow_web()], &job, "policy_not_allowed by allow-web"),
        ("one of two allows suffices", vec![nothing(Allow), allow_web()], &web, "allowed by allow-web"),
        ("an allow of nothing closes", vec![nothing(Allow)], &web, "policy_not_allowed by nothing"),
        ("a deny of nothing is void", vec![nothing(Deny)], &web, "allowed"),
        ("a deny of everything", vec![everything(Deny), allow_web()], &web, "policy_denied by everything"),
        ("an allow of everything", vec![everything(Allow)], &plain, "allowed by everything"),
        ("strict refuses plaintext", vec![strict()], &plain, "policy_denied by strict"),
        ("strict lets peers pass", vec![strict()], &web, "allowed"),
        ("strict allows nothing by itself", vec![strict(), allow_web()], &job, "policy_not_allowed by allow-web"),
        ("what was not understood refuses", vec![nothing(Refuse), allow_web()], &web, "policy_unreadable by nothing"),
        ("a match for a deny is named first", vec![nothing(Refuse), deny_web()], &web, "policy_denied by deny-web"),
    ];
    for (what, policies, source, expected) in table {
        assert_eq!(word(&set(policies), source), expected, "{what}");
    }
}

#[test]
fn a_policy_that_is_named_but_not_known_refuses_everything_but_probes() {
    let unknown =
        set([policy("allow", Action::Allow, [Rule::open()])]).with_named([Err(PolicyName::new("shop", "missing"))]);
    assert_eq!(word(&unknown, &peer("web")), "policy_unknown by missing");
    assert_eq!(word(&unknown, &stranger(Origin::Kubelet)), "allowed");
    let known = set([]).with_named([Ok(Arc::new(policy("deny", Action::Deny, [from_account("web")])))]);
    assert_eq!(word(&known, &peer("web")), "policy_denied by deny");
}

#[test]
fn only_the_kubelet_is_above_policies_not_other_processes_of_the_node() {
    let closed = set([policy("none", Action::Allow, []), policy("strict", Action::Deny, [without_principal()])]);
    assert_eq!(word(&closed, &stranger(Origin::Kubelet)), "allowed");
    assert_eq!(word(&closed, &stranger(Origin::Host)), "policy_denied by strict");
    assert_eq!(word(&closed, &stranger(Origin::Remote)), "policy_denied by strict");
}

#[test]
fn policies_are_the_destinations_and_say_nothing_of_what_leaves() {
    let closed = set([policy("none", Action::Allow, [])]);
    let own = identity("web");
    let source = Source::Local(own.clone());
    for hop in [Hop::Passthrough, Hop::Workload] {
        let destination = "10.0.0.1:80".parse().unwrap();
        let facts = Facts { source: &source, client: "10.0.0.9".parse().unwrap(), own: &own, hop, destination };
        assert!(closed.authorize(&facts).is_ok());
    }
}

#[test]
fn dry_run_is_reported_both_ways_and_never_enforced() {
    let web = peer("web");
    let would_deny = set([dry(policy("dry", Action::Deny, [Rule::open()]))]);
    let permit = judge(&would_deny, &web).unwrap();
    let against = permit.dry_run().unwrap();
    assert_eq!((against.policy.name(), against.reason()), ("dry", "policy_denied"));

    let closes = set([dry(policy("dry", Action::Allow, []))]);
    assert_eq!(judge(&closes, &web).unwrap().dry_run().unwrap().reason(), "policy_not_allowed");

    let closed = policy("closed", Action::Allow, []);
    let opens = set([closed.clone(), dry(policy("dry", Action::Allow, [Rule::open()]))]);
    assert!(judge(&opens, &web).unwrap_err().refusal().unwrap().dry_run_allows);
    let stays = set([closed, dry(policy("dry", Action::Allow, []))]);
    assert!(!judge(&stays, &web).unwrap_err().refusal().unwrap().dry_run_allows);
    let nothing = set([policy("open", Action::Allow, [Rule::open()])]);
    assert_eq!(judge(&nothing, &web).unwrap().dry_run(), None);
}

#[test]
fn a_refusal_names_policy_and_both_identities() {
    let closed = set([policy("closed", Action::Allow, [])]);
    let says = |source| judge(&closed, &source).unwrap_err().to_string();
    assert_eq!(
        says(peer("web")),
        "spiffe://cluster.local/ns/shop/sa/web may not reach spiffe://cluster.local/ns/shop/sa/db at 10.0.0.1:5432: \
         no policy allows it, and policy shop/closed allows others"
    );
    assert!(says(stranger(Origin::Remote)).starts_with("plaintext from 10.0.0.9 may not reach spiffe://"));
}
