//! Whatever happens to the objects, step by step: the same as the whole translation, and no more work than needed.

use std::{collections::BTreeSet, fmt::Write as _};

use proptest::prelude::*;
use underpass_model::PodUid;
use underpass_objects::{CaptureReport, CaptureState, Kind, ObjectName, manifest};

use super::*;
use crate::translate::{Translation, translate_joining};

fn put(objects: &mut Objects, yaml: &str) {
    let read = manifest::read(yaml.as_bytes()).unwrap_or_else(|error| panic!("{error}:\n{yaml}"));
    for (key, located) in read.objects {
        objects.set(&key, &located.object);
    }
}

/// Somebody who knows the mesh by its changes alone.
#[derive(Debug, Default, PartialEq)]
struct Follower {
    workloads: BTreeMap<WorkloadUid, Workload>,
    services: BTreeMap<ServiceName, Service>,
    policies: BTreeMap<PolicyName, Policy>,
}

fn follow<N: Ord, T: PartialEq + std::fmt::Debug>(known: &mut BTreeMap<N, T>, changes: BTreeMap<N, Option<T>>) {
    for (name, change) in changes {
        match change {
            Some(new) => {
                assert!(known.get(&name) != Some(&new), "told though it is the same: {new:?}");
                known.insert(name, new);
            }
            None => assert!(known.remove(&name).is_some(), "gone before it was there"),
        }
    }
}

impl Follower {
    fn take(&mut self, changes: Changes) {
        follow(&mut self.workloads, changes.workloads);
        follow(&mut self.services, changes.services);
        follow(&mut self.policies, changes.policies);
    }
}

/// Few names, so that objects meet.
const NAMESPACES: [&str; 3] = ["shop", "shop-2", "underpass-system"];

/// What happens in one step.
#[derive(Clone, Debug)]
enum Edit {
    Set(String),
    Remove(Kind, String, String),
    Report(u8, Option<(u8, bool)>),
}

fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&NAMESPACES[..])
}

fn labels() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "app: a", "app: b", "app: a, tier: x"]).prop_map(str::to_owned)
}

fn selector() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["{}", "{matchLabels: {app: a}}", "{matchLabels: {tier: x}}"]).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = u8> {
    0..4_u8
}

fn pod() -> impl Strategy<Value = String> {
    let status = (prop::collection::vec(0..5_u8, 0..3), any::<bool>(), 0..8_u8);
    (namespace(), name(), labels(), prop::option::of(0..3_u8), status, any::<bool>()).prop_map(
        |(namespace, name, labels, node, (addresses, ready, phase), host)| {
            let node = node.map(|node| format!("nodeName: n{node},")).unwrap_or_default();
            let addresses: Vec<String> = addresses.iter().map(|address| format!("{{ip: 10.0.0.{address}}}")).collect();
            let phase = if phase == 0 { "phase: Succeeded," } else { "" };
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
                 spec: {{{node} hostNetwork: {host}, containers: [{{name: c, ports: [{{name: web, containerPort: 80}}]}}]}}\n\
                 status: {{{phase} podIPs: [{}], conditions: [{{type: Ready, status: '{ready}'}}]}}\n",
                addresses.join(", "),
            )
        },
    )
}

fn service() -> impl Strategy<Value = String> {
    let port = prop::sample::select(vec!["8080", "web", "gone", "99999"]);
    let distribution = prop::sample::select(vec!["", "trafficDistribution: PreferClose,", "trafficDistribution: Odd,"]);
    (namespace(), name(), labels(), port, distribution).prop_map(|(namespace, name, selector, port, distribution)| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: 10.9.0.{name}, {distribution} selector: {{{selector}}}, \
             ports: [{{name: x, port: 80, targetPort: {port}}}]}}\n"
        )
    })
}

fn slice() -> impl Strategy<Value = String> {
    let endpoint = (0..6_u8, prop::option::of((namespace(), name())), prop::option::of(0..3_u8));
    (namespace(), name(), name(), prop::collection::vec(endpoint, 0..4)).prop_map(|(namespace, name, of, endpoints)| {
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: e{name}, \
             namespace: {namespace}, labels: {{kubernetes.io/service-name: s{of}}}}}\nports: [{{name: x, port: 7{name}}}]\n\
             endpoints:\n"
        );
        for (address, target, node) in endpoints {
            let address = if address == 5 { "nonsense".to_owned() } else { format!("10.0.0.{address}") };
            write!(text, "- {{addresses: ['{address}']").unwrap();
            if let Some((namespace, name)) = target {
                write!(text, ", targetRef: {{kind: Pod, namespace: {namespace}, name: p{name}}}").unwrap();
            }
            if let Some(node) = node {
                write!(text, ", nodeName: n{node}").unwrap();
            }
            text.push_str("}\n");
        }
        if text.ends_with("endpoints:\n") { text.replace("endpoints:\n", "endpoints: []\n") } else { text }
    })
}

