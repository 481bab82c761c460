//! One row a rule: what stands in a manifest, what the mesh shall know of it.

use underpass_model::{
    Health, HealthPolicy, LocalityScope, NetworkMode, PodUid, ServicePort, SpreadMode, Tunnel, WorkloadKind,
};
use underpass_objects::{CaptureReport, CaptureState, manifest};

use super::*;

fn objects(yaml: &str) -> Objects {
    let manifest = manifest::read(yaml.as_bytes()).unwrap();
    manifest.objects.into_values().map(|located| located.object).collect()
}

fn translated(yaml: &str) -> Translation {
    translate(&objects(yaml), &Reports::default(), &TranslateOptions::default())
}

/// A pod `shop/web` on node-1 with further metadata, spec and status (inner parts of flow mappings).
fn pod_with(metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, uid: u-1, {metadata}}}\n\
         spec: {{nodeName: node-1, {spec}}}\nstatus: {{{status}}}\n"
    )
}

fn service_with(metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, {metadata}}}\nspec: {{{spec}}}\n"
    )
}

fn workload(yaml: &str) -> Workload {
    let translation = translated(yaml);
    let mut workloads = translation.workloads.into_values();
    let workload = workloads.next().expect("a workload");
    assert_eq!(workloads.next(), None);
    workload
}

fn service(yaml: &str) -> Service {
    translated(yaml).services.into_values().next().expect("a service")
}

const READY: &str = "podIPs: [{ip: 10.1.0.5}], conditions: [{type: Ready, status: 'True'}]";

