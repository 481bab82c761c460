//! What policies said of a connection: who allowed or refused it, and what those in dry run would have done.

use underpass_model::Identity;
use underpass_policy::{Permit, PolicyName, Refusal};
use underpass_runtime::metrics::{Counters, SharedString, catalogue};

use super::series::Ledger;

/// What stands where there is no room for one more policy or identity.
const OVERFLOW: SharedString = SharedString::const_str("overflow");

/// What policies said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The policy that allowed or refused it.
    pub(super) policy: Option<PolicyName>,
    /// What the policies in dry run would have done otherwise.
    pub(super) dry_run: Option<DryRun>,
}

/// What the policies in dry run would have done otherwise.
#[derive(Debug)]
pub(super) struct DryRun {
    pub(super) outcome: &'static str,
    pub(super) policy: Option<PolicyName>,
}

impl Said {
    /// That it may be.
    pub(super) fn permitted(permit: &Permit) -> Self {
        let dry_run =
            permit.dry_run().map(|refusal| DryRun { outcome: refusal.reason(), policy: Some(refusal.policy.clone()) });
        Self { policy: permit.policy().cloned(), dry_run }
    }

    /// That it may not be, which is counted.
    pub(super) fn refused(refusal: &Refusal, ledger: &Ledger) -> Self {
        let values: [SharedString; 4] = [
            SharedString::const_str(refusal.reason()),
            refusal.policy.to_string().into(),
            principal(refusal.source.as_ref()),
            refusal.destination.to_string().into(),
        ];
        count(&catalogue::POLICY_REFUSALS, values, ledger);
        let allows = DryRun { outcome: "allowed", policy: None };
        Self { policy: Some(refusal.policy.clone()), dry_run: refusal.dry_run_allows.then_some(allows) }
    }

    /// Counts what those in dry run would have done otherwise.
    pub(super) fn count_dry_run(&self, (source, destination): (Option<&Identity>, Option<&Identity>), ledger: &Ledger) {
        let Some(dry_run) = &self.dry_run else { return };
        let policy = dry_run.policy.as_ref().map(ToString::to_string).unwrap_or_default();
        let values: [SharedString; 4] =
            [SharedString::const_str(dry_run.outcome), policy.into(), principal(source), principal(destination)];
        count(&catalogue::POLICY_DRY_RUN, values, ledger);
    }
}

/// Counts under these labels; where there is no room for them, under the outcome alone.
fn count(metric: &Counters<4>, values: [SharedString; 4], ledger: &Ledger) {
    let values = if ledger.has_room(metric, &values) {
        values
    } else {
        let [outcome, ..] = values;
        [outcome, OVERFLOW, OVERFLOW, OVERFLOW]
    };
    metric.with_values(&values).increment(1);
}

/// An identity as metrics spell it.
fn principal(identity: Option<&Identity>) -> SharedString {
    identity.map_or(SharedString::const_str("unknown"), |identity| identity.to_string().into())
}
