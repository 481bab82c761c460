//! Leaves, issuing certificate and root are replaced under load, and nobody notices.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use underpass_e2e::{LONG, MESH, SHORT, alone_with, get, identity_of, redis, said, server, wait_authenticated};
use underpass_lab::{Lab, Place, Pod, PodSpec, Target, eventually};
use underpass_model::names::ADMIN_PORT;

use crate::forged::{line, open, signed_by_the_root};

/// Asks the operator for something; says how its authority stands.
pub(crate) fn operator(lab: &Lab, method: &str, path: &str) -> anyhow::Result<Value> {
    let url = format!("http://127.0.0.1:{ADMIN_PORT}{path}");
    let answer = lab.run(Place::Control, &["curl", "-sS", "--fail-with-body", "-X", method, &url], SHORT)?.ok()?;
    Ok(serde_json::from_str(&answer)?)
}

/// What a pod's node proxy says of the pod's certificate.
pub(crate) fn certificate(lab: &Lab, pod: &Pod) -> anyhow::Result<Value> {
    let dump: Value = serde_json::from_str(&lab.proxy_admin(&pod.node, "/config_dump")?)?;
    let identity = identity_of(pod);
    let all = dump.get("certificates").and_then(Value::as_array).cloned().unwrap_or_default();
    all.into_iter().find(|one| said(one, "identity") == identity).ok_or_else(|| anyhow::anyhow!("{dump:#}"))
}

fn names(status: &Value) -> Vec<String> {
    let roots = status["roots"].as_array().unwrap();
    roots.iter().map(|root| root["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn leaf_issuer_and_root_are_replaced_without_a_failed_call() {
    // A certificate is renewed at half of its life, so a node has ten seconds to do it, however busy the machine is.
    let lab = alone_with(|options| {
        options.operator_flags = ["--certificate-ttl=20", "--root-overlap=20"].map(str::to_owned).into();
    })
    .unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    redis(&lab, &far).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    // Signed by the old root, as if somebody had stolen it.
    let stolen = signed_by_the_root(&lab, &identity_of(&client).parse().unwrap(), SystemTime::now()).unwrap();
    open(&lab, &far, &stolen).unwrap();

    let (before, leaf) = (operator(&lab, "GET", "/authority").unwrap(), certificate(&lab, &far).unwrap());
    let host = far.v4().unwrap().to_string();
    let target = Target { http: (host.clone(), 8080), callers: 2, redis: Some((host, 6379)) };
    let load = lab.load(client.place(), "load", &target).unwrap();
    let rotated = operator(&lab, "POST", "/rotate?what=issuing").unwrap();
    assert_ne!(rotated["issuing_serial"], before["issuing_serial"]);
    let announced = operator(&lab, "POST", "/rotate?what=root").unwrap();
    assert_eq!((announced["phase"].as_str(), names(&announced).len()), (Some("announced"), 2));
    assert_eq!(announced["issuing_signed_by"], before["issuing_signed_by"], "the old root signs as yet");
    assert!(operator(&lab, "POST", "/rotate?what=root").is_err(), "one at a time");
    eventually(LONG, "the new root to be the only one", || {
        let now = operator(&lab, "GET", "/authority")?;
        anyhow::ensure!(now["phase"] == "single" && names(&now).len() == 1, "{now:#}");
        anyhow::ensure!(names(&now) != names(&before) && now["issuing_signed_by"] != before["issuing_signed_by"]);
        Ok(())
    })
    .unwrap();
    load.run_on(Duration::from_secs(1));
    let report = load.finish().unwrap();
    report.flawless().unwrap();
    assert!(report.exchanges > 0, "the long connection said nothing");

    for pod in [&client, &far] {
        eventually(LONG, "a certificate under the new root alone", || {
            let now = certificate(&lab, pod)?;
            anyhow::ensure!(now["roots"] == 1 && now["serial"] != leaf["serial"], "{now:#}");
            Ok(())
        })
        .unwrap();
    }
    get(&lab, client.place(), &format!("http://{}:8080/", far.v4().unwrap())).unwrap();
    open(&lab, &far, &stolen).unwrap_err();
    line(&lab, &far, "the refusal of what the old root signed", |line| line["reason"] == "tunnel_tls_failed");
    let metrics = lab.metrics("node-b").unwrap();
    let of_far = format!("underpass_certificate_expiry_timestamp_seconds{{identity=\"{}\"", identity_of(&far));
    for which in ["leaf", "issuer", "root"] {
        let told = metrics.lines().any(|line| line.starts_with(&of_far) && line.contains(&format!("\"{which}\"")));
        assert!(told, "no expiry of the {which}: {metrics}");
    }
}
