//! What to change in a directory of network configurations, so that our plugin is chained, or is no more. Pure.
//!
//! The container runtime uses the first usable file in the order of names. Of a file that holds one plugin (`conf`,
//! `json`) a chain is made beside it, as Istio does; the original stays under a name that no runtime reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::document::{self, Chain, DocumentError};

/// Files by name, each with its text or why it cannot be read.
pub type Listing = BTreeMap<String, Result<String, String>>;

/// One change; each is atomic, and after each of them pods can start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Remove a file.
    Remove(String),
    /// Rename a file.
    Rename {
        /// From this name.
        from: String,
        /// To this one.
        to: String,
    },
    /// Put a file in place, whole.
    Write {
        /// Its name.
        name: String,
        /// The file whose mode and owner it gets.
        like: String,
        /// Its text.
        text: String,
    },
}

/// What shall be done, and what is left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub edits: Vec<Edit>,
    /// The file that the runtime uses afterwards.
    pub primary: Option<String>,
    /// Files that no runtime could use, which are not touched.
    pub skipped: Vec<Skipped>,
}

/// A file that is not touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {error}")]
pub struct Skipped {
    /// Which.
    pub file: String,
    /// Why.
    pub error: DocumentError,
}

/// Why the plugin cannot be chained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing to chain to, yet.
    #[error("there is no network configuration yet; the cluster's CNI writes one")]
    NoConfiguration,
    /// There are files, and none can be used.
    #[error("no network configuration can be used: {0}")]
    NoneUsable(#[source] Skipped),
    /// The one that the runtime uses is not for us.
    #[error("{0}")]
    NotForUs(#[source] Skipped),
    /// The name for the chain belongs to somebody else.
    #[error("{primary} holds one plugin, and {taken}, which would become the chain, is somebody else's")]
    Taken {
        /// The file in use.
        primary: String,
        /// The file in the way.
        taken: String,
    },
}

impl Refusal {
    /// A stable label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoConfiguration => "configuration_absent",
            Self::NoneUsable(skipped) | Self::NotForUs(skipped) => skipped.error.reason(),
            Self::Taken { .. } => "configuration_name_taken",
        }
    }
}

const CHAIN: &str = "conflist";
const SINGLE: [&str; 2] = ["conf", "json"];
/// Ends the name of an original that has been made a chain.
const ORIGINAL: &str = ".underpass";

/// Whether the file matters here.
#[must_use]
pub fn is_read(name: &str) -> bool {
    let ending = |name: &str| matches!(name.rsplit_once('.'), Some((_, CHAIN | "conf" | "json")));
    ending(name) || name.strip_suffix(ORIGINAL).is_some_and(ending)
}

/// What brings our entry into the configuration that the runtime uses.
///
/// # Errors
/// [`Refusal`].
pub fn install(files: &Listing, entry: &Value) -> Result<Plan, Refusal> {
    let mut skipped = Vec::new();
    for (name, text) in files {
        let Some((_, ending)) = name.rsplit_once('.') else { continue };
        let usable = match (ending, text) {
            (CHAIN, Ok(text)) => Chain::parse(text).map(drop),
            (ending, Ok(text)) if SINGLE.contains(&ending) => document::is_single(text),
            (ending, Err(error)) if ending == CHAIN || SINGLE.contains(&ending) => {
                Err(DocumentError::Malformed(error.clone()))
            }
            _ => continue,
        };
        match (usable, text) {
            (Ok(()), Ok(text)) => {
                let (edits, primary) = chained(files, name, text, entry)?;
                return Ok(Plan { edits, primary: Some(primary), skipped });
            }
            (Err(error), _) => skipped.push(Skipped { file: name.clone(), error }),
            (Ok(()), Err(_)) => {}
        }
    }
    Err(skipped.into_iter().next().map_or(Refusal::NoConfiguration, Refusal::NoneUsable))
}

