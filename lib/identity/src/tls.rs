//! TLS between workloads: what is offered, what a handshake checks, and who the peer then is.
//!
//! A handshake proves that the peer holds the key of a certificate which leads to a trusted root and is valid now.
//! It does not look at names. [`check_peer`] does, after *every* handshake and before any byte is used: a verifier is
//! not called on a resumed session, so nothing that decides about identity may live in one. Resumption is off
//! besides.

use std::{fmt, net::Ipv4Addr, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use underpass_model::Identity;

use crate::{certificate::WorkloadCertificate, presented::Presented, trust::TrustBundle};

mod peer;

pub use peer::{Expected, PeerError, check_peer};

/// The only application protocol between workloads.
pub const ALPN: &[u8] = b"h2";

/// What a workload needs for both ends of a handshake. Built once per certificate and bundle, then shared.
pub struct Credentials {
    /// Who we are.
    pub identity: Identity,
    /// For connections that we open.
    pub client: Arc<ClientConfig>,
    /// For connections that we accept.
    pub server: Arc<ServerConfig>,
    /// When our certificate ends to be valid. Nobody may use the credentials from then on.
    pub not_after: SystemTime,
    /// What peers see of us in a handshake, for whoever asks whether it was revoked without one.
    pub shown: Presented,
    /// Grows with each certificate and each change of the roots: two credentials of one identity are the same exactly
    /// when their generations are.
    pub generation: u64,
}

/// Why no credentials could be made of a certificate and roots.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificate of {identity}")]
pub struct CredentialsError {
    /// Whose certificate.
    pub identity: Identity,
    /// What rustls says.
    pub source: rustls::Error,
}

impl Credentials {
    /// Builds the configurations of both ends.
    ///
    /// # Errors
    /// [`CredentialsError`] when rustls refuses the key or the chain.
    pub fn new(
        certificate: &WorkloadCertificate,
        roots: &TrustBundle,
        generation: u64,
    ) -> Result<Self, CredentialsError> {
        let failed = |source| CredentialsError { identity: certificate.identity().clone(), source };
        let provider = provider();
        let chain = certificate.chain().to_vec();
        let key = CertifiedKey::from_der(chain, certificate.key().private_key(), &provider).map_err(failed)?;
        let own = Arc::new(SingleCertAndKey::from(key));
        let store = Arc::new(roots.store());
        Ok(Self {
            identity: certificate.identity().clone(),
            client: Arc::new(client_config(&provider, Arc::clone(&own), &store).map_err(failed)?),
            server: Arc::new(server_config(&provider, own, &store).map_err(failed)?),
            not_after: certificate.not_after(),
            shown: Presented::of(certificate.chain()),
            generation,
        })
    }

    /// Whether they may be used at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The name to pass to rustls for a connection that we open. It is neither sent nor checked; rustls wants one.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

/// The cryptography of the mesh: AES-GCM only, the cheaper 128 bits first; the hybrid post-quantum exchange first, with
/// the classical ones behind it for peers that know no better.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// Checks that a chain of our own will be accepted by peers with these roots, whichever end we are.
pub(crate) fn verify_own_chain(
    chain: &[CertificateDer<'static>],
    roots: &TrustBundle,
    now: SystemTime,
) -> Result<(), rustls::Error> {
    let provider = provider();
    let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let store = Arc::new(roots.store());
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| rustls::Error::FailedToGetCurrentTime)?;
    let now = UnixTime::since_unix_epoch(since_epoch);
    ChainVerifier::new(&provider, Arc::clone(&store)).verify(leaf, intermediates, now)?;
    client_verifier(&provider, &store)?.verify_client_cert(leaf, intermediates, now)?;
    Ok(())
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    own: Arc<SingleCertAndKey>,
    roots: &Arc<RootCertStore>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainVerifier::new(provider, Arc::clone(roots))))
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    own: Arc<SingleCertAndKey>,
    roots: &Arc<RootCertStore>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(client_verifier(provider, roots)?)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Clients of other meshes list 256 bits first; ours is the order that counts.
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// rustls's own verifier checks chain, validity and usage, and demands a certificate: all that is wanted here.
fn client_verifier(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        // A client has one certificate to offer; root names would only lengthen the handshake.
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Checks a server's chain, validity and usage, but no name: mesh certificates have no host names.
#[derive(Debug)]
struct ChainVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    fn new(provider: &CryptoProvider, roots: Arc<RootCertStore>) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
