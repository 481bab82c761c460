//! Carries out what the MeshConfig says of certificates: the authority is told, and people of what does not hold. (How
//! pods of one node talk is `join`'s.)

use std::time::Duration;

use tokio::sync::watch;
use underpass_objects::{Kind, ObjectKey, ObjectName, Objects, Snapshot, mesh_config};
use underpass_runtime::Shutdown;

use crate::{ca::Authority, translate::Note};

/// What of it is not carried out, by an operator whose certificates live no longer than that.
pub(crate) fn note(objects: &Objects, most: Duration) -> Option<Note> {
    let wanted = objects.mesh_config().certificate_lifetime().filter(|wanted| *wanted > most)?;
    let (wanted, most) = (wanted.as_secs(), most.as_secs());
    Some(Note {
        object: ObjectKey { kind: Kind::MeshConfig, name: ObjectName::new("", mesh_config::NAME) },
        field: "spec.certificates.lifetimeSeconds",
        problem: format!("{wanted} is more than the operator's --certificate-ttl, {most}, which holds"),
    })
}

/// Tells the authority how long certificates shall live, until asked to stop.
pub(crate) async fn run(authority: Authority, mut objects: watch::Receiver<Snapshot>, shutdown: Shutdown) {
    loop {
        let wanted = objects.borrow_and_update().objects.mesh_config().certificate_lifetime();
        if authority.shorten(wanted) {
            tracing::info!(?wanted, "how long certificates shall live by the MeshConfig");
        }
        tokio::select! {
            () = shutdown.requested() => return,
            changed = objects.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use underpass_objects::manifest;

    use super::*;

    fn objects(spec: &str) -> Objects {
        let text = format!(
            "apiVersion: underpass.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{{spec}}}\n"
        );
        let read = manifest::read(text.as_bytes()).unwrap();
        read.objects.into_values().map(|located| located.object).collect()
    }

    #[test]
    fn a_longer_life_than_the_operators_is_told_of() {
        for (lifetime, is_told) in [(600, false), (86_400, false), (86_401, true)] {
            let note =
                note(&objects(&format!("certificates: {{lifetimeSeconds: {lifetime}}}")), Duration::from_secs(86_400));
            assert_eq!(
                note.map(|note| note.field),
                is_told.then_some("spec.certificates.lifetimeSeconds"),
                "{lifetime}"
            );
        }
        assert_eq!(note(&objects(""), Duration::from_secs(1)), None);
    }
}
