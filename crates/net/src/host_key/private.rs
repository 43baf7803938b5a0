//! The private halves of host keys, in the DER forms that the TLS library reads.

use aws_lc_rs::rand;
use rustls::crypto::aws_lc_rs::sign::{any_ecdsa_type, any_eddsa_type, any_supported_type};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::SigningKey;
use ssh_key::private::{EcdsaKeypair, Ed25519Keypair, Ed25519PrivateKey, KeypairData, RsaKeypair};
use ssh_key::public::Ed25519PublicKey;
use ssh_key::{LineEnding, PrivateKey};
use std::sync::Arc;
use zeroize::Zeroizing;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

use crate::der;
use crate::key_file::{KeyFault, KeyFile};
use crate::public_key::KeyKind;

/// The sizes of RSA modulus that the TLS library signs and verifies with, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// PKCS#8 (RFC 8410 section 7) in front of the seed of an Ed25519 key.
const PKCS8_ED25519: &[u8] = &[
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What to sign TLS handshakes with, from an unencrypted key file.
pub(super) fn signing_key(file: &KeyFile) -> Result<Arc<dyn SigningKey>, KeyFault> {
    match file.private.key_data() {
        KeypairData::Encrypted(_) => Err(KeyFault::Encrypted),
        KeypairData::Ed25519(pair) => {
            let seed = Zeroizing::new(pair.private.to_bytes());
            let der = Zeroizing::new([PKCS8_ED25519, seed.as_slice()].concat());
            any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice())).map_err(|_| KeyFault::Refused)
        }
        KeypairData::Ecdsa(pair) => {
            let der = sec1(pair, file.public.kind());
            any_ecdsa_type(&PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der.as_slice())))
                .map_err(|_| KeyFault::Refused)
        }
        KeypairData::Rsa(pair) => {
            let bits = file.public.bits();
            if !RSA_BITS.contains(&bits) {
                return Err(KeyFault::RsaSize { bits });
            }
            let der = pkcs1(pair).ok_or(KeyFault::Damaged)?;
            any_supported_type(&PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der.as_slice())))
                .map_err(|_| KeyFault::Refused)
        }
        _ => Err(KeyFault::Unsupported { name: file.private.algorithm().as_str().to_owned() }),
    }
}

/// Makes a new Ed25519 key, as the contents of an unencrypted OpenSSH private key file.
pub(super) fn generate_ed25519() -> Result<Zeroizing<String>, KeyFault> {
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
