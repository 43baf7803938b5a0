//! Where a stream goes on after a break: exactly at the wanted offset, or behind a named gap.

use std::ops::Range;

/// What a sender still holds of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The first offset that is still there; what is before it was acknowledged or dropped.
    pub start: u64,
    /// The offset behind the last byte that was produced so far.
    pub end: u64,
}

/// Where the stream goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumption {
    /// The offset of the next byte that will be sent.
    pub offset: u64,
    /// Bytes that were wanted and are not there any more.
    pub gap: Option<Range<u64>>,
}

/// The wanted offset is beyond what was ever produced: the two sides do not mean the same stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset {wanted} is beyond the {produced} bytes produced")]
pub struct BeyondEnd {
    /// The offset that was wanted.
    pub wanted: u64,
    /// Bytes produced so far.
    pub produced: u64,
}

/// Decides where a stream goes on for a receiver that wants `wanted` next (`W-6.7`).
///
/// # Errors
/// [`BeyondEnd`] if no such byte was produced yet.
pub fn resume(retained: &Retained, wanted: u64) -> Result<Resumption, BeyondEnd> {
    if wanted > retained.end {
        return Err(BeyondEnd { wanted, produced: retained.end });
    }
    if wanted < retained.start {
        let gap = Some(wanted..retained.start);
        return Ok(Resumption { offset: retained.start, gap });
    }
    Ok(Resumption { offset: wanted, gap: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETAINED: Retained = Retained { start: 100, end: 200 };

    #[test]
    fn fault_31_a_resume_goes_on_exactly_or_names_the_gap_or_fails() {
        assert_eq!(resume(&RETAINED, 100), Ok(Resumption { offset: 100, gap: None }));
        assert_eq!(resume(&RETAINED, 200), Ok(Resumption { offset: 200, gap: None }));
        assert_eq!(resume(&RETAINED, 99), Ok(Resumption { offset: 100, gap: Some(99..100) }));
        assert_eq!(resume(&RETAINED, 201), Err(BeyondEnd { wanted: 201, produced: 200 }));
    }
}