#[test]
fn a_pod_becomes_a_workload() {
    let manifests = pod_with(
        "labels: {app: web, version: v2}",
        "serviceAccountName: front",
        "podIPs: [{ip: 10.1.0.5}, {ip: 'fd00::5'}], conditions: [{type: Ready, status: 'True'}]",
    ) + "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-1\n  labels: {topology.kubernetes.io/region: eu, \
         topology.kubernetes.io/zone: eu-a, topology.istio.io/subzone: rack-7}\n";
    let expected = Workload {
        uid: WorkloadUid::new("Kubernetes//Pod/shop/web"),
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        network: "".into(),
        tunnel: Tunnel::None,
        trust_domain: TrustDomain::default(),
        service_account: "front".into(),
        node: "node-1".into(),
        canonical_name: "web".into(),
        canonical_revision: "v2".into(),
        kind: WorkloadKind::Pod,
        owner: "web".into(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        locality: underpass_model::Locality { region: "eu".into(), zone: "eu-a".into(), subzone: "rack-7".into() },
        network_mode: NetworkMode::Standard,
        waypoint: None,
        policies: vec![],
        services: BTreeMap::new(),
        capacity: 1,
        joinable: false,
    };
    assert_eq!(workload(&manifests), expected);
}

#[test]
fn options_name_cluster_domain_network_and_trust_domain() {
    let options = TranslateOptions {
        cluster: "east".into(),
        cluster_domain: "corp.test".into(),
        network: "net-1".into(),
        trust_domain: TrustDomain::new("corp").unwrap(),
    };
    let objects = objects(&(pod_with("", "", READY) + &service_with("", "clusterIP: 10.96.0.1")));
    let Translation { workloads, services, .. } = translate(&objects, &Reports::default(), &options);
    let workload = &workloads[&WorkloadUid::new("east//Pod/shop/web")];
    assert_eq!((&*workload.cluster, &*workload.network, workload.trust_domain.as_str()), ("east", "net-1", "corp"));
    let service = &services[&ServiceName::new("shop", "web.shop.svc.corp.test")];
    assert_eq!(service.addresses[0].to_string(), "net-1/10.96.0.1");
}

#[test]
fn health_is_readiness_of_a_pod_that_stays() {
    let table = [
        ("", READY, Health::Healthy),
        ("", "podIPs: [{ip: 10.1.0.5}], conditions: [{type: Ready, status: 'False'}]", Health::Unhealthy),
        ("", "podIPs: [{ip: 10.1.0.5}], conditions: [{type: Ready, status: Unknown}]", Health::Unhealthy),
        ("", "podIPs: [{ip: 10.1.0.5}], conditions: [{type: Initialized, status: 'True'}]", Health::Unhealthy),
        ("", "podIPs: [{ip: 10.1.0.5}]", Health::Unhealthy),
        ("deletionTimestamp: '2026-01-01T00:00:00Z'", READY, Health::Unhealthy),
    ];
    for (metadata, status, health) in table {
        assert_eq!(workload(&pod_with(metadata, "", status)).health, health, "{metadata} {status}");
    }
}

#[test]
fn pods_that_have_ended_or_are_nowhere_are_left_out() {
    for phase in ["Succeeded", "Failed"] {
        let status = format!("phase: {phase}, {READY}");
        assert!(translated(&pod_with("", "", &status)).workloads.is_empty(), "{phase}");
    }
    let nowhere = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {}\n";
    assert!(translated(nowhere).workloads.is_empty());
    assert_eq!(translated(&pod_with("", "", "phase: Pending")).workloads.len(), 1, "one that starts is there already");
}

#[test]
fn a_service_account_is_default_unless_set_and_the_single_address_counts_too() {
    let workload = workload(&pod_with("", "hostNetwork: true", "podIP: 192.168.0.7"));
    assert_eq!(&*workload.service_account, "default");
    assert_eq!(workload.addresses, ["192.168.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(workload.network_mode, NetworkMode::HostNetwork);
}

#[test]
fn owners_are_those_that_people_know() {
    use WorkloadKind::{CronJob, Deployment, Job, Pod};
    let hash = "labels: {pod-template-hash: 5d4f8c7b9}";
    let table = [
        ("", "", "", Pod, "web"),
        (hash, "ReplicaSet", "shop-web-5d4f8c7b9", Deployment, "shop-web"),
        ("", "ReplicaSet", "shop-web-5d4f8c7b9", Pod, "shop-web-5d4f8c7b9"),
        (hash, "ReplicaSet", "by-hand", Pod, "by-hand"),
        (hash, "ReplicaSet", "-5d4f8c7b9", Pod, "-5d4f8c7b9"),
        ("", "Job", "migrate", Job, "migrate"),
        ("", "Job", "nightly-29012345", CronJob, "nightly"),
        ("", "Job", "build-42", Job, "build-42"),
        ("", "StatefulSet", "redis", Pod, "redis"),
        ("", "DaemonSet", "logs", Pod, "logs"),
    ];
    for (labels, kind, name, expected_kind, expected) in table {
        let owners = match kind {
            "" => String::new(),
            kind => {
                format!("ownerReferences: [{{apiVersion: x/v1, kind: {kind}, name: {name}, uid: u, controller: true}}]")
            }
        };
        let workload =
            workload(&pod_with(&format!("{labels}{}{owners}", if labels.is_empty() { "" } else { ", " }), "", READY));
        assert_eq!((workload.kind, &*workload.owner), (expected_kind, expected), "{kind} {name}");
        assert_eq!(&*workload.canonical_name, expected, "nothing else names it");
    }
    let not_in_control = "ownerReferences: [{apiVersion: v1, kind: Node, name: node-1, uid: u}]";
    assert_eq!(&*workload(&pod_with(not_in_control, "", READY)).owner, "web");
}

#[test]
fn the_most_telling_label_names_a_workload_and_its_revision() {
    let labels = [
        ("service.istio.io/canonical-name", "service.istio.io/canonical-revision", "one"),
        ("app.kubernetes.io/name", "app.kubernetes.io/version", "two"),
        ("app", "version", "three"),
    ];
    for first in 0..labels.len() {
        let present =
            labels[first..].iter().map(|(name, revision, value)| format!("{name}: {value}, {revision}: r-{value}"));
        let present = present.collect::<Vec<_>>().join(", ");
        let workload = workload(&pod_with(&format!("labels: {{{present}}}"), "", READY));
        let expected = labels[first].2;
        assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), (expected, &*format!("r-{expected}")));
    }
    assert_eq!(&*workload(&pod_with("", "", READY)).canonical_revision, "latest");
}

#[test]
fn only_a_report_of_capture_from_the_pods_own_node_makes_it_take_tunnels() {
    use CaptureState::{Captured, Leaving};
    let report = |uid: &str, name: &str, node: &str, state| CaptureReport {
        pod_uid: uid.into(),
        namespace: "shop".into(),
        name: name.into(),
        node: node.into(),
        state,
        generation: 1,
    };
    let table = [
        (None, "", Tunnel::None, 0),
        (Some(report("u-1", "web", "node-1", Captured)), "", Tunnel::Hbone, 0),
        (Some(report("u-1", "web", "node-1", Leaving)), "", Tunnel::None, 0),
        (Some(report("u-2", "web", "node-1", Captured)), "", Tunnel::None, 0),
        (Some(report("u-1", "web", "node-2", Captured)), "", Tunnel::None, 1),
        (Some(report("u-1", "other", "node-1", Captured)), "", Tunnel::None, 1),
        (Some(report("u-1", "web", "node-1", Captured)), "hostNetwork: true", Tunnel::None, 0),
    ];
    for (report, spec, tunnel, notes) in table {
        let reports = report.iter().map(|report| (PodUid::new(&report.pod_uid), report.clone())).collect();
        let reports = Reports::Apart(reports);
        // The label says what somebody wants, not what is.
        let pod = objects(&pod_with("labels: {underpass.dev/mesh: enabled}", spec, READY));
        let translation = translate(&pod, &reports, &TranslateOptions::default());
        let workload = translation.workloads.into_values().next().unwrap();
        assert_eq!((workload.tunnel, translation.notes.len()), (tunnel, notes), "{report:?} {spec}");
    }
}

#[test]
fn services_have_their_name_addresses_and_tcp_ports() {
    let service = service(&service_with(
        "",
        "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a'], ports: [{name: http, port: 80, targetPort: 8080}, \
         {name: same, port: 81}, {name: named, port: 82, targetPort: web}, {name: dns, port: 53, protocol: UDP}, \
         {name: tcp, port: 83, protocol: TCP}]",
    ));
    assert_eq!(service.name.to_string(), "shop/web.shop.svc.cluster.local");
    assert_eq!(&*service.short_name, "web");
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["/10.96.0.10", "/fd00:96::a"]);
    let ports: Vec<_> = service.ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(80, 8080), (81, 81), (82, 0), (83, 83)]);
    assert_eq!(service.load_balancing, Default::default());
}

