//! Sequences of operations on a pair of connections; the same interpreter as in the stable tests.
#![no_main]

#[path = "../../crates/proto/tests/rig/mod.rs"]
#[allow(dead_code, reason = "each target uses a part of the rig")]
mod rig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| rig::operations::run(data));
