//! The secured channel to the operator: TLS that trusts the mesh's root, and a token that is read anew for each call.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tonic::{
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Where the operator is and how each side proves who it is.
#[derive(Clone, Debug, clap::Args)]
pub struct ControlOptions {
    /// The operator's address, as `https://HOST:PORT`
    #[arg(id = "operator-address", long = "operator-address", env = "UNDERPASS_OPERATOR_ADDRESS")]
    #[arg(default_value = "https://underpass-operator.underpass-system.svc:15012", value_name = "URL")]
    pub address: String,
    /// File with the root certificates (PEM) that may vouch for the operator; read again for each connection
    #[arg(id = "operator-root", long = "operator-root", env = "UNDERPASS_OPERATOR_ROOT", value_name = "FILE")]
    #[arg(default_value = "/var/run/secrets/underpass/root/root.pem")]
    pub root_file: PathBuf,
    /// The name that the operator's certificate must carry
    #[arg(id = "operator-name", long = "operator-name", env = "UNDERPASS_OPERATOR_NAME", value_name = "DNS-NAME")]
    #[arg(default_value = "underpass-operator.underpass-system.svc")]
    pub server_name: String,
    /// File with the token that proves who we are; read again for each call, because tokens rotate
    #[arg(id = "token-file", long = "token-file", env = "UNDERPASS_TOKEN_FILE", value_name = "FILE")]
    #[arg(default_value = "/var/run/secrets/underpass/token/token")]
    pub token_file: PathBuf,
}

/// Why the operator cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address is no URL.
    #[error("operator address {address:?}")]
    Address {
        /// What was configured.
        address: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// No connection.
    #[error("connect to the operator at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// A file cannot be read.
    #[error("read {file}")]
    File {
        /// Which.
        file: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The token has a byte that no header may carry.
    #[error("token in {file} is not a visible ASCII text")]
    Token {
        /// Where it is.
        file: PathBuf,
    },
}

/// Connects to the operator; clones share the configuration, not a connection.
#[derive(Clone, Debug)]
pub struct Control(Arc<ControlOptions>);

impl Control {
    /// Uses these options.
    #[must_use]
    pub fn new(options: ControlOptions) -> Self {
        Self(Arc::new(options))
    }

    /// Where the operator is, for logs.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Connects. HTTP/2 keep-alive finds a dead operator within 40 s.
    ///
    /// # Errors
    /// [`ControlError`]: a file that cannot be read, an address that is none, or no connection within 5 s.
    pub async fn channel(&self) -> Result<Channel, ControlError> {
        let roots = self.read(&self.0.root_file).await?;
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots)).domain_name(self.0.server_name.clone());
        let address = &self.0.address;
        let endpoint = Endpoint::from_shared(address.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|source| ControlError::Address { address: address.clone(), source })?
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Some(Duration::from_secs(300)))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        endpoint.connect().await.map_err(|source| ControlError::Connect { address: address.clone(), source })
    }

    /// Adds the token to a request.
    ///
    /// # Errors
    /// [`ControlError::File`] or [`ControlError::Token`].
    pub async fn authorize<T>(&self, request: &mut tonic::Request<T>) -> Result<(), ControlError> {
        let file = &self.0.token_file;
        let token =
            String::from_utf8(self.read(file).await?).map_err(|_| ControlError::Token { file: file.clone() })?;
        let mut value: MetadataValue<_> =
            format!("Bearer {}", token.trim()).parse().map_err(|_| ControlError::Token { file: file.clone() })?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(())
    }

    async fn read(&self, file: &PathBuf) -> Result<Vec<u8>, ControlError> {
        tokio::fs::read(file).await.map_err(|source| ControlError::File { file: file.clone(), source })
    }
}
