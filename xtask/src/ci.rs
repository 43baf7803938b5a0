//! `cargo xtask ci`: everything a change has to pass, and one closing line.

use crate::failure::{Failure, Result};
use crate::say;
use crate::test::{self, Tally};
use crate::tidy;
use crate::workspace::{Workspace, run_step};

/// Runs every check even after one has failed, so that one run tells all. The closing line counts
/// tests; a check that failed counts as one failed.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        return Err(Failure::Usage("cargo xtask ci takes no arguments".to_owned()));
    }
    let mut failures = Vec::new();
    let mut note = |name: &str, result: Result<()>| {
        if let Err(failure) = result {
            say::note(format_args!("ci: {name}: {failure}"));
            failures.push(name.to_owned());
        }
    };
    note("fmt", format(workspace));
    note("clippy", clippy(workspace));
    note("doc", documentation(workspace));
    note("tidy", tidy::run(workspace, &[]));
    note("fuzz", fuzz_targets(workspace));
    let mut tally = Tally::default();
    let tested = test::run_all(workspace, &[]).and_then(|outcome| {
        tally = outcome.tally;
        outcome.verdict()
    });
    // Failed tests are counted one by one already; only a failure beyond them counts as a check.
    if tally.failed == 0 {
        note("test", tested);
    } else if let Err(failure) = tested {
        say::note(format_args!("ci: test: {failure}"));
    }
    let failed = tally.failed + u64::try_from(failures.len()).unwrap_or(u64::MAX);
    if !failures.is_empty() {
        say::note(format_args!("ci: failed: {}", failures.join(", ")));
    }
    say::line(format_args!("{} passed, {failed} failed", tally.passed));
    if failed == 0 { Ok(()) } else { Err(Failure::Told) }
}

fn format(workspace: &Workspace) -> Result<()> {
    run_step(&mut workspace.cargo(&["fmt", "--all", "--", "--check"]))
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run_step(&mut workspace.cargo(&arguments))
}

fn documentation(workspace: &Workspace) -> Result<()> {
    let arguments = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    run_step(workspace.cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The fuzz targets compile. They are a workspace of their own, which a check of the main one passes
/// by; to be run they need a nightly compiler, to be checked only to be spared libFuzzer's C++, which
/// nothing is linked with here.
fn fuzz_targets(workspace: &Workspace) -> Result<()> {
    let mut check = workspace.cargo(&["check", "--manifest-path", "fuzz/Cargo.toml", "--bins"]);
    check.env("CARGO_TARGET_DIR", workspace.target());
    run_step(check.env("CUSTOM_LIBFUZZER_PATH", "/nonexistent/libfuzzer.a"))
}
