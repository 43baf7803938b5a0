//! Whether what a grant rests on still holds: a key that was removed or revoked starts nothing more,
//! and its connections end (`W-4.12`).
//!
//! The listener judges a key once, when it logs in, and may be gone since. So the supervisor looks
//! itself, at each request and now and then: at the files' stamps, which costs some microseconds,
//! and only where one has changed at what they say.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use afar_core::key::PublicKeyBlob;
use afar_core::policy::{Grant, Restrictions};
use afar_proto::json::ByteString;
use afar_sys::users::User;
use tokio::sync::Semaphore;

use crate::limits::STANDING_INTERVAL;
use crate::listener::trust::{Refusal, ServerFiles};
use crate::listener::watched_file::Stamp;
use crate::monitor::{AccountKeys, FileRead};

/// A file that was changed less than this ago is read, and not judged by its stamp: the change may
/// have come between the listener's look and our first one, or have the same time as another one.
/// More than what a login may take, and a supervisor to start.
const UNSETTLED: Duration = Duration::from_secs(90);

/// A grant, and what it rests on.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    user: User,
    key: PublicKeyBlob,
    source: IpAddr,
    restrictions: Restrictions,
    files: Files,
    /// The stamps under which the grant was good, once they are of any use.
    good: Option<Vec<Option<Stamp>>>,
}

#[derive(Clone, Debug)]
struct Files {
    keys: Vec<PathBuf>,
    trusted_authorities: Option<PathBuf>,
    revoked_keys: Option<PathBuf>,
}

impl Standing {
    /// That of a grant that has just come from a listener; `None` for one that rests on no file.
    pub(super) fn of(grant: &Grant, user: &User) -> Option<Self> {
        let basis = grant.basis.as_ref()?;
        let path = |text: &ByteString| PathBuf::from(OsStr::from_bytes(text.as_bytes()));
        // What only root can read, only root's listener can judge: such a file counts at the login.
        let readable = |path: &PathBuf| std::fs::File::open(path).is_ok();
        let files = Files {
            keys: basis.key_files.iter().map(path).collect(),
            trusted_authorities: basis.trusted_authorities.as_ref().map(path).filter(readable),
            revoked_keys: basis.revoked_keys.as_ref().map(path).filter(readable),
        };
        let mut standing = Self {
            user: user.clone(),
            key: PublicKeyBlob::from_wire(basis.key.clone()).ok()?,
            source: grant.source_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            restrictions: grant.restrictions.clone(),
            files,
            good: None,
        };
        // A file that is not there may have gone just now.
        let stamps = standing.files.settled_stamps();
        standing.good = stamps.filter(|stamps| stamps.iter().all(Option::is_some));
        Some(standing)
    }

    /// Whether the grant still holds. Blocks on the file system.
    ///
    /// # Errors
    /// It does not, for the log.
    pub(super) fn check(&mut self) -> Result<(), Refusal> {
        if self.good.is_some() && self.files.settled_stamps() == self.good {
            return Ok(());
        }
        // Before the files are read: what is written meanwhile makes the stamps old ones.
        let stamps = self.files.settled_stamps();
        let Files { keys, trusted_authorities, revoked_keys } = self.files.clone();
        let files = ServerFiles::new(trusted_authorities, revoked_keys);
        let account = AccountKeys {
            user: self.user.clone(),
            // The listener's word: what the shell is for is told by files that only it watches.
            login_shell_only: self.restrictions.login_shell_only,
            files: keys.into_iter().map(|path| FileRead::read(path, &self.user)).collect(),
        };
        let found = files.accepted_keys(account).judge(&self.key, self.source)?;
        if found != self.restrictions {
            return Err("its restrictions have changed".to_owned());
        }
        self.good = stamps;
        Ok(())
    }
}

impl Files {
    /// The stamps of all files; `None` where one of them is too new to be told from another.
    fn settled_stamps(&self) -> Option<Vec<Option<Stamp>>> {
        let paths: Vec<&Path> = self
            .keys
            .iter()
            .chain(&self.trusted_authorities)
            .chain(&self.revoked_keys)
            .map(PathBuf::as_path)
            .collect();
        let stamps: Vec<Option<Stamp>> = paths.into_iter().map(Stamp::of).collect();
        let settled = |stamp: &Stamp| stamp.is_older_than(UNSETTLED);
        stamps.iter().flatten().all(settled).then_some(stamps)
    }
}

