//! Who may come in: users, their keys, and the ephemeral keys that accepted keys vouched for.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use afar_core::diagnostic::Diagnostics;
use afar_core::key::PublicKeyBlob;
use afar_core::policy::{Basis, Grant, GrantKind, Restrictions};
use afar_net::accept::{Admitted, Gatekeeper, ProvedLogin};
use afar_sys::users::User;

use super::trust::{AcceptedKeys, Refusal, ServerFiles, check_token, describe};
use crate::log::Log;

/// For how long an ephemeral key may stand in for the key that vouched for it.
pub const DELEGATION_LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Ephemeral keys that are remembered at once; the one that ends first goes when there are more.
pub const DELEGATIONS_MAX: usize = 4096;

/// How long reading a user's files of keys may take. The client has a minute in all (`W-9.13`).
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// The gate of a listener that serves the user who runs it.
#[derive(Debug)]
pub(super) struct Gate {
    user: User,
    authorized_keys: Vec<String>,
    server_files: Arc<ServerFiles>,
    /// Shared with the gate that follows this one.
    delegations: Arc<Mutex<BTreeMap<Vec<u8>, Delegation>>>,
    /// What was last remarked on a file, if anything.
    remarks: Mutex<BTreeMap<PathBuf, Diagnostics>>,
    log: Log,
}

/// What an ephemeral key stands in for. Its grant is looked up anew whenever it is used, so that a
/// key that was removed takes its ephemeral keys with it.
#[derive(Clone, Debug)]
struct Delegation {
    key: PublicKeyBlob,
    until: Instant,
}

/// What lets a key in.
struct Found {
    kind: GrantKind,
    /// The key, or the one which vouched for it.
    key: PublicKeyBlob,
    restrictions: Restrictions,
    basis: Basis,
}

impl Gate {
    pub(super) fn new(
        user: User,
        authorized_keys: Vec<String>,
        server_files: ServerFiles,
        log: Log,
    ) -> Self {
        Self {
            user,
            authorized_keys,
            server_files: Arc::new(server_files),
            delegations: Arc::default(),
            remarks: Mutex::default(),
            log,
        }
    }

    /// Takes the place of another gate: who was vouched for there is so here, under this one's rules.
    pub(super) fn succeed(&mut self, before: &Self) {
        self.delegations = Arc::clone(&before.delegations);
    }

