//! The manifests of a lab: ordinary Kubernetes objects, one file each, in the directory that the mesh watches.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::{place::check_label, services::virtual_addresses};

/// The manifests of one lab.
#[derive(Clone, Debug)]
pub(crate) struct Manifests {
    directory: PathBuf,
    staging: PathBuf,
    lock: PathBuf,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// Its kind, such as `Service`.
    pub kind: String,
    /// Its namespace; none for what has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectName {
    /// Makes a name of its parts.
    #[must_use]
    pub fn new(kind: &str, namespace: Option<&str>, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    fn of(object: &Value) -> Result<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let kind = text("/kind").context("kind: missing")?;
        let name = text("/metadata/name").context("metadata.name: missing")?;
        // As kubectl does, an object without a namespace goes to `default`.
        let namespace = match kind {
            "MeshConfig" | "Namespace" | "Node" => None,
            _ => Some(text("/metadata/namespace").unwrap_or("default")),
        };
        Ok(Self::new(kind, namespace, name))
    }

    fn file(&self) -> Result<String> {
        let kind = self.kind.to_ascii_lowercase();
        check_label(&kind, false).context("kind")?;
        check_label(&self.name, true).context("metadata.name")?;
        let Some(namespace) = &self.namespace else { return Ok(format!("{kind}.{}.yaml", self.name)) };
        check_label(namespace, false).context("metadata.namespace")?;
        Ok(format!("{kind}.{namespace}.{}.yaml", self.name))
    }
}

impl Manifests {
    pub(crate) fn new(directory: PathBuf, staging: PathBuf, lock: PathBuf) -> Self {
        Self { directory, staging, lock }
    }

    /// Held while files change: several programs may work on one lab.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let open = || fs::OpenOptions::new().create(true).append(true).open(&self.lock);
        let file = open().with_context(|| format!("opening {}", self.lock.display()))?;
        file.lock().context("taking the lab's lock")?;
        Ok(file)
    }

    /// Writes or replaces every object of a text that may hold several documents.
    pub(crate) fn apply(&self, yaml: &str) -> Result<Vec<ObjectName>> {
        let mut objects = Vec::new();
        for (index, document) in serde_yaml::Deserializer::from_str(yaml).enumerate() {
            let object = Value::deserialize(document).with_context(|| format!("document {}", index + 1))?;
            if !object.is_null() {
                let name = ObjectName::of(&object).with_context(|| format!("document {}", index + 1))?;
                objects.push((name, object));
            }
        }
        self.check_addresses(&objects)?;
        objects.into_iter().map(|(name, object)| self.write(&name, object).map(|()| name)).collect()
    }

    /// Two services at one address would send traffic to either, on each node as it comes.
    fn check_addresses(&self, applied: &[(ObjectName, Value)]) -> Result<()> {
        let mut taken = BTreeMap::new();
        let stay = self.all("Service")?.into_iter().filter_map(|object| Some((ObjectName::of(&object).ok()?, object)));
        let stay: Vec<_> = stay.filter(|(name, _)| !applied.iter().any(|(other, _)| other == name)).collect();
        for (name, object) in stay.iter().chain(applied).filter(|(name, _)| name.kind == "Service") {
            for address in virtual_addresses(object) {
                if let Some(other) = taken.insert(address, &name.name) {
                    bail!("services {other} and {} both have the address {address}: give each its own", name.name);
                }
            }
        }
        Ok(())
    }

    /// Writes one object, whole or not at all.
    pub(crate) fn write(&self, name: &ObjectName, object: Value) -> Result<()> {
        let _lock = self.lock()?;
        self.place(name, object)
    }

    fn place(&self, name: &ObjectName, mut object: Value) -> Result<()> {
        let before = self.find(name)?;
        if let (Some(before), true) = (&before, name.kind == "Pod" && object.get("status").is_none()) {
            // What a running pod is and where it runs are facts by now; labels and annotations may change.
            for fact in ["spec", "status"] {
                if let Some(value) = before.get(fact) {
                    set(&mut object, fact, value.clone())?;
                }
            }
        }
        let metadata = object.pointer_mut("/metadata").and_then(Value::as_object_mut).context("metadata: missing")?;
        if let Some(namespace) = &name.namespace {
            metadata.entry("namespace").or_insert_with(|| namespace.as_str().into());
        }
        let kept = |field: &str| before.as_ref()?.pointer(&format!("/metadata/{field}")).cloned();
        metadata.entry("uid").or_insert(kept("uid").map_or_else(new_uid, Ok)?);
        metadata.entry("creationTimestamp").or_insert(kept("creationTimestamp").unwrap_or_else(|| now().into()));
        let file = name.file()?;
        let staged = self.staging.join(&file);
        fs::write(&staged, serde_yaml::to_string(&object)?).with_context(|| format!("writing {}", staged.display()))?;
        fs::rename(&staged, self.directory.join(&file)).with_context(|| format!("placing {file}"))
    }

    pub(crate) fn find(&self, name: &ObjectName) -> Result<Option<Value>> {
        let file = self.directory.join(name.file()?);
        read_if_there(&file)
    }

    pub(crate) fn get(&self, name: &ObjectName) -> Result<Value> {
        self.find(name)?.with_context(|| match &name.namespace {
            Some(namespace) => format!("there is no {} {namespace}/{}", name.kind, name.name),
            None => format!("there is no {} {}", name.kind, name.name),
        })
    }

    /// Reads an object, changes it, writes it back.
    pub(crate) fn change(&self, name: &ObjectName, change: impl FnOnce(&mut Value)) -> Result<()> {
        let _lock = self.lock()?;
        let mut object = self.get(name)?;
        change(&mut object);
        self.place(name, object)
    }

    /// Removes an object; nothing happens if it is not there.
    pub(crate) fn remove(&self, name: &ObjectName) -> Result<()> {
        let file = self.directory.join(name.file()?);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// All objects of a kind, by file name.
    pub(crate) fn all(&self, kind: &str) -> Result<Vec<Value>> {
        let prefix = format!("{}.", kind.to_ascii_lowercase());
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                files.push(entry.path());
            }
        }
        files.sort();
        // Another thread or program may remove an object between the listing and the reading.
        files.iter().filter_map(|file| read_if_there(file).transpose()).collect()
    }
}

