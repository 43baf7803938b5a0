//! Records that are whole, torn, flipped, forged and moved.

use proptest::prelude::*;

use super::*;

const MAGIC: Magic = *b"afartst1";
const SALT: Salt = Salt(0x0123_4567_89ab_cdef);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Record { at: u64, kind: u8, payload: Vec<u8> },
    Damage(Damage),
}

fn file_of(payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    for (kind, payload) in (0..).zip(payloads) {
        push_record(&mut file, 0, SALT, kind, payload);
    }
    file
}

/// What a scanner says of a file that comes in pieces of this size.
fn seen_in_pieces(file: &[u8], piece: usize) -> Vec<Seen> {
    let mut scanner = Scanner::new(MAGIC, SALT);
    let mut pieces = file.chunks(piece.max(1));
    let mut seen = Vec::new();
    loop {
        match scanner.next() {
            Scanned::Record(Record { at, kind, payload }) => {
                seen.push(Seen::Record { at, kind, payload: payload.to_vec() });
            }
            Scanned::Damage(damage) => seen.push(Seen::Damage(damage)),
            Scanned::More => match pieces.next() {
                Some(bytes) => scanner.push(bytes),
                None => scanner.end(),
            },
            Scanned::End => return seen,
        }
        assert!(scanner.buffer.len() <= RECORD_HEADER_BYTES + RECORD_PAYLOAD_BYTES_MAX + piece);
    }
}

fn seen(file: &[u8]) -> Vec<Seen> {
    seen_in_pieces(file, file.len())
}

fn payloads(seen: &[Seen]) -> Vec<Vec<u8>> {
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::Record { payload, .. } => Some(payload.clone()),
            Seen::Damage(_) => None,
        })
        .collect()
}

fn three() -> Vec<Vec<u8>> {
    vec![b"first".to_vec(), b"the second one".to_vec(), b"third".to_vec()]
}

/// J-5.3
#[test]
fn fault_60_a_record_that_was_cut_at_any_byte_is_torn_and_the_others_are_whole() {
    let file = file_of(&three());
    let ends: Vec<usize> = {
        let mut at = MAGIC_BYTES;
        three()
            .iter()
            .map(|payload| {
                at += RECORD_HEADER_BYTES + payload.len();
                at
            })
            .collect()
    };
    for cut in 0..file.len() {
        let seen = seen(&file[..cut]);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(payloads(&seen), three()[..whole], "cut at {cut}");
        let from = ends[..whole].last().copied().unwrap_or(MAGIC_BYTES);
        match seen.last() {
            Some(Seen::Damage(damage)) => {
                let from = if cut < MAGIC_BYTES { 0 } else { from };
                assert_eq!(damage.bytes, from as u64..cut as u64, "cut at {cut}");
                assert!(damage.torn, "cut at {cut}");
            }
            // Nothing is torn at the end of a record.
            _ => assert!(cut == 0 || cut == from, "cut at {cut}: {seen:?}"),
        }
    }
}

#[test]
fn fault_60_a_flipped_bit_anywhere_costs_one_record_and_is_named() {
    let good = file_of(&three());
    let whole = seen(&good);
    for at in MAGIC_BYTES..good.len() {
        for bit in 0..8 {
            let mut file = good.clone();
            file[at] ^= 1 << bit;
            let found = seen(&file);
            let hit = whole
                .iter()
                .position(|seen| match seen {
                    Seen::Record { at: from, payload, .. } => {
                        let to = from + (RECORD_HEADER_BYTES + payload.len()) as u64;
                        (*from..to).contains(&(at as u64))
                    }
                    Seen::Damage(_) => false,
                })
                .expect("every byte behind the magic is of a record");
            let mut left = three();
            left.remove(hit);
            // The third byte of the header is not read, but it is summed.
            assert_eq!(payloads(&found), left, "bit {bit} of byte {at}");
            let Some(Seen::Damage(damage)) = found.get(hit) else { panic!("{found:?}") };
            assert!(damage.bytes.contains(&(at as u64)), "{damage:?}");
        }
    }
}

