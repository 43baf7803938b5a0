//! From a target to what connecting needs: address, user, keys and what is known of the host.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use afar_core::escape::escape_for_terminal;
use afar_core::ssh_config::{
    ExpandError, HostSettings, IdentityAgent, Place, Proxy, Tokens, expand_path,
};
use afar_core::target::{Destination, Target};
use afar_net::agent::Agent;

use crate::accepted_keys::AcceptedKeys;
use crate::client::Options;
use crate::error::Error;
use crate::host_keys::KnownHost;
use crate::identities::IdentitySources;
use crate::prompt::Notice;

/// Afar's port: A-F-A-R on a phone's keys.
pub const DEFAULT_PORT: u16 = 2327;

/// sshd's port, which only names host keys here.
const SSH_PORT: u16 = 22;

/// The way to one host.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The target as it was asked for.
    pub(crate) target: String,
    /// The name or address to connect to.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The user to become.
    pub(crate) user: String,
    pub(crate) known: KnownHost,
    pub(crate) identities: IdentitySources,
    pub(crate) accepted: AcceptedKeys,
    /// `USER@HOST:PORT`, by which keys are remembered.
    pub(crate) destination: String,
}

/// What is in effect for a host: what the target, the client's own settings and the ssh
/// configuration say, put together. See [`Client::resolve`](crate::Client::resolve).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedHost {
    /// The name or address to connect to.
    pub host_name: String,
    /// Afar's port there.
    pub port: u16,
    /// The user to become.
    pub user: String,
    /// The name by which the host's key is known, where it is another one.
    pub host_key_alias: Option<String>,
    /// The key files; `None` for ssh's defaults.
    pub identities: Option<Vec<PathBuf>>,
    /// Whether of the agent's keys only those are offered whose files are named.
    pub identities_only: bool,
    /// The agent's socket, if one is asked.
    pub agent: Option<PathBuf>,
    /// The files of known hosts, but for the system's.
    pub known_hosts: Vec<PathBuf>,
    /// Where the ssh configuration says something, by ssh's name of the setting. It counts where
    /// neither the target nor the client's own settings do.
    pub places: BTreeMap<&'static str, Place>,
}

impl ResolvedHost {
    /// Reads what has to be read. Blocks on the file system.
    pub(crate) fn of(options: &Options, target: &Target) -> Result<Self, Error> {
        Ok(resolve(options, target)?.0)
    }
}

fn resolve(
    options: &Options,
    target: &Target,
) -> Result<(ResolvedHost, IdentitySources, HostSettings), Error> {
    let destination = one_host(target)?;
    let home = options.home()?;
    let settings = options.ssh_config.resolve(&destination.host, &home)?;
    for place in &settings.skipped_matches {
        let text = format!("{place}: a Match block is passed over, afar does not evaluate them");
        options.prompt.notice(&Notice::PassedOver(escape_for_terminal(text.as_bytes())));
    }
    refuse_proxy(&settings, &destination.host)?;
    // As in ssh, which matters where a path has the name in it.
    let host = settings.host_name.as_ref().unwrap_or(&destination.host).to_ascii_lowercase();
    let port = destination.port.or(options.port).unwrap_or(DEFAULT_PORT);
    let named = destination.user.clone().or_else(|| options.user.clone());
    let user = match named.or_else(|| settings.user.clone()) {
        Some(user) => user,
        None => local_user(options)?,
    };
    let expand = Expand { options, home: &home, settings: &settings };
    let names = Names { typed: &destination.host, host: &host, user: &user };
    let identities = identity_sources(&expand, &names)?;
    let known_hosts = known_hosts_files(&expand, &names)?;
    let resolved = ResolvedHost {
        port,
        host_key_alias: settings.host_key_alias.clone(),
        identities: identities.files.clone(),
        identities_only: identities.only_files,
        agent: identities.agent.as_ref().map(|agent| agent.path().to_owned()),
        known_hosts,
        places: settings.places.clone(),
        host_name: host,
        user,
    };
    Ok((resolved, identities, settings))
}

impl Route {
    /// Reads what has to be read to find the way. Blocks on the file system.
    pub(crate) fn find(options: &Options, target: &Target) -> Result<Self, Error> {
        let (resolved, identities, settings) = resolve(options, target)?;
        let ResolvedHost { host_name: host, port, user, known_hosts, .. } = resolved;
        let with_system = options.known_hosts.is_none();
        let known_as = settings.host_key_alias.as_deref().unwrap_or(&host);
        let known = KnownHost::load(known_as, port, settings.port, &known_hosts, with_system)?;
        Ok(Self {
            target: target.to_string(),
            destination: format!("{user}@{host}:{port}"),
            accepted: AcceptedKeys::in_directory(&options.state_dir(&options.home()?)),
            host,
            port,
            user,
            known,
            identities,
        })
    }
}

