//! A FIDO token made of software, for tests: it signs what a real one would.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::Ed25519KeyPair;

use crate::public_key::{KeyKind, PublicKey, Shape};
use crate::secret_key::SecretKey;
use crate::ssh_wire::{self, SshReader};

/// A key in the token.
pub(crate) struct Token {
    secret: SecretKey,
    kind: KeyKind,
    application: Vec<u8>,
}

impl Token {
    pub(crate) fn new(kind: KeyKind) -> Self {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let secret = if kind == KeyKind::SkEd25519 {
            SecretKey::Ed25519(Ed25519KeyPair::generate().unwrap())
        } else {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            SecretKey::Ecdsa(KeyKind::EcdsaP256, pair)
        };
        Self { secret, kind, application: b"ssh:".to_vec() }
    }

    pub(crate) fn blob(&self) -> Vec<u8> {
        let application = self.application.clone();
        let shape = match self.secret.public().unwrap().shape().clone() {
            Shape::Ed25519(key) => Shape::SkEd25519 { key, application },
            Shape::Ecdsa { point, .. } => Shape::SkEcdsaP256 { point, application },
            other => panic!("{other:?}"),
        };
        PublicKey::from_shape(shape).to_blob()
    }

    /// A signature blob, with these flags and this counter.
    pub(crate) fn sign_raw(&self, data: &[u8], flags: u8, counter: u32) -> Vec<u8> {
        let mut signed = digest(&SHA256, &self.application).as_ref().to_vec();
        signed.push(flags);
        ssh_wire::put_u32(&mut signed, counter);
        signed.extend_from_slice(digest(&SHA256, data).as_ref());
        let plain = self.secret.sign_raw(&signed).unwrap();
        let mut reader = SshReader::new(&plain);
        reader.string().unwrap();
        let value = reader.string().unwrap();
        let mut raw = Vec::new();
        ssh_wire::put_string(&mut raw, self.kind.ssh_name().as_bytes());
        ssh_wire::put_string(&mut raw, value);
        raw.push(flags);
        ssh_wire::put_u32(&mut raw, counter);
        raw
    }
}
