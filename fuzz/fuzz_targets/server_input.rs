//! A server's connection against any client.
#![no_main]

#[path = "../../crates/proto/tests/rig/mod.rs"]
#[allow(dead_code, reason = "each target uses a part of the rig")]
mod rig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| rig::decoders::server_input(data));
