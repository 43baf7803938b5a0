//! How a client is set up: what it may use, whom it may ask, and how long it waits.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use afar_core::target::Target;
use afar_net::identity::LockedKey;
use afar_net::signer::{DelegatedKey, FileKey};
use afar_proto::message::JobId;

use crate::command::Command;
use crate::connect;
use crate::error::Error;
use crate::host_keys::{HostKeyQuestion, KnownFingerprint};
use crate::identities::OfferedKey;
use crate::job::{Job, JobEvent};
use crate::limits::RECONNECT_FOR;
use crate::prompt::{NoPrompt, Prompt};
use crate::route::{ResolvedHost, Route};
use crate::session::Session;
use crate::ssh_config_files::SshConfig;

/// Time for reaching a host if nothing else is said.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// For how long a client asks to be let in again by an ephemeral key, so that a reconnection needs
/// nobody at the agent.
pub const DELEGATION: Duration = Duration::from_secs(3600);

/// The local user, for the defaults that are named after one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The login name.
    pub name: OsString,
    /// The home directory.
    pub home: PathBuf,
}

/// Finds the local user when it is needed.
pub type AccountLookup = dyn Fn() -> Option<Account> + Send + Sync;

/// Reads a variable of the environment; the tests have one of their own.
type VariableLookup = dyn Fn(&OsStr) -> Option<OsString> + Send + Sync;

/// Connects to the user's own supervisor, starting it if it isn't running; checks whose it is. May
/// block for some milliseconds. The error is a text for the user.
pub type Launcher = dyn Fn() -> Result<UnixStream, String> + Send + Sync;

/// Reaches hosts and runs commands there.
///
/// Cheap to clone; clones share what was learned, such as the ephemeral keys of the hosts that
/// were logged in to. The keys of files by which it was let in stay in its memory, those that a
/// person has unlocked too, and are wiped with the last clone: a lost connection can be made again
/// whatever has become of the files, and no passphrase is asked for twice. Needs a tokio runtime with
/// I/O and time.
#[derive(Clone)]
pub struct Client {
    pub(crate) options: Arc<Options>,
    delegated: Arc<Mutex<BTreeMap<String, Delegated>>>,
    kept: Arc<Mutex<KeptKeys>>,
    /// See [`Client::request_in_flight`].
    pub(crate) in_flight: Arc<AtomicBool>,
}

/// An ephemeral key that a server accepts for a while.
#[derive(Clone)]
struct Delegated {
    key: DelegatedKey,
    expires: Instant,
}

/// Keys of files, in memory, for whoever comes back.
#[derive(Default)]
struct KeptKeys {
    /// By the destination that has let each in.
    accepted: BTreeMap<String, FileKey>,
    /// Those that a person has unlocked: one for each passphrase that was typed.
    unlocked: Vec<FileKey>,
}

/// When an ephemeral key is asked for at a login, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delegation {
    Never,
    /// Where another login by the same key could take a person.
    WhereNeeded(Duration),
    Always(Duration),
}

/// What a client was told; see [`ClientBuilder`].
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) user: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) identities: Vec<PathBuf>,
    pub(crate) use_agent: bool,
    pub(crate) known_hosts: Option<PathBuf>,
    pub(crate) ssh_config: SshConfig,
    pub(crate) accept_new: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) ssh: OsString,
    pub(crate) remote_afar: String,
    pub(crate) delegation: Delegation,
    pub(crate) reconnect_for: Duration,
    /// Whether nobody is there to be asked anything, not even by ssh.
    pub(crate) unattended: bool,
    pub(crate) prompt: Arc<dyn Prompt>,
    pub(crate) launcher: Option<Arc<Launcher>>,
    pub(crate) account: Arc<AccountLookup>,
    pub(crate) variable: Arc<VariableLookup>,
}

/// Sets a [`Client`] up.
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    pub(crate) options: Options,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").finish_non_exhaustive()
    }
}

