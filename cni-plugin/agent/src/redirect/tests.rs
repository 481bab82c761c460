use super::*;

fn redirect(phase: Phase) -> Redirect {
    Redirect { exclusions: Exclusions::default(), phase }
}

const KEPT: &str = r#"table inet underpass
  chain raw_prerouting: type filter hook prerouting priority -300
    iifname != "lo" tcp dport 15008 notrack
    iifname != "lo" tcp sport 15008 socket mark & 0xfff == 0x539 notrack
  chain raw_output: type filter hook output priority -300
    oifname "lo" meta l4proto tcp meta mark & 0xfff == 0x539 ct original zone set 1
    oifname != "lo" meta mark & 0xfff == 0x539 tcp sport 15008 notrack
    oifname != "lo" meta mark & 0xfff == 0x539 tcp dport 15008 tcp sport != { 15001, 15006 } notrack
  chain mark_prerouting: type filter hook prerouting priority -150
    iifname "lo" meta l4proto tcp meta mark & 0xfff == 0x539 ct direction original ct mark set 0x111
  chain mark_output: type route hook output priority -150
    ct mark & 0xfff == 0x111 meta mark & 0xfff != 0x539 meta mark set 0x111
"#;

#[test]
fn a_captured_pod_has_these_rules() {
    let expected = format!(
        "{KEPT}{}",
        r#"  chain inbound: type nat hook prerouting priority -100
    iifname != "lo" meta mark & 0xfff != 0x539 tcp flags & (fin | syn | rst | ack) == syn tcp dport != 15008 socket transparent { 0, 1 } redirect to :15006
  chain outbound: type nat hook output priority -100
    oifname != "lo" meta mark & 0xfff != { 0x111, 0x539 } tcp flags & (fin | syn | rst | ack) == syn redirect to :15001
"#
    );
    assert_eq!(redirect(Phase::Captured).ruleset().to_string(), expected);
}

#[test]
fn a_draining_pod_keeps_everything_but_the_redirects() {
    let expected = format!(
        "{KEPT}  chain inbound: type nat hook prerouting priority -100\n  chain outbound: type nat hook output priority -100\n"
    );
    let ruleset = redirect(Phase::Draining).ruleset();
    assert_eq!(ruleset.to_string(), expected);
    let refers = |rule: &Rule| matches!(rule.action, Action::SetConnectionMark(_));
    assert!(ruleset.chains.iter().any(|chain| chain.rules.iter().any(refers)), "tracking must stay switched on");
}

#[test]
fn exclusions_come_before_the_redirect_of_their_direction() {
    let mut captured = redirect(Phase::Captured);
    captured.exclusions.inbound = Excluded {
        ports: [22, 9090].into(),
        v4: vec!["192.0.2.0/24".parse().unwrap()],
        v6: vec!["2001:db8::/32".parse().unwrap()],
    };
    captured.exclusions.outbound.ports = [3306].into();
    captured.exclusions.outbound.v4 = vec!["169.254.169.254/32".parse().unwrap()];
    let text = captured.ruleset().to_string();
    let nat = text.split_once("  chain inbound").unwrap().1;
    assert_eq!(
        nat,
        r#": type nat hook prerouting priority -100
    tcp dport { 22, 9090 } accept
    ip saddr 192.0.2.0/24 accept
    ip6 saddr 2001:db8::/32 accept
    iifname != "lo" meta mark & 0xfff != 0x539 tcp flags & (fin | syn | rst | ack) == syn tcp dport != 15008 socket transparent { 0, 1 } redirect to :15006
  chain outbound: type nat hook output priority -100
    tcp dport 3306 accept
    ip daddr 169.254.169.254/32 accept
    oifname != "lo" meta mark & 0xfff != { 0x111, 0x539 } tcp flags & (fin | syn | rst | ack) == syn redirect to :15001
"#
    );
}

/// A listing as `nft` prints it: the batch's objects without their commands.
fn listing(ruleset: &Ruleset) -> serde_json::Value {
    let batch = ruleset.batch().unwrap();
    let objects = batch["nftables"].as_array().unwrap().iter().skip(2).map(|command| command["add"].clone());
    serde_json::json!({ "nftables": objects.collect::<Vec<_>>() })
}

#[test]
fn what_we_write_is_what_we_expect_to_read() {
    for phase in [Phase::Captured, Phase::Draining] {
        let ruleset = redirect(phase).ruleset();
        assert_eq!(ruleset.verify(&listing(&ruleset).to_string()), Verified::Matches);
    }
}

#[test]
fn any_other_table_differs() {
    let ruleset = redirect(Phase::Captured).ruleset();
    let differs = |listing: &serde_json::Value| matches!(ruleset.verify(&listing.to_string()), Verified::Differs(_));
    assert!(differs(&listing(&redirect(Phase::Draining).ruleset())), "another phase");
    let mut excluding = redirect(Phase::Captured);
    excluding.exclusions.outbound.ports = [3306].into();
    assert!(differs(&listing(&excluding.ruleset())), "other exclusions");
    assert!(differs(&serde_json::json!({ "nftables": [] })), "no table");
    assert!(matches!(ruleset.verify("nonsense"), Verified::Differs(_)), "no listing");

    let whole = listing(&ruleset);
    let count = whole["nftables"].as_array().unwrap().len();
    for position in 1..count {
        let mut lacking = whole.clone();
        lacking["nftables"].as_array_mut().unwrap().remove(position);
        assert!(differs(&lacking), "object {position} is missing");
    }
    let mut elsewhere = whole;
    let last = elsewhere["nftables"].as_array_mut().unwrap().last_mut().unwrap();
    *last.pointer_mut("/rule/expr/3/redirect/port").unwrap() = 15009.into();
    assert!(differs(&elsewhere), "a redirect to another port under our comment");
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_listings_never_match_and_never_panic(listing in ".*", key in "[a-z]{1,9}", text in ".*") {
            let ruleset = redirect(Phase::Captured).ruleset();
            prop_assert!(ruleset.verify(&listing) != Verified::Matches);
            let odd = serde_json::json!({ "nftables": [{ key: { "family": "inet", "table": TABLE, "chain": text } }, text, 7] });
            prop_assert!(ruleset.verify(&odd.to_string()) != Verified::Matches);
        }

        #[test]
        fn any_single_change_of_a_rule_is_seen(position in 7_usize..14, comment in "[ -~]{0,40}") {
            let ruleset = redirect(Phase::Captured).ruleset();
            let mut listing = listing(&ruleset);
            let objects = listing["nftables"].as_array_mut().unwrap();
            let position = position.min(objects.len() - 1);
            if let Some(rule) = objects[position].get_mut("rule") {
                rule["comment"] = comment.into();
                prop_assert!(ruleset.verify(&listing.to_string()) != Verified::Matches);
            }
        }
    }
}
