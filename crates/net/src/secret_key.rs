//! Private keys: in the DER forms that the libraries read, and ready to sign as a user.
//!
//! What reads a file gives a [`SecretDer`]. A host's key goes on to the TLS library in that form;
//! a user's becomes a [`SecretKey`], which signs in SSH's own encoding.

use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA512, RsaKeyPair,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use ssh_key::private::{EcdsaKeypair, Ed25519Keypair, Ed25519PrivateKey, KeypairData, RsaKeypair};
use ssh_key::public::Ed25519PublicKey;
use ssh_key::{LineEnding, PrivateKey};
use zeroize::Zeroizing;

use crate::der::{self, DerReader};
use crate::key_file::KeyFault;
use crate::public_key::{KeyKind, PublicKey, Shape};
use crate::ssh_wire::{self, strip_leading_zeros};

/// The sizes of RSA modulus that the library signs and verifies with, in bits.
pub(crate) const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// PKCS#8 (RFC 8410 section 7) in front of the seed of an Ed25519 key.
pub(crate) const PKCS8_ED25519: &[u8] = &[
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The object identifier of RSA keys in PKCS#8 (RFC 3279 section 2.3.1), with tag and length.
const RSA_OID: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// The curves, each with the algorithm that signs on it.
const CURVES: [(KeyKind, &EcdsaSigningAlgorithm); 3] = [
    (KeyKind::EcdsaP256, &ECDSA_P256_SHA256_FIXED_SIGNING),
    (KeyKind::EcdsaP384, &ECDSA_P384_SHA384_FIXED_SIGNING),
    (KeyKind::EcdsaP521, &ECDSA_P521_SHA512_FIXED_SIGNING),
];

/// A private key in one of the forms that the libraries read; wiped when dropped.
#[derive(Clone)]
pub(crate) enum SecretDer {
    /// PKCS#1 (RFC 8017 appendix A.1.2): RSA.
    Pkcs1(Zeroizing<Vec<u8>>),
    /// SEC 1 (RFC 5915): ECDSA.
    Sec1(Zeroizing<Vec<u8>>),
    /// PKCS#8 (RFC 5208): any type.
    Pkcs8(Zeroizing<Vec<u8>>),
}

impl SecretDer {
    /// From what an OpenSSH file holds, decrypted; `kind` is that of its public half.
    pub(crate) fn from_openssh(data: &KeypairData, kind: KeyKind) -> Result<Self, KeyFault> {
        match data {
            KeypairData::Encrypted(_) => Err(KeyFault::Encrypted),
            KeypairData::Ed25519(pair) => {
                let seed = Zeroizing::new(pair.private.to_bytes());
                Ok(Self::Pkcs8(Zeroizing::new([PKCS8_ED25519, seed.as_slice()].concat())))
            }
            KeypairData::Ecdsa(pair) => Ok(Self::Sec1(sec1(pair, kind))),
            KeypairData::Rsa(pair) => {
                let der = Self::Pkcs1(pkcs1(pair).ok_or(KeyFault::Damaged)?);
                der.check_rsa_size()?;
                Ok(der)
            }
            _ => Err(KeyFault::Unsupported { name: kind.ssh_name().to_owned() }),
        }
    }

    /// The form for the TLS library.
    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'_> {
        match self {
            Self::Pkcs1(der) => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der.as_slice())),
            Self::Sec1(der) => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der.as_slice())),
            Self::Pkcs8(der) => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice())),
        }
    }

    /// Whether an RSA key has a size that can be used, if this is one: said here, because the
    /// library says of a key that is too small no more than that it refuses it.
    pub(crate) fn check_rsa_size(&self) -> Result<(), KeyFault> {
        let bits = match self {
            Self::Pkcs1(der) => pkcs1_bits(der),
            Self::Pkcs8(der) => pkcs8_rsa(der).and_then(pkcs1_bits),
            Self::Sec1(_) => None,
        };
        match bits {
            Some(bits) if !RSA_BITS.contains(&bits) => Err(KeyFault::RsaSize { bits }),
            _ => Ok(()),
        }
    }
}

/// A user's private key, ready to sign. The library wipes it when it is dropped.
pub(crate) enum SecretKey {
    Ed25519(Ed25519KeyPair),
    Ecdsa(KeyKind, EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl SecretKey {
    pub(crate) fn from_der(der: &SecretDer) -> Result<Self, KeyFault> {
        der.check_rsa_size()?;
        let found = match der {
            SecretDer::Pkcs1(der) => RsaKeyPair::from_der(der).ok().map(Self::Rsa),
            SecretDer::Sec1(der) => ecdsa(|curve| EcdsaKeyPair::from_private_key_der(curve, der)),
            SecretDer::Pkcs8(der) => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                .ok()
                .map(Self::Ed25519)
                .or_else(|| ecdsa(|curve| EcdsaKeyPair::from_pkcs8(curve, der)))
                .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Self::Rsa)),
        };
        found.ok_or(KeyFault::Refused)
    }

