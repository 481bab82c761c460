//! What is to be measured.

use std::{fmt, path::PathBuf, str::FromStr};

use clap::{Args, ValueEnum as _};

use crate::case::Case;

/// How to measure.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Only these ways; may be repeated
    #[arg(long = "case", value_name = "CASE", value_enum)]
    cases: Vec<Case>,
    /// Only these measures; may be repeated: bulk-1, bulk-8, bulk-64 (each also with -back), requests-16, requests-64,
    /// connections-16, open-1000, open-half, idle-1000, idle-10000, first-byte, start-up, or other numbers in their place
    #[arg(long = "measure", value_name = "MEASURE")]
    measures: Vec<Measure>,
    /// Rounds, each with all that is compared
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub(crate) rounds: usize,
    /// How long each load is offered, in seconds
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    pub(crate) seconds: f64,
    /// A look at everything in about a minute: one round, half a second of each load
    #[arg(long)]
    quick: bool,
    /// Another build of the node proxy, compared with this one pair by pair
    #[arg(long, value_name = "PATH")]
    pub(crate) nodeproxy: Option<PathBuf>,
    /// Flags for every node proxy
    #[arg(long = "nodeproxy-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub(crate) flags: Vec<String>,
    /// Where the summary goes
    #[arg(long, default_value = "target/bench/summary.json", value_name = "FILE")]
    pub(crate) summary: PathBuf,
}

impl Options {
    /// The rounds and the seconds of each load.
    pub(crate) fn effort(&self) -> (usize, f64) {
        if self.quick { (1, self.seconds.min(0.5)) } else { (self.rounds.max(1), self.seconds) }
    }

    /// The ways, with those that others are compared to.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let chosen = if self.cases.is_empty() { Case::value_variants() } else { &self.cases };
        let mut cases: Vec<Case> = chosen.iter().flat_map(|case| [case.base(), *case]).collect();
        cases.sort_unstable();
        cases.dedup();
        cases
    }

    /// The measures.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        if self.measures.is_empty() { Measure::all(self.quick) } else { self.measures.clone() }
    }
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Measure {
    /// Bytes, as fast as they go.
    Bulk {
        /// Connections.
        streams: usize,
        /// From the server to the client.
        back: bool,
    },
    /// Requests on so many kept connections.
    Requests(usize),
    /// Connections by so many clients.
    Connections(usize),
    /// Latency at this many requests a second; none: half of what `requests-64` reached in the same round.
    Open(Option<f64>),
    /// Memory with so many idle connections.
    Idle(usize),
    /// From CNI ADD to a new pod's first answer.
    FirstByte,
    /// From the start of a node proxy until it is ready.
    StartUp,
}

impl Measure {
    /// The number of kept connections in open loops, and in the measure that says what half of the maximum is.
    pub(crate) const KEPT: usize = 64;

    fn all(quick: bool) -> Vec<Self> {
        let bulk = |streams| [false, true].map(|back| Self::Bulk { streams, back });
        let idle: &[usize] = if quick { &[100] } else { &[1000, 10_000] };
        let mut all: Vec<Self> = idle.iter().map(|count| Self::Idle(*count)).collect();
        all.extend([1, 8, 64].into_iter().flat_map(bulk));
        all.extend([Self::Requests(16), Self::Requests(Self::KEPT), Self::Connections(16)]);
        all.extend([Self::Open(Some(1000.0)), Self::Open(None), Self::FirstByte, Self::StartUp]);
        all
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { streams, back } => write!(f, "bulk-{streams}{}", if *back { "-back" } else { "" }),
            Self::Requests(count) => write!(f, "requests-{count}"),
            Self::Connections(count) => write!(f, "connections-{count}"),
            Self::Open(Some(rate)) => write!(f, "open-{rate}"),
            Self::Open(None) => f.write_str("open-half"),
            Self::Idle(count) => write!(f, "idle-{count}"),
            Self::FirstByte => f.write_str("first-byte"),
            Self::StartUp => f.write_str("start-up"),
        }
    }
}

impl FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let count = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
        match text.split_once('-') {
            Some(("bulk", rest)) => {
                let (streams, back) = rest.strip_suffix("-back").map_or((rest, false), |streams| (streams, true));
                Ok(Self::Bulk { streams: count(streams)?, back })
            }
            Some(("requests", connections)) => Ok(Self::Requests(count(connections)?)),
            Some(("connections", clients)) => Ok(Self::Connections(count(clients)?)),
            Some(("open", "half")) => Ok(Self::Open(None)),
            Some(("open", rate)) => {
                let rate = rate.parse().ok().filter(|rate| *rate > 0.0);
                Ok(Self::Open(Some(rate.ok_or_else(|| format!("{text:?} has no rate"))?)))
            }
            Some(("idle", connections)) => Ok(Self::Idle(count(connections)?)),
            Some(("first", "byte")) => Ok(Self::FirstByte),
            Some(("start", "up")) => Ok(Self::StartUp),
            _ => Err(format!("there is no measure {text:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_can_be_chosen_by_its_name() {
        for measure in Measure::all(false) {
            assert_eq!(measure.to_string().parse(), Ok(measure));
        }
        for none in ["", "bulk", "bulk-x", "open-0", "start-down"] {
            assert!(none.parse::<Measure>().is_err(), "{none:?}");
        }
    }
}
