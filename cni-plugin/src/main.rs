//! Starts the CNI plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    underpass_cni::answer()
}
