use std::collections::BTreeMap;

use super::*;

/// Files by path, the same for every process but for those whose path begins with a process's id.
struct Files(BTreeMap<&'static str, &'static str>);

impl Host for Files {
    fn read(&self, process: u32, path: &Path) -> Option<String> {
        let own = format!("{process}:{}", path.display());
        let text = self.0.get(own.as_str()).or_else(|| self.0.get(path.to_str()?));
        text.map(|text| (*text).to_owned())
    }

    fn list(&self, _process: u32, directory: &Path) -> Vec<String> {
        let inside = self.0.keys().filter_map(|path| Path::new(path).strip_prefix(directory).ok());
        inside.filter_map(|rest| rest.to_str().map(str::to_owned)).collect()
    }
}

/// Command lines, one process each, numbered from 1.
fn processes(lines: &[&str]) -> Vec<Process> {
    let process = |(id, line): (u32, &&str)| {
        let mut words = line.split(' ').map(str::to_owned);
        Process { id, program: words.next().unwrap(), arguments: words.collect() }
    };
    (1..).zip(lines).map(process).collect()
}

fn found(lines: &[&str], files: &[(&'static str, &'static str)]) -> Result<(u32, String, Vec<String>), LocateError> {
    let location = locate(&processes(lines), &Files(files.iter().copied().collect()))?;
    let text = |path: &PathBuf| path.display().to_string();
    Ok((location.process, text(&location.configurations), location.binaries.iter().map(text).collect()))
}

fn is(process: u32, configurations: &str, binaries: &[&str]) -> Result<(u32, String, Vec<String>), LocateError> {
    Ok((process, configurations.to_owned(), binaries.iter().map(|path| (*path).to_owned()).collect()))
}

const CONTAINERD: &str = "/etc/containerd/config.toml";

#[test]
fn distributions_of_the_field_are_found_without_a_profile() {
    // kubeadm: containerd as packaged, with nothing said about CNI
    let kubeadm = ["systemd", "containerd", "kubelet --config=/var/lib/kubelet/config.yaml"];
    assert_eq!(found(&kubeadm, &[]), is(2, "/etc/cni/net.d", &["/opt/cni/bin"]));
    // kind: version 2 of the configuration
    let kind = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = 'p'\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = '/opt/cni/bin'\n";
    assert_eq!(found(&["containerd"], &[(CONTAINERD, kind)]), is(1, "/etc/cni/net.d", &["/opt/cni/bin"]));
    // GKE: binaries elsewhere; version 3
    let gke = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = '/home/kubernetes/bin'\nconf_dir = '/etc/cni/net.d'\n";
    assert_eq!(found(&["containerd"], &[(CONTAINERD, gke)]), is(1, "/etc/cni/net.d", &["/home/kubernetes/bin"]));
    // k3s: containerd is its child, the configuration its own
    let k3s = "[plugins.'io.containerd.cri.v1.runtime'.cni]\n  bin_dirs = [\"/var/lib/rancher/k3s/data/cni\"]\n  conf_dir = \"/var/lib/rancher/k3s/agent/etc/cni/net.d\"\n";
    let lines = [
        "k3s server",
        "containerd -c /var/lib/rancher/k3s/agent/etc/containerd/config.toml -a /run/k3s/containerd/containerd.sock",
    ];
    assert_eq!(
        found(&lines, &[("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", k3s)]),
        is(2, "/var/lib/rancher/k3s/agent/etc/cni/net.d", &["/var/lib/rancher/k3s/data/cni"])
    );
    // microk8s: everything below the snap
    let microk8s = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/var/snap/microk8s/current/opt/cni/bin\"\nconf_dir = \"/var/snap/microk8s/current/args/cni-network\"\n";
    let lines = [
        "containerd --config /var/snap/microk8s/1/args/containerd.toml --address /var/snap/microk8s/common/run/containerd.sock",
        "kubelite --kubelet-args-file=x",
    ];
    assert_eq!(
        found(&lines, &[("/var/snap/microk8s/1/args/containerd.toml", microk8s)]),
        is(1, "/var/snap/microk8s/current/args/cni-network", &["/var/snap/microk8s/current/opt/cni/bin"])
    );
    // version 1, as old as it gets
    let old = "[plugins.cri.cni]\nbin_dir = '/usr/lib/cni'\n";
    assert_eq!(found(&["containerd"], &[(CONTAINERD, old)]), is(1, "/etc/cni/net.d", &["/usr/lib/cni"]));
    // CRI-O, as on OpenShift: the binaries are in several directories, drop-ins overrule
    let crio = "[crio.network]\nnetwork_dir = \"/etc/cni/net.d/\"\nplugin_dirs = [\"/opt/cni/bin\"]\n";
    let openshift = "[crio.network]\nnetwork_dir = \"/etc/kubernetes/cni/net.d/\"\nplugin_dirs = [\"/var/lib/cni/bin\", \"/usr/libexec/cni\"]\n";
    let files = [
        ("/etc/crio/crio.conf", crio),
        ("/etc/crio/crio.conf.d/00-default", openshift),
        ("/etc/crio/crio.conf.d/.swp", "x"),
    ];
    assert_eq!(
        found(&["crio"], &files),
        is(1, "/etc/kubernetes/cni/net.d/", &["/var/lib/cni/bin", "/usr/libexec/cni"])
    );
    let flags = ["crio --cni-config-dir=/a --cni-plugin-dir /b --cni-plugin-dir /c"];
    assert_eq!(found(&flags, &files), is(1, "/a", &["/b", "/c"]));
}

