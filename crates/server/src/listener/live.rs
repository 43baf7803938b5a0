//! What a listener has read of its configuration, and how that is exchanged while it runs.

use std::net::ToSocketAddrs as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use afar_net::host_key::{
    Discovered, HostKey, HostKeySearch, HostKeys, HostPublicKey, SYSTEM_DIR, discover,
};
use afar_net::tls::TlsServer;
use afar_sys::users::{User, effective_uid};
use tokio::signal::unix::Signal;

use super::gate::Gate;
use super::trust::ServerFiles;
use super::{ServeConfig, ServeError, Shared, classic_of, ready, serving_user};
use crate::classic::ClassicConfig;
use crate::launch::Launcher;
use crate::monitor::{Monitor, MonitorConfig};
use crate::paths::state_dir;

/// Reads the configuration anew; the error is a text for the log.
pub type Reload = dyn Fn() -> Result<ServeConfig, String> + Send + Sync;

/// What no configuration changes while the listener runs.
pub(super) struct Own {
    /// Who runs it.
    pub(super) user: User,
    /// How it reaches supervisors.
    pub(super) launcher: Launcher,
}

/// What a connection is let in by. One that has begun keeps that which it began with.
pub(super) struct Live {
    pub(super) tls: TlsServer,
    pub(super) gate: Gate,
    pub(super) monitor: Arc<Monitor>,
}

/// What was found out by the way.
pub(super) struct Found {
    pub(super) host_keys: Vec<HostPublicKey>,
    pub(super) created: Option<PathBuf>,
}

impl Live {
    /// Reads every file that the configuration names. `before` is that which this is to follow.
    pub(super) fn load(
        config: &ServeConfig,
        own: &Own,
        before: Option<&Self>,
    ) -> Result<(Self, Found), ServeError> {
        let files = server_files(config)?;
        let Discovered { keys, skipped, created } = discover(&HostKeySearch {
            configured: &config.host_keys,
            system_dir: SYSTEM_DIR.as_ref(),
            state_dir: &state_dir(&own.user.home),
        })?;
        for error in skipped {
            config.log.info(&format!("host key left out: {error}"));
        }
        let tls = TlsServer::new(&keys)?;
        let host_keys = keys.iter().map(|key| key.public().clone()).collect();
        let monitor = MonitorConfig {
            rules: config.accounts.clone(),
            authorized_keys: config.authorized_keys.clone(),
            launcher: own.launcher.clone(),
        };
        let monitor = Arc::new(Monitor::new(own.user.clone(), monitor));
        let mut gate = Gate::new(Arc::clone(&monitor), files, config.log);
        if let Some(before) = before {
            gate.succeed(&before.gate);
        }
        Ok((Self { tls, gate, monitor }, Found { host_keys, created }))
    }
}

fn server_files(config: &ServeConfig) -> Result<ServerFiles, ServeError> {
    let (authorities, revoked) = (&config.trusted_user_ca_keys, &config.revoked_keys);
    if effective_uid() == 0 {
        for path in [authorities, revoked].into_iter().flatten() {
            check_readable_by_all(path).map_err(ServeError::TrustFile)?;
        }
    }
    ServerFiles::open(authorities.clone(), revoked.clone()).map_err(ServeError::TrustFile)
}

/// Supervisors look at these files at each request, as the users whom they run as; one that only root
/// can read would count at the login alone. There is nothing secret in them.
fn check_readable_by_all(path: &Path) -> Result<(), String> {
    const READABLE_BY_ALL: u32 = 0o444;
    const OPEN_TO_ALL: u32 = 0o111;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let lacks = |path: &Path, bits: u32| {
        std::fs::metadata(path).map(|found| found.permissions().mode() & bits != bits)
    };
    let real = path.canonicalize().map_err(failed)?;
    if lacks(&real, READABLE_BY_ALL).map_err(failed)? {
        let path = path.display();
        return Err(format!("{path}: not readable by everybody, for whom it counts: chmod a+r"));
    }
    for directory in real.ancestors().skip(1) {
        if lacks(directory, OPEN_TO_ALL).map_err(failed)? {
            let (path, directory) = (path.display(), directory.display());
            return Err(format!(
                "{path}: it counts for everybody, but not everybody may enter {directory}: chmod a+x, or move it"
            ));
        }
    }
    Ok(())
}

