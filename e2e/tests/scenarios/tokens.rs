//! Who asks the operator for certificates that are none of its business, with tokens that are or are not its own.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use underpass_e2e::{SHORT, World, get, identity_of, world};
use underpass_identity::{AuthorityError, CertificateAuthority as _, GrpcAuthority, KeyPair};
use underpass_lab::{Place, Pod};
use underpass_model::names::OPERATOR_PORT;
use underpass_runtime::control::{Control, ControlOptions};

/// Asks from outside the mesh for a pod's certificate; says how the operator put its refusal.
fn ask(world: &World, token: &Path, pod: &Pod) -> Result<Option<String>> {
    let lab = &world.lab;
    let addresses = lab.run(Place::Control, &["hostname", "-I"], SHORT)?.ok()?;
    let address = addresses.split_whitespace().next().context("the operator has no address")?;
    let authority = GrpcAuthority::new(Control::new(ControlOptions {
        address: format!("https://{address}:{OPERATOR_PORT}"),
        root_file: lab.paths().operator_root(),
        server_name: "underpass-operator.underpass-system.svc".to_owned(),
        token_file: token.to_owned(),
    }));
    let identity = identity_of(pod).parse()?;
    let csr = KeyPair::generate()?.csr_pem(&identity)?;
    lab.inside(Place::Outside, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match tokio::time::timeout(SHORT, authority.sign(csr, &identity, Duration::from_secs(3600))).await? {
                Ok(_chain) => Ok(None),
                Err(AuthorityError::Refused(status)) => Ok(Some(format!("{:?}: {}", status.code(), status.message()))),
                Err(other) => Err(other.into()),
            }
        })
    })
}

/// How many requests the operator answered with a result.
fn counted(world: &World, result: &str) -> f64 {
    let page = get(&world.lab, Place::Control, "http://127.0.0.1:15020/metrics").unwrap();
    let series = format!("underpass_operator_certificate_requests_total{{result=\"{result}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&series)).map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn a_node_gets_no_certificate_of_a_pod_that_it_does_not_run_and_a_stranger_none() {
    let world = world();
    let token = |node: &str| world.lab.paths().tokens().join(node);
    let place = tempfile::tempdir().unwrap();
    // That of another mesh: well formed, and nobody's here.
    let foreign = place.path().join("token");
    fs::write(&foreign, "f0".repeat(32)).unwrap();
    let pod = &world.far;
    for (token, result, words) in [
        (token("node-a"), "not_on_node", "PermissionDenied: node node-a may not have a certificate for"),
        (foreign, "unauthenticated", "Unauthenticated: who calls is not known"),
    ] {
        let before = counted(&world, result);
        let refusal = ask(&world, &token, pod).unwrap().expect("signed");
        assert!(refusal.contains(words), "{refusal}");
        assert!(counted(&world, result) > before, "{result}");
        // Whoever runs it gets one.
        assert_eq!(ask(&world, &world.lab.paths().tokens().join("node-b"), pod).unwrap(), None);
    }
    get(&world.lab, world.client.place(), &format!("http://{}:8080/", pod.v4().unwrap())).unwrap();
}
