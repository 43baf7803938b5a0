//! OpenSSH certificates (PROTOCOL.certkeys): read, and held against who wants to use one for what.
//!
//! The signature of the authority is arithmetic and verified elsewhere; everything else that a
//! certificate says is checked here. As in OpenSSH since 10.3, a certificate without principals is
//! nobody's: an authority that forgot them has not signed a master key.

use std::net::IpAddr;

use crate::authorized_keys::SourceList;
use crate::escape::escape_bounded;
use crate::key::{KeyError, Parts, PublicKeyBlob};
use crate::limits::{CERTIFICATE_BYTES_MAX, CERTIFICATE_PRINCIPALS_MAX};
use crate::pattern::{self, Case};
use crate::policy::Restrictions;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateKind {
    /// To log in.
    User,
    /// To prove a host.
    Host,
}

/// Why bytes are not a certificate that could be used by anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A plain key.
    #[error("not a certificate")]
    NotACertificate,
    /// Over [`CERTIFICATE_BYTES_MAX`].
    #[error("a certificate of more than {CERTIFICATE_BYTES_MAX} bytes")]
    TooLarge,
    /// Cut short, or with bytes behind its end.
    #[error("the certificate is malformed: {0}")]
    Malformed(#[from] KeyError),
    /// Neither a user's nor a host's.
    #[error("the certificate is of type {0}, neither a user's nor a host's")]
    Kind(u32),
    /// A principal or the key id is no text.
    #[error("the certificate's {0} is not text")]
    NotText(&'static str),
    /// Over [`CERTIFICATE_PRINCIPALS_MAX`].
    #[error("the certificate has more than {CERTIFICATE_PRINCIPALS_MAX} principals")]
    TooManyPrincipals,
    /// The authority is a certificate itself, which PROTOCOL.certkeys forbids.
    #[error("the certificate's authority is a certificate itself")]
    ChainedAuthority,
    /// An option or extension has a value that is none of it, or stands twice.
    #[error("the certificate's {0} is malformed")]
    Option(String),
}

/// Why a certificate is not good for what it is used for. For the server's log, or for a client
/// that judges a host's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefusal {
    /// A host's where a user's is wanted, or the reverse.
    #[error("the certificate is a {}'s", if *.0 == CertificateKind::Host { "host" } else { "user" })]
    Kind(CertificateKind),
    /// Its time has not come.
    #[error("the certificate is not yet valid")]
    NotYetValid,
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// It names nobody.
    #[error("the certificate has no principals")]
    NoPrincipals,
    /// It names others.
    #[error("the certificate does not name {0} as a principal")]
    Principal(String),
    /// It demands something that is not known here.
    #[error("the certificate has a critical option that is not known here: {0}")]
    UnknownCritical(String),
    /// `source-address` does not list the peer's.
    #[error("the certificate's source-address does not permit the address")]
    Source,
}

/// A certificate whose form is sound. Whether its signature is, is for others to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    blob: PublicKeyBlob,
    key: PublicKeyBlob,
    serial: u64,
    kind: CertificateKind,
    key_id: String,
    principals: Vec<String>,
    valid_after_s: u64,
    valid_before_s: u64,
    options: Options,
    authority: PublicKeyBlob,
    /// How many bytes of `blob` the authority has signed; the signature follows.
    signed_bytes: usize,
}

/// Critical options and extensions, as far as they mean anything here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    /// The name of a critical option of which nothing is known, escaped.
    unknown_critical: Option<String>,
    any_critical: bool,
    force_command: Option<Vec<u8>>,
    source_address: Option<SourceList>,
    verify_required: bool,
    no_touch_required: bool,
    permit_pty: bool,
    permit_port_forwarding: bool,
    permit_agent_forwarding: bool,
    permit_x11_forwarding: bool,
    permit_user_rc: bool,
}

