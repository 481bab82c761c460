//! Peers whose certificates the mesh's own root signed, and who must not be let in all the same.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, DistinguishedName, Issuer, SanType, SubjectPublicKeyInfo};
use serde_json::Value;
use tokio::{net::TcpStream, task::LocalSet};
use underpass_e2e::{SHORT, identity_of, said, world};
use underpass_hbone::{ConnectHeaders, ConnectRequest, Pool, PoolOptions, TunnelKey};
use underpass_identity::{Credentials, Issued, KeyPair, certificate::set_validity};
use underpass_lab::{Lab, Place, Pod, eventually};
use underpass_model::{
    Identity, PodUid, WorkloadUid,
    names::{ADMIN_PORT, HBONE_PORT, METRICS_PORT, OWN_PORTS, READY_PORT},
};

/// The root in an operator's state directory, to sign with.
pub(crate) fn root(state: &Path) -> Result<(Issuer<'static, rcgen::KeyPair>, String)> {
    let file = |name: &str| fs::read_to_string(state.join(name)).context("reading the root");
    let (roots, key) = (file("root.pem")?, file("root-key.pem")?);
    Ok((Issuer::from_ca_cert_pem(&roots, rcgen::KeyPair::from_pem(&key)?)?, roots))
}

/// A certificate that is valid around an instant, signed by the root's own key, which the operator would not do.
pub(crate) fn issued_by_the_root(state: &Path, identity: &Identity, around: SystemTime) -> Result<Issued> {
    const MARGIN: Duration = Duration::from_secs(600);
    let (issuer, roots) = root(state)?;
    let key = Arc::new(KeyPair::generate()?);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    set_validity(&mut params, around - MARGIN, around + MARGIN);
    let leaf = params.signed_by(&SubjectPublicKeyInfo::from_der(&key.public_key_info())?, &issuer)?;
    Ok(Issued::from_answer(&[leaf.pem(), roots], key, identity, around)?)
}

/// Credentials of it, under the lab's root.
pub(crate) fn signed_by_the_root(lab: &Lab, identity: &Identity, around: SystemTime) -> Result<Credentials> {
    let issued = issued_by_the_root(&lab.paths().operator(), identity, around)?;
    Ok(Credentials::new(&issued.certificate, &issued.roots, 1)?)
}

/// Asks, from outside the mesh, for a stream to a pod's web server.
pub(crate) fn open(lab: &Lab, server: &Pod, credentials: &Credentials) -> Result<()> {
    open_to(lab, server, credentials, &at(server, 8080).to_string())
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().unwrap(), port)
}

/// Asks, from outside the mesh, a pod for a stream to a target.
fn open_to(lab: &Lab, server: &Pod, credentials: &Credentials, authority: &str) -> Result<()> {
    let key = TunnelKey {
        pod: PodUid::new("forged"),
        own: credentials.identity.clone(),
        destination: WorkloadUid::of_pod("Kubernetes", &server.name.namespace, &server.name.name),
        address: at(server, HBONE_PORT),
        expect: Arc::from([identity_of(server).parse()?]),
    };
    let request = ConnectRequest { authority: authority.parse()?, headers: ConnectHeaders::default() };
    lab.inside(Place::Outside, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let pool = Pool::new(PoolOptions::default());
            pool.open(&key, &request, &credentials.client, || TcpStream::connect(key.address)).await?;
            Ok(())
        })
    })
}

