//! A tiny parent for the proxy: in a container it is the first process, and starts a crashed proxy again at once, where
//! the kubelet would make its pods wait longer each time.
//!
//! It passes a wish to stop on, reaps whatever ends, and ends as the proxy did. A proxy that does not stay is given up, so
//! that the kubelet and whoever watches it see it.

use std::{
    env, io,
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// The flag that asks for it; the child is started without.
const FLAG: &str = "--supervise";
/// What clap ends with when a command line cannot be used: starting again would not help.
const USAGE: i32 = 2;
/// A proxy that lived so long was well.
const WELL: Duration = Duration::from_secs(10);
/// So many short lives in a row are no accident.
const PATIENCE: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

const STOPS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];
/// They would end a proxy with all of its connections; here they ask for nothing.
const MEANINGLESS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// What follows a proxy's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// End likewise.
    End,
    /// Start another after a pause.
    Restart(Duration),
}

/// Decides; `shorts` counts the short lives in a row, this one included if it was one.
fn next(status: ExitStatus, stopping: bool, shorts: u32) -> Next {
    if stopping || status.success() || status.code() == Some(USAGE) || shorts >= PATIENCE {
        return Next::End;
    }
    let pause = match shorts {
        0 | 1 => Duration::ZERO,
        more => FIRST_PAUSE.saturating_mul(2u32.saturating_pow(more - 2)).min(LONGEST_PAUSE),
    };
    Next::Restart(pause)
}

/// What a shell would say of the end.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Runs proxies one after the other; the exit code is that of the last one.
///
/// # Errors
/// If no proxy can be started or waited for.
pub(crate) fn run(mut signals: Signals) -> anyhow::Result<i32> {
    let mut stopping = false;
    let mut shorts = 0;
    loop {
        let begun = Instant::now();
        let mut child = start()?;
        let status = signals.until_end(&mut child, &mut stopping)?;
        shorts = if begun.elapsed() < WELL { shorts + 1 } else { 0 };
        match next(status, stopping, shorts) {
            Next::End => return Ok(code(status)),
            Next::Restart(pause) => {
                tracing::error!(%status, pause_ms = pause.as_millis(), "the proxy ended, and is started again");
                if signals.stop_within(pause)? {
                    return Ok(code(status));
                }
            }
        }
    }
}

fn start() -> anyhow::Result<Child> {
    let mut arguments = env::args_os().filter(|argument| argument != FLAG);
    let name = arguments.next().unwrap_or_default();
    Command::new("/proc/self/exe").arg0(name).args(arguments).spawn().context("start the proxy")
}

/// For the proxy: takes signals as they come, whatever its parent does with them, and is called like its parent in `ps`
/// and `pgrep`, where what was started as `/proc/self/exe` would be `exe`.
///
/// # Errors
/// As the kernel says.
pub(crate) fn be_a_child() -> nix::Result<()> {
    prctl::set_name(c"underpass-nodeproxy")?;
    SigSet::empty().thread_set_mask()
}

/// Signals as something to read.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// From now on they do nothing else, for this thread and those that it starts.
    ///
    /// # Errors
    /// As the kernel says.
    pub(crate) fn receive() -> nix::Result<Self> {
        let mut set = SigSet::empty();
        for signal in STOPS.into_iter().chain(MEANINGLESS).chain([Signal::SIGCHLD]) {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Waits for one, for that long at most; endless without.
    fn wait(&mut self, most: Option<Duration>) -> io::Result<Option<Signal>> {
        let timeout = most.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let received = self.0.read_signal()?;
        Ok(received.and_then(|info| Signal::try_from(i32::try_from(info.ssi_signo).unwrap_or_default()).ok()))
    }

    fn until_end(&mut self, child: &mut Child, stopping: &mut bool) -> anyhow::Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(child.id()).context("the proxy's process id")?);
        loop {
            // Before the first wait too: several children's ends may come as one signal.
            if let Some(status) = child.try_wait().context("wait for the proxy")? {
                return Ok(status);
            }
            reap_others(pid);
            let Some(signal) = self.wait(None).context("wait for a signal")? else { continue };
            if signal == Signal::SIGCHLD {
                continue;
            }
            if MEANINGLESS.contains(&signal) {
                tracing::warn!(%signal, "a signal that means nothing here was ignored");
                continue;
            }
            *stopping = true;
            tracing::info!(%signal, "the proxy is asked to stop");
            // Whichever it was, connections are given their time. It may just have ended; its end is seen next.
            let _ended = kill(pid, Signal::SIGTERM);
        }
    }

    /// True if a wish to stop comes during a pause.
    fn stop_within(&mut self, pause: Duration) -> anyhow::Result<bool> {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.wait(Some(left)).context("wait for a signal")? {
                Some(signal) if STOPS.contains(&signal) => return Ok(true),
                Some(_) => {}
                None if left.is_zero() => return Ok(false),
                None => {}
            }
        }
    }
}

/// The first process of a container inherits what others leave behind; none of it stays as a zombie. The proxy itself is
/// left for its own wait, which tells how it ended.
fn reap_others(proxy: Pid) {
    use nix::sys::wait::{Id, waitid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(ended) = waitid(Id::All, look) {
        match ended {
            WaitStatus::StillAlive => return,
            ended => match ended.pid() {
                Some(pid) if pid != proxy => drop(waitpid(pid, Some(WaitPidFlag::WNOHANG))),
                Some(_) | None => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn a_crash_is_followed_by_another_proxy_at_once_and_a_wish_by_none() {
        let (aborted, killed) = (ExitStatus::from_raw(6), ExitStatus::from_raw(9));
        let after = |milliseconds| Next::Restart(Duration::from_millis(milliseconds));
        // how it ended, whether it was asked to, short lives in a row: what follows
        for (status, stopping, shorts, expected) in [
            (killed, false, 0, after(0)),
            (killed, false, 1, after(0)),
            (aborted, false, 2, after(100)),
            (exited(101), false, 3, after(200)),
            (exited(1), false, 9, after(5000)),
            (exited(1), false, PATIENCE, Next::End),
            (killed, true, 0, Next::End),
            (exited(0), true, 0, Next::End),
            (exited(0), false, 0, Next::End),
            (exited(USAGE), false, 1, Next::End),
        ] {
            assert_eq!(next(status, stopping, shorts), expected, "{status}, {stopping}, {shorts}");
        }
        assert_eq!([exited(3), killed, exited(0)].map(code), [3, 137, 0]);
    }
}
