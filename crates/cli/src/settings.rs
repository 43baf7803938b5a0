//! What counts of the command line, the environment and `config.toml`, for commands that connect.
//!
//! One place decides, so that `afar config` shows what `afar run` does.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use afar_client::{Client, ClientBuilder, Error, Place, RECONNECT_FOR, SshConfig, Target};
use afar_core::account::{AccountRules, PermitRoot, parse_groups, parse_users};
use afar_core::authorized_keys::SourceList;
use afar_core::config::{Placed, ServeSettings};

use crate::args::{AccountArgs, ConnectArgs, ServeArgs};
use crate::config::{ConfigFiles, expand};
use crate::prompt::TerminalPrompt;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The target itself.
    Target,
    /// An option of the command line.
    Option(&'static str),
    /// A variable of the environment.
    Variable(&'static str),
    /// `config.toml`.
    Config(Place),
    /// The ssh configuration, by its name of the setting.
    SshConfig(&'static str, Place),
    /// Nothing says anything.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target => f.write_str("the target"),
            Self::Option(name) | Self::Variable(name) => f.write_str(name),
            Self::Config(place) => place.fmt(f),
            Self::SshConfig(keyword, place) => write!(f, "{place} {keyword}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting and where it comes from; `None` where the default is to count.
pub(crate) type Settled<T> = Option<(T, Source)>;

/// What counts.
#[derive(Debug)]
pub(crate) struct ConnectSettings {
    pub(crate) port: Settled<u16>,
    pub(crate) user: Settled<String>,
    pub(crate) identities: Settled<Vec<PathBuf>>,
    pub(crate) known_hosts: Settled<PathBuf>,
    pub(crate) accept_new: Settled<bool>,
    pub(crate) connect_timeout: Settled<Duration>,
    pub(crate) ssh_config: Settled<PathBuf>,
    pub(crate) ssh: Settled<OsString>,
    pub(crate) remote_afar: Settled<String>,
    /// Of the configuration; those of the command line go before them.
    pub(crate) env: Vec<(String, String, Source)>,
    reconnect_for: Duration,
    verbosity: crate::console::Verbosity,
}

/// For how long an ephemeral key is asked for: a server gives no more than a day.
const DELEGATION_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The option, or else what the configuration says.
fn pick<T, U>(
    option: Option<T>,
    name: &'static str,
    config: Option<Placed<U>>,
    read: impl FnOnce(U) -> T,
) -> Settled<T> {
    let configured = || config.map(|found| (read(found.value), Source::Config(found.place)));
    option.map(|value| (value, Source::Option(name))).or_else(configured)
}

/// What only the configuration can say.
fn only<T>(config: Option<Placed<T>>) -> Settled<T> {
    config.map(|found| (found.value, Source::Config(found.place)))
}

impl ConnectSettings {
    /// Reads the configuration and puts the options before it. A target that ssh reaches has its
    /// keys, ports and known hosts from ssh's configuration, unless an option names them.
    ///
    /// # Errors
    /// The configuration can't be used.
    pub(crate) fn settle(args: &ConnectArgs, target: Option<&Target>) -> Result<Self, Error> {
        let files = ConfigFiles::load().map_err(Error::Configuration)?;
        let host = match target {
            Some(Target::Host(destination) | Target::Ssh(destination)) => {
                Some(destination.host.as_str())
            }
            Some(Target::Local) => Some("local"),
            Some(Target::Set(_)) | None => None,
        };
        let mut config = files.client(host);
        if let Some(Target::Ssh(_)) = target {
            config.port = None;
            config.identities = None;
            config.known_hosts = None;
            config.accept_new = None;
            config.ssh_config = None;
        }
        let args = args.clone();
        let identities = Some(args.identity).filter(|files| !files.is_empty());
        let expand_all = |paths: Vec<String>| paths.iter().map(|path| expand(path)).collect();
        let variable = std::env::var_os("AFAR_SSH").filter(|value| !value.is_empty());
        let variable = variable.map(|value| (value, Source::Variable("AFAR_SSH")));
        let ssh = match (args.ssh, variable) {
            (None, Some(variable)) => Some(variable),
            (option, _) => pick(option, "--ssh", config.ssh, OsString::from),
        };
        Ok(Self {
            port: pick(args.port, "-p", config.port, |port| port),
            user: pick(args.login, "-l", config.user, |user| user),
            identities: pick(identities, "-i", config.identities, expand_all),
            known_hosts: pick(args.known_hosts, "--known-hosts", config.known_hosts, |path| {
                expand(&path)
            }),
            accept_new: pick(
                args.accept_new.then_some(true),
                "--accept-new",
                config.accept_new,
                |accept| accept,
            ),
            connect_timeout: pick(
                args.connect_timeout,
                "--connect-timeout",
                config.connect_timeout,
                |time| time,
            ),
            ssh_config: pick(args.config, "-F", config.ssh_config, |path| expand(&path)),
            ssh,
            remote_afar: pick(args.remote_afar, "--remote-afar", config.remote_afar, |path| path),
            env: config
                .env
                .into_iter()
                .map(|(name, found)| (name, found.value, Source::Config(found.place)))
                .collect(),
            reconnect_for: args.reconnect_for.unwrap_or(RECONNECT_FOR),
            verbosity: args.verbosity.level(),
        })
    }

    /// A client that behaves so. It asks for an ephemeral key only where a lost connection could not be
    /// made again without a person: a login that needs none costs nothing more.
    pub(crate) fn client(&self) -> ClientBuilder {
        let mut builder = Client::builder()
            .delegate_where_needed(DELEGATION_FOR)
            .reconnect_for(self.reconnect_for)
            .prompt(TerminalPrompt::new(self.verbosity))
            .account(crate::commands::account);
        for path in self.identities.iter().flat_map(|(paths, _)| paths) {
            builder = builder.identity(path);
        }
        if let Some((port, _)) = self.port {
            builder = builder.port(port);
        }
        if let Some((user, _)) = &self.user {
            builder = builder.user(user);
        }
        if let Some((path, _)) = &self.ssh_config {
            let none = path.as_os_str() == "none";
            let config = if none { SshConfig::None } else { SshConfig::File(path.clone()) };
            builder = builder.ssh_config(config);
        }
        if let Some((path, _)) = &self.known_hosts {
            builder = builder.known_hosts(path);
        }
        if let Some((accept_new, _)) = self.accept_new {
            builder = builder.accept_new(accept_new);
        }
        if let Some((timeout, _)) = self.connect_timeout {
            builder = builder.connect_timeout(timeout);
        }
        if let Some((program, _)) = &self.ssh {
            builder = builder.ssh(program);
        }
        if let Some((path, _)) = &self.remote_afar {
            builder = builder.remote_afar(path);
        }
        builder
    }
}

/// Where the server listens if nothing is said: on this machine only.
pub(crate) const LISTEN: &str = "127.0.0.1:2327";

/// Where the server takes users' keys from if nothing is said.
pub(crate) const AUTHORIZED_KEYS: &str = "%h/.ssh/authorized_keys";

/// What counts for the server.
#[derive(Debug)]
pub(crate) struct ServerSettings {
    pub(crate) listen: Settled<Vec<String>>,
    pub(crate) host_keys: Settled<Vec<PathBuf>>,
    pub(crate) authorized_keys: Settled<Vec<String>>,
    pub(crate) trusted_user_ca_keys: Settled<PathBuf>,
    pub(crate) revoked_keys: Settled<PathBuf>,
    pub(crate) penalty_exempt: Settled<SourceList>,
    pub(crate) max_unauthenticated: Settled<usize>,
    pub(crate) max_unauthenticated_per_address: Settled<usize>,
    pub(crate) classic: Settled<Vec<String>>,
    pub(crate) classic_user: Settled<String>,
    pub(crate) dangerously_classic_anywhere: Settled<bool>,
    pub(crate) accounts: AccountSettings,
}

/// What counts for accounts.
#[derive(Debug)]
pub(crate) struct AccountSettings {
    pub(crate) allow_users: Settled<Vec<String>>,
    pub(crate) deny_users: Settled<Vec<String>>,
    pub(crate) allow_groups: Settled<Vec<String>>,
    pub(crate) deny_groups: Settled<Vec<String>>,
    pub(crate) permit_root_login: Settled<PermitRoot>,
}

impl AccountSettings {
    fn settle(args: &AccountArgs, config: &ServeSettings) -> Self {
        let list = |option: &[String], name, config: &Option<Placed<Vec<String>>>| {
            pick(some(option), name, config.clone(), |list| list)
        };
        let (root, configured) = (args.permit_root_login, config.permit_root_login.clone());
        Self {
            allow_users: list(&args.allow_users, "--allow-users", &config.allow_users),
            deny_users: list(&args.deny_users, "--deny-users", &config.deny_users),
            allow_groups: list(&args.allow_groups, "--allow-groups", &config.allow_groups),
            deny_groups: list(&args.deny_groups, "--deny-groups", &config.deny_groups),
            permit_root_login: pick(root, "--permit-root-login", configured, |word| word),
        }
    }

    /// The rules that these are.
    ///
    /// # Errors
    /// A list is none, in a text for the user.
    pub(crate) fn rules(&self) -> Result<AccountRules, String> {
        let users = |settled: &Settled<Vec<String>>| match settled {
            None => Ok(Vec::new()),
            Some((list, source)) => {
                parse_users(&list.join(",")).map_err(|error| format!("{source}: {error}"))
            }
        };
        let groups = |settled: &Settled<Vec<String>>| {
            settled.as_ref().map_or_else(Vec::new, |(list, _)| parse_groups(&list.join(",")))
        };
        Ok(AccountRules {
            allow_users: users(&self.allow_users)?,
            deny_users: users(&self.deny_users)?,
            allow_groups: groups(&self.allow_groups),
            deny_groups: groups(&self.deny_groups),
            permit_root: self
                .permit_root_login
                .as_ref()
                .map_or_else(Default::default, |(word, _)| *word),
        })
    }
}

fn some(list: &[String]) -> Option<Vec<String>> {
    Some(list.to_vec()).filter(|list| !list.is_empty())
}

impl ServerSettings {
    /// Reads the configuration and puts the options before it.
    ///
    /// # Errors
    /// The configuration can't be used: a text for the user.
    pub(crate) fn settle(args: &ServeArgs) -> Result<Self, String> {
        let config = server_config(args.config.as_deref())?;
        let accounts = AccountSettings::settle(&args.accounts, &config);
        let host_keys = Some(args.host_key.clone()).filter(|keys| !keys.is_empty());
        let exempt = config.penalty_exempt.map(|found| {
            let list = SourceList::parse(found.value.join(",").as_bytes());
            list.map(|value| Placed { value, place: found.place })
        });
        let exempt = exempt.transpose().map_err(|error| format!("penalty_exempt: {error}"))?;
        let exempt_option = args.penalty_exempt.clone();
        Ok(Self {
            listen: pick(some(&args.listen), "--listen", config.listen, |list| list),
            host_keys: pick(host_keys, "--host-key", config.host_keys, |paths: Vec<String>| {
                paths.iter().map(|path| expand(path)).collect()
            }),
            authorized_keys: pick(
                some(&args.authorized_keys),
                "--authorized-keys",
                config.authorized_keys,
                |list| list,
            ),
            trusted_user_ca_keys: pick(
                args.trusted_user_ca_keys.clone(),
                "--trusted-user-ca-keys",
                config.trusted_user_ca_keys,
                |path| expand(&path),
            ),
            revoked_keys: pick(
                args.revoked_keys.clone(),
                "--revoked-keys",
                config.revoked_keys,
                |path| expand(&path),
            ),
            penalty_exempt: pick(exempt_option, "--penalty-exempt", exempt, |list| list),
            max_unauthenticated: only(config.max_unauthenticated),
            max_unauthenticated_per_address: only(config.max_unauthenticated_per_address),
            classic: pick(some(&args.classic), "--classic", config.classic, |list| list),
            classic_user: pick(
                args.classic_user.clone(),
                "--classic-user",
                config.classic_user,
                |user| user,
            ),
            dangerously_classic_anywhere: pick(
                args.dangerously_classic_anywhere.then_some(true),
                "--dangerously-classic-anywhere",
                config.dangerously_classic_anywhere,
                |anywhere| anywhere,
            ),
            accounts,
        })
    }
}

/// The server's part of the configuration.
///
/// # Errors
/// It can't be used: a text for the user.
pub(crate) fn server_config(file: Option<&std::path::Path>) -> Result<ServeSettings, String> {
    let files = file.map_or_else(ConfigFiles::load, ConfigFiles::load_only)?;
    Ok(files.serve())
}