/// Who wants to log in with a certificate.
#[derive(Clone, Copy, Debug)]
pub struct UserCheck<'a> {
    /// The names of which the certificate has to bear one: the user's, or those that
    /// `principals=` lists.
    pub names: &'a [&'a str],
    /// The time, in seconds of Unix time.
    pub now_s: i64,
    /// Where the peer connects from; `None` satisfies no `source-address`.
    pub source: Option<IpAddr>,
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// A plain key, or anything malformed. An unknown critical option is no error of form, and
    /// refused by the checks.
    pub fn parse(blob: &PublicKeyBlob) -> Result<Self, CertificateError> {
        let mut parts = blob.behind_key().ok_or(CertificateError::NotACertificate)?;
        if blob.as_bytes().len() > CERTIFICATE_BYTES_MAX {
            return Err(CertificateError::TooLarge);
        }
        let serial = parts.u64()?;
        let kind = match parts.u32()? {
            1 => CertificateKind::User,
            2 => CertificateKind::Host,
            other => return Err(CertificateError::Kind(other)),
        };
        let key_id = text(parts.string()?, "key id")?;
        let principals = read_principals(parts.nested()?)?;
        let valid_after_s = parts.u64()?;
        let valid_before_s = parts.u64()?;
        let mut options = Options::default();
        options.read_critical(parts.nested()?)?;
        options.read_extensions(parts.nested()?)?;
        let _reserved = parts.string()?;
        let authority = PublicKeyBlob::from_wire(parts.string()?.to_vec())?;
        if authority.is_certificate() {
            return Err(CertificateError::ChainedAuthority);
        }
        let signed_bytes = blob.as_bytes().len() - parts.0.len();
        let _signature = parts.string()?;
        if !parts.is_empty() {
            return Err(KeyError::Length.into());
        }
        Ok(Self {
            blob: blob.clone(),
            key: blob.plain(),
            serial,
            kind,
            key_id,
            principals,
            valid_after_s,
            valid_before_s,
            options,
            authority,
            signed_bytes,
        })
    }

    /// The whole certificate.
    #[must_use]
    pub fn blob(&self) -> &PublicKeyBlob {
        &self.blob
    }

    /// The key that it certifies.
    #[must_use]
    pub fn key(&self) -> &PublicKeyBlob {
        &self.key
    }

    /// Who signed it; never a certificate.
    #[must_use]
    pub fn authority(&self) -> &PublicKeyBlob {
        &self.authority
    }

    /// What the authority has signed.
    #[must_use]
    pub fn signed(&self) -> &[u8] {
        self.blob.as_bytes().get(..self.signed_bytes).unwrap_or_default()
    }

    /// The authority's signature, an SSH signature blob.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        let mut rest = Parts(self.blob.as_bytes().get(self.signed_bytes..).unwrap_or_default());
        rest.string().unwrap_or_default()
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> CertificateKind {
        self.kind
    }

    /// The authority's number for it; 0 where it gives none.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The authority's name for it. Escape it before showing it.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The users or hosts that it is for. Escape them before showing them.
    #[must_use]
    pub fn principals(&self) -> &[String] {
        &self.principals
    }

    /// The first second at which it is valid, in Unix time.
    #[must_use]
    pub fn valid_after_s(&self) -> u64 {
        self.valid_after_s
    }

    /// The first second at which it is no longer valid; `u64::MAX` for never.
    #[must_use]
    pub fn valid_before_s(&self) -> u64 {
        self.valid_before_s
    }

    /// Whether it may log in so, and what it may not do then.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn check_user(&self, check: UserCheck<'_>) -> Result<Restrictions, CertificateRefusal> {
        self.check_kind_and_time(CertificateKind::User, check.now_s)?;
        let listed = |name: &&str| self.principals.iter().any(|principal| principal == name);
        if !check.names.iter().any(listed) {
            return Err(self.no_principal(check.names));
        }
        let options = &self.options;
        if let Some(name) = &options.unknown_critical {
            return Err(CertificateRefusal::UnknownCritical(name.clone()));
        }
        if let Some(list) = &options.source_address
            && !check.source.is_some_and(|source| list.permits(source))
        {
            return Err(CertificateRefusal::Source);
        }
        Ok(Restrictions {
            forced_command: options.force_command.clone().map(Into::into),
            no_pty: !options.permit_pty,
            no_port_forwarding: !options.permit_port_forwarding,
            no_agent_forwarding: !options.permit_agent_forwarding,
            no_x11_forwarding: !options.permit_x11_forwarding,
            no_user_rc: !options.permit_user_rc,
            touch_required: !options.no_touch_required,
            verify_required: options.verify_required,
            // The last second at which it is valid; beyond what fits is for ever.
            expires_at_s: i64::try_from(self.valid_before_s).ok().map(|before| before - 1),
            ..Restrictions::default()
        })
    }

    /// Whether it proves the host of this name, without port; its principals may be patterns.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn check_host(&self, name: &str, now_s: i64) -> Result<(), CertificateRefusal> {
        self.check_kind_and_time(CertificateKind::Host, now_s)?;
        let matches = |principal: &String| {
            pattern::matches(name.as_bytes(), principal.as_bytes(), Case::Ignored)
        };
        if !self.principals.iter().any(matches) {
            return Err(self.no_principal(&[name]));
        }
        // There is no critical option for hosts; as in ssh any of them is unknown.
        if self.options.any_critical {
            let name = self.options.unknown_critical.clone();
            let name = name.unwrap_or_else(|| "one for users".to_owned());
            return Err(CertificateRefusal::UnknownCritical(name));
        }
        Ok(())
    }

    /// Whether it proves some host now, whatever its name.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn check_for_any_host(&self, now_s: i64) -> Result<(), CertificateRefusal> {
        let name = self.principals.first().ok_or(CertificateRefusal::NoPrincipals)?;
        self.check_host(name, now_s)
    }

    fn check_kind_and_time(
        &self,
        kind: CertificateKind,
        now_s: i64,
    ) -> Result<(), CertificateRefusal> {
        if self.kind != kind {
            return Err(CertificateRefusal::Kind(self.kind));
        }
        // A clock before 1970 is one that was never set.
        let now_s = u64::try_from(now_s).unwrap_or(0);
        if now_s < self.valid_after_s {
            return Err(CertificateRefusal::NotYetValid);
        }
        if now_s >= self.valid_before_s {
            return Err(CertificateRefusal::Expired);
        }
        Ok(())
    }

    fn no_principal(&self, names: &[&str]) -> CertificateRefusal {
        if self.principals.is_empty() {
            return CertificateRefusal::NoPrincipals;
        }
        CertificateRefusal::Principal(escape_bounded(names.join(",").as_bytes(), 120))
    }
}

