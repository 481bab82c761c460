//! Whether a policy's words are true of a connection.

use std::{net::IpAddr, sync::Arc};

use underpass_model::Identity;

use crate::{
    facts::Facts,
    rule::{Clause, Match, Policy, Rule, ServiceAccount},
};

/// What a text must look like.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// Exactly this.
    Exact(Arc<str>),
    /// Beginning with this.
    Prefix(Arc<str>),
    /// Anything but nothing.
    Presence,
    /// Ending with this.
    Suffix(Arc<str>),
}

/// A connection as policies see it. Texts are made once for all policies.
pub(crate) struct Seen<'a> {
    /// Without `spiffe://`; empty for plaintext.
    principal: String,
    /// Empty for plaintext.
    namespace: &'a str,
    service_account: Option<(&'a str, &'a str)>,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl Pattern {
    /// Whether a text looks like it.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Presence => !text.is_empty(),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
        }
    }
}

impl<'a> Seen<'a> {
    pub(crate) fn of(facts: &Facts<'a>) -> Self {
        let identity = facts.source.identity();
        Self {
            principal: identity.map(principal).unwrap_or_default(),
            namespace: identity.map_or("", Identity::namespace),
            service_account: identity.map(|identity| (identity.namespace(), identity.service_account())),
            source: facts.client.to_canonical(),
            destination: facts.destination.ip().to_canonical(),
            port: facts.destination.port(),
        }
    }

    pub(crate) fn is_matched_by(&self, policy: &Policy) -> bool {
        policy.rules.holds(|rule| self.rule(rule))
    }

    fn rule(&self, rule: &Rule) -> bool {
        rule.clauses.hold(|clause| match clause {
            Clause::Matches(matches) => matches.holds(|one| self.one(one)),
            Clause::Open => true,
        })
    }

    fn one(&self, wanted: &Match) -> bool {
        let account = |account: &ServiceAccount| self.service_account == Some((&*account.namespace, &*account.name));
        !wanted.is_empty()
            && wanted.namespaces.holds(|pattern| pattern.matches(self.namespace))
            && wanted.principals.holds(|pattern| pattern.matches(&self.principal))
            && wanted.service_accounts.holds(account)
            && wanted.source_ips.holds(|range| range.contains(&self.source))
            && wanted.destination_ips.holds(|range| range.contains(&self.destination))
            && wanted.destination_ports.holds(|port| *port == self.port)
    }
}

/// An identity as policies spell it.
fn principal(identity: &Identity) -> String {
    format!("{}/ns/{}/sa/{}", identity.trust_domain(), identity.namespace(), identity.service_account())
}

#[cfg(test)]
mod tests;
