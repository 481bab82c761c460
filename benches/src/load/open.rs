//! The open loop: requests fall due at fixed times, and a latency counts from then, also if the connection was still
//! waiting for the answer before. So a server that stalls is not spared the requests that it would have kept waiting.
//!
//! A thread per connection, as sleeping threads wake within microseconds and a runtime's timers within a millisecond.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::prctl;

use super::{Latencies, Report, http};

pub(super) fn run(to: SocketAddr, connections: usize, rate: f64, span: Duration) -> Result<Report> {
    let gap = Duration::try_from_secs_f64(1.0 / rate).context("the rate")?;
    let mine = gap * u32::try_from(connections)?;
    let streams: Vec<TcpStream> = (0..connections).map(|_| connect(to)).collect::<io::Result<_>>()?;
    let began = Instant::now();
    let threads: Vec<_> = (0..)
        .zip(streams)
        .map(|(number, stream)| {
            let mut latencies = Latencies::new()?;
            let first = began + gap * number;
            anyhow::Ok(thread::spawn(move || {
                schedule(stream, first, mine, began + span, &mut latencies).map(|()| latencies)
            }))
        })
        .collect::<Result<_>>()?;
    let mut all = Latencies::new()?;
    for thread in threads {
        all.add(&thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??)?;
    }
    Ok(all.report(began.elapsed()))
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Latencies::LONGEST))?;
    Ok(stream)
}

fn schedule(
    mut stream: TcpStream,
    first: Instant,
    gap: Duration,
    until: Instant,
    latencies: &mut Latencies,
) -> io::Result<()> {
    // The kernel may else be 50 us late.
    prctl::set_timerslack(1)?;
    let mut answer = [0; 2048];
    let mut due = first;
    while due < until {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(http::KEEP)?;
        let (mut read, mut length) = (0, None);
        while length.is_none_or(|length| read < length) {
            let room = answer.get_mut(read..).unwrap_or_default();
            match stream.read(room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
            length = length.or_else(|| http::length(answer.get(..read).unwrap_or_default()));
        }
        latencies.record(due.elapsed());
        due += gap;
    }
    Ok(())
}
