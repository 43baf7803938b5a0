//! An ssh-agent client: which keys an agent holds, and signatures by them.
//!
//! The protocol is draft-miller-ssh-agent's. Each request has a connection of its own: that costs
//! some microseconds on a unix socket, and in return a request that is given up halfway leaves
//! nothing that the next one could trip over. An agent may be a forwarded one, on a machine that
//! is not trusted, so nothing it says is believed beyond the bytes that are there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use afar_core::certificate::{Certificate, CertificateKind};
use afar_core::key::PublicKeyBlob;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::key_file::KeyFault;
use crate::public_key::{KeyKind, PublicKey};
use crate::secret_key::RSA_BITS;
use crate::ssh_wire::{self, Malformed, SshReader};

/// The largest message of an agent, either way, without its length prefix; OpenSSH has the same.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// How long an agent may take to list its keys, unless told otherwise.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an agent may take to sign, unless told otherwise: it may have to ask a person.
pub const SIGN_TIMEOUT: Duration = Duration::from_secs(60);

const SSH_AGENT_FAILURE: u8 = 5;
const SSH_AGENTC_REQUEST_IDENTITIES: u8 = 11;
const SSH_AGENT_IDENTITIES_ANSWER: u8 = 12;
const SSH_AGENTC_SIGN_REQUEST: u8 = 13;
const SSH_AGENT_SIGN_RESPONSE: u8 = 14;
const SSH_AGENT_RSA_SHA2_512: u32 = 4;

/// Why an agent was of no use.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nothing answers at the socket.
    #[error("cannot reach the ssh-agent at {path:?}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The whole request took longer than it may.
    #[error("the ssh-agent did not answer within {} s", .after.as_secs())]
    TimedOut {
        /// The limit it was over.
        after: Duration,
    },
    /// The agent closed the connection instead of answering, or the socket broke.
    #[error("the ssh-agent's connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The agent announced an answer that is larger than any may be.
    #[error("the ssh-agent announced an answer of {bytes} bytes; {FRAME_BYTES_MAX} are allowed")]
    TooLarge {
        /// The length that it stated.
        bytes: u32,
    },
    /// What is to be signed, with its key, does not fit a message.
    #[error("what is to be signed is too large for an ssh-agent")]
    RequestTooLarge,
    /// The agent's answer is not one of the protocol.
    #[error("the ssh-agent's answer is malformed")]
    Malformed,
    /// The agent said no: the key is gone, the agent is locked, or a person declined.
    #[error("the ssh-agent refused")]
    Refused,
}

impl From<Malformed> for AgentError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The agent's socket as `IdentityAgent` (ssh_config(5)) and the environment have it; `None` where
/// no agent is to be used.
///
/// `identity_agent` is the directive's value: `none`, `SSH_AUTH_SOCK`, `$NAME` or `${NAME}` for
/// another variable, else a path, where `~/` stands for `home`. Without it the variable
/// `SSH_AUTH_SOCK` decides. A variable that is unset or empty means no agent.
#[must_use]
pub fn socket_path(
    identity_agent: Option<&OsStr>,
    home: Option<&Path>,
    variable: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Option<PathBuf> {
    let from_variable =
        |name: &OsStr| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let value = identity_agent.unwrap_or(OsStr::new("SSH_AUTH_SOCK")).as_bytes();
    match value {
        b"none" | b"" => None,
        b"SSH_AUTH_SOCK" => from_variable(OsStr::new("SSH_AUTH_SOCK")),
        [b'$', b'{', name @ .., b'}'] | [b'$', name @ ..] => from_variable(OsStr::from_bytes(name)),
        [b'~', b'/', rest @ ..] => Some(home?.join(OsStr::from_bytes(rest))),
        path => Some(PathBuf::from(OsString::from_vec(path.to_vec()))),
    }
}

/// An agent at a socket. Nothing is connected until something is asked.
#[derive(Debug, Clone)]
pub struct Agent {
    path: Arc<Path>,
    list_timeout: Duration,
    sign_timeout: Duration,
}

impl Agent {
    /// The agent that listens at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), list_timeout: LIST_TIMEOUT, sign_timeout: SIGN_TIMEOUT }
    }

    /// The same with other limits for a whole request, from connecting to the last byte.
    #[must_use]
    pub fn with_timeouts(mut self, list: Duration, sign: Duration) -> Self {
        self.list_timeout = list;
        self.sign_timeout = sign;
        self
    }

    /// The agent's socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the agent holds, in its order. Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// An [`AgentError`]; no answer of an agent makes this panic or allocate more than
    /// [`FRAME_BYTES_MAX`] for it.
    pub async fn identities(&self) -> Result<Identities, AgentError> {
        let answer = self.ask(&[SSH_AGENTC_REQUEST_IDENTITIES], self.list_timeout).await?;
        self.parse_identities(&answer)
    }

    /// Reads an agent's answer, without its length prefix, to the question for its identities.
    ///
    /// # Errors
    /// [`AgentError::Refused`], [`AgentError::Malformed`].
    pub fn parse_identities(&self, answer: &[u8]) -> Result<Identities, AgentError> {
        let mut reader = expect(answer, SSH_AGENT_IDENTITIES_ANSWER)?;
        // The count is not believed: nothing is reserved for it, and the bytes run out before a
        // count that is too high does.
        let count = reader.u32()?;
        let mut identities = Identities::default();
        for _ in 0..count {
            let blob = reader.string()?;
            let comment = String::from_utf8_lossy(reader.string()?);
            match self.read_key(blob, &comment) {
                Ok(key) => identities.keys.push(key),
                Err(reason) => {
                    let comment = comment.into_owned();
                    identities.unusable.push(UnusableKey { comment, reason });
                }
            }
        }
        reader.finish()?;
        Ok(identities)
    }

    /// One key of an answer, or why it can't be used.
    fn read_key(&self, bytes: &[u8], comment: &str) -> Result<AgentKey, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let blob = PublicKeyBlob::from_wire(bytes.to_vec()).map_err(|error| text(&error))?;
        let certificate = if blob.is_certificate() {
            let certificate = Certificate::parse(&blob).map_err(|error| text(&error))?;
            if certificate.kind() != CertificateKind::User {
                return Err("the certificate is a host's".to_owned());
            }
            Some(Arc::new(certificate))
        } else {
            None
        };
        let key = PublicKey::from_blob(blob.plain().as_bytes()).map_err(|error| text(&error))?;
        if key.kind() == KeyKind::Rsa && !RSA_BITS.contains(&key.bits()) {
            return Err(KeyFault::RsaSize { bits: key.bits() }.to_string());
        }
        Ok(AgentKey {
            agent: self.clone(),
            held: bytes.into(),
            certificate,
            kind: key.kind(),
            comment: comment.into(),
        })
    }

    async fn ask(&self, request: &[u8], limit: Duration) -> Result<Vec<u8>, AgentError> {
        let whole = async {
            let mut stream = UnixStream::connect(&self.path).await.map_err(|source| {
                AgentError::Unreachable { path: self.path.to_path_buf(), source }
            })?;
            round_trip(&mut stream, request).await
        };
        tokio::time::timeout(limit, whole)
            .await
            .map_err(|_| AgentError::TimedOut { after: limit })?
    }
}

