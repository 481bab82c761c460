//! What a user may get wrong: refused while he still looks, with what to do instead.

use std::{env, ffi::OsStr, path::Path};

use anyhow::{Context, Result, bail, ensure};
use underpass_lab::{Lab, PodName, parse_change};
use underpass_model::{
    label::{check_annotation, check_label},
    names::{ENROLLED, MESH_LABEL, NOT_ENROLLED, SYSTEM_NAMESPACE},
};
use underpass_objects::{
    Kind, Object,
    guarded::is_network_policy,
    manifest::{self, Located, Manifest},
};

/// A label's key, and its value unless it shall go. Whatever stands already may be removed.
pub(super) fn change_of_label(text: &str) -> Result<(String, Option<String>)> {
    let (key, value) = parse_change(text)?;
    if let Some(value) = &value {
        check_label(&key, value)?;
        if key == MESH_LABEL && value != ENROLLED && value != NOT_ENROLLED {
            bail!("{MESH_LABEL} is {ENROLLED} or {NOT_ENROLLED}: with another value nobody would be enrolled");
        }
    }
    Ok((key, value))
}

pub(super) fn change_of_annotation(text: &str) -> Result<(String, Option<String>)> {
    let (key, value) = parse_change(text)?;
    if let Some(value) = &value {
        check_annotation(&key, value)?;
    }
    Ok((key, value))
}

/// Refuses what the operator would refuse or ignore, while the user still looks; and pods, which are more than a manifest.
pub(super) fn check_manifests(lab: &Lab, text: &str) -> Result<()> {
    let manifest = manifest::read(text.as_bytes())?;
    ensure!(
        !manifest.objects.is_empty() || !manifest.ignored.is_empty(),
        "there is nothing to apply: the text has no object"
    );
    if let Some(kind) = manifest.ignored.keys().find(|kind| !is_network_policy(kind)) {
        let known = kinds();
        bail!("the lab runs nothing of the kind {kind}: it has {known}; pods are made with `underpass lab pod add`");
    }
    for located in manifest.objects.values() {
        check_metadata(&located.object).with_context(|| in_document(located))?;
    }
    check_namespaces(&manifest, &lab.namespaces()?)?;
    for key in manifest.objects.keys().filter(|key| key.kind == Kind::Pod) {
        let pod = PodName::new(&key.name.namespace, &key.name.name);
        ensure!(lab.pod(&pod).is_ok(), "there is no pod {pod}: make it with `underpass lab pod add NODE {pod}`");
    }
    Ok(())
}

/// The kinds that mean something in a lab.
pub(super) fn kinds() -> String {
    Kind::ALL.map(Kind::as_str).join(", ")
}

/// A namespace that is not there is a mistyped one, or one that was forgotten; those of the same text count.
fn check_namespaces(manifest: &Manifest, known: &[String]) -> Result<()> {
    let made = |name: &str| manifest.objects.keys().any(|key| key.kind == Kind::Namespace && key.name.name == name);
    for (key, located) in manifest.objects.iter().filter(|(key, _)| key.kind.is_namespaced()) {
        let namespace = &key.name.namespace;
        if !made(namespace) {
            check_namespace(namespace, known).with_context(|| format!("{}: {key}", in_document(located)))?;
        }
    }
    Ok(())
}

/// Refuses what is no namespace's name, with the names there are.
pub(super) fn check_namespace(name: &str, known: &[String]) -> Result<()> {
    let is_known = known.iter().any(|known| known == name);
    ensure!(is_known, "there is no namespace {name}: there are {}", known.join(", "));
    Ok(())
}

/// For what is wrong somewhere in an object.
fn in_document(located: &Located) -> String {
    format!("in the document that begins on line {}", located.line)
}

/// Labels and annotations that Kubernetes would refuse, or that are the mesh's own and mean nothing.
fn check_metadata(object: &Object) -> Result<()> {
    let metadata = object.metadata();
    let of = || format!("{} {}", object.kind(), metadata.name.as_deref().unwrap_or(""));
    for (key, value) in metadata.labels.iter().flatten() {
        check_label(key, value).with_context(of)?;
    }
    for (key, value) in metadata.annotations.iter().flatten() {
        check_annotation(key, value).with_context(of)?;
    }
    Ok(())
}

/// The mesh's own pods come and go with its programs, which count them.
pub(super) fn refuse_own_pod(pod: &PodName) -> Result<()> {
    ensure!(
        pod.namespace != SYSTEM_NAMESPACE,
        "{SYSTEM_NAMESPACE} is the mesh's own namespace, whose pods come and go with its programs: a node's proxy is \
         replaced with `underpass lab upgrade NODE`"
    );
    Ok(())
}

/// What whoever changed pods of these nodes should hear, given the nodes whose agent has ended.
pub(super) fn unheard(nodes: &[String], ended: &[String]) -> Vec<String> {
    let said = ended.iter().filter(|node| nodes.contains(node));
    let line = |node| {
        format!(
            "the agent of {node} has ended, and nothing there follows: `underpass lab restart {node}.agent` starts it"
        )
    };
    said.map(line).collect()
}

