//! A directory of small files: which ones changed since the last look, and writing one at once.
//!
//! Sub-directories, hidden files (so also half-written ones of [`write()`] and a mounted ConfigMap's `..data`) and what
//! is neither file nor link to a file are passed over. Links are followed.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

/// No file of manifests is larger; what is, is somebody's mistake.
const LARGEST: u64 = 32 << 20;
/// A file that changed so shortly ago is read again at the next look: a second write within a tick of the file system's
/// clock may leave size and times as they were.
const UNSETTLED: Duration = Duration::from_secs(2);

/// The files of one directory with given endings.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    endings: &'static [&'static str],
    known: BTreeMap<String, Option<Fingerprint>>,
}

/// What happened to one file since the last look.
#[derive(Debug)]
pub enum Change {
    /// It is gone.
    Gone(String),
    /// It is new or changed, and holds this.
    Read(String, Vec<u8>),
    /// It is new or changed, and cannot be read.
    Unreadable(String, io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Files {
    /// Watches over files of the directory; without endings, over all of them.
    #[must_use]
    pub fn new(directory: &Path, endings: &'static [&'static str]) -> Self {
        Self { directory: directory.into(), endings, known: BTreeMap::new() }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What changed since the last call, in the order of names, what is gone first.
    ///
    /// # Errors
    /// If the directory cannot be listed; then nothing counts as gone.
    pub fn changes(&mut self) -> io::Result<Vec<Change>> {
        self.changes_at(SystemTime::now())
    }

    fn changes_at(&mut self, now: SystemTime) -> io::Result<Vec<Change>> {
        let present = self.list()?;
        let mut changes = Vec::new();
        self.known.retain(|name, _| {
            let stays = present.contains_key(name);
            if !stays {
                changes.push(Change::Gone(name.clone()));
            }
            stays
        });
        for (name, fingerprint) in present {
            let settled = fingerprint.filter(|fingerprint| fingerprint.is_settled(now));
            if settled.is_some() && self.known.get(&name) == Some(&settled) {
                continue;
            }
            let fingerprint = match read(&self.directory.join(&name)) {
                Ok(contents) => {
                    changes.push(Change::Read(name.clone(), contents));
                    settled
                }
                // Gone between the listing and now; the next look says so if it was known.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    changes.push(Change::Unreadable(name.clone(), error));
                    // What keeps it from being read may pass without a trace in its times.
                    None
                }
            };
            self.known.insert(name, fingerprint);
        }
        Ok(changes)
    }

    fn list(&self) -> io::Result<BTreeMap<String, Option<Fingerprint>>> {
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let path = Path::new(&name);
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if name.starts_with('.') || !(self.endings.is_empty() || self.endings.contains(&ending)) {
                continue;
            }
            match fs::metadata(self.directory.join(&name)) {
                Ok(metadata) if metadata.is_file() => drop(present.insert(name, Some(Fingerprint::of(&metadata)))),
                Err(error) if error.kind() != io::ErrorKind::NotFound => drop(present.insert(name, None)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(present)
    }
}

impl Fingerprint {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        now.checked_sub(changed).is_some_and(|age| age > UNSETTLED)
    }
}

/// Reads a file that should be small.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {LARGEST} bytes")));
    }
    Ok(contents)
}

/// Puts a file in place at once: readers see what was there before or all of the new contents.
///
/// # Errors
/// If the directory does not take the file.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "path names no file in a directory");
    let (directory, name) = path.parent().zip(path.file_name()).ok_or_else(missing)?;
    let count = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{}.{}-{count}", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The write's error is the one to tell.
        let _gone = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// If it is there and stays.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn seen(files: &mut Files) -> Vec<String> {
        let shown = files.changes().unwrap().into_iter().map(|change| match change {
            Change::Gone(name) => format!("{name} gone"),
            Change::Read(name, contents) => format!("{name} {}", String::from_utf8(contents).unwrap()),
            Change::Unreadable(name, _) => format!("{name} unreadable"),
        });
        shown.collect()
    }

    #[test]
    fn tells_of_new_changed_and_gone_files_and_of_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut files = Files::new(directory.path(), &["yaml"]);
        assert!(seen(&mut files).is_empty());
        write(&at("a.yaml"), b"1", 0o644).unwrap();
        fs::write(at(".hidden.yaml"), "x").unwrap();
        fs::write(at("notes.txt"), "x").unwrap();
        fs::create_dir(at("directory.yaml")).unwrap();
        symlink("nowhere", at("dangling.yaml")).unwrap();
        symlink("notes.txt", at("link.yaml")).unwrap();
        assert_eq!(seen(&mut files), ["a.yaml 1", "link.yaml x"]);
        write(&at("a.yaml"), b"2", 0o644).unwrap();
        fs::remove_file(at("link.yaml")).unwrap();
        assert_eq!(seen(&mut files), ["link.yaml gone", "a.yaml 2"]);
    }

    #[test]
    fn only_a_file_that_has_settled_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "1").unwrap();
        let mut files = Files::new(directory.path(), &[]);
        let read_after = |files: &mut Files, seconds| {
            files.changes_at(SystemTime::now() + Duration::from_secs(seconds)).unwrap().len()
        };
        assert_eq!([0, 0, 60, 60].map(|seconds| read_after(&mut files, seconds)), [1, 1, 1, 0]);
    }

    #[test]
    fn a_missing_directory_is_an_error_and_nothing_counts_as_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("objects");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a"), "1").unwrap();
        let mut files = Files::new(&path, &[]);
        assert_eq!(seen(&mut files), ["a 1"]);
        fs::rename(&path, directory.path().join("away")).unwrap();
        assert!(files.changes().is_err());
        fs::create_dir(&path).unwrap();
        assert_eq!(seen(&mut files), ["a gone"]);
    }

    #[test]
    fn an_unreadable_file_is_tried_again_at_every_look() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("a")).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        let mut files = Files::new(directory.path(), &[]);
        for _look in 0..3 {
            let later = SystemTime::now() + UNSETTLED * 5;
            let changes = files.changes_at(later).unwrap();
            assert!(matches!(&changes[..], [Change::Unreadable(name, _)] if name == "a"), "{changes:?}");
        }
        file.set_len(0).unwrap();
        assert_eq!(seen(&mut files), ["a "]);
    }

    #[test]
    fn writing_leaves_no_temporary_file_and_keeps_the_mode() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("key"), b"secret", 0o600).unwrap();
        assert!(write(&directory.path().join("no/such"), b"x", 0o600).is_err());
        let entries: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].metadata().unwrap().mode() & 0o777, 0o600);
    }
}
