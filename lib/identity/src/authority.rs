//! Who signs: the trait that the store asks, and its client of the operator (or any authority of the same protocol).

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use prost_types::{Struct, Value, value::Kind};
use tokio::sync::Mutex;
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataValue, errors::InvalidMetadataValue},
    transport::Channel,
};
use underpass_model::Identity;
use underpass_runtime::control::{Control, ControlError};

use crate::wire::{
    IMPERSONATED_IDENTITY, IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};

/// What an authority gives: the leaf, intermediates, and last the roots, each in PEM.
pub type Answer = Result<Vec<String>, AuthorityError>;

/// Signs certificates for workloads. Implemented over gRPC, and in memory for tests.
pub trait CertificateAuthority: Send + Sync {
    /// Asks for a certificate with the public key of `csr_pem` for `identity`, valid for `ttl` or less. The caller
    /// bounds the time.
    fn sign(&self, csr_pem: String, identity: &Identity, ttl: Duration)
    -> Pin<Box<dyn Future<Output = Answer> + Send>>;
}

/// Why an authority gave no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No connection, or no token to show.
    #[error("the authority cannot be reached")]
    Unreachable(#[from] ControlError),
    /// It answered with an error, or the connection broke.
    #[error("the authority gave no certificate ({code:?}): {message}", code = .0.code(), message = .0.message())]
    Refused(Box<Status>),
    /// It did not answer in time.
    #[error("the authority did not answer within {0:?}")]
    Silent(Duration),
}

/// The authority behind the operator's channel. Clones share a connection.
#[derive(Clone)]
pub struct GrpcAuthority(Arc<Inner>);

struct Inner {
    control: Control,
    cluster: Option<AsciiMetadataValue>,
    connection: Mutex<Option<Connection>>,
}

#[derive(Clone)]
struct Connection {
    channel: Channel,
    number: u64,
}

impl GrpcAuthority {
    /// Asks the authority that `control` leads to; connects at the first call.
    #[must_use]
    pub fn new(control: Control) -> Self {
        Self(Arc::new(Inner { control, cluster: None, connection: Mutex::new(None) }))
    }

    /// As [`GrpcAuthority::new`], and tells the authority with each call in which cluster we are (`clusterid`).
    ///
    /// # Errors
    /// When the name has a byte that no header may carry.
    pub fn for_cluster(control: Control, cluster: &str) -> Result<Self, InvalidMetadataValue> {
        let cluster = Some(cluster.parse()?);
        Ok(Self(Arc::new(Inner { control, cluster, connection: Mutex::new(None) })))
    }
}

impl CertificateAuthority for GrpcAuthority {
    fn sign(
        &self,
        csr_pem: String,
        identity: &Identity,
        ttl: Duration,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let inner = Arc::clone(&self.0);
        let request = request(csr_pem, identity, ttl);
        Box::pin(async move { inner.call(request).await })
    }
}

impl Inner {
    async fn call(&self, request: IstioCertificateRequest) -> Answer {
        let connection = self.connected().await?;
        let mut request = Request::new(request);
        self.control.authorize(&mut request).await?;
        if let Some(cluster) = &self.cluster {
            request.metadata_mut().insert("clusterid", cluster.clone());
        }
        let mut client = IstioCertificateServiceClient::new(connection.channel);
        match client.create_certificate(request).await {
            Ok(response) => Ok(response.into_inner().cert_chain),
            Err(status) => {
                if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled)
                {
                    self.forget(connection.number).await;
                }
                Err(AuthorityError::Refused(Box::new(status)))
            }
        }
    }

    /// The connection, made if there is none. Calls that come meanwhile wait for the same one.
    async fn connected(&self) -> Result<Connection, ControlError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let connection = Connection { channel: self.control.channel().await?, number: fastrand::u64(..) };
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// A broken connection is made anew, not only repaired, because the roots in the file may have changed.
    async fn forget(&self, number: u64) {
        let mut slot = self.connection.lock().await;
        if slot.as_ref().is_some_and(|connection| connection.number == number) {
            *slot = None;
        }
    }
}

fn request(csr_pem: String, identity: &Identity, ttl: Duration) -> IstioCertificateRequest {
    let name = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    IstioCertificateRequest {
        csr: csr_pem,
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), name)]) }),
    }
}
