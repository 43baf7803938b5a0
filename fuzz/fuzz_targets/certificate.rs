//! The reader of certificates: what it takes is whole, and its checks answer.
#![no_main]

use afar_core::certificate::{Certificate, UserCheck};
use afar_core::key::PublicKeyBlob;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(blob) = PublicKeyBlob::from_wire(data.to_vec()) else { return };
    let Ok(certificate) = Certificate::parse(&blob) else { return };
    let signature = certificate.signature();
    let length = u32::try_from(signature.len()).expect("a certificate is small");
    let whole = [certificate.signed(), &length.to_be_bytes(), signature].concat();
    assert_eq!(whole, data);
    let names: Vec<&str> = certificate.principals().iter().map(String::as_str).collect();
    let check = UserCheck { names: &names, now_s: 1_795_341_600, source: Some([10, 0, 0, 1].into()) };
    if let Ok(restrictions) = certificate.check_user(check) {
        assert!(!names.is_empty() && !restrictions.expired(1_795_341_600));
        assert!(certificate.check_host(names[0], 1_795_341_600).is_err());
    }
});
