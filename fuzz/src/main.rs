//! libFuzzer around one target, which `UNDERPASS_FUZZ_TARGET` names; libFuzzer itself reads the arguments.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

#[expect(clippy::disallowed_methods, reason = "the arguments are libFuzzer's")]
#[expect(clippy::expect_used, reason = "without a target there is nothing to run")]
fn chosen() -> fn(&[u8]) {
    let name = std::env::var("UNDERPASS_FUZZ_TARGET").expect("UNDERPASS_FUZZ_TARGET names a target");
    underpass_fuzz::target(&name).expect("UNDERPASS_FUZZ_TARGET names a target that there is")
}

fuzz_target!(|input: &[u8]| TARGET.get_or_init(chosen)(input));
