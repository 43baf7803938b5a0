//! A connection on its way from the listener to the user's supervisor (`W-4.13`): the state of its
//! record layer. Its socket travels beside it.
//!
//! The listener is out of the path then: what the job writes is encrypted by the process that read
//! it, which saves a copy and a wake-up in each direction, and a listener that is restarted cuts
//! nobody off. The supervisor learns the keys of its own user's connection only.

use std::fmt;

use zeroize::Zeroizing;

use crate::record::{
    Peer, RECORD_BYTES_MAX, RecordError, RecordOpener, RecordSealer, Suite, TrafficKeys,
};

/// The state of a connection's record layer. `Debug` does not show the secrets.
pub struct HandOff {
    suite: Suite,
    sending: Direction,
    receiving: Direction,
    /// Encrypted, and not sent yet.
    unsent: Vec<u8>,
    /// Received, and not decrypted yet: the part of a record.
    unopened: Vec<u8>,
    /// Bytes that were decrypted, and are the receiver's: they follow the frame.
    plaintext_bytes: u32,
}

struct Direction {
    secret: Zeroizing<Vec<u8>>,
    sequence: u64,
}

/// What was sent is no state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of a connection that was handed off is malformed")]
pub struct MalformedHandOff;

impl fmt::Debug for HandOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, sending, receiving, unsent, unopened, plaintext_bytes: _ } = self;
        write!(f, "HandOff({suite:?}, records {} and {}, ", sending.sequence, receiving.sequence)?;
        write!(f, "{} unsent, {} unopened bytes)", unsent.len(), unopened.len())
    }
}

impl HandOff {
    pub(crate) fn of(opener: &RecordOpener, sealer: &RecordSealer, unopened: Vec<u8>) -> Self {
        let direction = |keys: &TrafficKeys| Direction {
            secret: Zeroizing::new(keys.secret().to_vec()),
            sequence: keys.sequence(),
        };
        Self {
            suite: sealer.keys().suite(),
            sending: direction(sealer.keys()),
            receiving: direction(opener.keys()),
            unsent: sealer.unsent().to_vec(),
            unopened,
            plaintext_bytes: 0,
        }
    }

    /// Says that so many bytes follow, which were decrypted already.
    #[must_use]
    pub fn with_plaintext(self, plaintext_bytes: u32) -> Self {
        Self { plaintext_bytes, ..self }
    }

    /// How many bytes follow that were decrypted already.
    #[must_use]
    pub fn plaintext_bytes(&self) -> usize {
        self.plaintext_bytes as usize
    }

    pub(crate) fn into_parts(self) -> Result<(RecordOpener, RecordSealer, Vec<u8>), RecordError> {
        let keys = |direction: &Direction| {
            TrafficKeys::new(self.suite, &direction.secret, direction.sequence)
        };
        let opener = RecordOpener::new(keys(&self.receiving)?, Peer::Client);
        let sealer = RecordSealer::new(keys(&self.sending)?, &self.unsent)?;
        Ok((opener, sealer, self.unopened))
    }

    /// The payload of a HAND_OFF frame: the suite's number, of sending and of receiving the secret
    /// and the next record's number, the count of plaintext bytes behind the frame, that of unsent
    /// bytes, these, and the unopened ones.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // All at once: what a growing vector leaves behind is not wiped.
        let counts_bytes = size_of::<u16>() + 2 * (self.suite.secret_bytes() + size_of::<u64>());
        let capacity =
            counts_bytes + 2 * size_of::<u32>() + self.unsent.len() + self.unopened.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        bytes.extend_from_slice(&self.suite.number().to_be_bytes());
        for direction in [&self.sending, &self.receiving] {
            bytes.extend_from_slice(&direction.secret);
            bytes.extend_from_slice(&direction.sequence.to_be_bytes());
        }
        bytes.extend_from_slice(&self.plaintext_bytes.to_be_bytes());
        let unsent_bytes = u32::try_from(self.unsent.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&unsent_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.unsent);
        bytes.extend_from_slice(&self.unopened);
        bytes
    }

    /// Reads what [`HandOff::encode`] has written.
    ///
    /// # Errors
    /// [`MalformedHandOff`]: another suite than ours, or counts that don't add up.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedHandOff> {
        fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], MalformedHandOff> {
            let (taken, rest) = bytes.split_at_checked(count).ok_or(MalformedHandOff)?;
            *bytes = rest;
            Ok(taken)
        }
        fn array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], MalformedHandOff> {
            take(bytes, N)?.try_into().map_err(|_| MalformedHandOff)
        }
        let mut rest = bytes;
        let suite = u16::from_be_bytes(array(&mut rest)?);
        let suite = Suite::from_number(suite).ok_or(MalformedHandOff)?;
        let mut direction = || {
            let secret = Zeroizing::new(take(&mut rest, suite.secret_bytes())?.to_vec());
            Ok(Direction { secret, sequence: u64::from_be_bytes(array(&mut rest)?) })
        };
        let (sending, receiving) = (direction()?, direction()?);
        let plaintext_bytes = u32::from_be_bytes(array(&mut rest)?);
        let unsent_bytes = u32::from_be_bytes(array(&mut rest)?) as usize;
        let unsent = take(&mut rest, unsent_bytes)?.to_vec();
        if rest.len() > RECORD_BYTES_MAX {
            return Err(MalformedHandOff);
        }
        Ok(Self { suite, sending, receiving, unsent, unopened: rest.to_vec(), plaintext_bytes })
    }
}
