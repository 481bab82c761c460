//! The `traceparent` header (W3C Trace Context, level 1).

use std::fmt;

/// The length of the only format that exists: `00-<32 hex>-<16 hex>-<2 hex>`.
const LENGTH: usize = 55;

/// A position in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceParent {
    /// A position, not sampled. None if an id is zero, which means "no id".
    #[must_use]
    pub fn new(trace: u128, span: u64) -> Option<Self> {
        (trace != 0 && span != 0).then_some(Self { trace, span, flags: 0 })
    }

    /// The same trace at another span. None if the id is zero.
    #[must_use]
    pub fn at(self, span: u64) -> Option<Self> {
        (span != 0).then_some(Self { span, ..self })
    }

    /// The trace's id.
    #[must_use]
    pub fn trace(&self) -> u128 {
        self.trace
    }

    /// The span's id.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.span
    }

    /// Reads a header's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != LENGTH {
            return None;
        }
        let mut parts = text.split('-');
        let version: u8 = hex(parts.next()?, 2)?.try_into().ok()?;
        let trace = hex(parts.next()?, 32)?;
        let span: u64 = hex(parts.next()?, 16)?.try_into().ok()?;
        let flags = hex(parts.next()?, 2)?.try_into().ok()?;
        // 255 is forbidden; later versions begin with the same fields (section 3.2.4).
        (version != u8::MAX && trace != 0 && span != 0).then_some(Self { trace, span, flags })
    }
}

/// Exactly `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != digits || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_the_one_format_and_refuses_the_rest() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceParent::parse(good).unwrap().to_string(), good);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "000-af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_span_of_the_same_trace_keeps_the_trace() {
        let parent = TraceParent::new(7, 1).unwrap();
        let child = parent.at(2).unwrap();
        assert_eq!((child.trace(), child.span()), (7, 2));
        assert_eq!(parent.at(0), None);
        assert_eq!(TraceParent::new(0, 1), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}|[0-9a-f-]{55}") {
            if let Some(read) = TraceParent::parse(&text) {
                prop_assert_eq!(TraceParent::parse(&read.to_string()), Some(read));
            }
        }

        #[test]
        fn printing_and_parsing_are_inverse(trace in 1..u128::MAX, span in 1..u64::MAX) {
            let parent = TraceParent::new(trace, span).unwrap();
            prop_assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
        }
    }
}
