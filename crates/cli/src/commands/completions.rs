//! `afar completions SHELL`: what a shell needs to complete afar's arguments.

use clap::CommandFactory as _;

use crate::args::{Cli, CompletionsArgs};
use crate::console::write_stdout;
use crate::exit::Exit;

/// Prints the completions.
pub(crate) fn cmd_completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(), "afar", &mut script);
    write_stdout(&script)
}

/// The command line without what is not for people.
pub(crate) fn visible() -> clap::Command {
    let whole = Cli::command();
    let shown: Vec<clap::Command> =
        whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut visible = clap::Command::new("afar")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommands(shown);
    if let Some(about) = whole.get_about() {
        visible = visible.about(about.clone());
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_completions_of_what_is_for_people() {
        for shell in
            [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
        {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(), "afar", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("--known-hosts") || script.contains("known-hosts"), "{shell}");
            // As each shell's script names a subcommand.
            let offers = |name: &str| {
                [format!("afar__subcmd__{name})"), format!("({name})\n"), format!("-a \"{name}\"")]
                    .iter()
                    .any(|form| script.contains(form))
            };
            assert!(offers("run") && offers("serve"), "{shell}");
            assert!(!offers("supervisor") && !offers("as-user"), "{shell}");
        }
    }
}
