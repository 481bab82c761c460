//! What the agent must know again after a restart: which pods it holds, where, and how far each is captured.
//!
//! One file, replaced whole. A namespace is remembered by path and number, because a path can come to mean another.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use underpass_enrolment::netns::NetnsId;
use underpass_model::PodUid;
use underpass_objects::files;

use crate::find::Netns;

/// How far a pod is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not at all.
    #[default]
    Out,
    /// Listeners, rules and report stand.
    Captured,
    /// Reported as leaving; rules still stand.
    Leaving,
    /// New connections pass; captured ones live on.
    Draining,
}

/// One pod, as it is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// The sandbox that the container runtime named, if it was there for its ADD.
    #[serde(default)]
    pub container_id: String,
    /// The pod's interface, likewise.
    #[serde(default)]
    pub ifname: String,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    #[serde(default)]
    pub netns: Option<RememberedNetns>,
    /// How far it is captured.
    #[serde(default)]
    pub standing: Standing,
}

/// A network namespace, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedNetns {
    /// Where.
    pub path: PathBuf,
    /// The device of its number.
    pub device: u64,
    /// Its number.
    pub inode: u64,
}

/// The memory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Memory {
    path: PathBuf,
    pods: Arc<Mutex<BTreeMap<String, Remembered>>>,
    writing: Arc<Mutex<()>>,
}

/// Why the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Something else than this agent's writing stands in the file.
    #[error("{path} is not this agent's memory of its pods")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The file cannot be read or written.
    #[error("cannot use {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    pods: BTreeMap<String, Remembered>,
}

const VERSION: u32 = 1;
const FILE: &str = "pods.json";

impl Memory {
    /// Opens the memory in a directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`MemoryError`]. What cannot be understood is not overwritten.
    pub fn open(directory: &Path) -> Result<Self, MemoryError> {
        let path = directory.join(FILE);
        let failed = |source| MemoryError::Io { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let pods = match fs::read(&path) {
            Ok(contents) => {
                let file = serde_json::from_slice::<File>(&contents);
                file.map_err(|source| MemoryError::Malformed { path: path.clone(), source })?.pods
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, pods: Arc::new(Mutex::new(pods)), writing: Arc::default() })
    }

    /// Everything remembered.
    #[must_use]
    pub fn all(&self) -> Vec<(PodUid, Remembered)> {
        self.lock().iter().map(|(uid, pod)| (PodUid::new(uid), pod.clone())).collect()
    }

    /// Remembers a pod, or forgets it; on disk when this returns. Blocks.
    ///
    /// # Errors
    /// [`MemoryError::Io`]; memory and file may differ until the next success.
    pub fn set(&self, uid: &PodUid, pod: Option<Remembered>) -> Result<(), MemoryError> {
        let before = match pod {
            Some(pod) => self.lock().insert(uid.to_string(), pod.clone()).filter(|before| *before == pod),
            None if self.lock().remove(uid.as_str()).is_none() => return Ok(()),
            None => None,
        };
        if before.is_some() { Ok(()) } else { self.write() }
    }

    fn write(&self) -> Result<(), MemoryError> {
        // One writer at a time, each writing what is newest when its turn comes.
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File { version: VERSION, pods: self.lock().clone() };
        let contents =
            serde_json::to_vec(&file).map_err(|source| MemoryError::Malformed { path: self.path.clone(), source })?;
        files::write(&self.path, &contents, 0o600).map_err(|source| MemoryError::Io { path: self.path.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Remembered>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Netns> for RememberedNetns {
    fn from(netns: &Netns) -> Self {
        Self { path: netns.path.clone(), device: netns.id.device, inode: netns.id.inode }
    }
}

impl RememberedNetns {
    /// Opens it, if the path still leads to the same namespace.
    #[must_use]
    pub fn reopen(&self) -> Option<Netns> {
        let id = NetnsId { device: self.device, inode: self.inode };
        Netns::open(&self.path).ok().filter(|netns| netns.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Remembered {
        Remembered {
            namespace: "shop".into(),
            name: name.into(),
            standing: Standing::Captured,
            ..Remembered::default()
        }
    }

    #[test]
    fn what_is_remembered_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::open(&directory.path().join("agent")).unwrap();
        memory.set(&PodUid::new("a"), Some(pod("web-0"))).unwrap();
        memory.set(&PodUid::new("b"), Some(pod("web-1"))).unwrap();
        memory.set(&PodUid::new("b"), None).unwrap();
        let again = Memory::open(&directory.path().join("agent")).unwrap();
        assert_eq!(again.all(), [(PodUid::new("a"), pod("web-0"))]);
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        fs::write(&path, "something else").unwrap();
        assert!(matches!(Memory::open(directory.path()), Err(MemoryError::Malformed { .. })));
        assert_eq!(fs::read_to_string(path).unwrap(), "something else");
    }

    #[test]
    fn a_namespace_is_only_taken_for_the_remembered_one_if_its_number_is_the_same() {
        let own = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        let mut remembered = RememberedNetns::from(&own);
        assert!(remembered.reopen().is_some());
        remembered.inode += 1;
        assert!(remembered.reopen().is_none());
    }
}
