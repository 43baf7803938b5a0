//! Afar's command line: one binary for the client, the server and the supervisor.
//!
//! What a command does is in [`commands`], one file each; what it ends with is one type, in
//! [`exit`]. Data goes to stdout, everything else to stderr, and an error is one line.

mod args;
mod commands;
mod console;
mod duration;
mod exit;
mod prompt;
mod run;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::exit::Exit;

fn main() -> ExitCode {
    dispatch(std::env::args_os().collect()).into_code()
}

fn dispatch(argv: Vec<OsString>) -> Exit {
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Run(args) => commands::run::cmd_run(*args),
        Command::Demo(args) => commands::demo::cmd_demo(args),
        Command::Serve(args) => commands::serve::cmd_serve(args),
        Command::Keys(args) => commands::keys::cmd_keys(&args),
        Command::Trust(args) => commands::trust::cmd_trust(args),
        Command::Completions(args) => commands::completions::cmd_completions(&args),
        Command::Man(args) => commands::man::cmd_man(&args),
        Command::Supervisor => commands::supervisor::cmd_supervisor(),
    }
}

/// Help was asked for, or the arguments can't be read: the one goes to stdout and is no failure.
fn usage(error: &clap::Error) -> Exit {
    // Whoever closed the stream does not want to read it.
    let _ = error.print();
    if error.use_stderr() { Exit::Failed } else { Exit::Status(0) }
}
