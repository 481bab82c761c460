//! Runs `nft -j` in the namespace of this thread: bounded in time, with its complaint in the error.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

/// Why `nft` did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The rules have no JSON form.
    #[error("cannot print the rules as JSON")]
    Encode(#[source] serde_json::Error),
    /// It refused.
    #[error("nft refused ({status}): {complaint}")]
    Failed {
        /// Its exit status.
        status: ExitStatus,
        /// What it wrote to standard error.
        complaint: String,
    },
    /// It could not be started or spoken to.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It took too long and was stopped.
    #[error("nft did not end within {} s", LONGEST.as_secs())]
    Slow,
}

/// A transaction takes milliseconds; a machine under load some more.
const LONGEST: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The most of a complaint that an error repeats.
const REPEATED: u64 = 1000;

/// Applies one transaction.
pub(super) fn apply(nft: &Path, batch: Result<Value, serde_json::Error>) -> Result<(), NftError> {
    let batch = batch.map_err(NftError::Encode)?.to_string();
    run(nft, &["-j", "-f", "-"], batch.as_bytes()).map(drop)
}

/// Lists one table of family inet; `None` if there is no such table.
pub(super) fn list(nft: &Path, table: &str) -> Result<Option<String>, NftError> {
    let list = || run(nft, &["-j", "list", "table", "inet", table], &[]);
    match list() {
        Ok(listing) => Ok(Some(listing)),
        // Its words for a missing table depend on version and locale, so the tables are listed to be certain.
        Err(NftError::Failed { .. }) if !names(&run(nft, &["-j", "list", "tables", "inet"], &[])?, table) => Ok(None),
        // Somebody else may have written it just now.
        Err(NftError::Failed { .. }) => list().map(Some),
        Err(error) => Err(error),
    }
}

fn names(tables: &str, table: &str) -> bool {
    let tables: Value = serde_json::from_str(tables).unwrap_or_default();
    let objects = tables.get("nftables").and_then(Value::as_array);
    objects.is_some_and(|objects| {
        objects.iter().any(|object| object.pointer("/table/name").and_then(Value::as_str) == Some(table))
    })
}

fn run<A: AsRef<OsStr>>(nft: &Path, arguments: &[A], input: &[u8]) -> Result<String, NftError> {
    let (mut output, mut complaint) = (buffer("nft-output")?, buffer("nft-complaint")?);
    let handle = |file: &File| file.try_clone().map(Stdio::from).map_err(NftError::Run);
    let mut source = buffer("nft-input")?;
    source.write_all(input).and_then(|()| source.rewind()).map_err(NftError::Run)?;
    let child = Command::new(nft)
        .args(arguments)
        .stdin(source)
        .stdout(handle(&output)?)
        .stderr(handle(&complaint)?)
        .spawn()
        .map_err(NftError::Run)?;
    let status = wait(child)?;
    if !status.success() {
        let complaint = read(&mut complaint, REPEATED)?.trim().replace('\n', "; ");
        return Err(NftError::Failed { status, complaint });
    }
    read(&mut output, u64::MAX)
}

/// Files in memory instead of pipes: nothing can fill up, so there is nothing to be read while waiting.
fn buffer(name: &str) -> Result<File, NftError> {
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(io::Error::from);
    file.map(File::from).map_err(NftError::Run)
}

fn read(file: &mut File, most: u64) -> Result<String, NftError> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.take(most).read_to_end(&mut bytes)).map_err(NftError::Run)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn wait(mut child: Child) -> Result<ExitStatus, NftError> {
    let deadline = Instant::now() + LONGEST;
    loop {
        if let Some(status) = child.try_wait().map_err(NftError::Run)? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill().and_then(|()| child.wait()).map_err(NftError::Run)?;
            return Err(NftError::Slow);
        }
        thread::sleep(LOOK_EVERY);
    }
}