impl Client {
    /// A client that behaves as `afar run` does, except that it asks nobody: it uses
    /// `~/.ssh/config`, `~/.ssh/known_hosts`, the user's keys and the agent of `SSH_AUTH_SOCK`.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            options: Options {
                user: None,
                port: None,
                identities: Vec::new(),
                use_agent: true,
                known_hosts: None,
                ssh_config: SshConfig::User,
                accept_new: false,
                connect_timeout: CONNECT_TIMEOUT,
                ssh: "ssh".into(),
                remote_afar: "afar".to_owned(),
                delegation: Delegation::Always(DELEGATION),
                reconnect_for: RECONNECT_FOR,
                unattended: false,
                prompt: Arc::new(NoPrompt),
                launcher: None,
                account: Arc::new(account_of_environment),
                variable: Arc::new(|name| std::env::var_os(name)),
            },
        }
    }

    /// Connects and logs in, for many commands.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`Error`]; nothing was started.
    pub async fn connect(&self, target: &Target) -> Result<Session, Error> {
        let (session, _) = connect::connect(self, target, None).await?;
        Ok(session)
    }

    /// Connects, logs in and starts a command, all in one flight: the request leaves together with
    /// the login. The connection lasts as long as the job's handle.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::started`] says whether the command may have been started all the
    /// same. What happens after the login is told by the job's events.
    pub async fn run(&self, target: &Target, command: Command) -> Result<Job, Error> {
        let (_, job) = self.start(target, command).await?;
        Ok(job)
    }

    /// As [`Client::run`], and hands out the session for more commands, or to close it in order.
    ///
    /// # Errors
    /// As there.
    pub async fn start(&self, target: &Target, command: Command) -> Result<(Session, Job), Error> {
        let spec = command.into_spec()?;
        match connect::connect(self, target, Some(spec)).await? {
            (session, Some(job)) => Ok((session, job)),
            (_, None) => Err(Error::SessionEnded),
        }
    }

    /// As [`Client::run`], for a command that is to go on alone: leaves it as soon as it is started, and
    /// returns its id.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::started`] says whether it may have been started all the same.
    pub async fn detach(&self, target: &Target, command: Command) -> Result<JobId, Error> {
        let (session, mut job) = self.start(target, command.detach(true)).await?;
        let mut found = None;
        while let Some(event) = job.next().await {
            match event {
                JobEvent::Started(opened) => found = Some(opened.job),
                JobEvent::Attached(attached) => found = Some(attached.job),
                JobEvent::Finished(finished) => {
                    return Err(finished.error.unwrap_or(Error::SessionEnded));
                }
                _ => {}
            }
        }
        session.close().await;
        found.ok_or(Error::SessionEnded)
    }

    /// The keys that would be offered to a target, in order; without one, to any host that the ssh
    /// configuration says nothing special about.
    ///
    /// # Errors
    /// The configuration, or a key file that was named, can't be used.
    pub async fn keys(&self, target: Option<&Target>) -> Result<Vec<OfferedKey>, Error> {
        connect::offered_keys(self, target).await
    }

    /// What is in effect for a target, without connecting to it.
    ///
    /// # Errors
    /// The configuration can't be used, or the target is reached in another way than over the network.
    pub fn resolve(&self, target: &Target) -> Result<ResolvedHost, Error> {
        ResolvedHost::of(&self.options, target)
    }

    /// Looks at the key of a host without logging in there.
    ///
    /// # Errors
    /// The host can't be reached, or does not speak afar's protocol.
    pub async fn inspect_host(&self, target: &Target) -> Result<InspectedHost, Error> {
        connect::inspect(self, target).await
    }

    /// Whether the request of the last [`Client::start`] may have left this machine: only then can a
    /// command have been started by a login that was given up. It leaves once the host has proved
    /// itself.
    #[must_use]
    pub fn request_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The same client with nobody to be asked: what makes a lost connection again, maybe in the
    /// middle of the night.
    pub(crate) fn unattended(&self) -> Self {
        let mut options = Options::clone(&self.options);
        options.prompt = Arc::new(NoPrompt);
        options.accept_new = false;
        options.unattended = true;
        Self { options: Arc::new(options), in_flight: Arc::default(), ..self.clone() }
    }

    /// The key of a file by which a destination was logged in to.
    pub(crate) fn kept(&self, destination: &str) -> Option<FileKey> {
        self.kept_keys().accepted.get(destination).cloned()
    }

    /// Keeps a key that a destination has accepted.
    pub(crate) fn keep(&self, destination: &str, key: &FileKey) {
        self.kept_keys().accepted.insert(destination.to_owned(), key.clone());
    }

    /// Keeps a key that a person has unlocked.
    pub(crate) fn keep_unlocked(&self, key: &FileKey) {
        self.kept_keys().unlocked.push(key.clone());
    }

    /// The key of a locked file, if it was unlocked before.
    pub(crate) fn opened(&self, locked: &LockedKey) -> Option<FileKey> {
        self.kept_keys().unlocked.iter().find_map(|key| locked.opened_by(key))
    }

    fn kept_keys(&self) -> MutexGuard<'_, KeptKeys> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ephemeral key for a destination, if there is one that still holds.
    pub(crate) fn delegated(&self, destination: &str) -> Option<DelegatedKey> {
        let mut keys = self.delegated.lock().unwrap_or_else(PoisonError::into_inner);
        let found = keys.get(destination)?;
        if found.expires <= Instant::now() {
            keys.remove(destination);
            return None;
        }
        Some(found.key.clone())
    }

    pub(crate) fn set_delegated(&self, destination: &str, key: Option<(DelegatedKey, Duration)>) {
        let mut keys = self.delegated.lock().unwrap_or_else(PoisonError::into_inner);
        match key {
            Some((key, lifetime)) => {
                let expires = Instant::now() + lifetime;
                keys.insert(destination.to_owned(), Delegated { key, expires });
            }
            None => {
                keys.remove(destination);
            }
        }
    }
}

