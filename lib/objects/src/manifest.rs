//! One file of manifests: several YAML (or JSON) documents, each an object or a list of objects.
//!
//! The only place that knows which YAML parser is used. Two leniencies against the API server: unknown fields of
//! Kubernetes' kinds are ignored, and an unquoted number where text belongs is taken as text.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    object::{Kind, Object, ObjectKey},
    policy::Invalid,
};

/// What one file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Its objects.
    pub objects: BTreeMap<ObjectKey, Located>,
    /// The kinds in it that the mesh does not read (`Kind` or `Kind.group`), with how many there are of each.
    pub ignored: BTreeMap<String, usize>,
}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The object.
    pub object: Object,
    /// The line on which its document begins.
    pub line: usize,
}

/// Why a file is no set of manifests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The same object stands twice in the file.
    #[error("line {line}: {key} stands in this file twice")]
    Duplicate {
        /// Where the second one's document begins.
        line: usize,
        /// What.
        key: Box<ObjectKey>,
    },
    /// A field has a value that it cannot have, or lacks one that it must have.
    #[error("line {line}: {field}: {problem}")]
    Field {
        /// Where.
        line: usize,
        /// The field's path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Not YAML.
    #[error("line {line}: {problem}")]
    Syntax {
        /// Where.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Not UTF-8.
    #[error("line {line}: not UTF-8")]
    Text {
        /// Where the first bad byte is.
        line: usize,
    },
}

impl ManifestError {
    /// The line of the file, counted from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        match self {
            Self::Duplicate { line, .. }
            | Self::Field { line, .. }
            | Self::Syntax { line, .. }
            | Self::Text { line } => *line,
        }
    }

    /// The path of the field, where it is a field.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Field { field, .. } => Some(field),
            Self::Duplicate { .. } | Self::Syntax { .. } | Self::Text { .. } => None,
        }
    }

    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Duplicate { .. } => "duplicate",
            Self::Field { .. } => "field",
            Self::Syntax { .. } => "syntax",
            Self::Text { .. } => "not_utf8",
        }
    }
}

/// Reads a file's contents.
///
/// # Errors
/// The first thing that is wrong with it: all or nothing, so that a half-written file never removes objects.
pub fn read(contents: &[u8]) -> Result<Manifest, ManifestError> {
    let text = std::str::from_utf8(contents).map_err(|error| {
        let good = contents.get(..error.valid_up_to()).unwrap_or_default();
        ManifestError::Text { line: 1 + good.iter().filter(|&&byte| byte == b'\n').count() }
    })?;
    let mut manifest = Manifest::default();
    for document in documents(text) {
        document.read_into(&mut manifest)?;
    }
    Ok(manifest)
}

/// One document of a file.
#[derive(Debug, PartialEq, Eq)]
struct Document<'a> {
    text: &'a str,
    /// How many lines of the file come before it.
    offset: usize,
}

/// Whatever objects a file holds, as they are written, for who hands them to an API server.
///
/// # Errors
/// What is no YAML, with the line.
pub fn values(text: &str) -> Result<Vec<serde_json::Value>, String> {
    let documents = serde_yaml::Deserializer::from_str(text)
        .map(|document| serde_json::Value::deserialize(document).map_err(|error| error.to_string()));
    documents.filter(|value| !matches!(value, Ok(serde_json::Value::Null))).collect()
}

/// Splits at the document markers. A `---` at the start of a line is one wherever it stands (YAML 1.2, 9.1.2), so no
/// parser is needed to find them, and an error in one document cannot move the lines of the next.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut start, mut position, mut offset) = (0, 0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && index > 0 {
            found.push(Document { text: text.get(start..position).unwrap_or_default(), offset });
            (start, offset) = (position, index);
        }
        position += line.len();
    }
    found.push(Document { text: text.get(start..).unwrap_or_default(), offset });
    found.retain(|document| !document.is_blank());
    found
}

