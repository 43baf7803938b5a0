//! `cargo xtask fuzz`: the fuzz targets, each for a while, on nightly with cargo-fuzz.

use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};
use crate::say;
use crate::workspace::{Workspace, run_step};

const HOW_TO_INSTALL: &str = "\
fuzzing needs a nightly compiler and cargo-fuzz:
  rustup toolchain install nightly
  cargo install cargo-fuzz";

const SECONDS_DEFAULT: u64 = 60;

/// Runs one target, or all of them in turn; the first crash stops and leaves its input in
/// `fuzz/artifacts`.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let asked = Asked::parse(arguments)?;
    let all = targets(workspace)?;
    let chosen: Vec<&String> = match &asked.target {
        Some(name) => all.iter().filter(|target| *target == name).collect(),
        None => all.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(Failure::Usage(format!("no such fuzz target; there are: {}", all.join(" "))));
    }
    for target in chosen {
        let limit = format!("-max_total_time={}", asked.seconds);
        run_step(cargo_fuzz(workspace).args(["run", target, "--", &limit]))?;
    }
    say::line("fuzz: no crash found");
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Asked {
    target: Option<String>,
    seconds: u64,
}

impl Asked {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut asked = Self { target: None, seconds: SECONDS_DEFAULT };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            if word == "--seconds" {
                let value = words.next().and_then(|value| value.parse().ok());
                asked.seconds = value
                    .filter(|seconds| *seconds > 0)
                    .ok_or_else(|| Failure::Usage("--seconds takes a number above 0".to_owned()))?;
            } else if word.starts_with('-') || asked.target.is_some() {
                return Err(Failure::Usage(
                    "usage: cargo xtask fuzz [TARGET] [--seconds N]".to_owned(),
                ));
            } else {
                asked.target = Some(word.clone());
            }
        }
        Ok(asked)
    }
}

/// The names of the targets, from cargo-fuzz itself; failing to list them means that it (or the
/// nightly compiler) is not installed.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let output =
        cargo_fuzz(workspace).arg("list").output().map_err(Failure::io("run cargo fuzz"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Environment(format!("{}\n{HOW_TO_INSTALL}", said.trim_end())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect())
}

/// The cargo that started us is the stable toolchain's own binary: it knows no `+nightly`. The one
/// on PATH is rustup's, which picks the toolchain by this variable.
fn cargo_fuzz(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command
        .arg("fuzz")
        .env("RUSTUP_TOOLCHAIN", "nightly")
        .env_remove("CARGO")
        .current_dir(workspace.root())
        .stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Asked> {
        Asked::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_options_are_read_in_any_order() {
        let expected = Asked { target: Some("frame".to_owned()), seconds: 5 };
        assert_eq!(parse(&["frame", "--seconds", "5"]).unwrap(), expected);
        assert_eq!(parse(&["--seconds", "5", "frame"]).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [&["--seconds"][..], &["--seconds", "0"], &["a", "b"], &["--what"]] {
            assert!(matches!(parse(words), Err(Failure::Usage(_))), "{words:?}");
        }
    }
}
