//! Afar's command line: one binary for the client, the server and the supervisor.
//!
//! What a command does is in [`commands`], one file each; what it ends with is one type, in
//! [`exit`]. Data goes to stdout, everything else to stderr, and an error is one line.

mod args;
mod commands;
mod config;
mod console;
mod exit;
mod line_editor;
mod prompt;
mod repl;
mod run;
mod settings;
mod tty;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::console::say;
use crate::exit::Exit;

fn main() -> ExitCode {
    afar_sys::memory::keep_freed_memory();
    dispatch(std::env::args_os().collect()).into_code()
}

fn dispatch(argv: Vec<OsString>) -> Exit {
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Run(args) => commands::run::cmd_run(*args),
        Command::Shell(args) => commands::shell::cmd_shell(*args),
        Command::Repl(args) => commands::repl::cmd_repl(args),
        Command::Ps(args) => commands::ps::cmd_ps(&args),
        Command::Logs(args) => commands::logs::cmd_logs(*args),
        Command::Attach(args) => commands::attach::cmd_attach(args),
        Command::Wait(args) => commands::wait::cmd_wait(args),
        Command::Kill(args) => commands::kill::cmd_kill(&args),
        Command::Rm(args) => commands::rm::cmd_rm(&args),
        Command::Demo(args) => commands::demo::cmd_demo(args),
        Command::Serve(args) => commands::serve::cmd_serve(args),
        Command::Classic(args) => commands::classic::cmd_classic(args),
        Command::Stdio(_) => commands::stdio::cmd_stdio(),
        Command::Keys(args) => commands::keys::cmd_keys(&args),
        Command::Trust(args) => commands::trust::cmd_trust(args),
        Command::Config(args) => commands::config::cmd_config(&args),
        Command::Completions(args) => commands::completions::cmd_completions(&args),
        Command::Man(args) => commands::man::cmd_man(&args),
        Command::Supervisor(args) => commands::supervisor::cmd_supervisor(args),
        Command::AsUser(args) => commands::as_user::cmd_as_user(args),
    }
}

/// Help was asked for, or the arguments can't be read: the one goes to stdout and is no failure.
fn usage(error: &clap::Error) -> Exit {
    if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        say(&usage_line(&error.render().to_string()));
        return Exit::Failed;
    }
    // Whoever closed the stream does not want to read it.
    let _ = error.print();
    if error.use_stderr() { Exit::Failed } else { Exit::Status(0) }
}

/// What is wrong with the arguments, as one line like every other error; the paragraphs of the
/// parser's text are joined, and the usage at its end is left to `--help`.
fn usage_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let mut line = String::from("usage: ");
    let mut paragraph_ended = false;
    for part in text.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        if part.is_empty() {
            paragraph_ended = true;
            continue;
        }
        if !line.ends_with(' ') {
            line.push_str(if paragraph_ended { "; " } else { " " });
        }
        line.push_str(part);
        paragraph_ended = false;
    }
    line.push_str("; nothing was started; see --help");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(argv: &[&str]) -> String {
        usage_line(&Cli::try_parse_from(argv).unwrap_err().render().to_string())
    }

    #[test]
    fn a_usage_error_is_one_line() {
        assert_eq!(
            line(&["afar", "run", "host", "--fanuot", "ls"]),
            "usage: unexpected argument '--fanuot' found; tip: to pass '--fanuot' as a value, use \
             '-- --fanuot'; nothing was started; see --help"
        );
        let missing = line(&["afar", "run"]);
        assert!(missing.contains("<TARGET>") && !missing.contains('\n'), "{missing}");
        let bad = line(&["afar", "run", "--timeout", "soon", "host", "true"]);
        assert!(bad.contains("--timeout") && bad.contains("such as 30s"), "{bad}");
    }
}
