//! HTTP/2 as a peer speaks it that got through the handshake, and then says what it likes.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, SanType};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    runtime::{Builder, Runtime},
    task::{LocalSet, spawn_local},
};
use tokio_rustls::TlsConnector;
use underpass_hbone::{Baggage, Incoming, ServerOptions, server};
use underpass_identity::{Credentials, Expected, Issued, KeyPair, certificate::set_validity, tls};
use underpass_model::{Identity, TrustDomain};

/// What comes before the first frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frames of a peer, after its preface: whatever they are, the tunnel ends when the peer is gone, and no more streams
/// are out at once than may be.
pub(crate) fn tunnel(input: &[u8]) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));
    let (near, far) = duplex(64 * 1024);
    LocalSet::new().block_on(runtime, async {
        let both = async { tokio::join!(say(near, input), serve(far)) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("a tunnel ends with its connection");
    });
}

/// Says it, hears what there is to hear, and goes.
async fn say(near: DuplexStream, input: &[u8]) {
    let connector = TlsConnector::from(Arc::clone(&credentials().client));
    let tls = connector.connect(tls::server_name(), near).await.expect("a handshake");
    let (mut hears, mut says) = tokio::io::split(tls);
    let hearing = spawn_local(async move { hears.read_to_end(&mut Vec::new()).await });
    // The server may have had enough of it before its end.
    let _said = says.write_all(&[PREFACE, input].concat()).await;
    let _gone = says.shutdown().await;
    let _heard = hearing.await;
}

async fn serve(far: DuplexStream) {
    let anybody = Expected::TrustDomain(TrustDomain::default());
    let options = ServerOptions::default();
    let accepted = server::accept(far, &credentials().server, &anybody, &options).await;
    let Ok(mut tunnel) = accepted else { return };
    let open = Rc::new(Cell::new(0_u32));
    while let Some(incoming) = tunnel.next().await {
        // Here and not in the stream's own task, whose panics the runtime would keep to itself.
        if let Ok(authority) = &incoming.authority {
            assert_eq!(authority.to_string().parse().as_ref(), Ok(authority));
        }
        open.set(open.get() + 1);
        assert!(open.get() <= options.max_streams);
        let open = Rc::clone(&open);
        spawn_local(async move {
            answer(incoming).await;
            open.set(open.get() - 1);
        });
    }
}

/// Says back what comes, or refuses.
async fn answer(incoming: Incoming) {
    if let Err(error) = &incoming.authority {
        let status = error.status();
        return incoming.refuse(status);
    }
    let Ok(stream) = incoming.accept(&Baggage::default()) else { return };
    let (mut read, mut write) = tokio::io::split(stream);
    let _ended = tokio::io::copy(&mut read, &mut write).await;
    let _ended = write.shutdown().await;
}

/// Both ends are the same workload, whose certificate is valid since an hour and for a month: longer than any run.
fn credentials() -> &'static Credentials {
    static MADE: OnceLock<Credentials> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut root = CertificateParams::default();
        root.distinguished_name = DistinguishedName::new();
        root.distinguished_name.push(DnType::CommonName, "root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = rcgen::KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(root, root_key).expect("a root");
        let (key, now) = (Arc::new(KeyPair::generate().expect("a key")), SystemTime::now());
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an identity");
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = DistinguishedName::new();
        leaf.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
        set_validity(&mut leaf, now - Duration::from_secs(3600), now + Duration::from_secs(30 * 86_400));
        let public = rcgen::SubjectPublicKeyInfo::from_der(&key.public_key_info()).expect("a key");
        let leaf = leaf.signed_by(&public, &root).expect("a leaf");
        let issued = Issued::from_answer(&[leaf.pem(), root.pem()], key, &identity, now).expect("our own answer");
        Credentials::new(&issued.certificate, &issued.roots, 1).expect("credentials")
    })
}