/// What [`Client::inspect_host`] has seen.
#[derive(Debug)]
pub struct InspectedHost {
    pub(crate) route: Route,
    pub(crate) key: afar_net::host_key::HostPublicKey,
    /// What is to be thought of the key.
    pub standing: HostStanding,
    /// The key that the host has shown.
    pub presented: HostKeyQuestion,
    /// Everything that is known of the host and not revoked.
    pub known: Vec<KnownFingerprint>,
}

/// What is to be thought of a host's key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostStanding {
    /// It is the one that is known.
    Trusted,
    /// Nothing is known of the host.
    FirstSight,
    /// Keys of other types are known.
    NewType,
    /// Something speaks against it.
    Refused(Box<crate::host_keys::HostKeyProblem>),
}

impl InspectedHost {
    /// Adds the key to `known_hosts`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn trust(&self) -> Result<(), Error> {
        self.route.known.remember(&self.key)
    }

    /// Makes the key the host's only one of its type in `known_hosts`; returns how many lines were
    /// changed for that.
    ///
    /// # Errors
    /// The file can't be read or written, or names the host by a pattern.
    pub fn replace(&self) -> Result<usize, Error> {
        self.route.known.replace(&self.key)
    }
}

impl ClientBuilder {
    /// The user to log in as, where the target names none.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.options.user = Some(user.into());
        self
    }

    /// The port, where the target names none; 2327 without it.
    pub fn port(mut self, port: u16) -> Self {
        self.options.port = Some(port);
        self
    }

    /// Adds a key file to be used, in place of those of the configuration and the defaults.
    pub fn identity(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.identities.push(path.into());
        self
    }

    /// Whether an ssh-agent is asked; it is, without this.
    pub fn agent(mut self, use_agent: bool) -> Self {
        self.options.use_agent = use_agent;
        self
    }

    /// The file of known hosts, in place of the user's and the system's.
    pub fn known_hosts(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.known_hosts = Some(path.into());
        self
    }

    /// The ssh configuration to read.
    pub fn ssh_config(mut self, config: SshConfig) -> Self {
        self.options.ssh_config = config;
        self
    }

    /// Whether a host of which nothing is known is trusted without asking, and remembered. A host
    /// of which anything is known never is.
    pub fn accept_new(mut self, accept_new: bool) -> Self {
        self.options.accept_new = accept_new;
        self
    }

    /// Time for reaching the host and logging in, over all connections that it takes. What a person
    /// is asked between them does not count, and a login by an agent, which may ask one, may take
    /// longer.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// The program that reaches an `ssh://` target: a path, or a name for PATH; `ssh` without it.
    /// It has to take the options of OpenSSH.
    pub fn ssh(mut self, program: impl Into<OsString>) -> Self {
        self.options.ssh = program.into();
        self
    }

    /// Afar's program on an `ssh://` target: a path, `~/` at its front allowed, or a name for PATH
    /// there; `afar` without it.
    pub fn remote_afar(mut self, path: impl Into<String>) -> Self {
        self.options.remote_afar = path.into();
        self
    }

    /// For how long to ask to be let in again by an ephemeral key, kept in memory only; `None` for
    /// a client that connects once.
    pub fn delegate_for(mut self, lifetime: Option<Duration>) -> Self {
        self.options.delegation = lifetime.map_or(Delegation::Never, Delegation::Always);
        self
    }

    /// The same, but only where another login by the same key could take a person: for a touch,
    /// or whatever else an agent asks. That is all that a lost connection needs: keys of files stay in
    /// memory.
    pub fn delegate_where_needed(mut self, lifetime: Duration) -> Self {
        self.options.delegation = Delegation::WhereNeeded(lifetime);
        self
    }

    /// For how long a lost connection is tried to be made again, each time that it is lost; zero for
    /// not at all. Nobody is asked anything for it.
    pub fn reconnect_for(mut self, limit: Duration) -> Self {
        self.options.reconnect_for = limit;
        self
    }

    /// Who answers questions; nobody without it.
    pub fn prompt(mut self, prompt: impl Prompt + 'static) -> Self {
        self.options.prompt = Arc::new(prompt);
        self
    }

    /// How the target `local` is reached; it is an error without it.
    pub fn launcher(
        mut self,
        launcher: impl Fn() -> Result<UnixStream, String> + Send + Sync + 'static,
    ) -> Self {
        self.options.launcher = Some(Arc::new(launcher));
        self
    }

    /// Who the local user is; without it what the environment says (`HOME`, `LOGNAME`, `USER`), or
    /// `/etc/passwd`.
    pub fn account(
        mut self,
        account: impl Fn() -> Option<Account> + Send + Sync + 'static,
    ) -> Self {
        self.options.account = Arc::new(account);
        self
    }

    /// The client.
    #[must_use]
    pub fn build(self) -> Client {
        Client {
            options: Arc::new(self.options),
            delegated: Arc::default(),
            kept: Arc::default(),
            in_flight: Arc::default(),
        }
    }
}

