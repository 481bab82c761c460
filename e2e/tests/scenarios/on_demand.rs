//! A node that asks for each destination instead of holding the whole mesh.

use underpass_e2e::{MESH, PLAIN, alone_with, get, inbound, said, server, wait_authenticated};
use underpass_lab::PodSpec;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: far, namespace: mesh}
spec:
  clusterIP: 10.96.0.30
  selector: {app: far}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn a_destination_is_asked_for_when_it_is_dialled() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--on-demand".to_owned())).unwrap();
    lab.apply(SERVICE).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far").label("app", "far")).unwrap();
    let plain = server(&lab, &PodSpec::new("node-b", PLAIN, "plain")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let before = inbound(&lab, &far, &client).unwrap().len();
    get(&lab, client.place(), "http://10.96.0.30/").unwrap();
    underpass_lab::until(underpass_e2e::SHORT, "the call to the service to arrive", || {
        inbound(&lab, &far, &client).is_ok_and(|lines| lines.len() > before)
    })
    .unwrap();
    get(&lab, client.place(), &format!("http://{}:8080/", plain.v4().unwrap())).unwrap();
    // Nobody has called it, and yet it is known of every connection whose it is.
    let lines = lab.access_log(&client.node).unwrap();
    let own = lines.iter().filter(|line| said(line, "direction") == "outbound");
    let workloads: Vec<_> = own.map(|line| said(line, "src.workload")).collect();
    assert!(workloads.len() > 2 && workloads.iter().all(|workload| *workload == "client"), "{workloads:?}");
}
