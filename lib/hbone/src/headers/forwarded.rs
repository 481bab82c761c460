//! The `forwarded` header (RFC 7239): the client's address, and the host name that it called.

use std::{fmt, net::SocketAddr, sync::Arc};

use super::LONGEST_VALUE;

/// At most this many bytes of the header are looked at.
const MOST_BYTES: usize = 4 * 1024;

/// For whom a stream is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The application's end of the connection (`for=`).
    pub client: Option<SocketAddr>,
    /// The service that the application called (`host=`).
    pub host: Option<Arc<str>>,
}

impl Forwarded {
    /// Reads the first element of the header; later ones are of proxies nearer to us, of which there are none.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut forwarded = Self::default();
        let mut rest = text.get(..text.len().min(MOST_BYTES)).unwrap_or_default();
        while let Some((key, value, separator, after)) = next_pair(rest) {
            if key.eq_ignore_ascii_case("for") {
                forwarded.client = forwarded.client.or_else(|| value.parse().ok());
            } else if key.eq_ignore_ascii_case("host") && is_host(value) {
                forwarded.host.get_or_insert_with(|| value.into());
            }
            if separator != Some(';') {
                break;
            }
            rest = after;
        }
        forwarded
    }
}

/// The first `key=value` of the text, value perhaps in quotes, then what ended it, then what follows.
fn next_pair(text: &str) -> Option<(&str, &str, Option<char>, &str)> {
    let (key, rest) = text.split_once('=')?;
    if key.contains(',') {
        // Of another element.
        return None;
    }
    // Pairs may be empty.
    let key = key.rsplit_once(';').map_or(key, |(_, key)| key);
    let rest = rest.trim_start();
    let (value, rest) = match rest.strip_prefix('"') {
        // A backslash may escape a quote here; no value that we take has one.
        Some(quoted) => quoted.split_once('"')?,
        None => rest.split_at(rest.find([';', ',']).unwrap_or(rest.len())),
    };
    let mut after = rest.trim_start().chars();
    let separator = after.next();
    Some((key.trim(), value.trim_end(), separator, after.as_str()))
}

/// A host name, perhaps with a port: nothing that would need an escape.
fn is_host(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    (1..=LONGEST_VALUE).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().filter(|host| is_host(host));
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
        }
        if self.client.is_some() && host.is_some() {
            f.write_str(";")?;
        }
        match host {
            // A colon is no token character (RFC 7239, section 4).
            Some(host) if host.contains(':') => write!(f, "host=\"{host}\""),
            Some(host) => write!(f, "host={host}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forwarded(client: &str, host: &str) -> Forwarded {
        Forwarded { client: client.parse().ok(), host: (!host.is_empty()).then(|| host.into()) }
    }

    #[test]
    fn reads_what_proxies_write() {
        for (text, client, host) in [
            (r#"for="10.0.0.1:4000";host=db.shop"#, "10.0.0.1:4000", "db.shop"),
            (r#"for="[2001:db8::1]:4000""#, "[2001:db8::1]:4000", ""),
            (r#"Host="db:80"; For="10.0.0.1:1""#, "10.0.0.1:1", "db:80"),
            (r#"proto=http;host=a;by="x;y";for="10.0.0.1:1", for="10.0.0.2:2""#, "10.0.0.1:1", "a"),
            (r#"for="10.0.0.1:1", for="10.0.0.2:2";host=late"#, "10.0.0.1:1", ""),
            ("for=unknown;host=a", "", "a"),
            (r#"host="two words""#, "", ""),
            (r#"host="never ends"#, "", ""),
            ("host", "", ""),
            ("host, for=10.0.0.1:1", "", ""),
            (r#"; ;for="10.0.0.1:1";;host=a"#, "10.0.0.1:1", "a"),
            ("", "", ""),
            (";;=;=,", "", ""),
        ] {
            assert_eq!(Forwarded::parse(text), forwarded(client, host), "{text}");
        }
    }

    #[test]
    fn prints_what_others_print() {
        assert_eq!(forwarded("10.0.0.1:4000", "db.shop").to_string(), r#"for="10.0.0.1:4000";host=db.shop"#);
        assert_eq!(forwarded("", "db.shop:80").to_string(), r#"host="db.shop:80""#);
        assert_eq!(forwarded("10.0.0.1:1", "a;for=x").to_string(), r#"for="10.0.0.1:1""#);
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_its_bounds(text in "\\PC{0,300}|[a-z=\";, :.]{0,300}") {
            let read = Forwarded::parse(&text);
            prop_assert!(read.host.as_ref().is_none_or(|host| host.len() <= LONGEST_VALUE));
            prop_assert_eq!(Forwarded::parse(&read.to_string()), read);
        }
    }
}
