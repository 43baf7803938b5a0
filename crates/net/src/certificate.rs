//! The arithmetic of OpenSSH certificates: whether an authority has signed one.

use afar_core::certificate::Certificate;

use crate::public_key::{PublicKey, PublicKeyError};
use crate::signature::{self, SignatureError};

/// Why a certificate is not its authority's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The authority's key can't be read or is of a type that is not verified.
    #[error("the certificate's authority: {0}")]
    Key(#[from] PublicKeyError),
    /// The signature is not the authority's.
    #[error("the authority's signature on the certificate: {0}")]
    Signature(#[from] SignatureError),
}

/// Verifies the authority's signature. Takes some tens of microseconds of CPU, on P-521 some
/// hundreds. Whether the authority is trusted, and for what, is not asked here.
///
/// An authority in a FIDO token need not have been touched, as with sshd.
///
/// # Errors
/// See [`AuthorityError`].
pub fn verify_authority(certificate: &Certificate) -> Result<(), AuthorityError> {
    let authority = PublicKey::from_blob(certificate.authority().as_bytes())?;
    signature::verify(&authority, certificate.signature(), certificate.signed())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use afar_core::key::PublicKeyBlob;

    use super::*;
    use crate::keygen;
    use crate::public_key::KeyKind;

    fn sign(authority: &str, key: &str, options: &[&str]) -> Vec<u8> {
        let public = format!("{key}.pub");
        let args =
            [&["-q", "-s", authority, "-I", "id", "-n", "ann"], options, &[&public]].concat();
        keygen::succeed(&args, b"");
        let line = std::fs::read(format!("{key}-cert.pub")).unwrap();
        PublicKeyBlob::from_public_line(&line).unwrap().0.into_bytes()
    }

    fn parse(bytes: Vec<u8>) -> Option<Certificate> {
        Certificate::parse(&PublicKeyBlob::from_wire(bytes).ok()?).ok()
    }

    #[test]
    fn every_type_of_authority_certifies_every_type_of_key() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
        for (kind, args) in keygen::KINDS {
            keygen::generate(path(kind.ssh_name()).as_ref(), args, "");
        }
        for (authority, _) in keygen::KINDS {
            for (kind, _) in keygen::KINDS {
                let (ca, key) = (path(authority.ssh_name()), path(kind.ssh_name()));
                let certificate = parse(sign(&ca, &key, &[])).unwrap();
                assert_eq!(verify_authority(&certificate), Ok(()), "{authority:?} {kind:?}");
                let plain = keygen::public_blob(key.as_ref());
                assert_eq!(certificate.key().as_bytes(), plain);
            }
        }
    }

    #[test]
    fn fault_77_a_certificate_that_was_bent_anywhere_is_nobodys() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
        let args = &["-t", "ed25519", "-N", ""];
        keygen::generate(path("ca").as_ref(), args, "");
        keygen::generate(path("key").as_ref(), args, "");
        let good = sign(&path("ca"), &path("key"), &["-O", "force-command=date"]);
        let mut still_read = 0;
        for at in 0..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1;
            if let Some(certificate) = parse(bent) {
                still_read += 1;
                assert!(verify_authority(&certificate).is_err(), "byte {at}");
            }
        }
        assert!(still_read > 100, "{still_read}");
    }

    #[test]
    fn fault_77_an_rsa_authority_that_is_small_or_signs_with_sha_1_is_none() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
        keygen::generate(path("key").as_ref(), &["-t", "ed25519", "-N", ""], "");
        keygen::generate(path("small").as_ref(), &["-t", "rsa", "-b", "1024", "-N", ""], "");
        keygen::generate(path("fair").as_ref(), &["-t", "rsa", "-b", "2048", "-N", ""], "");
        let certificate = parse(sign(&path("small"), &path("key"), &[])).unwrap();
        let too_small = SignatureError::RsaTooSmall(1024).into();
        assert_eq!(verify_authority(&certificate), Err(too_small));
        let certificate = parse(sign(&path("fair"), &path("key"), &["-t", "ssh-rsa"])).unwrap();
        let sha1 = SignatureError::Algorithm(KeyKind::Rsa).into();
        assert_eq!(verify_authority(&certificate), Err(sha1));
        for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
            let signed = sign(&path("fair"), &path("key"), &["-t", algorithm]);
            assert_eq!(verify_authority(&parse(signed).unwrap()), Ok(()), "{algorithm}");
        }
    }
}
