//! What the kernel says of this process, under the names that Prometheus' own libraries use.

use std::fs;

use super::catalogue;
use crate::telemetry;

/// Sets the gauges. What cannot be read is left as it was.
#[expect(clippy::cast_precision_loss, reason = "2^53 descriptors or bytes are enough")]
pub(super) fn collect() {
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The directory itself is one of them.
        catalogue::OPEN_FDS.with([]).set(entries.count().saturating_sub(1) as f64);
    }
    let limits = fs::read_to_string("/proc/self/limits").ok();
    if let Some(most) = limits.as_deref().and_then(max_fds) {
        catalogue::MAX_FDS.with([]).set(most as f64);
    }
    let status = fs::read_to_string("/proc/self/status").ok();
    if let Some(bytes) = status.as_deref().and_then(resident) {
        catalogue::RESIDENT_MEMORY.with([]).set(bytes as f64);
    }
    let (stat, machine) = (fs::read_to_string("/proc/self/stat").ok(), fs::read_to_string("/proc/stat").ok());
    if let (Some(ticks), Some(boot)) = (stat.as_deref().and_then(start), machine.as_deref().and_then(boot)) {
        catalogue::START_TIME.with([]).set(boot as f64 + ticks as f64 / TICKS_A_SECOND);
    }
    catalogue::LOG_LINES_DROPPED.with([]).absolute(telemetry::dropped_lines());
}

/// `USER_HZ`, which Linux has fixed for programs.
const TICKS_A_SECOND: f64 = 100.0;

fn max_fds(limits: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

fn resident(status: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn start(stat: &str) -> Option<u64> {
    // The name, in brackets, may hold anything; the start is the 22nd field, the 20th after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn boot(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(
            max_fds("Limit Soft\nMax open files            1024                 524288               files\n"),
            Some(1024)
        );
        assert_eq!(max_fds("Max open files            unlimited            unlimited            files\n"), None);
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 104 0 0 0 0 1 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(start(stat), Some(4242));
        assert_eq!(boot("cpu 1 2\nbtime 1700000000\nprocesses 3\n"), Some(1_700_000_000));
    }
}
