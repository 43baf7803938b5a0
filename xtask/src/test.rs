//! `cargo xtask test`: every test of the workspace, counted.

use std::io::{BufRead as _, BufReader};
use std::ops::AddAssign;
use std::process::Stdio;
use std::time::Instant;

use crate::failure::{Failure, Result};
use crate::peers;
use crate::say;
use crate::workspace::{Workspace, in_ci, run_step, shown};

/// What cargo's test programs said at their ends, summed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) filtered_out: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.filtered_out += other.filtered_out;
    }
}

/// Runs everything and prints the closing line. `arguments` go to cargo test as they are.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let started = Instant::now();
    let outcome = run_all(workspace, arguments)?;
    let tally = outcome.tally;
    let verdict = outcome.verdict();
    if let Err(failure) = &verdict {
        say::note(format_args!("test: {failure}"));
    }
    say::line(format_args!(
        "afar: {} passed, {} failed in {:.0} s",
        tally.passed,
        tally.failed,
        started.elapsed().as_secs_f64()
    ));
    verdict.map_err(|_| Failure::Told)
}

/// The sum, and what was wrong apart from failed tests.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    complaints: Vec<String>,
}

impl Outcome {
    /// An error when anything failed, was skipped in CI, or when nothing ran at all.
    pub(crate) fn verdict(&self) -> Result<()> {
        let mut complaints = self.complaints.clone();
        if self.tally.failed > 0 {
            complaints.push(format!("{} tests failed", self.tally.failed));
        }
        if self.tally.passed + self.tally.failed == 0 {
            complaints.push("no test ran".to_owned());
        }
        if self.tally.ignored > 0 && in_ci() {
            complaints.push(format!("{} tests were ignored, which CI forbids", self.tally.ignored));
        }
        if complaints.is_empty() { Ok(()) } else { Err(Failure::Check(complaints.join("; "))) }
    }
}

/// The tests without the closing line, for `ci` to put its own.
pub(crate) fn run_all(workspace: &Workspace, arguments: &[String]) -> Result<Outcome> {
    peers::ensure(peers::FOR_TESTS)?;
    // The end-to-end tests start the program itself, which cargo does not build for other
    // crates' tests: it is built here, and named to them.
    run_step(&mut workspace.cargo(&["build", "--package", "afar", "--bin", "afar"]))?;
    let mut outcome = Outcome { tally: Tally::default(), complaints: Vec::new() };
    if arguments.is_empty() {
        let everything = ["--workspace", "--all-targets"].map(str::to_owned);
        cargo_test(workspace, &everything, &mut outcome)?;
        // Cargo knows no way to ask for these together with the rest.
        cargo_test(workspace, &["--workspace", "--doc"].map(str::to_owned), &mut outcome)?;
    } else if arguments.iter().any(|word| SELECTIONS.iter().any(|start| word.starts_with(start))) {
        cargo_test(workspace, arguments, &mut outcome)?;
    } else {
        let mut filtered = vec!["--workspace".to_owned()];
        filtered.extend_from_slice(arguments);
        cargo_test(workspace, &filtered, &mut outcome)?;
    }
    Ok(outcome)
}

/// With one of these, the caller says which crates are tested; without, it is all of them.
const SELECTIONS: [&str; 4] = ["-p", "--package", "--workspace", "--manifest-path"];

/// Runs one cargo test, passes its output on line by line, and adds what the lines say.
fn cargo_test(workspace: &Workspace, arguments: &[String], outcome: &mut Outcome) -> Result<()> {
    let mut command = workspace.cargo(&["test", "--no-fail-fast"]);
    command
        .args(arguments)
        .env("AFAR_BIN", workspace.built("debug", "afar"))
        // A test must not depend on how the person who runs it has set up ssh or a terminal.
        .env_remove("SSH_AUTH_SOCK")
        .stdout(Stdio::piped());
    let shown = shown(&command);
    say::note(format_args!("$ {shown}"));
    let mut child = command.spawn().map_err(Failure::io(format!("run `{shown}`")))?;
    let Some(stdout) = child.stdout.take() else {
        return Err(Failure::Check(format!("`{shown}` has no output to read")));
    };
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Tests may print bytes that are no UTF-8; `lines()` would stop there.
        let read = reader
            .read_until(b'\n', &mut line)
            .map_err(Failure::io(format!("read the output of `{shown}`")))?;
        if read == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        say::line(text);
        if let Some(tally) = parse_result(text) {
            outcome.tally += tally;
        }
    }
    let status = child.wait().map_err(Failure::io(format!("wait for `{shown}`")))?;
    if !status.success() {
        outcome.complaints.push(format!("`{shown}` failed: {status}"));
    }
    Ok(())
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished …`.
fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for part in counts.split("; ") {
        let Some((number, what)) = part.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "passed" => tally.passed = number,
            "failed" => tally.failed = number,
            "ignored" => tally.ignored = number,
            "filtered out" => tally.filtered_out = number,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; \
                        2 filtered out; finished in 0.01s";
    const BAD: &str = "test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; \
                       0 filtered out; finished in 0.01s";

    fn outcome(passed: u64, failed: u64) -> Outcome {
        let tally = Tally { passed, failed, ..Tally::default() };
        Outcome { tally, complaints: Vec::new() }
    }

    #[test]
    fn result_lines_are_summed() {
        let mut sum = Tally::default();
        for line in ["running 3 tests", GOOD, "test a ... ok", BAD] {
            sum += parse_result(line).unwrap_or_default();
        }
        assert_eq!(sum, Tally { passed: 6, failed: 4, ignored: 1, filtered_out: 2 });
    }

    #[test]
    fn nothing_run_is_a_failure() {
        assert!(outcome(0, 0).verdict().is_err());
        assert!(outcome(1, 0).verdict().is_ok());
        assert!(outcome(1, 1).verdict().is_err());
    }

    #[test]
    fn a_broken_build_is_a_failure_whatever_passed_before() {
        let mut broken = outcome(5, 0);
        broken.complaints.push("`cargo test` failed".to_owned());
        assert!(broken.verdict().is_err());
    }
}