fn set(object: &mut Value, field: &str, value: Value) -> Result<()> {
    object.as_object_mut().context("not an object")?.insert(field.to_owned(), value);
    Ok(())
}

fn new_uid() -> Result<Value> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid").context("making a uid")?.trim().into())
}

fn read_if_there(file: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    serde_yaml::from_str(&text).map(Some).with_context(|| format!("reading {}", file.display()))
}

/// Sets (or with none removes) a label or annotation; `field` is `labels` or `annotations`.
pub(crate) fn set_meta(object: &mut Value, field: &str, key: &str, value: Option<&str>) {
    let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) else { return };
    let entries = metadata.entry(field).or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(entries) = entries.as_object_mut() {
        match value {
            Some(value) => drop(entries.insert(key.to_owned(), value.into())),
            None => drop(entries.remove(key)),
        }
    }
}

/// `KEY=VALUE` sets, `KEY-` removes: as `kubectl label` and `kubectl annotate` read it.
///
/// # Errors
/// If the text is neither.
pub fn parse_change(text: &str) -> Result<(String, Option<String>)> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok((key.to_owned(), Some(value.to_owned())));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => bail!("{text:?} is neither KEY=VALUE nor KEY-"),
    }
}

/// The present instant as RFC 3339 has it, to the second.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The date that lies `days` after 1970-01-01: years counted from March, so that a leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_513, (2026, 3, 1)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date);
        }
    }

    fn manifests(directory: &tempfile::TempDir) -> Manifests {
        let (objects, staging) = (directory.path().join("objects"), directory.path().join("staging"));
        fs::create_dir(&objects).unwrap();
        fs::create_dir(&staging).unwrap();
        Manifests::new(objects, staging, directory.path().join("lock"))
    }

    #[test]
    fn two_services_at_one_address_are_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let manifests = manifests(&directory);
        let service = |name: &str, address: &str| {
            format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {address}}}\n")
        };
        manifests.apply(&service("web", "10.96.0.10")).unwrap();
        let refused = manifests.apply(&service("clash", "10.96.0.10")).unwrap_err().to_string();
        assert!(refused.contains("web and clash"), "{refused}");
        assert_eq!(manifests.all("Service").unwrap().len(), 1);
        manifests.apply(&service("web", "10.96.0.11")).unwrap();
        manifests.apply(&service("clash", "10.96.0.10")).unwrap();
    }

    #[test]
    fn a_pod_that_is_applied_again_keeps_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let manifests = manifests(&directory);
        let name = ObjectName::new("Pod", Some("shop"), "cart");
        let pod = |more: &str| format!("kind: Pod\nmetadata: {{name: cart, namespace: shop, {more}}}\n");
        manifests.apply(&format!("{}spec: {{nodeName: node-a}}\nstatus: {{phase: Running}}\n", pod(""))).unwrap();
        manifests.apply(&pod("annotations: {a: b}")).unwrap();
        let now = manifests.get(&name).unwrap();
        assert_eq!(now.pointer("/spec/nodeName").and_then(Value::as_str), Some("node-a"));
        assert_eq!(now.pointer("/status/phase").and_then(Value::as_str), Some("Running"));
        assert_eq!(now.pointer("/metadata/annotations/a").and_then(Value::as_str), Some("b"));
    }

    #[test]
    fn objects_keep_their_uid_when_they_are_applied_again() {
        let directory = tempfile::tempdir().unwrap();
        let manifests = manifests(&directory);
        let yaml = "kind: Namespace\nmetadata: {name: shop}\n---\n---\nkind: Service\nmetadata: {name: web}\n";
        let names = manifests.apply(yaml).unwrap();
        assert_eq!(names[1], ObjectName::new("Service", Some("default"), "web"));
        let first = manifests.get(&names[1]).unwrap();
        manifests.apply(yaml).unwrap();
        assert_eq!(manifests.get(&names[1]).unwrap(), first);
        assert_eq!(manifests.all("Service").unwrap().len(), 1);
        manifests.remove(&names[1]).unwrap();
        assert!(manifests.get(&names[1]).is_err());
    }

    #[test]
    fn a_name_with_a_path_in_it_is_refused() {
        let name = ObjectName::new("Service", Some("shop"), "../../etc/passwd");
        assert!(name.file().is_err());
    }
}
