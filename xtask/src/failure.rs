//! What can end an xtask command, sorted by whose fault it is.

use std::fmt;
use std::io;

/// The result of an xtask step.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a command stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asked for something that does not exist.
    Usage(String),
    /// This machine lacks something; the text says what and how to get it.
    Environment(String),
    /// The project itself failed a check; details were printed when they were found.
    Check(String),
    /// Something failed, and its closing line, which is to be the last one, has been printed.
    Told,
    /// A system call or a program of this machine failed.
    Io {
        /// What was being done, as in "cannot {doing}".
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Failure {
    /// For `map_err`: `Failure::io("read the file")` turns an I/O error into a failure.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// 2 for a usage error, as shells have it, and 1 for everything else.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Environment(_) | Self::Check(_) | Self::Told | Self::Io { .. } => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Environment(text) | Self::Check(text) => f.write_str(text),
            Self::Told => f.write_str("failed, as told above"),
            Self::Io { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}
