//! Who may come in: users, their keys, and the ephemeral keys that accepted keys vouched for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afar_core::diagnostic::Diagnostics;
use afar_core::key::PublicKeyBlob;
use afar_core::policy::{Basis, Grant, GrantKind, Restrictions};
use afar_net::accept::{Admitted, Denied, Gatekeeper, ProvedLogin};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::delegations::{Delegations, Voucher};
use super::trust::{AcceptedKeys, Refusal, ServerFiles, check_token, describe};
use crate::local_files::{KnownLocal, are_local};
use crate::log::Log;
use crate::monitor::Monitor;

/// How long reading a user's files of keys may take, with the wait for a turn. The client has a
/// minute in all (`W-9.13`).
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Reads of one user's files of keys that may be under way at once; more wait for their turn. One that
/// never ends holds a thread.
const READS_PER_USER_MAX: usize = 16;

/// The gate of a listener.
#[derive(Debug)]
pub(super) struct Gate {
    monitor: Arc<Monitor>,
    server_files: Arc<ServerFiles>,
    /// Shared with the gate that follows this one.
    delegations: Arc<Delegations>,
    /// Shared likewise: what does not end goes on.
    reads: Reads,
    /// Whether all that decides about the account of whoever runs the server is on this machine.
    own_are_local: Arc<KnownLocal>,
    /// What was last remarked on a file, if anything.
    remarks: Mutex<BTreeMap<PathBuf, Diagnostics>>,
    log: Log,
}

/// A key that may come in.
struct Found {
    kind: GrantKind,
    /// The key whose line it is.
    key: PublicKeyBlob,
    uid: u32,
    restrictions: Restrictions,
    basis: Basis,
}

/// Why a login is not taken, and the line for the log.
struct Unaccepted {
    denied: Denied,
    reason: Refusal,
}

impl From<Refusal> for Unaccepted {
    fn from(reason: Refusal) -> Self {
        Self { denied: Denied::Refused, reason }
    }
}

/// The turns to read each user's files, of those users for whom somebody has one or waits for one.
#[derive(Clone, Debug, Default)]
struct Reads(Arc<Mutex<BTreeMap<String, Turns>>>);

#[derive(Debug)]
struct Turns {
    free: Arc<Semaphore>,
    /// Those who have one, and those who wait.
    asked: usize,
}

/// Somebody who waits for a turn, or has it until this is dropped.
struct Reading {
    reads: Reads,
    user: String,
    turn: Option<OwnedSemaphorePermit>,
}

impl Reads {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Turns>> {
        // The map is whole after every statement, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn, in the order in which they were asked for. Whoever stops waiting gives it up.
    async fn begin(&self, user: &str) -> Reading {
        let free = {
            let mut reads = self.lock();
            let turns = reads.entry(user.to_owned()).or_insert_with(|| Turns {
                free: Arc::new(Semaphore::new(READS_PER_USER_MAX)),
                asked: 0,
            });
            turns.asked += 1;
            Arc::clone(&turns.free)
        };
        let mut reading = Reading { reads: self.clone(), user: user.to_owned(), turn: None };
        // The semaphore is never closed.
        reading.turn = free.acquire_owned().await.ok();
        reading
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.turn = None;
        let mut reads = self.reads.lock();
        if let Some(turns) = reads.get_mut(&self.user) {
            turns.asked -= 1;
            if turns.asked == 0 {
                reads.remove(&self.user);
            }
        }
    }
}

impl Gate {
    pub(super) fn new(monitor: Arc<Monitor>, server_files: ServerFiles, log: Log) -> Self {
        Self {
            monitor,
            server_files: Arc::new(server_files),
            delegations: Arc::default(),
            reads: Reads::default(),
            own_are_local: Arc::new(KnownLocal::new()),
            remarks: Mutex::default(),
            log,
        }
    }

    /// Takes the place of another gate: who was vouched for there is so here, under this one's rules.
    pub(super) fn succeed(&mut self, before: &Self) {
        self.delegations = Arc::clone(&before.delegations);
        self.reads = before.reads.clone();
    }

