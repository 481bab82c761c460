//! `/connections`: who speaks to whom right now.

use std::{collections::HashMap, sync::atomic::Ordering};

use serde_json::{Value, json};

use crate::account::{Accounts, Live, Party};

/// Connections on a page unless asked otherwise.
const USUAL: usize = 100;
/// Connections on a page at most.
const MOST: usize = 1000;

/// A question that cannot be answered.
#[derive(Debug, thiserror::Error)]
#[error("{name} {value:?} is no number: use ?after=NUMBER&limit=1..{MOST}")]
pub(super) struct QueryError {
    name: &'static str,
    value: String,
}

/// One page, oldest first; `next` is where the next one begins (`?after=`), if there may be one.
pub(super) fn page(accounts: &Accounts, query: &HashMap<String, String>) -> Result<Value, QueryError> {
    let after = number(query, "after")?.unwrap_or(0);
    let limit = number(query, "limit")?.map_or(USUAL, |limit| usize::try_from(limit).unwrap_or(MOST));
    let limit = limit.clamp(1, MOST);
    let connections = accounts.page(after, limit);
    let next = connections.last().filter(|_| connections.len() == limit).map(|last| last.number);
    Ok(json!({
        "live": accounts.live(),
        "connections": connections.iter().map(|live| one(live)).collect::<Vec<_>>(),
        "next": next,
    }))
}

fn number(query: &HashMap<String, String>, name: &'static str) -> Result<Option<u64>, QueryError> {
    let Some(value) = query.get(name) else { return Ok(None) };
    value.parse().map(Some).map_err(|_| QueryError { name, value: value.clone() })
}

fn one(live: &Live) -> Value {
    let story = live.established.get().map(|established| &established.story);
    let age = live.opened.elapsed();
    json!({
        "number": live.number,
        "direction": live.direction.label(),
        "age_ms": u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        "state": if story.is_some() { "established" } else { "connecting" },
        "source": story.map_or_else(|| json!({"address": live.client.to_string()}), |story| end(&story.source)),
        "destination": story.map(|story| end(&story.destination)),
        "hbone_address": story.and_then(|story| story.hbone_addr).map(|addr| addr.to_string()),
        "service": story.and_then(|story| story.service.as_ref()).map(|service| service.name.to_string()),
        "bytes_sent": live.meter.from_downstream.load(Ordering::Relaxed),
        "bytes_received": live.meter.to_downstream.load(Ordering::Relaxed),
    })
}

fn end(party: &Party) -> Value {
    let workload = party.workload.as_deref();
    json!({
        "address": party.addr.map(|addr| addr.to_string()),
        "namespace": workload.map(|workload| &*workload.namespace),
        "workload": workload.map(|workload| &*workload.name),
        "identity": party.identity.as_ref().map(ToString::to_string),
    })
}