fn chained(files: &Listing, name: &str, text: &str, entry: &Value) -> Result<(Vec<Edit>, String), Refusal> {
    let not_for_us = |error| Refusal::NotForUs(Skipped { file: name.to_owned(), error });
    let write = |name: &str, like: &str, text| Edit::Write { name: name.to_owned(), like: like.to_owned(), text };
    let Some(list) = list_name(name) else {
        let text = Chain::parse(text).and_then(|chain| chain.with(entry)).map_err(not_for_us)?;
        return Ok((text.map(|text| write(name, name, text)).into_iter().collect(), name.to_owned()));
    };
    let ours = |text: &Result<String, String>| {
        text.as_ref().is_ok_and(|text| Chain::parse(text).is_ok_and(|chain| chain.has_entry()))
    };
    if files.get(&list).is_some_and(|text| !ours(text)) {
        return Err(Refusal::Taken { primary: name.to_owned(), taken: list });
    }
    let text = document::chain_of(text, entry).map_err(not_for_us)?;
    // The runtime goes on with the original until it is renamed.
    let aside = Edit::Rename { from: name.to_owned(), to: format!("{name}{ORIGINAL}") };
    Ok((vec![write(&list, name, text), aside], list))
}

/// The name of the chain that is made of a file with one plugin; none for a chain.
fn list_name(name: &str) -> Option<String> {
    let (stem, ending) = name.rsplit_once('.')?;
    SINGLE.contains(&ending).then(|| format!("{stem}.{CHAIN}"))
}

/// What takes our entry out of every file, and puts back what was put aside. Whenever it is interrupted, the next call
/// goes on from there.
#[must_use]
pub fn remove(files: &Listing) -> Plan {
    let mut plan = Plan::default();
    let mut made = BTreeSet::new();
    for (aside, text) in files {
        let Some(original) = aside.strip_suffix(ORIGINAL) else { continue };
        let Some(list) = list_name(original) else { continue };
        let list = files.contains_key(&list).then_some(list);
        let made_list = list.clone().filter(|list| is_made_of(files, list, text)).map(Edit::Remove);
        let back = Edit::Rename { from: aside.clone(), to: original.to_owned() };
        let forget = Edit::Remove(aside.clone());
        // Where the original is there again, or somebody has written a chain instead, theirs is the newer word.
        plan.edits.extend(match (files.contains_key(original), made_list.is_some() || list.is_none()) {
            (true, _) => made_list.into_iter().chain([forget]).collect::<Vec<_>>(),
            (false, true) => [back].into_iter().chain(made_list).collect(),
            (false, false) => vec![forget],
        });
        made.extend(list.filter(|list| is_made_of(files, list, text)));
    }
    for (name, text) in files {
        if !name.ends_with(CHAIN) || made.contains(name) {
            continue;
        }
        match text.as_ref().map_err(|error| DocumentError::Malformed(error.clone())).and_then(|text| Chain::parse(text))
        {
            Ok(chain) if chain.has_entry() => plan.edits.push(stripped(files, name, &chain)),
            Ok(_) => {}
            Err(error) => plan.skipped.push(Skipped { file: name.clone(), error }),
        }
    }
    plan
}

/// What becomes of a chain that has our entry and no original aside. One that was just being made of a file goes.
fn stripped(files: &Listing, name: &str, chain: &Chain<'_>) -> Edit {
    let stem = name.strip_suffix(CHAIN).unwrap_or(name);
    let originals = SINGLE.map(|ending| format!("{stem}{ending}"));
    let made = originals.iter().filter_map(|original| files.get(original)).any(|text| is_made_of(files, name, text));
    match chain.without() {
        Some(text) if !made => Edit::Write { name: name.to_owned(), like: name.to_owned(), text },
        Some(_) | None => Edit::Remove(name.to_owned()),
    }
}

/// Whether a chain with our entry was made of that original.
fn is_made_of(files: &Listing, list: &str, original: &Result<String, String>) -> bool {
    let (Some(Ok(list)), Ok(original)) = (files.get(list), original) else { return false };
    Chain::parse(list).is_ok_and(|chain| chain.has_entry() && chain.was_made_of(original))
}

#[cfg(test)]
mod tests;
