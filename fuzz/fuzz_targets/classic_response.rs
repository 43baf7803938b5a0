//! Answers of the classic protocol, as its client reads them.
#![no_main]

#[path = "../../crates/proto/tests/rig/mod.rs"]
#[allow(dead_code, reason = "each target uses a part of the rig")]
mod rig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| rig::decoders::classic_response(data));
