//! The certificate protocol as generated from `proto/certificate.proto`, client and server.

#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod generated {
    tonic::include_proto!("istio.v1.auth");
}

pub use generated::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_client,
    istio_certificate_service_server,
};

/// The key in a request's metadata under which the caller names the workload it asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
