//! Certificates and keys in one file, from one process to the next: a restarted or upgraded proxy serves at once, also
//! while the authority is away.
//!
//! Keys never reach a disk: the file must lie on a file system in memory, and only its owner may read it. What is read
//! passes the same checks as an authority's answer.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use nix::sys::statfs::{self, TMPFS_MAGIC};
use pem::Pem;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use underpass_model::Identity;

use crate::{certificate::Issued, key::KeyPair};

/// A file in memory for certificates and keys. Clones are the same file.
#[derive(Debug, Clone)]
pub struct KeptFile {
    path: PathBuf,
    /// Whether another process writes it now.
    left: Arc<AtomicBool>,
}

/// Why certificates are not kept in a file.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Its directory is on a disk, or somewhere that is not known to be in memory.
    #[error("{directory} is not on tmpfs, and keys must not reach a disk")]
    Disk {
        /// Which directory.
        directory: PathBuf,
    },
    /// The file may be read by others.
    #[error("{path} has mode {mode:04o}, expected 0600")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// An operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The content is not ours.
    #[error("{path} is not a file of certificates")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The file's content. Another version is a broken file, which costs a fetch per identity and nothing else.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    certificates: Vec<Kept>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    identity: String,
    key: String,
    /// As an authority answers: the chain, and last the roots.
    answer: Vec<String>,
}

impl KeptFile {
    /// Uses a file, whose directory exists and is in memory. The file itself need not exist.
    ///
    /// # Errors
    /// [`KeptError::Disk`] when the directory is not on tmpfs, [`KeptError::Io`] when it cannot be asked.
    pub fn new(path: PathBuf) -> Result<Self, KeptError> {
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let kind = statfs::statfs(&directory).map_err(|errno| KeptError::Io {
            what: "examine",
            path: directory.clone(),
            source: errno.into(),
        })?;
        if kind.filesystem_type() == TMPFS_MAGIC { Ok(Self::at(path)) } else { Err(KeptError::Disk { directory }) }
    }

    fn at(path: PathBuf) -> Self {
        Self { path, left: Arc::default() }
    }

    /// Leaves the file to a process that serves in our stead: it has pods that we do not know, whose certificates we would
    /// take out. Or, when that is gone, writes it again.
    pub fn leave(&self, to_another: bool) {
        self.left.store(to_another, Ordering::Relaxed);
    }

    /// What the process before kept, as far as it is still good.
    pub(super) fn read(&self, now: SystemTime) -> Vec<Issued> {
        let kept = self.load().unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "no certificates are taken over from the process before");
            Vec::new()
        });
        let good = kept.iter().filter_map(|kept| {
            let issued = kept.check(now);
            if let Err(error) = &issued {
                tracing::info!(identity = kept.identity, error, "a certificate that was kept is not used");
            }
            issued.ok()
        });
        good.collect()
    }

    fn load(&self) -> Result<Vec<Kept>, KeptError> {
        let path = &self.path;
        let failed = |source| KeptError::Io { what: "read", path: path.clone(), source };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeptError::Mode { path: path.clone(), mode });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let content: Content =
            serde_json::from_str(&text).map_err(|source| KeptError::Content { path: path.clone(), source })?;
        Ok(content.certificates)
    }

    /// Replaces the file at once, unless it was left to another process.
    pub(super) fn write<'a>(&self, held: impl Iterator<Item = &'a Issued>) -> Result<(), KeptError> {
        if self.left.load(Ordering::Relaxed) {
            return Ok(());
        }
        let content = Content { certificates: held.map(Kept::of).collect() };
        let text =
            serde_json::to_vec(&content).map_err(|source| KeptError::Content { path: self.path.clone(), source })?;
        // During an upgrade two generations write, each as process 1 of a container of its own: only chance tells them apart.
        let temporary = self.path.with_extension(format!("{:016x}.new", fastrand::u64(..)));
        let failed = |source| KeptError::Io { what: "write", path: temporary.clone(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
        let written = file.write_all(&text).and_then(|()| fs::rename(&temporary, &self.path));
        // Keys are not left behind under a name that nobody would look for.
        written.inspect_err(|_| drop(fs::remove_file(&temporary))).map_err(failed)
    }
}

impl Kept {
    fn of(issued: &Issued) -> Self {
        let to_pem = |der: &CertificateDer<'_>| pem::encode(&Pem::new("CERTIFICATE", der.to_vec()));
        let chain = issued.certificate.chain().iter().map(to_pem);
        let roots: String = issued.roots.roots().map(to_pem).collect();
        Self {
            identity: issued.certificate.identity().to_string(),
            key: issued.certificate.key().to_pem(),
            answer: chain.chain([roots]).collect(),
        }
    }

    fn check(&self, now: SystemTime) -> Result<Issued, String> {
        let identity: Identity = self.identity.parse().map_err(|error| format!("{error}"))?;
        let key = KeyPair::from_pem(&self.key).map_err(|error| error.to_string())?;
        Issued::from_answer(&self.answer, Arc::new(key), &identity, now).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestAuthority;
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    const DAY: Duration = Duration::from_secs(86_400);

    fn issue() -> Issued {
        TestAuthority::new().issue(&"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap())
    }

    #[test]
    fn what_is_written_is_read_until_it_expires() {
        let place = tempfile::tempdir().unwrap();
        let file = KeptFile::at(place.path().join("certificates"));
        let now = SystemTime::now();
        assert!(file.read(now).is_empty());
        let issued = issue();
        for _ in 0..2 {
            file.write([&issued].into_iter()).unwrap();
        }
        assert_eq!(fs::metadata(&file.path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "no temporary file remains");
        let read = file.read(now);
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].certificate.chain(), issued.certificate.chain());
        assert_eq!(read[0].roots, issued.roots);
        assert!(file.read(now + DAY * 2).is_empty());
    }

    #[test]
    fn a_file_that_was_left_to_another_process_stays_as_that_wrote_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("certificates");
        let (old, young) = (KeptFile::at(path.clone()), KeptFile::at(path));
        let (of_old, of_young) = (issue(), issue());
        let chains = |file: &KeptFile| {
            let read = file.read(SystemTime::now());
            read.iter().map(|issued| issued.certificate.chain().to_vec()).collect::<Vec<_>>()
        };
        old.write([&of_old].into_iter()).unwrap();
        old.leave(true);
        young.write([&of_young].into_iter()).unwrap();
        old.write([&of_old].into_iter()).unwrap();
        assert_eq!(chains(&old), [of_young.certificate.chain().to_vec()]);
        old.leave(false);
        old.write([&of_old].into_iter()).unwrap();
        assert_eq!(chains(&young), [of_old.certificate.chain().to_vec()]);
    }

    #[test]
    fn refuses_a_disk() {
        for path in ["/proc/certificates", "/sys/certificates"] {
            assert!(matches!(KeptFile::new(path.into()), Err(KeptError::Disk { .. })), "{path}");
        }
        assert!(matches!(KeptFile::new("/nowhere/at/all".into()), Err(KeptError::Io { .. })));
    }

    #[test]
    fn refuses_a_file_that_others_may_read_or_that_is_broken() {
        let place = tempfile::tempdir().unwrap();
        let file = KeptFile::at(place.path().join("certificates"));
        file.write([&issue()].into_iter()).unwrap();
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(file.load(), Err(KeptError::Mode { mode: 0o640, .. })));
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file.path, "{\"certificates\": 1}").unwrap();
        assert!(matches!(file.load(), Err(KeptError::Content { .. })));
        assert!(file.read(SystemTime::now()).is_empty());
    }
}
