//! What is on the wire: packets captured by `tcpdump`, and what their TCP segments carry.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{lab::Lab, place::Place, process::Process, wait::until};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// The TCP segments that were captured, in order.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Every segment, those without payload too.
    pub segments: Vec<Segment>,
}

/// One captured TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddr,
    /// For whom.
    pub destination: SocketAddr,
    /// Whether it opens a connection (SYN without ACK).
    pub opens: bool,
    /// Whether it resets a connection.
    pub resets: bool,
    /// What it carries, as far as the capture kept it.
    pub payload: Vec<u8>,
}

impl Lab {
    /// Captures TCP on an interface of a place: `br0` of the fabric sees everything between hosts, `cni0` of a node
    /// everything between its pods. Returns when the capture runs.
    ///
    /// # Errors
    /// If `tcpdump` does not start.
    pub fn capture(&self, place: impl Into<Place>, interface: &str) -> Result<Capture> {
        let place = place.into();
        // Several may run at once, in this process and in others that are attached to the lab.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tcpdump-{interface}-{}-{number}", std::process::id());
        let file = self.paths().captures().join(format!("{place}.{name}.pcap"));
        let argv = tcpdump(interface, &file);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let process = self.spawn(place, &name, &argv)?;
        Capture::running(process, file)
    }

    /// [`Self::capture`] on the bridge that joins all hosts.
    ///
    /// # Errors
    /// If `tcpdump` does not start.
    pub fn capture_fabric(&self) -> Result<Capture> {
        self.capture(Place::Fabric, "br0")
    }
}

/// The command that captures TCP on an interface into a file.
#[must_use]
pub fn tcpdump(interface: &str, file: &Path) -> Vec<String> {
    let file = file.display().to_string();
    let argv =
        ["tcpdump", "-i", interface, "-w", &file, "-U", "--immediate-mode", "-n", "-B", "16384", "-Z", "root", "tcp"];
    argv.map(str::to_owned).into()
}

impl Capture {
    /// Waits until a [`tcpdump`] that was started captures.
    ///
    /// # Errors
    /// If it does not, with what it said.
    pub fn running(process: Process, file: PathBuf) -> Result<Self> {
        process.wait_for_output("listening on", Duration::from_secs(10))?;
        Ok(Self { process, file })
    }

    /// Ends the capture and reads what it got.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn finish(self) -> Result<Wire> {
        // What was sent a moment ago may still be on its way to the file: wait until it stops growing.
        let size = || fs::metadata(&self.file).map_or(0, |file| file.len());
        let mut last = (size(), 0);
        until(Duration::from_secs(3), "the capture to settle", || {
            let now = size();
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            last.1 >= 6
        })
        .ok();
        self.process.signal(Signal::SIGINT)?;
        until(Duration::from_secs(5), "tcpdump to end", || !self.process.is_alive())?;
        Wire::read(&self.file)
    }
}

impl Wire {
    /// Reads a capture file of the classic format.
    fn read(file: &Path) -> Result<Self> {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&bytes).with_context(|| format!("reading {}", file.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        const HEADER: usize = 24;
        const RECORD: usize = 16;
        let header = bytes.get(..HEADER).context("the capture has no header")?;
        ensure!(
            header.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]),
            "the capture is not of the classic little-endian format"
        );
        ensure!(header.get(20..24) == Some(&[1, 0, 0, 0]), "the capture is not of Ethernet frames");
        let mut segments = Vec::new();
        let mut rest = bytes.get(HEADER..).unwrap_or_default();
        while let Some((record, after)) = rest.split_at_checked(RECORD) {
            let length = u32::from_le_bytes(record.get(8..12).context("record")?.try_into()?) as usize;
            // The last frame may be cut short.
            let Some((frame, next)) = after.split_at_checked(length) else { break };
            segments.extend(segment(frame));
            rest = next;
        }
        Ok(Self { segments })
    }

    /// Whether a text can be read in any segment.
    #[must_use]
    pub fn shows(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// In how many segments a text can be read.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        let needle = text.as_bytes();
        let has = |segment: &&Segment| segment.payload.windows(needle.len().max(1)).any(|window| window == needle);
        self.segments.iter().filter(has).count()
    }

    /// The part of the capture whose segments have a port on either side.
    #[must_use]
    pub fn on_port(&self, port: u16) -> Self {
        self.filter(|one| one.source.port() == port || one.destination.port() == port)
    }

    /// The part of the capture that went from or to an address.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Self {
        self.filter(|one| one.source.ip() == address || one.destination.ip() == address)
    }

    /// The segments that fulfil a condition.
    #[must_use]
    pub fn filter(&self, keep: impl Fn(&Segment) -> bool) -> Self {
        Self { segments: self.segments.iter().filter(|one| keep(one)).cloned().collect() }
    }

    /// How many bytes of payload were captured.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|one| one.payload.len()).sum()
    }

    /// How many connections were opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.segments.iter().filter(|one| one.opens).count()
    }

    /// How many segments begin with a TLS record.
    #[must_use]
    pub fn tls_records(&self) -> usize {
        let begins = |one: &&Segment| matches!(one.payload.as_slice(), [20..=23, 3, 0..=4, ..]);
        self.segments.iter().filter(begins).count()
    }
}

/// The TCP segment in an Ethernet frame, if there is one.
fn segment(frame: &[u8]) -> Option<Segment> {
    let kind = frame.get(12..14)?;
    let packet = frame.get(14..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match kind {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
            (*packet.get(9)? == 6).then_some(())?;
            // Padding of short frames is no payload; offloaded frames may declare no length.
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            (v4(packet.get(12..16)?)?, v4(packet.get(16..20)?)?, packet.get(header..end)?)
        }
        [0x86, 0xdd] => {
            (*packet.get(6)? == 6).then_some(())?;
            let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
            let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
            (v6(packet.get(8..24)?)?, v6(packet.get(24..40)?)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let (data, flags) = (usize::from(tcp.get(12)? >> 4) * 4, *tcp.get(13)?);
    Some(Segment {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        opens: flags & 0x12 == 0x02,
        resets: flags & 0x04 != 0,
        payload: tcp.get(data..).unwrap_or_default().to_vec(),
    })
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_padded_frame_has_no_payload() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x1f, 0x90, 0x3a, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
        frame.extend([0; 6]);
        let found = segment(&frame).unwrap();
        assert_eq!(
            (found.source, found.destination),
            ("10.0.0.1:8080".parse().unwrap(), "10.0.0.2:15008".parse().unwrap())
        );
        assert!(found.opens && found.payload.is_empty());
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(frame in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..3) {
            let mut frame = frame;
            if let (Some(at), Some(&kind)) = (frame.get_mut(12..14), [[0x08, 0x00], [0x86, 0xdd], [0, 0]].get(kind as usize)) {
                at.copy_from_slice(&kind);
            }
            segment(&frame);
            Wire::parse(&frame).ok();
        }
    }
}
