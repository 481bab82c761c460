//! Authorization policies.
//!
//! Unlike other resources, one that is not understood must not simply be left out: then everything would pass that it
//! stops. [`policy_unread`] makes of it a policy that stops everything where it applies.

use ipnet::IpNet;
use underpass_policy::{Action, AnyOf, Clause, Field, Match, Pattern, Policy, PolicyName, Rule, Scope, ServiceAccount};

use super::{
    ConvertError, Problem, Wrong,
    address::{ip_to_wire, range},
    shorten,
};
use crate::wire::security as wire;

/// The scheme that policies leave out of identities.
const SCHEME: &str = "spiffe://";

/// Reads a policy.
///
/// # Errors
/// [`ConvertError`] if any part of it cannot be understood.
pub fn policy_from_wire(message: &wire::Authorization) -> Result<Policy, ConvertError> {
    parse(message).map_err(|wrong| wrong.of(&format!("policy {}/{}", message.namespace, message.name)))
}

/// What stands for a policy that cannot be read; `None` if not even its name can. Without a message only the name by
/// which it came is known.
#[must_use]
pub fn policy_unread(name: &str, message: Option<&wire::Authorization>) -> Option<Policy> {
    let name = match message {
        Some(message) => self::name(message).ok()?,
        None => PolicyName::parse(name)?,
    };
    // Where it applies may be what is not known: then at least to its namespace, and to those who name it.
    let scope = message.and_then(|message| scope(message.scope).ok()).unwrap_or(Scope::Namespace);
    let dry_run = message.is_some_and(|message| message.dry_run);
    Some(Policy { dry_run, ..Policy::refuse(name, scope) })
}

fn parse(message: &wire::Authorization) -> Result<Policy, Wrong> {
    Ok(Policy {
        name: name(message)?,
        scope: scope(message.scope)?,
        action: action(message.action)?,
        rules: message.rules.iter().map(rule).collect::<Result<_, _>>()?,
        dry_run: message.dry_run,
    })
}

fn name(message: &wire::Authorization) -> Result<PolicyName, Wrong> {
    for (field, text) in [("name", &message.name), ("namespace", &message.namespace)] {
        if text.is_empty() {
            return Err(Wrong::new(field, Problem::Empty));
        }
    }
    if message.namespace.contains('/') {
        return Err(Wrong::new("namespace", Problem::Form(shorten(&message.namespace))));
    }
    Ok(PolicyName::new(&message.namespace, &message.name))
}

