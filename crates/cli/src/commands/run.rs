//! `afar run`: one command on another machine.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use afar_client::Command;

use crate::args::{CommandArgs, LastingArgs, OnDisconnectWord, RunArgs};
use crate::commands::{job_name, launch_supervisor, settle, with_signals};
use crate::console::say_failure;
use crate::exit::Exit;
use crate::run::{Leaving, RunOptions, Wanted, execute, stdin_is_null};
use crate::tty;

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
        // On a terminal the end of our stdin is something to be typed.
        stdin: !args.no_stdin && !args.lasting.detach && (args.terminal || !stdin_is_null()),
        json: args.json,
        result: args.result,
        verbosity: args.connect.verbosity(),
        argv: args.argv.iter().map(|word| word.clone().into_vec()).collect(),
        leaving: match args.lasting.on_disconnect {
            Some(OnDisconnectWord::Keep) => Leaving::Keeps,
            Some(OnDisconnectWord::Kill) => Leaving::Kills,
            None => Leaving::Cancels,
        },
        job_name: job_name(&target, &args.connect),
        escape: args.escape.escape,
    };
    let mut command = command(args.command, args.argv).merge(args.merge);
    if args.terminal {
        command = on_our_terminal(command);
    }
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
    let wanted = Wanted::Start(Box::new(lasting(command, &args.lasting)));
    with_signals(async |signals| execute(&client, &target, wanted, options, signals).await)
}

/// The command on a terminal like ours.
pub(crate) fn on_our_terminal(command: Command) -> Command {
    let on_terminal = command.terminal(tty::like_ours());
    tty::locale().fold(on_terminal, |command, (name, value)| command.env(name, value))
}

/// The command with what makes it outlive its client, and what bounds it.
fn lasting(command: Command, args: &LastingArgs) -> Command {
    let mut command = command.detach(args.detach);
    if let Some(word) = args.on_disconnect {
        command = command.on_disconnect(word.into());
    }
    if let Some(keep) = args.keep {
        command = command.keep(keep);
    }
    if let Some(word) = args.overflow {
        command = command.overflow(word.into());
    }
    if let Some(bytes) = args.memory {
        command = command.memory_max(bytes);
    }
    if let Some(milli) = args.cpu {
        command = command.cpu_max(milli);
    }
    if let Some(pids) = args.pids {
        command = command.pids_max(pids);
    }
    command
}

/// The script, or else the argv.
pub(crate) fn command(args: CommandArgs, argv: Vec<OsString>) -> Command {
    match args.script {
        Some(script) => Command::script(script),
        None => Command::argv(argv),
    }
}
