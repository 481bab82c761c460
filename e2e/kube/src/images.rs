//! The images that scenarios use, made of the programs that were built just now.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cluster::root;

/// The tag under which a cluster that was given is expected to have the images.
pub(crate) const GIVEN_TAG: &str = "e2e";

/// Images as files, which go with this value.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) tag: String,
    _directory: TempDir,
}

/// The programs that cargo built beside the running test.
pub(crate) fn binaries() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    test.ancestors().nth(2).map(Path::to_owned).context("the test is not in cargo's target directory")
}

/// Makes them.
pub(crate) fn build() -> Result<Images> {
    let directory = tempfile::tempdir()?;
    let output = Command::new(root().join("e2e/kube/images"))
        .args([&binaries()?, directory.path()])
        .stderr(Stdio::inherit())
        .output()
        .context("starting e2e/kube/images")?;
    ensure!(output.status.success(), "the images cannot be made");
    let tag = String::from_utf8(output.stdout)?.trim().to_owned();
    let files = directory.path().read_dir()?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    Ok(Images { files, tag, _directory: directory })
}
