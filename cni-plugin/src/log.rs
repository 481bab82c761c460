//! What the plugin did, for people: a line on standard error and in a file of bounded size. No framework, because the
//! program ends before one has started; and nothing here may fail a pod.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Where lines go.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<PathBuf>,
}

/// The size at which the file becomes `FILE.1`.
const FULL: u64 = 1 << 20;

impl Log {
    /// Writes to a file, too.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { file }
    }

    /// Writes one line that somebody should see.
    pub(crate) fn note(&self, text: &str) {
        // The runtime may have closed it; the pod is more important.
        drop(io::stderr().write_all(format!("underpass-cni: {text}\n").as_bytes()));
        self.record(text);
    }

    /// Writes one line to the file only.
    pub(crate) fn record(&self, text: &str) {
        if let Some(file) = &self.file {
            // A full or read-only disk keeps no pod from starting.
            drop(append(file, text));
        }
    }
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() >= FULL) {
        fs::rename(path, path.with_added_extension("1"))?;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!("{}.{:03} [{}] {}\n", since.as_secs(), since.subsec_millis(), std::process::id(), text);
    // One write, so that plugins of pods that start together do not mix their lines.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cni.log");
        fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
        Log::new(Some(file.clone())).record("ADD shop/web-0: enrolled");
        assert!(fs::read_to_string(&file).unwrap().ends_with("] ADD shop/web-0: enrolled\n"));
        assert_eq!(fs::metadata(directory.path().join("cni.log.1")).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_no_error() {
        Log::new(Some(PathBuf::from("/dev/null/nowhere"))).record("lost");
    }
}
