//! The reader of grants: what it takes it writes, and the same again.
#![no_main]

use afar_core::policy::Grant;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(grant) = Grant::decode(data) {
        assert_eq!(Grant::decode(&grant.encode()), Ok(grant));
    }
});