/// What says of which type a document or a list's item is.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
struct ListMeta {
    #[serde(default)]
    items: Option<Vec<TypeMeta>>,
}

/// What to do with an object of some type.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reading {
    Known(Kind),
    List(Option<Kind>),
    Ignored(String),
}

/// Why a type cannot be decided.
struct Wrong {
    field: &'static str,
    problem: String,
}

impl TypeMeta {
    /// Decides by group and kind; `default` is what a typed list says of its items.
    fn reading(&self, default: Option<Kind>) -> Result<Reading, Wrong> {
        let missing = |field| Wrong { field, problem: "is missing".into() };
        let (Some(kind), Some(version)) = (&self.kind, &self.api_version) else {
            let field = if self.kind.is_none() { "kind" } else { "apiVersion" };
            return default.map(Reading::Known).ok_or_else(|| missing(field));
        };
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let known = |name: &str| Kind::ALL.into_iter().find(|kind| kind.as_str() == name && kind.group() == group);
        Ok(if let Some(kind) = known(kind) {
            if version != kind.api_version() {
                let problem = format!("{kind} is read as {} only", kind.api_version());
                return Err(Wrong { field: "apiVersion", problem });
            }
            Reading::Known(kind)
        } else if group.is_empty() && kind == "List" {
            Reading::List(None)
        } else if let Some(kind) = kind.strip_suffix("List").and_then(known) {
            Reading::List(Some(kind))
        } else if group.is_empty() {
            Reading::Ignored(kind.clone())
        } else {
            Reading::Ignored(format!("{kind}.{group}"))
        })
    }
}

impl Document<'_> {
    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line.starts_with('#') || line == "..."
        })
    }

    /// The line of the file on which the document's content begins.
    fn first_line(&self) -> usize {
        let content = |line: &str| !line.trim().is_empty() && !line.starts_with("---") && !line.starts_with('#');
        1 + self.offset + self.text.lines().position(content).unwrap_or_default()
    }

    fn read_into(&self, manifest: &mut Manifest) -> Result<(), ManifestError> {
        let meta: Option<TypeMeta> = self.parse()?;
        let Some(meta) = meta else { return Ok(()) };
        match meta.reading(None).map_err(|wrong| self.wrong("", wrong))? {
            Reading::Ignored(kind) => *manifest.ignored.entry(kind).or_default() += 1,
            Reading::Known(kind) => {
                let object = self.parse_with(kind)?;
                self.take(object, "", manifest)?;
            }
            Reading::List(default) => self.read_list(default, manifest)?,
        }
        Ok(())
    }

    fn read_list(&self, default: Option<Kind>, manifest: &mut Manifest) -> Result<(), ManifestError> {
        let items = self.parse::<ListMeta>()?.items.unwrap_or_default();
        let readings = items
            .iter()
            .enumerate()
            .map(|(index, item)| item.reading(default).map_err(|wrong| self.wrong(&format!("items[{index}]."), wrong)));
        let readings = readings.collect::<Result<Vec<_>, _>>()?;
        let objects = self.parse_with(ListBody(&readings))?;
        for (index, (reading, object)) in readings.into_iter().zip(objects).enumerate() {
            match (reading, object) {
                (_, Some(object)) => self.take(object, &format!("items[{index}]."), manifest)?,
                (Reading::Ignored(kind), None) => *manifest.ignored.entry(kind).or_default() += 1,
                (Reading::Known(_) | Reading::List(_), None) => {
                    *manifest.ignored.entry("List in a list".into()).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    fn take(&self, object: Object, prefix: &str, manifest: &mut Manifest) -> Result<(), ManifestError> {
        let missing = || self.wrong(prefix, Wrong { field: "metadata.name", problem: "is missing".into() });
        let key = object.key().ok_or_else(missing)?;
        for (field, name) in [("metadata.name", &key.name.name), ("metadata.namespace", &key.name.namespace)] {
            if !is_path_segment(name) {
                let problem = format!("{:?} is no name: it could not stand in a path", shorten(name));
                return Err(self.wrong(prefix, Wrong { field, problem }));
            }
        }
        object.check().map_err(|Invalid { field, problem }| self.field(format!("{prefix}{field}"), problem))?;
        if manifest.objects.contains_key(&key) {
            return Err(ManifestError::Duplicate { line: self.first_line(), key: Box::new(key) });
        }
        manifest.objects.insert(key, Located { object, line: self.first_line() });
        Ok(())
    }

    fn wrong(&self, prefix: &str, Wrong { field, problem }: Wrong) -> ManifestError {
        self.field(format!("{prefix}{field}"), problem)
    }

    /// What is wrong with a field, and where: on the line of what is nearest to it where it is missing.
    fn field(&self, field: String, problem: String) -> ManifestError {
        let line = place::line_of(self.text, &field).map_or_else(|| self.first_line(), |line| line + self.offset);
        ManifestError::Field { line, field, problem }
    }

    fn parse<'de, T: Deserialize<'de>>(&'de self) -> Result<T, ManifestError> {
        self.parse_with(std::marker::PhantomData)
    }

    fn parse_with<'de, S: DeserializeSeed<'de>>(&'de self, seed: S) -> Result<S::Value, ManifestError> {
        let mut track = serde_path_to_error::Track::new();
        let yaml = serde_yaml::Deserializer::from_str(self.text);
        let parsed = seed.deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track));
        parsed.map_err(|error| self.explain(&error, &track.path().to_string()))
    }

    /// Puts the parser's words into ours: its line counts from the document's start, its text repeats path and place.
    fn explain(&self, error: &serde_yaml::Error, path: &str) -> ManifestError {
        // Of what ends too early the parser says the line after the last one.
        let last = 1 + self.offset + self.text.matches('\n').count();
        let line = error.location().map_or_else(|| self.first_line(), |place| last.min(place.line() + self.offset));
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(before, _)| before);
        let text = text.strip_prefix(path).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text);
        let problem = shorten(text);
        let path = path.trim_end_matches(['?', '.']);
        if path.is_empty() {
            ManifestError::Syntax { line, problem }
        } else {
            ManifestError::Field { line, field: path.into(), problem }
        }
    }
}

