//! Gaps: the ranges of one stream that are not there any more.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::limits::GAPS_MAX;

/// Ranges of a stream, in order and apart from each other, as a seal has them (`W-7.3`).
///
/// There are never more than [`GAPS_MAX`]: beyond it, the two that are nearest to each other become
/// one that covers both. So what is said to be there is, and some of what is there is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Gaps(Vec<(u64, u64)>);

impl Gaps {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a range, wherever it lies; an empty one is none.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let before = self.0.partition_point(|gap| gap.1 < range.start);
        let after = self.0.partition_point(|gap| gap.0 <= range.end);
        let touched = self.0.get(before..after).unwrap_or_default();
        let start = touched.first().map_or(range.start, |gap| gap.0.min(range.start));
        let end = touched.last().map_or(range.end, |gap| gap.1.max(range.end));
        self.0.splice(before..after, [(start, end)]);
        while self.0.len() > GAPS_MAX {
            self.merge_nearest();
        }
    }

    fn merge_nearest(&mut self) {
        let apart = |pair: &[(u64, u64)]| match pair {
            [first, second] => second.0.saturating_sub(first.1),
            _ => u64::MAX,
        };
        let pairs = self.0.windows(2).enumerate();
        let Some((at, _)) = pairs.min_by_key(|(_, pair)| apart(pair)) else { return };
        let second = self.0.remove(at.saturating_add(1));
        if let Some(first) = self.0.get_mut(at) {
            first.1 = second.1;
        }
    }

    /// Whether all of this range is said to be missing.
    #[must_use]
    pub fn cover(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.0.iter().any(|gap| gap.0 <= range.start && range.end <= gap.1)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges as (first offset, offset after the last).
    #[must_use]
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }
}

/// What a peer has sent is brought into order.
impl From<Vec<(u64, u64)>> for Gaps {
    fn from(ranges: Vec<(u64, u64)>) -> Self {
        ranges.into_iter().collect()
    }
}

impl From<Gaps> for Vec<(u64, u64)> {
    fn from(gaps: Gaps) -> Self {
        gaps.0
    }
}

impl FromIterator<(u64, u64)> for Gaps {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut gaps = Self::new();
        ranges.into_iter().for_each(|(start, end)| gaps.add(start..end));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_or_overlaps_is_one() {
        let mut gaps = Gaps::new();
        gaps.add(10..20);
        gaps.add(30..40);
        gaps.add(50..50);
        assert_eq!(gaps.as_slice(), [(10, 20), (30, 40)]);
        gaps.add(20..25);
        gaps.add(5..8);
        assert_eq!(gaps.as_slice(), [(5, 8), (10, 25), (30, 40)]);
        gaps.add(7..31);
        assert_eq!(gaps.as_slice(), [(5, 40)]);
        assert!(gaps.cover(&(5..40)) && gaps.cover(&(3..3)) && !gaps.cover(&(4..6)));
    }

    /// W-9.26, W-7.3: as many as fit a seal, and never fewer bytes missing than are.
    #[test]
    fn too_many_gaps_become_fewer_that_cover_them() {
        let wide = u64::try_from(GAPS_MAX).unwrap();
        let mut gaps: Gaps = (0..wide).map(|at| (at * 100, at * 100 + 10)).collect();
        assert_eq!(gaps.as_slice().len(), GAPS_MAX);
        let nearest = 255..265;
        gaps.add(nearest.clone());
        assert_eq!(gaps.as_slice().len(), GAPS_MAX);
        for at in 0..wide {
            assert!(gaps.cover(&(at * 100..at * 100 + 10)));
        }
        // What became one is the new one and its nearest neighbour.
        assert!(gaps.cover(&nearest) && gaps.as_slice().contains(&(255, 310)));
    }

    /// W-9.26: with the most gaps and the largest numbers, a seal fits its frame.
    #[test]
    fn a_seal_with_all_gaps_fits_its_frame() {
        use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
        use crate::outcome::{End, Receipt, Seal, StreamSeal};
        let most = 1_u64 << 53;
        let gaps: Gaps =
            (0..GAPS_MAX as u64).map(|at| (most - at * 4 - 2, most - at * 4 - 1)).collect();
        assert_eq!(gaps.as_slice().len(), GAPS_MAX);
        let stream = StreamSeal { bytes: most, blake3: vec![0xff; 32], complete: false, gaps };
        let seal = Seal {
            end: End::Signaled { signal: 255, name: "S".repeat(32), core: false },
            receipt: Receipt::default(),
            streams: [("stdout".to_owned(), stream.clone()), ("stderr".to_owned(), stream)].into(),
            streams_left_open: true,
            session_restarted: true,
            detail: None,
        };
        assert!(crate::json::to_vec(&seal).len() <= CONTROL_PAYLOAD_BYTES_MAX as usize / 2);
    }
}
