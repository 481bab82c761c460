//! What the agent reads of a pod's object: pure.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Pod;
use underpass_enrolment::{plugin::EnrolledNamespaces, zds::WorkloadInfo};
use underpass_model::{
    PodUid,
    exclusions::{ExclusionError, Exclusions},
    limits::{self, LimitError, PodLimits},
};
use underpass_objects::{
    Enrolment, Objects,
    enrolment::{self, NotEnrolled},
    pod,
};

/// One pod of this node, as its object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its names.
    pub info: WorkloadInfo,
    /// Its addresses; empty before its ADD.
    pub addresses: Vec<IpAddr>,
    /// Whether it belongs into the mesh.
    pub wanted: bool,
    /// Whether that may change when its namespace's object is seen: it is the one to say.
    pub undecided: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// What its annotations leave out of capture.
    pub exclusions: Result<Exclusions, ExclusionError>,
    /// What they hold it to in the node proxy, and which of them cannot be read.
    pub limits: (PodLimits, Vec<LimitError>),
}

/// The pods of a node that could ever be enrolled.
#[must_use]
pub fn of_node(objects: &Objects, node: &str) -> BTreeMap<PodUid, PodFacts> {
    let here = |object: &&Pod| pod::node(object) == Some(node) && !pod::is_on_host_network(object);
    let pods = objects.pods.values().map(AsRef::as_ref).filter(here);
    pods.filter_map(|object| Some((pod::uid(object)?, of_pod(objects, object)))).collect()
}

/// The namespaces whose pods must not start without the mesh.
#[must_use]
pub fn enrolled_namespaces(objects: &Objects) -> EnrolledNamespaces {
    let enrolled = objects.namespaces.iter().filter(|(_, namespace)| enrolment::is_enrolled(namespace));
    enrolled.map(|(name, _)| name.clone()).collect()
}

fn of_pod(objects: &Objects, object: &Pod) -> PodFacts {
    let name = pod::name(object);
    let namespace = objects.namespaces.get(&name.namespace);
    let none = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&none);
    let enrolment = enrolment::wanted(namespace.map(AsRef::as_ref), object);
    PodFacts {
        wanted: enrolment == Enrolment::Enrolled,
        undecided: namespace.is_none() && enrolment == Enrolment::Not(NotEnrolled::NotLabelled),
        terminating: pod::is_terminating(object),
        addresses: pod::addresses(object),
        exclusions: Exclusions::from_annotations(annotations),
        limits: limits::from_annotations(annotations),
        info: WorkloadInfo {
            name: name.name,
            namespace: name.namespace,
            service_account: pod::service_account(object).to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use underpass_objects::Directory;

    use super::*;

    #[test]
    fn only_pods_of_this_node_with_a_namespace_of_their_own_count() {
        let directory = tempfile::tempdir().unwrap();
        let manifests = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {underpass.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {underpass.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata:
  {name: here, namespace: shop, uid: u1, annotations: {underpass.dev/exclude-inbound-ports: "22"}}
spec: {nodeName: one, serviceAccountName: web, containers: []}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: there, namespace: shop, uid: u2}
spec: {nodeName: two, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, uid: u3}
spec: {nodeName: one, hostNetwork: true, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: shop, uid: u4, labels: {underpass.dev/mesh: disabled}}
spec: {nodeName: one, containers: []}
"#;
        std::fs::write(directory.path().join("all.yaml"), manifests).unwrap();
        let directory = Directory::open(directory.path()).unwrap();
        assert_eq!(*directory.snapshot().problems, []);
        let objects = &directory.snapshot().objects;
        let pods = of_node(objects, "one");
        let names: Vec<_> = pods.iter().map(|(uid, facts)| (uid.as_str(), facts.info.name.as_str())).collect();
        assert_eq!(names, [("u1", "here"), ("u4", "out")]);
        let here = &pods[&PodUid::new("u1")];
        assert!(here.wanted && !pods[&PodUid::new("u4")].wanted);
        assert_eq!(here.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(here.info.service_account, "web");
        assert_eq!(here.exclusions.as_ref().unwrap().inbound.ports, [22].into());
        assert!(!here.undecided && !here.terminating);
        assert_eq!(enrolled_namespaces(objects).to_string(), "shop\n");
    }
}