fn scope(number: i32) -> Result<Scope, Wrong> {
    match wire::Scope::try_from(number) {
        Ok(wire::Scope::Global) => Ok(Scope::Mesh),
        Ok(wire::Scope::Namespace) => Ok(Scope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(Scope::Named),
        Err(_) => Err(Wrong::new("scope", Problem::Unknown(number))),
    }
}

fn action(number: i32) -> Result<Action, Wrong> {
    match wire::Action::try_from(number) {
        Ok(wire::Action::Allow) => Ok(Action::Allow),
        Ok(wire::Action::Deny) => Ok(Action::Deny),
        Err(_) => Err(Wrong::new("action", Problem::Unknown(number))),
    }
}

fn rule(message: &wire::Rule) -> Result<Rule, Wrong> {
    Ok(Rule { clauses: message.clauses.iter().map(clause).collect::<Result<_, _>>()? })
}

fn clause(message: &wire::Clause) -> Result<Clause, Wrong> {
    if message.matches.is_empty() {
        return Ok(Clause::Open);
    }
    message.matches.iter().map(one).collect::<Result<_, _>>().map(Clause::Matches)
}

fn one(message: &wire::Match) -> Result<Match, Wrong> {
    if let Some(extension) = message.extensions.first() {
        return Err(Wrong::new("extensions", Problem::Extension(shorten(&extension.name))));
    }
    Ok(Match {
        namespaces: Field {
            any: patterns("namespaces", &message.namespaces)?,
            none: patterns("not_namespaces", &message.not_namespaces)?,
        },
        principals: Field {
            any: patterns("principals", &message.principals)?,
            none: patterns("not_principals", &message.not_principals)?,
        },
        service_accounts: Field {
            any: accounts("service_accounts", &message.service_accounts)?,
            none: accounts("not_service_accounts", &message.not_service_accounts)?,
        },
        source_ips: Field {
            any: ranges("source_ips", &message.source_ips)?,
            none: ranges("not_source_ips", &message.not_source_ips)?,
        },
        destination_ips: Field {
            any: ranges("destination_ips", &message.destination_ips)?,
            none: ranges("not_destination_ips", &message.not_destination_ips)?,
        },
        destination_ports: Field {
            any: ports("destination_ports", &message.destination_ports)?,
            none: ports("not_destination_ports", &message.not_destination_ports)?,
        },
    })
}

fn patterns(field: &'static str, messages: &[wire::StringMatch]) -> Result<AnyOf<Pattern>, Wrong> {
    let bare = |text: &str| text.strip_prefix(SCHEME).unwrap_or(text).into();
    let pattern = |message: &wire::StringMatch| match &message.match_type {
        Some(wire::string_match::MatchType::Exact(text)) => Ok(Pattern::Exact(bare(text))),
        Some(wire::string_match::MatchType::Prefix(text)) => Ok(Pattern::Prefix(bare(text))),
        Some(wire::string_match::MatchType::Presence(())) => Ok(Pattern::Presence),
        Some(wire::string_match::MatchType::Suffix(text)) => Ok(Pattern::Suffix(text.as_str().into())),
        None => Err(Wrong::new(field, Problem::Empty)),
    };
    messages.iter().map(pattern).collect()
}

fn accounts(field: &'static str, messages: &[wire::ServiceAccountMatch]) -> Result<AnyOf<ServiceAccount>, Wrong> {
    let account = |message: &wire::ServiceAccountMatch| {
        if message.namespace.is_empty() || message.service_account.is_empty() {
            return Err(Wrong::new(field, Problem::Empty));
        }
        Ok(ServiceAccount {
            namespace: message.namespace.as_str().into(),
            name: message.service_account.as_str().into(),
        })
    };
    messages.iter().map(account).collect()
}

fn ranges(field: &'static str, messages: &[wire::Address]) -> Result<AnyOf<IpNet>, Wrong> {
    messages.iter().map(|message| range(field, &message.address, message.length)).collect()
}

fn ports(field: &'static str, numbers: &[u32]) -> Result<AnyOf<u16>, Wrong> {
    let port = |&number: &u32| {
        let port = u16::try_from(number).ok().filter(|&port| port != 0);
        port.ok_or_else(|| Wrong::new(field, Problem::Port(number)))
    };
    numbers.iter().map(port).collect()
}

/// Writes a policy. One that was not understood becomes a deny of everything.
#[must_use]
pub fn policy_to_wire(policy: &Policy) -> wire::Authorization {
    let scope = match policy.scope {
        Scope::Mesh => wire::Scope::Global,
        Scope::Named => wire::Scope::WorkloadSelector,
        Scope::Namespace => wire::Scope::Namespace,
    };
    let (action, rules) = match policy.action {
        Action::Allow => (wire::Action::Allow, policy.rules.iter().map(rule_to_wire).collect()),
        Action::Deny => (wire::Action::Deny, policy.rules.iter().map(rule_to_wire).collect()),
        Action::Refuse => (wire::Action::Deny, vec![rule_to_wire(&Rule::open())]),
    };
    wire::Authorization {
        name: policy.name.name().to_owned(),
        namespace: policy.name.namespace().to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules,
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
}

fn rule_to_wire(rule: &Rule) -> wire::Rule {
    let clause = |clause: &Clause| match clause {
        Clause::Open => wire::Clause::default(),
        // Without matches the clause would hold always; an empty match holds never.
        Clause::Matches(matches) if matches.is_empty() => wire::Clause { matches: vec![wire::Match::default()] },
        Clause::Matches(matches) => wire::Clause { matches: matches.iter().map(match_to_wire).collect() },
    };
    wire::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn match_to_wire(wanted: &Match) -> wire::Match {
    let ports = |ports: &AnyOf<u16>| ports.iter().map(|&port| port.into()).collect();
    wire::Match {
        namespaces: patterns_to_wire(&wanted.namespaces.any),
        not_namespaces: patterns_to_wire(&wanted.namespaces.none),
        principals: patterns_to_wire(&wanted.principals.any),
        not_principals: patterns_to_wire(&wanted.principals.none),
        source_ips: ranges_to_wire(&wanted.source_ips.any),
        not_source_ips: ranges_to_wire(&wanted.source_ips.none),
        destination_ips: ranges_to_wire(&wanted.destination_ips.any),
        not_destination_ips: ranges_to_wire(&wanted.destination_ips.none),
        destination_ports: ports(&wanted.destination_ports.any),
        not_destination_ports: ports(&wanted.destination_ports.none),
        service_accounts: accounts_to_wire(&wanted.service_accounts.any),
        not_service_accounts: accounts_to_wire(&wanted.service_accounts.none),
        extensions: Vec::new(),
    }
}

fn patterns_to_wire(patterns: &AnyOf<Pattern>) -> Vec<wire::StringMatch> {
    use wire::string_match::MatchType;
    // Who reads it takes the scheme away once, also from a text that begins with it by itself.
    let full = |text: &str| if text.starts_with(SCHEME) { format!("{SCHEME}{text}") } else { text.to_owned() };
    let pattern = |pattern: &Pattern| match pattern {
        Pattern::Exact(text) => MatchType::Exact(full(text)),
        Pattern::Prefix(text) => MatchType::Prefix(full(text)),
        Pattern::Presence => MatchType::Presence(()),
        Pattern::Suffix(text) => MatchType::Suffix(text.to_string()),
    };
    patterns.iter().map(|one| wire::StringMatch { match_type: Some(pattern(one)) }).collect()
}

fn ranges_to_wire(ranges: &AnyOf<IpNet>) -> Vec<wire::Address> {
    let range =
        |range: &IpNet| wire::Address { address: ip_to_wire(range.network()), length: range.prefix_len().into() };
    ranges.iter().map(range).collect()
}

fn accounts_to_wire(accounts: &AnyOf<ServiceAccount>) -> Vec<wire::ServiceAccountMatch> {
    let account = |account: &ServiceAccount| wire::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.name.to_string(),
    };
    accounts.iter().map(account).collect()
}

#[cfg(test)]
mod tests;
