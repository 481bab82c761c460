//! Connections that are older than a pod's capture. They go on as they are, outside of the mesh; somebody should know.

use std::{fs, io, os::fd::BorrowedFd};

use underpass_enrolment::netns;

/// The state of an established connection in the kernel's tables (`TCP_ESTABLISHED`).
const ESTABLISHED: &str = "01";

/// How many established connections a namespace has with others. To be asked before capture begins: a captured
/// connection looks the same from inside.
///
/// # Errors
/// If the namespace cannot be entered or its table not be read.
pub fn count(netns: BorrowedFd<'_>) -> io::Result<usize> {
    netns::on_thread(netns, || {
        let v4 = established(&fs::read_to_string("/proc/thread-self/net/tcp")?);
        // Not there where the kernel has no IPv6.
        let v6 = fs::read_to_string("/proc/thread-self/net/tcp6").map_or(0, |table| established(&table));
        Ok(v4 + v6)
    })?
}

/// Counts in the text of `/proc/net/tcp` or `tcp6`; what a pod says to itself does not count.
fn established(table: &str) -> usize {
    let counts = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        let address = |end: &str| end.split(':').next().unwrap_or_default().to_owned();
        state == ESTABLISHED && !is_loopback(&address(remote)) && address(local) != address(remote)
    };
    table.lines().skip(1).filter(|line| counts(line)).count()
}

/// Addresses are printed as hexadecimal words in the machine's byte order.
fn is_loopback(address: &str) -> bool {
    const V6: &str = "00000000000000000000000001000000";
    // An IPv4 address, alone or mapped into IPv6, is the last word; its first byte stands last.
    let v4 = address.len() == 8 || address.starts_with("0000000000000000FFFF0000");
    address == V6 || (v4 && address.ends_with("7F"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_of_what_counts() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        for (ends, expected) in [
            ("0A3D010A:1F90 0A00000A:C001 01", 1),
            ("0A3D010A:1F90 00000000:0000 0A", 0),
            ("0A3D010A:1F90 0A00000A:C001 06", 0),
            ("0100007F:1F90 0100007F:C001 01", 0),
            ("0500007F:1F90 0500007F:C001 01", 0),
            ("0A3D010A:1F90 0A3D010A:C001 01", 0),
            ("000061FD000000000000000001000000:1F90 000061FD000000000000000002000000:C001 01", 1),
            ("00000000000000000000000001000000:1F90 00000000000000000000000001000000:C001 01", 0),
            ("0000000000000000FFFF00000A3D010A:1F90 0000000000000000FFFF00000A00000A:C001 01", 1),
            ("0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:C001 01", 0),
            ("garbage", 0),
        ] {
            assert_eq!(established(&format!("{head}   0: {ends} 00000000:00000000\n")), expected, "{ends}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_prints_is_read_without_panic(table in "(?s).{0,400}") {
            prop_assert!(established(&table) <= table.lines().count());
        }
    }
}