/// Waits until the grant does not hold any more, and says why; for ever, if it rests on no file.
/// Looks on a thread of its own, one for all connections: a home may be on a server that does not
/// answer.
pub(super) async fn lost(standing: Option<Standing>, looking: &Arc<Semaphore>) -> Refusal {
    let Some(mut standing) = standing else { return std::future::pending().await };
    loop {
        tokio::time::sleep(STANDING_INTERVAL).await;
        let Ok(turn) = Arc::clone(looking).acquire_owned().await else {
            return std::future::pending().await;
        };
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let result = standing.check();
            (standing, result)
        });
        match looked.await {
            Ok((same, Ok(()))) => standing = same,
            Ok((_, Err(refusal))) => return refusal,
            Err(_) => return "looking at it failed".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use afar_core::policy::{Basis, GrantKind};

    use super::*;

    /// An ed25519 key, as it travels and as it is listed.
    fn wire() -> Vec<u8> {
        [b"\0\0\0\x0bssh-ed25519\0\0\0\x20".as_slice(), &[7; 32]].concat()
    }

    fn line() -> String {
        format!("{}\n", PublicKeyBlob::from_wire(wire()).unwrap().to_fields())
    }

    struct Rig {
        home: tempfile::TempDir,
    }

    impl Rig {
        fn new() -> Self {
            Self { home: tempfile::tempdir().unwrap() }
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.home.path().join(name), text).unwrap();
        }

        fn text(&self, name: &str) -> ByteString {
            self.home.path().join(name).into_os_string().into_string().unwrap().as_str().into()
        }

        /// That of a grant without restrictions, which rests on these files.
        fn standing(&self, key_file: &str, revoked_keys: Option<&str>) -> Standing {
            let user = afar_sys::users::current_user().unwrap().unwrap();
            let user = User { home: self.home.path().to_owned(), ..user };
            let key = PublicKeyBlob::from_wire(wire()).unwrap();
            let grant = Grant {
                kind: GrantKind::Key,
                key_fingerprint: Some(key.fingerprint()),
                basis: Some(Basis {
                    key: key.as_bytes().to_vec(),
                    key_files: vec![self.text(key_file)],
                    trusted_authorities: None,
                    revoked_keys: revoked_keys.map(|name| self.text(name)),
                }),
                ..Grant::local("ann", user.uid)
            };
            Standing::of(&grant, &user).unwrap()
        }
    }

    #[test]
    fn fault_76_a_key_stands_as_long_as_its_line_does() {
        let rig = Rig::new();
        let line = line();
        rig.write("keys", &line);
        let mut standing = rig.standing("keys", None);
        standing.check().unwrap();
        // W-4.12: others' lines come and go, and it stands.
        rig.write("keys", &format!("# somebody else\n{line}"));
        standing.check().unwrap();
        rig.write("keys", &format!("no-pty {line}"));
        assert!(standing.check().unwrap_err().contains("changed"));
        rig.write("keys", "");
        assert!(standing.check().unwrap_err().contains("no line holds this key"));
        std::fs::remove_file(rig.home.path().join("keys")).unwrap();
        assert!(standing.check().is_err());
        rig.write("keys", &line);
        standing.check().unwrap();
    }

    #[test]
    fn fault_76_a_key_that_is_revoked_stands_no_longer() {
        let rig = Rig::new();
        rig.write("keys", &line());
        rig.write("revoked", "# nobody\n");
        let mut standing = rig.standing("keys", Some("revoked"));
        standing.check().unwrap();
        rig.write("revoked", &line());
        assert!(standing.check().unwrap_err().contains("revoked"));
        // As at the login, nobody is let through while the list can't be used.
        std::fs::remove_file(rig.home.path().join("revoked")).unwrap();
        assert!(standing.check().is_err());
    }

    #[test]
    fn a_file_that_was_not_touched_for_long_is_not_read() {
        // It holds no key: the listener's word counts until the file changes.
        let rig = Rig::new();
        let mut standing = rig.standing("keys", None);
        standing.files.keys = vec![rig.home.path().join("missing")];
        assert!(standing.check().is_err());
        let old = ["/etc/passwd", "/etc/hosts", "/bin/sh"].map(PathBuf::from).into_iter();
        let old = old.filter(|path| Stamp::of(path).is_some_and(|s| s.is_older_than(UNSETTLED)));
        standing.files.keys = old.collect();
        assert!(!standing.files.keys.is_empty(), "nothing here is older than a minute");
        standing.good = standing.files.settled_stamps();
        standing.check().unwrap();
    }
}
