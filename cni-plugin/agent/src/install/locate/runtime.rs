//! The container runtimes that are known: what their command lines and configurations say.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Host, LocateError, Process, option, options};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    Containerd,
    Crio,
}

/// What of a runtime's settings matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) configurations: PathBuf,
    pub(super) binaries: Vec<PathBuf>,
    pub(super) socket: String,
}

const CONFIGURATIONS: &str = "/etc/cni/net.d";
const BINARIES: &str = "/opt/cni/bin";

/// Where containerd keeps CNI's settings, by the version of its configuration: 3, 2, 1.
const CONTAINERD_CNI: [&[&str]; 3] = [
    &["plugins", "io.containerd.cri.v1.runtime", "cni"],
    &["plugins", "io.containerd.grpc.v1.cri", "cni"],
    &["plugins", "cri", "cni"],
];

impl Runtime {
    pub(super) fn of(program: &str) -> Option<Self> {
        match program {
            "containerd" => Some(Self::Containerd),
            "crio" => Some(Self::Crio),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
        }
    }

    pub(super) fn settings(self, process: &Process, host: &impl Host) -> Result<Settings, LocateError> {
        match self {
            Self::Containerd => self.containerd(process, host),
            Self::Crio => self.crio(process, host),
        }
    }

    fn containerd(self, process: &Process, host: &impl Host) -> Result<Settings, LocateError> {
        let file = option(&process.arguments, &["config", "c"]);
        let file = PathBuf::from(file.unwrap_or_else(|| "/etc/containerd/config.toml".to_owned()));
        let main = self.table(process, host, &file)?;
        let mut tables = Vec::new();
        for pattern in strings(main.get("imports")) {
            for import in matching(process, host, &file, &pattern) {
                tables.push(self.table(process, host, &import)?);
            }
        }
        // Imported files overrule the one that imports them, the last one first.
        tables.insert(0, main);
        let cni = |key: &str| {
            let found = tables.iter().rev().find_map(|table| {
                CONTAINERD_CNI.iter().find_map(|path| at(table, path)?.get(key).map(|value| strings(Some(value))))
            });
            found.unwrap_or_default().into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect::<Vec<_>>()
        };
        let socket = option(&process.arguments, &["address", "a"]).or_else(|| {
            tables.iter().rev().find_map(|table| at(table, &["grpc"])?.get("address")?.as_str().map(str::to_owned))
        });
        let binaries =
            [cni("bin_dirs"), cni("bin_dir"), vec![BINARIES.into()]].into_iter().find(|dirs| !dirs.is_empty());
        Ok(Settings {
            configurations: cni("conf_dir").into_iter().next().unwrap_or_else(|| CONFIGURATIONS.into()),
            binaries: binaries.unwrap_or_default(),
            socket: socket.unwrap_or_else(|| "/run/containerd/containerd.sock".to_owned()),
        })
    }

    fn crio(self, process: &Process, host: &impl Host) -> Result<Settings, LocateError> {
        let flag = |names: &[&str], default: &str| {
            PathBuf::from(option(&process.arguments, names).unwrap_or_else(|| default.to_owned()))
        };
        let mut files = vec![flag(&["config", "c"], "/etc/crio/crio.conf")];
        let more = flag(&["config-dir", "d"], "/etc/crio/crio.conf.d");
        // Later names overrule earlier ones.
        files.extend(
            host.list(process.id, &more).into_iter().filter(|name| !name.starts_with('.')).map(|name| more.join(name)),
        );
        let mut tables = Vec::new();
        for file in files {
            tables.push(self.table(process, host, &file)?);
        }
        let setting = |part: &str, key: &str| {
            let found = tables
                .iter()
                .rev()
                .find_map(|table| at(table, &["crio", part])?.get(key).map(|value| strings(Some(value))));
            found.unwrap_or_default().into_iter().filter(|value| !value.is_empty()).collect::<Vec<_>>()
        };
        let told = |names: &[&str], part: &str, key: &str| {
            let told = options(&process.arguments, names);
            if told.is_empty() {
                setting(part, key)
            } else {
                told.iter().flat_map(|value| value.split(',')).map(str::to_owned).collect()
            }
        };
        let configurations = told(&["cni-config-dir"], "network", "network_dir").pop();
        let binaries = told(&["cni-plugin-dir"], "network", "plugin_dirs");
        let socket = told(&["listen"], "api", "listen").pop();
        let binaries = if binaries.is_empty() { vec![BINARIES.to_owned()] } else { binaries };
        Ok(Settings {
            configurations: configurations.map_or_else(|| CONFIGURATIONS.into(), PathBuf::from),
            binaries: binaries.into_iter().map(PathBuf::from).collect(),
            socket: socket.unwrap_or_else(|| "/run/crio/crio.sock".to_owned()),
        })
    }

    /// A file's settings; none where there is no file, because both run without.
    fn table(self, process: &Process, host: &impl Host, path: &Path) -> Result<Table, LocateError> {
        let Some(text) = host.read(process.id, path) else { return Ok(Table::new()) };
        text.parse().map_err(|error: toml::de::Error| LocateError::Malformed {
            runtime: self.name(),
            path: path.to_owned(),
            problem: error.message().to_owned(),
        })
    }
}

fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter().try_fold(table, |table, key| table.get(*key)?.as_table())
}

/// A text, or all texts of an array.
fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(values)) => values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect(),
        Some(_) | None => Vec::new(),
    }
}

/// The files that an import means; a relative one is meant from its file's directory, and only names have patterns.
fn matching(process: &Process, host: &impl Host, file: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = file.parent().unwrap_or(Path::new("/")).join(pattern);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else { return vec![path] };
    let fits = |name: &String| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    host.list(process.id, directory).into_iter().filter(fits).map(|name| directory.join(name)).collect()
}