/// Where the keys for any host are: for showing them without a target.
pub(crate) fn sources_without_target(options: &Options) -> Result<IdentitySources, Error> {
    let home = options.home()?;
    let settings = HostSettings::default();
    let expand = Expand { options, home: &home, settings: &settings };
    identity_sources(&expand, &Names { typed: "", host: "", user: "" })
}

/// The local user's name, where nothing else says whom to become.
pub(crate) fn local_user(options: &Options) -> Result<String, Error> {
    let account = (options.account)();
    let name = account.and_then(|account| account.name.into_string().ok());
    name.ok_or_else(|| Error::Target {
        target: "USER".to_owned(),
        problem: "the local user's name is not known".to_owned(),
        hint: Some("name the user to log in as: USER@HOST or -l USER"),
    })
}

fn one_host(target: &Target) -> Result<&Destination, Error> {
    let unsupported = |problem: &str, hint| Error::Target {
        target: target.to_string(),
        problem: problem.to_owned(),
        hint: Some(hint),
    };
    match target {
        Target::Host(destination) => Ok(destination),
        Target::Set(_) => Err(unsupported(
            "this is a set of hosts, and running on several at once is not there yet",
            "name one host, and run one afar for each",
        )),
        Target::Ssh(_) => Err(unsupported(
            "ssh reaches this host, by its own keys and its own known_hosts",
            "name the host without ssh:// to ask about afar's way to it",
        )),
        Target::Local => Err(unsupported(
            "this machine is reached by a socket and has no host key",
            "use it with `afar run`",
        )),
    }
}

/// What afar can't imitate is said, never passed over: the host may be another one without it.
fn refuse_proxy(settings: &HostSettings, host: &str) -> Result<(), Error> {
    let (keyword, value) = match &settings.proxy {
        None => return Ok(()),
        Some(Proxy::Jump(value)) => ("ProxyJump", value),
        Some(Proxy::Command(value)) => ("ProxyCommand", value),
    };
    Err(Error::Proxy { host: host.to_owned(), keyword, value: value.clone() })
}

struct Expand<'a> {
    options: &'a Options,
    home: &'a Path,
    settings: &'a HostSettings,
}

struct Names<'a> {
    typed: &'a str,
    host: &'a str,
    user: &'a str,
}

impl Expand<'_> {
    fn path(&self, raw: &Path, names: &Names<'_>) -> Result<PathBuf, ExpandError> {
        // The account is looked up only where a path needs it.
        let text = raw.as_os_str().as_encoded_bytes();
        let local = if text.windows(2).any(|pair| pair == b"%u") {
            (self.options.account)().map(|account| account.name).unwrap_or_default()
        } else {
            OsString::new()
        };
        let alias = self.settings.host_key_alias.as_deref();
        expand_path(
            raw,
            &Tokens {
                home: self.home,
                local_user: &local,
                local_uid: rustix::process::getuid().as_raw(),
                remote_user: names.user,
                host: names.host,
                typed_host: names.typed,
                port: self.settings.port.unwrap_or(SSH_PORT),
                host_key_alias: alias.unwrap_or(names.typed),
                variable: &|name| (self.options.variable)(name),
            },
        )
    }
}

fn identity_sources(expand: &Expand<'_>, names: &Names<'_>) -> Result<IdentitySources, Error> {
    let Expand { options, home, settings } = expand;
    let explicit = !options.identities.is_empty();
    let files = match &settings.identity_files {
        _ if explicit => Some(options.identities.clone()),
        Some(files) => {
            let files = files.iter().map(|file| expand.path(file, names));
            Some(files.collect::<Result<_, _>>()?)
        }
        None => None,
    };
    let agent = if options.use_agent { agent_socket(expand, names)? } else { None };
    let certificates = settings.certificate_files.iter().map(|file| expand.path(file, names));
    Ok(IdentitySources {
        files,
        certificates: certificates.collect::<Result<_, _>>()?,
        home: home.to_path_buf(),
        explicit,
        agent: agent.as_deref().map(Agent::new),
        only_files: settings.identities_only == Some(true),
    })
}

fn agent_socket(expand: &Expand<'_>, names: &Names<'_>) -> Result<Option<PathBuf>, Error> {
    let variable = |name: &str| expand.options.variable(name).map(PathBuf::from);
    Ok(match &expand.settings.identity_agent {
        None => variable("SSH_AUTH_SOCK"),
        Some(IdentityAgent::None) => None,
        Some(IdentityAgent::Variable(name)) => variable(name),
        Some(IdentityAgent::Socket(path)) => Some(expand.path(path, names)?),
    })
}

fn known_hosts_files(expand: &Expand<'_>, names: &Names<'_>) -> Result<Vec<PathBuf>, Error> {
    if let Some(file) = &expand.options.known_hosts {
        return Ok(vec![file.clone()]);
    }
    match &expand.settings.user_known_hosts_files {
        Some(files) if !files.is_empty() => {
            let files = files.iter().map(|file| expand.path(file, names));
            Ok(files.collect::<Result<_, _>>()?)
        }
        _ => Ok(vec![expand.home.join(".ssh/known_hosts")]),
    }
}
