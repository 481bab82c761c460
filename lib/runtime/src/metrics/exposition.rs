//! The page that Prometheus reads.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;

use super::{Kind, catalogue, process};
use crate::tasks;

/// How often somebody must look; histograms keep every single value until then.
const UPKEEP: Duration = Duration::from_secs(60);

/// Something that is asked when the page is made; it sets gauges, and may add to the page.
type Source = Box<dyn FnMut(&mut String) + Send>;

/// Everything that is counted; clones are the same.
#[derive(Clone)]
pub struct Exposition(Arc<Mutex<Page>>);

struct Page {
    recorder: PrometheusHandle,
    sources: Vec<Source>,
    made: Instant,
}

/// Installs the recorder, once, from `main` inside a runtime.
///
/// # Errors
/// If another recorder is installed already.
pub fn install() -> Result<Exposition, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in catalogue::ALL.iter().flat_map(|section| section.metrics) {
        if metric.kind() == Kind::Histogram {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name().to_owned()), metric.buckets())?;
        }
    }
    let recorder = builder.install_recorder()?;
    for metric in catalogue::ALL.iter().flat_map(|section| section.metrics) {
        let (name, help) = (metric.name(), metric.help());
        match metric.kind() {
            Kind::Counter => metrics::describe_counter!(name, help),
            Kind::Gauge => metrics::describe_gauge!(name, help),
            Kind::Histogram => metrics::describe_histogram!(name, help),
        }
    }
    let page = Page { recorder, sources: vec![Box::new(|_: &mut String| process::collect())], made: Instant::now() };
    let exposition = Exposition(Arc::new(Mutex::new(page)));
    tasks::spawn("metrics upkeep", exposition.clone().upkeep());
    Ok(exposition)
}

impl Exposition {
    /// Asks `source` each time the page is made.
    pub fn add(&self, source: impl FnMut(&mut String) + Send + 'static) {
        self.lock().sources.push(Box::new(source));
    }

    /// Makes the page. Many series take a while: call it where a thread may block.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = self.lock();
        let mut text = String::new();
        page.sources.iter_mut().for_each(|source| source(&mut text));
        page.made = Instant::now();
        // Last, so that it has what the sources set.
        text.push_str(&page.recorder.render());
        text
    }

    /// Makes the page if nobody asked for it: values are only sorted into their buckets, and old series forgotten, then.
    async fn upkeep(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            // Who holds it is making the page.
            let unseen = self.0.try_lock().is_ok_and(|page| page.made.elapsed() >= UPKEEP);
            if unseen {
                let this = self.clone();
                drop(tokio::task::spawn_blocking(move || drop(this.page())).await);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Page> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
