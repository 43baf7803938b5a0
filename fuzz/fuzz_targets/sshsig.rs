//! The verifier of signatures: a public key behind its length, and an envelope.
#![no_main]

use afar_net::sshsig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let Some((key, envelope)) = rest.split_at_checked(length) else { return };
    if let Ok(verified) = sshsig::verify(key, envelope, b"message") {
        assert_eq!(verified.blob().as_bytes(), key);
        assert!(sshsig::verify(key, envelope, b"another").is_err());
    }
});
