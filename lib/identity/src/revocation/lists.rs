//! The lists of certificates that other authorities revoked (X.509 CRLs, RFC 5280 part 5).
//!
//! They come from a file that the administrator gives, beside the roots and as trusted as these: their signatures are
//! not looked at. A list whose time is over goes on to count, since a revocation does not end before its certificate.

use std::collections::{HashMap, HashSet};

use pem::Pem;
use underpass_model::SerialNumber;
use x509_parser::{
    extensions::ParsedExtension,
    oid_registry::{OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER},
    prelude::{CertificateRevocationList, FromDer as _, X509Extension},
};

/// What each section of PEM begins with.
const BEGIN: &[u8] = b"-----BEGIN ";

/// Serial numbers that are revoked, by the authority that gave them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationLists(HashMap<Box<[u8]>, HashSet<SerialNumber>>);

/// Why a file is not taken as lists of revoked certificates.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ListError {
    /// One of them cannot be read.
    #[error("list {index} is no certificate revocation list: {problem}")]
    Malformed {
        /// Its place in the file, from 0.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// One of them is of a kind that says something else than a whole list of one authority's certificates does.
    #[error("list {index} has the critical extension {extension}, which is not understood")]
    Extension {
        /// Its place in the file, from 0.
        index: usize,
        /// Which.
        extension: String,
    },
}

impl RevocationLists {
    /// Reads one list in DER, or any number of them in PEM, but not none: whoever revokes nobody says so by an empty list.
    /// A file that is just being written must not be taken for one that revokes fewer.
    ///
    /// # Errors
    /// [`ListError`], when one of them cannot be used; then none is.
    pub fn read(contents: &[u8]) -> Result<Self, ListError> {
        let mut lists = Self::default();
        // DER begins with a SEQUENCE, which no text does.
        if contents.first() == Some(&0x30) {
            lists.add(0, contents)?;
            return Ok(lists);
        }
        let malformed = |index, problem: String| ListError::Malformed { index, problem };
        let sections = pem::parse_many(contents).map_err(|error| malformed(0, error.to_string()))?;
        for (index, section) in sections.iter().map(Pem::contents).enumerate() {
            lists.add(index, section)?;
        }
        if sections.is_empty() {
            return Err(malformed(0, "neither PEM nor DER".to_owned()));
        }
        // The reader of PEM passes over what has no end.
        if contents.windows(BEGIN.len()).filter(|window| *window == BEGIN).count() != sections.len() {
            return Err(malformed(sections.len(), "it is cut short".to_owned()));
        }
        Ok(lists)
    }

    /// How many certificates are revoked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(HashSet::len).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this certificate is on its issuer's list.
    pub(super) fn contains(&self, issuer: &[u8], serial: &SerialNumber) -> bool {
        self.0.get(issuer).is_some_and(|serials| serials.contains(serial))
    }

    fn add(&mut self, index: usize, der: &[u8]) -> Result<(), ListError> {
        let (_, list) = CertificateRevocationList::from_der(der)
            .map_err(|error| ListError::Malformed { index, problem: error.to_string() })?;
        if let Some(unknown) =
            list.extensions().iter().find(|extension| extension.critical && !is_understood(extension))
        {
            return Err(ListError::Extension { index, extension: unknown.oid.to_id_string() });
        }
        let serials = list.iter_revoked_certificates().map(|revoked| SerialNumber::new(revoked.raw_serial()));
        self.0.entry(list.issuer().as_raw().into()).or_default().extend(serials);
        Ok(())
    }
}

/// Lists of part of an authority's certificates are fine; those of several authorities and mere changes are not.
fn is_understood(extension: &X509Extension<'_>) -> bool {
    match extension.parsed_extension() {
        ParsedExtension::IssuingDistributionPoint(point) => !point.indirect_crl,
        _ => [OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER].contains(&extension.oid),
    }
}