impl Options {
    pub(crate) fn variable(&self, name: &str) -> Option<OsString> {
        (self.variable)(OsStr::new(name)).filter(|value| !value.is_empty())
    }

    /// The home directory: `HOME`, else the account's.
    pub(crate) fn home(&self) -> Result<PathBuf, Error> {
        let home = self.variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        home.or_else(|| Some((self.account)()?.home)).ok_or(Error::NoHome)
    }

    /// The directory of what afar remembers (XDG Base Directory Specification).
    pub(crate) fn state_dir(&self, home: &Path) -> PathBuf {
        let configured = self.variable("XDG_STATE_HOME").map(PathBuf::from);
        let base = configured.filter(|path| path.is_absolute());
        base.unwrap_or_else(|| home.join(".local/state")).join("afar")
    }
}

/// What the environment says, else the passwd file: the library makes no call that could load a
/// directory service. Whoever can (see [`ClientBuilder::account`]) asks the system.
fn account_of_environment() -> Option<Account> {
    let name = std::env::var_os("LOGNAME").or_else(|| std::env::var_os("USER"));
    if let (Some(name), Some(home)) = (name, std::env::var_os("HOME")) {
        return Some(Account { name, home: PathBuf::from(home) });
    }
    let passwd = std::fs::read("/etc/passwd").ok()?;
    account_in(&passwd, rustix::process::getuid().as_raw())
}

/// The first entry of this user id (passwd(5)).
fn account_in(passwd: &[u8], uid: u32) -> Option<Account> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [name, _, id, _, _, home, _] = fields.as_slice() else { return None };
        let id: u32 = std::str::from_utf8(id).ok()?.parse().ok()?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        (id == uid).then(|| Account { name: text(name), home: PathBuf::from(text(home)) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_id() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbad\nann:x:7:7:A,B:/home/ann:/bin/sh\n";
        let account = account_in(passwd, 7).unwrap();
        assert_eq!((account.name, account.home), ("ann".into(), "/home/ann".into()));
        assert_eq!(account_in(passwd, 8), None);
    }
}