    /// Reads what decides about the user's keys, each file once, whatever it is then asked.
    ///
    /// Here and now where that is known to take no time to speak of: for the account of whoever runs
    /// the server, with files of this machine. Others could lead us elsewhere, by a link; theirs, and
    /// what is not known, are read on a thread of its own, because a home may be on a server that does
    /// not answer. What then stays behind keeps its turn, so that one user's home does not take all
    /// threads.
    async fn read_files(&self, user: &str, source: IpAddr) -> Result<AcceptedKeys, Unaccepted> {
        let unjudged = |reason: String| Unaccepted { denied: Denied::Unjudged, reason };
        let own_files = self.monitor.own_files(user);
        if own_files.is_some() && self.own_are_local.get() {
            let account = self.monitor.keys(user, source)?;
            let accepted = self.server_files.accepted_keys(account);
            self.log_remarks(&accepted);
            return Ok(accepted);
        }
        let own_are_local = Arc::clone(&self.own_are_local);
        let (monitor, name) = (Arc::clone(&self.monitor), user.to_owned());
        let server_files = Arc::clone(&self.server_files);
        let read = async {
            let reading = self.reads.begin(user).await;
            let read = tokio::task::spawn_blocking(move || {
                let _reading = reading;
                if let Some(files) = own_files {
                    let files = files.iter().map(PathBuf::as_path).chain(server_files.paths());
                    own_are_local.learn(|| are_local(files));
                }
                monitor.keys(&name, source).map(|account| server_files.accepted_keys(account))
            });
            read.await
        };
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(Ok(accepted)) => {
                let accepted = accepted?;
                self.log_remarks(&accepted);
                Ok(accepted)
            }
            Ok(Err(error)) => Err(unjudged(format!("the files of keys were not read: {error}"))),
            Err(_) => {
                let reason = format!("reading the files of keys of {user:?} took too long");
                Err(unjudged(reason))
            }
        }
    }

    /// Whose line lets this key in, how, and what it allows: its own line if it has one that does,
    /// so that nobody who vouches for a key of others changes what that key may do; else that of
    /// the key which vouched for it.
    async fn find_grant(
        &self,
        user: &str,
        key: &PublicKeyBlob,
        source: IpAddr,
    ) -> Result<Found, Unaccepted> {
        let accepted = self.read_files(user, source).await?;
        let uid = accepted.uid();
        let found = |kind, key: PublicKeyBlob, restrictions: Restrictions| {
            let judged = self.monitor.rules().judge_key(uid, &restrictions);
            judged.map_err(|refused| refused.to_string())?;
            let basis = accepted.basis(&key);
            Ok(Found { kind, key, uid, restrictions, basis })
        };
        let refusal = match accepted.judge(key, source) {
            Ok(restrictions) => return found(GrantKind::Key, key.clone(), restrictions),
            Err(refusal) => refusal,
        };
        let voucher = self.delegations.voucher(user, key.as_bytes()).ok_or(refusal)?;
        let judged = accepted.judge(&voucher.key, source).and_then(|restrictions| {
            voucher.check(&restrictions)?;
            Ok(restrictions)
        });
        let restrictions = judged
            .map_err(|refusal| format!("{} vouched for it: {refusal}", describe(&voucher.key)))?;
        found(GrantKind::Delegated, voucher.key, restrictions)
    }

    /// Says what there is to remark on the files, once for each change of what that is.
    fn log_remarks(&self, accepted: &AcceptedKeys) {
        let mut last = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, diagnostics) in accepted.remarks() {
            if diagnostics.is_empty() {
                last.remove(path);
                continue;
            }
            if last.get(path) == Some(diagnostics) {
                continue;
            }
            last.insert(path.to_owned(), diagnostics.clone());
            for diagnostic in diagnostics.kept() {
                self.log.info(&format!("{}: {diagnostic}", path.display()));
            }
            if diagnostics.left_out() > 0 {
                let left_out = diagnostics.left_out();
                self.log.info(&format!("{}: {left_out} more bad lines", path.display()));
            }
        }
    }
}

impl Gatekeeper for Gate {
    type Grant = Grant;