/// Refuses what is not there to run, for `ip netns exec` would say so as if it were the program's own word. `search` is
/// the PATH, where programs without a path are looked for.
pub(super) fn check_program(program: &str, search: &OsStr, is_there: impl Fn(&Path) -> bool) -> Result<()> {
    if program.contains('/') {
        ensure!(is_there(Path::new(program)), "there is no program {program} on this machine");
    } else {
        ensure!(
            env::split_paths(search).any(|directory| is_there(&directory.join(program))),
            "there is no program called {program} in the PATH of this machine, whose programs pods run"
        );
    }
    Ok(())
}

/// The article before a kind's name.
pub(super) fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O', 'U']) { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_mean_nothing_is_refused_and_whatever_stands_may_go() {
        for (text, wrong) in [
            ("underpass.dev/mesh=enabled", None),
            ("underpass.dev/mesh=yes", Some("enabled or disabled")),
            ("underpass.dev/mehs=enabled", Some("the mesh knows no")),
            ("underpass.dev/mehs-", None),
            ("app=web", None),
            ("app=a b", Some("no value of app")),
            ("an app=web", Some("no key")),
            ("app", Some("neither KEY=VALUE nor KEY-")),
        ] {
            let told = change_of_label(text).err().map(|error| error.to_string());
            match wrong {
                None => assert_eq!(told, None, "{text}"),
                Some(part) => assert!(told.as_ref().is_some_and(|told| told.contains(part)), "{text}: {told:?}"),
            }
        }
        assert!(change_of_annotation("underpass.dev/limit-connections=100").is_ok());
        assert!(change_of_annotation("underpass.dev/limit-connection=100").is_err());
        assert!(change_of_annotation("underpass.dev/limit-connections=lots").is_err());
        assert!(change_of_annotation("underpass.dev/limit-connections-").is_ok());
        assert!(change_of_annotation("note=anything, in words").is_ok());
    }

    #[test]
    fn metadata_of_applied_objects_is_checked_as_well() {
        let object = |metadata: &str| {
            let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {metadata}}}\n");
            let read = manifest::read(text.as_bytes()).unwrap();
            read.objects.into_values().next().unwrap().object
        };
        assert!(check_metadata(&object("labels: {underpass.dev/mesh: enabled}")).is_ok());
        let told = check_metadata(&object("labels: {underpass.dev/mash: enabled}")).unwrap_err();
        let told = format!("{told:#}");
        assert!(told.contains("Namespace shop: ") && told.contains("underpass.dev/mash"), "{told}");
        assert!(check_metadata(&object("annotations: {underpass.dev/mesh: enabled}")).is_err());
        assert!(check_metadata(&object("annotations: {underpass.dev/exclude-inbound-ports: abc}")).is_err());
    }

    #[test]
    fn objects_belong_into_namespaces_that_are_there_or_come_with_them() {
        let known = ["demo", "shop"].map(str::to_owned);
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: NS}\n";
        for (namespace, more, wrong) in [
            ("demo", "", None),
            ("dmeo", "", Some("line 1: Service dmeo/web: there is no namespace dmeo: there are demo, shop")),
            ("new", "", Some("there is no namespace new")),
            ("new", "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: new}\n", None),
        ] {
            let read = manifest::read(format!("{}{more}", service.replace("NS", namespace)).as_bytes()).unwrap();
            let told = check_namespaces(&read, &known).err().map(|error| format!("{error:#}"));
            match wrong {
                None => assert_eq!(told, None, "{namespace}"),
                Some(part) => assert!(told.as_ref().is_some_and(|told| told.contains(part)), "{namespace}: {told:?}"),
            }
        }
    }

    #[test]
    fn the_meshs_own_pods_are_not_for_users_to_make_or_delete() {
        assert!(refuse_own_pod(&PodName::new("demo", "nodeproxy-node-a")).is_ok());
        let told = refuse_own_pod(&PodName::new("underpass-system", "nodeproxy-node-a-3")).unwrap_err().to_string();
        assert!(told.contains("underpass lab upgrade"), "{told}");
    }

    #[test]
    fn only_who_changed_something_where_an_agent_has_ended_is_told() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        for (nodes, ended, told) in [
            (&["node-a", "node-b"][..], &[][..], 0),
            (&["node-a"], &["node-b"], 0),
            (&["node-b", "node-b"], &["node-b"], 1),
            (&["node-a", "node-b"], &["node-a", "node-b"], 2),
        ] {
            assert_eq!(unheard(&names(nodes), &names(ended)).len(), told, "{nodes:?} {ended:?}");
        }
        let told = unheard(&names(&["node-b"]), &names(&["node-b"]));
        assert!(told[0].contains("`underpass lab restart node-b.agent`"), "{told:?}");
    }

    #[test]
    fn a_program_that_is_not_there_is_refused() {
        let there = |path: &Path| [Path::new("/usr/bin/curl"), Path::new("./own")].contains(&path);
        let search = OsStr::new("/bin:/usr/bin");
        for (program, found) in
            [("curl", true), ("curll", false), ("./own", true), ("own", false), ("/usr/bin/curl", true), ("", false)]
        {
            assert_eq!(check_program(program, search, there).is_ok(), found, "{program:?}");
        }
    }

    #[test]
    fn kinds_have_their_article() {
        for (kind, expected) in
            [("AuthorizationPolicy", "an"), ("EndpointSlice", "an"), ("Service", "a"), ("MeshConfig", "a")]
        {
            assert_eq!(article(kind), expected, "{kind}");
        }
    }
}
