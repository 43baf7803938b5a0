//! Large streams in and out of a program without holding them: a source of bytes, a digest of bytes.

use std::fs::File;
use std::io::{self, Read, Write};

/// Where a program's stdin comes from.
#[derive(Debug)]
pub enum Source {
    /// `/dev/null`.
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// So many bytes of [`Random`], then the end.
    Random {
        /// The seed.
        seed: u64,
        /// How many.
        bytes: u64,
    },
    /// A file, or one end of a pipe of the test's own.
    File(File),
    /// A pipe that the test writes through [`Running::write`](crate::Running::write).
    Piped,
}

/// Where a program's stdout goes.
#[derive(Debug)]
pub enum Sink {
    /// Into [`Output::stdout`](crate::Output::stdout).
    Collect,
    /// Into [`Output::digest`](crate::Output::digest) only.
    Digest,
    /// A file, or one end of a pipe of the test's own.
    File(File),
}

/// Bytes that no compression and no accident repeats, without an end: BLAKE3's extended output.
#[derive(Clone, Debug)]
pub struct Random(blake3::OutputReader);

impl Random {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }
}

impl Read for Random {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer);
        Ok(buffer.len())
    }
}

/// How many bytes, and their BLAKE3 in hexadecimal as `b3sum` and `--result` have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// How many.
    pub bytes: u64,
    /// Their hash.
    pub blake3: String,
}

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self { bytes: count, blake3: blake3::hash(bytes).to_hex().to_string() }
    }

    /// Of everything that a reader gives.
    ///
    /// # Panics
    /// Reading fails.
    #[must_use]
    pub fn read(mut reader: impl Read) -> Self {
        let mut digesting = Digesting::default();
        io::copy(&mut reader, &mut digesting).expect("it can be read");
        digesting.finish()
    }
}

/// A digest in the making.
#[derive(Debug, Default)]
pub(crate) struct Digesting {
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Digesting {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn finish(&self) -> Digest {
        Digest { bytes: self.bytes, blake3: self.hasher.finalize().to_hex().to_string() }
    }
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_bytes_however_they_come() {
        let mut bytes = vec![0; 100_000];
        Random::new(7).read_exact(&mut bytes).unwrap();
        assert_eq!(Digest::read(bytes.as_slice()), Digest::of(&bytes));
        assert_ne!(Digest::of(&bytes), Digest::of(&bytes[1..]));
        // `b3sum < /dev/null`
        assert!(Digest::of(b"").blake3.starts_with("af1349b9f5f9a1a6a0404dea36dcc949"));
    }
}
