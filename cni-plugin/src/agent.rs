//! Asking the node agent: one connection, one line there, one line back, before a deadline.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};
use underpass_enrolment::plugin::{MAX_LINE, PluginRequest, PluginResponse};

use crate::decide::{Attempt, Time};

/// The node agent.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

/// Until when the runtime is kept waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// So much from here.
    pub(crate) fn after(allowed: Duration) -> Self {
        Self { at: Instant::now() + allowed, allowed }
    }

    /// Whether anything is left after a pause.
    pub(crate) fn time_after(self, pause: Duration) -> Time {
        if self.left().is_ok_and(|left| left > pause) { Time::Left } else { Time::Over }
    }

    /// How much is left; an error if nothing is, because sockets take no time for endless.
    fn left(self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Agent {
    /// Asks once. Whatever is not an answer counts as the agent being away.
    pub(crate) fn ask(&self, mut request: PluginRequest, deadline: Deadline) -> Attempt {
        request.deadline_ms = deadline.left().map_or(0, answer_within);
        self.exchange(&request, deadline)
            .map_or_else(|cause| Attempt::Away(cause.describe(deadline)), Attempt::Answered)
    }

    fn exchange(&self, request: &PluginRequest, deadline: Deadline) -> Result<PluginResponse, AskError> {
        let line = request.to_line().map_err(|error| AskError::Request(error.to_string()))?;
        let mut stream = self.connect(deadline).map_err(AskError::Connect)?;
        let line = send(&mut stream, &line, deadline).and_then(|()| receive(&mut stream, deadline));
        PluginResponse::from_line(&line.map_err(AskError::Talk)?).map_err(|error| AskError::Answer(error.to_string()))
    }

    /// A connect waits while the agent's queue is full; the timeout for sending bounds that, too.
    fn connect(&self, deadline: Deadline) -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_write_timeout(Some(deadline.left()?))?;
        socket.connect(&SockAddr::unix(&self.socket)?)?;
        Ok(socket.into())
    }
}

/// Some less than the plugin waits, so that the answer that names the missing link arrives.
fn answer_within(left: Duration) -> u64 {
    const ON_THE_WAY: Duration = Duration::from_millis(500);
    let answer = left.saturating_sub(ON_THE_WAY.min(left / 10));
    u64::try_from(answer.as_millis()).unwrap_or(u64::MAX)
}

fn send(stream: &mut UnixStream, line: &[u8], deadline: Deadline) -> io::Result<()> {
    stream.set_write_timeout(Some(deadline.left()?))?;
    stream.write_all(line)
}

/// One line, however it is cut into pieces.
fn receive(stream: &mut UnixStream, deadline: Deadline) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while line.len() <= MAX_LINE {
        stream.set_read_timeout(Some(deadline.left()?))?;
        let read = match stream.read(&mut piece) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed without an answer")),
            Ok(read) => piece.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = read.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(end.map_or(read, |end| read.get(..end).unwrap_or_default()));
        if end.is_some() {
            return Ok(line);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"))
}

/// Why there is no answer.
#[derive(Debug)]
enum AskError {
    /// The answer is none.
    Answer(String),
    /// There is no connection.
    Connect(io::Error),
    /// The question is none.
    Request(String),
    /// The connection broke or nothing came.
    Talk(io::Error),
}

impl AskError {
    fn describe(self, deadline: Deadline) -> String {
        let seconds = deadline.allowed.as_secs_f64();
        match self {
            Self::Answer(problem) => format!("its answer cannot be read: {problem}"),
            Self::Request(problem) => format!("it cannot be asked: {problem}"),
            // WouldBlock is how a socket says that its timeout is over.
            Self::Connect(error) if is_timeout(&error) => format!("it took no connection within {seconds} s"),
            Self::Connect(error) => format!("cannot connect: {error}"),
            Self::Talk(error) if is_timeout(&error) => format!("it did not answer within {seconds} s"),
            Self::Talk(error) => format!("it did not answer: {error}"),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}
