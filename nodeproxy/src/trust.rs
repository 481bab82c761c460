//! Who is no longer believed: what the operator revoked, and the lists of other authorities in a file.

use std::{io, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use underpass_discovery::View;
use underpass_identity::{CertificateStatus, RevocationLists, Revocations, revocation::ListError};
use underpass_model::Revocation;
use underpass_runtime::{
    Shutdown,
    metrics::{Listed as _, catalogue},
    tasks,
};

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Begins to follow a file of lists. It is read before this returns, so before the first connection comes.
pub(crate) fn start(lists: Option<PathBuf>, revocations: &Revocations, stop: &Shutdown) {
    if let Some(path) = lists {
        let mut file = ListFile::new(path);
        file.look(revocations);
        tasks::root("revocation lists", file.run(revocations.clone(), stop.clone()), stop);
    }
}

/// Takes over what a view tells. Shown each view first, it has refused whoever is revoked before anybody is let in by it.
pub(crate) fn follow(revocations: Revocations) -> impl FnMut(&View) + Send + Sync {
    let mut known: Vec<Revocation> = Vec::new();
    move |view| {
        if !view.revocations().eq(&known) {
            known = view.revocations().cloned().collect();
            tracing::info!(revocations = known.len(), "the operator's revocations changed");
            revocations.set_told(known.iter().cloned());
        }
    }
}

/// Writes when each certificate ends, for whoever watches that they are renewed.
pub(crate) fn write_expiries(page: &mut String, certificates: &[CertificateStatus]) {
    let metric = &catalogue::CERTIFICATE_EXPIRY;
    let (name, help) = (metric.name(), metric.help());
    let mut lines = format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
    for status in certificates {
        let ends = [("leaf", status.not_after), ("issuer", status.issuer_not_after), ("root", status.root_not_after)];
        for (certificate, end) in ends {
            if let Some(end) = end {
                // No identity has a byte that would need an escape.
                let identity = &status.identity;
                lines += &format!("{name}{{identity=\"{identity}\",certificate=\"{certificate}\"}} {end}\n");
            }
        }
    }
    page.push_str(&lines);
}

/// The file of revocation lists, looked at again and again.
struct ListFile {
    path: PathBuf,
    /// What the file was like when it was read last.
    seen: Option<Look>,
    /// Whether something about it was complained of already.
    complained: bool,
}

/// Device, inode, length and time of change: mounted files are replaced whole, by a link that leads elsewhere.
type Look = (u64, u64, u64, i64, i64);

/// Why the lists that were read before stay in force.
#[derive(Debug, thiserror::Error)]
enum ListFileError {
    #[error("cannot be read")]
    Read(#[from] io::Error),
    #[error("is not taken")]
    Content(#[from] ListError),
}

impl ListFile {
    fn new(path: PathBuf) -> Self {
        Self { path, seen: None, complained: false }
    }

    /// Keeps the lists as the file has them, until asked to stop.
    async fn run(mut self, revocations: Revocations, stop: Shutdown) {
        loop {
            self.look(&revocations);
            tokio::select! {
                () = stop.requested() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Reads the file if it is another than before. A file that is missing or broken changes nothing: who was revoked
    /// stays revoked.
    fn look(&mut self, revocations: &Revocations) {
        match self.read() {
            Ok(Some(lists)) => {
                tracing::info!(path = %self.path.display(), revoked = lists.len(), "revocation lists read");
                revocations.set_lists(lists);
                self.complained = false;
            }
            Ok(None) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::error!(path = %self.path.display(), error, "revocation lists: the last good ones stay");
                }
            }
        }
    }

    fn read(&mut self) -> Result<Option<RevocationLists>, ListFileError> {
        let metadata = std::fs::metadata(&self.path)?;
        let look = (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        if self.seen == Some(look) {
            return Ok(None);
        }
        let contents = std::fs::read(&self.path)?;
        // Not before it could be read: a change of its mode is none of its time.
        self.seen = Some(look);
        self.complained = false;
        Ok(Some(RevocationLists::read(&contents)?))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use underpass_discovery::{Delta, Resource, Store, wire::ResourceType};
    use underpass_identity::{Presented, testing::TestAuthority};

    use super::*;

    #[test]
    fn nobody_acts_by_a_view_before_whom_it_revokes_is_refused() {
        let leaf = TestAuthority::new().issue(&"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
        let presented = Presented::of(leaf.certificate.chain());
        let revocation = Revocation::Serial(presented.serial().unwrap().clone());
        let revocations = Revocations::new();
        let mut store = Store::new().shown_first_to(follow(revocations.clone()));
        let mut tell = |changed: Vec<Resource>, removed| {
            let changed = changed.into_iter().map(|resource| (resource, Arc::from("1"))).collect();
            store.apply(Delta { kind: ResourceType::Revocation, changed, removed, complete: true });
            // Nothing else runs here that could take it over.
            revocations.find(&presented).is_some()
        };
        assert!(!tell(vec![], vec![]));
        assert!(tell(vec![Resource::Revocation(revocation.clone())], vec![]));
        assert!(!tell(vec![], vec![revocation.name()]), "taken back");
    }

    #[test]
    fn a_file_that_vanishes_or_breaks_takes_no_revocation_back() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("crl.pem");
        let (revocations, mut file) = (Revocations::new(), ListFile::new(path.clone()));
        let authority = TestAuthority::new();
        let leaf = authority.issue(&"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
        let presented = Presented::of(leaf.certificate.chain());
        let revoked = |file: &mut ListFile| {
            file.look(&revocations);
            revocations.find(&presented).is_some()
        };
        assert!(!revoked(&mut file), "there is none yet");
        // What cannot be read at first is read as soon as it can be, also if nothing else about it changes.
        fs::create_dir(&path).unwrap();
        file.look(&revocations);
        assert_eq!(file.seen, None);
        fs::remove_dir(&path).unwrap();
        fs::write(&path, authority.revocation_list_pem(&leaf.certificate.chain()[0])).unwrap();
        assert!(revoked(&mut file));
        fs::remove_file(&path).unwrap();
        assert!(revoked(&mut file));
        fs::write(&path, "no list").unwrap();
        assert!(revoked(&mut file));
        fs::write(&path, "").unwrap();
        assert!(revoked(&mut file), "that is how a file begins to be written anew");
        let other = authority.issue(&"spiffe://cluster.local/ns/shop/sa/other".parse().unwrap());
        fs::write(&path, authority.revocation_list_pem(&other.certificate.chain()[0])).unwrap();
        assert!(!revoked(&mut file), "taken back by a whole file");
    }
}
