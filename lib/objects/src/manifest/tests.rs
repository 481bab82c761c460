use proptest::prelude::*;

use super::*;

fn names(contents: &str) -> Vec<String> {
    read(contents.as_bytes()).unwrap().objects.keys().map(ToString::to_string).collect()
}

#[test]
fn reads_every_kind_in_one_file_of_many_documents() {
    let contents = "\
# a comment first
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
---
# nothing but a comment
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  creationTimestamp: null
  labels: {version: 2}
spec:
  containers:
  - name: web
    image: example/web
    resources: {limits: {cpu: 1}}
--- # a marker may carry a comment
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 8081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1]}]
...
";
    let expected = [
        "EndpointSlice shop/web-x",
        "Namespace shop",
        "Node node-1",
        "Pod shop/web-1",
        "Service default/web",
        "ServiceAccount shop/web",
    ];
    assert_eq!(names(contents), expected);
}

#[test]
fn reads_lists_of_mixed_and_of_one_kind_and_json() {
    let mixed = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}, data: {x: y}}
- {apiVersion: v1, kind: Pod, metadata: {name: c}}
";
    let manifest = read(mixed.as_bytes()).unwrap();
    assert_eq!(manifest.objects.len(), 2);
    assert_eq!(manifest.ignored.get("ConfigMap"), Some(&1));
    assert_eq!(names("apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: c}}]\n"), ["Pod default/c"]);
    assert_eq!(names(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#), ["Pod default/c"]);
    assert_eq!(names("apiVersion: v1\nkind: List\nitems: []\n"), Vec::<String>::new());
}

#[test]
fn counts_other_kinds_even_where_they_share_a_name() {
    let contents = "\
{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {replicas: many}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: b}}
";
    let manifest = read(contents.as_bytes()).unwrap();
    assert!(manifest.objects.is_empty());
    let counted: Vec<_> = manifest.ignored.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(counted, [("Deployment.apps", 1), ("Service.serving.knative.dev", 2)]);
}

#[test]
fn says_line_and_field_of_what_is_wrong() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    let service =
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - name: http\n    port: eighty\n";
    let table: [(String, usize, Option<&str>, &str); 15] = [
        (format!("{pod}---\n{service}"), 12, Some("spec.ports[0].port"), "field"),
        (format!("---\n{pod}spec: 7\n"), 5, Some("spec"), "field"),
        (format!("{pod}spec:\n  containers: none\n"), 5, Some("spec.containers"), "field"),
        (format!("{pod}---\n{pod}"), 5, None, "duplicate"),
        (format!("{pod}---\napiVersion: v1\nkind: Pod\nmetadata: {{}}\n"), 7, Some("metadata.name"), "field"),
        ("a: &a [1]\nki".into(), 2, None, "syntax"),
        (pod.replace("name: a", "name: a/b"), 3, Some("metadata.name"), "field"),
        (pod.replace("name: a", "name: a, namespace: .."), 3, Some("metadata.namespace"), "field"),
        (format!("{pod}---\n\n\nkind: Pod\n"), 7, Some("apiVersion"), "field"),
        ("apiVersion: v1\nmetadata: {name: a}\n".into(), 1, Some("kind"), "field"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n".into(), 1, Some("apiVersion"), "field"),
        (format!("{pod}---\na: b\n c: d\n"), 6, None, "syntax"),
        (format!("{pod}---\njust text\n"), 5, None, "syntax"),
        ("apiVersion: v1\nkind: List\nitems:\n- {kind: Pod, apiVersion: v1}\n".into(), 4, Some("items[0].metadata.name"), "field"),
        (
            "apiVersion: v1\nkind: List\nitems:\n- kind: Pod\n  apiVersion: v1\n  metadata:\n    name: a\n    labels: 3\n".into(),
            8,
            Some("items[0].metadata.labels"),
            "field",
        ),
    ];
    for (contents, line, field, reason) in table {
        let error = read(contents.as_bytes()).unwrap_err();
        assert_eq!((error.line(), error.field(), error.reason()), (line, field, reason), "{error}\n{contents}");
    }
    assert_eq!(read(b"a: b\n\xff").unwrap_err(), ManifestError::Text { line: 2 });
}

#[test]
fn repeats_neither_path_nor_place() {
    let error = read(b"apiVersion: v1\nkind: Pod\nmetadata:\n  labels: 3\n").unwrap_err();
    assert_eq!(error.to_string(), "line 4: metadata.labels: invalid type: integer `3`, expected a map");
}

proptest! {
    #[test]
    fn never_panics(text in "([a-z#\\-:{}\\[\\]&*!|>'\" \n]|---\n|kind: |apiVersion: v1\n|Pod\n|List\n|items:\n|- ){0,40}") {
        if let Err(error) = read(text.as_bytes()) {
            prop_assert!(error.line() <= text.lines().count() + 1, "{}", error);
        }
    }
}
