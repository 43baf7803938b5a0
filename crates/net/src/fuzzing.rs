//! What the fuzz targets run that is not public.

use crate::record::{
    APPLICATION_DATA, HEADER_BYTES, Peer, RecordError, RecordOpener, Suite, TAG_BYTES, TrafficKeys,
};

/// Records of one input; more take time and show nothing new.
const RECORDS_MAX: usize = 256;

/// What came of some records.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    data: Vec<u8>,
    updates_requested: usize,
    end: bool,
    failure: Option<RecordError>,
}

/// Encrypts records of any content as the peer would, damages some, and opens them: first one by one,
/// then in pieces of another size, which must come to the same.
///
/// The input's first byte chooses suite and peer, the second the pieces; then each record is a byte of
/// flags, the length of its inner plaintext (u16), and that: content, type and padding.
///
/// # Panics
/// The opener has not kept its promises.
pub fn tls_records(input: &[u8]) {
    let Some((&[choice, pieces], mut rest)) = input.split_first_chunk() else { return };
    let number = [0x1301, 0x1302, 0x1303].into_iter().nth(usize::from(choice % 3));
    let Some(suite) = number.and_then(Suite::from_number) else { return };
    let peer = if choice & 0x80 == 0 { Peer::Client } else { Peer::Server };
    let secret = vec![choice; suite.secret_bytes()];
    let sequence = if choice & 0x40 == 0 { 0 } else { u64::MAX - 3 };
    let keys = || TrafficKeys::new(suite, &secret, sequence).ok();
    let (Some(one_by_one), Some(in_pieces)) = (keys(), keys()) else { return };

    let (mut opener, mut expected) = (RecordOpener::new(one_by_one, peer), Seen::default());
    let (mut stream, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..RECORDS_MAX {
        let Some((&[flags, high, low], behind)) = rest.split_first_chunk() else { break };
        let length = usize::from(u16::from_be_bytes([high, low])).min(behind.len());
        let (inner, behind) = behind.split_at(length);
        rest = behind;
        let Some(record) = record(opener.keys(), inner, flags) else { break };
        stream.extend_from_slice(&record);
        waiting.extend_from_slice(&record);
        let consumed = open(&mut opener, &mut waiting, &mut expected);
        if expected.end || expected.failure.is_some() {
            break;
        }
        waiting.drain(..consumed);
        assert!(waiting.is_empty() || !RecordOpener::is_whole(&waiting));
    }

    let (mut opener, mut seen) = (RecordOpener::new(in_pieces, peer), Seen::default());
    let size = usize::from(pieces).saturating_mul(usize::from(pieces)).max(1);
    waiting.clear();
    for piece in stream.chunks(size) {
        waiting.extend_from_slice(piece);
        let is_whole = RecordOpener::is_whole(&waiting);
        let consumed = open(&mut opener, &mut waiting, &mut seen);
        assert_eq!(is_whole, consumed > 0 || seen.failure.is_some());
        waiting.drain(..consumed);
        if seen.end || seen.failure.is_some() {
            break;
        }
    }
    assert_eq!(seen, expected);
}

fn open(opener: &mut RecordOpener, bytes: &mut [u8], seen: &mut Seen) -> usize {
    let before = seen.data.len();
    let opened = opener.open(bytes, &mut |data| seen.data.extend_from_slice(data));
    assert_eq!(opened.data, seen.data.len() > before);
    seen.updates_requested += usize::from(opened.update_requested);
    seen.end = opened.end;
    seen.failure = opened.failure;
    assert!(opened.consumed <= bytes.len());
    opened.consumed
}

/// A record on the wire. Flags: 1 damages its body, 2 its type, 4 its length; 8 leaves it as it is, with
/// nothing encrypted.
fn record(keys: &TrafficKeys, inner: &[u8], flags: u8) -> Option<Vec<u8>> {
    let mut keys = TrafficKeys::new(keys.suite(), keys.secret(), keys.sequence()).ok()?;
    let length = u16::try_from(inner.len() + TAG_BYTES).ok()?;
    let [high, low] = length.to_be_bytes();
    let header: [u8; HEADER_BYTES] = [APPLICATION_DATA, 3, 3, high, low];
    let (content_type, content) = inner.split_last()?;
    let mut body = content.to_vec();
    let mut tag = [0; 1 + TAG_BYTES];
    if flags & 8 == 0 {
        keys.seal_in_place(header, &mut body, *content_type, &mut tag).ok()?;
    }
    let mut record = [header.as_slice(), &body, &tag].concat();
    let damaged =
        [(1, HEADER_BYTES), (2, 0), (4, 3)].into_iter().filter(|(flag, _)| flags & flag != 0);
    for (_, at) in damaged {
        *record.get_mut(at)? ^= 0x20;
    }
    Some(record)
}

#[cfg(test)]
#[path = "../../../fuzz/corpus.rs"]
mod files;

#[cfg(test)]
mod tests {
    use super::files::for_each_file;
    use super::*;

    #[test]
    fn fault_32_records_come_to_the_same_in_any_pieces() {
        for_each_file("tls_records", |_, bytes| tls_records(bytes));
    }
}
