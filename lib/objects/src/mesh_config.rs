//! What people want of the whole mesh: one object of the cluster, which the operator carries out.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{Invalid, ObjectStatus};

/// The name of the one that holds.
pub const NAME: &str = "default";
/// The shortest life of a certificate that may be asked for, in seconds: renewal is at half of it, and needs some time.
const LEAST_LIFETIME: u32 = 600;

/// What holds for the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeshConfig {
    /// Its name, which is [`NAME`].
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: MeshConfigSpec,
    /// What has become of it, as the operator says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ObjectStatus>,
}

/// What a [`MeshConfig`] says; what it leaves out is as without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// How pods of one node talk.
    #[serde(default)]
    pub same_node: SameNode,
    /// The certificates of workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<Certificates>,
}

/// How pods of one node talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SameNode {
    /// Without a tunnel where nobody could tell, that is while there are no NetworkPolicies.
    #[default]
    Join,
    /// Through a tunnel like all others.
    Tunnel,
}

/// The certificates of workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Certificates {
    /// How long one lives, in seconds; it is renewed at half. Not longer than the operator's --certificate-ttl.
    #[schemars(range(min = LEAST_LIFETIME, max = 3_200_000_000_u32))]
    pub lifetime_seconds: u32,
}

impl MeshConfig {
    /// What stands for one that is not understood: nothing is left out of tunnels that somebody may want in them.
    #[cfg(feature = "cluster")]
    pub(crate) fn in_doubt(metadata: ObjectMeta, status: Option<ObjectStatus>) -> Self {
        let spec = MeshConfigSpec { same_node: SameNode::Tunnel, certificates: None };
        Self { metadata, spec, status }
    }

    /// Checks what the types cannot say.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.metadata.name.as_deref() != Some(NAME) {
            return Err(Invalid::new("metadata.name", format!("there is one for the mesh, and its name is {NAME}")));
        }
        match self.spec.certificates {
            Some(Certificates { lifetime_seconds }) if lifetime_seconds < LEAST_LIFETIME => {
                let problem = format!("is shorter than {LEAST_LIFETIME}");
                Err(Invalid::new("spec.certificates.lifetimeSeconds", problem))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl MeshConfigSpec {
    /// How long a workload's certificate shall live, if it says so.
    #[must_use]
    pub fn certificate_lifetime(&self) -> Option<Duration> {
        self.certificates.map(|certificates| Duration::from_secs(certificates.lifetime_seconds.into()))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Kind, manifest};

    fn read(name: &str, spec: &str) -> Result<(), String> {
        let text = format!(
            "apiVersion: underpass.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        );
        let read = manifest::read(text.as_bytes()).map_err(|error| error.to_string())?;
        assert_eq!(read.objects.into_keys().map(|key| key.kind).collect::<Vec<_>>(), [Kind::MeshConfig]);
        Ok(())
    }

    #[test]
    fn what_it_says_is_checked() {
        for (name, spec, wrong) in [
            ("default", "", None),
            ("default", "sameNode: Tunnel, certificates: {lifetimeSeconds: 600}", None),
            ("other", "", Some("metadata.name")),
            ("default", "certificates: {lifetimeSeconds: 599}", Some("spec.certificates.lifetimeSeconds")),
            ("default", "certificates: {}", Some("lifetimeSeconds")),
            ("default", "sameNode: tunnel", Some("sameNode")),
            ("default", "sameNodes: Tunnel", Some("sameNodes")),
        ] {
            let read = read(name, spec);
            match wrong {
                None => assert_eq!(read, Ok(()), "{spec}"),
                Some(field) => assert!(read.as_ref().is_err_and(|error| error.contains(field)), "{spec}: {read:?}"),
            }
        }
    }
}
