//! Network namespaces: making, entering, tuning and removing them.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command, thread};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::{
    paths::{NETNS_ETC, NETNS_RUN},
    process::checked,
};

/// Makes a namespace that `ip netns` knows, with loopback up and names from `hosts`.
pub(crate) fn add(name: &str, hosts: &Path) -> Result<()> {
    let etc = Path::new(NETNS_ETC).join(name);
    fs::create_dir_all(&etc).with_context(|| format!("making {}", etc.display()))?;
    // A link, so that one file serves every namespace that shares its names; `ip netns exec` binds what it points to.
    link(hosts, &etc.join("hosts"))?;
    // No name server is ever asked: there is none, and waiting for one would look like a slow mesh.
    fs::write(etc.join("resolv.conf"), "# names come from /etc/hosts\n")?;
    checked(Command::new("ip").args(["netns", "add", name]))?;
    checked(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]))
}

fn link(to: &Path, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at)?;
    }
    std::os::unix::fs::symlink(to, at).with_context(|| format!("linking {}", at.display()))
}

/// Removes a namespace; nothing happens if it is gone already.
pub(crate) fn remove(name: &str) -> Result<()> {
    if handle(name).exists() {
        checked(Command::new("ip").args(["netns", "del", name]))?;
    }
    let etc = Path::new(NETNS_ETC).join(name);
    if etc.exists() {
        fs::remove_dir_all(&etc)?;
    }
    Ok(())
}

/// The file that stands for a namespace.
pub(crate) fn handle(name: &str) -> std::path::PathBuf {
    Path::new(NETNS_RUN).join(name)
}

/// The namespaces whose names begin with `prefix`, and leftovers of such in `/etc/netns`.
pub(crate) fn named(prefix: &str) -> Vec<String> {
    let names = |directory: &str| {
        fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect::<Vec<_>>()
    };
    let mut found = names(NETNS_RUN);
    found.extend(names(NETNS_ETC));
    found.sort();
    found.dedup();
    found
}

/// Does `work` on a thread of its own inside a namespace. What it spawns is inside, too.
pub(crate) fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = handle(name);
    let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
            work()
        });
        worker.join().map_err(|_| anyhow!("the thread inside {name} panicked"))?
    })
}

/// Writes settings below `/proc/sys/net` of a namespace.
pub(crate) fn set(name: &str, settings: &[(&str, &str)]) -> Result<()> {
    inside(name, || {
        for (key, value) in settings {
            let file = Path::new("/proc/sys/net").join(key);
            fs::write(&file, value).with_context(|| format!("setting {} to {value}", file.display()))?;
        }
        Ok(())
    })
}

/// Writes a file below `/proc/sys/net` of a namespace if this kernel has it; tells whether it has.
pub(crate) fn set_if_there(name: &str, key: &str, value: &str) -> Result<bool> {
    inside(name, || {
        let file = Path::new("/proc/sys/net").join(key);
        if !file.exists() {
            return Ok(false);
        }
        fs::write(&file, value).with_context(|| format!("setting {} to {value}", file.display()))?;
        Ok(true)
    })
}

/// Runs `ip` inside a namespace, one command a line, all or an error that shows the failing line.
pub(crate) fn ip(name: &str, lines: &[String]) -> Result<()> {
    let batch = tempfile::NamedTempFile::new()?;
    fs::write(batch.path(), lines.join("\n"))?;
    let mut command = Command::new("ip");
    command.args(["-n", name, "-batch"]).arg(batch.path());
    checked(&mut command).with_context(|| format!("in namespace {name}:\n{}", lines.join("\n")))
}

/// The processes whose network namespace is the named one, this process excepted.
pub(crate) fn processes(name: &str) -> Result<Vec<i32>> {
    let Ok(here) = fs::metadata(handle(name)) else { return Ok(Vec::new()) };
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(there) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
        if pid != own && (there.ino(), there.dev()) == (here.ino(), here.dev()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Loads a whole nft ruleset in a namespace.
pub(crate) fn nft(name: &str, rules: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), rules)?;
    inside(name, || {
        let output = Command::new("nft").arg("-f").arg(file.path()).output().context("running nft")?;
        if !output.status.success() {
            bail!("nft refused the rules of {name}: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    })
}