    /// The public half, as the library derives it from the private one.
    pub(crate) fn public(&self) -> Result<PublicKey, KeyFault> {
        let shape = match self {
            Self::Ed25519(pair) => Shape::Ed25519(
                pair.public_key().as_ref().try_into().map_err(|_| KeyFault::Refused)?,
            ),
            Self::Ecdsa(kind, pair) => {
                Shape::ecdsa(*kind, pair.public_key().as_ref()).map_err(|_| KeyFault::Refused)?
            }
            Self::Rsa(pair) => rsa_public(pair.public_key().as_ref()).ok_or(KeyFault::Refused)?,
        };
        Ok(PublicKey::from_shape(shape))
    }

    /// The algorithm of its signatures. RSA never signs with SHA-1 (`ssh-rsa`).
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => KeyKind::Ed25519.ssh_name(),
            Self::Ecdsa(kind, _) => kind.ssh_name(),
            Self::Rsa(_) => "rsa-sha2-512",
        }
    }

    /// An SSH signature blob (RFC 4253 section 6.6) over exactly these bytes; `None` where the
    /// library fails, which it does only for want of memory or random bytes.
    pub(crate) fn sign_raw(&self, data: &[u8]) -> Option<Vec<u8>> {
        let value = match self {
            Self::Ed25519(pair) => pair.sign(data).as_ref().to_vec(),
            Self::Ecdsa(_, pair) => {
                let fixed = pair.sign(&SystemRandom::new(), data).ok()?;
                // Two numbers of the curve's width (RFC 5656 section 3.1.2 has them as mpints).
                let (r, s) = fixed.as_ref().split_at_checked(fixed.as_ref().len() / 2)?;
                let mut value = Vec::with_capacity(fixed.as_ref().len() + 10);
                ssh_wire::put_positive_mpint(&mut value, r);
                ssh_wire::put_positive_mpint(&mut value, s);
                value
            }
            Self::Rsa(pair) => {
                let mut value = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA512, &SystemRandom::new(), data, &mut value).ok()?;
                value
            }
        };
        let mut raw = Vec::with_capacity(value.len() + 40);
        ssh_wire::put_string(&mut raw, self.algorithm().as_bytes());
        ssh_wire::put_string(&mut raw, &value);
        Some(raw)
    }
}

/// The key on whichever curve it is.
fn ecdsa<E>(
    read: impl Fn(&'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, E>,
) -> Option<SecretKey> {
    let on_curve = |(kind, curve)| Some(SecretKey::Ecdsa(kind, read(curve).ok()?));
    CURVES.into_iter().find_map(on_curve)
}

/// The key in a PKCS#1 public key (RFC 8017 appendix A.1.1).
fn rsa_public(der: &[u8]) -> Option<Shape> {
    let mut numbers = DerReader::new(DerReader::new(der).expect(der::TAG_SEQUENCE).ok()?);
    let modulus = strip_leading_zeros(numbers.expect(der::TAG_INTEGER).ok()?);
    let exponent = strip_leading_zeros(numbers.expect(der::TAG_INTEGER).ok()?);
    Shape::rsa(exponent, modulus).ok()
}

/// The bits of the modulus in a PKCS#1 private key; `None` where it is none.
fn pkcs1_bits(der: &[u8]) -> Option<usize> {
    let mut numbers = DerReader::new(DerReader::new(der).expect(der::TAG_SEQUENCE).ok()?);
    let _version = numbers.expect(der::TAG_INTEGER).ok()?;
    let modulus = strip_leading_zeros(numbers.expect(der::TAG_INTEGER).ok()?);
    let leading = usize::try_from(modulus.first()?.leading_zeros()).ok()?;
    Some(modulus.len() * 8 - leading)
}

/// The PKCS#1 key in a PKCS#8 one; `None` where it is of another type, or malformed.
fn pkcs8_rsa(der: &[u8]) -> Option<&[u8]> {
    let mut parts = DerReader::new(DerReader::new(der).expect(der::TAG_SEQUENCE).ok()?);
    let _version = parts.expect(der::TAG_INTEGER).ok()?;
    let algorithm = parts.expect(der::TAG_SEQUENCE).ok()?;
    let key = parts.expect(der::TAG_OCTET_STRING).ok()?;
    algorithm.starts_with(RSA_OID).then_some(key)
}

/// Makes a new Ed25519 key, as the contents of an unencrypted OpenSSH private key file.
pub(crate) fn generate_ed25519() -> Result<Zeroizing<String>, KeyFault> {
    let mut seed = Zeroizing::new([0_u8; 32]);
    rand::fill(seed.as_mut_slice()).map_err(|_| KeyFault::Refused)?;
    let pair =
        Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| KeyFault::Refused)?;
    let public = pair.public_key().as_ref().try_into().map_err(|_| KeyFault::Refused)?;
    let pair = Ed25519Keypair {
        public: Ed25519PublicKey(public),
        private: Ed25519PrivateKey::from_bytes(&seed),
    };
    PrivateKey::new(KeypairData::Ed25519(pair), "afar host key")
        .and_then(|key| key.to_openssh(LineEnding::LF))
        .map_err(|_| KeyFault::Refused)
}

