//! The keys of one direction: derived from its traffic secret (RFC 8446 section 7.3), used once for
//! each sequence number (section 5.3), replaced by a key update (section 7.2).

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    UnboundKey,
};
use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::CipherSuite;
use zeroize::Zeroizing;

use super::{HEADER_BYTES, RecordError, TAG_BYTES};

/// A cipher suite of TLS 1.3 that afar offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    Aes128GcmSha256,
    Aes256GcmSha384,
    Chacha20Poly1305Sha256,
}

impl Suite {
    const ALL: [Self; 3] =
        [Self::Aes128GcmSha256, Self::Aes256GcmSha384, Self::Chacha20Poly1305Sha256];

    /// The suite that a handshake has chosen, if it is one of ours.
    pub(crate) fn of(suite: CipherSuite) -> Option<Self> {
        Self::from_number(suite.into())
    }

    /// The suite of this number (RFC 8446 appendix B.4).
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.number() == number)
    }

    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Aes128GcmSha256 => 0x1301,
            Self::Aes256GcmSha384 => 0x1302,
            Self::Chacha20Poly1305Sha256 => 0x1303,
        }
    }

    /// The length of a traffic secret: that of the suite's hash.
    pub(crate) fn secret_bytes(self) -> usize {
        match self {
            Self::Aes128GcmSha256 | Self::Chacha20Poly1305Sha256 => 32,
            Self::Aes256GcmSha384 => 48,
        }
    }

    fn cipher(self) -> &'static Algorithm {
        match self {
            Self::Aes128GcmSha256 => &AES_128_GCM,
            Self::Aes256GcmSha384 => &AES_256_GCM,
            Self::Chacha20Poly1305Sha256 => &CHACHA20_POLY1305,
        }
    }

    fn secret_of(self, bytes: &[u8]) -> Prk {
        let hash = match self {
            Self::Aes128GcmSha256 | Self::Chacha20Poly1305Sha256 => HKDF_SHA256,
            Self::Aes256GcmSha384 => HKDF_SHA384,
        };
        Prk::new_less_safe(hash, bytes)
    }
}

/// The keys of one direction, and how often they were used.
pub(crate) struct TrafficKeys {
    suite: Suite,
    secret: Zeroizing<Vec<u8>>,
    cipher: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl fmt::Debug for TrafficKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, sequence, .. } = self;
        write!(f, "TrafficKeys({suite:?}, record {sequence})")
    }
}

impl TrafficKeys {
    /// The keys that follow from a traffic secret, about to be used for record `sequence`.
    ///
    /// # Errors
    /// The secret has not the length that the suite's hash gives.
    pub(crate) fn new(suite: Suite, secret: &[u8], sequence: u64) -> Result<Self, RecordError> {
        if secret.len() != suite.secret_bytes() {
            return Err(RecordError::Malformed);
        }
        let mut key = Zeroizing::new([0; 32]);
        let (key, _) = key.split_at_mut(suite.cipher().key_len());
        let mut iv = [0; NONCE_LEN];
        expand(suite, secret, b"key", key)?;
        expand(suite, secret, b"iv", &mut iv)?;
        let cipher = UnboundKey::new(suite.cipher(), key).map_err(|_| RecordError::Encrypt)?;
        Ok(Self {
            suite,
            secret: Zeroizing::new(secret.to_vec()),
            cipher: LessSafeKey::new(cipher),
            iv,
            sequence,
        })
    }

    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// The number of the next record.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Goes on to the next generation of keys (section 7.2).
    pub(super) fn update(&mut self) -> Result<(), RecordError> {
        let mut next = Zeroizing::new(vec![0; self.suite.secret_bytes()]);
        expand(self.suite, &self.secret, b"traffic upd", &mut next)?;
        *self = Self::new(self.suite, &next, 0)?;
        Ok(())
    }

    /// Decrypts a record's body where it stands; what comes back has the inner type and padding.
    pub(super) fn open<'a>(
        &mut self,
        header: [u8; HEADER_BYTES],
        body: &'a mut [u8],
    ) -> Result<&'a mut [u8], RecordError> {
        let nonce = self.next_nonce().ok_or(RecordError::Decrypt)?;
        self.cipher.open_in_place(nonce, Aad::from(header), body).map_err(|_| RecordError::Decrypt)
    }

    /// Encrypts `plaintext` and its inner type into `ciphertext`, which is as long, and
    /// `type_and_tag`.
    pub(super) fn seal(
        &mut self,
        header: [u8; HEADER_BYTES],
        plaintext: &[u8],
        ciphertext: &mut [u8],
        content_type: u8,
        type_and_tag: &mut [u8; 1 + TAG_BYTES],
    ) -> Result<(), RecordError> {
        let (nonce, aad) = (self.next_nonce().ok_or(RecordError::Encrypt)?, Aad::from(header));
        let extra = [content_type];
        self.cipher
            .seal_out_of_place_scatter(nonce, aad, plaintext, ciphertext, &extra, type_and_tag)
            .map_err(|_| RecordError::Encrypt)
    }

    /// Encrypts what stands in `text`, and its inner type.
    pub(crate) fn seal_in_place(
        &mut self,
        header: [u8; HEADER_BYTES],
        text: &mut [u8],
        content_type: u8,
        type_and_tag: &mut [u8; 1 + TAG_BYTES],
    ) -> Result<(), RecordError> {
        let (nonce, aad) = (self.next_nonce().ok_or(RecordError::Encrypt)?, Aad::from(header));
        self.cipher
            .seal_in_place_scatter(nonce, aad, text, &[content_type], type_and_tag)
            .map_err(|_| RecordError::Encrypt)
    }

    /// The sequence number, padded to the left, over the initialization vector (section 5.3). None
    /// comes twice: there is none after the last.
    fn next_nonce(&mut self) -> Option<Nonce> {
        let next = self.sequence.checked_add(1)?;
        let mut nonce = self.iv;
        let number = self.sequence.to_be_bytes();
        for (byte, number) in nonce.iter_mut().rev().zip(number.iter().rev()) {
            *byte ^= number;
        }
        self.sequence = next;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

/// HKDF-Expand-Label with an empty context (section 7.1).
fn expand(suite: Suite, secret: &[u8], label: &[u8], out: &mut [u8]) -> Result<(), RecordError> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let number = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    let length = [0, number(out.len())];
    let label_length = [number(PREFIX.len() + label.len())];
    let info: [&[u8]; 5] = [&length, &label_length, PREFIX, label, &[0]];
    suite
        .secret_of(secret)
        .expand(&info, Length(out.len()))
        .and_then(|key| key.fill(out))
        .map_err(|_| RecordError::Encrypt)
}
