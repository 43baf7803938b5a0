//! The reader of handed-off connections: what it takes it writes, byte for byte.
#![no_main]

use afar_net::hand_off::HandOff;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(state) = HandOff::decode(data) {
        assert_eq!(*state.encode(), data);
    }
});
