//! The privileged part of a server: what the listener may ask of it, and nothing else.
//!
//! | request | answer |
//! | --- | --- |
//! | `Monitor::keys`: the keys of an account | may it come in at all, and what its files of keys hold |
//! | `Monitor::own_files`: where the keys of its own account are | their paths, if nothing else decides about it |
//! | `Monitor::closed_for`: is it served now | what to tell it if not |
//! | `Monitor::running_supervisor`, `Monitor::supervisor`: its supervisor | a connection to it |
//!
//! That is the whole table (`W-4.15`). A request holds a name, an id, an address; the answers are decided here, by
//! the rules here, whatever the listener thinks. Today both are one process; whoever moves the listener
//! into a sandbox puts a socket between them at this place.

mod key_files;

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use afar_core::account::{Account, AccountRules, LoginShell, Standing, judge_shell};
use afar_core::limits::ACCOUNT_NOTICE_BYTES_MAX;
use afar_net::files::read_regular;
use afar_sys::identity::{Identity, with_file_access_of};
use afar_sys::shadow::shadow_by_name;
use afar_sys::users::{User, group_name, groups_of, user_by_name, user_by_uid};

use crate::launch::{LaunchError, Launched, Launcher};
use crate::supervisor::shell_of;

pub(crate) use key_files::FileRead;
pub use key_files::check_pattern;
use key_files::expand;

/// The list of shells that are for everything (shells(5)).
const SHELLS_FILE: &str = "/etc/shells";

/// Largest such list.
const SHELLS_BYTES_MAX: u64 = 64 * 1024;

/// While one of them is there, only root is served: the administrator's (sshd(8)), and the one that
/// systemd has while the machine starts and stops (systemd-user-sessions.service(8)).
const NOLOGIN_FILES: [&str; 2] = ["/etc/nologin", "/run/nologin"];

const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// Why an account is not let in, or its keys can't be read: for the log only.
pub(crate) type Refusal = String;

/// What the privileged part is to do.
#[derive(Clone, Debug)]
pub struct MonitorConfig {
    /// Who may come in.
    pub rules: AccountRules,
    /// Where users' keys are, with `%h` and `%u`.
    pub authorized_keys: Vec<String>,
    /// How supervisors are reached.
    pub launcher: Launcher,
}

/// The privileged part. As an ordinary user it serves that user; as root everybody.
#[derive(Debug)]
pub struct Monitor {
    /// Who runs this.
    own: User,
    config: MonitorConfig,
}

/// An account that may come in, and what its files of keys hold.
#[derive(Debug)]
pub(crate) struct AccountKeys {
    pub(crate) user: User,
    /// Its login shell decides what is run.
    pub(crate) login_shell_only: bool,
    pub(crate) files: Vec<FileRead>,
}

impl Monitor {
    /// That of `own`, who runs this.
    #[must_use]
    pub fn new(own: User, config: MonitorConfig) -> Self {
        Self { own, config }
    }

    /// The rules by which accounts are judged.
    pub(crate) fn rules(&self) -> &AccountRules {
        &self.config.rules
    }

    /// Request: the keys of the account of this name, for somebody at `source`. Blocks on the user
    /// database and on the file system, for as long as a directory service or a file server takes.
    pub(crate) fn keys(&self, name: &str, source: IpAddr) -> Result<AccountKeys, Refusal> {
        let user = self.find(name)?;
        let groups =
            if self.config.rules.needs_groups() { group_names(&user)? } else { Vec::new() };
        let account =
            Account { name: user.name.as_bytes(), uid: user.uid, groups: &groups, source };
        self.config.rules.judge(account).map_err(|refused| refused.to_string())?;
        // Whoever runs the server is in already; the system's rules are for the others, another name
        // of the same uid among them.
        if user.name == self.own.name {
            let files = self.read_files(&user);
            return Ok(AccountKeys { user, login_shell_only: false, files });
        }
        check_alias(&user, user_by_uid(user.uid).map_err(|error| error.to_string())?.as_ref())?;
        let standing = standing(&user)?;
        standing.judge().map_err(|refused| refused.to_string())?;
        let read = Identity::of(&user)
            .and_then(|identity| with_file_access_of(&identity, || self.read_files(&user)));
        let files = read.map_err(|error| format!("cannot read as {:?}: {error}", user.name))?;
        let login_shell_only = standing.shell != LoginShell::Full;
        Ok(AccountKeys { user, login_shell_only, files })
    }

