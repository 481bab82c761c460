use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::install::testing::{FIELD, entry};

/// What a runtime would read.
fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn with(text: &str) -> String {
    Chain::parse(text).unwrap().with(&entry()).unwrap().unwrap()
}

#[test]
fn chains_of_the_field_get_the_entry_last_and_give_it_back_byte_for_byte() {
    for (name, text) in FIELD.into_iter().filter(|(name, _)| name.ends_with(".conflist")) {
        let installed = with(text);
        let mut expected = value(text);
        expected["plugins"].as_array_mut().unwrap().push(entry());
        assert_eq!(value(&installed), expected, "{name}");
        let again = Chain::parse(&installed).unwrap();
        assert!(again.has_entry(), "{name}");
        assert_eq!(again.with(&entry()), Ok(None), "{name}: a second time changes nothing");
        assert_eq!(again.without().as_deref(), Some(text), "{name}");
        assert!(!Chain::parse(text).unwrap().has_entry(), "{name}");
    }
}

#[test]
fn the_entry_stands_like_its_neighbours() {
    let text = "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[\n\t{\"type\":\"bridge\"}\n]}";
    assert_eq!(with(text), text.replace("\n]", &format!(",\n\t{}\n]", entry())));
    let dense = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    assert_eq!(with(dense), dense.replace("}]", &format!("}},{}]", entry())));
}

#[test]
fn an_entry_of_another_release_is_replaced_where_it_stands() {
    let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}, {"type":"underpass-cni","timeout":3}, {"type":"b"}]}"#;
    let expected = text.replace(r#"{"type":"underpass-cni","timeout":3}"#, &entry().to_string());
    assert_eq!(with(text), expected);
}

#[test]
fn several_entries_and_one_that_stands_first_become_one_at_the_end() {
    let one = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#;
    let ours = r#"{"type":"underpass-cni"}"#;
    for text in [
        one.replace(r#"{"type":"a"}"#, &format!(r#"{ours}, {{"type":"a"}}"#)),
        one.replace(r#"{"type":"a"}"#, &format!(r#"{{"type":"a"}}, {ours},{ours}"#)),
        one.replace(r#"{"type":"a"}"#, &format!(r#"{ours},{{"type":"a"}} , {ours}"#)),
    ] {
        assert_eq!(value(&with(&text))["plugins"], json!([{"type": "a"}, entry()]), "{text}");
        assert_eq!(value(&Chain::parse(&text).unwrap().without().unwrap()), value(one), "{text}");
    }
    let alone = one.replace(r#"{"type":"a"}"#, ours);
    assert_eq!(Chain::parse(&alone).unwrap().without(), None, "a chain without plugins would be no chain");
}

#[test]
fn what_no_runtime_could_use_is_named() {
    let text = |plugins: &str| format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":{plugins}}}"#);
    for (text, reason) in [
        (String::new(), "configuration_malformed"),
        ("# YAML: no".to_owned(), "configuration_malformed"),
        (text(r#"[{"type":"a"}]"#)[..40].to_owned(), "configuration_malformed"),
        (text(r#"[{"type":"a"}]}"#), "configuration_malformed"),
        (text(r#"{"type":"a"}"#), "configuration_malformed"),
        (text(r#"[{"type":"a"}],"plugins":[{"type":"b"}]"#), "configuration_malformed"),
        (text("[]"), "configuration_incomplete"),
        (text("[{}]"), "configuration_incomplete"),
        (text(r#"[{"type":""}]"#), "configuration_incomplete"),
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#.to_owned(), "configuration_incomplete"),
    ] {
        assert_eq!(Chain::parse(&text).unwrap_err().reason(), reason, "{text}");
    }
    for version in [r#""0.2.0""#, r#""0.3.0""#, r#""""#, "null"] {
        let text = text(r#"[{"type":"a"}]"#).replace(r#""1.0.0""#, version);
        let refused = Chain::parse(&text).unwrap().with(&entry()).unwrap_err();
        assert_eq!(refused.reason(), "configuration_version", "{version}");
    }
}

#[test]
fn a_single_configuration_becomes_a_chain_as_runtimes_make_it() {
    let single = "\n{ \"cniVersion\": \"0.4.0\", \"name\": \"mynet\", \"type\": \"bridge\", \"mtu\": 1400 }\n";
    let chain = chain_of(single, &entry()).unwrap();
    let expected = json!({ "cniVersion": "0.4.0", "name": "mynet", "plugins": [value(single), entry()] });
    assert_eq!(value(&chain), expected);
    let chain = Chain::parse(&chain).unwrap();
    assert!(chain.has_entry() && chain.was_made_of(single));
    assert!(!chain.was_made_of(&single.replace("1400", "9000")));
    assert!(is_single(r#"{"name": "n"}"#).is_err());
    assert_eq!(chain_of(r#"{"type":"bridge","cniVersion":"1.0.0"}"#, &entry()), Err(DocumentError::Missing("name")));
    assert_eq!(chain_of(r#"{"type":"bridge","name":"n"}"#, &entry()).unwrap_err().reason(), "configuration_version");
}

/// Any chain with some of our entries in it, in some layout.
fn chains() -> impl Strategy<Value = String> {
    let space = prop::sample::select(vec!["", " ", "\n", "\n    ", "\t", "\r\n  "]);
    let plugin = ("[a-z\"\\\\é]{1,6}", any::<u32>(), space.clone());
    (prop::collection::vec(plugin, 1..5), space, ".{0,8}").prop_map(|(plugins, space, extra)| {
        let plugins = plugins.into_iter().map(|(kind, number, space)| {
            format!("{space}{}{space}", json!({ "type": kind, "n": number, "nested": { "type": PLUGIN } }))
        });
        let plugins = plugins.collect::<Vec<_>>().join(",");
        let (extra, name) = (json!(extra), json!("n"));
        format!(r#"{space}{{"plugins":[{plugins}],"x":{extra},{space}"name":{name},"cniVersion":"1.1.0"}}{space}"#)
    })
}

proptest! {
    #[test]
    fn adding_and_taking_out_gives_back_the_same_text(text in chains()) {
        let installed = with(&text);
        let chain = Chain::parse(&installed).unwrap();
        prop_assert_eq!(chain.with(&entry()), Ok(None));
        prop_assert_eq!(chain.without(), Some(text));
    }

    #[test]
    fn another_entry_in_between_changes_nothing_about_that(text in chains(), timeout in 1..90) {
        let older = json!({ "type": PLUGIN, "timeout": timeout });
        let older = Chain::parse(&text).unwrap().with(&older).unwrap().unwrap();
        prop_assert_eq!(Chain::parse(&with(&older)).unwrap().without(), Some(text));
    }

    #[test]
    fn arbitrary_files_never_panic(text in "(?s).{0,300}", json in r#"[\[\]{}",:a-z\\0-9 ]{0,60}"#) {
        for text in [text, json] {
            if let Ok(chain) = Chain::parse(&text) {
                drop((chain.with(&entry()), chain.without()));
            }
            drop(chain_of(&text, &entry()));
        }
    }
}
