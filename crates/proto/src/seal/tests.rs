//! That a seal is the hash of the whole, however it came about.
#![expect(clippy::arithmetic_side_effects, reason = "test lengths are small")]

use proptest::prelude::*;

use super::*;

/// Bytes in which no two chunks are the same.
fn sample(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 251 + at / 65_521) % 256).unwrap()).collect()
}

fn sealed(pieces: &[&[u8]]) -> Sealer {
    let mut sealer = Sealer::new();
    pieces.iter().for_each(|piece| sealer.update(piece));
    sealer
}

#[track_caller]
fn assert_is_of(sealer: &Sealer, whole: &[u8]) {
    let seal = sealer.seal(true);
    assert_eq!(seal.bytes, whole.len() as u64);
    assert_eq!(seal.blake3, blake3::hash(whole).as_bytes(), "{} bytes", whole.len());
}

#[test]
fn the_seal_is_what_b3sum_prints() {
    let sealer = sealed(&[b"a", b"bc"]);
    let seal = sealer.seal(true);
    // The published BLAKE3 test value of "abc".
    let expected = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    let hex: String = seal.blake3.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((seal.bytes, hex.as_str()), (3, expected));
    assert!(sealer.matches(&seal));
}

#[test]
fn a_seal_of_other_bytes_does_not_match_and_one_with_a_gap_that_was_seen_does() {
    let sealer = sealed(&[b"abc"]);
    let seal = sealer.seal(true);
    assert!(!sealed(&[b"abd"]).matches(&seal));
    let gap = StreamSeal { gaps: [(0, 1)].into_iter().collect(), ..seal };
    assert!(sealer.matches(&gap));
}

/// Every length around every border of the tree, in one piece and byte by byte.
#[test]
fn every_length_gives_the_hash_of_the_whole() {
    let borders = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100];
    let whole = sample(101 * CHUNK_LEN + 1);
    for chunks in borders {
        for near in 0..3 {
            let Some(length) = (chunks * CHUNK_LEN + near).checked_sub(1) else { continue };
            let whole = &whole[..length];
            assert_is_of(&sealed(&[whole]), whole);
            for piece in [1, 1_000, 1_024, 4_096, 65_536] {
                let pieces: Vec<&[u8]> = whole.chunks(piece).collect();
                assert_is_of(&sealed(&pieces), whole);
            }
        }
    }
}

/// Written down and read again at every byte, it is the same sealer.
#[test]
fn a_sealer_that_was_written_down_goes_on_at_every_split() {
    let whole = sample(5 * CHUNK_LEN + 17);
    for at in 0..=whole.len() {
        let (before, after) = whole.split_at(at);
        let first = sealed(&[before]);
        assert_is_of(&first, before);
        let mut second = Sealer::from_bytes(&first.to_bytes()).unwrap();
        assert_is_of(&second, before);
        second.update(after);
        assert_is_of(&second, &whole);
    }
}

proptest! {
    /// The same for any pieces, with a new process behind each of them.
    #[test]
    fn any_pieces_and_any_restarts_give_the_hash_of_the_whole(
        cuts in prop::collection::vec(0_usize..300_000, 0..12),
        length in 0_usize..300_000,
    ) {
        let whole = sample(length);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(length)).collect();
        cuts.extend([0, length]);
        cuts.sort_unstable();
        let mut sealer = Sealer::new();
        for piece in cuts.windows(2) {
            sealer.update(&whole[piece[0]..piece[1]]);
            let state = sealer.to_bytes();
            prop_assert!(state.len() <= 9 + 64 * 32 + CHUNK_LEN);
            sealer = Sealer::from_bytes(&state).unwrap();
        }
        assert_is_of(&sealer, &whole);
    }

    /// Whatever is read as a state, or refused as none, nothing panics.
    #[test]
    fn any_bytes_are_a_state_or_none(
        bytes in any::<u64>(),
        count in 0_u8..70,
        rest in prop::collection::vec(any::<u8>(), 0..3_000),
    ) {
        let state = [&bytes.to_be_bytes()[..], &[count], &rest].concat();
        if let Ok(mut sealer) = Sealer::from_bytes(&state) {
            let before = sealer.seal(true).bytes;
            sealer.update(&rest);
            prop_assert_eq!(sealer.seal(true).bytes, before.saturating_add(rest.len() as u64));
        }
    }
}

#[test]
fn a_state_that_no_sealer_writes_is_refused() {
    let good = sealed(&[&sample(3 * CHUNK_LEN)]).to_bytes();
    assert!(Sealer::from_bytes(&good).is_ok());
    let mut other_count = good.clone();
    other_count[7] ^= 1;
    let mut one_more = good.clone();
    one_more[8] += 1;
    let cut = &good[..good.len() - 1];
    let longer = [&good[..], b"x"].concat();
    // One chunk is always kept as bytes: its own value can only be made in the end.
    let one_chunk = [&1_024_u64.to_be_bytes()[..], &[1], &[0; 32]].concat();
    for state in [&b""[..], &good[..8], &other_count, &one_more, cut, &longer, &one_chunk] {
        assert_eq!(Sealer::from_bytes(state).unwrap_err(), SealerStateError);
    }
}

#[test]
fn a_sealer_of_whole_subtrees_that_are_not_merged_yet_can_be_written_down() {
    // What a pipe of bulk output gives: pieces of one size, each a whole subtree.
    let whole = sample(64 * 65_536);
    let mut sealer = Sealer::new();
    for (piece, end) in whole.chunks(65_536).zip((65_536..).step_by(65_536)) {
        sealer.update(piece);
        sealer = Sealer::from_bytes(&sealer.to_bytes()).unwrap();
        assert_is_of(&sealer, &whole[..end]);
    }
}
