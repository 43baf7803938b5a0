//! The reader of OpenSSH's binary key revocation lists (PROTOCOL.krl).

use super::{RevocationError, RevokedCertificates, RevokedKeys};
use crate::key::{KeyError, Parts, PublicKeyBlob};

/// What a KRL begins with.
pub(super) const MAGIC: &[u8] = b"SSHKRL\n\0";

const FORMAT_VERSION: u32 = 1;

const SECTION_CERTIFICATES: u8 = 1;
const SECTION_EXPLICIT_KEY: u8 = 2;
const SECTION_FINGERPRINT_SHA1: u8 = 3;
const SECTION_FINGERPRINT_SHA256: u8 = 5;
const SECTION_EXTENSION: u8 = 255;

const CERT_SERIAL_LIST: u8 = 0x20;
const CERT_SERIAL_RANGE: u8 = 0x21;
const CERT_SERIAL_BITMAP: u8 = 0x22;
const CERT_KEY_ID: u8 = 0x23;
const CERT_EXTENSION: u8 = 0x39;

const CUT_SHORT: RevocationError = RevocationError::Krl("a part is cut short");
const LEFT_OVER: RevocationError = RevocationError::Krl("a part has bytes behind its end");

impl From<KeyError> for RevocationError {
    fn from(_: KeyError) -> Self {
        CUT_SHORT
    }
}

/// Reads what follows the magic.
///
/// A signed KRL is refused: which authority may sign one is nowhere said, and ssh-keygen makes
/// none.
pub(super) fn parse(bytes: &[u8]) -> Result<RevokedKeys, RevocationError> {
    let mut parts = Parts(bytes);
    let version = parts.u32()?;
    if version != FORMAT_VERSION {
        return Err(RevocationError::Unknown { what: "a format", number: version });
    }
    let _krl_version = parts.u64()?;
    let _generated_date = parts.u64()?;
    let _flags = parts.u64()?;
    let _reserved = parts.string()?;
    let _comment = parts.string()?;
    let mut revoked = RevokedKeys::default();
    while !parts.is_empty() {
        let kind = parts.u8()?;
        let mut section = parts.nested()?;
        match kind {
            SECTION_CERTIFICATES => revoked.certificates.push(certificates(section)?),
            SECTION_EXPLICIT_KEY => {
                while !section.is_empty() {
                    let key = PublicKeyBlob::from_wire(section.string()?.to_vec());
                    let key = key.map_err(|_| RevocationError::Krl("a key in it is malformed"))?;
                    revoked.keys.insert(key.plain().into_bytes());
                }
            }
            SECTION_FINGERPRINT_SHA1 => {
                while !section.is_empty() {
                    revoked.sha1.insert(hash(section.string()?)?);
                }
            }
            SECTION_FINGERPRINT_SHA256 => {
                while !section.is_empty() {
                    revoked.sha256.insert(hash(section.string()?)?);
                }
            }
            SECTION_EXTENSION => extension(&mut section)?,
            other => {
                return Err(RevocationError::Unknown { what: "a section", number: other.into() });
            }
        }
    }
    Ok(revoked)
}

fn hash<const N: usize>(bytes: &[u8]) -> Result<[u8; N], RevocationError> {
    bytes.try_into().map_err(|_| RevocationError::Krl("a hash has another length"))
}

/// An extension that is not known, as all are here, may be passed over unless it is critical.
fn extension(section: &mut Parts<'_>) -> Result<(), RevocationError> {
    let _name = section.string()?;
    let critical = section.u8()? != 0;
    let _contents = section.string()?;
    match (critical, section.is_empty()) {
        (true, _) => Err(RevocationError::Krl("it has a critical extension")),
        (false, true) => Ok(()),
        (false, false) => Err(LEFT_OVER),
    }
}

fn certificates(mut parts: Parts<'_>) -> Result<RevokedCertificates, RevocationError> {
    let mut revoked = RevokedCertificates::default();
    let authority = parts.string()?;
    if !authority.is_empty() {
        let key = PublicKeyBlob::from_wire(authority.to_vec());
        let key = key.map_err(|_| RevocationError::Krl("an authority in it is malformed"))?;
        revoked.authority = Some(key);
    }
    let _reserved = parts.string()?;
    while !parts.is_empty() {
        let kind = parts.u8()?;
        let mut section = parts.nested()?;
        match kind {
            CERT_SERIAL_LIST => {
                while !section.is_empty() {
                    let serial = section.u64()?;
                    revoked.serials.push((serial, serial));
                }
            }
            CERT_SERIAL_RANGE => {
                let (from, to) = (section.u64()?, section.u64()?);
                if from > to {
                    return Err(RevocationError::Krl("a range of serial numbers is reversed"));
                }
                revoked.serials.push((from, to));
            }
            CERT_SERIAL_BITMAP => bitmap(&mut section, &mut revoked.serials)?,
            CERT_KEY_ID => {
                while !section.is_empty() {
                    revoked.key_ids.insert(section.string()?.to_vec());
                }
            }
            CERT_EXTENSION => extension(&mut section)?,
            other => {
                let what = "a section about certificates";
                return Err(RevocationError::Unknown { what, number: other.into() });
            }
        }
        if !section.is_empty() {
            return Err(LEFT_OVER);
        }
    }
    revoked.settle();
    Ok(revoked)
}

/// An offset and a number whose bits say which serials from there on are revoked, the lowest bit
/// first. Runs of bits become ranges, so that a bitmap takes little more memory than its bytes.
fn bitmap(section: &mut Parts<'_>, serials: &mut Vec<(u64, u64)>) -> Result<(), RevocationError> {
    const WRAPS: RevocationError = RevocationError::Krl("a bitmap reaches beyond 64 bits");
    let offset = section.u64()?;
    let bytes = section.string()?;
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        return Err(RevocationError::Krl("a bitmap is negative"));
    }
    let mut run: Option<(u64, u64)> = None;
    let bits = bytes.iter().rev().flat_map(|byte| (0..8).map(move |bit| byte & (1 << bit) != 0));
    for (index, _) in bits.enumerate().filter(|(_, revoked)| *revoked) {
        let index = u64::try_from(index).map_err(|_| WRAPS)?;
        let serial = offset.checked_add(index).ok_or(WRAPS)?;
        run = Some(match run {
            Some((from, to)) if to.checked_add(1) == Some(serial) => (from, serial),
            ended => {
                serials.extend(ended);
                (serial, serial)
            }
        });
    }
    serials.extend(run);
    Ok(())
}
