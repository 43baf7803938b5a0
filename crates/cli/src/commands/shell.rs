//! `afar shell`: a login shell on a terminal, which lasts.

use afar_client::{Command, OnDisconnect, Overflow};

use crate::args::ShellArgs;
use crate::commands::run::on_our_terminal;
use crate::commands::{job_name, launch_supervisor, settle, with_signals};
use crate::console::{say, say_failure};
use crate::exit::Exit;
use crate::run::{Leaving, RunOptions, Wanted, execute};
use crate::tty;

/// Runs the shell and ends as it does, or when its user leaves it.
pub(crate) fn cmd_shell(args: ShellArgs) -> Exit {
    if !tty::is_at_keys() {
        say(
            "usage: stdin is no terminal, so nobody could type; nothing was started; `afar run TARGET \
             -c 'sh'` reads commands from stdin, and `afar run -t` gives any program a terminal",
        );
        return Exit::Failed;
    }
    let (target, settings) = match settle(&args.target, &args.connect) {
        Ok(settled) => settled,
        Err(error) => {
            say_failure(&error, None);
            return Exit::Failed;
        }
    };
    let client = settings.client().launcher(launch_supervisor).build();
    let options = RunOptions {
        stdin: true,
        json: false,
        result: None,
        verbosity: args.connect.verbosity(),
        argv: Vec::new(),
        // A signal is the end of our window, and not of the shell.
        leaving: Leaving::AtOnce,
        job_name: job_name(&target, &args.connect),
        escape: args.escape.escape,
    };
    // What it shows while nobody looks is worth less than that it goes on.
    let shell = Command::login_shell().on_disconnect(OnDisconnect::Keep).overflow(Overflow::Drop);
    let mut shell = on_our_terminal(shell);
    for (name, value, _) in settings.env {
        shell = shell.env(name, value);
    }
    for variable in args.env {
        shell = shell.env(variable.name, variable.value);
    }
    if let Some(directory) = args.cwd {
        shell = shell.cwd(directory);
    }
    if let Some(id) = args.id {
        shell = shell.id(id);
    }
    let wanted = Wanted::Start(Box::new(shell.stdin(true)));
    with_signals(async |signals| execute(&client, &target, wanted, options, signals).await)
}
