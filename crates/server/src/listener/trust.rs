//! What lets a key in: authorized_keys, authorities that are trusted, and nothing that is revoked.

use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use afar_core::authorized_keys::{AuthorizedKeys, Context, Decision, UserEnvironment};
use afar_core::certificate::{Certificate, UserCheck};
use afar_core::diagnostic::Diagnostics;
use afar_core::escape::escape_bounded;
use afar_core::key::PublicKeyBlob;
use afar_core::limits::{REVOKED_KEYS_BYTES_MAX, TRUSTED_KEYS_BYTES_MAX};
use afar_core::policy::{Basis, Restrictions};
use afar_core::revocation::RevokedKeys;
use afar_core::trusted_keys::TrustedKeys;
use afar_net::certificate::verify_authority;
use afar_net::signature::FidoAssertion;
use afar_proto::json::ByteString;

use super::watched_file::WatchedFile;
use crate::monitor::{AccountKeys, FileRead};

/// Why a key is not let in: for the log only.
pub(crate) type Refusal = String;

/// The server's own files, which hold for every user.
#[derive(Debug, Default)]
pub(crate) struct ServerFiles {
    trusted_authorities: Option<WatchedFile<TrustedKeys>>,
    revoked_keys: Option<WatchedFile<RevokedKeys>>,
}

impl ServerFiles {
    /// Takes the files that the configuration names, and reads them once.
    ///
    /// # Errors
    /// One of them can't be used, in one line that names it: better a server that does not start
    /// than one that lets nobody in.
    pub(super) fn open(
        trusted_authorities: Option<PathBuf>,
        revoked_keys: Option<PathBuf>,
    ) -> Result<Self, String> {
        let files = Self::new(trusted_authorities, revoked_keys);
        if let Some(file) = &files.trusted_authorities {
            file.load().map_err(|error| format!("the trusted authorities: {error}"))?;
        }
        if let Some(file) = &files.revoked_keys {
            file.load().map_err(|error| format!("the revoked keys: {error}"))?;
        }
        Ok(files)
    }

    /// Takes the files, unread.
    pub(crate) fn new(trusted_authorities: Option<PathBuf>, revoked_keys: Option<PathBuf>) -> Self {
        let parse_trusted =
            |bytes: &[u8]| TrustedKeys::parse(bytes).map_err(|error| error.to_string());
        let parse_revoked =
            |bytes: &[u8]| RevokedKeys::parse(bytes).map_err(|error| error.to_string());
        // One byte over the limit, so that the reader says that the file is too large.
        let trusted_max = TRUSTED_KEYS_BYTES_MAX as u64 + 1;
        let revoked_max = REVOKED_KEYS_BYTES_MAX as u64 + 1;
        Self {
            trusted_authorities: trusted_authorities
                .map(|path| WatchedFile::new(path, trusted_max, parse_trusted)),
            revoked_keys: revoked_keys
                .map(|path| WatchedFile::new(path, revoked_max, parse_revoked)),
        }
    }

    /// Where they are.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let trusted = self.trusted_authorities.iter().map(WatchedFile::path);
        trusted.chain(self.revoked_keys.iter().map(WatchedFile::path))
    }

    /// Everything that decides about the keys of this account, each file read once, whatever is then
    /// asked. Blocks on the file system.
    pub(crate) fn accepted_keys(&self, account: AccountKeys) -> AcceptedKeys {
        AcceptedKeys {
            user: account.user.name.to_string_lossy().into_owned(),
            uid: account.user.uid,
            login_shell_only: account.login_shell_only,
            files: account.files.into_iter().map(KeyFile::parse).collect(),
            trusted: self
                .trusted_authorities
                .as_ref()
                .map(|file| (file.path().to_owned(), file.load())),
            revoked: self.revoked_keys.as_ref().map(|file| (file.path().to_owned(), file.load())),
        }
    }
}

