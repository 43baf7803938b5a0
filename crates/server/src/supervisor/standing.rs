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
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::limits::{LOOK_DEADLINE, STANDING_INTERVAL};
use crate::listener::trust::{Refusal, ServerFiles};
use crate::listener::watched_file::{SAME_TIME_MAX, Stamp};
use crate::local_files::are_local;
use crate::monitor::{AccountKeys, FileRead};

/// A file that was changed less than this before our first look is read, and not taken as the listener
/// has found it: the change may have come between the two. More than what a login may take, and a
/// supervisor to start. Where files may be on a server, whose clock is another one, what was changed
/// less than this ago is read at each look, because another change could have the same time.
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
    /// Whether the files are on file systems of this machine.
    is_local: bool,
}

/// The files that a grant rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    keys: Vec<PathBuf>,
    trusted_authorities: Option<PathBuf>,
    revoked_keys: Option<PathBuf>,
}

impl Standing {
    /// That of a grant that has just come from a listener; `None` for one that rests on no file.
    pub(super) fn of(grant: &Grant, user: &User) -> Option<Self> {
        let basis = grant.basis.as_ref()?;
        // What only root can read, only root's listener can judge: such a file counts at the login.
        let readable = |path: &PathBuf| std::fs::File::open(path).is_ok();
        let files = Files::of(grant)?;
        let files = Files {
            trusted_authorities: files.trusted_authorities.filter(readable),
            revoked_keys: files.revoked_keys.filter(readable),
            ..files
        };
        let mut standing = Self {
            user: user.clone(),
            key: PublicKeyBlob::from_wire(basis.key.clone()).ok()?,
            source: grant.source_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            restrictions: grant.restrictions.clone(),
            files,
            good: None,
            is_local: false,
        };
        // A file that is not there may have gone just now.
        let stamps = standing.files.stamps();
        let is_there = stamps.iter().all(Option::is_some);
        standing.good = (is_there && are_settled(&stamps, UNSETTLED)).then_some(stamps);
        Some(standing)
    }

    /// Whether the grant still holds. Blocks on the file system.
    ///
    /// # Errors
    /// It does not, for the log.
    pub(super) fn check(&mut self) -> Result<(), Refusal> {
        // Before the files are read: what is written meanwhile makes the stamps old ones.
        let stamps = self.files.stamps();
        if self.good.as_ref() == Some(&stamps) {
            return Ok(());
        }
        self.good = None;
        let may_be_good = are_settled(&stamps, self.unsettled());
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
        self.good = may_be_good.then_some(stamps);
        Ok(())
    }

    /// How old a file must be when it is read, if its stamp is to tell of each change. Under this
    /// machine's own clock two changes have the same time only if they are close.
    fn unsettled(&self) -> Duration {
        if self.is_local { SAME_TIME_MAX } else { UNSETTLED }
    }
}

impl Files {
    fn of(grant: &Grant) -> Option<Self> {
        let basis = grant.basis.as_ref()?;
        let path = |text: &ByteString| PathBuf::from(OsStr::from_bytes(text.as_bytes()));
        Some(Self {
            keys: basis.key_files.iter().map(path).collect(),
            trusted_authorities: basis.trusted_authorities.as_ref().map(path),
            revoked_keys: basis.revoked_keys.as_ref().map(path),
        })
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let files = self.keys.iter().chain(&self.trusted_authorities).chain(&self.revoked_keys);
        files.map(PathBuf::as_path)
    }

    /// The stamps of all files.
    fn stamps(&self) -> Vec<Option<Stamp>> {
        self.paths().map(Stamp::of).collect()
    }
}

/// Whether no file was changed less than this ago.
fn are_settled(stamps: &[Option<Stamp>], unsettled: Duration) -> bool {
    stamps.iter().flatten().all(|stamp| stamp.is_older_than(unsettled))
}

/// Looks at what a connection's grant rests on: before each request, and now and then.
///
/// Where all of it is on file systems of this machine that is done at once, because it costs some
/// microseconds. Elsewhere it is done on a thread, one for all connections: a file server may not
/// answer, and the other connections and jobs must not wait for it.
pub(super) struct Watch {
    state: State,
    looking: Arc<Semaphore>,
    /// How many looks were begun.
    begun: u64,
    /// Its first tick is not at once.
    ticks: Interval,
}

/// What a look has come to; `None` if there is nothing to look at, or a thread has panicked.
type Look = Option<(Box<Standing>, Result<(), Refusal>)>;

enum State {
    /// It rests on no file.
    Unconditional,
    Known(Box<Standing>),
    UnderWay(JoinHandle<Look>),
    /// The grant is not readable, or a thread has panicked.
    Broken,
}

/// What is known when a request comes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Whether the grant holds.
    Now(Result<(), Refusal>),
    /// The look of this number will tell.
    After(u64),
}

impl Watch {
    /// For a grant that has just come from a listener. `local` are files that were found to be on this
    /// machine.
    pub(super) fn new(
        grant: &Grant,
        user: &User,
        looking: &Arc<Semaphore>,
        local: Option<&Files>,
    ) -> Self {
        let mut watch = Self {
            state: State::Unconditional,
            looking: Arc::clone(looking),
            begun: 0,
            ticks: ticks(),
        };
        if grant.basis.is_none() {
            return watch;
        }
        if local.is_some() && local == Files::of(grant).as_ref() {
            watch.state = Standing::of(grant, user).map_or(State::Broken, |known| {
                State::Known(Box::new(Standing { is_local: true, ..known }))
            });
            return watch;
        }
        let (grant, user, began) = (grant.clone(), user.clone(), Instant::now());
        watch.begin(move || {
            let mut standing = Standing::of(&grant, &user)?;
            standing.is_local = are_local(standing.files.paths());
            if began.elapsed() > LOOK_DEADLINE {
                // So late a look says nothing of what the listener has seen.
                standing.good = None;
            }
            Some(Box::new(standing))
        });
        watch
    }

