//! `afar run`: one command on another machine.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use afar_client::Command;

use crate::args::{CommandArgs, RunArgs};
use crate::commands::{block_on, launch_supervisor, settle};
use crate::console::say_failure;
use crate::exit::Exit;
use crate::run::{RunOptions, Signals, execute, stdin_is_null};

/// Runs the command and ends as it did.
pub(crate) fn cmd_run(args: RunArgs) -> Exit {
    let (target, settings) = match settle(&args.target, &args.connect) {
        Ok(settled) => settled,
        Err(error) => {
            say_failure(&error, None);
            return Exit::Failed;
        }
    };
    let client = settings.client().launcher(launch_supervisor).build();
    let options = RunOptions {
        stdin: !args.no_stdin && !stdin_is_null(),
        json: args.json,
        result: args.result,
        verbosity: args.connect.verbosity(),
        argv: args.argv.iter().map(|word| word.clone().into_vec()).collect(),
    };
    let mut command = command(args.command, args.argv).merge(args.merge);
    // Those of the command line last: the last value of a name counts.
    for (name, value, _) in settings.env {
        command = command.env(name, value);
    }
    for variable in args.env {
        command = command.env(variable.name, variable.value);
    }
    if let Some(directory) = args.cwd {
        command = command.cwd(directory);
    }
    if let Some(name) = args.session {
        command = command.session(name);
    }
    if let Some(timeout) = args.timeout {
        command = command.timeout(timeout);
    }
    if let Some(kill_after) = args.kill_after {
        command = command.kill_after(kill_after);
    }
    if let Some(id) = args.id {
        command = command.id(id);
    }
    block_on(async {
        match Signals::install() {
            Ok(signals) => execute(&client, &target, command, options, signals).await,
            Err(exit) => exit,
        }
    })
}

/// The script, or else the argv.
pub(crate) fn command(args: CommandArgs, argv: Vec<OsString>) -> Command {
    match args.script {
        Some(script) => Command::script(script),
        None => Command::argv(argv),
    }
}
