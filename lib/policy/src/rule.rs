//! A policy as a value: what it selects, what it says, about whom.
//!
//! ```text
//! policy = any of its rules      rule   = all of its clauses
//! clause = any of its matches    match  = all of its fields, and at least one
//! field  = any of its values, and none of its excluded values
//! ```

use std::{borrow::Borrow, fmt, sync::Arc};

use ipnet::IpNet;

use crate::matcher::Pattern;

/// `namespace/name` of a policy.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName(Arc<str>);

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// Which workloads it is about.
    pub scope: Scope,
    /// What it does with what it matches.
    pub action: Action,
    /// What it matches; without rules it matches nothing.
    pub rules: AnyOf<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

/// Which workloads a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All of the mesh.
    Mesh,
    /// Those of its namespace.
    Namespace,
    /// Those whose record names it.
    Named,
}

/// What a policy does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Lets it pass, and everything else not.
    Allow,
    /// Stops it, whatever others allow.
    Deny,
    /// What it asks for was not understood, so everything that it is about is stopped, whatever its rules say.
    Refuse,
}

/// Holds if one of them holds; of none, none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyOf<T>(Box<[T]>);

/// Holds if each of them holds; of none, nothing speaks against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllOf<T>(Box<[T]>);

/// Conditions that must hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub clauses: AllOf<Clause>,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clause {
    /// One of these matches.
    Matches(AnyOf<Match>),
    /// Always holds.
    Open,
}

/// Attributes of a connection. Fields that say nothing do not matter, but a match that says nothing at all matches
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The source's namespace.
    pub namespaces: Field<Pattern>,
    /// The source's identity, without `spiffe://`.
    pub principals: Field<Pattern>,
    /// The source's service account, in whatever trust domain.
    pub service_accounts: Field<ServiceAccount>,
    /// The address that the connection came from.
    pub source_ips: Field<IpNet>,
    /// The address that the connection is for.
    pub destination_ips: Field<IpNet>,
    /// The port on which the application listens.
    pub destination_ports: Field<u16>,
}

/// Values of which the attribute must be one, and values of which it must be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<T> {
    /// One of these, if there are any.
    pub any: AnyOf<T>,
    /// None of these.
    pub none: AnyOf<T>,
}

/// A service account by its parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PolicyName {
    /// Makes a name of its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// Takes `namespace/name` as it is.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty()).then(|| Self(text.into()))
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// All of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Policy {
    /// A policy of which no more is known than where it is: it stops everything there.
    #[must_use]
    pub fn refuse(name: PolicyName, scope: Scope) -> Self {
        Self { name, scope, action: Action::Refuse, rules: AnyOf::default(), dry_run: false }
    }
}

impl Rule {
    /// Matches every connection.
    #[must_use]
    pub fn open() -> Self {
        Self::default()
    }
}

impl Match {
    /// Nothing is said at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { namespaces, principals, service_accounts, source_ips, destination_ips, destination_ports } = self;
        namespaces.is_empty()
            && principals.is_empty()
            && service_accounts.is_empty()
            && source_ips.is_empty()
            && destination_ips.is_empty()
            && destination_ports.is_empty()
    }
}

impl<T> AnyOf<T> {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(crate) fn holds(&self, one: impl FnMut(&T) -> bool) -> bool {
        self.0.iter().any(one)
    }
}

impl<T> AllOf<T> {
    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(crate) fn hold(&self, one: impl FnMut(&T) -> bool) -> bool {
        self.0.iter().all(one)
    }
}

impl<T> Field<T> {
    /// One of these.
    pub fn any(values: impl IntoIterator<Item = T>) -> Self {
        Self { any: values.into_iter().collect(), none: AnyOf::default() }
    }

    /// None of these.
    pub fn none(values: impl IntoIterator<Item = T>) -> Self {
        Self { any: AnyOf::default(), none: values.into_iter().collect() }
    }

    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }

    pub(crate) fn holds(&self, mut one: impl FnMut(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.holds(&mut one)) && !self.none.holds(one)
    }
}

impl<T> Default for AnyOf<T> {
    fn default() -> Self {
        Self(Box::new([]))
    }
}

impl<T> Default for AllOf<T> {
    fn default() -> Self {
        Self(Box::new([]))
    }
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self { any: AnyOf::default(), none: AnyOf::default() }
    }
}

impl<T> FromIterator<T> for AnyOf<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl<T> FromIterator<T> for AllOf<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl<'a, T> IntoIterator for &'a AnyOf<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a AllOf<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Arc<str>> for PolicyName {
    /// Takes whatever somebody calls a policy.
    fn from(text: Arc<str>) -> Self {
        Self(text)
    }
}

impl Borrow<str> for PolicyName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