#[test]
fn virtual_addresses_are_those_that_exist() {
    let table: [(&str, &[&str]); 6] = [
        ("clusterIP: 10.96.0.10", &["/10.96.0.10"]),
        ("clusterIP: None", &[]),
        ("clusterIP: None, clusterIPs: [None]", &[]),
        ("clusterIP: ''", &[]),
        ("ports: []", &[]),
        ("clusterIPs: [10.96.0.10, nonsense]", &["/10.96.0.10"]),
    ];
    for (spec, expected) in table {
        let addresses: Vec<_> = service(&service_with("", spec)).addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, expected, "{spec}");
    }
    let external = service_with("", "type: ExternalName, externalName: example.com");
    assert!(translated(&external).services.is_empty());
}

#[test]
fn distribution_presets_mean_what_kubernetes_promises() {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    use SpreadMode::{Failover, Strict, Unspecified};
    let annotation = "annotations: {networking.istio.io/traffic-distribution: PreferClose}";
    let of_namespace = |value: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: \
             {{networking.istio.io/traffic-distribution: {value}}}}}\n"
        )
    };
    let table: [(&str, &str, &str, &[LocalityScope], SpreadMode); 9] = [
        ("", "", "", &[], Unspecified),
        ("", "trafficDistribution: PreferClose", "", &[Network, Region, Zone], Failover),
        ("", "trafficDistribution: PreferSameZone", "", &[Network, Region, Zone], Failover),
        ("", "trafficDistribution: PreferSameNode", "", &[Network, Region, Zone, Subzone, Node], Failover),
        ("", "internalTrafficPolicy: Local, trafficDistribution: PreferClose", "", &[Node], Strict),
        ("", "internalTrafficPolicy: Cluster", "", &[], Unspecified),
        (annotation, "", "", &[Network, Region, Zone], Failover),
        (annotation, "trafficDistribution: PreferSameNode", "", &[Network, Region, Zone, Subzone, Node], Failover),
        ("", "", "PreferSameNode", &[Network, Region, Zone, Subzone, Node], Failover),
    ];
    for (metadata, spec, namespace, preference, mode) in table {
        let namespace = if namespace.is_empty() { String::new() } else { of_namespace(namespace) };
        let balancing = service(&(service_with(metadata, spec) + &namespace)).load_balancing;
        assert_eq!((&*balancing.preference, balancing.mode), (preference, mode), "{metadata} {spec} {namespace}");
        assert_eq!(balancing.health, HealthPolicy::OnlyHealthy);
    }
    let all = service(&service_with("", "publishNotReadyAddresses: true"));
    assert_eq!(all.load_balancing.health, HealthPolicy::AllowAll);
}