    /// Reads what decides about the user's keys, each file once, whatever it is then asked; on a
    /// thread of its own, because a home may be on a server that does not answer.
    async fn read_files(&self, user: &str) -> Result<AcceptedKeys, Refusal> {
        if OsStr::new(user) != self.user.name {
            return Err("this server serves only the user who runs it".to_owned());
        }
        let paths: Vec<PathBuf> =
            self.authorized_keys.iter().map(|pattern| expand(pattern, &self.user)).collect();
        let (user, server_files) = (self.user.clone(), Arc::clone(&self.server_files));
        let read = tokio::task::spawn_blocking(move || server_files.accepted_keys(&user, paths));
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(Ok(accepted)) => {
                self.log_remarks(&accepted);
                Ok(accepted)
            }
            Ok(Err(error)) => Err(format!("the files of keys could not be read: {error}")),
            Err(_) => Err("reading the files of keys took too long".to_owned()),
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
    ) -> Result<Found, Refusal> {
        let accepted = self.read_files(user).await?;
        let found = |kind, key: PublicKeyBlob, restrictions| {
            let basis = accepted.basis(&key);
            Found { kind, key, restrictions, basis }
        };
        let refusal = match accepted.judge(key, source) {
            Ok(restrictions) => return Ok(found(GrantKind::Key, key.clone(), restrictions)),
            Err(refusal) => refusal,
        };
        let delegator = self.delegator(key.as_bytes()).ok_or(refusal)?;
        let restrictions = accepted
            .judge(&delegator, source)
            .map_err(|refusal| format!("{} vouched for it: {refusal}", describe(&delegator)))?;
        Ok(found(GrantKind::Delegated, delegator, restrictions))
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

    fn delegations(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Delegation>> {
        // The map is whole after every statement, so a panic elsewhere leaves nothing half done.
        self.delegations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that vouched for this ephemeral one.
    fn delegator(&self, key: &[u8]) -> Option<PublicKeyBlob> {
        let now = Instant::now();
        let mut delegations = self.delegations();
        delegations.retain(|_, delegation| delegation.until > now);
        delegations.get(key).map(|delegation| delegation.key.clone())
    }

    fn delegate(&self, ephemeral: &[u8], lifetime_s: u32, key: &PublicKeyBlob) -> Option<u32> {
        let ephemeral = PublicKeyBlob::from_wire(ephemeral.to_vec()).ok()?;
        if ephemeral.algorithm() != "ssh-ed25519" || lifetime_s == 0 {
            return None;
        }
        let lifetime = Duration::from_secs(lifetime_s.into()).min(DELEGATION_LIFETIME_MAX);
        let until = Instant::now() + lifetime;
        let mut delegations = self.delegations();
        // Nobody has proved to hold the ephemeral key: one that another key vouched for stays that
        // one's, or a restricted key could put its own restrictions on it.
        if delegations.get(ephemeral.as_bytes()).is_some_and(|found| found.key != *key) {
            return None;
        }
        if delegations.len() >= DELEGATIONS_MAX {
            let first = delegations.iter().min_by_key(|(_, d)| d.until).map(|(k, _)| k.clone());
            first.and_then(|first| delegations.remove(&first));
        }
        delegations.insert(ephemeral.into_bytes(), Delegation { key: key.clone(), until });
        u32::try_from(lifetime.as_secs()).ok()
    }
}

impl Gatekeeper for Gate {
    type Grant = Grant;

    async fn first_accepted(&self, user: &str, keys: &[&[u8]], source: IpAddr) -> Option<usize> {
        let accepted = match self.read_files(user).await {
            Ok(accepted) => accepted,
            Err(reason) => {
                self.log.info(&format!("{source}: no key is accepted: {reason}"));
                return None;
            }
        };
        keys.iter().position(|key| {
            let Ok(key) = PublicKeyBlob::from_wire(key.to_vec()) else { return false };
            let Err(reason) = accepted.judge(&key, source) else { return true };
            if self
                .delegator(key.as_bytes())
                .is_some_and(|key| accepted.judge(&key, source).is_ok())
            {
                return true;
            }
            // Most clients ask about keys that are not meant for this server; a certificate that is
            // not taken is a mistake of somebody's.
            let line = format!("{source}: {} would be refused: {reason}", describe(&key));
            if key.is_certificate() {
                self.log.info(&line);
            } else {
                self.log.debug(&line);
            }
            false
        })
    }

    async fn admit(&self, login: &ProvedLogin<'_>) -> Option<Admitted<Grant>> {
        let source = login.source.ip();
        let proved = login.key.blob();
        let found = self.find_grant(login.user, proved, source).await.and_then(|found| {
            check_token(login.key.fido(), &found.restrictions)?;
            Ok(found)
        });
        match found {
            Ok(Found { kind, key, restrictions, basis }) => {
                let delegate_lifetime_s = match (kind, login.delegate) {
                    // An ephemeral key vouches for no other one, or it would never end.
                    (GrantKind::Key, Some((ephemeral, lifetime_s))) => {
                        self.delegate(ephemeral, lifetime_s, &key)
                    }
                    _ => None,
                };
                let grant = Grant {
                    kind,
                    user: login.user.into(),
                    uid: self.user.uid,
                    key_fingerprint: Some(key.fingerprint()),
                    source_address: Some(source),
                    restrictions,
                    basis: Some(basis),
                };
                self.log.debug(&format!("{source}: let in with {}", describe(&key)));
                Some(Admitted { grant, delegate_lifetime_s })
            }
            Err(reason) => {
                self.log.info(&format!("{source}: {} refused: {reason}", describe(proved)));
                None
            }
        }
    }
}

/// The path that `AuthorizedKeysFile` (sshd_config(5)) would mean by this: `%h` is the home, `%u`
/// the name, `%%` a percent sign, and what is relative is relative to the home.
fn expand(pattern: &str, user: &User) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = pattern.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            path.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'h') => path.extend_from_slice(user.home.as_os_str().as_bytes()),
            Some(b'u') => path.extend_from_slice(user.name.as_bytes()),
            Some(b'%') => path.push(b'%'),
            other => path.extend(std::iter::once(b'%').chain(other)),
        }
    }
    user.home.join(OsStr::from_bytes(&path))
}

