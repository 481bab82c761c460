//! Metrics: every name, help text and label stands in [`catalogue`]; programs count by what is declared there.
//!
//! Label values of our own metrics are `&'static str`, so that no peer and no pod can make a series; where they name what
//! configuration bounds ([`Counters::with_values`]) there is a reason. Series that carry
//! names of workloads are [`transient`] ones, which are forgotten some time after they were last touched.

pub mod catalogue;
mod exposition;
mod process;
pub mod transient;

use metrics::{Key, Label, Level, Metadata};

pub use exposition::{Exposition, install};
pub use metrics::{Counter, SharedString};

/// What the recorder is told of where a metric comes from; the exporter does not look at it.
const METADATA: Metadata<'static> = Metadata::new("underpass", Level::INFO, None);

/// A metric as people read of it.
#[derive(Clone, Copy, Debug)]
pub struct Description<const N: usize> {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its labels and what their values are.
    pub labels: [(&'static str, &'static str); N],
}

/// What kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often, by size.
    Histogram,
}

/// Something in the catalogue, whatever its kind and labels.
pub trait Listed: Sync {
    /// What kind of metric.
    fn kind(&self) -> Kind;
    /// Its name.
    fn name(&self) -> &'static str;
    /// What it says.
    fn help(&self) -> &'static str;
    /// Its labels and what their values are.
    fn labels(&self) -> &[(&'static str, &'static str)];
    /// Upper bounds of a histogram's buckets.
    fn buckets(&self) -> &'static [f64] {
        &[]
    }
}

/// Declares a kind of metric: a type that knows its labels' number, and the one way to get a handle.
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $kind:ident, $handle:ty, $register:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<const N: usize>(pub Description<N>);

        impl<const N: usize> $name<N> {
            /// The series with these label values.
            pub fn with(&self, values: [&'static str; N]) -> $handle {
                let key = key(&self.0, values);
                metrics::with_recorder(|recorder| recorder.$register(&key, &METADATA))
            }
        }

        impl<const N: usize> Listed for $name<N> {
            fn kind(&self) -> Kind {
                Kind::$kind
            }

            fn name(&self) -> &'static str {
                self.0.name
            }

            fn help(&self) -> &'static str {
                self.0.help
            }

            fn labels(&self) -> &[(&'static str, &'static str)] {
                &self.0.labels
            }
        }
    };
}

kind!(
    /// Counters of one name.
    Counters, Counter, Counter, register_counter
);
kind!(
    /// Gauges of one name.
    Gauges, Gauge, metrics::Gauge, register_gauge
);

impl<const N: usize> Counters<N> {
    /// The series with these label values. They stay for ever, so only for what configuration bounds: names of policies,
    /// identities of the mesh.
    pub fn with_values(&self, values: &[SharedString; N]) -> Counter {
        let key = transient::key(&self.0, values);
        metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA))
    }
}

/// Histograms of one name.
#[derive(Clone, Copy, Debug)]
pub struct Histograms<const N: usize> {
    /// What people read.
    pub description: Description<N>,
    /// Upper bounds of the buckets.
    pub buckets: &'static [f64],
}

impl<const N: usize> Histograms<N> {
    /// The series with these label values.
    pub fn with(&self, values: [&'static str; N]) -> metrics::Histogram {
        let key = key(&self.description, values);
        metrics::with_recorder(|recorder| recorder.register_histogram(&key, &METADATA))
    }
}

impl<const N: usize> Listed for Histograms<N> {
    fn kind(&self) -> Kind {
        Kind::Histogram
    }

    fn name(&self) -> &'static str {
        self.description.name
    }

    fn help(&self) -> &'static str {
        self.description.help
    }

    fn labels(&self) -> &[(&'static str, &'static str)] {
        &self.description.labels
    }

    fn buckets(&self) -> &'static [f64] {
        self.buckets
    }
}

fn key<const N: usize>(description: &Description<N>, values: [&'static str; N]) -> Key {
    let labels = description.labels.iter().zip(values).map(|((name, _), value)| Label::from_static_parts(name, value));
    Key::from_parts(description.name, labels.collect::<Vec<_>>())
}
