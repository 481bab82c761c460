//! What must hold for whatever policies there are.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use proptest::{collection::vec, prelude::*, sample::select};
use underpass_model::Identity;
use underpass_policy::{
    Action, Clause, Denial, Facts, Field, Hop, Match, Origin, Pattern, Permit, Policy, PolicyName, PolicySet, Rule,
    Scope, ServiceAccount, Source,
};

const ACCOUNTS: [&str; 3] = ["web", "job", "db"];

fn pattern() -> impl Strategy<Value = Pattern> {
    let text = select(vec!["", "shop", "cluster.local/ns/shop/sa/web", "cluster.local/", "web", "sh"]);
    prop_oneof![
        text.clone().prop_map(|text| Pattern::Exact(text.into())),
        text.clone().prop_map(|text| Pattern::Prefix(text.into())),
        text.prop_map(|text| Pattern::Suffix(text.into())),
        Just(Pattern::Presence),
    ]
}

fn field<T: std::fmt::Debug>(value: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Field<T>> {
    (vec(value.clone(), 0..2), vec(value, 0..2))
        .prop_map(|(any, none)| Field { any: any.into_iter().collect(), none: none.into_iter().collect() })
}

prop_compose! {
    fn a_match()(
        namespaces in field(pattern().boxed()),
        principals in field(pattern().boxed()),
        service_accounts in field(select(ACCOUNTS.to_vec()).prop_map(|name| ServiceAccount { namespace: "shop".into(), name: name.into() }).boxed()),
        source_ips in field(select(vec!["10.0.0.0/8", "192.0.2.0/24"]).prop_map(|range| range.parse().unwrap()).boxed()),
        destination_ports in field(select(vec![80_u16, 443]).boxed()),
        chosen in any::<[bool; 5]>(),
    ) -> Match {
        // Mostly one or two fields, else nothing ever matches.
        let [with_namespaces, with_principals, with_accounts, with_ips, with_ports] = chosen;
        Match {
            namespaces: if with_namespaces && with_ips { namespaces } else { Field::default() },
            principals: if with_principals && with_ports { principals } else { Field::default() },
            service_accounts: if with_accounts { service_accounts } else { Field::default() },
            source_ips: if with_ips { source_ips } else { Field::default() },
            destination_ports: if with_ports { destination_ports } else { Field::default() },
            destination_ips: Field::default(),
        }
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let clause = prop_oneof![
        1 => Just(Clause::Open),
        4 => vec(a_match(), 0..3).prop_map(|matches| Clause::Matches(matches.into_iter().collect())),
    ];
    vec(clause, 0..3).prop_map(|clauses| Rule { clauses: clauses.into_iter().collect() })
}

prop_compose! {
    fn policy()(
        name in "[a-d]",
        action in prop_oneof![4 => Just(Action::Allow), 4 => Just(Action::Deny), 1 => Just(Action::Refuse)],
        rules in vec(rule(), 0..3),
        dry_run in prop::bool::weighted(0.2),
    ) -> Policy {
        Policy { name: PolicyName::new("shop", &name), scope: Scope::Named, action, rules: rules.into_iter().collect(), dry_run }
    }
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        select(ACCOUNTS.to_vec()).prop_map(|account| Source::Peer(identity(account))),
        Just(Source::Stranger("192.0.2.7".parse().unwrap(), Origin::Remote)),
        Just(Source::Stranger("192.0.2.7".parse().unwrap(), Origin::Host)),
    ]
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn judge(policies: &[Policy], source: &Source, port: u16) -> Result<Permit, Denial> {
    let own = identity("own");
    let destination = (std::net::Ipv4Addr::new(10, 0, 0, 1), port).into();
    let facts = Facts { source, client: "192.0.2.7".parse().unwrap(), own: &own, hop: Hop::Application, destination };
    let mut thirds: [Vec<Arc<Policy>>; 3] = Default::default();
    for (index, policy) in policies.iter().enumerate() {
        thirds.get_mut(index % 3).unwrap().push(Arc::new(policy.clone()));
    }
    let [mesh, namespace, named] = thirds;
    PolicySet::new(mesh.into(), namespace.into()).with_named(named.into_iter().map(Ok)).authorize(&facts)
}

proptest! {
    #[test]
    fn adding_a_deny_never_allows_more(policies in vec(policy(), 0..5), more in policy(), source in source(), port in select(vec![80_u16, 443, 1])) {
        for action in [Action::Deny, Action::Refuse] {
            let mut with = policies.clone();
            with.push(Policy { action, ..more.clone() });
            prop_assert!(judge(&policies, &source, port).is_ok() || judge(&with, &source, port).is_err());
        }
    }

    #[test]
    fn a_further_allow_never_stops_what_an_allow_let_pass(policies in vec(policy(), 0..5), more in policy(), source in source()) {
        let before = judge(&policies, &source, 80);
        if before.is_ok_and(|permit| permit.policy().is_some()) {
            let mut with = policies;
            with.push(Policy { action: Action::Allow, ..more });
            prop_assert!(judge(&with, &source, 80).is_ok());
        }
    }

    #[test]
    fn order_and_place_mean_nothing(policies in vec(policy(), 0..6).prop_shuffle(), source in source(), turn in 0..6_usize) {
        let straight = judge(&policies, &source, 80);
        let mut turned = policies.clone();
        turned.reverse();
        turned.rotate_left(turn.min(policies.len()));
        prop_assert_eq!(straight, judge(&turned, &source, 80));
    }

    #[test]
    fn dry_run_changes_nothing_that_is_enforced(policies in vec(policy(), 0..6), source in source()) {
        let enforced: Vec<Policy> = policies.iter().filter(|policy| !policy.dry_run).cloned().collect();
        let (with, without) = (judge(&policies, &source, 80), judge(&enforced, &source, 80));
        prop_assert_eq!(with.is_ok(), without.is_ok());
        let all: Vec<Policy> = policies.iter().map(|policy| Policy { dry_run: false, ..policy.clone() }).collect();
        let told = match &with {
            Ok(permit) => permit.dry_run().is_none(),
            Err(denial) => denial.refusal().unwrap().dry_run_allows,
        };
        prop_assert_eq!(told, judge(&all, &source, 80).is_ok());
    }

    #[test]
    fn an_unknown_policy_never_allows_more(policies in vec(policy(), 0..5), source in source()) {
        let own = identity("own");
        let destination = "10.0.0.1:80".parse().unwrap();
        let facts = Facts { source: &source, client: "192.0.2.7".parse().unwrap(), own: &own, hop: Hop::Application, destination };
        let named = policies.into_iter().map(|policy| Ok(Arc::new(policy))).chain([Err(PolicyName::new("shop", "x"))]);
        prop_assert!(PolicySet::default().with_named(named).authorize(&facts).is_err());
    }
}
