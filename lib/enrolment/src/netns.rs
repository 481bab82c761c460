//! Acting inside a pod's network namespace.
//!
//! A namespace belongs to a thread, and everything that starts on the thread inherits it: a task polled, a thread
//! spawned, a child process. Hence two ways in, both synchronous: [`inside`] for a few system calls (making sockets),
//! [`on_thread`] for whatever starts processes (`nft`) or takes long. Never await or spawn in the closure of [`inside`].

use std::{
    fs::File,
    io,
    io::Write as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Which namespace it is: the same for every descriptor of it, and never two at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// The device of the kernel's namespace files.
    pub device: u64,
    /// The namespace's number on it; used again after the namespace is gone.
    pub inode: u64,
}

/// Opens a namespace by its path, such as `/var/run/netns/NAME` or `/proc/PID/ns/net`.
///
/// # Errors
/// As the kernel says. That it is a network namespace shows when it is entered.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Which namespace a descriptor is of.
///
/// # Errors
/// As the kernel says.
pub fn id(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = File::from(netns.try_clone_to_owned()?).metadata()?;
    Ok(NetnsId { device: metadata.dev(), inode: metadata.ino() })
}

/// Runs a short, synchronous closure with this thread inside a network namespace, and returns to where it was.
///
/// If the way back fails the process aborts: going on would serve one pod's traffic in another pod's network.
///
/// # Errors
/// If the namespace cannot be entered; the closure has not run then.
pub fn inside<T>(netns: BorrowedFd<'_>, action: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    enter(netns)?;
    let _return = Return { home };
    Ok(action())
}

/// Runs a closure inside a network namespace on a thread of its own, which ends with it, and waits for it.
///
/// # Errors
/// If the thread cannot be started or the namespace not be entered; the closure has not run then.
pub fn on_thread<T: Send>(netns: BorrowedFd<'_>, action: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let run = || enter(netns).map(|()| action());
        let thread = std::thread::Builder::new().name("in-netns".to_owned()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

/// The way back, taken also when the closure panics.
struct Return {
    home: File,
}

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = enter(self.home.as_fd()) {
            let text = format!("cannot leave a pod's network namespace, so this process must end: {error}\n");
            // Nobody is left to tell if standard error is gone too.
            drop(io::stderr().write_all(text.as_bytes()));
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests;
