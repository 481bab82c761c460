//! Patches applied to objects.

use serde_json::{Map, Value};

/// JSON merge patch (RFC 7396).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    combine(target, patch, false);
}

/// Strategic merge, and server-side apply as far as one writer is concerned: lists of conditions are merged by type.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    combine(target, patch, true);
}

fn combine(target: &mut Value, patch: &Value, by_type: bool) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else if by_type && name == "conditions" {
            conditions(fields.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new())), change);
        } else {
            combine(fields.entry(name.clone()).or_insert(Value::Null), change, by_type);
        }
    }
}

fn conditions(target: &mut Value, changes: &Value) {
    let (Value::Array(known), Value::Array(changes)) = (target, changes) else { return };
    for change in changes {
        let place = known.iter().position(|condition| condition.get("type") == change.get("type"));
        let is_removed = change.get("$patch").and_then(Value::as_str) == Some("delete");
        match (place, is_removed) {
            (Some(place), true) => drop(known.remove(place)),
            (None, true) => {}
            (Some(place), false) => {
                if let Some(condition) = known.get_mut(place) {
                    combine(condition, change, false);
                }
            }
            (None, false) => known.push(change.clone()),
        }
    }
}