fn small() -> impl Strategy<Value = String> {
    let node = (0..3_u8, 0..3_u8).prop_map(|(node, zone)| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n{node}, labels: {{topology.kubernetes.io/zone: z{zone}}}}}\n")
    });
    let distribution = prop::sample::select(vec!["PreferClose", "Any", "Odd"]);
    let of_namespace = (namespace(), distribution).prop_map(|(name, distribution)| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, \
             annotations: {{networking.istio.io/traffic-distribution: {distribution}}}}}\n"
        )
    });
    let policy = (namespace(), name(), selector(), any::<bool>()).prop_map(|(namespace, name, selector, waypoint)| {
        let level = if waypoint { "Application" } else { "Network" };
        format!(
            "apiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: a{name}, namespace: {namespace}}}\n\
             spec: {{targetRefs: [{{kind: Pod, selector: {selector}}}], enforcementLevel: {level}}}\n"
        )
    });
    let mode = (namespace(), selector(), any::<bool>(), any::<bool>(), 1..3_u8);
    let mode = mode.prop_map(|(namespace, selector, strict, second, port)| {
        let system = namespace == "underpass-system";
        let (name, selector) = match (system, second) {
            (true, _) => ("default", "{}"),
            (false, true) => ("m2", selector.as_str()),
            (false, false) => ("m1", selector.as_str()),
        };
        let mode = if strict { "STRICT" } else { "PERMISSIVE" };
        format!(
            "apiVersion: underpass.dev/v1alpha1\nkind: MeshTLSMode\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{mode: {mode}, selector: {selector}, ports: [{{port: {port}, mode: STRICT}}]}}\n"
        )
    });
    prop_oneof![node, of_namespace, policy, mode]
}

fn edit() -> impl Strategy<Value = Edit> {
    let remove = (prop::sample::select(&Kind::ALL[..]), namespace(), name(), any::<bool>());
    let remove = remove.prop_map(|(kind, namespace, name, second)| {
        let (namespace, name) = match kind {
            Kind::AuthorizationPolicy => (namespace, format!("a{name}")),
            Kind::EndpointSlice => (namespace, format!("e{name}")),
            Kind::MeshConfig => ("", "default".into()),
            Kind::MeshTlsMode if namespace == "underpass-system" => (namespace, "default".into()),
            Kind::MeshTlsMode => (namespace, if second { "m2".into() } else { "m1".into() }),
            Kind::Namespace => ("", namespace.to_owned()),
            Kind::Node => ("", format!("n{name}")),
            Kind::Pod => (namespace, format!("p{name}")),
            Kind::Service | Kind::ServiceAccount => (namespace, format!("s{name}")),
        };
        Edit::Remove(kind, namespace.into(), name)
    });
    prop_oneof![
        4 => pod().prop_map(Edit::Set),
        2 => service().prop_map(Edit::Set),
        2 => slice().prop_map(Edit::Set),
        3 => small().prop_map(Edit::Set),
        2 => remove,
        1 => (name(), prop::option::of((0..3_u8, any::<bool>()))).prop_map(|(pod, report)| Edit::Report(pod, report)),
    ]
}