/// What is in effect.
pub(super) struct Current(RwLock<Arc<Live>>);

impl Current {
    pub(super) fn new(live: Live) -> Self {
        Self(RwLock::new(Arc::new(live)))
    }

    pub(super) fn get(&self) -> Arc<Live> {
        // What is in there is whole at any time, whoever panics.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, live: Live) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }
}

/// Looks whether a listener could be started with this configuration: its files are read and its
/// addresses looked up. Nothing is made, and nothing listened on.
///
/// # Errors
/// What is wrong.
pub fn check(config: &ServeConfig) -> Result<(), ServeError> {
    server_files(config)?;
    // Without any a key of our own is made where there is none, so there is nothing to check.
    if !config.host_keys.is_empty() {
        let keys = config.host_keys.iter().map(|path| HostKey::load(path));
        TlsServer::new(&HostKeys::new(keys.collect::<Result<_, _>>()?)?)?;
    }
    for address in &config.listen {
        let failed = |source| ServeError::Listen { address: address.clone(), source };
        address.to_socket_addrs().map_err(failed)?;
    }
    classic_of(config, &serving_user()?)?;
    Ok(())
}

/// What was opened at the start, and stays so.
pub(super) struct Opened {
    pub(super) listen: Vec<String>,
    pub(super) classic: ClassicConfig,
}

/// Exchanges what is in effect at every signal, as long as nothing is wrong with the new.
pub(super) async fn reload_at(
    mut signal: Signal,
    reload: Arc<Reload>,
    shared: Arc<Shared>,
    opened: Opened,
) {
    let opened = Arc::new(opened);
    while signal.recv().await.is_some() {
        let (reload, shared) = (Arc::clone(&reload), Arc::clone(&shared));
        let opened = Arc::clone(&opened);
        // Files can be on a disk that does not answer.
        let done = tokio::task::spawn_blocking(move || reload_now(&*reload, &shared, &opened));
        let _ = done.await;
    }
}

fn reload_now(reload: &Reload, shared: &Shared, opened: &Opened) {
    ready::notify_reloading();
    let before = shared.current.get();
    let loaded = reload().and_then(|config| {
        let live = Live::load(&config, &shared.own, Some(&before));
        live.map(|(live, _)| (config, live)).map_err(|error| error.to_string())
    });
    match loaded {
        Ok((config, live)) => {
            shared.current.set(live);
            shared.door.set_rules(config.door);
            shared.log.info("the configuration was read anew");
            if config.listen != opened.listen || config.classic != opened.classic {
                let what = "the addresses that are listened on, and the classic protocol,";
                shared.log.info(&format!("{what} stay as they were until a restart"));
            }
        }
        Err(problem) => {
            shared.log.error(&format!("the configuration stays as it was: {problem}"));
        }
    }
    ready::notify_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_counts_for_everybody_is_readable_by_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let set_mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(directory.path(), 0o755);
        let path = directory.path().join("revoked");
        assert!(check_readable_by_all(&path).is_err());
        std::fs::write(&path, "").unwrap();
        for (mode, good) in [(0o644, true), (0o444, true), (0o600, false), (0o640, false)] {
            set_mode(&path, mode);
            assert_eq!(check_readable_by_all(&path).is_ok(), good, "{mode:o}");
        }
        set_mode(&path, 0o644);
        for (mode, good) in [(0o711, true), (0o750, false), (0o700, false)] {
            set_mode(directory.path(), mode);
            assert_eq!(check_readable_by_all(&path).is_ok(), good, "{mode:o}");
        }
        let said = check_readable_by_all(&path).unwrap_err();
        assert!(said.contains("not everybody may enter"), "{said}");
    }
}