/// What the API server asks of every object's name: discovery's names and paths are made of it. Of cluster-wide objects
/// the namespace is empty.
fn is_path_segment(name: &str) -> bool {
    name != "." && name != ".." && !name.contains(['/', '%'])
}

/// What an error repeats of what somebody else wrote.
fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        Ok(match self {
            Self::AuthorizationPolicy => Object::AuthorizationPolicy(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::MeshConfig => Object::MeshConfig(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::EndpointSlice => Object::EndpointSlice(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::MeshTlsMode => Object::MeshTlsMode(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::Namespace => Object::Namespace(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::Node => Object::Node(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::Pod => Object::Pod(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::Service => Object::Service(Arc::new(Deserialize::deserialize(deserializer)?)),
            Self::ServiceAccount => Object::ServiceAccount(Arc::new(Deserialize::deserialize(deserializer)?)),
        })
    }
}

/// Reads a list whose items' types are known from a first pass.
struct ListBody<'a>(&'a [Reading]);

impl<'de> DeserializeSeed<'de> for ListBody<'_> {
    type Value = Vec<Option<Object>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ListBody<'_> {
    type Value = Vec<Option<Object>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" && !self.0.is_empty() {
                objects = map.next_value_seed(Items(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(objects)
    }
}

struct Items<'a>(&'a [Reading]);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Option<Object>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Option<Object>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::with_capacity(self.0.len());
        for reading in self.0 {
            objects.push(match reading {
                Reading::Known(kind) => items.next_element_seed(*kind)?,
                Reading::Ignored(_) | Reading::List(_) => items.next_element::<IgnoredAny>()?.and(None),
            });
        }
        Ok(objects)
    }
}

mod place;
#[cfg(test)]
mod tests;
