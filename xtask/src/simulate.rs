//! `cargo xtask simulate`: many seeds of the simulation of jobs, or one of them with all that happens.

use crate::failure::{Failure, Result};
use crate::workspace::{Workspace, run_step};

const USAGE: &str = "usage: cargo xtask simulate [--runs N] [--seed N]";

/// A few minutes of a release build.
const RUNS_DEFAULT: u64 = 50_000;

/// Runs them; the first seed that breaks a rule ends it, and is named.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let (name, value) = variable(arguments)?;
    let cargo = ["test", "--release", "--package", "afar-core", "--test", "simulation", "--"];
    let mut command = workspace.cargo(&cargo);
    run_step(command.env(name, value.to_string()).args(["--exact", "--nocapture", TEST]))
}

/// The test that reads the variables.
const TEST: &str = "runs::fault_55_56_65_66_68_69_whatever_goes_wrong_the_history_is_true";

fn variable(arguments: &[String]) -> Result<(&'static str, u64)> {
    let usage = || Failure::Usage(USAGE.to_owned());
    match arguments {
        [] => Ok(("AFAR_SIM_RUNS", RUNS_DEFAULT)),
        [flag, value] => {
            let name = match flag.as_str() {
                "--runs" => "AFAR_SIM_RUNS",
                "--seed" => "AFAR_SIM_SEED",
                _ => return Err(usage()),
            };
            Ok((name, value.parse().map_err(|_| usage())?))
        }
        _ => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Option<(&'static str, u64)> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        variable(&words).ok()
    }

    #[test]
    fn runs_or_a_seed_and_nothing_else() {
        assert_eq!(asked(&[]), Some(("AFAR_SIM_RUNS", RUNS_DEFAULT)));
        assert_eq!(asked(&["--runs", "7"]), Some(("AFAR_SIM_RUNS", 7)));
        assert_eq!(asked(&["--seed", "0"]), Some(("AFAR_SIM_SEED", 0)));
        for wrong in [&["--runs"][..], &["--seed", "x"], &["--fast", "1"], &["7"]] {
            assert_eq!(asked(wrong), None);
        }
    }
}
