//! Exit statuses: what afar ends with, all of it.
//!
//! | status | of `run`, `demo`, `attach` and `wait` |
//! | --- | --- |
//! | 0–255 | the command's own status, as it is |
//! | 128+N | signal N ended the command |
//! | 124 | `--timeout` ended it |
//! | 126, 127 | it was not started: not executable, not found |
//! | 130 | it was cancelled, and the server has said so |
//! | 137 | the kernel ended it for want of memory |
//! | 255 | afar itself failed (usage errors too), it was not started for another reason, or its end is not known |
//!
//! Every other command ends with 0, or 255 if it failed; `logs` whatever the job's end was. `repl`
//! ends as the last command did. A signal that ends afar before a command could be started,
//! or while it only looks on (`wait`, `logs`), ends it as that signal does.

use std::process::ExitCode;

use afar_sys::signals::{Signal, die_of_signal};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this status.
    Status(u8),
    /// Afar itself failed, and has said so.
    Failed,
    /// As this signal ends a program that does not handle it.
    Signal(Signal),
}

impl Exit {
    /// For the runtime. Does not return for [`Exit::Signal`].
    pub(crate) fn into_code(self) -> ExitCode {
        match self {
            Self::Status(status) => ExitCode::from(status),
            Self::Failed => ExitCode::from(255),
            Self::Signal(signal) => die_of_signal(signal),
        }
    }
}