/// Waits for a line of the access log on what came from outside.
pub(crate) fn line(lab: &Lab, server: &Pod, what: &str, wanted: impl Fn(&Value) -> bool) {
    eventually(SHORT, what, || {
        let lines = lab.access_log(&server.node)?;
        let outside = |line: &&Value| said(line, "src.addr").starts_with("172.30.0.100:");
        let found = lines.iter().filter(outside).any(&wanted);
        ensure!(found, "{:#?}", lines.iter().filter(outside).collect::<Vec<_>>());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_certificate_of_the_mesh_opens_a_tunnel_from_outside() {
    let world = world();
    let visitor: Identity = "spiffe://cluster.local/ns/plain/sa/visitor".parse().unwrap();
    let credentials = signed_by_the_root(&world.lab, &visitor, SystemTime::now()).unwrap();
    open(&world.lab, &world.far, &credentials).unwrap();
    line(&world.lab, &world.far, "the visitor's line", |line| said(line, "src.identity") == visitor.to_string());
}

/// Whoever has a certificate can ask for anything, and gets to the application of the pod that it dialled, nowhere else.
#[test]
fn a_tunnel_leads_to_the_pod_it_was_dialled_at_and_to_no_port_of_ours() {
    let world = world();
    let prober: Identity = "spiffe://cluster.local/ns/plain/sa/prober".parse().unwrap();
    let credentials = signed_by_the_root(&world.lab, &prober, SystemTime::now()).unwrap();
    let mut table = vec![
        (at(&world.near, 8080).to_string(), "authority_not_this_pod"),
        (at(&world.client, 8080).to_string(), "authority_not_this_pod"),
        ("127.0.0.1:8080".to_owned(), "authority_not_this_pod"),
        ("[::1]:8080".to_owned(), "authority_not_this_pod"),
        ("nobody.mesh.svc.cluster.local:80".to_owned(), "authority_unknown_service"),
        ("outsiders.plain.svc.cluster.local:80".to_owned(), "authority_unknown_service"),
        ("servers.mesh.svc.cluster.local:9".to_owned(), "authority_unknown_port"),
    ];
    table.extend(OWN_PORTS.map(|port| (at(&world.far, port).to_string(), "own_port")));
    // These are served by the proxy in a namespace of its own, not in the pod's.
    let elsewhere = [ADMIN_PORT, METRICS_PORT, READY_PORT];
    table.extend(elsewhere.map(|port| (at(&world.far, port).to_string(), "connect_refused")));
    for (authority, _) in &table {
        open_to(&world.lab, &world.far, &credentials, authority).unwrap_err();
    }
    for authority in [at(&world.far, 8080).to_string(), "servers.mesh.svc.cluster.local:80".to_owned()] {
        open_to(&world.lab, &world.far, &credentials, &authority).unwrap();
    }
    for (authority, reason) in table {
        line(&world.lab, &world.far, &format!("the refusal of {authority}"), |line| {
            said(line, "src.identity") == prober.to_string()
                && said(line, "reason") == reason
                && (said(line, "error").contains(&authority) || said(line, "dst.addr") == authority)
        });
    }
}

#[test]
fn another_trust_domain_under_the_right_root_is_refused() {
    let world = world();
    let foreigner: Identity = "spiffe://elsewhere/ns/mesh/sa/client".parse().unwrap();
    let credentials = signed_by_the_root(&world.lab, &foreigner, SystemTime::now()).unwrap();
    open(&world.lab, &world.far, &credentials).unwrap_err();
    line(&world.lab, &world.far, "the refusal", |line| {
        said(line, "reason") == "peer_wrong_trust_domain" && said(line, "error").contains("spiffe://elsewhere/")
    });
}

#[test]
fn an_expired_certificate_is_refused() {
    let world = world();
    let late: Identity = "spiffe://cluster.local/ns/mesh/sa/late".parse().unwrap();
    let credentials = signed_by_the_root(&world.lab, &late, SystemTime::now() - Duration::from_secs(1200)).unwrap();
    open(&world.lab, &world.far, &credentials).unwrap_err();
    line(&world.lab, &world.far, "the refusal", |line| {
        // Where the TLS library looks at the dates first, it is the one who refuses.
        let refused = ["peer_certificate_expired", "tunnel_tls_failed"].contains(&said(line, "reason"));
        refused && said(line, "error").contains("expired")
    });
}