fn apply(edit: Edit, objects: &mut Objects, reports: &mut imbl::OrdMap<PodUid, CaptureReport>) {
    match edit {
        Edit::Set(yaml) => put(objects, &yaml),
        Edit::Remove(kind, namespace, name) => {
            objects.remove(&ObjectKey { kind, name: ObjectName { namespace, name } });
        }
        Edit::Report(pod, report) => {
            let uid = format!("manifest.shop.p{pod}");
            let key = PodUid::new(&uid);
            match report {
                None => drop(reports.remove(&key)),
                Some((node, is_captured)) => {
                    let state = if is_captured { CaptureState::Captured } else { CaptureState::Leaving };
                    let (namespace, name, node) = ("shop".into(), format!("p{pod}"), format!("n{node}"));
                    reports.insert(key, CaptureReport { pod_uid: uid, namespace, name, node, state, generation: 1 });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_is_as_all_at_once(steps in prop::collection::vec((prop::collection::vec(edit(), 1..4), any::<bool>()), 1..25)) {
        let (mut objects, mut reports) = (Objects::default(), imbl::OrdMap::new());
        let mut translator = Translator::new(TranslateOptions::default());
        let mut follower = Follower::default();
        let mut noted = BTreeSet::new();
        for (step, can_join) in steps {
            for edit in step {
                apply(edit, &mut objects, &mut reports);
            }
            let apart = Reports::Apart(reports.clone());
            let changes = translator.update(&objects, &apart, can_join);
            noted.extend(changes.notes.iter().cloned());
            follower.take(changes);
            let Translation { workloads, services, policies, notes } = translate_joining(&objects, &apart, &TranslateOptions::default(), can_join);
            prop_assert_eq!(&follower.workloads, &workloads);
            prop_assert_eq!(&follower.services, &services);
            prop_assert_eq!(&follower.policies, &policies);
            let mut kept: Vec<Note> = translator.notes().cloned().collect();
            kept.sort_unstable();
            prop_assert_eq!(&kept, &notes);
            prop_assert!(notes.iter().all(|note| noted.contains(note)), "a note was never told");
            let sizes = Sizes { workloads: workloads.len(), services: services.len(), policies: policies.len() };
            prop_assert_eq!(translator.sizes(), sizes);
            prop_assert_eq!(translator.addresses.clone(), Addresses::of(&objects));
        }
    }
}

/// Many pods in many namespaces, each with a service.
fn town(namespaces: usize, pods: usize) -> Objects {
    let mut objects = Objects::default();
    for (namespace, pod) in (0..namespaces).flat_map(|namespace| (0..pods).map(move |pod| (namespace, pod))) {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{pod}, namespace: ns{namespace}, labels: {{app: a{pod}}}}}\n\
             spec: {{nodeName: n{pod}}}\nstatus: {{podIP: 10.{namespace}.0.{pod}}}\n---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: s{pod}, namespace: ns{namespace}}}\nspec: {{selector: {{app: a{pod}}}, ports: [{{port: 80}}]}}\n"
        );
        put(&mut objects, &yaml);
    }
    objects
}

#[test]
fn a_change_costs_what_it_concerns() {
    let mut objects = town(20, 20);
    let reports = Reports::default();
    let mut translator = Translator::new(TranslateOptions::default());
    assert_eq!(translator.update(&objects, &reports, false).translated, 800);
    let table = [
        ("nothing", "", 0, 0),
        (
            "a pod",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p1, namespace: ns1, labels: {app: a1}}\nspec: {nodeName: n1}\nstatus: {podIP: 10.1.9.1}",
            1,
            1,
        ),
        (
            "the same again",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p1, namespace: ns1, labels: {app: a1}}\nspec: {nodeName: n1}\nstatus: {podIP: 10.1.9.1}",
            0,
            0,
        ),
        (
            "what nobody sees of a pod",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p1, namespace: ns1, labels: {app: a1, x: y}}\nspec: {nodeName: n1}\nstatus: {podIP: 10.1.9.1}",
            1,
            0,
        ),
        (
            "a service's ports",
            "apiVersion: v1\nkind: Service\nmetadata: {name: s2, namespace: ns1}\nspec: {selector: {app: a2}, ports: [{port: 81}]}",
            2,
            2,
        ),
        (
            "a service's address",
            "apiVersion: v1\nkind: Service\nmetadata: {name: s2, namespace: ns1}\nspec: {clusterIP: 10.9.9.9, selector: {app: a2}, ports: [{port: 81}]}",
            1,
            1,
        ),
        ("a node without a place", "apiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {a: b}}", 0, 0),
        (
            "a node's place",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {topology.kubernetes.io/zone: z}}",
            20,
            20,
        ),
        (
            "a policy for one pod",
            "apiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: ns1}\nspec: {targetRefs: [{kind: Pod, selector: {matchLabels: {app: a4}}}]}",
            2,
            2,
        ),
        (
            "a policy for a namespace",
            "apiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: q, namespace: ns1}\nspec: {targetRefs: [{kind: Pod}]}",
            1,
            1,
        ),
        (
            "a namespace's mode",
            "apiVersion: underpass.dev/v1alpha1\nkind: MeshTLSMode\nmetadata: {name: m, namespace: ns1}\nspec: {mode: STRICT}",
            20,
            21,
        ),
    ];
    for (what, yaml, translated, changed) in table {
        put(&mut objects, yaml);
        let changes = translator.update(&objects, &reports, false);
        let told = changes.workloads.len() + changes.services.len() + changes.policies.len();
        assert_eq!((changes.translated, told), (translated, changed), "{what}: {changes:#?}");
    }
}
