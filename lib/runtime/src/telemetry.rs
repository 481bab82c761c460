//! Logs: where they go and how they look.
//!
//! Nobody who logs waits for whoever reads: lines go through a bounded queue, and those that do not fit are dropped and
//! counted (`underpass_log_lines_dropped_total`).

mod lines;

use std::{fmt, sync::OnceLock, time::Duration};

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// How a program logs.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// What to log: a level, or `target=level` pairs separated by commas
    #[arg(long = "log-level", env = "UNDERPASS_LOG_LEVEL", default_value = "info", value_name = "FILTER")]
    pub level: String,
    /// How a log line looks
    #[arg(long = "log-format", env = "UNDERPASS_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?}")]
pub struct LogFilterError {
    filter: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

use self::lines::Lines;

/// Changes what is logged while the program runs.
#[derive(Clone)]
pub struct LogControl(reload::Handle<EnvFilter, tracing_subscriber::Registry>);

/// The process has one standard error, so it has one queue.
static STDERR: OnceLock<Lines> = OnceLock::new();

/// How long the end of a process waits for whoever reads its log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Installs the subscriber, once, from `main`. Lines go to standard error; panics are lines too. Call [`flush`] at the
/// end of `main`.
///
/// # Errors
/// [`LogFilterError`] if the filter cannot be read.
pub fn init(options: &LogOptions) -> Result<LogControl, LogFilterError> {
    let (filter, handle) = reload::Layer::new(parse(&options.level)?);
    let stderr = STDERR.get_or_init(|| Lines::to(std::io::stderr())).clone();
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr);
    let lines = match options.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    // A subscriber that somebody else installed first (a test) stays.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        // The standard hook writes to standard error itself, and would wait for its reader.
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%panic, %backtrace, "panic");
        }));
    }
    Ok(LogControl(handle))
}

/// Waits, a second at most, until everything logged so far is written.
pub fn flush() {
    if let Some(lines) = STDERR.get() {
        lines.flush(LAST_WORDS);
    }
}

/// How many lines were dropped since the process began, because nobody took them in time.
#[must_use]
pub fn dropped_lines() -> u64 {
    STDERR.get().map_or(0, Lines::dropped)
}

impl LogControl {
    /// Logs by `filter` from now on.
    ///
    /// # Errors
    /// [`LogFilterError`] if the filter cannot be read; the former one stays.
    pub fn set(&self, filter: &str) -> Result<(), LogFilterError> {
        let parsed = parse(filter)?;
        if let Err(gone) = self.0.reload(parsed) {
            tracing::warn!(error = %gone, "the log filter could not be changed");
        }
        Ok(())
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogControl")
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LogFilterError> {
    EnvFilter::builder().parse(filter).map_err(|source| LogFilterError { filter: filter.into(), source })
}
