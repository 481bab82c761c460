//! What a lab needs of its machine, and what to do where it is missing.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::config::Options;

/// Where Debian and upstream put CNI plugins.
pub(crate) const CNI_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const PROGRAM_DIRECTORIES: [&str; 6] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
const PROGRAMS: [(&str, &str); 3] = [("ip", "iproute2"), ("nft", "nftables"), ("tcpdump", "tcpdump")];
const PLUGINS: [&str; 2] = ["bridge", "host-local"];
const MESH: [&str; 4] = ["underpass-operator", "underpass-agent", "underpass-nodeproxy", "underpass-cni"];
/// The stand-in for the kubelet.
pub(crate) const PROBER: &str = "underpass-prober";

/// Checks everything at once, so that the user repairs everything at once.
pub(crate) fn check(options: &Options) -> Result<()> {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push(
            "a lab makes network namespaces, for which it must be root: run the same command with sudo".to_owned(),
        );
    }
    let packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(&PROGRAM_DIRECTORIES, program).is_none())
        .map(|&(_, package)| package)
        .chain(
            PLUGINS
                .iter()
                .any(|plugin| find(&CNI_DIRECTORIES, plugin).is_none())
                .then_some("containernetworking-plugins"),
        )
        .collect();
    if !packages.is_empty() {
        missing.push(format!(
            "these programs are missing; on Debian or Ubuntu: apt-get install {}; elsewhere install the packages of those \
             names (CNI plugins belong into {})",
            packages.join(" "),
            CNI_DIRECTORIES.join(" or "),
        ));
    }
    let programs = MESH.iter().filter(|_| options.mesh).chain([&PROBER]);
    let unbuilt: Vec<&str> = programs.copied().filter(|program| !options.binaries.join(program).is_file()).collect();
    if !unbuilt.is_empty() {
        missing.push(format!(
            "{} not found in {}: run ./x build, or set UNDERPASS_BIN_DIR",
            unbuilt.join(", "),
            options.binaries.display()
        ));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("the lab cannot start here:\n  - {}", missing.join("\n  - "))
}

fn find(directories: &[&str], program: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}
