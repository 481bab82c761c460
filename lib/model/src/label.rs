//! Labels and annotations as Kubernetes lets them be written, and which of the mesh's own mean anything.

use std::collections::BTreeMap;

use crate::{
    exclusions::{ExclusionError, Exclusions},
    limits::{self, LimitError},
    names::{
        EXCLUDE_INBOUND_CIDRS, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS,
        LIMIT_BUFFERED_BYTES, LIMIT_CONNECTIONS, LIMIT_DESCRIPTORS, LIMIT_HANDSHAKES, MESH_LABEL, is_own,
    },
};

/// The labels of the mesh's own that people write, on namespaces and pods.
pub const LABELS: [&str; 1] = [MESH_LABEL];
/// The annotations of the mesh's own that people write, on pods.
pub const ANNOTATIONS: [&str; 8] = [
    EXCLUDE_INBOUND_CIDRS,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_OUTBOUND_CIDRS,
    EXCLUDE_OUTBOUND_PORTS,
    LIMIT_BUFFERED_BYTES,
    LIMIT_CONNECTIONS,
    LIMIT_DESCRIPTORS,
    LIMIT_HANDSHAKES,
];

/// The most characters of a key's name, and of a value.
const MOST: usize = 63;
/// The most characters of a key's prefix.
const MOST_OF_PREFIX: usize = 253;

/// Why a key or value cannot stand in an object's metadata, or means nothing to the mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The part after the slash.
    #[error(
        "{0:?} is no key: its name must be 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    )]
    Name(String),
    /// The part before it.
    #[error("{0:?} is no key: what stands before the slash must be a DNS name")]
    Prefix(String),
    /// It begins as the mesh's own do.
    #[error("the mesh knows no {0:?} here: it knows {known}", known = known(.1))]
    Unknown(String, &'static [&'static str]),
    /// An annotation's value by which a pod would leave something out of capture.
    #[error(transparent)]
    Exclusion(#[from] ExclusionError),
    /// An annotation's value by which a pod would be held to something.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A label's value.
    #[error(
        "{1:?} is no value of {0}: it must be at most 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    )]
    Value(String, String),
}

/// Checks a label.
///
/// # Errors
/// [`LabelError`], also for a key under the mesh's own prefix that means nothing.
pub fn check_label(key: &str, value: &str) -> Result<(), LabelError> {
    check_label_key(key)?;
    check_label_value(key, value)
}

/// Checks an annotation; the value of one of the mesh's own by those who read it.
///
/// # Errors
/// [`LabelError`], also for a key under the mesh's own prefix that means nothing, and what the reader says of the value.
pub fn check_annotation(key: &str, value: &str) -> Result<(), LabelError> {
    check_annotation_key(key)?;
    check_annotation_value(key, value)
}

/// Which of these keys begin as the mesh's own do and are none of those that it knows where they stand.
pub fn unknown<'a>(
    keys: impl IntoIterator<Item = &'a String>,
    known: &'static [&'static str],
) -> impl Iterator<Item = LabelError> {
    keys.into_iter().filter_map(move |key| check_known(key, known).err())
}

fn known(known: &[&str]) -> String {
    if known.is_empty() { "none".into() } else { known.join(", ") }
}

fn check_label_key(key: &str) -> Result<(), LabelError> {
    check_key(key, &LABELS)
}

fn check_annotation_key(key: &str) -> Result<(), LabelError> {
    check_key(key, &ANNOTATIONS)
}

fn check_annotation_value(key: &str, value: &str) -> Result<(), LabelError> {
    let annotations = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Exclusions::from_annotations(&annotations)?;
    let (_, unreadable) = limits::from_annotations(&annotations);
    unreadable.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

fn check_label_value(key: &str, value: &str) -> Result<(), LabelError> {
    let is_good = value.is_empty() || is_name(value);
    is_good.then_some(()).ok_or_else(|| LabelError::Value(key.into(), value.into()))
}

/// Kubernetes' `IsQualifiedName`.
fn check_key(key: &str, known: &'static [&'static str]) -> Result<(), LabelError> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| !is_dns_name(prefix)) {
        return Err(LabelError::Prefix(key.into()));
    }
    if !is_name(name) {
        return Err(LabelError::Name(key.into()));
    }
    check_known(key, known)
}

