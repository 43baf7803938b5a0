//! `cargo xtask`: the project's own commands, one file each.

mod bench;
mod ci;
mod failure;
mod fuzz;
mod peers;
mod say;
mod simulate;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use failure::{Failure, Result};
use workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test  [CARGO TEST ARGUMENTS]       every test of the workspace, with what they need installed first
  ci                                 formatting, lints, documentation, tidy, test
  tidy                               the house style, as far as a program can check it
  bench [OPTIONS]                    afar and its peers in one run; `cargo xtask bench --help`
  fuzz  [TARGET] [--seconds N]       the fuzz targets, each for a while
  simulate [--runs N] [--seed N]     jobs in a simulated world where everything fails, by seeds";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(failure) => {
            say::note(format_args!("xtask: {failure}"));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else {
        return Err(Failure::Usage(USAGE.to_owned()));
    };
    let workspace = Workspace::find()?;
    match command.as_str() {
        "test" => test::run(&workspace, rest),
        "ci" => ci::run(&workspace, rest),
        "tidy" => tidy::run(&workspace, rest),
        "bench" => bench::run(&workspace, rest),
        "fuzz" => fuzz::run(&workspace, rest),
        "simulate" => simulate::run(&workspace, rest),
        "help" | "--help" | "-h" => {
            say::line(USAGE);
            Ok(())
        }
        other => Err(Failure::Usage(format!("no command `{other}`\n{USAGE}"))),
    }
}
