use proptest::prelude::*;

use super::*;
use crate::install::testing::{FIELD, entry};

fn listing(files: &[(&str, &str)]) -> Listing {
    files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect()
}

/// What the directory is after the edits.
fn after(mut files: Listing, edits: &[Edit]) -> Listing {
    for edit in edits {
        match edit {
            Edit::Remove(name) => drop(files.remove(name).unwrap()),
            Edit::Rename { from, to } => {
                let text = files.remove(from).unwrap();
                files.insert(to.clone(), text);
            }
            Edit::Write { name, like, text } => {
                assert!(files.contains_key(like));
                files.insert(name.clone(), Ok(text.clone()));
            }
        }
    }
    files
}

fn installed(files: Listing) -> Listing {
    let plan = install(&files, &entry()).unwrap();
    after(files, &plan.edits)
}

fn removed(files: Listing) -> Listing {
    let plan = remove(&files);
    after(files, &plan.edits)
}

/// The plugins of the file that a runtime would use.
fn used(files: &Listing) -> Vec<String> {
    let plan = install(files, &entry()).unwrap();
    assert_eq!(plan.edits, [], "a second time changes nothing");
    let text = files[&plan.primary.unwrap()].clone().unwrap();
    let chain: Value = serde_json::from_str(&text).unwrap();
    chain["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn configurations_of_the_field_are_chained_and_come_back() {
    for (name, text) in FIELD {
        let before = listing(&[(name, text)]);
        let with = installed(before.clone());
        let plugins = used(&with);
        assert!(
            plugins.len() > 1 && plugins.last().map(String::as_str) == Some("underpass-cni"),
            "{name}: {plugins:?}"
        );
        assert_eq!(removed(with), before, "{name}");
    }
}

const CHAIN_TEXT: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#;
const SINGLE_TEXT: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;

#[test]
fn the_first_usable_file_in_the_order_of_names_is_the_one() {
    let primary = |files: &[(&str, &str)]| install(&listing(files), &entry()).map(|plan| plan.primary.unwrap());
    assert_eq!(primary(&[("20.conflist", CHAIN_TEXT), ("10.conflist", CHAIN_TEXT)]), Ok("10.conflist".to_owned()));
    assert_eq!(primary(&[("9.conflist", CHAIN_TEXT), ("10.conflist", CHAIN_TEXT)]), Ok("10.conflist".to_owned()));
    assert_eq!(primary(&[("b.conf", SINGLE_TEXT), ("a.conflist", CHAIN_TEXT)]), Ok("a.conflist".to_owned()));
    assert_eq!(primary(&[("a.json", SINGLE_TEXT), ("b.conflist", CHAIN_TEXT)]), Ok("a.conflist".to_owned()));
    assert_eq!(primary(&[("0.txt", "x"), ("README", "x"), ("1.conflist", CHAIN_TEXT)]), Ok("1.conflist".to_owned()));
    assert_eq!(primary(&[]), Err(Refusal::NoConfiguration));
    assert_eq!(primary(&[("1.conflist.cilium_bak", CHAIN_TEXT)]), Err(Refusal::NoConfiguration));
}

#[test]
fn a_file_that_is_no_configuration_is_named_and_not_touched() {
    let files = listing(&[("00-broken.conflist", "{ half"), ("10.conflist", CHAIN_TEXT), ("99.conf", "# no")]);
    let plan = install(&files, &entry()).unwrap();
    assert_eq!(plan.primary.as_deref(), Some("10.conflist"));
    let skipped: Vec<_> = plan.skipped.iter().map(|skipped| skipped.file.as_str()).collect();
    assert_eq!(skipped, ["00-broken.conflist"]);
    let with = after(files.clone(), &plan.edits);
    assert_eq!(with["00-broken.conflist"], files["00-broken.conflist"]);
    let plan = remove(&with);
    assert_eq!(plan.skipped.len(), 1);
    assert_eq!(after(with, &plan.edits), files);

    let only = listing(&[("00-broken.conflist", "{ half")]);
    let refused = install(&only, &entry()).unwrap_err();
    assert!(refused.to_string().contains("00-broken.conflist"), "{refused}");
    let mut unreadable = Listing::new();
    unreadable.insert("10.conflist".to_owned(), Err("it is no text".to_owned()));
    assert_eq!(install(&unreadable, &entry()).unwrap_err().reason(), "configuration_malformed");
    assert_eq!(remove(&unreadable).edits, []);
}

#[test]
fn a_version_without_chains_is_refused_with_the_file() {
    let old = SINGLE_TEXT.replace("1.0.0", "0.2.0");
    let refused = install(&listing(&[("10.conf", &old), ("20.conflist", CHAIN_TEXT)]), &entry()).unwrap_err();
    assert_eq!(refused.reason(), "configuration_version");
    assert!(refused.to_string().starts_with("10.conf: "), "{refused}");
}

#[test]
fn a_single_plugin_becomes_a_chain_and_the_runtime_never_sees_neither() {
    let before = listing(&[("10-net.conf", SINGLE_TEXT)]);
    let plan = install(&before, &entry()).unwrap();
    let names = |files: &Listing| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after(before.clone(), &plan.edits[..1])), ["10-net.conf", "10-net.conflist"]);
    let with = after(before.clone(), &plan.edits);
    assert_eq!(names(&with), ["10-net.conf.underpass", "10-net.conflist"]);
    assert_eq!(used(&with), ["bridge", "underpass-cni"]);

    // Its owner writes it again, changed: theirs counts.
    let changed = SINGLE_TEXT.replace("bridge", "macvlan");
    let mut rewritten = with.clone();
    rewritten.insert("10-net.conf".to_owned(), Ok(changed.clone()));
    assert_eq!(removed(rewritten.clone()), listing(&[("10-net.conf", &changed)]));
    let with_changed = installed(rewritten);
    assert_eq!(used(&with_changed), ["macvlan", "underpass-cni"]);
    assert_eq!(removed(with_changed), listing(&[("10-net.conf", &changed)]));

    // Its owner has come to write chains: theirs stays, the former original goes.
    let mut chain = with.clone();
    chain.insert("10-net.conflist".to_owned(), Ok(CHAIN_TEXT.to_owned()));
    assert_eq!(removed(installed(chain)), listing(&[("10-net.conflist", CHAIN_TEXT)]));

    // Somebody removes the chain: the original comes back.
    let mut gone = with;
    gone.remove("10-net.conflist");
    assert_eq!(removed(gone), before);
}

