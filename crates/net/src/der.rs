//! The few corners of DER (X.690) that keys need: sequences, integers and bit strings.
//!
//! Reading is used for one structure only (the RSA SubjectPublicKeyInfo), whose reader encodes
//! the result again and compares, so a form that DER forbids is never taken for a key.

use zeroize::Zeroizing;

use crate::ssh_wire::{Malformed, strip_leading_zeros};

pub(crate) const TAG_INTEGER: u8 = 0x02;
pub(crate) const TAG_BIT_STRING: u8 = 0x03;
pub(crate) const TAG_OCTET_STRING: u8 = 0x04;
pub(crate) const TAG_SEQUENCE: u8 = 0x30;

/// One tag, length and the parts of its value in order.
///
/// The buffer is sized before it is filled and wiped when dropped, because private keys are
/// encoded with this too.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 6));
    out.push(tag);
    put_length(&mut out, length);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// A non-negative INTEGER from its big-endian magnitude.
pub(crate) fn unsigned_integer(magnitude: &[u8]) -> Zeroizing<Vec<u8>> {
    match strip_leading_zeros(magnitude) {
        [] => tlv(TAG_INTEGER, &[&[0]]),
        stripped @ [first, ..] if *first >= 0x80 => tlv(TAG_INTEGER, &[&[0], stripped]),
        stripped => tlv(TAG_INTEGER, &[stripped]),
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let significant = strip_leading_zeros(&bytes);
            // A usize has at most eight bytes, so the count fits the low bits of the prefix.
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            out.extend_from_slice(significant);
        }
    }
}

/// Takes elements off the front of a slice.
pub(crate) struct DerReader<'a> {
    rest: &'a [u8],
}

impl<'a> DerReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next element, which must have this tag, and returns its value.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        let (&found, rest) = self.rest.split_first().ok_or(Malformed)?;
        if found != tag {
            return Err(Malformed);
        }
        let (&first, rest) = rest.split_first().ok_or(Malformed)?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            // Three bytes of length is 16 MiB, far beyond any key.
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 3 {
                return Err(Malformed);
            }
            let (bytes, rest) = rest.split_at_checked(count).ok_or(Malformed)?;
            (bytes.iter().fold(0, |sum, &byte| (sum << 8) | usize::from(byte)), rest)
        };
        let (value, rest) = rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(value)
    }

    /// Ends the reading; bytes left over are an error.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_their_shortest_form() {
        assert_eq!(tlv(TAG_OCTET_STRING, &[&[0; 0x7f]])[..2], [0x04, 0x7f]);
        assert_eq!(tlv(TAG_OCTET_STRING, &[&[0; 0x80]])[..3], [0x04, 0x81, 0x80]);
        assert_eq!(tlv(TAG_OCTET_STRING, &[&[0; 0x100]])[..4], [0x04, 0x82, 0x01, 0x00]);
    }

    #[test]
    fn integers_are_never_negative() {
        assert_eq!(unsigned_integer(&[0, 0]).as_slice(), [2, 1, 0]);
        assert_eq!(unsigned_integer(&[0, 0x7f]).as_slice(), [2, 1, 0x7f]);
        assert_eq!(unsigned_integer(&[0x80]).as_slice(), [2, 2, 0, 0x80]);
    }

    #[test]
    fn what_is_cut_is_refused() {
        let whole = tlv(TAG_SEQUENCE, &[&[7; 200]]);
        for cut in 0..whole.len() {
            assert_eq!(DerReader::new(&whole[..cut]).expect(TAG_SEQUENCE), Err(Malformed));
        }
        let mut reader = DerReader::new(&whole);
        assert_eq!(reader.expect(TAG_SEQUENCE), Ok(&[7; 200][..]));
        assert_eq!(reader.finish(), Ok(()));
    }
}
