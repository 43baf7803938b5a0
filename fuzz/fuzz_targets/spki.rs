//! The readers of public keys: each key has one form, in TLS and in SSH.
#![no_main]

use afar_net::public_key::PublicKey;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(key) = PublicKey::from_spki(data) {
        assert_eq!(key.to_spki().as_deref(), Some(data));
        assert_eq!(PublicKey::from_blob(&key.to_blob()), Ok(key));
    }
    if let Ok(key) = PublicKey::from_blob(data) {
        assert_eq!(key.to_blob(), data);
    }
});