    /// Request: the files of keys of the account of this name, if nothing but these decides about it:
    /// if it is that of whoever runs this, and no rule asks for groups, which a directory service may
    /// have. Never waits.
    pub(crate) fn own_files(&self, name: &str) -> Option<Vec<PathBuf>> {
        if OsStr::new(name) != self.own.name || self.config.rules.needs_groups() {
            return None;
        }
        let patterns = self.config.authorized_keys.iter();
        Some(patterns.map(|pattern| expand(pattern, &self.own)).collect())
    }

    fn read_files(&self, user: &User) -> Vec<FileRead> {
        let patterns = self.config.authorized_keys.iter();
        patterns.map(|pattern| FileRead::read(expand(pattern, user), user)).collect()
    }

    fn find(&self, name: &str) -> Result<User, Refusal> {
        if OsStr::new(name) == self.own.name {
            return Ok(self.own.clone());
        }
        if self.own.uid != 0 {
            return Err("this server serves only the user who runs it".to_owned());
        }
        match user_by_name(OsStr::new(name)) {
            // A database that knows a user by several spellings would make rules about names void.
            Ok(Some(user)) if user.name == name => Ok(user),
            Ok(_) => Err("there is no such user".to_owned()),
            Err(error) => Err(format!("the user database cannot be read: {error}")),
        }
    }

    /// What is to be told to an account that was let in, because nobody but root is served now; `None`
    /// if all are. As in sshd, and unlike the other rules, this is told to the one whom it concerns.
    pub(crate) fn closed_for(&self, uid: u32) -> Option<String> {
        // A user's own server is not one of the machine's logins.
        if uid == self.own.uid { None } else { closed_by(NOLOGIN_FILES.map(Path::new), uid) }
    }

    /// Request: a connection to the supervisor of an account that was let in, if it runs. Never waits.
    pub(crate) fn running_supervisor(&self, uid: u32) -> Result<Option<UnixStream>, LaunchError> {
        self.config.launcher.connect_running(uid)
    }

    /// Request: a connection to the supervisor of an account that was let in; it is started if it does
    /// not run. Blocks meanwhile.
    pub(crate) fn supervisor(&self, name: &OsStr, uid: u32) -> Result<Launched, LaunchError> {
        if uid == self.own.uid {
            return self.config.launcher.connect(&self.own);
        }
        let unknown = |why: String| LaunchError::Io {
            action: "cannot start a supervisor",
            source: std::io::Error::other(why),
        };
        let found = user_by_name(name).map_err(|error| unknown(error.to_string()))?;
        let user = found.filter(|user| user.uid == uid);
        let user = user.ok_or_else(|| unknown(format!("there is no {name:?} of uid {uid}")))?;
        self.config.launcher.connect(&user)
    }
}

/// A supervisor runs as the first account of its uid. Another name of that uid comes in only where
/// this makes no difference: a shell that restricts the one must not be got around by the other.
fn check_alias(user: &User, first: Option<&User>) -> Result<(), Refusal> {
    let same = |first: &User| {
        first.name == user.name
            || (first.gid == user.gid && first.home == user.home && first.shell == user.shell)
    };
    if first.is_some_and(same) {
        return Ok(());
    }
    Err("its uid is first that of an account with another group, home or shell".to_owned())
}

/// The names of a user's groups; one without a name has none that a rule could mean.
fn group_names(user: &User) -> Result<Vec<Vec<u8>>, Refusal> {
    let unreadable = |error| format!("the group database cannot be read: {error}");
    let mut names = Vec::new();
    for gid in groups_of(user).map_err(unreadable)? {
        names.extend(group_name(gid).map_err(unreadable)?.map(OsString::into_vec));
    }
    Ok(names)
}

/// What the system says about an account that is not of whoever runs this.
fn standing(user: &User) -> Result<Standing, Refusal> {
    let entry = shadow_by_name(&user.name)
        .map_err(|error| format!("the shadow database cannot be read: {error}"))?;
    Ok(Standing {
        shell: login_shell(user),
        // An account of a directory service may have no entry, and then nothing is said about it.
        locked: entry.is_some_and(|entry| entry.locked),
        expires_on_day: entry.and_then(|entry| entry.expires_on_day),
        today: jiff::Timestamp::now().as_second().div_euclid(SECONDS_PER_DAY),
    })
}