impl Options {
    fn read_critical(&mut self, parts: Parts<'_>) -> Result<(), CertificateError> {
        for_each_option(parts, |name, mut value| {
            self.any_critical = true;
            let read = match name {
                b"force-command" => {
                    let command = value.string()?;
                    // What a shell is given ends at NUL.
                    if command.contains(&0) {
                        return Err(malformed(name));
                    }
                    self.force_command.replace(command.to_vec()).is_none()
                }
                b"source-address" => {
                    let list = SourceList::parse_networks(value.string()?);
                    let list = list.map_err(|_| malformed(name))?;
                    self.source_address.replace(list).is_none()
                }
                b"verify-required" => set(&mut self.verify_required),
                _ => {
                    self.unknown_critical.get_or_insert_with(|| escape_bounded(name, 60));
                    return Ok(());
                }
            };
            if read && value.is_empty() { Ok(()) } else { Err(malformed(name)) }
        })
    }

    fn read_extensions(&mut self, parts: Parts<'_>) -> Result<(), CertificateError> {
        for_each_option(parts, |name, value| {
            let flag = match name {
                b"no-touch-required" => &mut self.no_touch_required,
                b"permit-pty" => &mut self.permit_pty,
                b"permit-port-forwarding" => &mut self.permit_port_forwarding,
                b"permit-agent-forwarding" => &mut self.permit_agent_forwarding,
                b"permit-X11-forwarding" => &mut self.permit_x11_forwarding,
                b"permit-user-rc" => &mut self.permit_user_rc,
                // What is not critical may be left out by whoever does not know it.
                _ => return Ok(()),
            };
            if set(flag) && value.is_empty() { Ok(()) } else { Err(malformed(name)) }
        })
    }
}

/// Sets a flag; false iff it was set before.
fn set(flag: &mut bool) -> bool {
    !std::mem::replace(flag, true)
}

fn malformed(name: &[u8]) -> CertificateError {
    CertificateError::Option(escape_bounded(name, 60))
}

/// Reads pairs of a name and a string that holds the value's parts.
fn for_each_option(
    mut parts: Parts<'_>,
    mut take: impl FnMut(&[u8], Parts<'_>) -> Result<(), CertificateError>,
) -> Result<(), CertificateError> {
    while !parts.is_empty() {
        let name = parts.string()?;
        take(name, parts.nested()?)?;
    }
    Ok(())
}

fn read_principals(mut parts: Parts<'_>) -> Result<Vec<String>, CertificateError> {
    let mut principals = Vec::new();
    while !parts.is_empty() {
        if principals.len() >= CERTIFICATE_PRINCIPALS_MAX {
            return Err(CertificateError::TooManyPrincipals);
        }
        principals.push(text(parts.string()?, "principal")?);
    }
    Ok(principals)
}

fn text(bytes: &[u8], what: &'static str) -> Result<String, CertificateError> {
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(CertificateError::NotText(what)),
    }
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
