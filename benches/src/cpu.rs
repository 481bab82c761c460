//! Processor time, as the kernel accounts it.

use std::{fs, ops::Sub};

use anyhow::{Context, Result};
use nix::{
    sys::resource::{UsageWho, getrusage},
    unistd::{SysconfVar, sysconf},
};

/// Seconds of processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Cpu {
    /// What processes have used so far.
    pub(crate) fn of(pids: &[i32]) -> Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
            let one = parse(&stat, ticks()).with_context(|| format!("the times of process {pid}"))?;
            Ok(Self { user: sum.user + one.user, system: sum.system + one.system })
        })
    }

    /// What the programs that we ran to their ends have used so far.
    pub(crate) fn of_children() -> Result<Self> {
        let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        #[expect(clippy::cast_precision_loss, reason = "microseconds have not that many digits")]
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Ok(Self { user: seconds(used.user_time()), system: seconds(used.system_time()) })
    }

    /// Both kinds.
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

/// What the whole machine was busy with so far.
pub(crate) fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq; what follows is counted in them, or not ours.
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = fields.as_slice() else {
        anyhow::bail!("/proc/stat begins with {first:?}")
    };
    Ok((user + nice + system + irq + softirq) / ticks())
}

#[expect(clippy::cast_precision_loss, reason = "it is 100")]
fn ticks() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

fn parse(stat: &str, ticks: f64) -> Option<Cpu> {
    // The second field is the program's name in parentheses, which may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || Some(fields.next()?.parse::<f64>().ok()? / ticks);
    Some(Cpu { user: next()?, system: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_told_apart_whatever_the_program_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 3 0 1 2 3";
        assert_eq!(parse(stat, 100.0), Some(Cpu { user: 2.5, system: 0.5 }));
    }
}
