//! Revocations.

use underpass_model::{Revocation, SerialNumber};

use super::{ConvertError, Problem, Wrong, shorten};
use crate::wire::trust::{self as wire, revocation::What};

/// Reads a `Revocation` resource; `None` if it revokes something of a kind that is not known (yet).
///
/// # Errors
/// [`ConvertError`] if it cannot be understood.
pub fn revocation_from_wire(message: &wire::Revocation) -> Result<Option<Revocation>, ConvertError> {
    let form = |field, text: String| Wrong::new(field, Problem::Form(shorten(&text))).of("revocation");
    match &message.what {
        None => Ok(None),
        Some(What::Serial(bytes)) => {
            let serial = SerialNumber::new(bytes);
            if !serial.is_unique() {
                return Err(form("serial", serial.to_string()));
            }
            Ok(Some(Revocation::Serial(serial)))
        }
        Some(What::Identity(name)) => {
            let identity = name.parse().map_err(|_| form("identity", name.clone()))?;
            Ok(Some(Revocation::Identity { identity, before: message.before }))
        }
    }
}

/// Writes a `Revocation` resource.
#[must_use]
pub fn revocation_to_wire(revocation: &Revocation) -> wire::Revocation {
    match revocation {
        Revocation::Identity { identity, before } => {
            wire::Revocation { what: Some(What::Identity(identity.to_string())), before: *before }
        }
        Revocation::Serial(serial) => {
            wire::Revocation { what: Some(What::Serial(serial.as_bytes().to_vec())), before: 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_revokes_nobody_in_particular_is_refused() {
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let serial = "0102030405060708".parse().unwrap();
        for revocation in [Revocation::Identity { identity, before: 7 }, Revocation::Serial(serial)] {
            assert_eq!(revocation_from_wire(&revocation_to_wire(&revocation)), Ok(Some(revocation)));
        }
        for (what, field) in [(What::Serial(vec![1]), "serial"), (What::Identity("web".into()), "identity")] {
            let error = revocation_from_wire(&wire::Revocation { what: Some(what), before: 0 }).unwrap_err();
            assert_eq!((error.field, error.reason()), (field, "form"));
        }
        assert_eq!(revocation_from_wire(&wire::Revocation::default()), Ok(None));
    }
}