#[test]
fn somebody_elses_chain_is_not_overwritten() {
    let files = listing(&[("10-net.conf", SINGLE_TEXT), ("10-net.conflist", CHAIN_TEXT)]);
    assert_eq!(install(&files, &entry()).unwrap_err().reason(), "configuration_name_taken");
}

#[test]
fn a_new_primary_gets_the_entry_and_in_the_end_none_is_left_anywhere() {
    let mut files = installed(listing(&[("10.conflist", CHAIN_TEXT)]));
    files.insert("05-cilium.conflist".to_owned(), Ok(CHAIN_TEXT.to_owned()));
    let both = installed(files);
    assert_eq!(used(&both), ["ptp", "underpass-cni"]);
    assert_eq!(removed(both), listing(&[("05-cilium.conflist", CHAIN_TEXT), ("10.conflist", CHAIN_TEXT)]));
    let alone = CHAIN_TEXT.replace("ptp", "underpass-cni");
    assert_eq!(removed(listing(&[("10.conflist", &alone)])), Listing::new());
}

/// Directories with all kinds of files.
fn directories() -> impl Strategy<Value = Listing> {
    let text = prop::sample::select(vec![
        CHAIN_TEXT,
        SINGLE_TEXT,
        "{ half",
        "",
        r#"{"cniVersion":"0.1.0","name":"n","type":"x"}"#,
    ]);
    let name = (
        prop::sample::select(vec!["05-a", "10-b", "10-b.conf", "99"]),
        prop::sample::select(vec!["conf", "conflist", "json", "bak"]),
    );
    let file = (name, text).prop_map(|((stem, ending), text)| (format!("{stem}.{ending}"), Ok(text.to_owned())));
    prop::collection::vec(file, 0..6).prop_map(|files| files.into_iter().collect())
}

proptest! {
    #[test]
    fn installing_converges_and_removing_gives_back_the_directory(before in directories()) {
        let mut files = before.clone();
        // A made chain may sort behind another file, which is the runtime's choice then.
        for _round in 0..4 {
            let Ok(plan) = install(&files, &entry()) else { break };
            files = after(files, &plan.edits);
        }
        if let Ok(plan) = install(&files, &entry()) {
            prop_assert_eq!(plan.edits, []);
        }
        prop_assert_eq!(removed(files.clone()), before);
        prop_assert_eq!(remove(&removed(files)).edits, []);
    }

    #[test]
    fn after_every_single_edit_of_a_removal_the_rest_can_still_be_done(before in directories(), stop in 0usize..6) {
        let Ok(plan) = install(&before, &entry()) else { return Ok(()) };
        let with = after(before.clone(), &plan.edits);
        let removal = remove(&with);
        let half = after(with, &removal.edits[..stop.min(removal.edits.len())]);
        prop_assert_eq!(removed(half), before);
    }

    #[test]
    fn after_a_half_installation_removing_gives_back_the_directory(before in directories(), stop in 0usize..3) {
        let Ok(plan) = install(&before, &entry()) else { return Ok(()) };
        let half = after(before.clone(), &plan.edits[..stop.min(plan.edits.len())]);
        prop_assert_eq!(removed(half), before);
    }
}

#[test]
fn files_that_matter_are_told_from_others() {
    for name in ["a.conf", "a.conflist", "a.json", "a.conf.underpass", ".hidden.conf"] {
        assert!(is_read(name), "{name}");
    }
    for name in ["a", "a.bak", "a.conflist.bak", ".a.conflist.12-1", "underpass", "x.underpass"] {
        assert!(!is_read(name), "{name}");
    }
}
