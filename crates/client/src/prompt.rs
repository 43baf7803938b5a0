//! Questions that only a person can answer, asked with no connection open.

use std::path::Path;

use zeroize::Zeroizing;

use crate::host_keys::HostKeyQuestion;

/// Who answers questions. Every method may block for as long as a person takes: it is called on a
/// thread of its own, and no connection waits for the answer.
pub trait Prompt: Send + Sync {
    /// Whether a host key that is not known is to be trusted, and remembered.
    fn host_key(&self, question: &HostKeyQuestion) -> Answer;

    /// The passphrase of an encrypted key that the server would accept; `None` gives up. `attempt`
    /// counts from 1.
    fn passphrase(&self, key: &LockedIdentity<'_>, attempt: u32) -> Option<Zeroizing<Vec<u8>>>;

    /// Something that a person may want to know and that stops nothing, in one line without its
    /// end: a host that was added, a key file that can't be used.
    fn notice(&self, notice: &Notice) {
        let _ = notice;
    }
}

/// Something that a person may want to know; its text is safe to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A host was added to `known_hosts` at first sight.
    HostAdded(String),
    /// Something was passed over that could matter.
    PassedOver(String),
    /// A line that ssh, or the login shell behind it, has printed.
    Ssh(String),
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::HostAdded(text) | Self::PassedOver(text) => f.write_str(text),
            Self::Ssh(line) => write!(f, "ssh: {line}"),
        }
    }
}

/// What a person said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Yes,
    /// No.
    No,
    /// There is nobody to be asked.
    Nobody,
}

/// An encrypted key.
#[derive(Clone, Copy, Debug)]
pub struct LockedIdentity<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Its fingerprint, as `ssh-keygen -l` prints it.
    pub fingerprint: &'a str,
    /// Its comment; escape it before showing it.
    pub comment: &'a str,
}

/// Nobody is there: unknown hosts are refused, and encrypted keys stay locked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPrompt;

impl Prompt for NoPrompt {
    fn host_key(&self, _question: &HostKeyQuestion) -> Answer {
        Answer::Nobody
    }

    fn passphrase(&self, _key: &LockedIdentity<'_>, _attempt: u32) -> Option<Zeroizing<Vec<u8>>> {
        None
    }
}
