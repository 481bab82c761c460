//! What a peer says when it opens a stream: the head of its CONNECT.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use underpass_hbone::{Baggage, ConnectHeaders, ConnectRequest, Forwarded, TraceParent, server};
use underpass_model::{Authority, AuthorityError};

/// A target, as `:authority` spells it.
pub(crate) fn connect(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        match text.parse::<Authority>() {
            Ok(authority) => understood(text, authority),
            Err(error) => refused(text, error),
        }
    }
    arrives(input);
}

fn understood(text: &str, authority: Authority) {
    let (host, port) = text.rsplit_once(':').expect("a port");
    let port: u16 = port.parse().expect("a port");
    match &authority {
        Authority::Address(address) => {
            assert_eq!((address.port(), address.ip()), (port, address.ip().to_canonical()));
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            assert_eq!(bare.parse::<IpAddr>().map(|ip| ip.to_canonical()), Ok(address.ip()));
        }
        Authority::Host { host: name, port: of } => {
            assert_eq!((name.to_string(), *of), (host.to_ascii_lowercase(), port));
            assert!(host.parse::<IpAddr>().is_err() && (1..=253).contains(&host.len()));
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)),
                "{name}"
            );
        }
    }
    // What we understand we can also ask for, and are understood.
    let request = ConnectRequest { authority, headers: ConnectHeaders::default() };
    let (head, ()) = request.head().expect("a target fits a request").into_parts();
    assert_eq!(server::target(&head), Ok(request.authority));
}

fn refused(text: &str, error: AuthorityError) {
    // The standard library's idea of an address: what it takes, we take, but for port 0 and scoped addresses.
    if let Ok(address) = text.parse::<SocketAddr>() {
        let five_digits = text.rsplit_once(':').is_some_and(|(_, port)| port.len() <= 5);
        assert!(address.port() == 0 || text.contains('%') || !five_digits, "{text}: {error}");
    }
}

/// The way through HTTP changes nothing: what the server takes as a target is what the text says.
fn arrives(input: &[u8]) {
    let Ok(authority) = http::uri::Authority::try_from(input) else { return };
    let direct = authority.as_str().parse::<Authority>();
    for (method, is_connect) in [(Method::CONNECT, true), (Method::GET, false)] {
        let uri = Uri::builder().authority(authority.clone()).build().expect("an authority alone is a URI");
        let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        let target = server::target(&request.into_parts().0);
        assert_eq!(target.ok(), direct.clone().ok().filter(|_| is_connect));
    }
}

/// Headers, one a line; the first letter says which one it is.
pub(crate) fn headers(input: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in input.split(|&byte| byte == b'\n') {
        let (name, value) = match line {
            [b'b', value @ ..] => ("baggage", value),
            [b'f', value @ ..] => ("forwarded", value),
            [b't', value @ ..] => ("traceparent", value),
            _ => continue,
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let read = ConnectHeaders::read(&headers);
    check_bounds(&read);
    let mut written = HeaderMap::new();
    read.write(&mut written);
    assert!(written.len() <= 3);
    assert_eq!(ConnectHeaders::read(&written), read);
    check_baggage(&headers, &read.baggage);
    for value in headers.values().filter_map(|value| value.to_str().ok()) {
        check_trace(value);
        // An element of a later proxy changes nothing.
        let forwarded = Forwarded::parse(value);
        if value.len() < 1024 && !value.contains('"') && !value.is_empty() {
            assert_eq!(Forwarded::parse(&format!("{value}, for=\"192.0.2.9:9\";host=late")), forwarded);
        }
    }
}

fn check_bounds(read: &ConnectHeaders) {
    let Baggage { cluster, namespace, workload, service, version, region, zone } = &read.baggage;
    let owner = workload.as_ref().map(|(_, name)| name);
    let host = read.forwarded.host.as_ref();
    for text in [cluster, namespace, service, version, region, zone].into_iter().chain(owner).chain(host) {
        assert!(text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
        assert!(!text.contains(['"', ',', ';', '\\']), "{text:?}");
    }
}

/// A member that nobody knows changes nothing, and a known one at the end wins.
fn check_baggage(headers: &HeaderMap, baggage: &Baggage) {
    let length: usize = headers.get_all("baggage").iter().map(HeaderValue::len).sum();
    if length > 4096 {
        return;
    }
    let mut more = headers.clone();
    more.append("baggage", HeaderValue::from_static("unknown.key=1;x=y,service.name=last"));
    assert_eq!(Baggage::read(&more), Baggage { service: "last".into(), ..baggage.clone() });
}

fn check_trace(text: &str) {
    let Some(read) = TraceParent::parse(text) else { return };
    assert!(read.trace() != 0 && read.span() != 0 && text.len() == 55);
    assert_eq!(read.to_string().get(2..), text.get(2..), "all but the version");
    assert_eq!(TraceParent::parse(&read.to_string()), Some(read));
}
