//! The reader of private key files, as a server reads its host key.
#![no_main]

use afar_net::host_key::HostKey;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(fault) = HostKey::from_openssh(data) {
        assert!(!fault.to_string().contains('\n'));
    }
});
