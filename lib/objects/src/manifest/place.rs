//! On which line of a document a field stands.
//!
//! The parser tells lines only in its errors, so a document is walked along the field's path and fails where that ends.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The line, counted from 1, of the deepest part of a path (`spec.rules[0].sources[1].cidr`) that is there; none if the
/// parser does not say.
pub(super) fn line_of(text: &str, path: &str) -> Option<usize> {
    let steps = steps(path);
    let end = Walk(&steps).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    end.location().map(|place| place.line())
}

/// One part of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
            Some(index) => Step::Index(index),
            None => Step::Key(part),
        })
        .collect()
}

/// Fails where its path ends.
#[derive(Clone, Copy)]
struct Walk<'a>(&'a [Step<'a>]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    // What a scalar is refused with, whichever it is.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((Step::Key(wanted), rest)) = self.0.split_first() {
            while let Some(key) = map.next_key::<String>()? {
                if key == *wanted {
                    return map.next_value_seed(Walk(rest));
                }
                map.next_value::<IgnoredAny>()?;
            }
        }
        Err(A::Error::custom("the path ends here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if let Some((Step::Index(wanted), rest)) = self.0.split_first() {
            for _ in 0..*wanted {
                items.next_element::<IgnoredAny>()?;
            }
            if items.next_element_seed(Walk(rest))?.is_some() {
                return Ok(());
            }
        }
        Err(A::Error::custom("the path ends here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_part_that_is_there_has_its_line() {
        let text = "\
# who may call the cart
kind: AuthorizationPolicy
metadata: {name: cart}
spec:
  targetRefs:
  - kind: Pod
  rules:
  - sources:
    - type: Namespace
      namespace: shop
    - type: CIDR
      cidr: 10.0.0.0/99
    networkAttributes:
      ports: [80,
        0]
";
        for (path, line) in [
            ("kind", 2),
            ("metadata.name", 3),
            ("metadata.namespace", 3),
            ("spec.targetRefs", 6),
            ("spec.rules[0].sources[0].namespace", 10),
            ("spec.rules[0].sources[1].cidr", 12),
            ("spec.rules[0].sources[1].spiffe", 11),
            ("spec.rules[0].sources[2].cidr", 9),
            ("spec.rules[0].networkAttributes.ports", 14),
            ("spec.rules[0].networkAttributes.ports[1]", 15),
            ("status", 2),
        ] {
            assert_eq!(line_of(text, path), Some(line), "{path}");
        }
        assert_eq!(line_of("a: &here\n  b: 1\nc: *here\n", "c.b"), Some(2));
    }
}
