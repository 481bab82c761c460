//! What is no longer believed although its time is not over.

use std::{fmt, str::FromStr, sync::Arc};

use crate::Identity;

/// One revocation, as the mesh's authority tells it. Lists of other authorities (X.509 CRLs) are another matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revocation {
    /// Every certificate of an identity whose time began before this; later ones are good.
    Identity {
        /// Whose.
        identity: Identity,
        /// In seconds since 1970.
        before: u64,
    },
    /// The certificate with this number, a workload's or one that signed workloads'.
    Serial(SerialNumber),
}

/// A certificate's number, without leading zeros. Written in hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialNumber(Arc<[u8]>);

/// Why a text is no serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a serial number of {SHORTEST} to {LONGEST} bytes in hexadecimal digits")]
pub struct SerialNumberError(String);

/// A shorter number may be that of several authorities' certificates. Those of ours have 16 bytes.
const SHORTEST: usize = 8;
/// No certificate's number is longer (RFC 5280, 4.1.2.2).
const LONGEST: usize = 20;

impl Revocation {
    /// A name that no other revocation has.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Identity { identity, .. } => format!("identity/{identity}"),
            Self::Serial(serial) => format!("serial/{serial}"),
        }
    }
}

impl SerialNumber {
    /// Takes a number as certificates hold it: big-endian, perhaps with leading zeros.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes.iter().skip(zeros).copied().collect())
    }

    /// Its bytes, big-endian.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is long enough to be no other certificate's.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        (SHORTEST..=LONGEST).contains(&self.0.len())
    }
}

impl FromStr for SerialNumber {
    type Err = SerialNumberError;

    /// Reads hexadecimal digits, also with colons between the bytes, as tools print them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || SerialNumberError(text.chars().take(100).collect());
        let digits: Option<Vec<u8>> = text
            .bytes()
            .filter(|byte| *byte != b':')
            .map(|byte| (byte as char).to_digit(16)?.try_into().ok())
            .collect();
        let digits = digits.filter(|digits| digits.len() <= 2 * LONGEST + 2).ok_or_else(wrong)?;
        // An odd number of digits lacks a leading zero.
        let bytes: Vec<u8> =
            digits.rchunks(2).rev().map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        Some(Self::new(&bytes)).filter(Self::is_unique).ok_or_else(wrong)
    }
}

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SerialNumber({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_as_tools_print_them() {
        let wanted = SerialNumber::new(&[0, 0, 0x0a, 1, 2, 3, 4, 5, 6, 0xff]);
        for text in ["0a010203040506ff", "A010203040506FF", "0a:01:02:03:04:05:06:ff", "00:0A010203040506ff"] {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
        }
        assert_eq!(wanted.to_string(), "0a010203040506ff");
        assert_eq!(wanted.to_string().parse(), Ok(wanted));
        for text in ["", "01", "0001", "xx010203040506ff", "0a 01", "10203040506ff", &"1".repeat(41), &"1".repeat(1000)]
        {
            assert!(text.parse::<SerialNumber>().is_err(), "{text}");
        }
    }
}
