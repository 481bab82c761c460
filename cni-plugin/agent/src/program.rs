//! Brings a pod's network namespace to where its rules should be: routes, table, one sysctl.
//!
//! Everything here blocks and runs on a throw-away thread inside the namespace, because `nft` inherits where it is
//! started; the pods' tasks keep it away from the runtime. Every operation can be repeated.

mod nft;
mod route;

use std::{
    fs, io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use underpass_enrolment::netns;
use underpass_model::exclusions::Exclusions;

use crate::redirect::{Phase, Redirect, Ruleset, TABLE, Verified};
pub use nft::NftError;
pub use route::RouteError;

/// How namespaces are programmed on this machine.
#[derive(Clone, Debug)]
pub struct Programmer {
    nft: PathBuf,
}

/// Which step in a namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The namespace is gone, or not one.
    #[error("cannot enter the network namespace")]
    Enter(#[source] io::Error),
    /// The reply routes.
    #[error("cannot program the reply route")]
    Route(#[source] RouteError),
    /// The table.
    #[error("cannot program the rules")]
    Rules(#[source] NftError),
    /// The table was written and something else was read back.
    #[error("the rules were written but do not read back: {0}")]
    ReadBack(String),
    /// A sysctl of the namespace.
    #[error("cannot set {path}")]
    Sysctl {
        /// Its file.
        path: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// What [`Programmer::mend`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mended {
    /// Everything as it should be.
    Intact,
    /// Something differed, and was put right.
    Repaired(String),
}

/// Tunnels are exempt from tracking, but a packet of theirs can still be seen mid-way when rules come and go.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
/// The same by way of the node's first process: container runtimes mount `/proc/sys` of a container read-only. Whichever
/// mount it is reached by, a file below `net` is that of the network namespace of whoever opens it.
const LIBERAL_OF_NODE: &str = "/proc/1/root/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

fn be_liberal() -> Result<(), ProgramError> {
    let set = |path: &'static str| fs::write(path, "1").map_err(|source| ProgramError::Sysctl { path, source });
    match set(LIBERAL) {
        Err(ProgramError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            set(LIBERAL_OF_NODE)
        }
        done => done,
    }
}

impl Programmer {
    /// Uses this `nft`.
    #[must_use]
    pub fn new(nft: &Path) -> Self {
        Self { nft: nft.to_owned() }
    }

    /// Writes the rules of a phase and what they need, whatever is there, and reads them back.
    ///
    /// # Errors
    /// [`ProgramError`] names the step; earlier steps stay done.
    pub fn apply(&self, netns: BorrowedFd<'_>, exclusions: &Exclusions, phase: Phase) -> Result<(), ProgramError> {
        let apply = || {
            let ruleset = Redirect { exclusions: exclusions.clone(), phase }.ruleset();
            self.write(&ruleset)
        };
        netns::on_thread(netns, apply).map_err(ProgramError::Enter)?
    }

    /// Looks whether everything is as [`Programmer::apply`] left it, and puts right what is not.
    ///
    /// # Errors
    /// As [`Programmer::apply`].
    pub fn mend(&self, netns: BorrowedFd<'_>, exclusions: &Exclusions, phase: Phase) -> Result<Mended, ProgramError> {
        let mend = || {
            let ruleset = Redirect { exclusions: exclusions.clone(), phase }.ruleset();
            match self.compare(&ruleset)? {
                Verified::Differs(difference) => self.write(&ruleset).map(|()| Mended::Repaired(difference)),
                Verified::Matches if route::ensure().map_err(ProgramError::Route)? => {
                    Ok(Mended::Repaired("the reply route was missing".to_owned()))
                }
                Verified::Matches => Ok(Mended::Intact),
            }
        };
        netns::on_thread(netns, mend).map_err(ProgramError::Enter)?
    }

    /// Compares without changing anything.
    ///
    /// # Errors
    /// [`ProgramError`] if the namespace cannot be looked at.
    pub fn verify(
        &self,
        netns: BorrowedFd<'_>,
        exclusions: &Exclusions,
        phase: Phase,
    ) -> Result<Verified, ProgramError> {
        let verify = || self.compare(&Redirect { exclusions: exclusions.clone(), phase }.ruleset());
        netns::on_thread(netns, verify).map_err(ProgramError::Enter)?
    }

    /// Takes everything away that [`Programmer::apply`] put there. Ends captured connections.
    ///
    /// # Errors
    /// [`ProgramError`] names the step.
    pub fn remove(&self, netns: BorrowedFd<'_>) -> Result<(), ProgramError> {
        let remove = || {
            nft::apply(&self.nft, Ruleset::removal()).map_err(ProgramError::Rules)?;
            route::remove().map_err(ProgramError::Route)
        };
        netns::on_thread(netns, remove).map_err(ProgramError::Enter)?
    }

    /// Takes away what is ours in a namespace of which nothing is known; false if nothing was there.
    ///
    /// # Errors
    /// [`ProgramError`] names the step.
    pub fn clean(&self, netns: BorrowedFd<'_>) -> Result<bool, ProgramError> {
        let is_there = || nft::list(&self.nft, TABLE).map_err(ProgramError::Rules).map(|listing| listing.is_some());
        let is_there = netns::on_thread(netns, is_there).map_err(ProgramError::Enter)??;
        if is_there {
            self.remove(netns)?;
        }
        Ok(is_there)
    }

    /// Routes first: rules whose marks led nowhere would lose replies.
    fn write(&self, ruleset: &Ruleset) -> Result<(), ProgramError> {
        route::ensure().map_err(ProgramError::Route)?;
        nft::apply(&self.nft, ruleset.batch()).map_err(ProgramError::Rules)?;
        // Only now: the file is there once something refers to connection tracking.
        be_liberal()?;
        match self.compare(ruleset)? {
            Verified::Matches => Ok(()),
            Verified::Differs(difference) => Err(ProgramError::ReadBack(difference)),
        }
    }

    fn compare(&self, ruleset: &Ruleset) -> Result<Verified, ProgramError> {
        match nft::list(&self.nft, TABLE).map_err(ProgramError::Rules)? {
            Some(listing) => Ok(ruleset.verify(&listing)),
            None => Ok(Verified::Differs("the table is missing".to_owned())),
        }
    }
}