    /// The files, once they are known to be on this machine.
    pub(super) fn local_files(&self) -> Option<&Files> {
        match &self.state {
            State::Known(standing) if standing.is_local => Some(&standing.files),
            _ => None,
        }
    }

    /// Looks for a request that has just come.
    pub(super) fn look(&mut self) -> Answer {
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Unconditional => {
                self.state = State::Unconditional;
                Answer::Now(Ok(()))
            }
            State::Known(mut standing) if standing.is_local => {
                let result = standing.check();
                self.state = State::Known(standing);
                Answer::Now(result)
            }
            State::Known(standing) => {
                self.begin(move || Some(standing));
                Answer::After(self.begun)
            }
            // What is under way may have looked already, before the request came.
            State::UnderWay(look) => {
                self.state = State::UnderWay(look);
                Answer::After(self.begun + 1)
            }
            State::Broken => Answer::Now(Err(broken())),
        }
    }

    /// Waits for the next look to end, and says which one it was and what it has found. For ever, if
    /// the grant rests on no file. Nothing is lost when this is dropped.
    pub(super) async fn looked(&mut self) -> (u64, Result<(), Refusal>) {
        loop {
            match &mut self.state {
                State::Unconditional => return std::future::pending().await,
                State::Broken => return (self.begun, Err(broken())),
                State::Known(_) => {
                    self.ticks.tick().await;
                    if let Answer::Now(result) = self.look() {
                        return (self.begun, result);
                    }
                }
                State::UnderWay(look) => {
                    let looked = look.await;
                    self.ticks.reset();
                    let Ok(Some((standing, result))) = looked else {
                        self.state = State::Broken;
                        continue;
                    };
                    self.state = State::Known(standing);
                    return (self.begun, result);
                }
            }
        }
    }

    fn begin(&mut self, standing: impl FnOnce() -> Option<Box<Standing>> + Send + 'static) {
        self.begun += 1;
        let looking = Arc::clone(&self.looking);
        self.state = State::UnderWay(tokio::spawn(async move {
            // The semaphore is never closed. A thread that is left behind keeps its turn.
            let turn = looking.acquire_owned().await;
            let look = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let mut standing = standing()?;
                let result = standing.check();
                Some((standing, result))
            });
            look.await.ok().flatten()
        }));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // One that waits for its turn need not have it any more.
        if let State::UnderWay(look) = &self.state {
            look.abort();
        }
    }
}

fn ticks() -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + STANDING_INTERVAL, STANDING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn broken() -> Refusal {
    "looking at it failed".to_owned()
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
        standing.good = Some(standing.files.stamps());
        standing.check().unwrap();
    }

    #[test]
    fn fault_76_a_file_is_read_at_each_look_while_a_change_could_pass_for_another() {
        let rig = Rig::new();
        rig.write("keys", &line());
        let mut standing = rig.standing("keys", None);
        for is_local in [false, true] {
            standing.is_local = is_local;
            standing.check().unwrap();
            assert_eq!(standing.good, None);
        }
        let fresh = Stamp::of(&rig.home.path().join("keys")).unwrap();
        let settled = |age_s, standing: &Standing| {
            are_settled(&[Some(fresh.aged(age_s)), None], standing.unsettled())
        };
        assert!(!settled(0, &standing) && settled(4, &standing));
        standing.is_local = false;
        assert!(!settled(4, &standing) && !settled(80, &standing) && settled(92, &standing));
    }

    #[tokio::test(start_paused = true)]
    async fn where_files_may_be_far_away_a_request_waits_for_a_look_that_began_after_it() {
        let rig = Rig::new();
        rig.write("keys", &line());
        let looking = Arc::new(Semaphore::new(1));
        let mut watch = Watch {
            state: State::Known(Box::new(rig.standing("keys", None))),
            looking: Arc::clone(&looking),
            begun: 0,
            ticks: ticks(),
        };
        assert_eq!(watch.look(), Answer::After(1));
        assert_eq!(watch.look(), Answer::After(2));
        assert_eq!(watch.looked().await, (1, Ok(())));
        // Another connection's look does not come back, and nobody's thread waits for it.
        let turn = looking.acquire_owned().await.unwrap();
        assert_eq!(watch.look(), Answer::After(2));
        assert!(tokio::time::timeout(LOOK_DEADLINE, watch.looked()).await.is_err());
        rig.write("keys", "");
        drop(turn);
        let (number, found) = watch.looked().await;
        assert!(number == 2 && found.is_err());
    }

    #[tokio::test]
    async fn files_of_this_machine_are_looked_at_at_once_and_only_those() {
        let rig = Rig::new();
        rig.write("keys", &line());
        let mut standing = rig.standing("keys", None);
        standing.is_local = true;
        let mut watch = Watch {
            state: State::Known(Box::new(standing)),
            looking: Arc::new(Semaphore::new(1)),
            begun: 0,
            ticks: ticks(),
        };
        assert_eq!(watch.look(), Answer::Now(Ok(())));
        rig.write("keys", "");
        assert!(matches!(watch.look(), Answer::Now(Err(_))));
    }
}
