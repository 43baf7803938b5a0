//! The SSH wire encoding (RFC 4251 section 5): strings, integers and multiple precision integers.
//!
//! Every length is checked against the bytes that are there before anything is taken or
//! allocated, so a hostile count costs nothing.

/// What was read is not what RFC 4251 describes: it ends early, or is not in its one valid form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Takes values off the front of a slice.
#[derive(Debug, Clone)]
pub(crate) struct SshReader<'a> {
    rest: &'a [u8],
}

impl<'a> SshReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes exactly `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(first)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk::<4>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// Takes a length-prefixed string of any bytes.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    /// Takes a strictly positive `mpint` and returns its magnitude without leading zeros.
    ///
    /// Only the one shortest form is accepted: two encodings of one number would be two names of
    /// one key.
    pub(crate) fn positive_mpint(&mut self) -> Result<&'a [u8], Malformed> {
        match self.string()? {
            [] => Err(Malformed),
            [0, magnitude @ ..] => match magnitude.first() {
                Some(&first) if first >= 0x80 => Ok(magnitude),
                _ => Err(Malformed),
            },
            [first, ..] if *first >= 0x80 => Err(Malformed),
            magnitude => Ok(magnitude),
        }
    }

    /// Ends the reading; bytes left over are an error.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// Appends a big-endian `uint32`.
pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a length-prefixed string.
///
/// Nothing that afar encodes comes near 4 GiB; a longer slice would be cut to what the prefix can
/// say, never sent with a length that is not its own.
pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    put_u32(out, length);
    let bounded = usize::try_from(length).unwrap_or(usize::MAX);
    out.extend_from_slice(bytes.get(..bounded).unwrap_or(bytes));
}

/// Appends a positive integer, given as big-endian magnitude, as an `mpint`.
pub(crate) fn put_positive_mpint(out: &mut Vec<u8>, magnitude: &[u8]) {
    let stripped = strip_leading_zeros(magnitude);
    if stripped.first().is_some_and(|&first| first >= 0x80) {
        let mut padded = Vec::with_capacity(stripped.len() + 1);
        padded.push(0);
        padded.extend_from_slice(stripped);
        put_string(out, &padded);
    } else {
        put_string(out, stripped);
    }
}

/// The magnitude without the zero bytes in front of it.
pub(crate) fn strip_leading_zeros(magnitude: &[u8]) -> &[u8] {
    let zeros = magnitude.iter().take_while(|&&byte| byte == 0).count();
    magnitude.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_beyond_the_bytes_is_refused_without_allocating() {
        let mut reader = SshReader::new(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(reader.string(), Err(Malformed));
    }

    #[test]
    fn mpints_have_one_form() {
        // The examples of RFC 4251 section 5, and forms it forbids.
        let mut out = Vec::new();
        put_positive_mpint(&mut out, &[0, 0, 0x80]);
        assert_eq!(out, [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(SshReader::new(&out).positive_mpint(), Ok(&[0x80][..]));
        for bad in [
            &[0, 0, 0, 0][..],         // Zero.
            &[0, 0, 0, 1, 0],          // Zero, the long way.
            &[0, 0, 0, 1, 0x80],       // Negative.
            &[0, 0, 0, 2, 0, 0x7f],    // A needless zero.
            &[0, 0, 0, 3, 0, 0, 0x80], // Two zeros.
        ] {
            assert_eq!(SshReader::new(bad).positive_mpint(), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_value_is_refused() {
        let mut out = Vec::new();
        put_u32(&mut out, 7);
        put_string(&mut out, b"afar");
        for cut in 0..out.len() {
            let mut reader = SshReader::new(&out[..cut]);
            assert!(reader.u32().and_then(|_| reader.string()).is_err(), "cut at {cut}");
        }
        let mut reader = SshReader::new(&out);
        assert_eq!(reader.u32(), Ok(7));
        assert_eq!(reader.string(), Ok(&b"afar"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }
}
