//! One row a rule of what matches.

use std::net::SocketAddr;

use super::*;
use crate::{
    facts::{Hop, Origin, Source},
    rule::{Action, AllOf, AnyOf, Field, PolicyName, Scope},
};

const PORT: u16 = 8080;

fn exact(text: &str) -> Pattern {
    Pattern::Exact(text.into())
}

fn account(namespace: &str, name: &str) -> ServiceAccount {
    ServiceAccount { namespace: namespace.into(), name: name.into() }
}

fn range(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// Whether `shop/web`, calling from 10.0.0.9, is matched; and whether plaintext from there is.
fn matched(rules: impl IntoIterator<Item = Rule>) -> (bool, bool) {
    let policy = Policy {
        name: PolicyName::new("shop", "p"),
        scope: Scope::Named,
        action: Action::Allow,
        rules: rules.into_iter().collect(),
        dry_run: false,
    };
    let own: Identity = "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap();
    let client: IpAddr = "10.0.0.9".parse().unwrap();
    let peer = Source::Peer("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    let stranger = Source::Stranger(client, Origin::Remote);
    let destination = SocketAddr::new("10.0.0.1".parse().unwrap(), PORT);
    let is_matched = |source: &Source| {
        Seen::of(&Facts { source, client, own: &own, hop: Hop::Application, destination }).is_matched_by(&policy)
    };
    (is_matched(&peer), is_matched(&stranger))
}

fn one(wanted: Match) -> Rule {
    Rule { clauses: AllOf::from_iter([Clause::Matches(AnyOf::from_iter([wanted]))]) }
}

#[test]
fn every_field_of_a_match_positive_and_negative() {
    let web = "cluster.local/ns/shop/sa/web";
    let namespaces = |namespaces| Match { namespaces, ..Match::default() };
    let principals = |principals| Match { principals, ..Match::default() };
    let accounts = |service_accounts| Match { service_accounts, ..Match::default() };
    let sources = |source_ips| Match { source_ips, ..Match::default() };
    let destinations = |destination_ips| Match { destination_ips, ..Match::default() };
    let ports = |destination_ports| Match { destination_ports, ..Match::default() };
    // what is wanted, whether the peer is matched, whether plaintext is
    let table = [
        (Match::default(), false, false),
        (namespaces(Field::any([exact("shop")])), true, false),
        (namespaces(Field::any([exact("other"), exact("shop")])), true, false),
        (namespaces(Field::any([exact("other")])), false, false),
        (namespaces(Field::none([exact("shop")])), false, true),
        (namespaces(Field::any([exact("")])), false, true),
        (namespaces(Field::any([Pattern::Prefix("sh".into())])), true, false),
        (namespaces(Field::any([Pattern::Suffix("op".into())])), true, false),
        (
            namespaces(Field {
                any: Field::any([Pattern::Prefix("s".into())]).any,
                none: Field::none([exact("shop")]).none,
            }),
            false,
            false,
        ),
        (principals(Field::any([exact(web)])), true, false),
        (principals(Field::any([exact("spiffe://cluster.local/ns/shop/sa/web")])), false, false),
        (principals(Field::any([Pattern::Prefix("cluster.local/ns/shop/".into())])), true, false),
        (principals(Field::any([Pattern::Suffix("/sa/web".into())])), true, false),
        (principals(Field::any([Pattern::Presence])), true, false),
        (principals(Field::none([Pattern::Presence])), false, true),
        (principals(Field::none([exact(web)])), false, true),
        (accounts(Field::any([account("shop", "web")])), true, false),
        (accounts(Field::any([account("web", "shop")])), false, false),
        (accounts(Field::none([account("shop", "web")])), false, true),
        (accounts(Field::none([account("shop", "db")])), true, true),
        (sources(Field::any([range("10.0.0.0/8")])), true, true),
        (sources(Field::any([range("10.0.0.8/32"), range("fd00::/8")])), false, false),
        (sources(Field::none([range("10.0.0.9/32")])), false, false),
        (destinations(Field::any([range("10.0.0.1/32")])), true, true),
        (destinations(Field::none([range("10.0.0.0/24")])), false, false),
        (ports(Field::any([PORT])), true, true),
        (ports(Field::any([80, 81])), false, false),
        (ports(Field::none([PORT])), false, false),
        (ports(Field::none([80])), true, true),
    ];
    for (wanted, peer, stranger) in table {
        let shown = format!("{wanted:?}");
        assert_eq!(matched([one(wanted)]), (peer, stranger), "{shown}");
    }
}

#[test]
fn rules_are_alternatives_clauses_add_up_matches_are_alternatives_fields_add_up() {
    let from = || Match { namespaces: Field::any([exact("shop")]), ..Match::default() };
    let elsewhere = || Match { namespaces: Field::any([exact("other")]), ..Match::default() };
    let to = || Match { destination_ports: Field::any([PORT]), ..Match::default() };
    let other_port = || Match { destination_ports: Field::any([1]), ..Match::default() };
    let both = |first, second| Rule {
        clauses: AllOf::from_iter([first, second].map(|one| Clause::Matches(AnyOf::from_iter([one])))),
    };
    let either = |matches: Vec<Match>| Rule { clauses: AllOf::from_iter([Clause::Matches(AnyOf::from_iter(matches))]) };
    let (yes, no) = ((true, false), (false, false));
    // no rule, an open rule, an open clause, a clause whose only match is empty
    assert_eq!(matched([]), no);
    assert_eq!(matched([Rule::open()]), (true, true));
    assert_eq!(matched([Rule { clauses: AllOf::from_iter([Clause::Open]) }]), (true, true));
    assert_eq!(matched([Rule { clauses: AllOf::from_iter([Clause::Matches(AnyOf::default())]) }]), no);
    assert_eq!(matched([one(elsewhere()), one(from())]), yes);
    assert_eq!(matched([both(from(), to())]), yes);
    assert_eq!(matched([both(from(), other_port())]), no);
    assert_eq!(matched([both(elsewhere(), to())]), no);
    assert_eq!(matched([either(vec![elsewhere(), from()])]), yes);
    assert_eq!(matched([either(vec![elsewhere(), Match::default()])]), no, "an empty match is skipped");
    let narrow = Match { destination_ports: other_port().destination_ports, ..from() };
    assert_eq!(matched([one(narrow)]), no);
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address() {
    let own: Identity = "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap();
    let client: IpAddr = "::ffff:10.0.0.9".parse().unwrap();
    let source = Source::Stranger(client, Origin::Remote);
    let destination = "[::ffff:10.0.0.1]:80".parse().unwrap();
    let seen = Seen::of(&Facts { source: &source, client, own: &own, hop: Hop::Application, destination });
    let wanted = Match {
        source_ips: Field::any([range("10.0.0.0/24")]),
        destination_ips: Field::any([range("10.0.0.1/32")]),
        ..Match::default()
    };
    assert!(seen.one(&wanted));
}
