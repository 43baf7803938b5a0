//! `afar stdio`: the protocol over stdin and stdout, for `ssh://`.

use std::io::{IsTerminal as _, stdin, stdout};

use afar_server::stdio::serve_stdio;

use crate::commands::executable;
use crate::console::say;
use crate::exit::Exit;

/// Relays until one side has ended.
pub(crate) fn cmd_stdio() -> Exit {
    if stdin().is_terminal() || stdout().is_terminal() {
        say("stdio: this speaks afar's protocol on stdin and stdout, not to a person; \
             `afar run ssh://HOST` starts it on HOST");
        return Exit::Failed;
    }
    let served = executable().and_then(|executable| serve_stdio(&executable));
    match served {
        Ok(()) => Exit::Status(0),
        // Whoever has closed our stdout does not want to know.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Failed,
        Err(error) => {
            say(&format!("stdio: {error}"));
            Exit::Failed
        }
    }
}