/// J-5.1
#[test]
fn a_file_of_another_format_is_damage_from_its_first_byte() {
    let mut file = file_of(&three());
    file[7] = b'9';
    let seen = seen(&file);
    assert_eq!(seen.first(), Some(&Seen::Damage(Damage { bytes: 0..8, torn: false })));
    assert_eq!(payloads(&seen), three());
}

/// J-5.2
#[test]
fn what_a_job_writes_passes_for_no_record() {
    // It knows the format and guesses where it is going to stand, but not the salt.
    let at = (MAGIC_BYTES + RECORD_HEADER_BYTES) as u64;
    let mut forged = Vec::new();
    push_record(&mut forged, at, Salt(0), 1, b"forged");
    let mut file = file_of(&[forged]);
    assert_eq!(payloads(&seen(&file)).len(), 1);
    file[MAGIC_BYTES + 4] ^= 1;
    let length = file.len() as u64;
    let all = Damage { bytes: MAGIC_BYTES as u64..length, torn: false };
    assert_eq!(seen(&file), [Seen::Damage(all)]);
}

#[test]
fn a_record_at_another_place_than_its_own_is_none() {
    let file = file_of(&[b"one".to_vec()]);
    let mut moved = MAGIC.to_vec();
    moved.extend_from_slice(&[0; 3]);
    moved.extend_from_slice(&file[MAGIC_BYTES..]);
    assert!(payloads(&seen(&moved)).is_empty());
}

#[test]
fn the_largest_record_fits_and_a_larger_length_is_damage() {
    let largest = vec![7; RECORD_PAYLOAD_BYTES_MAX];
    let file = file_of(std::slice::from_ref(&largest));
    assert_eq!(payloads(&seen_in_pieces(&file, 4096)), [largest]);
    // A header whose sums are right and whose length is over the limit: nobody waits for its payload.
    let mut header = header(SALT, MAGIC_BYTES as u64, 1, &[b""]);
    let over = u32::try_from(RECORD_PAYLOAD_BYTES_MAX + 1).unwrap();
    header[4..8].copy_from_slice(&over.to_be_bytes());
    let sum = header_sum(SALT, MAGIC_BYTES as u64, &header[..12]);
    header[12..].copy_from_slice(&sum.to_be_bytes());
    let mut scanner = Scanner::new(MAGIC, SALT);
    scanner.push(&MAGIC);
    scanner.push(&header);
    scanner.push(&[0; 64]);
    assert_eq!(scanner.next(), Scanned::More);
    assert_eq!(scanner.position(), (MAGIC_BYTES + header.len() + 64) as u64);
}

proptest! {
    #[test]
    fn any_split_of_a_file_tells_the_same(
        written in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        piece in 1..200_usize,
    ) {
        let mut file = file_of(&written);
        for (index, mask) in flips {
            let at = index.index(file.len());
            file[at] ^= mask;
        }
        file.truncate(cut.index(file.len() + 1));
        let whole = seen(&file);
        prop_assert_eq!(&seen_in_pieces(&file, piece), &whole);
        // Whatever is told was written, in order, and every byte is told of once.
        let mut rest = written.iter();
        for payload in payloads(&whole) {
            prop_assert!(rest.any(|written| *written == payload));
        }
        let mut next = if whole.first().is_some_and(|seen| matches!(seen, Seen::Damage(d) if d.bytes.start == 0)) { 0 } else { MAGIC_BYTES.min(file.len()) as u64 };
        for seen in &whole {
            let bytes = match seen {
                Seen::Record { at, payload, .. } => *at..*at + (RECORD_HEADER_BYTES + payload.len()) as u64,
                Seen::Damage(damage) => damage.bytes.clone(),
            };
            prop_assert_eq!(bytes.start, next);
            prop_assert!(bytes.end > bytes.start);
            next = bytes.end;
        }
        prop_assert_eq!(next, file.len() as u64);
    }
}
