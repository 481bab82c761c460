//! One network configuration of CNI as text: whether our entry is in it, and the text with it and without it. Pure.
//!
//! The text is changed only where the entry stands, so that whatever others wrote stays as they wrote it, and taking
//! the entry out again gives back the same bytes.

use std::{borrow::Cow, ops::Range};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// The name of our plugin: its program's, and the `type` of its entry.
pub const PLUGIN: &str = "underpass-cni";

/// The versions of CNI in which plugins can be chained and ours answers.
const CHAINED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Why a file is not one that a container runtime could use, or not one for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON of the expected shape.
    #[error("it is no network configuration in JSON: {0}")]
    Malformed(String),
    /// A name or type is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// The version of CNI that it asks for is not one of ours.
    #[error("its cniVersion is {0:?}, and the plugin answers to 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Version(String),
}

impl DocumentError {
    /// A stable label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "configuration_malformed",
            Self::Missing(_) => "configuration_incomplete",
            Self::Version(_) => "configuration_version",
        }
    }
}

/// A chain of plugins, as in files that end in `conflist`.
#[derive(Debug)]
pub struct Chain<'a> {
    text: &'a str,
    version: Option<String>,
    plugins: Vec<Plugin>,
}

#[derive(Debug)]
struct Plugin {
    at: Range<usize>,
    kind: String,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(borrow)]
    plugins: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Single<'a> {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
}

impl<'a> Chain<'a> {
    /// Reads one that a container runtime could use.
    ///
    /// # Errors
    /// [`DocumentError`], never for its version: that only matters to whoever adds to it.
    pub fn parse(text: &'a str) -> Result<Self, DocumentError> {
        let list: List<'a> = from_text(text)?;
        list.name.filter(|name| !name.is_empty()).ok_or(DocumentError::Missing("name"))?;
        let plugins = list.plugins.filter(|plugins| !plugins.is_empty()).ok_or(DocumentError::Missing("plugins"))?;
        let plugins = plugins.into_iter().map(|raw| {
            let Single { kind, .. } = from_text(raw.get())?;
            let kind = kind.filter(|kind| !kind.is_empty()).ok_or(DocumentError::Missing("plugins[].type"))?;
            Ok(Plugin { at: place(text, raw.get()), kind: kind.into_owned() })
        });
        Ok(Self { text, version: list.version, plugins: plugins.collect::<Result<_, _>>()? })
    }

    /// The text with our entry as it shall be, at the end of the chain; none if it is in it already.
    ///
    /// # Errors
    /// [`DocumentError::Version`].
    pub fn with(&self, entry: &Value) -> Result<Option<String>, DocumentError> {
        check_version(self.version.as_deref())?;
        let ours: Vec<usize> = self.ours().collect();
        // Somebody may have appended another plugin since; ours passes results on, so it may stand before it.
        if let [index] = *ours
            && index > 0
            && let Some(plugin) = self.plugins.get(index)
        {
            let written = self.text.get(plugin.at.clone()).unwrap_or_default();
            let same = serde_json::from_str::<Value>(written).is_ok_and(|written| written == *entry);
            return Ok((!same).then(|| spliced(self.text, plugin.at.clone(), &entry.to_string())));
        }
        if !ours.is_empty() {
            let without = self.without().unwrap_or_default();
            return Chain::parse(&without)?.with(entry);
        }
        let Some(last) = self.plugins.last() else { return Err(DocumentError::Missing("plugins")) };
        let added = format!(",{}{entry}", self.before(last));
        Ok(Some(spliced(self.text, last.at.end..last.at.end, &added)))
    }

    /// The text without our entries; none if there is no such, or nothing else.
    #[must_use]
    pub fn without(&self) -> Option<String> {
        let mut text = self.text.to_owned();
        let mut removed = false;
        for index in self.ours().collect::<Vec<_>>().into_iter().rev() {
            let Some(plugin) = self.plugins.get(index) else { continue };
            let before = index.checked_sub(1).and_then(|index| self.plugins.get(index));
            let range = match (before, self.plugins.get(index + 1)) {
                (Some(before), _) => before.at.end..plugin.at.end,
                (None, Some(after)) => plugin.at.start..after.at.start,
                (None, None) => return None,
            };
            text.replace_range(range, "");
            removed = true;
        }
        removed.then_some(text)
    }

    /// Whether our entry is in it.
    #[must_use]
    pub fn has_entry(&self) -> bool {
        self.ours().next().is_some()
    }

    /// Whether, our entry apart, it is that single configuration and nothing else.
    #[must_use]
    pub fn was_made_of(&self, single: &str) -> bool {
        let mut others = self.plugins.iter().filter(|plugin| plugin.kind != PLUGIN);
        let first = others.next().and_then(|plugin| self.text.get(plugin.at.clone()));
        first == Some(single.trim()) && others.next().is_none()
    }

    fn ours(&self) -> impl Iterator<Item = usize> {
        self.plugins.iter().enumerate().filter(|(_, plugin)| plugin.kind == PLUGIN).map(|(index, _)| index)
    }

    /// The white space before a plugin, so that ours stands like its neighbour.
    fn before(&self, plugin: &Plugin) -> &str {
        let text = self.text.get(..plugin.at.start).unwrap_or_default();
        text.get(text.trim_end_matches([' ', '\t', '\n', '\r']).len()..).unwrap_or_default()
    }
}

/// A chain made of a configuration of one plugin (a file that ends in `conf` or `json`), as runtimes make it, and of
/// our entry.
///
/// # Errors
/// [`DocumentError`].
pub fn chain_of(single: &str, entry: &Value) -> Result<String, DocumentError> {
    let Single { version, name, .. } = check_single(single)?;
    let version = check_version(version.as_deref())?;
    let name = name.filter(|name| !name.is_empty()).ok_or(DocumentError::Missing("name"))?;
    let (version, name) = (Value::from(version), Value::from(name));
    let plugins = format!("[\n    {},\n    {entry}\n  ]", single.trim());
    Ok(format!("{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": {plugins}\n}}\n"))
}

/// Whether a runtime could use it as a configuration of one plugin.
///
/// # Errors
/// [`DocumentError`] says why not.
pub fn is_single(text: &str) -> Result<(), DocumentError> {
    check_single(text).map(drop)
}

fn check_single(text: &str) -> Result<Single<'_>, DocumentError> {
    let single: Single<'_> = from_text(text)?;
    if single.kind.as_deref().is_none_or(str::is_empty) {
        return Err(DocumentError::Missing("type"));
    }
    Ok(single)
}

fn check_version(version: Option<&str>) -> Result<&str, DocumentError> {
    let version = version.unwrap_or_default();
    if CHAINED.contains(&version) {
        Ok(version)
    } else {
        Err(DocumentError::Version(version.chars().take(32).collect()))
    }
}

fn from_text<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, DocumentError> {
    serde_json::from_str(text).map_err(|error| DocumentError::Malformed(error.to_string()))
}

/// Where a part of a text stands in it.
fn place(text: &str, part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    start..start + part.len()
}

fn spliced(text: &str, range: Range<usize>, by: &str) -> String {
    let mut text = text.to_owned();
    text.replace_range(range, by);
    text
}

#[cfg(test)]
mod tests;