/// What an agent holds.
#[derive(Debug, Clone, Default)]
pub struct Identities {
    /// The keys and certificates that can be used.
    pub keys: Vec<AgentKey>,
    /// Those that can't.
    pub unusable: Vec<UnusableKey>,
}

/// A key in an agent that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableKey {
    /// What the agent calls it. Escape it before showing it.
    pub comment: String,
    /// Why not; may quote bytes of the agent's, so escape it too.
    pub reason: String,
}

/// A key that an agent holds, or a certificate of one.
#[derive(Debug, Clone)]
pub struct AgentKey {
    agent: Agent,
    /// What the agent knows the key by: a plain key's blob, or a certificate's.
    held: Arc<[u8]>,
    /// What is offered, if not `held`, or parsed from it.
    certificate: Option<Arc<Certificate>>,
    kind: KeyKind,
    comment: Arc<str>,
}

impl AgentKey {
    /// The SSH wire blob of what is offered: the certificate's, if there is one, else the key's.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        match &self.certificate {
            Some(certificate) => certificate.blob().as_bytes(),
            None => &self.held,
        }
    }

    /// The SSH wire blob of the plain key.
    #[must_use]
    pub fn key_blob(&self) -> &[u8] {
        match &self.certificate {
            Some(certificate) => certificate.key().as_bytes(),
            None => &self.held,
        }
    }

    /// The certificate that the key is offered by.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }

    /// The same key, offered by this certificate, which the agent need not have; `None` where that
    /// is of another key.
    #[must_use]
    pub fn with_certificate(&self, certificate: &Arc<Certificate>) -> Option<Self> {
        (certificate.key().as_bytes() == &*self.held)
            .then(|| Self { certificate: Some(Arc::clone(certificate)), ..self.clone() })
    }

    /// The type of the key, also of a certificate's.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The algorithm that the agent is asked to sign with.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self.kind {
            KeyKind::Rsa => "rsa-sha2-512",
            kind => kind.ssh_name(),
        }
    }

    /// What the agent calls the key. Escape it before showing it.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// Asks for an SSH signature blob over exactly these bytes. Whether the answer is one is for
    /// the caller to verify. Cancel-safe, as [`Agent::identities`].
    pub(crate) async fn sign_raw(&self, data: &[u8]) -> Result<Vec<u8>, AgentError> {
        let flags = if self.kind == KeyKind::Rsa { SSH_AGENT_RSA_SHA2_512 } else { 0 };
        let mut request = Vec::with_capacity(13 + self.held.len() + data.len());
        request.push(SSH_AGENTC_SIGN_REQUEST);
        ssh_wire::put_string(&mut request, &self.held);
        ssh_wire::put_string(&mut request, data);
        ssh_wire::put_u32(&mut request, flags);
        let answer = self.agent.ask(&request, self.agent.sign_timeout).await?;
        parse_signature(&answer)
    }
}

fn parse_signature(answer: &[u8]) -> Result<Vec<u8>, AgentError> {
    let mut reader = expect(answer, SSH_AGENT_SIGN_RESPONSE)?;
    let signature = reader.string()?.to_vec();
    reader.finish()?;
    Ok(signature)
}

/// The body of an answer of the type that was hoped for.
fn expect(answer: &[u8], kind: u8) -> Result<SshReader<'_>, AgentError> {
    let mut reader = SshReader::new(answer);
    match reader.u8()? {
        found if found == kind => Ok(reader),
        SSH_AGENT_FAILURE => Err(AgentError::Refused),
        _ => Err(AgentError::Malformed),
    }
}

/// Sends one message and reads one, without their length prefixes.
async fn round_trip<S>(stream: &mut S, request: &[u8]) -> Result<Vec<u8>, AgentError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if request.len() > FRAME_BYTES_MAX {
        return Err(AgentError::RequestTooLarge);
    }
    let mut framed = Vec::with_capacity(4 + request.len());
    ssh_wire::put_string(&mut framed, request);
    stream.write_all(&framed).await?;
    stream.flush().await?;
    let bytes = stream.read_u32().await?;
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(AgentError::TooLarge { bytes });
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests;
