//! The lab by itself, without the mesh: what every scenario stands on.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::time::Duration;

use underpass_lab::{Lab, Place, Pod, PodName, PodSpec, Probe, ScopedLab, eventually};

const SHORT: Duration = Duration::from_secs(10);

fn plain() -> ScopedLab {
    ScopedLab::up(|options| options.mesh = false).unwrap()
}

/// A pod whose HTTP server answers with a text of its own.
fn server(lab: &Lab, node: &str, name: &str) -> Pod {
    let pod = lab.pod_add(&PodSpec::new(node, "shop", name).label("role", "web").port("http", 8080)).unwrap();
    let program = format!(
        "import http.server,socket\n\
         class H(http.server.BaseHTTPRequestHandler):\n \
           def do_GET(s):\n  b=('i am {name}, you are '+s.client_address[0]).encode()\n  s.send_response(200)\n  \
           s.send_header('content-length',str(len(b)))\n  s.end_headers()\n  s.wfile.write(b)\n\
         class S(http.server.ThreadingHTTPServer):\n address_family=socket.AF_INET6\n\
         S(('::',8080),H).serve_forever()"
    );
    lab.spawn(pod.place(), "http", &["python3", "-c", &program]).unwrap();
    eventually(SHORT, "the server to listen", || {
        let answer = lab.probe(node, &Probe::TcpSocket { address: (pod.v4()?, 8080).into() })?;
        anyhow::ensure!(answer.success, "{}", answer.detail);
        Ok(())
    })
    .unwrap();
    pod
}

fn get(lab: &Lab, from: impl Into<Place>, url: &str) -> anyhow::Result<String> {
    lab.run(from, &["curl", "-sS", "--max-time", "5", url], SHORT)?.ok()
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd96::10']
  selector: {role: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: shop}
spec:
  clusterIP: None
  selector: {role: web}
  ports: [{port: 8080}]
";

#[test]
fn pods_reach_each_other_by_address_name_and_service() {
    let lab = plain();
    lab.apply(SERVICES).unwrap();
    let (one, two) = (server(&lab, "node-a", "one"), server(&lab, "node-b", "two"));
    let client = lab.pod_add(&PodSpec::new("node-a", "shop", "client")).unwrap();
    let own = client.v4().unwrap();

    for (pod, name) in [(&one, "one"), (&two, "two")] {
        let (v4, v6) = (pod.v4().unwrap(), pod.v6().unwrap());
        for host in [&v4.to_string(), name] {
            let run = lab.run(&client.name, &["curl", "-4sS", &format!("http://{host}:8080/")], SHORT).unwrap();
            assert_eq!(run.ok().unwrap(), format!("i am {name}, you are ::ffff:{own}"));
        }
        let answer = get(&lab, &client.name, &format!("http://[{v6}]:8080/")).unwrap();
        assert_eq!(answer, format!("i am {name}, you are {}", client.v6().unwrap()));
    }
    // From pods on either node, a server itself among them, and from a node.
    for from in [client.place(), one.place(), two.place(), Place::node("node-b")] {
        for url in ["http://10.96.0.10/", "http://[fd96::10]/", "http://web.shop.svc/", "http://pods.shop:8080/"] {
            for _ in 0..4 {
                let answer =
                    get(&lab, from.clone(), url).unwrap_or_else(|error| panic!("{url} from {from}: {error:#}"));
                assert!(answer.starts_with("i am "), "{answer}");
            }
        }
    }
    assert!(
        get(&lab, Place::Outside, &format!("http://{}:8080/", two.v4().unwrap())).unwrap().contains("172.30.0.100")
    );

    // What is not ready gets no traffic; a service of nobody refuses at once.
    lab.pod_ready(&one.name, false).unwrap();
    for _ in 0..6 {
        assert!(get(&lab, &client.name, "http://10.96.0.10/").unwrap().starts_with("i am two"));
    }
    lab.pod_ready(&two.name, false).unwrap();
    let refused = lab.run(&client.name, &["curl", "-sS", "--max-time", "5", "http://10.96.0.10/"], SHORT).unwrap();
    assert_eq!(refused.status.and_then(|status| status.code()), Some(7), "{refused:?}");
}

#[test]
fn plaintext_is_seen_on_the_bridge_and_nothing_is_left_behind() {
    let lab = plain();
    let name = lab.options().name.clone();
    let pod = server(&lab, "node-b", "one");
    let client = lab.pod_add(&PodSpec::new("node-a", "shop", "client")).unwrap();
    lab.pod_check(&client.name).unwrap();
    let wire = lab.capture_fabric().unwrap();
    get(&lab, &client.name, &format!("http://{}:8080/", pod.v4().unwrap())).unwrap();
    let wire = wire.finish().unwrap();
    assert!(wire.shows("i am one") && wire.on_port(8080).opened() == 1 && wire.tls_records() == 0, "{wire:?}");

    lab.pod_delete(&client.name).unwrap();
    assert!(lab.pod(&client.name).is_err());
    let processes = lab.processes();
    assert!(processes.iter().any(|process| process.is_alive()));
    drop(lab);
    assert!(!Lab::names().contains(&name));
    assert!(processes.iter().all(|process| !process.is_alive()));
    assert!(!std::fs::exists(format!("/run/underpass-lab/{name}")).unwrap());
    let leftover = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("up-{name}-")))
    };
    assert!(!leftover("/run/netns") && !leftover("/etc/netns"));
    assert!(!Lab::down(&name).unwrap());
}

#[test]
fn congestion_control_is_reno_everywhere() {
    let lab = plain();
    let pod = lab.pod_add(&PodSpec::new("node-a", "shop", "one")).unwrap();
    for place in [pod.place(), Place::node("node-a"), Place::Outside, Place::Control] {
        let read = lab.run(place, &["cat", "/proc/sys/net/ipv4/tcp_congestion_control"], SHORT).unwrap();
        assert_eq!(read.ok().unwrap().trim(), "reno");
    }
}

#[test]
fn a_pod_that_its_chain_refuses_leaves_nothing() {
    let lab = plain();
    let conflist = lab.paths().node("node-a").join("lab.conflist");
    let good = std::fs::read_to_string(&conflist).unwrap();
    let mut bad: serde_json::Value = serde_json::from_str(&good).unwrap();
    bad["plugins"].as_array_mut().unwrap().push(serde_json::json!({ "type": "no-such-plugin" }));
    std::fs::write(&conflist, bad.to_string()).unwrap();
    let error = format!("{:#}", lab.pod_add(&PodSpec::new("node-a", "shop", "one")).unwrap_err());
    assert!(error.contains("no-such-plugin"), "{error}");
    assert!(lab.pod(&PodName::new("shop", "one")).is_err());
    std::fs::write(&conflist, good).unwrap();
    lab.pod_add(&PodSpec::new("node-a", "shop", "one")).unwrap();
}
