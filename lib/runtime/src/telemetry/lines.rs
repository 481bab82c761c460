//! Where log lines go: a bounded queue and a thread that writes. Who logs never waits; what does not fit is counted.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const QUEUE: usize = 10_000;
/// Lines that are written at once.
const BATCH: usize = 64;

/// The way to the queue; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// All before it is written.
    Flush(SyncSender<()>),
}

impl Lines {
    /// A queue, and the thread that empties it into `sink`.
    pub(super) fn to(sink: impl Write + Send + 'static) -> Self {
        Self::with_queue(sink, QUEUE)
    }

    fn with_queue(mut sink: impl Write + Send + 'static, room: usize) -> Self {
        let (queue, lines) = sync_channel(room);
        let spawned = thread::Builder::new().name("log".into()).spawn(move || write_all(&lines, &mut sink));
        let dropped = Arc::new(AtomicU64::new(0));
        if spawned.is_err() {
            // Without a thread the queue has no reader: every line counts as dropped, and nothing else fails.
            dropped.fetch_add(1, Ordering::Relaxed);
        }
        Self { queue, dropped }
    }

    /// Lines that did not fit.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was logged so far is written, but no longer than `most`: nobody may read.
    pub(super) fn flush(&self, most: Duration) {
        const STEP: Duration = Duration::from_millis(5);
        let (done, written) = sync_channel(1);
        let until = std::time::Instant::now() + most;
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if std::time::Instant::now() >= until {
                return;
            }
            message = back;
            thread::sleep(STEP);
        }
        let _late = written.recv_timeout(until.saturating_duration_since(std::time::Instant::now()));
    }
}

impl Write for &Lines {
    /// One call is one line: the formatter writes each event whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Writes until nobody can log any more. What cannot be written is lost: there is nowhere to say so.
fn write_all(lines: &Receiver<Message>, sink: &mut impl Write) {
    let mut batch = Vec::new();
    while let Ok(first) = lines.recv() {
        batch.clear();
        let mut waiting = None;
        for message in std::iter::once(first).chain(lines.try_iter().take(BATCH)) {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => {
                    waiting = Some(done);
                    break;
                }
            }
        }
        let _lost = sink.write_all(&batch).and_then(|()| sink.flush());
        if let Some(done) = waiting {
            let _nobody_waits = done.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        sync::{Mutex, PoisonError},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_flush_all_lines_are_written_in_order() {
        let sink = Shared::default();
        let lines = Lines::to(sink.clone());
        let expected: String = (0..300).map(|number| format!("line {number}\n")).collect();
        for line in expected.split_inclusive('\n') {
            (&lines).write_all(line.as_bytes()).unwrap();
        }
        lines.flush(Duration::from_secs(60));
        assert_eq!(String::from_utf8(sink.0.lock().unwrap().clone()).unwrap(), expected);
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn a_pipe_that_nobody_reads_delays_nobody_and_what_is_lost_is_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::with_queue(writer, 100);
        let line = [b'x'; 1024];
        let sent = 2000;
        // The pipe takes 64 KiB, the queue 100 lines and a batch: most of the two megabytes have nowhere to go.
        for _ in 0..sent {
            (&lines).write_all(&line).unwrap();
        }
        let most = Duration::from_millis(50);
        lines.flush(most);
        let dropped = lines.dropped();
        assert!(dropped > sent / 2, "only {dropped} of {sent} were dropped");

        drop(lines);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read.len() as u64, (sent - dropped) * line.len() as u64, "what was not dropped arrives");
    }
}
