//! Envoy, the other implementation of HBONE that can be had as one binary: installed on demand, run with a configuration
//! of a few lines, asked afterwards what it saw.
//!
//! It is administered over a Unix socket, so it makes no difference in which network namespace it runs.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use underpass_identity::{CertificateAuthority, KeyPair};
use underpass_lab::{eventually, process};
use underpass_model::Identity;

mod config;

pub use config::{Listener, Upstream, bootstrap, cluster_by_authority, cluster_to, proxy, terminate, tunnel};

/// How long Envoy may take until it serves; it checks a new binary's pages, and the machine may be busy.
const START: Duration = Duration::from_secs(20);
/// Downloading and unpacking.
const INSTALL: Duration = Duration::from_secs(400);

/// The path of Envoy's binary; installs it if it is not there.
///
/// # Errors
/// If it cannot be installed, with what the installer said.
pub fn installed() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/envoy.sh");
    let mut command = Command::new("bash");
    command.arg(script);
    let path = process::run(command, None, INSTALL)?.ok().context("Envoy is not there and cannot be installed")?;
    Ok(path.trim_end().into())
}

/// A certificate as Envoy wants it, all in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The leaf and intermediates.
    pub chain: String,
    /// The leaf's key.
    pub key: String,
    /// Whom to trust.
    pub roots: String,
}

impl Certificate {
    /// What an authority answered for a key.
    ///
    /// # Errors
    /// If the answer is too short.
    pub fn of(answer: &[String], key: &KeyPair) -> Result<Self> {
        let (roots, chain) = answer.split_last().context("the authority answered nothing")?;
        ensure!(!chain.is_empty(), "the authority answered with roots alone");
        Ok(Self { chain: chain.concat(), key: key.to_pem(), roots: roots.clone() })
    }

    /// Asks an authority for one of an hour.
    ///
    /// # Errors
    /// If it gives none.
    pub async fn signed_by(authority: &dyn CertificateAuthority, identity: &Identity) -> Result<Self> {
        let key = KeyPair::generate()?;
        let answer = authority.sign(key.csr_pem(identity)?, identity, Duration::from_secs(3600)).await?;
        Self::of(&answer, &key)
    }
}

/// A running Envoy; it ends when this is dropped.
#[derive(Debug)]
pub struct Envoy {
    directory: TempDir,
    child: Child,
}

impl Envoy {
    /// Starts it where `wrap` runs commands, and waits until it serves.
    ///
    /// # Errors
    /// If it cannot be installed or does not come up, with the end of its log.
    pub fn start(bootstrap: &Value, wrap: impl FnOnce(&[&str]) -> Command) -> Result<Self> {
        let binary = installed()?;
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("envoy.json");
        let mut bootstrap = bootstrap.clone();
        let admin =
            serde_json::json!({ "address": { "pipe": { "path": directory.path().join("admin"), "mode": 0o600 } } });
        bootstrap.as_object_mut().context("the bootstrap is no object")?.insert("admin".to_owned(), admin);
        fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
        let (binary, file) = (binary.to_string_lossy(), file.to_string_lossy());
        // An Envoy whose test was killed would stay for ever.
        let argv = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            &binary,
            "--config-path",
            &file,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
            "50",
        ];
        let output = fs::File::create(directory.path().join("output"))?;
        let mut command = wrap(&argv);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut envoy = Self { directory, child };
        envoy.wait_ready()?;
        Ok(envoy)
    }

    fn wait_ready(&mut self) -> Result<()> {
        eventually(START, "Envoy to serve", || {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Err(format!("Envoy ended, {status}:\n{}", self.output())));
            }
            let ready = self.ask("/ready")?;
            ensure!(ready.trim() == "LIVE", "it says {ready}");
            Ok(Ok(()))
        })
        .with_context(|| self.output())?
        .or_else(|ended| bail!(ended))
    }

    /// A page of its administration interface.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ask(&self, path: &str) -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "5", "--unix-socket"]);
        command.arg(self.directory.path().join("admin")).arg(format!("http://envoy{path}"));
        process::run(command, None, Duration::from_secs(10))?.ok()
    }

    /// The address that a listener was given.
    ///
    /// # Errors
    /// If there is no such listener.
    pub fn address(&self, listener: &str) -> Result<SocketAddr> {
        let listeners: Value = serde_json::from_str(&self.ask("/listeners?format=json")?)?;
        let all = listeners.pointer("/listener_statuses").and_then(Value::as_array).map(Vec::as_slice);
        let mut all = all.unwrap_or_default().iter();
        let found = all.find(|one| one.get("name").and_then(Value::as_str) == Some(listener));
        let address =
            found.and_then(|one| one.pointer("/local_address/socket_address")).context(listener.to_owned())?;
        let text = |name: &str| address.get(name).and_then(Value::as_str);
        let ip = text("address").context("no address")?.parse()?;
        let port = address.get("port_value").and_then(Value::as_u64).context("no port")?;
        Ok(SocketAddr::new(ip, u16::try_from(port)?))
    }

    /// One of its counters or gauges; zero while it counted nothing.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn counted(&self, name: &str) -> Result<u64> {
        let page = self.ask("/stats")?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(Ok(0), |value| value.parse().with_context(|| format!("{name}: {value}")))
    }

    /// What it logged of connections and requests that ended, oldest first.
    #[must_use]
    pub fn access_log(&self) -> Vec<Value> {
        self.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until its access log has an entry.
    ///
    /// # Errors
    /// After the deadline, with what it logged instead.
    pub fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(Duration::from_secs(10), &format!("Envoy to log {what}"), || {
            self.access_log().into_iter().find(&wanted).with_context(|| self.output())
        })
    }

    /// Everything that it printed.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("output")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
