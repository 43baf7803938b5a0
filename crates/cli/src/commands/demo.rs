//! `afar demo`: a real server, a real client and a command, all on this machine, and nothing left
//! behind.

mod place;
mod server;

use std::os::unix::ffi::OsStringExt as _;

use afar_client::{Client, SshConfig, Target};

use crate::args::DemoArgs;
use crate::commands::{account, run, with_signals};
use crate::console::{Verbosity, say};
use crate::exit::Exit;
use crate::prompt::TerminalPrompt;
use crate::run::{
    EscapeCharacter, JobName, Leaving, RunOptions, Signals, Wanted, execute, stdin_is_null,
};
use crate::tty;
use place::Place;
use server::Server;

/// Sets everything up, runs the command as `run` would, and cleans up.
pub(crate) fn cmd_demo(args: DemoArgs) -> Exit {
    if is_shell(&args) && !tty::is_at_keys() {
        let why = "a command is needed where no terminal is, such as `afar demo -- uname -a`";
        say(&format!("demo: {why}"));
        return Exit::Failed;
    }
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    // From here on a signal ends the demonstration in order.
    with_signals(async |signals| match demonstrate(args, verbosity, signals).await {
        Ok(exit) => exit,
        Err(problem) => {
            say(&format!("demo: {problem}; the command was not started"));
            Exit::Failed
        }
    })
}

fn is_shell(args: &DemoArgs) -> bool {
    args.argv.is_empty() && args.command.script.is_none()
}

/// The text of an error says what could not be set up. Nothing else runs meanwhile, so waiting for
/// the server may block.
async fn demonstrate(
    args: DemoArgs,
    verbosity: Verbosity,
    signals: Signals,
) -> Result<Exit, String> {
    let account = account().ok_or("the user database does not know who runs this")?;
    let user = account.name.into_string().map_err(|_| "the user's name is not UTF-8")?;
    let place = Place::create(&account.home)?;
    let server = Server::start(&place)?;
    place.trust(&server)?;
    if verbosity > Verbosity::Quiet {
        say(&format!(
            "demo: a server on {} with host key {}, and a client with key {}",
            server.address(),
            place.host_key_fingerprint(),
            place.user_key_fingerprint()
        ));
    }
    let client = Client::builder()
        .user(user)
        .identity(place.user_key())
        .known_hosts(place.known_hosts())
        .ssh_config(SshConfig::None)
        .agent(false)
        .delegate_for(None)
        .prompt(TerminalPrompt::new(verbosity))
        .build();
    let target = Target::parse(&server.address().to_string()).map_err(|error| error.to_string())?;
    let options = RunOptions {
        stdin: !stdin_is_null(),
        json: false,
        result: None,
        verbosity,
        argv: args.argv.iter().map(|word| word.clone().into_vec()).collect(),
        leaving: Leaving::Cancels,
        job_name: JobName::of(&target),
        escape: EscapeCharacter::TILDE,
    };
    let command = if is_shell(&args) {
        afar_client::Command::login_shell().terminal(tty::like_ours())
    } else {
        run::command(args.command, args.argv)
    };
    let wanted = Wanted::Start(Box::new(command));
    let exit = execute(&client, &target, wanted, options, signals).await;
    // In this order: what runs, then where it runs.
    drop(server);
    drop(place);
    Ok(exit)
}
