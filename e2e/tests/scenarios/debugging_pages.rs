//! What the node proxy tells whoever is on its node.

use serde_json::Value;
use underpass_e2e::{MESH, SHORT, alone, call, identity_of, server, wait_authenticated};
use underpass_lab::{Place, PodSpec, eventually};
use underpass_model::names::ADMIN_PORT;

#[test]
fn debugging_pages_show_what_goes_on() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let page = |path: &str| -> Value { serde_json::from_str(&lab.proxy_admin("node-a", path).unwrap()).unwrap() };

    let dump = page("/config_dump");
    let named = |list: &str, name: &str| dump[list].as_array().unwrap().iter().any(|one| one["name"] == name);
    assert!(named("pods", "client") && !named("pods", "far"), "its own pods: {dump:#}");
    assert!(named("workloads", "client") && named("workloads", "far"), "the whole mesh: {dump:#}");
    let text = dump.to_string();
    assert!(!text.contains("PRIVATE KEY") && text.contains(&identity_of(&client)), "certificates without secrets");

    // A connection that stays, seen while it lives, and gone when it has ended.
    let address = far.v4().unwrap().to_string();
    let held = [
        "python3",
        "-c",
        "import socket, sys, time\nc = socket.create_connection((sys.argv[1], 8081))\nc.sendall(b'x' * 1234)\ntime.sleep(600)",
        &address,
    ];
    let holder = lab.spawn(client.place(), "holder", &held).unwrap();
    let seen = || page("/connections")["connections"].as_array().unwrap().clone();
    let one = eventually(SHORT, "the connection on the page", || {
        let found = seen().into_iter().find(|one| one["bytes_sent"] == 1234 && one["bytes_received"] == 1234);
        found.ok_or_else(|| anyhow::anyhow!("{:#}", page("/connections")))
    })
    .unwrap();
    assert_eq!(one["direction"], "outbound");
    assert_eq!(one["source"]["identity"], identity_of(&client));
    assert_eq!(one["destination"]["identity"], identity_of(&far));
    assert_eq!(one["destination"]["workload"], "far");
    holder.kill().unwrap();
    eventually(SHORT, "the connection to leave the page", || {
        anyhow::ensure!(seen().iter().all(|other| other["number"] != one["number"]), "it is still there");
        Ok(())
    })
    .unwrap();

    assert!(lab.proxy_admin("node-a", "/debug/pprof/heap").unwrap().contains("Allocated: "));
    assert!(lab.proxy_admin("node-a", "/connections?limit=many").is_err(), "a limit is a number");

    // The level of the log, changed while it runs.
    let proxy = Place::pod("underpass-system", "nodeproxy-node-a");
    let logging = |level: &str| {
        let url = format!("http://127.0.0.1:{ADMIN_PORT}/logging?level={level}");
        lab.run(proxy.clone(), &["curl", "-sS", "--fail", "-X", "POST", &url], SHORT).unwrap().ok()
    };
    assert!(logging("access=nonsense").is_err());
    logging("info,access=off").unwrap();
    let closed = |port: u16| call(&lab, client.place(), "outcome", (&address, port)).unwrap();
    let line = |port: u16| {
        let dialled = format!("{address}:{port}");
        lab.access_log("node-a").unwrap().iter().any(|line| line["dst.addr"] == dialled.as_str())
    };
    closed(8097);
    eventually(SHORT, "everything to end", || {
        anyhow::ensure!(page("/connections")["live"] == 0);
        Ok(())
    })
    .unwrap();
    logging("info").unwrap();
    closed(8098);
    underpass_lab::until(SHORT, "the second call's line", || line(8098)).unwrap();
    assert!(!line(8097), "the first call left a line");
}