/// Whether a pattern for authorized_keys holds only the tokens that are known.
///
/// # Errors
/// The token that is not.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let mut rest = pattern.chars();
    while let Some(character) = rest.next() {
        if character == '%' {
            match rest.next() {
                Some('h' | 'u' | '%') => {}
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".to_owned()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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

    fn gate(user: User, authorized_keys: Vec<String>) -> Gate {
        Gate::new(user, authorized_keys, ServerFiles::default(), Log::default())
    }

    #[test]
    fn patterns_expand_as_in_sshd() {
        let user = user();
        assert_eq!(
            expand("%h/.ssh/authorized_keys", &user),
            Path::new("/home/ann/.ssh/authorized_keys")
        );
        assert_eq!(expand(".ssh/keys", &user), Path::new("/home/ann/.ssh/keys"));
        assert_eq!(expand("/etc/keys/%u%%", &user), Path::new("/etc/keys/ann%"));
        assert_eq!(check_pattern("%h/%u/%%"), Ok(()));
        assert_eq!(check_pattern("%x"), Err("%x".to_owned()));
        assert_eq!(check_pattern("a%"), Err("%".to_owned()));
    }

    #[test]
    fn an_ephemeral_key_stands_in_for_its_key_for_a_bounded_time_only() {
        let gate = gate(user(), Vec::new());
        let blob = |byte: u8| {
            let mut wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
            wire.extend([byte; 32]);
            PublicKeyBlob::from_wire(wire).unwrap()
        };
        let (key, ephemeral) = (blob(1), blob(2));
        assert_eq!(gate.delegator(ephemeral.as_bytes()), None);
        let day = u32::try_from(DELEGATION_LIFETIME_MAX.as_secs()).unwrap();
        assert_eq!(gate.delegate(ephemeral.as_bytes(), u32::MAX, &key), Some(day));
        assert_eq!(gate.delegator(ephemeral.as_bytes()), Some(key.clone()));
        assert_eq!(gate.delegate(ephemeral.as_bytes(), 0, &key), None);
        assert_eq!(gate.delegate(b"no key", 60, &key), None);
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
        let gate = gate(me, vec!["keys".to_owned()]);
        let source = "127.0.0.1:1".parse().unwrap();
        let delegate = Some((free.blob().as_bytes(), 60));
        let login = ProvedLogin { user: "ann", key: &restricted, source, delegate };
        assert!(gate.admit(&login).await.is_some());
        let login = ProvedLogin { user: "ann", key: &free, source, delegate: None };
        let grant = gate.admit(&login).await.unwrap().grant;
        assert_eq!(grant.kind, GrantKind::Key);
        assert_eq!(grant.restrictions, Restrictions::default());
    }

    #[test]
    fn an_ephemeral_key_stays_that_of_the_key_which_vouched_for_it_first() {
        let gate = gate(user(), Vec::new());
        let blob = |byte: u8| {
            let mut wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
            wire.extend([byte; 32]);
            PublicKeyBlob::from_wire(wire).unwrap()
        };
        let (first, second, ephemeral) = (blob(1), blob(2), blob(3));
        assert_eq!(gate.delegate(ephemeral.as_bytes(), 60, &first), Some(60));
        assert_eq!(gate.delegate(ephemeral.as_bytes(), 60, &second), None);
        assert_eq!(gate.delegate(ephemeral.as_bytes(), 90, &first), Some(90));
        assert_eq!(gate.delegator(ephemeral.as_bytes()), Some(first));
    }

    #[test]
    fn ephemeral_keys_are_bounded_in_number() {
        let gate = gate(user(), Vec::new());
        for number in 0..=u32::try_from(DELEGATIONS_MAX).unwrap() {
            let mut wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
            wire.extend(number.to_be_bytes().repeat(8));
            let key = PublicKeyBlob::from_wire(wire).unwrap();
            assert!(gate.delegate(key.as_bytes(), 60, &key).is_some());
        }
        assert_eq!(gate.delegations().len(), DELEGATIONS_MAX);
    }
}
