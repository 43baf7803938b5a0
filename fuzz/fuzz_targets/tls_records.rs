//! The opener of TLS records: any split of their bytes gives the same, whatever is in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| afar_net::fuzzing::tls_records(data));
