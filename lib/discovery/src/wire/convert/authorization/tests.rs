use super::*;
use wire::string_match::MatchType;

fn message(change: impl FnOnce(&mut wire::Match)) -> wire::Authorization {
    let mut wanted = wire::Match::default();
    change(&mut wanted);
    wire::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: wire::Scope::WorkloadSelector.into(),
        action: wire::Action::Deny.into(),
        rules: vec![wire::Rule { clauses: vec![wire::Clause { matches: vec![wanted] }] }],
        ..wire::Authorization::default()
    }
}

#[test]
fn refuses_what_it_does_not_understand_by_name_field_and_reason() {
    type Break = fn(&mut wire::Match);
    let range = |length| wire::Address { address: vec![10, 0, 0, 0], length };
    let rows: [(Break, &str, &str); 8] = [
        (|m| m.destination_ports.push(0), "destination_ports", "port"),
        (|m| m.not_destination_ports.push(65536), "not_destination_ports", "port"),
        (|m| m.source_ips.push(wire::Address { address: vec![1], length: 0 }), "source_ips", "address_length"),
        (
            |m| m.not_destination_ips.push(wire::Address { address: vec![1; 4], length: 33 }),
            "not_destination_ips",
            "prefix_length",
        ),
        (|m| m.principals.push(wire::StringMatch::default()), "principals", "empty"),
        (|m| m.not_namespaces.push(wire::StringMatch::default()), "not_namespaces", "empty"),
        (|m| m.service_accounts.push(wire::ServiceAccountMatch::default()), "service_accounts", "empty"),
        (|m| m.extensions.push(crate::wire::workload::Extension::default()), "extensions", "unknown_extension"),
    ];
    for (change, field, reason) in rows {
        let error = policy_from_wire(&message(change)).unwrap_err();
        assert_eq!((&*error.resource, error.field, error.reason()), ("policy shop/p", field, reason));
    }
    assert!(policy_from_wire(&message(|m| m.source_ips.push(range(8)))).is_ok());
    type BreakAll = fn(&mut wire::Authorization);
    let rows: [(BreakAll, &str, &str); 5] = [
        (|a| a.scope = 3, "scope", "unknown_value"),
        (|a| a.action = 2, "action", "unknown_value"),
        (|a| a.name.clear(), "name", "empty"),
        (|a| a.namespace.clear(), "namespace", "empty"),
        (|a| a.namespace = "a/b".into(), "namespace", "form"),
    ];
    for (change, field, reason) in rows {
        let mut message = message(|_| ());
        change(&mut message);
        let error = policy_from_wire(&message).unwrap_err();
        assert_eq!((error.field, error.reason()), (field, reason));
    }
}

#[test]
fn what_cannot_be_read_refuses_where_it_applies() {
    let mut broken = message(|_| ());
    broken.action = 9;
    let stands = policy_unread("shop/p", Some(&broken)).unwrap();
    assert_eq!((stands.action, stands.scope, stands.name.as_str()), (Action::Refuse, Scope::Named, "shop/p"));
    broken.scope = 9;
    assert_eq!(policy_unread("shop/p", Some(&broken)).unwrap().scope, Scope::Namespace);
    assert_eq!(policy_unread("shop/q", None).unwrap(), Policy::refuse(PolicyName::new("shop", "q"), Scope::Namespace));
    broken.dry_run = true;
    assert!(policy_unread("shop/p", Some(&broken)).unwrap().dry_run, "a rehearsal closes nothing");
    assert_eq!(policy_unread("nonsense", None), None);
    let written = policy_to_wire(&stands);
    let read = policy_from_wire(&written).unwrap();
    assert_eq!((read.action, read.rules.iter().count()), (Action::Deny, 1), "written it denies everything");
}

#[test]
fn principals_are_compared_without_their_scheme() {
    let exact = |text: &str| wire::StringMatch { match_type: Some(MatchType::Exact(text.into())) };
    let read = policy_from_wire(&message(|m| m.principals = vec![exact("spiffe://a/ns/b/sa/c"), exact("a/ns/b/sa/d")]));
    let rules = read.unwrap().rules;
    let expected = Match {
        principals: Field::any(["a/ns/b/sa/c", "a/ns/b/sa/d"].map(|text| Pattern::Exact(text.into()))),
        ..Match::default()
    };
    let clause = rules.iter().next().and_then(|rule| rule.clauses.iter().next().cloned());
    assert_eq!(clause, Some(Clause::Matches(AnyOf::from_iter([expected]))));
}

#[test]
fn a_clause_of_no_match_holds_always_on_the_wire_and_never_here() {
    let mut open = message(|_| ());
    open.rules = vec![wire::Rule { clauses: vec![wire::Clause::default()] }];
    let rules = policy_from_wire(&open).unwrap().rules;
    assert_eq!(rules.iter().next().and_then(|rule| rule.clauses.iter().next()), Some(&Clause::Open));
    let never = Rule { clauses: [Clause::Matches(AnyOf::default())].into_iter().collect() };
    let written = rule_to_wire(&never);
    assert_eq!(written.clauses, [wire::Clause { matches: vec![wire::Match::default()] }]);
}
