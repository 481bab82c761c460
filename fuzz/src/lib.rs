//! Fuzz targets: functions of bytes that somebody else chose. Each asserts what must hold whatever the bytes are, and
//! not only that nothing panics: what was read is written and read again as the same, bounds are kept, and simple
//! rules written down once more here agree with the code.
//!
//! | who runs them | with what |
//! |---|---|
//! | `./x fuzz`, `./x test` | libFuzzer, which looks for inputs that reach new code (`main.rs`) |
//! | `cargo test` | the corpus, and a few changes of each of its files (`tests/replay.rs`) |
//!
//! `corpus/TARGET/` has a few dozen small files for each: some written by hand, the others found.

#![expect(clippy::expect_used, reason = "a target that fails shall end its run")]

mod cni;
mod discovery;
mod enrolment;
mod frames;
mod identity;
mod manifests;
mod tunnel;

/// A name, and what is run with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("address", discovery::address),
    ("authorization", discovery::authorization),
    ("certificate", identity::certificate),
    ("cni", cni::network_configuration),
    ("connect", tunnel::connect),
    ("frames", frames::tunnel),
    ("headers", tunnel::headers),
    ("manifests", manifests::read),
    ("names", identity::names),
    ("node", enrolment::node),
    ("plugin", enrolment::plugin),
    ("spiffe", identity::spiffe),
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.into_iter().find_map(|(known, run)| (known == name).then_some(run))
}