#[test]
fn session_affinity_lasts_as_long_as_kubernetes_says() {
    let lasting = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    let endless = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: -1}}";
    for (spec, seconds, field) in [
        ("", None, None),
        ("sessionAffinity: None", None, None),
        ("sessionAffinity: ClientIP", Some(10_800), None),
        (lasting, Some(60), None),
        (endless, Some(10_800), Some("spec.sessionAffinityConfig.clientIP.timeoutSeconds")),
        ("sessionAffinity: Cookie", None, Some("spec.sessionAffinity")),
    ] {
        let translated = translated(&service_with("", spec));
        let fields: Vec<_> = translated.notes.iter().map(|note| note.field).collect();
        assert_eq!(fields, field.into_iter().collect::<Vec<_>>(), "{spec}");
        let found = service(&service_with("", spec)).load_balancing.affinity.map(|time| time.as_secs());
        assert_eq!(found, seconds, "{spec}");
    }
}

#[test]
fn a_selector_joins_pods_of_its_namespace_and_resolves_ports_in_each() {
    let named = "containers: [{name: a, ports: [{name: web, containerPort: 53, protocol: UDP}, {name: web, containerPort: 8081}]}]";
    let sidecar = "initContainers: [{name: s, restartPolicy: Always, ports: [{name: web, containerPort: 8082}]}]";
    let ended = "initContainers: [{name: s, ports: [{name: web, containerPort: 8083}]}]";
    let selected = "labels: {app: web, tier: front}";
    let one = "selector: {app: web}, ports: [{port: 80, targetPort: 8080}]";
    let both = "selector: {app: web}, ports: [{port: 80, targetPort: 8080}, {port: 81, targetPort: web}]";
    type Expected = Option<&'static [(u16, u16)]>;
    let table: [(&str, &str, &str, &str, Expected); 11] = [
        (selected, "", READY, one, Some(&[(80, 8080)])),
        ("labels: {app: other}", "", READY, one, None),
        ("", "", READY, one, None),
        (selected, "", READY, "selector: {app: web, tier: back}, ports: [{port: 80}]", None),
        (selected, "", READY, "selector: {app: web, tier: front}, ports: [{port: 80}]", Some(&[(80, 80)])),
        (selected, named, READY, both, Some(&[(80, 8080), (81, 8081)])),
        (selected, sidecar, READY, both, Some(&[(80, 8080), (81, 8082)])),
        (selected, ended, READY, both, Some(&[(80, 8080)])),
        (selected, "", READY, "selector: {app: web}, ports: [{port: 81, targetPort: web}]", None),
        (selected, "", READY, "selector: {app: web}, clusterIP: None", Some(&[])),
        (selected, "", "phase: Pending", one, None),
    ];
    for (metadata, spec, status, service, expected) in table {
        let workload = workload(&(pod_with(metadata, spec, status) + &service_with("", service)));
        let name = ServiceName::new("shop", "web.shop.svc.cluster.local");
        let ports = workload.services.get(&name);
        let ports =
            ports.map(|ports| ports.iter().map(|port| (port.service_port, port.target_port)).collect::<Vec<_>>());
        assert_eq!(ports.as_deref(), expected, "{metadata} {spec} {service}");
    }
    let elsewhere = service_with("", one).replace("namespace: shop", "namespace: other");
    assert!(workload(&(pod_with(selected, "", READY) + &elsewhere)).services.is_empty());
}

fn slice(endpoints: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-x, namespace: shop, \
         labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nendpoints: {endpoints}\nports: {ports}\n"
    )
}

