//! The `baggage` header: labels of the workload that calls or, in an answer, of the one that is called.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use http::HeaderMap;
use underpass_model::{Workload, WorkloadKind};

use super::{BAGGAGE, LONGEST_VALUE, insert};

/// At most this many bytes of baggage are looked at, over all headers of the name.
const MOST_BYTES: usize = 8 * 1024;

/// Labels of a workload. An empty text means that nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Its cluster (`k8s.cluster.name`).
    pub cluster: Arc<str>,
    /// Its namespace (`k8s.namespace.name`).
    pub namespace: Arc<str>,
    /// What made it, and the name of that (`k8s.deployment.name` and so on).
    pub workload: Option<(WorkloadKind, Arc<str>)>,
    /// The name telemetry counts it under (`service.name`).
    pub service: Arc<str>,
    /// The version telemetry counts it under (`service.version`).
    pub version: Arc<str>,
    /// Where it runs (`cloud.region`).
    pub region: Arc<str>,
    /// Where it runs, finer (`cloud.availability_zone`).
    pub zone: Arc<str>,
}

impl Baggage {
    /// The labels of a workload that discovery knows.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        let name = if workload.owner.is_empty() { &workload.name } else { &workload.owner };
        Self {
            cluster: Arc::clone(&workload.cluster),
            namespace: Arc::clone(&workload.namespace),
            workload: (!name.is_empty()).then(|| (workload.kind, Arc::clone(name))),
            service: Arc::clone(&workload.canonical_name),
            version: Arc::clone(&workload.canonical_revision),
            region: Arc::clone(&workload.locality.region),
            zone: Arc::clone(&workload.locality.zone),
        }
    }

    /// Reads the headers of that name; there may be several. A later value wins.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Self {
        let mut baggage = Self::default();
        let mut left = MOST_BYTES;
        for value in headers.get_all(BAGGAGE) {
            let Some(rest) = left.checked_sub(value.len()) else { break };
            left = rest;
            if let Ok(text) = value.to_str() {
                baggage.take(text);
            }
        }
        baggage
    }

    /// Adds the header, unless nothing is known.
    pub fn write(&self, headers: &mut HeaderMap) {
        insert(headers, BAGGAGE, self.to_string());
    }

    /// Reads one list: `key=value` with commas between; what follows a semicolon are properties that we have no use for.
    fn take(&mut self, text: &str) {
        for member in text.split(',') {
            let member = member.split_once(';').map_or(member, |(member, _)| member);
            if let Some((key, value)) = member.split_once('=')
                && is_printable(value.trim())
            {
                self.set(key.trim(), value.trim().into());
            }
        }
    }

    fn set(&mut self, key: &str, value: Arc<str>) {
        match key {
            "k8s.cluster.name" => self.cluster = value,
            "k8s.namespace.name" => self.namespace = value,
            "k8s.deployment.name" => self.workload = Some((WorkloadKind::Deployment, value)),
            "k8s.cronjob.name" => self.workload = Some((WorkloadKind::CronJob, value)),
            "k8s.job.name" => self.workload = Some((WorkloadKind::Job, value)),
            "k8s.pod.name" => self.workload = Some((WorkloadKind::Pod, value)),
            "service.name" => self.service = value,
            "service.version" => self.version = value,
            "cloud.region" => self.region = value,
            "cloud.availability_zone" => self.zone = value,
            _ => {}
        }
    }
}

impl fmt::Display for Baggage {
    /// The header's value, in the order that others of the field use. A value that a header cannot carry is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |kind| match kind {
            WorkloadKind::CronJob => "k8s.cronjob.name",
            WorkloadKind::Deployment => "k8s.deployment.name",
            WorkloadKind::Job => "k8s.job.name",
            WorkloadKind::Pod => "k8s.pod.name",
        };
        let workload = self.workload.as_ref().map_or(("", ""), |(of, name)| (kind(*of), name));
        let pairs = [
            ("k8s.cluster.name", &*self.cluster),
            ("k8s.namespace.name", &*self.namespace),
            workload,
            ("service.name", &*self.service),
            ("service.version", &*self.version),
            ("cloud.region", &*self.region),
            ("cloud.availability_zone", &*self.zone),
        ];
        let mut first = true;
        for (key, value) in pairs.into_iter().filter(|(_, value)| is_printable(value)) {
            if !std::mem::take(&mut first) {
                f.write_char(',')?;
            }
            write!(f, "{key}={value}")?;
        }
        Ok(())
    }
}

/// A value as W3C Baggage allows it unescaped (section 3.2.1.3), not empty and of bounded length.
fn is_printable(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\');
    (1..=LONGEST_VALUE).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&str]) -> Baggage {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(BAGGAGE, HeaderValue::from_str(value).unwrap());
        }
        Baggage::read(&headers)
    }

    #[test]
    fn prints_what_others_print() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,\
                    service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        assert_eq!(read(&[text]).to_string(), text);
    }

    #[test]
    fn takes_what_it_knows_and_leaves_the_rest() {
        let cases: &[(&[&str], &str)] = &[
            (&["service.name=web", "service.version=v1"], "service.name=web,service.version=v1"),
            (&["service.name=a,service.name=b"], "service.name=b"),
            (&[" service.name = web ; secret ; ttl=3 , x=y"], "service.name=web"),
            (&["service.name=a=b"], "service.name=a=b"),
            (&["service.name=,k8s.job.name=nightly,,=,junk"], "k8s.job.name=nightly"),
            (&["service.name=two words"], ""),
            (&["SERVICE.NAME=web"], ""),
        ];
        for (values, expected) in cases {
            assert_eq!(read(values).to_string(), *expected, "{values:?}");
        }
    }

    #[test]
    fn a_flood_of_baggage_is_not_looked_at() {
        let long = format!("x={}", "y".repeat(MOST_BYTES));
        assert_eq!(read(&["service.name=web", &long, "service.name=late"]).to_string(), "service.name=web");
        let value = format!("service.name={}", "y".repeat(LONGEST_VALUE + 1));
        assert_eq!(read(&[&value]), Baggage::default());
    }

    #[test]
    fn what_would_break_the_list_is_not_printed() {
        let baggage = Baggage { service: "a,k8s.namespace.name=kube-system".into(), ..Baggage::default() };
        assert_eq!(baggage.to_string(), "");
    }

    proptest! {
        #[test]
        fn printing_and_reading_are_inverse(
            namespace in "[a-z0-9-]{0,20}", owner in "[a-z0-9.-]{1,20}", service in "[a-z0-9.=_/-]{0,20}", zone in "[a-z0-9-]{0,9}",
            kind in 0..4_usize,
        ) {
            let kind = [WorkloadKind::CronJob, WorkloadKind::Deployment, WorkloadKind::Job, WorkloadKind::Pod][kind];
            let baggage = Baggage {
                namespace: namespace.into(),
                workload: Some((kind, owner.into())),
                service: service.into(),
                zone: zone.into(),
                ..Baggage::default()
            };
            prop_assert_eq!(read(&[&baggage.to_string()]), baggage);
        }
    }
}