/// What decides about the keys of one user, as it was read at one time.
#[derive(Debug)]
pub(crate) struct AcceptedKeys {
    user: String,
    uid: u32,
    /// The login shell decides what is run.
    login_shell_only: bool,
    files: Vec<KeyFile>,
    trusted: Option<(PathBuf, Result<Arc<TrustedKeys>, Refusal>)>,
    revoked: Option<(PathBuf, Result<Arc<RevokedKeys>, Refusal>)>,
}

/// A file of keys as it was read, or why it is not believed.
#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    keys: Result<AuthorizedKeys, Refusal>,
}

impl KeyFile {
    fn parse(read: FileRead) -> Self {
        let parse = |contents: Vec<u8>| AuthorizedKeys::parse(&contents, UserEnvironment::Ignored);
        Self { path: read.path, keys: read.contents.map(parse) }
    }
}

impl AcceptedKeys {
    /// The id of the user.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// What this key, or certificate, is allowed from this address. The authority's signature on a
    /// certificate is verified here; that its key is possessed is for others to prove.
    ///
    /// # Errors
    /// Why nothing, for the log.
    pub(crate) fn judge(
        &self,
        key: &PublicKeyBlob,
        source: IpAddr,
    ) -> Result<Restrictions, Refusal> {
        let restrictions = self.judge_key(key, source)?;
        Ok(Restrictions { login_shell_only: self.login_shell_only, ..restrictions })
    }

    fn judge_key(&self, key: &PublicKeyBlob, source: IpAddr) -> Result<Restrictions, Refusal> {
        let certificate = match Certificate::parse(key) {
            Ok(certificate) => Some(certificate),
            Err(error) if key.is_certificate() => return Err(error.to_string()),
            Err(_) => None,
        };
        self.check_revoked(key, certificate.as_ref())?;
        let context = Context {
            now_s: jiff::Timestamp::now().as_second(),
            source: Some(source),
            local_time: None,
        };
        let Some(certificate) = certificate else {
            return self.judge_by_files(|keys| keys.find(key, context)).map_err(|r| r.join("; "));
        };
        let restrictions = self.judge_certificate(&certificate, context)?;
        // Last, and only for an authority that is trusted: a stranger's certificates cost nothing.
        verify_authority(&certificate).map_err(|error| error.to_string())?;
        Ok(restrictions)
    }

    /// Whether the key, or the certificate or its authority, is revoked. Where the file of revoked
    /// keys can't be read everything is, as with sshd.
    pub(super) fn check_revoked(
        &self,
        key: &PublicKeyBlob,
        certificate: Option<&Certificate>,
    ) -> Result<(), Refusal> {
        match &self.revoked {
            None => Ok(()),
            Some((_, Ok(revoked))) => match revoked.find(key, certificate) {
                Some(revocation) => Err(revocation.to_string()),
                None => Ok(()),
            },
            Some((_, Err(error))) => {
                Err(format!("every key counts as revoked while the list can't be used: {error}"))
            }
        }
    }

    fn judge_certificate(
        &self,
        certificate: &Certificate,
        context: Context<'_>,
    ) -> Result<Restrictions, Refusal> {
        let mut reasons = Vec::new();
        match &self.trusted {
            Some((path, Ok(trusted))) if trusted.contains(certificate.authority()) => {
                let Context { now_s, source, .. } = context;
                let names = [self.user.as_str()];
                match certificate.check_user(UserCheck { names: &names, now_s, source }) {
                    Ok(restrictions) => return Ok(restrictions),
                    Err(refusal) => reasons.push(format!("{}: {refusal}", path.display())),
                }
            }
            Some((_, Err(error))) => reasons.push(error.clone()),
            Some((_, Ok(_))) | None => {}
        }
        let found =
            self.judge_by_files(|keys| keys.find_certificate(certificate, &self.user, context));
        found.map_err(|more| {
            reasons.extend(more);
            reasons.join("; ")
        })
    }

    /// The first file that lets it in decides.
    fn judge_by_files(
        &self,
        find: impl Fn(&AuthorizedKeys) -> Decision,
    ) -> Result<Restrictions, Vec<Refusal>> {
        let mut reasons = Vec::new();
        for KeyFile { path, keys } in &self.files {
            match keys.as_ref().map(&find) {
                Ok(Decision::Granted { restrictions, .. }) => return Ok(restrictions),
                Ok(Decision::Refused(refusal)) => {
                    reasons.push(format!("{}: {refusal}", path.display()));
                }
                Err(error) => reasons.push(error.clone()),
            }
        }
        Err(reasons)
    }

