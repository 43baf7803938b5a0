//! The scanner of the store's files, the journal and the spool: nothing makes it panic or miss a byte,
//! any split of a file tells the same, and what a job writes passes for no record.
#![no_main]

use afar_core::journal::Replay;
use afar_core::record::{RECORD_HEADER_BYTES, Salt, Scanned, Scanner, push_record};
use afar_core::spool::{Piece, SEGMENT_MAGIC};

const SALT: Salt = Salt(0x0123_4567_89ab_cdef);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((piece, file)) = data.split_first() else { return };
    let whole = told(file, file.len());
    assert_eq!(told(file, usize::from(*piece)), whole);
    let replay = Replay::read(file);
    let again = replay.ledger.to_file().expect("what was read can be written");
    assert_eq!(Replay::read(&again).ledger, replay.ledger);

    // As the output of a job, behind a record that was damaged.
    let mut segment = SEGMENT_MAGIC.to_vec();
    push_record(&mut segment, 0, SALT, 16, &file[..file.len().min(100_000)]);
    segment[SEGMENT_MAGIC.len()] ^= 1;
    let end = segment.len() as u64;
    assert_eq!(told(&segment, segment.len()), [(SEGMENT_MAGIC.len() as u64, end, None)]);
});

/// What a scanner tells of a file that comes in pieces: from, to, and the payload of a record.
fn told(file: &[u8], piece: usize) -> Vec<(u64, u64, Option<Vec<u8>>)> {
    let mut scanner = Scanner::new(SEGMENT_MAGIC, SALT);
    let mut pieces = file.chunks(piece.max(1));
    let mut told = Vec::new();
    loop {
        match scanner.next() {
            Scanned::Record(record) => {
                let _ = Piece::read(record.payload);
                assert_eq!(record.end() - record.at, (RECORD_HEADER_BYTES + record.payload.len()) as u64);
                told.push((record.at, record.end(), Some(record.payload.to_vec())));
            }
            Scanned::Damage(damage) => told.push((damage.bytes.start, damage.bytes.end, None)),
            Scanned::More => match pieces.next() {
                Some(bytes) => scanner.push(bytes),
                None => scanner.end(),
            },
            Scanned::End => break,
        }
    }
    for next in told.windows(2) {
        assert_eq!(next[0].1, next[1].0, "every byte is told of once");
    }
    assert!(told.last().is_none_or(|last| last.1 == file.len() as u64));
    told
}