/// An ECDSA key as SEC 1 (RFC 5915) has it.
fn sec1(pair: &EcdsaKeypair, kind: KeyKind) -> Zeroizing<Vec<u8>> {
    let (oid, scalar_bytes): (&[u8], usize) = match kind {
        KeyKind::EcdsaP384 => (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22], 48),
        KeyKind::EcdsaP521 => (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23], 66),
        _ => (&[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], 32),
    };
    // The scalar has the fixed width of the curve here; an SSH file drops its leading zeros.
    let secret = pair.private_key_bytes();
    let zeros = [0_u8; 66];
    let padding = zeros.get(..scalar_bytes.saturating_sub(secret.len())).unwrap_or_default();
    let scalar = der::tlv(der::TAG_OCTET_STRING, &[padding, secret]);
    let curve = der::tlv(0xa0, &[oid]);
    let point = der::tlv(der::TAG_BIT_STRING, &[&[0], pair.public_key_bytes()]);
    let public = der::tlv(0xa1, &[&point]);
    let version = der::unsigned_integer(&[1]);
    der::tlv(der::TAG_SEQUENCE, &[&version, &scalar, &curve, &public])
}

/// An RSA key as PKCS#1 (RFC 8017 appendix A.1.2) has it; `None` where a number is not positive.
///
/// OpenSSH's files leave out `d mod (p-1)` and `d mod (q-1)`, which PKCS#1 wants.
fn pkcs1(pair: &RsaKeypair) -> Option<Zeroizing<Vec<u8>>> {
    let modulus = pair.public().n().as_positive_bytes()?;
    let exponent = pair.public().e().as_positive_bytes()?;
    let private = pair.private();
    let d = private.d().as_positive_bytes()?;
    let p = private.p().as_positive_bytes()?;
    let q = private.q().as_positive_bytes()?;
    let q_inverse = private.iqmp().as_positive_bytes()?;
    let numbers = [
        der::unsigned_integer(&[0]),
        der::unsigned_integer(modulus),
        der::unsigned_integer(exponent),
        der::unsigned_integer(d),
        der::unsigned_integer(p),
        der::unsigned_integer(q),
        der::unsigned_integer(&remainder_by_predecessor(d, p)?),
        der::unsigned_integer(&remainder_by_predecessor(d, q)?),
        der::unsigned_integer(q_inverse),
    ];
    let parts: Vec<&[u8]> = numbers.iter().map(|number| number.as_slice()).collect();
    Some(der::tlv(der::TAG_SEQUENCE, &parts))
}

/// `value mod (prime - 1)`, big-endian; `None` where `prime` is even and so not an odd prime.
///
/// Bit by bit, with a subtraction that is always made and selected by mask, so that the time it
/// takes says nothing about the secret. It runs three times a server's life. A wrong result cannot
/// go unseen: the library checks that the numbers of a key belong together.
fn remainder_by_predecessor(value: &[u8], prime: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (last, front) = prime.split_last()?;
    if last & 1 == 0 {
        return None;
    }
    // One byte more than the divisor, for the bit that doubling shifts out.
    let mut divisor = Zeroizing::new(Vec::with_capacity(prime.len() + 1));
    divisor.push(0);
    divisor.extend_from_slice(front);
    divisor.push(last & 0xfe);
    let mut remainder = Zeroizing::new(vec![0_u8; divisor.len()]);
    let mut reduced = Zeroizing::new(vec![0_u8; divisor.len()]);
    for byte in value {
        for shift in (0..8).rev() {
            let mut carry = (byte >> shift) & 1;
            for digit in remainder.iter_mut().rev() {
                let out = *digit >> 7;
                *digit = (*digit << 1) | carry;
                carry = out;
            }
            let mut borrow = false;
            for ((out, &left), &right) in
                reduced.iter_mut().zip(remainder.iter()).zip(divisor.iter()).rev()
            {
                let (difference, first) = left.overflowing_sub(right);
                let (difference, second) = difference.overflowing_sub(u8::from(borrow));
                *out = difference;
                borrow = first | second;
            }
            // All ones where the divisor fitted, all zeros where the subtraction borrowed.
            let keep = u8::from(borrow).wrapping_sub(1);
            for (digit, &other) in remainder.iter_mut().zip(reduced.iter()) {
                *digit = (*digit & !keep) | (other & keep);
            }
        }
    }
    Some(remainder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_agree_with_machine_arithmetic() {
        for prime in [3_u64, 7, 251, 257, 65_537, 4_294_967_291, 0xffff_ffff_ffff_ffc5] {
            for value in [0_u64, 1, 2, 255, 256, 65_536, 1 << 40, u64::MAX, 0x1234_5678_9abc_def0] {
                let prime_bytes = prime.to_be_bytes();
                let zeros = prime_bytes.iter().take_while(|&&byte| byte == 0).count();
                let got =
                    remainder_by_predecessor(&value.to_be_bytes(), &prime_bytes[zeros..]).unwrap();
                let got = got.iter().fold(0_u64, |sum, &byte| (sum << 8) | u64::from(byte));
                assert_eq!(got, value % (prime - 1), "{value} mod ({prime} - 1)");
            }
        }
        assert!(remainder_by_predecessor(&[1], &[4]).is_none());
    }
}
