//! What a pod's annotations hold it to in the node proxy.

use std::collections::BTreeMap;

use crate::names;

/// What a pod asks to be held to; what is absent goes without saying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Connections at once.
    pub connections: Option<u64>,
    /// Descriptors of the node proxy.
    pub descriptors: Option<u64>,
    /// Handshakes of peers under way.
    pub handshakes: Option<u64>,
    /// Bytes under way in the node proxy, above which it reads in small pieces.
    pub buffered_bytes: Option<u64>,
}

/// An annotation that cannot be read. It counts for nothing: a budget is no reason to keep a pod out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("annotation {annotation}: {value:?} is not a number above 0, like 500 or 64Mi")]
pub struct LimitError {
    annotation: &'static str,
    value: String,
}

/// Reads the annotations, and says which cannot be read.
#[must_use]
pub fn from_annotations(annotations: &BTreeMap<String, String>) -> (PodLimits, Vec<LimitError>) {
    let mut unreadable = Vec::new();
    let mut read = |annotation| {
        let text = annotations.get(annotation)?;
        let number = number(text);
        if number.is_none() {
            unreadable.push(LimitError { annotation, value: text.chars().take(80).collect() });
        }
        number
    };
    let limits = PodLimits {
        connections: read(names::LIMIT_CONNECTIONS),
        descriptors: read(names::LIMIT_DESCRIPTORS),
        handshakes: read(names::LIMIT_HANDSHAKES),
        buffered_bytes: read(names::LIMIT_BUFFERED_BYTES),
    };
    (limits, unreadable)
}

/// Kubernetes' way to write whole numbers, as far as it is of use here.
fn number(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 6] =
        [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000)];
    let text = text.trim();
    let unit = UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|number| is_plain && *number > 0)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(names::LIMIT_BUFFERED_BYTES.to_owned(), value.to_owned())])
    }

    #[test]
    fn reads_numbers_as_kubernetes_writes_them() {
        for (text, expected) in [("1", 1), (" 500 ", 500), ("64Mi", 64 << 20), ("2k", 2000), ("1Gi", 1 << 30)] {
            let (limits, unreadable) = from_annotations(&annotated(text));
            assert_eq!((limits.buffered_bytes, unreadable.len()), (Some(expected), 0), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_others_count() {
        for text in ["", "0", "-1", "+1", "1.5", "many", "Mi", "18446744073709551615Ki", "1 Mi"] {
            let mut annotations = annotated(text);
            annotations.insert(names::LIMIT_CONNECTIONS.to_owned(), "7".to_owned());
            let (limits, unreadable) = from_annotations(&annotations);
            assert_eq!((limits.buffered_bytes, limits.connections), (None, Some(7)), "{text}");
            let said: Vec<_> = unreadable.iter().map(ToString::to_string).collect();
            assert!(matches!(&said[..], [one] if one.contains(names::LIMIT_BUFFERED_BYTES)), "{said:?}");
        }
        assert_eq!(from_annotations(&BTreeMap::new()), (PodLimits::default(), Vec::new()));
    }
}
