//! The readers of targets and host sets: what was read is written and read as the same.
#![no_main]

use afar_core::host_set;
use afar_core::limits::HOST_SET_NAMES_MAX;
use afar_core::target::{JobTarget, Target};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match Target::parse_bytes(data) {
        Ok(target) => {
            assert_eq!(Target::parse(&target.to_string()), Ok(target.clone()));
            if let Target::Set(set) = target
                && let Ok(names) = host_set::expand(&set, &|_| Some("member".into()))
            {
                assert!(!names.is_empty() && names.len() <= HOST_SET_NAMES_MAX);
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
    if let Ok(Ok(job)) = std::str::from_utf8(data).map(JobTarget::parse) {
        assert_eq!(JobTarget::parse(&job.to_string()), Ok(job));
    }
});