fn check_known(key: &str, known: &'static [&'static str]) -> Result<(), LabelError> {
    let is_good = !is_own(key) || known.contains(&key);
    is_good.then_some(()).ok_or_else(|| LabelError::Unknown(key.into(), known))
}

fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MOST && bytes.iter().copied().all(is_inner) && is_edge(bytes.first()) && is_edge(bytes.last())
}

fn is_dns_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|byte| is_inner(*byte) && *byte != b'-');
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.iter().copied().all(is_inner) && is_edge(bytes.first()) && is_edge(bytes.last())
    };
    text.len() <= MOST_OF_PREFIX && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_kubernetes_has_them_and_ours_mean_something() {
        let long = "a".repeat(64);
        for (key, good) in [
            ("app", true),
            ("a.B_c-d", true),
            ("example.com/app", true),
            (MESH_LABEL, true),
            ("", false),
            ("-app", false),
            ("app-", false),
            ("an app", false),
            ("/app", false),
            ("Example.com/app", false),
            ("example..com/app", false),
            ("example.com/", false),
            ("example.com/a/b", false),
            (long.as_str(), false),
            ("underpass.dev/mehs", false),
            (LIMIT_CONNECTIONS, false),
        ] {
            assert_eq!(check_label_key(key).is_ok(), good, "{key:?}: {:?}", check_label_key(key));
        }
        assert!(check_annotation_key(LIMIT_CONNECTIONS).is_ok());
        let told = check_annotation_key("underpass.dev/limit-conections").unwrap_err().to_string();
        assert!(told.contains("underpass.dev/limit-connections"), "{told}");
    }

    #[test]
    fn only_own_keys_that_nobody_knows_are_told() {
        let keys = ["app", MESH_LABEL, "underpass.dev/mehs", "underpass.dev.example/mesh", LIMIT_CONNECTIONS];
        let keys = keys.map(str::to_owned);
        let told = |known| unknown(&keys, known).map(|error| error.to_string()).collect::<Vec<_>>();
        let wrong = |key: &str, known: &str| format!("the mesh knows no {key:?} here: it knows {known}");
        let of_labels = ["underpass.dev/mehs", LIMIT_CONNECTIONS].map(|key| wrong(key, MESH_LABEL));
        assert_eq!(told(&LABELS), of_labels);
        let of_namespaces = [MESH_LABEL, "underpass.dev/mehs", LIMIT_CONNECTIONS].map(|key| wrong(key, "none"));
        assert_eq!(told(&[]), of_namespaces);
    }

    #[test]
    fn values_of_annotations_are_what_their_readers_can_read() {
        for (key, value, told) in [
            (LIMIT_CONNECTIONS, "100", None),
            (LIMIT_CONNECTIONS, "lots", Some("\"lots\" is not a number above 0")),
            (LIMIT_BUFFERED_BYTES, "64Mi", None),
            (LIMIT_DESCRIPTORS, "0", Some("not a number above 0")),
            (EXCLUDE_INBOUND_PORTS, "80, 443", None),
            (EXCLUDE_INBOUND_PORTS, "abc", Some("\"abc\" is not a port")),
            (EXCLUDE_OUTBOUND_CIDRS, "10.0.0.0/99", Some("neither an address nor a network")),
            ("note", "anything, in words", None),
        ] {
            let error = check_annotation_value(key, value).err().map(|error| error.to_string());
            match told {
                None => assert_eq!(error, None, "{key}={value}"),
                Some(part) => {
                    let told = error.unwrap_or_default();
                    assert!(told.contains(part) && told.contains(key), "{key}={value}: {told}");
                }
            }
        }
    }

    #[test]
    fn values_are_as_kubernetes_has_them() {
        let long = "a".repeat(64);
        for (value, good) in
            [("", true), ("v1.2_x-Y", true), ("-a", false), ("a b", false), ("ü", false), (&long, false)]
        {
            assert_eq!(check_label_value("app", value).is_ok(), good, "{value:?}");
        }
    }
}
