//! What the agent must know again after a restart: which pods it holds, where, and how far each is captured.
//!
//! One file, replaced whole. A namespace is remembered by path and number, because a path can come to mean another.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
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
    /// Reported as leaving; rules still stand.
    Leaving,
    /// New connections pass; captured ones live on.
    Draining,
    /// Listeners, rules and report stand. What another version calls otherwise is taken for this, too: nothing is
    /// taken away from such a pod without looking, and the look puts right what differs.
    #[serde(other)]
    Captured,
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
    /// Its sandbox has ended: its address may be another pod's by now.
    #[serde(default)]
    pub dismissed: bool,
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
    /// Whether the file lacks something.
    dirty: Arc<AtomicBool>,
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
    /// Another version of the agent wrote the file.
    #[error("{path} has version {version}; {VERSION} is understood here")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
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
struct File<P> {
    version: u32,
    pods: BTreeMap<String, P>,
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
            Ok(contents) => parse(&path, &contents)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, pods: Arc::new(Mutex::new(pods)), writing: Arc::default(), dirty: Arc::default() })
    }

    /// Everything remembered.
    #[must_use]
    pub fn all(&self) -> Vec<(PodUid, Remembered)> {
        self.lock().iter().map(|(uid, pod)| (PodUid::new(uid), pod.clone())).collect()
    }

    /// Remembers a pod, or forgets it; on disk when this returns. Blocks.
    ///
    /// # Errors
    /// [`MemoryError::Io`]; memory and file differ until the next success, which any further call tries.
    pub fn set(&self, uid: &PodUid, pod: Option<Remembered>) -> Result<(), MemoryError> {
        let differs = match pod {
            Some(pod) => self.lock().insert(uid.to_string(), pod.clone()).as_ref() != Some(&pod),
            None => self.lock().remove(uid.as_str()).is_some(),
        };
        if differs {
            self.dirty.store(true, Ordering::Release);
        }
        if self.dirty.load(Ordering::Acquire) { self.write() } else { Ok(()) }
    }

    fn write(&self) -> Result<(), MemoryError> {
        // One writer at a time, each writing what is newest when its turn comes.
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the look: what changes after it is another's to write.
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.write_now().inspect_err(|_| self.dirty.store(true, Ordering::Release))
    }

    fn write_now(&self) -> Result<(), MemoryError> {
        let file = File { version: VERSION, pods: self.lock().clone() };
        let contents =
            serde_json::to_vec(&file).map_err(|source| MemoryError::Malformed { path: self.path.clone(), source })?;
        files::write(&self.path, &contents, 0o600).map_err(|source| MemoryError::Io { path: self.path.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Remembered>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pod that is not understood is told and left out; the file must be ours.
fn parse(path: &Path, contents: &[u8]) -> Result<BTreeMap<String, Remembered>, MemoryError> {
    let malformed = |source| MemoryError::Malformed { path: path.to_owned(), source };
    // The version first: another one may have another shape.
    let Version { version } = serde_json::from_slice(contents).map_err(malformed)?;
    if version != VERSION {
        return Err(MemoryError::Version { path: path.to_owned(), version });
    }
    let file: File<serde_json::Value> = serde_json::from_slice(contents).map_err(malformed)?;
    let pods = file.pods.into_iter().filter_map(|(uid, pod)| match serde_json::from_value(pod) {
        Ok(pod) => Some((uid, pod)),
        Err(error) => {
            tracing::error!(pod.uid = uid, %error, path = %path.display(), "what was remembered of a pod is not understood");
            None
        }
    });
    Ok(pods.collect())
}

#[derive(Deserialize)]
struct Version {
    version: u32,
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

    #[test]
    fn another_version_is_refused_and_one_odd_pod_is_not_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        fs::write(&path, r#"{"version":2,"pods":[1]}"#).unwrap();
        assert!(matches!(Memory::open(directory.path()), Err(MemoryError::Version { version: 2, .. })));
        let pods = r#"{"a":{"namespace":"shop","name":"web-0","service_account":"","standing":"floating"},"b":7}"#;
        fs::write(&path, format!(r#"{{"version":1,"pods":{pods}}}"#)).unwrap();
        let memory = Memory::open(directory.path()).unwrap();
        assert_eq!(memory.all(), [(PodUid::new("a"), pod("web-0"))]);
    }

    #[test]
    fn what_could_not_be_written_is_written_with_the_next_call() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("agent");
        let memory = Memory::open(&home).unwrap();
        fs::remove_dir(&home).unwrap();
        assert!(memory.set(&PodUid::new("a"), Some(pod("web-0"))).is_err());
        assert!(memory.set(&PodUid::new("a"), Some(pod("web-0"))).is_err(), "still not on the disk");
        fs::create_dir(&home).unwrap();
        memory.set(&PodUid::new("a"), Some(pod("web-0"))).unwrap();
        assert_eq!(Memory::open(&home).unwrap().all(), [(PodUid::new("a"), pod("web-0"))]);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn arbitrary_files_never_panic(contents in prop::collection::vec(any::<u8>(), 0..200), uid in ".*", text in ".*") {
                drop(parse(Path::new("pods.json"), &contents));
                let odd = serde_json::json!({ "version": VERSION, "pods": { uid: { "name": text } } }).to_string();
                prop_assert!(parse(Path::new("pods.json"), odd.as_bytes()).unwrap().is_empty());
            }

            #[test]
            fn any_pod_survives_the_disk(name in ".*", inode: u64, dismissed: bool, addresses: Vec<IpAddr>) {
                let netns = Some(RememberedNetns { path: PathBuf::from("/run/netns/a"), device: 4, inode });
                for standing in [Standing::Out, Standing::Captured, Standing::Leaving, Standing::Draining] {
                    let pod = Remembered { netns: netns.clone(), standing, dismissed, addresses: addresses.clone(), ..pod(&name) };
                    let file = File { version: VERSION, pods: [("u".to_owned(), pod.clone())].into() };
                    let read = parse(Path::new("pods.json"), &serde_json::to_vec(&file).unwrap()).unwrap();
                    prop_assert_eq!(read.get("u"), Some(&pod));
                }
            }
        }
    }
}
