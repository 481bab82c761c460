//! Counters that name workloads: series that nobody touches any more disappear, so that a node where pods come and go
//! does not count for ever those that went.

use std::time::Duration;

use metrics::{Counter, Key, Label, Recorder, SharedString};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use metrics_util::MetricKindMask;

use super::{Counters, Description, Gauges, Kind, Listed, METADATA};

/// Series that are forgotten when they were not touched for a while.
///
/// A handle whose series was forgotten counts into nothing. So whoever keeps handles touches them (adds 0 is enough)
/// before each [`render`](Self::render): what is touched between two of them is never forgotten.
pub struct TransientSeries(PrometheusRecorder);

impl TransientSeries {
    /// Series of these metrics, forgotten when they were not touched for `idle`.
    #[must_use]
    pub fn new(metrics: &[&dyn Listed], idle: Duration) -> Self {
        let recorder = PrometheusBuilder::new().idle_timeout(MetricKindMask::COUNTER, Some(idle)).build_recorder();
        for metric in metrics {
            recorder.describe_counter(metric.name().into(), None, metric.help().into());
        }
        Self(recorder)
    }

    /// The series with these label values.
    pub fn counter<const N: usize>(&self, metric: &Counters<N>, values: &[SharedString; N]) -> Counter {
        self.0.register_counter(&key(&metric.0, values), &METADATA)
    }

    /// What there is, as Prometheus reads it. This is where old series are found and forgotten.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.handle().render()
    }
}

/// Series of what is there now, made anew for each page: they are bounded by what is there, and end with it.
pub struct Snapshot(PrometheusRecorder);

impl Snapshot {
    /// Nothing yet, of these metrics.
    #[must_use]
    pub fn new(metrics: &[&dyn Listed]) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for metric in metrics {
            match metric.kind() {
                Kind::Gauge => recorder.describe_gauge(metric.name().into(), None, metric.help().into()),
                Kind::Counter | Kind::Histogram => {
                    recorder.describe_counter(metric.name().into(), None, metric.help().into());
                }
            }
        }
        Self(recorder)
    }

    /// Says how much there is.
    pub fn gauge<const N: usize>(&self, metric: &Gauges<N>, values: &[SharedString; N], value: f64) {
        self.0.register_gauge(&key(&metric.0, values), &METADATA).set(value);
    }

    /// Says how much there has been.
    pub fn counter<const N: usize>(&self, metric: &Counters<N>, values: &[SharedString; N], value: u64) {
        self.0.register_counter(&key(&metric.0, values), &METADATA).absolute(value);
    }

    /// All of it, as Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.handle().render()
    }
}

pub(super) fn key<const N: usize>(metric: &Description<N>, values: &[SharedString; N]) -> Key {
    let labels = metric.labels.iter().zip(values).map(|((name, _), value)| Label::new(*name, value.clone()));
    Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Description, catalogue};

    static PROBE: Counters<1> = Counters(Description { name: "probe_total", help: "A probe.", labels: [("who", "")] });

    #[test]
    fn adding_nothing_keeps_a_series_and_leaving_it_alone_forgets_it() {
        let series = TransientSeries::new(&[&PROBE], Duration::from_millis(40));
        let kept = series.counter(&PROBE, &["kept".into()]);
        kept.increment(1);
        series.counter(&PROBE, &["left".into()]).increment(1);
        assert!(series.render().contains("probe_total{who=\"left\"} 1"));
        let until = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            kept.increment(0);
            let page = series.render();
            assert!(page.contains("probe_total{who=\"kept\"} 1"), "{page}");
            if !page.contains("left") {
                break;
            }
            assert!(std::time::Instant::now() < until, "{page}");
            std::thread::sleep(Duration::from_millis(5));
        }
        kept.increment(2);
        assert!(series.render().contains("probe_total{who=\"kept\"} 3"));
    }

    #[test]
    fn names_are_legal_and_stand_once() {
        let mut names: Vec<_> =
            catalogue::ALL.iter().flat_map(|section| section.metrics).map(|one| one.name()).collect();
        let all = names.len();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
