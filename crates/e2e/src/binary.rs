//! Finds the programs that the tests run: afar itself, and the rig's reaper.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::fail;

/// Afar: what `AFAR_BIN` names, else what cargo builds now, in the profile of the running tests.
pub fn afar() -> &'static Path {
    static AFAR: OnceLock<PathBuf> = OnceLock::new();
    AFAR.get_or_init(|| match env::var_os("AFAR_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "AFAR_BIN is {}, which is no file", path.display());
            path
        }
        None => build(),
    })
}

/// The directory that cargo has put this profile's programs into.
pub(crate) fn profile_directory() -> PathBuf {
    let test = env::current_exe().expect("a program has a path");
    let directory = test.parent().expect("a program is in a directory");
    // Test programs are in `deps`, examples in `examples`; programs are one level up.
    match directory.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => directory.parent().expect("it is in target").to_owned(),
        _ => directory.to_owned(),
    }
}

pub(crate) fn reaper() -> PathBuf {
    let path = profile_directory().join("afar-e2e-reaper");
    let missing = "cargo builds it together with the tests of this crate";
    assert!(path.is_file(), "{} is missing; {missing}", path.display());
    path
}

/// Always asks cargo, which is quick when nothing has changed: a test that passes with yesterday's
/// program says nothing.
fn build() -> PathBuf {
    let directory = profile_directory();
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = directory.parent().expect("the profile's directory is in target");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "afar", "--bin", "afar", "--profile", profile]);
    command.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    let built = command.output().expect("cargo can be run");
    if !built.status.success() {
        fail(&format!(
            "AFAR_BIN is not set, and {command:?} failed:\n{}",
            String::from_utf8_lossy(&built.stderr)
        ));
    }
    let path = directory.join("afar");
    assert!(path.is_file(), "cargo built afar, yet {} is missing", path.display());
    path
}
