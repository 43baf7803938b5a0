//! What an agent says that it holds.
#![no_main]

use std::path::Path;

use afar_net::agent::Agent;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(held) = Agent::new(Path::new("/agent")).parse_identities(data) else { return };
    for key in held.keys {
        let blob = key.public_blob();
        assert!(data.windows(blob.len()).any(|window| window == blob));
    }
});