    async fn first_accepted(
        &self,
        user: &str,
        keys: &[&[u8]],
        source: SocketAddr,
    ) -> Result<usize, Denied> {
        let accepted = match self.read_files(user, source.ip()).await {
            Ok(accepted) => accepted,
            Err(Unaccepted { denied, reason }) => {
                self.log.info(&format!("{source}: no key of {user:?} is accepted: {reason}"));
                return Err(denied);
            }
        };
        let found = keys.iter().position(|key| {
            let Ok(key) = PublicKeyBlob::from_wire(key.to_vec()) else { return false };
            let Err(reason) = accepted.judge(&key, source.ip()) else { return true };
            let voucher = self.delegations.voucher(user, key.as_bytes());
            if voucher.is_some_and(|voucher| {
                let judged = accepted.judge(&voucher.key, source.ip());
                judged.is_ok_and(|restrictions| voucher.check(&restrictions).is_ok())
            }) {
                return true;
            }
            // Most clients ask about keys that are not meant for this server; a certificate that is
            // not taken is a mistake of somebody's.
            let key_shown = describe(&key);
            let line = format!("{source}: {user:?} would be refused with {key_shown}: {reason}");
            if key.is_certificate() {
                self.log.info(&line);
            } else {
                self.log.debug(&line);
            }
            false
        });
        found.ok_or(Denied::Refused)
    }

