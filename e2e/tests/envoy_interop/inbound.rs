//! An Envoy in a pod that is not captured calls a captured pod, by a tunnel of its own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::ensure;
use serde_json::Value;
use underpass_e2e::{
    SHORT, call_with,
    envoy::{Certificate, Envoy, Listener, Upstream, cluster_to, proxy, tunnel},
    get, identity_of, inbound,
};
use underpass_identity::testing::TestAuthority;
use underpass_lab::eventually;
use underpass_model::names::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};

use crate::mesh::{Mesh, at, mesh};

/// On the loopback of the egress pod: the listener of each port of the server is so far above it.
const ABOVE: u16 = 1000;
const PROXY: u16 = 3128;

fn here(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// An Envoy that leads to the far pod: a listener for each port, and a proxy for whatever is asked for.
fn egress(mesh: &Mesh, own: Option<&Certificate>, roots: &str, identity: &str, ports: &[u16]) -> Envoy {
    let mut listeners = vec![proxy(&Listener { name: "proxy", address: here(PROXY) })];
    for port in ports {
        let name = format!("to-{port}");
        let listener = Listener { name: &name, address: here(port + ABOVE) };
        listeners.push(tunnel(&listener, &at(&mesh.far, *port).to_string(), &[]));
    }
    let upstream = Upstream { address: at(&mesh.far, HBONE_PORT), identity, own, roots };
    mesh.envoy(&mesh.egress, &listeners, &[cluster_to(&upstream)])
}

/// What the far pod's proxy answers to a CONNECT; what Envoy answers if it has no tunnel.
fn status(mesh: &Mesh, target: SocketAddr) -> String {
    let proxy = format!("http://{}", here(PROXY));
    let url = format!("http://{target}/");
    curl(mesh, &["-w", "%{http_connect}", "--proxytunnel", "-x", &proxy, &url])
}

fn curl(mesh: &Mesh, arguments: &[&str]) -> String {
    let argv = [&["curl", "-s", "-o", "/dev/null", "--max-time", "10"], arguments].concat();
    mesh.lab.run(mesh.egress.place(), &argv, SHORT).unwrap().stdout
}

/// Waits for a line of the access log on a call of the egress pod's.
fn line(mesh: &Mesh, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(SHORT, what, || {
        let lines = mesh.lab.access_log(&mesh.far.node)?;
        let from = format!("{}:", mesh.egress.v4()?);
        let ours = |line: &&Value| line["src.addr"].as_str().is_some_and(|address| address.starts_with(&from));
        let found = lines.iter().filter(ours).find(|line| wanted(line)).cloned();
        ensure!(found.is_some(), "{lines:#?}");
        Ok(found.unwrap())
    })
    .unwrap()
}

/// One after the other, as all of them need the same ports.
#[test]
fn envoy_reaches_a_captured_pod_as_far_as_its_certificate_carries() {
    let mesh = mesh();
    let own = mesh.certificate(&mesh.egress);
    let far = identity_of(&mesh.far);
    {
        let envoy = egress(&mesh, Some(&own), &own.roots, &far, &[8080, 8081, 8083, 8084, 8087]);
        applications_talk_through_it(&mesh);
        bad_requests_get_their_status(&mesh);
        assert_eq!(envoy.counted("cluster.tunnel.upstream_cx_total").unwrap(), 1, "one tunnel is enough");
    }
    without_a_certificate_of_the_mesh_there_is_no_tunnel(&mesh, &own);
    over_ipv6_as_well(&mesh, &own);
    {
        let envoy = egress(&mesh, Some(&own), &own.roots, "spiffe://cluster.local/ns/mesh/sa/other", &[]);
        assert_eq!(status(&mesh, at(&mesh.far, 8080)), "503");
        assert_eq!(envoy.counted("cluster.tunnel.ssl.fail_verify_san").unwrap(), 1, "it should not know us");
    }
}

fn applications_talk_through_it(mesh: &Mesh) {
    let answer = get(&mesh.lab, mesh.egress.place(), &format!("http://{}/", here(8080 + ABOVE))).unwrap();
    assert_eq!(answer, format!("i am far, you are {}", mesh.egress.v4().unwrap()));
    let lines = eventually(SHORT, "the access line", || {
        let lines = inbound(&mesh.lab, &mesh.far, &mesh.egress)?;
        ensure!(!lines.is_empty(), "none yet");
        Ok(lines)
    })
    .unwrap();
    let names: Vec<_> = lines.iter().map(|line| line["src.identity"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, [identity_of(&mesh.egress)], "{lines:#?}");

    let size = (32 << 20).to_string();
    for (what, port, argument, answer) in [
        ("upload", 8083, &*size, "same"),
        ("download", 8084, &size, "same"),
        ("half_close", 8081, "", "later:answer me after my end"),
        ("other_half", 8087, "", "far"),
    ] {
        let said = call_with(&mesh.lab, mesh.egress.place(), what, ("127.0.0.1", port + ABOVE), argument).unwrap();
        assert_eq!(said, answer, "{what}");
    }
    let servers = mesh.lab.process(&format!("{}.servers", mesh.far.place())).unwrap();
    servers.wait_for_output("received 100000", SHORT).unwrap();
}

fn over_ipv6_as_well(mesh: &Mesh, own: &Certificate) {
    let far = |port| SocketAddr::new(mesh.far.v6().unwrap(), port);
    let identity = identity_of(&mesh.far);
    let upstream = Upstream { address: far(HBONE_PORT), identity: &identity, own: Some(own), roots: &own.roots };
    let listener = Listener { name: "ipv6", address: here(8080 + ABOVE) };
    let _envoy = mesh.envoy(&mesh.egress, &[tunnel(&listener, &far(8080).to_string(), &[])], &[cluster_to(&upstream)]);
    let answer = get(&mesh.lab, mesh.egress.place(), &format!("http://{}/", listener.address)).unwrap();
    assert_eq!(answer, format!("i am far, you are {}", mesh.egress.v6().unwrap()));
}

fn bad_requests_get_their_status(mesh: &Mesh) {
    let far = |port| at(&mesh.far, port);
    for (target, code) in [
        (far(8080), "200"),
        (at(&mesh.gateway, 8080), "400"),
        (at(&mesh.client, 8080), "400"),
        (far(OUTBOUND_PORT), "503"),
        (far(INBOUND_PLAINTEXT_PORT), "503"),
        (far(HBONE_PORT), "503"),
        (far(9), "503"),
    ] {
        assert_eq!(status(mesh, target), code, "{target}");
    }
    assert_eq!(curl(mesh, &["-w", "%{http_code}", &format!("http://{}/", here(PROXY))]), "400");
    line(mesh, "the line on what is no CONNECT", |line| line["error"].as_str().is_some_and(|e| e.contains("CONNECT")));
}

fn without_a_certificate_of_the_mesh_there_is_no_tunnel(mesh: &Mesh, right: &Certificate) {
    let identity = identity_of(&mesh.egress).parse().unwrap();
    let elsewhere = "spiffe://elsewhere/ns/plain/sa/egress".parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let foreign =
        |identity| runtime.block_on(async { Certificate::signed_by(&TestAuthority::new(), identity).await }).unwrap();
    for own in [None, Some(foreign(&identity)), Some(foreign(&elsewhere))] {
        let envoy = egress(mesh, own.as_ref(), &right.roots, &identity_of(&mesh.far), &[]);
        assert_eq!(status(mesh, at(&mesh.far, 8080)), "503", "{own:?}");
        assert_eq!(envoy.counted("cluster.tunnel.upstream_rq_200").unwrap(), 0);
    }
    let refused = |line: &Value| line["reason"] == "tunnel_tls_failed";
    line(mesh, "the line on a refused handshake", refused);
}
