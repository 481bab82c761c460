//! `/debug/pprof/profile`: where processor time goes, as folded stacks: what flame graphs are made of.
//!
//! While nobody asks it costs nothing. While somebody does, each thread that computes is interrupted a hundred times a
//! second, at most for as long as [`MOST`].

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use http::StatusCode;
use pprof::{Frames, ProfilerGuard, ProfilerGuardBuilder, Report};

/// How long unless asked otherwise.
const USUAL: u64 = 5;
/// How long at most, in seconds.
const MOST: u64 = 30;
/// A prime, so that nothing that is done at round times hides.
const SAMPLES_A_SECOND: i32 = 99;
/// Whoever is in there may hold a lock that unwinding a stack needs.
const NEVER_IN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    /// Not a time.
    #[error("seconds {0:?}: use ?seconds=1..{MOST}")]
    Seconds(String),
    /// Mostly somebody else's runs.
    #[error("no profile can be taken now")]
    Start(#[source] pprof::Error),
    /// The stacks have no names.
    #[error("the profile cannot be read")]
    Report(#[source] pprof::Error),
    /// Its thread panicked.
    #[error("the profile was lost")]
    Lost(#[from] tokio::task::JoinError),
}

impl ProfileError {
    /// As HTTP says it.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Seconds(_) => StatusCode::BAD_REQUEST,
            Self::Start(_) => StatusCode::CONFLICT,
            Self::Report(_) | Self::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Samples for as long as the query says, and tells each stack with its number of samples.
pub(super) async fn page(query: &HashMap<String, String>) -> Result<String, ProfileError> {
    let time = time(query)?;
    let start = || {
        let profiler = ProfilerGuardBuilder::default().frequency(SAMPLES_A_SECOND).blocklist(&NEVER_IN);
        profiler.build().map_err(ProfileError::Start)
    };
    let profiler = tokio::task::spawn_blocking(start).await??;
    tokio::time::sleep(time).await;
    // Names are looked up in the whole of the program's debugging information.
    tokio::task::spawn_blocking(move || read(&profiler)).await?
}

fn time(query: &HashMap<String, String>) -> Result<Duration, ProfileError> {
    let seconds = match query.get("seconds") {
        None => Some(USUAL),
        Some(text) => text.parse().ok().filter(|seconds| (1..=MOST).contains(seconds)),
    };
    let seconds = seconds.ok_or_else(|| ProfileError::Seconds(query.get("seconds").cloned().unwrap_or_default()));
    seconds.map(Duration::from_secs)
}

fn read(profiler: &ProfilerGuard<'_>) -> Result<String, ProfileError> {
    let report = profiler.report().build().map_err(ProfileError::Report)?;
    Ok(folded(&report))
}

/// One line a stack: the thread and its functions, outermost first, and how often it was seen.
fn folded(report: &Report) -> String {
    let mut lines: Vec<_> = report.data.iter().map(|(frames, samples)| (*samples, stack(frames))).collect();
    lines.sort_unstable_by(|a, b| b.cmp(a));
    lines.iter().fold(String::new(), |mut page, (samples, stack)| {
        // Writing into a string does not fail.
        let _written = writeln!(page, "{stack} {samples}");
        page
    })
}

fn stack(frames: &Frames) -> String {
    let functions = frames.frames.iter().rev().flatten().map(|symbol| symbol.name().replace([';', ' '], "_"));
    std::iter::once(frames.thread_name.replace([';', ' '], "_")).chain(functions).collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(seconds: &str) -> HashMap<String, String> {
        HashMap::from([("seconds".to_owned(), seconds.to_owned())])
    }

    #[tokio::test]
    async fn shows_who_computes_to_one_at_a_time() {
        let busy = std::thread::Builder::new().name("busy".to_owned());
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let until = std::sync::Arc::clone(&stop);
        let busy = busy.spawn(move || {
            let mut sum = 0_u64;
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(1));
            }
        });
        let query = query("3");
        let (one, other) = tokio::join!(page(&query), page(&query));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.unwrap().join().unwrap();
        let (shown, refused) = if one.is_ok() { (one, other) } else { (other, one) };
        let shown = shown.unwrap();
        let line = shown.lines().find(|line| line.starts_with("busy;")).unwrap();
        let (stack, samples) = line.rsplit_once(' ').unwrap();
        assert!(stack.contains("shows_who_computes") && samples.parse::<u64>().unwrap() > 0, "{shown}");
        assert_eq!(refused.unwrap_err().status(), StatusCode::CONFLICT);
    }

    #[test]
    fn a_time_without_end_is_refused() {
        for bad in ["0", "31", "-1", "x", ""] {
            assert!(matches!(time(&query(bad)), Err(ProfileError::Seconds(text)) if text == bad));
        }
        assert_eq!(time(&HashMap::new()).unwrap(), Duration::from_secs(USUAL));
    }
}
