//! The few lines of configuration that make an Envoy one end of HBONE.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::Certificate;

const TYPES: &str = "type.googleapis.com/envoy";

/// Where a listener of Envoy's listens, and what it is called.
#[derive(Clone, Debug)]
pub struct Listener<'a> {
    /// What it and its counters are called.
    pub name: &'a str,
    /// Where; port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// The end of tunnels that Envoy opens.
#[derive(Clone, Debug)]
pub struct Upstream<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name that its certificate must carry.
    pub identity: &'a str,
    /// What Envoy shows; none to see that this is refused.
    pub own: Option<&'a Certificate>,
    /// The roots that Envoy trusts, in PEM.
    pub roots: &'a str,
}

/// A whole configuration.
#[must_use]
pub fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({ "static_resources": { "listeners": listeners, "clusters": clusters } })
}

/// A listener that takes tunnels from holders of a certificate in the trust domain, and connects to what each CONNECT
/// names: the cluster `authority`. With a limit, the tunnel gets GOAWAY after so many CONNECTs.
#[must_use]
pub fn terminate(listener: &Listener<'_>, own: &Certificate, trust_domain: &str, limit: Option<u32>) -> Value {
    let mut tls = common_tls(Some(own), &own.roots);
    let names = json!([{ "san_type": "URI", "matcher": { "prefix": format!("spiffe://{trust_domain}/") } }]);
    set(&mut tls, "/validation_context", "match_typed_subject_alt_names", names);
    let context = json!({
        "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": tls,
    });
    let mut connect = connect_route("authority");
    set(&mut connect, "/route/upgrade_configs/0", "connect_config", json!({}));
    let mut manager = connection_manager(listener.name, "HTTP2", &[connect]);
    set(&mut manager, "", "common_http_protocol_options", json!({ "max_requests_per_connection": limit }));
    let mut filled = listening(listener, &manager, "http_connection_manager");
    set(&mut filled, "/filter_chains/0", "transport_socket", json!({ "name": "tls", "typed_config": context }));
    filled
}

/// A listener for applications, each of whose connections becomes a CONNECT to `authority` in a tunnel of the cluster
/// `tunnel`.
#[must_use]
pub fn tunnel(listener: &Listener<'_>, authority: &str, headers: &[(&str, &str)]) -> Value {
    let headers: Vec<Value> =
        headers.iter().map(|(key, value)| json!({ "header": { "key": key, "value": value } })).collect();
    let proxy = json!({
        "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": listener.name,
        "cluster": "tunnel",
        "tunneling_config": { "hostname": authority, "headers_to_add": headers },
    });
    listening(listener, &proxy, "tcp_proxy")
}

/// A listener for HTTP/1 clients that sends whatever they ask for, CONNECT or not, to the cluster `tunnel`.
#[must_use]
pub fn proxy(listener: &Listener<'_>) -> Value {
    let plain = json!({ "match": { "prefix": "/" }, "route": { "cluster": "tunnel" } });
    let manager = connection_manager(listener.name, "HTTP1", &[connect_route("tunnel"), plain]);
    listening(listener, &manager, "http_connection_manager")
}

/// The cluster that connects to the address a CONNECT names.
#[must_use]
pub fn cluster_by_authority() -> Value {
    json!({
        "name": "authority",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "original_dst_lb_config": { "use_http_header": true, "http_header_name": ":authority" },
    })
}

/// The cluster `tunnel`.
#[must_use]
pub fn cluster_to(upstream: &Upstream<'_>) -> Value {
    let mut tls = common_tls(upstream.own, upstream.roots);
    let names = json!([{ "san_type": "URI", "matcher": { "exact": upstream.identity } }]);
    set(&mut tls, "/validation_context", "match_typed_subject_alt_names", names);
    let context = json!({
        "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": tls,
    });
    let http = json!({
        "@type": format!("{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"),
        // Until the peer's settings arrive Envoy would open any number of streams, and see some of them refused.
        "explicit_http_config": { "http2_protocol_options": { "allow_connect": true, "max_concurrent_streams": 100 } },
    });
    json!({
        "name": "tunnel",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": "tunnel", "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": socket(upstream.address) } },
        ] }] },
        "transport_socket": { "name": "tls", "typed_config": context },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http },
    })
}

fn connect_route(cluster: &str) -> Value {
    json!({
        "match": { "connect_matcher": {} },
        "route": { "cluster": cluster, "timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT" }] },
    })
}

fn connection_manager(name: &str, codec: &str, routes: &[Value]) -> Value {
    json!({
        "@type": format!("{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": codec,
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "stream_idle_timeout": "0s",
        "access_log": [access_log()],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": format!("{TYPES}.extensions.filters.http.router.v3.Router") },
        }],
    })
}

fn access_log() -> Value {
    json!({
        "name": "stdout",
        "typed_config": {
            "@type": format!("{TYPES}.extensions.access_loggers.stream.v3.StdoutAccessLog"),
            "log_format": { "json_format": {
                "method": "%REQ(:METHOD)%",
                "authority": "%REQ(:AUTHORITY)%",
                "baggage": "%REQ(BAGGAGE)%",
                "forwarded": "%REQ(FORWARDED)%",
                "traceparent": "%REQ(TRACEPARENT)%",
                "peer": "%DOWNSTREAM_PEER_URI_SAN%",
                "source": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
                "sni": "%REQUESTED_SERVER_NAME%",
                "tls": "%DOWNSTREAM_TLS_VERSION%",
                "cipher": "%DOWNSTREAM_TLS_CIPHER%",
                "protocol": "%PROTOCOL%",
                "code": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "response_baggage": "%RESP(BAGGAGE)%",
                "received": "%BYTES_RECEIVED%",
                "sent": "%BYTES_SENT%",
            } },
        },
    })
}

/// TLS as the mesh has it.
fn common_tls(own: Option<&Certificate>, roots: &str) -> Value {
    let mut tls = json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": ["h2"],
        "validation_context": { "trusted_ca": { "inline_string": roots } },
    });
    if let Some(own) = own {
        let certificate = json!({
            "certificate_chain": { "inline_string": own.chain },
            "private_key": { "inline_string": own.key },
        });
        set(&mut tls, "", "tls_certificates", json!([certificate]));
    }
    tls
}

fn listening(listener: &Listener<'_>, filter: &Value, name: &str) -> Value {
    json!({
        "name": listener.name,
        "address": socket(listener.address),
        "filter_chains": [{ "filters": [{ "name": format!("envoy.filters.network.{name}"), "typed_config": filter }] }],
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

/// Adds a field to the object at a path that this module just made.
fn set(value: &mut Value, path: &str, key: &str, field: Value) {
    if let Some(object) = value.pointer_mut(path).and_then(Value::as_object_mut) {
        object.insert(key.to_owned(), field);
    }
}