    /// What lets this key in rests on these files.
    pub(super) fn basis(&self, key: &PublicKeyBlob) -> Basis {
        let text = |path: &Path| ByteString::from(path.as_os_str().as_bytes().to_vec());
        Basis {
            key: key.as_bytes().to_vec(),
            key_files: self.files.iter().map(|file| text(&file.path)).collect(),
            trusted_authorities: self.trusted.as_ref().map(|(path, _)| text(path)),
            revoked_keys: self.revoked.as_ref().map(|(path, _)| text(path)),
        }
    }

    /// Remarks on the files that were read.
    pub(super) fn remarks(&self) -> impl Iterator<Item = (&Path, &Diagnostics)> {
        let of_user = self
            .files
            .iter()
            .filter_map(|file| Some((file.path.as_path(), file.keys.as_ref().ok()?.diagnostics())));
        let of_server = self.trusted.iter().filter_map(|(path, trusted)| {
            Some((path.as_path(), trusted.as_ref().ok()?.diagnostics()))
        });
        of_user.chain(of_server)
    }
}

/// Whether what a FIDO token says of its user is what the key's line demands (sshd(8),
/// `no-touch-required` and `verify-required`); another key says nothing and none is demanded.
pub(super) fn check_token(
    assertion: Option<FidoAssertion>,
    restrictions: &Restrictions,
) -> Result<(), Refusal> {
    let Some(assertion) = assertion else { return Ok(()) };
    if restrictions.touch_required && !assertion.user_present {
        return Err("its token was not touched, and the key has no no-touch-required".to_owned());
    }
    if restrictions.verify_required && !assertion.user_verified {
        return Err("its token did not verify its user (verify-required)".to_owned());
    }
    Ok(())
}

/// The key, or the certificate with what its authority calls it, for the log.
pub(super) fn describe(key: &PublicKeyBlob) -> String {
    match Certificate::parse(key) {
        Ok(certificate) => format!(
            "{} (certificate \"{}\", serial {}, of {})",
            key.fingerprint(),
            escape_bounded(certificate.key_id().as_bytes(), 120),
            certificate.serial(),
            certificate.authority().fingerprint(),
        ),
        Err(_) => key.fingerprint(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_must_say_what_the_keys_line_demands() {
        let check = |present: bool, verified: bool, touch: bool, verify: bool| {
            let assertion = FidoAssertion { user_present: present, user_verified: verified };
            let restrictions = Restrictions {
                touch_required: touch,
                verify_required: verify,
                ..Restrictions::default()
            };
            assert!(check_token(None, &restrictions).is_ok());
            check_token(Some(assertion), &restrictions).is_ok()
        };
        for (present, verified) in [(false, false), (false, true), (true, false), (true, true)] {
            assert!(check(present, verified, false, false));
            assert_eq!(check(present, verified, true, false), present);
            assert_eq!(check(present, verified, false, true), verified);
            assert_eq!(check(present, verified, true, true), present && verified);
        }
    }

    #[test]
    fn a_file_of_the_servers_that_cannot_be_used_is_an_error_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = ServerFiles::open(Some(missing.clone()), None).unwrap_err();
        assert!(error.contains("trusted authorities") && error.contains("missing"), "{error}");
        let error = ServerFiles::open(None, Some(missing)).unwrap_err();
        assert!(error.contains("revoked keys") && error.contains("missing"), "{error}");
        let rubbish = directory.path().join("rubbish");
        std::fs::write(&rubbish, "rubbish\n").unwrap();
        let error = ServerFiles::open(None, Some(rubbish.clone())).unwrap_err();
        assert!(error.contains("line 1") && error.contains("rubbish"), "{error}");
        // A line that is no key makes no authority, and is no reason to let nobody in.
        assert!(ServerFiles::open(Some(rubbish), None).is_ok());
    }
}
