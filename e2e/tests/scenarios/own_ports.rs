//! The mesh's own ports in a pod serve nobody who dials them by hand.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;
use underpass_e2e::{MESH, SHORT, World, alone, call, get, inbound, said, server, world};
use underpass_lab::{Lab, PodSpec, Program, eventually, until};
use underpass_model::names::{
    ADMIN_PORT, HBONE_PORT, INBOUND_PLAINTEXT_PORT, METRICS_PORT, OUTBOUND_PORT, OWN_PORTS, READY_PORT,
};

#[test]
fn calls_to_our_own_ports_are_refused() {
    let world = world();
    let address = world.far.v4().unwrap().to_string();
    for from in [&world.client, &world.plain_client] {
        // The last three are served by the proxy at an address of its own, never in a pod.
        for port in OWN_PORTS.into_iter().chain([ADMIN_PORT, METRICS_PORT, READY_PORT]) {
            let seen = call(&world.lab, from.place(), "outcome", (&address, port)).unwrap();
            let right = match port {
                HBONE_PORT => ends_without_certificate(&seen),
                _ => ["refused", "reset"].contains(&&*seen),
            };
            assert!(right, "{} to {address}:{port}: {seen}", from.name);
        }
    }
}

#[test]
fn a_pod_dialling_its_own_capture_ports_is_refused_and_nothing_loops() {
    let lab = alone().unwrap();
    let pod = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let outcome = |host: &str, port: u16| call(&lab, pod.place(), "outcome", (host, port)).unwrap();
    let proxy = lab.program(&Program::node_proxy("node-a")).unwrap();
    let own = [pod.v4().unwrap().to_string(), pod.v6().unwrap().to_string()];
    outcome("127.0.0.1", OUTBOUND_PORT);
    let before = proxy.descriptors().unwrap();
    for host in ["127.0.0.1", "::1", &own[0], &own[1]] {
        for port in [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT] {
            for _ in 0..4 {
                assert_eq!(outcome(host, port), "reset", "{host}:{port}");
            }
            let address = SocketAddr::new(host.parse().unwrap(), port).to_string();
            eventually(SHORT, "an access line for each, and no more", || {
                let lines = refused(&lab, port)?;
                let count = lines.iter().filter(|line| said(line, "error").contains(&address)).count();
                ensure!(count >= 4, "{count} on {address}: {lines:#?}");
                Ok(())
            })
            .unwrap();
        }
        let tls = outcome(host, HBONE_PORT);
        assert!(ends_without_certificate(&tls), "{host}:{HBONE_PORT}: {tls}");
    }
    let dials = 1 + 4 * 2 * 4;
    let lines: usize =
        [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT].map(|port| refused(&lab, port).unwrap().len()).iter().sum();
    assert_eq!(lines, dials, "a dial was carried further");
    until(SHORT, "the proxy to have given every descriptor back", || {
        proxy.descriptors().is_ok_and(|after| after <= before)
    })
    .unwrap();
}

#[test]
fn a_service_whose_target_is_a_port_of_ours_leads_nowhere() {
    let world = world();
    let lab = &world.lab;
    let ports: Vec<String> =
        OWN_PORTS.iter().map(|port| format!("{{name: p{port}, port: {port}, targetPort: {port}}}")).collect();
    let ports = ports.join(", ");
    let service = lab.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: trap, namespace: {MESH}}}\n\
         spec: {{clusterIP: 10.96.0.66, clusterIPs: [10.96.0.66], selector: {{role: server}}, ports: [{ports}, {{name: web, port: 80, targetPort: 8080}}]}}\n"
    ));
    let service = service.unwrap().remove(0);
    eventually(SHORT, "the service to be known", || get(lab, world.client.place(), "http://10.96.0.66/")).unwrap();
    for port in OWN_PORTS {
        let seen = call(lab, world.client.place(), "outcome", ("10.96.0.66", port)).unwrap();
        assert_eq!(seen, "reset", "{port}");
        let dialled = format!("10.96.0.66:{port}");
        eventually(SHORT, &format!("the refusal of {dialled}"), || {
            let lines = lab.access_log("node-a")?;
            let of = |line: &&Value| {
                said(line, "direction") == "outbound" && said(line, "error").contains(&format!(":{port}"))
            };
            let reasons: Vec<&str> = lines.iter().filter(of).map(|line| said(line, "reason")).collect();
            ensure!(reasons.contains(&"own_port"), "{reasons:?}");
            Ok(())
        })
        .unwrap();
    }
    get(lab, world.client.place(), "http://10.96.0.66/").unwrap();
    lab.delete(&service).unwrap();
}

#[test]
fn the_proxys_own_address_serves_metrics_and_readiness_and_nothing_else() {
    let world = world();
    let lab = &world.lab;
    let proxy = lab.proxy_pod("node-b").unwrap().v4().unwrap().to_string();
    for from in [&world.client, &world.plain_client] {
        for port in OWN_PORTS.into_iter().chain([ADMIN_PORT]) {
            let seen = call(lab, from.place(), "outcome", (&proxy, port)).unwrap();
            assert!(["refused", "reset"].contains(&&*seen), "{} to {proxy}:{port}: {seen}", from.name);
        }
        get(lab, from.place(), &format!("http://{proxy}:{METRICS_PORT}/metrics")).unwrap();
        get(lab, from.place(), &format!("http://{proxy}:{READY_PORT}/healthz/ready")).unwrap();
    }
}

/// The lines of the access log on dials to one of our ports that were refused as such.
fn refused(lab: &Lab, port: u16) -> anyhow::Result<Vec<Value>> {
    let end = format!(":{port} was dialled directly, which only the rules may do");
    let lines = lab.access_log("node-a")?.into_iter();
    Ok(lines.filter(|line| said(line, "reason") == "own_port" && said(line, "error").contains(&end)).collect())
}

/// Port 15008 takes anyone's connection, and ends it when no certificate comes.
fn ends_without_certificate(seen: &str) -> bool {
    ["reset", "closed"].contains(&seen) || seen.starts_with("answered b'\\x15\\x03")
}

#[test]
fn a_stranger_with_the_tunnels_source_port_does_not_walk_past_capture() {
    let world = world();
    let (lab, far) = (&world.lab, &world.far);
    let url = format!("http://{}:8080/", far.v4().unwrap());
    let argv = ["curl", "-sS", "--max-time", "5", "--local-port", "15008", &url];
    lab.run(world.plain_client.place(), &argv, SHORT).unwrap().ok().unwrap();
    let source = World::at(&world.plain_client, HBONE_PORT).unwrap();
    eventually(SHORT, "the connection to be accounted for", || {
        let lines = inbound(lab, far, &world.plain_client)?;
        let seen = lines.iter().any(|line| line.get("src.addr").and_then(|at| at.as_str()) == Some(&*source));
        anyhow::ensure!(seen, "{lines:#?}");
        Ok(())
    })
    .unwrap();
}
