//! Whether the table in a namespace is the one we would write.
//!
//! Every rule carries a fingerprint of its chain, place, schema and text in its comment. Comparing those and what each
//! rule does at its end is steady across `nft` versions, which differ in how they list the conditions in between.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    Ruleset, SCHEMA, TABLE,
    rule::{Action, Chain},
};

/// The answer of [`Ruleset::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The table is the one we would write.
    Matches,
    /// It is not, or not there at all; the text says what was seen first.
    Differs(String),
}

impl Ruleset {
    /// Compares with what `nft -j list table` printed.
    #[must_use]
    pub fn verify(&self, listing: &str) -> Verified {
        match self.compare(listing) {
            Ok(()) => Verified::Matches,
            Err(difference) => Verified::Differs(difference),
        }
    }

    fn compare(&self, listing: &str) -> Result<(), String> {
        let listing: Value = serde_json::from_str(listing).map_err(|error| format!("listing is no JSON: {error}"))?;
        let objects = listing.get("nftables").and_then(Value::as_array).ok_or("listing has no objects")?;
        let ours = |kind: &'static str| {
            objects
                .iter()
                .filter_map(move |object| object.get(kind))
                .filter(|object| text(object, "family") == "inet" && text(object, "table") == TABLE)
        };
        let chains: Vec<&Value> = ours("chain").collect();
        if chains.len() != self.chains.len() {
            return Err(format!("{} chains instead of {}", chains.len(), self.chains.len()));
        }
        for chain in &self.chains {
            let name = chain.name;
            let listed = chains.iter().find(|listed| text(listed, "name") == name);
            chain.compare(listed.ok_or_else(|| format!("chain {name} is missing"))?)?;
            let rules: Vec<&Value> = ours("rule").filter(|rule| text(rule, "chain") == name).collect();
            chain.compare_rules(&rules)?;
        }
        Ok(())
    }
}

impl Chain {
    /// What each rule's comment says: the schema, and a digest of everything that the rule depends on.
    pub(super) fn comments(&self) -> impl Iterator<Item = String> {
        let place = format!("{} {} {} {}", self.name, self.kind.name(), self.hook.name(), self.priority);
        self.rules.iter().enumerate().map(move |(position, rule)| {
            let digest = Sha256::digest(format!("{SCHEMA} {place} {position} {rule}"));
            let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("{TABLE} {SCHEMA} {digest}")
        })
    }

    fn compare(&self, listed: &Value) -> Result<(), String> {
        let priority = listed.get("prio").and_then(Value::as_i64);
        let same = text(listed, "type") == self.kind.name()
            && text(listed, "hook") == self.hook.name()
            && priority == Some(self.priority.into())
            && text(listed, "policy") == "accept";
        if same { Ok(()) } else { Err(format!("chain {} hangs elsewhere", self.name)) }
    }

    fn compare_rules(&self, listed: &[&Value]) -> Result<(), String> {
        if listed.len() != self.rules.len() {
            return Err(format!("chain {} has {} rules instead of {}", self.name, listed.len(), self.rules.len()));
        }
        for ((rule, comment), listed) in self.rules.iter().zip(self.comments()).zip(listed) {
            let last = listed.get("expr").and_then(Value::as_array).and_then(|statements| statements.last());
            if text(listed, "comment") != comment || !last.is_some_and(|last| rule.action.is(last)) {
                return Err(format!("chain {} lacks the rule: {rule}", self.name));
            }
        }
        Ok(())
    }
}

impl Action {
    fn is(&self, statement: &Value) -> bool {
        let value = |pointer: &str| statement.pointer(pointer).and_then(Value::as_u64);
        let conntrack = |key: &str| statement.pointer("/mangle/key/ct/key").and_then(Value::as_str) == Some(key);
        match self {
            Self::Accept => statement.get("accept").is_some(),
            Self::Notrack => statement.get("notrack").is_some(),
            Self::Redirect(port) => value("/redirect/port") == Some((*port).into()),
            Self::SetConnectionMark(mark) => conntrack("mark") && value("/mangle/value") == Some((*mark).into()),
            Self::SetOriginalZone(zone) => conntrack("zone") && value("/mangle/value") == Some((*zone).into()),
            Self::SetPacketMark(mark) => {
                statement.pointer("/mangle/key/meta").is_some() && value("/mangle/value") == Some((*mark).into())
            }
        }
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}
