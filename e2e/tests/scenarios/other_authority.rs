//! Certificates from another authority than the operator, and the list by which that one revokes.

use std::{fs, path::Path, time::SystemTime};

use underpass_e2e::{MESH, SHORT, alone_with, get, said, server, wait_authenticated};
use underpass_identity::{Credentials, Issued, Presented, testing::revocation_list};
use underpass_lab::{Lab, Place, PodSpec, until};

use crate::forged::{issued_by_the_root, line, open, root, signed_by_the_root};

/// Where the other authority serves, beside the operator.
const ADDRESS: &str = "172.30.0.2:15112";

/// An operator of which nothing is asked but certificates.
fn start_authority(lab: &Lab, home: &Path) {
    fs::create_dir(home.join("status")).unwrap();
    let binary = lab.options().binaries.join("underpass-operator").display().to_string();
    let flags = [
        format!("--objects={}", lab.paths().objects().display()),
        format!("--node-tokens={}", lab.paths().tokens().display()),
        format!("--status={}", home.join("status").display()),
        format!("--state={}", home.join("state").display()),
        format!("--listen={ADDRESS}"),
    ];
    let pages = ["--metrics-address=none", "--ready-address=none", "--admin-address=none"];
    let argv: Vec<&str> = [binary.as_str()].into_iter().chain(flags.iter().map(String::as_str)).chain(pages).collect();
    lab.spawn(Place::Control, "authority", &argv).unwrap();
    until(SHORT, "the other authority's root", || home.join("state/root.pem").exists()).unwrap();
}

/// The list on which the other authority's root revokes a certificate.
fn list_with(home: &Path, issued: &Issued) -> String {
    let (issuer, _) = root(&home.join("state")).unwrap();
    let serial = Presented::of(issued.certificate.chain()).serial().unwrap().as_bytes().to_vec();
    revocation_list(&issuer, [serial.into()]).pem().unwrap()
}

#[test]
fn another_authority_signs_for_everybody_and_revokes_by_its_list() {
    let home = tempfile::tempdir().unwrap();
    let list = home.path().join("lists.pem");
    let lab = alone_with(|options| {
        options.node_proxy_flags.extend([
            format!("--ca-address=https://{ADDRESS}"),
            format!("--ca-root={}", home.path().join("state/root.pem").display()),
            format!("--revocation-lists={}", list.display()),
        ]);
    })
    .unwrap();
    start_authority(&lab, home.path());
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();

    let visitor = "spiffe://cluster.local/ns/plain/sa/visitor".parse().unwrap();
    open(&lab, &far, &signed_by_the_root(&lab, &visitor, SystemTime::now()).unwrap()).unwrap_err();
    line(&lab, &far, "what the operator's root signed to be refused", |line| {
        said(line, "reason") == "tunnel_tls_failed"
    });
    let issued = issued_by_the_root(&home.path().join("state"), &visitor, SystemTime::now()).unwrap();
    let credentials = Credentials::new(&issued.certificate, &issued.roots, 1).unwrap();
    open(&lab, &far, &credentials).unwrap();
    fs::write(&list, list_with(home.path(), &issued)).unwrap();
    until(SHORT, "the visitor to be refused", || open(&lab, &far, &credentials).is_err()).unwrap();
    // That one may have been cut while it opened; the next is refused.
    open(&lab, &far, &credentials).unwrap_err();
    line(&lab, &far, "its refusal", |line| said(line, "reason") == "peer_certificate_revoked");
    get(&lab, client.place(), &format!("http://{}:8080/", far.v4().unwrap())).unwrap();
}