#[test]
fn slices_of_a_service_without_selector_make_workloads_of_foreign_addresses() {
    let manifests = service_with("", "clusterIP: 10.96.0.1, ports: [{name: db, port: 5432}, {name: web, port: 80}]")
        + &slice(
            "[{addresses: [192.0.2.1], nodeName: node-9, zone: z-1}, {addresses: [192.0.2.2], conditions: {ready: false}}, \
             {addresses: [name.example]}]",
            "[{name: db, port: 15432}, {name: other, port: 1}, {name: web, port: 53, protocol: UDP}]",
        );
    let Translation { workloads, notes, .. } = translated(&manifests);
    let uid = |ip: &str| WorkloadUid::new(&format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-x/{ip}"));
    let up = &workloads[&uid("192.0.2.1")];
    assert_eq!(up.addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((up.tunnel, up.health, &*up.node, &*up.locality.zone), (Tunnel::None, Health::Healthy, "node-9", "z-1"));
    assert_eq!(
        up.services.iter().map(|(name, ports)| (name.to_string(), ports.clone())).collect::<Vec<_>>(),
        [("shop/web.shop.svc.cluster.local".into(), vec![ServicePort { service_port: 5432, target_port: 15432 }])]
    );
    assert_eq!(workloads[&uid("192.0.2.2")].health, Health::Unhealthy);
    assert_eq!((workloads.len(), notes.len()), (2, 1), "{notes:?}");
}

#[test]
fn an_address_of_a_slice_that_is_a_pods_is_that_pod() {
    let service = service_with("", "ports: [{port: 80}]");
    let refers = "targetRef: {kind: Pod, name: web}";
    let host = "hostNetwork: true";
    let table = [
        ("", "[{addresses: [10.1.0.5]}]".to_owned(), 1, true),
        ("", format!("[{{addresses: [10.1.0.5], {refers}}}]"), 1, true),
        (host, format!("[{{addresses: [10.1.0.5], {refers}}}]"), 1, true),
        // A node's address alone does not say which of its pods.
        (host, "[{addresses: [10.1.0.5]}]".to_owned(), 2, false),
        // A reference to a pod with another address is not believed.
        ("", format!("[{{addresses: [192.0.2.1], {refers}}}]"), 2, false),
    ];
    for (spec, endpoints, count, is_pod) in table {
        let manifests = pod_with("", spec, READY) + &service + &slice(&endpoints, "[{port: 8080}]");
        let workloads = translated(&manifests).workloads;
        let pod = &workloads[&WorkloadUid::new("Kubernetes//Pod/shop/web")];
        assert_eq!((workloads.len(), pod.services.len()), (count, usize::from(is_pod)), "{spec} {endpoints}");
    }
}

#[test]
fn slices_of_services_with_a_selector_or_of_no_known_service_mean_nothing() {
    let slice = slice("[{addresses: [192.0.2.1]}]", "[{port: 80}]");
    let selected = service_with("", "selector: {app: web}, ports: [{port: 80}]");
    let external = service_with("", "type: ExternalName, externalName: example.com, ports: [{port: 80}]");
    for service in ["", &selected, &external] {
        assert!(translated(&(service.to_owned() + &slice)).workloads.is_empty(), "{service}");
    }
}

#[test]
fn what_cannot_be_used_is_noted_and_the_rest_is_used() {
    let manifests = pod_with("", "", "podIPs: [{ip: 10.1.0.5}, {ip: ten}]")
        + &service_with(
            "",
            "trafficDistribution: Nearby, clusterIPs: [x], ports: [{port: 0}, {port: 80, targetPort: 70000}, {port: 81}]",
        );
    let Translation { workloads, services, notes, .. } = translated(&manifests);
    let told: Vec<_> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "Pod shop/web: status.podIPs: \"ten\" is no address",
            "Service shop/web: spec.clusterIPs: \"x\" is no address",
            "Service shop/web: spec.ports.port: 0 is no port from 1 to 65535",
            "Service shop/web: spec.ports.targetPort: 70000 is no port from 1 to 65535",
            "Service shop/web: spec.trafficDistribution: \"Nearby\" is not known and counts as unset",
        ]
    );
    assert_eq!(workloads.values().next().unwrap().addresses.len(), 1);
    assert_eq!(services.values().next().unwrap().ports.len(), 1);
}