fn login_shell(user: &User) -> LoginShell {
    let shell = shell_of(user);
    let is_usable = std::fs::metadata(shell)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    let list = read_regular(SHELLS_FILE.as_ref(), SHELLS_BYTES_MAX).ok();
    match judge_shell(shell.as_os_str().as_bytes(), list.as_deref()) {
        judged if is_usable => judged,
        // It would let nobody in if it were there.
        LoginShell::Refusing => LoginShell::Refusing,
        _ => LoginShell::Unusable,
    }
}

fn closed_by<const N: usize>(files: [&Path; N], uid: u32) -> Option<String> {
    if uid == 0 {
        return None;
    }
    let found = files.into_iter().find(|path| path.symlink_metadata().is_ok())?;
    // One that can't be read closes the server all the same.
    let size = std::fs::metadata(found).map_or(0, |found| found.size());
    let text = if size <= ACCOUNT_NOTICE_BYTES_MAX {
        read_regular(found, ACCOUNT_NOTICE_BYTES_MAX).unwrap_or_default()
    } else {
        Vec::new()
    };
    let text = String::from_utf8_lossy(&text);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let fallback = format!("logins are closed ({})", found.display());
    Some(if text.is_empty() { fallback } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_core::account::parse_users;

    fn monitor(own: User, rules: AccountRules) -> Monitor {
        let launcher = Launcher::new("/nonexistent/afar".into());
        let authorized_keys = vec!["keys".to_owned()];
        Monitor::new(own, MonitorConfig { rules, authorized_keys, launcher })
    }

    fn own() -> User {
        afar_sys::users::current_user().unwrap().unwrap()
    }

    #[test]
    fn a_server_of_an_ordinary_user_serves_that_user_only() {
        let ann = User { name: "ann".into(), uid: 4_000_000, ..own() };
        let monitor = monitor(ann, AccountRules::default());
        let source = [127, 0, 0, 1].into();
        assert_eq!(monitor.keys("ann", source).unwrap().user.name, "ann");
        assert!(monitor.keys("root", source).unwrap_err().contains("only the user"));
    }

    #[test]
    fn the_owners_rules_are_for_whoever_runs_the_server_too() {
        let name = own().name.into_string().unwrap();
        let source = [127, 0, 0, 1].into();
        let rules = AccountRules {
            deny_users: parse_users(&format!("{name}@127.*")).unwrap(),
            ..AccountRules::default()
        };
        let monitor = monitor(own(), rules);
        assert!(monitor.keys(&name, source).unwrap_err().contains("denied users"));
        assert!(monitor.keys(&name, [192, 0, 2, 1].into()).is_ok());
    }

    #[test]
    fn while_logins_are_closed_all_but_root_are_told_why() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        let told = |uid| closed_by([&one, &two], uid);
        assert_eq!(told(1000), None);
        std::fs::write(&two, "").unwrap();
        assert!(told(1000).unwrap().starts_with("logins are closed"));
        std::fs::write(&one, "back at\n  noon\n").unwrap();
        assert_eq!(told(1000).unwrap(), "back at noon");
        assert_eq!(told(0), None);
        let at_limit = usize::try_from(ACCOUNT_NOTICE_BYTES_MAX).unwrap();
        std::fs::write(&one, "x".repeat(at_limit)).unwrap();
        assert_eq!(told(1000).unwrap().len(), at_limit);
        std::fs::write(&one, "x".repeat(at_limit + 1)).unwrap();
        assert!(told(1000).unwrap().starts_with("logins are closed"));
        // A link to nowhere is there, and closes too.
        std::fs::remove_file(&one).unwrap();
        std::os::unix::fs::symlink("/nonexistent/file", &one).unwrap();
        assert!(told(1000).is_some());
    }

    #[test]
    fn another_name_of_a_uid_gets_around_no_shell() {
        let account = |name: &str, shell: &str| User {
            name: name.into(),
            uid: 1000,
            gid: 1000,
            home: "/home/ann".into(),
            shell: shell.into(),
            gecos: "".into(),
        };
        let ann = account("ann", "/bin/bash");
        assert!(check_alias(&ann, Some(&ann)).is_ok());
        assert!(check_alias(&account("anne", "/bin/bash"), Some(&ann)).is_ok());
        assert!(check_alias(&account("ann-git", "/usr/bin/git-shell"), Some(&ann)).is_err());
        assert!(check_alias(&ann, None).is_err());
    }
}
