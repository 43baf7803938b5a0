//! The reader of ssh_config, with a file that includes itself wherever it includes anything.
#![no_main]

use afar_core::ssh_config::{self, ConfigFile};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = ConfigFile { name: "config".into(), bytes: data.to_vec() };
    let mut load = |_: &str, _: &str| Ok(vec![file.clone()]);
    match ssh_config::resolve("web", std::slice::from_ref(&file), &mut load) {
        Ok(settings) => {
            assert_ne!(settings.port, Some(0));
            for text in [&settings.host_name, &settings.user, &settings.host_key_alias] {
                let text = text.as_deref().unwrap_or("x");
                assert!(!text.is_empty() && !text.chars().any(char::is_control));
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
});
