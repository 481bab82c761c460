//! Who calls: one token per node, from a directory of files named like the nodes.
//!
//! Tokens come and go with their files; what a file says badly lets nobody in. Only digests are kept, and every known
//! one is compared, so that neither memory nor timing tells a token.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    io,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use sha2::{Digest as _, Sha256};
use tonic::metadata::MetadataMap;
use underpass_objects::{
    changes::Changes,
    files::{Change, Files},
};
use underpass_runtime::Shutdown;

use crate::ca::{Authenticate, NodeName, Unauthenticated, bearer};

/// A shorter token could be guessed.
const SHORTEST: usize = 16;

/// What is kept of a token.
pub(crate) type TokenDigest = [u8; 32];

/// The known tokens; clones share them.
#[derive(Clone, Debug)]
pub struct NodeTokens(Arc<RwLock<Arc<BTreeMap<NodeName, TokenDigest>>>>);

/// Keeps [`NodeTokens`] up to date.
#[derive(Debug)]
pub struct TokensTask {
    tokens: NodeTokens,
    files: Files,
    changes: Changes,
}

/// Why a file lets nobody in.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("its name is no node's")]
    Name,
    #[error("its token is not at least {SHORTEST} visible characters")]
    Token,
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

impl NodeTokens {
    /// Reads the directory for the first time.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn open(directory: &Path) -> io::Result<(Self, TokensTask)> {
        let tokens = Self(Arc::default());
        let changes = Changes::of(vec![directory.into()]);
        let mut task = TokensTask { tokens: tokens.clone(), files: Files::new(directory, &[]), changes };
        task.reload()?;
        Ok((tokens, task))
    }

    /// The nodes that have a token.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeName> {
        self.table().keys().cloned().collect()
    }

    fn owner(&self, token: &str) -> Option<NodeName> {
        owner(&self.table(), &digest(token)).cloned()
    }

    fn table(&self) -> Arc<BTreeMap<NodeName, TokenDigest>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn owner<'a>(table: &'a BTreeMap<NodeName, TokenDigest>, presented: &TokenDigest) -> Option<&'a NodeName> {
    let mut owners = table.iter().filter(|(_, known)| is_equal(presented, known)).map(|(node, _)| node);
    let owner = owners.next();
    // A token of two nodes does not say which one calls.
    owner.filter(|_| owners.next().is_none())
}

impl Authenticate for NodeTokens {
    fn authenticate(&self, metadata: &MetadataMap) -> Result<NodeName, Unauthenticated> {
        self.owner(bearer(metadata)?).ok_or(Unauthenticated::UnknownToken)
    }
}

impl TokensTask {
    /// Runs until asked to stop. Tells of each node whose token has become worthless.
    pub async fn run(mut self, revoked: impl Fn(&NodeName), shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = self.changes.next() => {}
            }
            match self.reload() {
                Ok(nodes) => nodes.iter().for_each(&revoked),
                Err(error) => {
                    tracing::warn!(%error, "directory of node tokens cannot be listed, the known ones stay");
                }
            }
        }
    }

    /// The nodes whose token was good before and is not any more.
    fn reload(&mut self) -> io::Result<Vec<NodeName>> {
        let changes = self.files.changes()?;
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.tokens.table();
        let mut table = BTreeMap::clone(&before);
        for change in changes {
            let (name, read) = match change {
                Change::Gone(name) => {
                    table.retain(|node, _| node.as_str() != name);
                    continue;
                }
                Change::Read(name, contents) => (name, Ok(contents)),
                Change::Unreadable(name, error) => (name, Err(error)),
            };
            match token(&name, read) {
                Ok((node, token)) => drop(table.insert(node, token)),
                Err(error) => {
                    tracing::warn!(file = name, %error, "token file lets nobody in");
                    table.retain(|node, _| node.as_str() != name);
                }
            }
        }
        let good = before.iter().filter(|(node, token)| owner(&before, token) == Some(*node));
        let revoked = good.filter(|(node, token)| owner(&table, token) != Some(*node));
        let revoked = revoked.map(|(node, _)| node.clone()).collect();
        *self.tokens.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        Ok(revoked)
    }
}

fn token(name: &str, read: io::Result<Vec<u8>>) -> Result<(NodeName, TokenDigest), TokenError> {
    let node = NodeName::new(name).ok_or(TokenError::Name)?;
    let contents = read?;
    let token = contents.trim_ascii();
    if token.len() < SHORTEST || !token.iter().all(u8::is_ascii_graphic) {
        return Err(TokenError::Token);
    }
    Ok((node, Sha256::digest(token).into()))
}

pub(crate) fn digest(token: &str) -> TokenDigest {
    Sha256::digest(token.as_bytes()).into()
}

/// Looks at every byte, whatever the first ones say.
fn is_equal(one: &TokenDigest, other: &TokenDigest) -> bool {
    one.iter().zip(other).fold(0, |difference, (a, b)| black_box(difference | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn caller(tokens: &NodeTokens, token: &str) -> Result<String, Unauthenticated> {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        tokens.authenticate(&metadata).map(|node| node.to_string())
    }

    #[test]
    fn a_token_tells_its_node_while_its_file_is_there() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = ("one-one-one-one-1", "two-two-two-two-2");
        fs::write(home.path().join("node-1"), format!("{one}\n")).unwrap();
        fs::write(home.path().join("node-2"), two).unwrap();
        let (tokens, mut task) = NodeTokens::open(home.path()).unwrap();
        let unknown = Err(Unauthenticated::UnknownToken);
        assert_eq!(caller(&tokens, one), Ok("node-1".into()));
        assert_eq!(caller(&tokens, two), Ok("node-2".into()));
        for bad in ["one-one-one-one-", "one-one-one-one-11", "node-1", "x"] {
            assert_eq!(caller(&tokens, bad), unknown, "{bad}");
        }
        assert_eq!(tokens.authenticate(&MetadataMap::new()), Err(Unauthenticated::Missing));
        fs::write(home.path().join("node-1"), "another-token-of-1").unwrap();
        fs::remove_file(home.path().join("node-2")).unwrap();
        let revoked = task.reload().unwrap();
        assert_eq!(revoked.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["node-1", "node-2"]);
        assert!(task.reload().unwrap().is_empty());
        assert_eq!(caller(&tokens, "another-token-of-1"), Ok("node-1".into()));
        assert_eq!(caller(&tokens, one), unknown);
        assert_eq!(caller(&tokens, two), unknown);
    }

    #[test]
    fn files_that_say_it_badly_let_nobody_in() {
        let home = tempfile::tempdir().unwrap();
        let shared = "shared-shared-shared";
        for (file, token) in [
            ("empty", ""),
            ("short", "fifteen-bytes-x"),
            ("spaced", "a token with spaces in it"),
            ("Not-A-Node", "a-good-token-for-nobody"),
            ("node-1", shared),
            ("node-2", shared),
        ] {
            fs::write(home.path().join(file), token).unwrap();
        }
        let (tokens, _task) = NodeTokens::open(home.path()).unwrap();
        for token in ["fifteen-bytes-x", "a token with spaces in it", "a-good-token-for-nobody", shared] {
            assert_eq!(caller(&tokens, token), Err(Unauthenticated::UnknownToken), "{token:?}");
        }
        fs::write(home.path().join("node-1"), "no-longer-shared-token").unwrap();
        let (tokens, _task) = NodeTokens::open(home.path()).unwrap();
        assert_eq!(caller(&tokens, shared), Ok("node-2".into()));
    }
}
