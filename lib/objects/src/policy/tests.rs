use crate::manifest::{self, ManifestError};

use super::*;

fn policy(spec: &str) -> Result<(), String> {
    let text = format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    told(&text)
}

fn mode(metadata: &str, spec: &str) -> Result<(), String> {
    told(&format!("apiVersion: underpass.dev/v1alpha1\nkind: MeshTLSMode\nmetadata: {{{metadata}}}\nspec: {spec}\n"))
}

fn told(text: &str) -> Result<(), String> {
    match manifest::read(text.as_bytes()) {
        Ok(manifest) => {
            assert_eq!(manifest.objects.len(), 1);
            Ok(())
        }
        Err(ManifestError::Field { field, problem, line }) => {
            assert!(line > 0);
            Err(format!("{field}: {problem}"))
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn takes_what_is_well_formed() {
    for spec in [
        "{targetRefs: [{kind: Pod}]}",
        "{targetRefs: [{group: '', kind: Pod, selector: {matchLabels: {app: web}}}], action: ALLOW, rules: []}",
        "{targetRefs: [{kind: Pod}], action: DENY, dryRun: true, rules: [{}]}",
        "{targetRefs: [{kind: Pod}], enforcementLevel: Application}",
        "{targetRefs: [{kind: Pod}], rules: [{sources: []}]}",
        "{targetRefs: [{kind: Pod}], rules: [{networkAttributes: {ports: [80, 443]}, sources: \
         [{type: ServiceAccount, serviceAccount: {name: web}}, {type: ServiceAccount, serviceAccount: {namespace: a, name: '*'}}, \
         {type: SPIFFE, spiffe: 'spiffe://a/ns/b/sa/c'}, {type: Namespace, namespace: a}, {type: CIDR, cidr: 10.0.0.0/8}, \
         {type: CIDR, cidr: 'fd00::1'}]}]}",
    ] {
        assert_eq!(policy(spec), Ok(()), "{spec}");
    }
    for (metadata, spec) in [
        ("name: default, namespace: underpass-system", "{mode: STRICT}"),
        ("name: x, namespace: shop", "{mode: PERMISSIVE, ports: [{port: 80, mode: STRICT}]}"),
        ("name: x, namespace: shop", "{ports: [{port: 80, mode: STRICT}], selector: {matchLabels: {app: web}}}"),
    ] {
        assert_eq!(mode(metadata, spec), Ok(()), "{spec}");
    }
}

#[test]
fn names_the_field_that_is_wrong() {
    let source = |source: &str| format!("{{targetRefs: [{{kind: Pod}}], rules: [{{}}, {{sources: [{source}]}}]}}");
    let target = |target: &str| format!("{{targetRefs: [{target}]}}");
    let at = "spec.rules[1].sources[0]";
    for (spec, expected) in [
        ("{}".to_owned(), "spec: missing field `targetRefs`".to_owned()),
        ("{targetRefs: []}".into(), "spec.targetRefs: needs exactly one entry, not 0".into()),
        (target("{kind: Service}"), "spec.targetRefs[0].kind: unknown variant `Service`, expected `Pod`".into()),
        (
            target("{kind: Pod, group: apps}"),
            "spec.targetRefs[0].group: pods are of the core group, written \"\"".into(),
        ),
        (
            target("{kind: Pod, selector: {matchExpressions: [{key: a, operator: In}]}}"),
            "spec.targetRefs[0].selector.matchExpressions[0].values: must not be empty for this operator".into(),
        ),
        (
            target("{kind: Pod, selector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}"),
            "spec.targetRefs[0].selector.matchExpressions[0].values: must be empty".into(),
        ),
        (
            "{targetRefs: [{kind: Pod}], action: AUDIT}".into(),
            "spec.action: unknown variant `AUDIT`, expected `ALLOW` or `DENY`".into(),
        ),
        (source("{type: SPIFFE, spiffe: 'a/ns/b/sa/c'}"), format!("{at}.spiffe: does not begin with spiffe://")),
        (source("{type: SPIFFE}"), format!("{at}.spiffe: is missing for this type")),
        (source("{type: CIDR, cidr: x}"), format!("{at}.cidr: is neither an address nor a range of addresses")),
        (source("{type: CIDR, cidr: 10.0.0.1, namespace: a}"), format!("{at}.namespace: belongs to another type")),
        (source("{type: Namespace, namespace: ''}"), format!("{at}.namespace: is empty")),
        (source("{type: ServiceAccount, serviceAccount: {name: ''}}"), format!("{at}.serviceAccount.name: is empty")),
        (
            "{targetRefs: [{kind: Pod}], rules: [{networkAttributes: {ports: []}}]}".into(),
            "spec.rules[0].networkAttributes.ports: is empty".into(),
        ),
        (
            "{targetRefs: [{kind: Pod}], rules: [{networkAttributes: {ports: [0]}}]}".into(),
            "spec.rules[0].networkAttributes.ports: 0 is no port".into(),
        ),
    ] {
        assert_eq!(policy(&spec), Err(expected), "{spec}");
    }
    let misspelt = policy("{targetRefs: [{kind: Pod, selector: {matchLabel: {app: web}}}]}").unwrap_err();
    assert!(misspelt.contains("matchLabel") && misspelt.contains("unknown field"), "{misspelt}");
    for (metadata, spec, expected) in [
        ("name: x, namespace: shop", "{}", "spec.mode: is missing, and no port is named either"),
        (
            "name: x, namespace: shop",
            "{mode: DISABLE}",
            "spec.mode: unknown variant `DISABLE`, expected `PERMISSIVE` or `STRICT`",
        ),
        (
            "name: x, namespace: shop",
            "{ports: [{port: 1, mode: STRICT}, {port: 1, mode: STRICT}]}",
            "spec.ports: names a port twice",
        ),
        (
            "name: x, namespace: underpass-system",
            "{mode: STRICT}",
            "metadata.name: the one of the whole mesh is called \"default\"",
        ),
        (
            "name: default, namespace: underpass-system",
            "{mode: STRICT, selector: {matchLabels: {a: b}}}",
            "spec.selector: the one of the whole mesh has none",
        ),
    ] {
        assert_eq!(mode(metadata, spec), Err(expected.to_owned()), "{metadata} {spec}");
    }
}

#[test]
fn istios_kinds_of_the_same_name_are_not_ours() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {what: ever}\n";
    let manifest = manifest::read(text.as_bytes()).unwrap();
    assert_eq!(manifest.ignored.keys().collect::<Vec<_>>(), ["AuthorizationPolicy.security.istio.io"]);
}

#[test]
fn selectors_select_by_labels_and_conditions() {
    let labels = |text: &str| serde_yaml::from_str::<BTreeMap<String, String>>(text).unwrap();
    for (selector, of, expected) in [
        ("{}", "{}", true),
        ("{matchLabels: {app: web}}", "{app: web, v: '1'}", true),
        ("{matchLabels: {app: web}}", "{app: job}", false),
        ("{matchLabels: {app: web, v: '1'}}", "{app: web}", false),
        ("{matchExpressions: [{key: app, operator: In, values: [web, job]}]}", "{app: job}", true),
        ("{matchExpressions: [{key: app, operator: In, values: [web]}]}", "{}", false),
        ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", "{app: web}", false),
        ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", "{}", true),
        ("{matchExpressions: [{key: app, operator: Exists}]}", "{app: ''}", true),
        ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", "{app: ''}", false),
        ("{matchLabels: {app: web}, matchExpressions: [{key: app, operator: DoesNotExist}]}", "{app: web}", false),
    ] {
        let parsed: Selector = serde_yaml::from_str(selector).unwrap();
        assert_eq!(parsed.selects(Some(&labels(of))), expected, "{selector} {of}");
    }
    assert!(Selector::default().selects(None));
    assert!(!serde_yaml::from_str::<Selector>("{matchLabels: {a: b}}").unwrap().selects(None));
}