#[test]
fn imported_files_overrule_the_one_that_imports_them() {
    let main = "imports = [\"/etc/containerd/conf.d/*.toml\", \"more.toml\"]\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir='/main'\nbin_dir='/main'\n";
    let first = "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir='/first'\nbin_dir='/first'\n";
    let second = "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir='/second'\n";
    let files = [
        (CONTAINERD, main),
        ("/etc/containerd/conf.d/a.toml", first),
        ("/etc/containerd/conf.d/b.txt", "no"),
        ("/etc/containerd/more.toml", second),
    ];
    assert_eq!(found(&["containerd"], &files), is(1, "/second", &["/first"]));
}

#[test]
fn of_several_runtimes_the_kubelets_counts() {
    let docker = "[plugins.cri.cni]\nconf_dir = '/docker'\n";
    let own = [("1:/etc/containerd/config.toml", docker)];
    let both = [
        "containerd --address /run/docker/c.sock",
        "containerd",
        "kubelet --container-runtime-endpoint=unix:///var/run/containerd/containerd.sock",
    ];
    assert_eq!(found(&both, &own), is(2, "/etc/cni/net.d", &["/opt/cni/bin"]));
    let crio = ["containerd", "crio", "hyperkube kubelet --container-runtime-endpoint unix:///run/crio/crio.sock"];
    assert_eq!(found(&crio, &[("1:/etc/containerd/config.toml", docker)]).unwrap().0, 2);
    let by_file = ["containerd --address /run/docker/c.sock", "containerd", "kubelet --config=/k.yaml"];
    let file = (
        "/k.yaml",
        "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"unix:///run/containerd/containerd.sock\"\n",
    );
    assert_eq!(found(&by_file, &[own[0], file]).unwrap().0, 2);

    let refused = found(&both[..2], &own).unwrap_err();
    assert_eq!(
        (refused.reason(), refused.to_string().contains("containerd 1, containerd 2")),
        ("runtime_ambiguous", true)
    );
    assert_eq!(found(&["containerd", "containerd"], &[]).unwrap().0, 1, "the same directories: no question");
}

#[test]
fn what_cannot_be_known_is_refused_with_the_reason() {
    assert_eq!(found(&["systemd", "dockerd", "kubelet"], &[]).unwrap_err().reason(), "runtime_unknown");
    let refused = found(&["containerd"], &[(CONTAINERD, "version = = 2")]).unwrap_err();
    assert_eq!(refused.reason(), "runtime_configuration_malformed");
    assert!(refused.to_string().contains(CONTAINERD), "{refused}");
}