    async fn admit(&self, login: &ProvedLogin<'_>) -> Result<Admitted<Grant>, Denied> {
        let source = login.source.ip();
        let proved = login.key.blob();
        let found = self.find_grant(login.user, proved, source).await.and_then(|found| {
            check_token(login.key.fido(), &found.restrictions)?;
            Ok(found)
        });
        match found {
            Ok(Found { kind, key, uid, restrictions, basis }) => {
                let delegate_lifetime_s = match (kind, login.delegate) {
                    // An ephemeral key vouches for no other one, or it would never end.
                    (GrantKind::Key, Some(wanted)) => {
                        let voucher = Voucher::new(key.clone(), login.key.fido());
                        self.delegations.delegate(login.user, wanted, voucher, &restrictions)
                    }
                    _ => None,
                };
                let grant = Grant {
                    kind,
                    user: login.user.into(),
                    uid,
                    key_fingerprint: Some(key.fingerprint()),
                    source_address: Some(source),
                    restrictions,
                    basis: Some(basis),
                };
                let came =
                    format!("{}: {:?} let in with {}", login.source, login.user, describe(&key));
                self.log.info(&came);
                Ok(Admitted { grant, delegate_lifetime_s })
            }
            Err(Unaccepted { denied, reason }) => {
                let (source, user, key) = (login.source, login.user, describe(proved));
                self.log.info(&format!("{source}: {user:?} refused with {key}: {reason}"));
                Err(denied)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use afar_core::account::AccountRules;
    use afar_sys::users::User;

    use super::*;
    use crate::launch::Launcher;
    use crate::monitor::MonitorConfig;

    fn user() -> User {
        User {
            name: "ann".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
            gecos: "".into(),
        }
    }

    fn gate(own: User, authorized_keys: &[&str]) -> Gate {
        let config = MonitorConfig {
            rules: AccountRules::default(),
            authorized_keys: authorized_keys.iter().map(|path| (*path).to_owned()).collect(),
            launcher: Launcher::new("/nonexistent/afar".into()),
        };
        let monitor = Arc::new(Monitor::new(own, config));
        Gate::new(monitor, ServerFiles::default(), Log::default())
    }

    #[tokio::test]
    async fn one_users_home_takes_only_so_many_threads_and_more_wait_for_their_turn() {
        let reads = Reads::default();
        let mut under_way = Vec::new();
        for _ in 0..READS_PER_USER_MAX {
            under_way.push(reads.begin("ann").await);
        }
        let mut next = Box::pin(reads.begin("ann"));
        let given_up = tokio::time::timeout(Duration::ZERO, reads.begin("ann"));
        assert!(given_up.await.is_err());
        assert!(tokio::time::timeout(Duration::ZERO, &mut next).await.is_err());
        let bob = reads.begin("bob").await;
        under_way.pop();
        let next = next.await;
        assert!(next.turn.is_some() && bob.turn.is_some());
        drop((under_way, next, bob));
        assert!(reads.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn fault_82_a_good_key_is_let_in_after_those_before_it_and_our_delay_is_nobodys_fault() {
        let home = tempfile::tempdir().unwrap();
        let key = proved().await;
        std::fs::write(home.path().join("keys"), line("", &key)).unwrap();
        let me =
            User { home: home.path().to_owned(), uid: afar_sys::users::effective_uid(), ..user() };
        let gate = gate(me, &["keys"]);
        let source = "127.0.0.1:1".parse().unwrap();
        let login = ProvedLogin { user: "ann", key: &key, source, delegate: None };
        let mut under_way = Vec::new();
        for _ in 0..READS_PER_USER_MAX {
            under_way.push(gate.reads.begin("ann").await);
        }
        // W-4.11: they never end, and so nobody can say whether the key is good.
        assert_eq!(gate.admit(&login).await.unwrap_err(), Denied::Unjudged);
        let asked = gate.first_accepted("ann", &[key.blob().as_bytes()], source).await;
        assert_eq!(asked, Err(Denied::Unjudged));
        let free_one = async {
            tokio::task::yield_now().await;
            under_way.pop();
        };
        let (admitted, ()) = tokio::join!(gate.admit(&login), free_one);
        assert!(admitted.is_ok());
    }

    #[tokio::test]
    async fn files_of_this_machine_are_read_at_once_when_that_is_known() {
        let home = tempfile::tempdir().unwrap();
        let key = proved().await;
        let me =
            User { home: home.path().to_owned(), uid: afar_sys::users::effective_uid(), ..user() };
        let gate = gate(me, &["keys"]);
        let source = "127.0.0.1:1".parse().unwrap();
        let login = ProvedLogin { user: "ann", key: &key, source, delegate: None };
        let admitted = async |contents: String| {
            std::fs::write(home.path().join("keys"), contents).unwrap();
            gate.admit(&login).await.is_ok()
        };
        assert!(!admitted(String::new()).await);
        // Now it is known. All turns are taken, which nobody has to wait for.
        let mut under_way = Vec::new();
        for _ in 0..READS_PER_USER_MAX {
            under_way.push(gate.reads.begin("ann").await);
        }
        assert!(admitted(line("", &key)).await);
        assert!(!admitted(String::new()).await);
    }

    /// A key's blob, and a proof of it: the only way to a [`ProvedLogin`] is a signature.
    async fn proved() -> afar_net::sshsig::VerifiedKey {
        let key = afar_net::signer::DelegatedKey::generate().unwrap();
        let signer = afar_net::signer::Signer::Delegated(key);
        let signature = signer.sign(b"").await.unwrap();
        afar_net::sshsig::verify(signer.public_blob(), &signature, b"").unwrap()
    }

    fn line(options: &str, key: &afar_net::sshsig::VerifiedKey) -> String {
        format!("{options} {}\n", key.blob().to_fields())
    }

    #[tokio::test]
    async fn a_key_that_vouches_for_another_listed_key_does_not_put_its_restrictions_on_it() {
        let home = tempfile::tempdir().unwrap();
        let (restricted, free) = (proved().await, proved().await);
        let lines = line("command=\"false\",restrict", &restricted) + &line("", &free);
        std::fs::write(home.path().join("keys"), lines).unwrap();
        let me =
            User { home: home.path().to_owned(), uid: afar_sys::users::effective_uid(), ..user() };
        let gate = gate(me, &["keys"]);
        let source = "127.0.0.1:1".parse().unwrap();
        let delegate = Some((free.blob().as_bytes(), 60));
        let login = ProvedLogin { user: "ann", key: &restricted, source, delegate };
        assert!(gate.admit(&login).await.is_ok());
        let login = ProvedLogin { user: "ann", key: &free, source, delegate: None };
        let grant = gate.admit(&login).await.unwrap().grant;
        assert_eq!(grant.kind, GrantKind::Key);
        assert_eq!(grant.restrictions, Restrictions::default());
    }
}
