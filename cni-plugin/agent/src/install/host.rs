//! The node as the agent sees it: its processes and, through them, its files. Nothing of the node needs to be mounted.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::locate::{Host, Process};
use crate::probe;

const PROCESSES: &str = "/proc";
/// As the kernel has it (`MAXSYMLINKS`).
const LINKS: usize = 40;

/// The node itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Node;

impl Host for Node {
    fn read(&self, process: u32, path: &Path) -> Option<String> {
        fs::read_to_string(within(&root(process), path).ok()?).ok()
    }

    fn list(&self, process: u32, directory: &Path) -> Vec<String> {
        let entries = within(&root(process), directory).and_then(fs::read_dir);
        let names = entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// The root of the file system of a process.
#[must_use]
pub fn root(process: u32) -> PathBuf {
    Path::new(PROCESSES).join(process.to_string()).join("root")
}

/// The node's processes but for those of pods, which may call themselves what they like.
#[must_use]
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir(PROCESSES).into_iter().flatten().flatten();
    let process = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let path = entry.path();
        let cgroups = fs::read_to_string(path.join("cgroup")).ok()?;
        let line = fs::read(path.join("cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let program = words.next().filter(|program| !program.is_empty() && !probe::is_in_pod(&cgroups))?;
        let program = Path::new(&program).file_name()?.to_str()?.to_owned();
        let mut arguments: Vec<String> = words.collect();
        // Each argument ends with a zero, the last one too.
        arguments.pop();
        Some(Process { id, program, arguments })
    };
    let mut processes: Vec<Process> = entries.filter_map(process).collect();
    processes.sort_by_key(|process| process.id);
    processes
}

/// Where a path leads for somebody whose root is that one. Links are followed here and not by the kernel, for which
/// an absolute one would begin at the agent's own root. What does not exist ends the search, not in an error: it can be
/// made there.
///
/// # Errors
/// If there is no end to the links, or one cannot be read.
pub fn within(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut left: VecDeque<OsString> = names(path);
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(&name);
        match fs::read_link(root.join(&at)) {
            Ok(target) => {
                links += 1;
                if links > LINKS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("{}: too many links", path.display()),
                    ));
                }
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::new();
                }
                for name in names(&target).into_iter().rev() {
                    left.push_front(name);
                }
            }
            // EINVAL is how the kernel says that it is no link.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(root.join(at))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::Prefix(_) | Component::RootDir => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_where_they_lead_for_the_node() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path();
        fs::create_dir_all(root.join("data/v1/bin")).unwrap();
        fs::create_dir_all(root.join("opt")).unwrap();
        symlink("/data/current/bin", root.join("opt/cni")).unwrap();
        symlink("v1", root.join("data/current")).unwrap();
        symlink("../../../../opt", root.join("data/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (path, expected) in [
            ("/opt/cni", "data/v1/bin"),
            ("/opt/cni/new", "data/v1/bin/new"),
            ("/data/up/cni/", "data/v1/bin"),
            ("/opt/../../etc/./passwd", "etc/passwd"),
            ("/", ""),
        ] {
            assert_eq!(within(root, Path::new(path)).unwrap(), root.join(expected), "{path}");
        }
        assert!(within(root, Path::new("/loop/x")).is_err());
    }

    #[test]
    fn this_process_is_among_the_nodes() {
        let processes = processes();
        let own = processes.iter().find(|process| process.id == std::process::id()).unwrap();
        assert_eq!(own.arguments.len(), std::env::args().count() - 1);
        assert!(own.program.starts_with("underpass_agent"), "{own:?}");
    }
}
