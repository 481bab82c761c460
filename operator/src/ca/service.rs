//! The certificate protocol's server: who calls, may it, sign.

use std::time::{Duration, Instant, SystemTime};

use tonic::{Request, Response, Status};
use underpass_identity::wire::{
    IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use underpass_model::Identity;
use underpass_runtime::metrics::catalogue;

use super::{Attest, Authenticate, Authority, Caller, NodeName, SignError};

/// Signs for nodes what they run.
pub struct CertificateService<A, T> {
    authority: Authority,
    authenticate: A,
    attest: T,
}

impl<A: Authenticate, T: Attest> CertificateService<A, T> {
    /// Asks `authenticate` who calls and `attest` what it may have.
    #[must_use]
    pub fn new(authority: Authority, authenticate: A, attest: T) -> Self {
        Self { authority, authenticate, attest }
    }

    /// The service for tonic's router, which takes no request longer than any right one.
    #[must_use]
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(64 * 1024)
    }

    fn answer(&self, request: &Request<IstioCertificateRequest>) -> Result<Vec<String>, Refusal> {
        let node = self.authenticate.authenticate(request.metadata()).map_err(|error| {
            let peer = request.extensions().get::<Caller>().and_then(Caller::peer);
            tracing::warn!(%error, ?peer, "certificate refused to an unknown caller");
            Refusal { reason: "unauthenticated", status: Status::unauthenticated("who calls is not known") }
        })?;
        let message = request.get_ref();
        let identity = asked_identity(message)?;
        self.attest.attest(&node, &identity).map_err(|error| {
            tracing::warn!(%node, %identity, %error, "certificate refused");
            let words = format!("node {node} may not have a certificate for {identity}: {error}");
            Refusal { reason: error.reason(), status: Status::permission_denied(words) }
        })?;
        // What is not positive asks for the longest.
        let ttl = Duration::from_secs(u64::try_from(message.validity_duration).unwrap_or(0));
        let chain = self.authority.sign(&message.csr, &identity, ttl, SystemTime::now());
        let chain = chain.map_err(|error| refuse_to_sign(&node, &identity, &error))?;
        tracing::info!(%node, %identity, "certificate signed");
        Ok(chain)
    }
}

/// Why a call brings no certificate: for metrics, and for the caller.
struct Refusal {
    reason: &'static str,
    status: Status,
}

fn asked_identity(message: &IstioCertificateRequest) -> Result<Identity, Refusal> {
    use prost_types::value::Kind;
    let refusal = |words: String| Refusal { reason: "bad_request", status: Status::invalid_argument(words) };
    let field = message.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
    match field.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(name)) => {
            name.parse().map_err(|error| refusal(format!("metadata.{IMPERSONATED_IDENTITY}: {error}")))
        }
        Some(_) => Err(refusal(format!("metadata.{IMPERSONATED_IDENTITY} is not a string"))),
        None => Err(refusal(format!("metadata.{IMPERSONATED_IDENTITY} is missing"))),
    }
}

fn refuse_to_sign(node: &NodeName, identity: &Identity, error: &SignError) -> Refusal {
    tracing::warn!(%node, %identity, %error, "certificate not signed");
    let words = error.to_string();
    let status = match error {
        SignError::Request(_) => Status::invalid_argument(words),
        SignError::TrustDomain { .. } => Status::permission_denied(words),
        SignError::Expired => Status::unavailable(words),
        SignError::Make(_) | SignError::Serial(_) => Status::internal(words),
    };
    Refusal { reason: error.reason(), status }
}

#[tonic::async_trait]
impl<A: Authenticate, T: Attest> IstioCertificateService for CertificateService<A, T> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let begin = Instant::now();
        let result = self.answer(&request);
        let outcome = result.as_ref().map_or_else(|refusal| refusal.reason, |_| "signed");
        catalogue::OPERATOR_CERTIFICATES.with([outcome]).increment(1);
        let cert_chain = result.map_err(|refusal| refusal.status)?;
        catalogue::OPERATOR_SIGNING.with([]).record(begin.elapsed());
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[cfg(test)]
mod tests;
