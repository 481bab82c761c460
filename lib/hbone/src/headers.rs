//! What a CONNECT tells besides its target: who calls ([`Baggage`]), for whom ([`Forwarded`]), as part of which trace
//! ([`TraceParent`]).
//!
//! All of it is for telemetry and none of it for decisions: a peer writes here what it likes. So parsing never fails; it
//! takes what it understands, within bounds, and leaves the rest.

mod baggage;
mod forwarded;
mod traceparent;

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};

pub use baggage::Baggage;
pub use forwarded::Forwarded;
pub use traceparent::TraceParent;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest value that is taken for one property, in bytes; names in Kubernetes end at 253.
const LONGEST_VALUE: usize = 253;

/// The headers of a CONNECT that mean something to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// Who calls.
    pub baggage: Baggage,
    /// For whom.
    pub forwarded: Forwarded,
    /// As part of which trace.
    pub traceparent: Option<TraceParent>,
}

impl ConnectHeaders {
    /// Reads what a peer sent.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Self {
        Self {
            baggage: Baggage::read(headers),
            forwarded: text(headers, &FORWARDED).map(Forwarded::parse).unwrap_or_default(),
            traceparent: text(headers, &TRACEPARENT).and_then(TraceParent::parse),
        }
    }

    /// Adds them to what we send; what is empty is left out.
    pub fn write(&self, headers: &mut HeaderMap) {
        self.baggage.write(headers);
        insert(headers, FORWARDED, self.forwarded.to_string());
        if let Some(traceparent) = &self.traceparent {
            insert(headers, TRACEPARENT, traceparent.to_string());
        }
    }
}

/// A header's first value, if it is text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Sets a header unless its value is empty. The printers only make what a header can hold.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if !value.is_empty()
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use underpass_model::WorkloadKind;

    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        let sent = ConnectHeaders {
            baggage: Baggage {
                namespace: "shop".into(),
                workload: Some((WorkloadKind::Deployment, "web".into())),
                ..Baggage::default()
            },
            forwarded: Forwarded {
                client: Some("[2001:db8::1]:4000".parse().unwrap()),
                host: Some("db.shop.svc.cluster.local".into()),
            },
            traceparent: TraceParent::new(1, 2),
        };
        let mut headers = HeaderMap::new();
        sent.write(&mut headers);
        assert_eq!(headers.len(), 3);
        assert_eq!(ConnectHeaders::read(&headers), sent);
    }

    #[test]
    fn nothing_to_tell_makes_no_header() {
        let mut headers = HeaderMap::new();
        ConnectHeaders::default().write(&mut headers);
        assert!(headers.is_empty());
        assert_eq!(ConnectHeaders::read(&headers), ConnectHeaders::default());
    }

    proptest! {
        #[test]
        fn whatever_a_peer_sends_is_read_without_panic(
            baggage in proptest::collection::vec(any::<u8>(), 0..400),
            forwarded in proptest::collection::vec(any::<u8>(), 0..400),
            traceparent in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in [(BAGGAGE, baggage), (FORWARDED, forwarded), (TRACEPARENT, traceparent)] {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(name, value);
                }
            }
            let read = ConnectHeaders::read(&headers);
            let mut printed = HeaderMap::new();
            read.write(&mut printed);
            prop_assert_eq!(ConnectHeaders::read(&printed), read);
        }
    }
}
