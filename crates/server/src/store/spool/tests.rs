//! Spools that are written, read, released, full, broken and damaged.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::PathBuf;

use afar_core::record::Salt;
use afar_core::spool::spool_name;
use afar_proto::connection::Stream::{self, Stderr, Stdout};
use bytes::Bytes;
use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::rig::FailingDisk;
use super::*;

struct Rig {
    root: TempDir,
    disk: Arc<FailingDisk>,
    spools: Spools,
}

const QUOTAS: Quotas = Quotas { job_bytes: 1 << 20, user_bytes: 1 << 20, segment_bytes: 1000 };

impl Rig {
    fn new(quotas: Quotas) -> Self {
        let root = TempDir::new().unwrap();
        let disk = Arc::new(FailingDisk::sound());
        let spools = open(&root, &disk, quotas);
        Self { root, disk, spools }
    }

    /// What the next supervisor finds.
    fn reopen(&mut self) {
        self.spools = open(&self.root, &self.disk, self.spools.quotas);
    }

    fn segments(&self, name: &str) -> Vec<PathBuf> {
        let directory = self.root.path().join("spool").join(name);
        let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some())
            .collect();
        found.sort();
        found
    }
}

fn open(root: &TempDir, disk: &Arc<FailingDisk>, quotas: Quotas) -> Spools {
    let disk: Arc<dyn Disk> = Arc::<FailingDisk>::clone(disk);
    Spools::open(&root.path().join("spool"), &disk, quotas, Log::default()).unwrap()
}

fn name(number: u64) -> String {
    spool_name(number, Salt(number ^ 0x5555_aaaa))
}

/// Waits until this much was written, or it failed.
async fn written(writer: &mut SpoolWriter, to: [u64; 2]) -> Result<[u64; 2], SpoolFailure> {
    loop {
        match poll_fn(|context| writer.poll_event(context)).await {
            SpoolEvent::Written { to: now, kept_from } if now == to => return Ok(kept_from),
            SpoolEvent::Written { .. } => {}
            SpoolEvent::Failed(failure) => return Err(failure),
        }
    }
}

/// Everything from these offsets on, a stream each, with the offset of its first byte.
fn read_all(reader: &mut SpoolReader, from: [u64; 2]) -> [BTreeMap<u64, Vec<u8>>; 2] {
    let mut found = [BTreeMap::new(), BTreeMap::new()];
    let mut from = from.map(Some);
    loop {
        let read = reader.read(from, 700).unwrap();
        for piece in read.pieces {
            let index = usize::from(piece.stream == Stderr);
            let stream: &mut BTreeMap<u64, Vec<u8>> = &mut found[index];
            match stream.iter_mut().next_back() {
                Some((at, bytes)) if at + bytes.len() as u64 == piece.offset => {
                    bytes.extend_from_slice(&piece.bytes);
                }
                _ => {
                    stream.insert(piece.offset, piece.bytes.to_vec());
                }
            }
        }
        from = read.next.map(Some);
        if read.is_all {
            return found;
        }
    }
}

fn whole(bytes: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    if bytes.is_empty() { BTreeMap::new() } else { BTreeMap::from([(0, bytes.to_vec())]) }
}

fn low_byte(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

/// Bytes that tell where they are.
fn sample(length: usize) -> Vec<u8> {
    (0..length).map(|at| low_byte((at / 7 + at % 251) as u64)).collect()
}

#[tokio::test]
async fn what_is_written_is_read_again_by_this_process_and_the_next() {
    let mut rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], b"meta".to_vec());
    assert!(writer.is_empty());
    let bytes = sample(200_000);
    let mut reader = writer.reader(&rig.spools);
    for (number, piece) in (0..).zip(bytes.chunks(777)) {
        writer.append(Stdout, number * 777, number, Bytes::copy_from_slice(piece));
        writer.append(Stderr, number * 4, number, Bytes::from_static(b"err\n"));
    }
    let count = bytes.len().div_ceil(777);
    let ends = [200_000, count as u64 * 4];
    assert_eq!(written(&mut writer, ends).await, Ok([0, 0]));
    let expected = [whole(&bytes), whole("err\n".repeat(count).as_bytes())];
    assert_eq!(read_all(&mut reader, [0, 0]), expected);
    assert_eq!(reader.bounds(), ([0, 0], ends));
    writer.finish(b"meta and end".to_vec()).await.unwrap().unwrap();
    rig.reopen();
    let mut reader = rig.spools.reader(&name(1)).unwrap().unwrap();
    assert_eq!(read_all(&mut reader, [0, 0]), expected);
    assert_eq!(reader.bounds(), ([0, 0], ends));
    assert_eq!(rig.spools.meta(&name(1)).unwrap(), b"meta and end");
    assert_eq!(rig.spools.names().unwrap(), [name(1)]);
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_as_more_is_written() {
    let rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [10, 0], Vec::new());
    let mut reader = writer.reader(&rig.spools);
    let first = reader.read([Some(10), Some(0)], 100).unwrap();
    assert!(first.is_all && first.pieces.is_empty());
    let mut next = first.next;
    for number in 0..100_u64 {
        let at = 10 + number * 50;
        writer.append(Stdout, at, number, Bytes::from(vec![low_byte(number); 50]));
        written(&mut writer, [at + 50, 0]).await.unwrap();
        let read = reader.read(next.map(Some), 1000).unwrap();
        let [piece] = read.pieces.as_slice() else { panic!("{read:?}") };
        assert_eq!((piece.offset, piece.clock_us), (at, number));
        assert_eq!(piece.bytes, vec![low_byte(number); 50]);
        next = read.next;
    }
    assert!(rig.segments(&name(1)).len() > 3);
}

#[tokio::test]
async fn one_stream_alone_can_be_read_from_any_offset() {
    let rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    let bytes = sample(5000);
    for (number, piece) in (0..).zip(bytes.chunks(100)) {
        writer.append(Stdout, number * 100, number, Bytes::copy_from_slice(piece));
        writer.append(Stderr, number * 100, number, Bytes::from(vec![b'e'; 100]));
    }
    written(&mut writer, [5000, 5000]).await.unwrap();
    let mut reader = writer.reader(&rig.spools);
    for from in [0, 1, 99, 100, 2345, 4999, 5000, 6000] {
        let read = reader.read([Some(from), None], usize::MAX).unwrap();
        let found: Vec<u8> = read.pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect();
        let from_index = usize::try_from(from).unwrap().min(5000);
        assert_eq!(found, bytes[from_index..], "from {from}");
        assert!(read.pieces.iter().all(|piece| piece.stream == Stdout));
        assert_eq!(read.next[0], from.max(5000));
    }
}

/// J-5.5, J-3.1
#[tokio::test]
async fn what_is_released_goes_in_whole_segments_and_gives_its_room_back() {
    let rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    for number in 0..100 {
        writer.append(Stdout, number * 100, number, Bytes::from(vec![1; 100]));
    }
    written(&mut writer, [10_000, 0]).await.unwrap();
    let before = writer.used();
    let segments = rig.segments(&name(1)).len();
    writer.release([5050, 0]);
    // The next write is behind the release.
    writer.append(Stdout, 10_000, 100, Bytes::from_static(b"x"));
    let kept_from = written(&mut writer, [10_001, 0]).await.unwrap();
    assert!(kept_from[0] <= 5050 && kept_from[0] > 3000, "{kept_from:?}");
    assert!(rig.segments(&name(1)).len() < segments);
    assert!(writer.used() < before * 2 / 3);
    assert_eq!(rig.spools.used(), writer.used());
    writer.release([10_001, 0]);
    writer.append(Stdout, 10_001, 101, Bytes::from_static(b"y"));
    assert_eq!(written(&mut writer, [10_002, 0]).await, Ok([10_001, 0]));
    assert_eq!(rig.segments(&name(1)).len(), 1);
    let mut reader = writer.reader(&rig.spools);
    assert_eq!(read_all(&mut reader, [0, 0])[0], BTreeMap::from([(10_001, b"y".to_vec())]));
}

/// J-3.4: what a job may write is what the quota leaves, to the byte, and the disk never has more.
#[tokio::test]
async fn fault_42_the_quota_of_a_job_is_kept() {
    let quotas = Quotas { job_bytes: 10_000, ..QUOTAS };
    let rig = Rig::new(quotas);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    let mut offset = 0;
    while let Room::For(room) = writer.room() {
        let count = room.min(123);
        writer.append(Stdout, offset, 0, Bytes::from(vec![0; usize::try_from(count).unwrap()]));
        offset += count;
        written(&mut writer, [offset, 0]).await.unwrap();
        let on_disk: u64 =
            rig.segments(&name(1)).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(on_disk <= 10_000, "{on_disk}");
        assert_eq!(on_disk, writer.used());
    }
    assert_eq!(writer.room(), Room::Full);
    assert!(writer.used() > 9_900, "{}", writer.used());
    // The oldest goes, and there is room again (`drop`).
    writer.drop_oldest(1);
    let kept_from = written(&mut writer, [offset, 0]).await.unwrap();
    assert!(kept_from[0] > 0);
    assert!(matches!(writer.room(), Room::For(_)), "{:?}", writer.room());
}

/// J-3.4
#[tokio::test]
async fn fault_42_the_quota_of_a_user_is_of_all_jobs_together() {
    let quotas = Quotas { user_bytes: 10_000, ..QUOTAS };
    let rig = Rig::new(quotas);
    let mut one = rig.spools.create(&name(1), [0, 0], Vec::new());
    let mut two = rig.spools.create(&name(2), [0, 0], Vec::new());
    for number in 0..9 {
        one.append(Stdout, number * 1000, 0, Bytes::from(vec![0; 1000]));
    }
    written(&mut one, [9000, 0]).await.unwrap();
    let Room::For(room) = two.room() else { panic!("{:?}", two.room()) };
    assert!(room < 700, "{room}");
    two.append(Stdout, 0, 0, Bytes::from(vec![0; usize::try_from(room).unwrap()]));
    written(&mut two, [room, 0]).await.unwrap();
    assert_eq!((one.room(), two.room()), (Room::Full, Room::Full));
    drop(one.finish(Vec::new()).await);
    rig.spools.remove(&name(1)).unwrap();
    assert!(matches!(two.room(), Room::For(_)));
    assert_eq!(rig.spools.used(), two.used());
}

/// J-5.7
#[tokio::test]
async fn a_job_has_only_so_much_on_its_way() {
    let rig = Rig::new(Quotas { job_bytes: 1 << 40, user_bytes: 1 << 40, ..QUOTAS });
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    // The thread waits for this lock before it writes.
    let stopped = rig.disk.stop();
    let mut offset = 0;
    while let Room::For(_) = writer.room() {
        writer.append(Stdout, offset, 0, Bytes::from(vec![0; 10_000]));
        offset += 10_000;
        assert!(offset <= SPOOL_QUEUED_BYTES_MAX + 10_000);
    }
    assert_eq!(writer.room(), Room::Later);
    assert!(offset > SPOOL_QUEUED_BYTES_MAX - 10_000);
    drop(stopped);
    written(&mut writer, [offset, 0]).await.unwrap();
    assert!(matches!(writer.room(), Room::For(_)));
}

/// J-3.4: nothing that was told as written is lost, and what was not is still the job's.
#[tokio::test]
async fn fault_58_a_full_disk_ends_the_spool_once_and_loses_nothing_that_was_written() {
    for room in [0, 8, 100, 2500] {
        let mut rig = Rig::new(QUOTAS);
        let mut writer = rig.spools.create(&name(1), [0, 0], b"meta".to_vec());
        let bytes = sample(2000);
        writer.append(Stdout, 0, 0, Bytes::from(bytes.clone()));
        written(&mut writer, [2000, 0]).await.unwrap();
        rig.disk.full_after(room, Errno::NOSPC);
        let more = sample(500);
        for number in 0..20 {
            writer.append(Stdout, 2000 + number * 500, 0, Bytes::from(more.clone()));
        }
        let failure = written(&mut writer, [12_000, 0]).await.unwrap_err();
        assert!(failure.to_string().contains("No space left"), "{failure}");
        assert_eq!(writer.room(), Room::Failed);
        // There is room again, and nothing is tried again.
        rig.disk.mend();
        writer.append(Stdout, 12_000, 0, Bytes::from_static(b"late"));
        let written = writer.reader(&rig.spools).bounds().1;
        let finished = writer.finish(b"meta".to_vec()).await.unwrap();
        assert_eq!(finished, Err(failure));
        let length = usize::try_from(written[0]).unwrap();
        assert!(length < 2000 + room + 1, "{length}");
        let expected: Vec<u8> =
            bytes.iter().chain(more.iter().cycle()).copied().take(length).collect();
        rig.reopen();
        let mut reader = rig.spools.reader(&name(1)).unwrap().unwrap();
        assert_eq!(read_all(&mut reader, [0, 0])[0], whole(&expected), "room for {room}");
    }
}

/// J-3.4
#[tokio::test]
async fn fault_59_a_spool_that_could_not_be_synchronised_is_bad_from_there_on() {
    let rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    writer.append(Stdout, 0, 0, Bytes::from(sample(2000)));
    written(&mut writer, [2000, 0]).await.unwrap();
    rig.disk.fail_sync(Errno::IO);
    // The segment is full: it is synchronised before the next one is begun.
    writer.append(Stdout, 2000, 0, Bytes::from_static(b"more"));
    let failure = written(&mut writer, [2004, 0]).await.unwrap_err();
    assert_eq!(failure.action, "synchronise");
    let syncs = rig.disk.syncs();
    rig.disk.mend();
    writer.append(Stdout, 2004, 0, Bytes::from_static(b"late"));
    assert_eq!(writer.finish(Vec::new()).await.unwrap(), Err(failure));
    assert_eq!(rig.disk.syncs(), syncs, "nobody tried again");

    let writer = {
        let mut writer = rig.spools.create(&name(2), [0, 0], Vec::new());
        writer.append(Stdout, 0, 0, Bytes::from_static(b"short"));
        written(&mut writer, [5, 0]).await.unwrap();
        writer
    };
    rig.disk.fail_sync(Errno::IO);
    assert!(writer.finish(Vec::new()).await.unwrap().is_err());
}

/// J-3.5: what is damaged is a gap of exactly the pieces that it hits.
#[tokio::test]
async fn fault_60_a_flipped_bit_is_a_named_gap() {
    let mut rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    let bytes = sample(3000);
    for (number, piece) in (0..).zip(bytes.chunks(100)) {
        writer.append(Stdout, number * 100, number, Bytes::copy_from_slice(piece));
    }
    writer.finish(Vec::new()).await.unwrap().unwrap();
    let second = rig.segments(&name(1))[1].clone();
    let good = std::fs::read(&second).unwrap();
    rig.reopen();
    let from =
        u64::from_str_radix(&second.file_name().unwrap().to_str().unwrap()[17..33], 16).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&second, &bad).unwrap();
        let mut reader = rig.spools.reader(&name(1)).unwrap().unwrap();
        let found = &read_all(&mut reader, [0, 0])[0];
        if at < 8 {
            assert_eq!(*found, whole(&bytes), "the format's name is not output");
            continue;
        }
        let hit = from + (at as u64 - 8) / 133 * 100;
        let hit = usize::try_from(hit).unwrap();
        let expected = BTreeMap::from([
            (0, bytes[..hit].to_vec()),
            (hit as u64 + 100, bytes[hit + 100..].to_vec()),
        ]);
        assert_eq!(*found, expected, "byte {at}");
    }
}

#[tokio::test]
async fn fault_60_a_spool_that_was_cut_at_any_byte_has_what_was_whole() {
    let mut rig = Rig::new(Quotas { segment_bytes: 1 << 20, ..QUOTAS });
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    let bytes = sample(500);
    for (number, piece) in (0..).zip(bytes.chunks(100)) {
        writer.append(Stdout, number * 100, number, Bytes::copy_from_slice(piece));
    }
    written(&mut writer, [500, 0]).await.unwrap();
    drop(writer);
    rig.reopen();
    let [only] = rig.segments(&name(1)).try_into().unwrap();
    let good = std::fs::read(&only).unwrap();
    for cut in 0..good.len() {
        std::fs::write(&only, &good[..cut]).unwrap();
        let mut reader = rig.spools.reader(&name(1)).unwrap().unwrap();
        let whole_pieces = cut.saturating_sub(8) / 133;
        assert_eq!(read_all(&mut reader, [0, 0])[0], whole(&bytes[..whole_pieces * 100]), "{cut}");
        assert_eq!(reader.bounds().1, [whole_pieces as u64 * 100, 0]);
        // Whoever goes on with it writes what is not there again, and it is whole.
        if cut % 50 == 0 {
            let from = whole_pieces * 100;
            let mut writer = rig.spools.resume(&name(1), [0, 0], Vec::new()).unwrap();
            writer.append(Stdout, from as u64, 9, Bytes::copy_from_slice(&bytes[from..]));
            written(&mut writer, [500, 0]).await.unwrap();
            let mut reader = writer.reader(&rig.spools);
            assert_eq!(read_all(&mut reader, [0, 0])[0], whole(&bytes), "{cut}");
            drop(writer.finish(Vec::new()).await);
            let added = rig.segments(&name(1)).pop().unwrap();
            std::fs::remove_file(added).unwrap();
        }
    }
}

#[tokio::test]
async fn a_segment_that_is_missing_is_a_gap() {
    let mut rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    let bytes = sample(3000);
    for (number, piece) in (0..).zip(bytes.chunks(100)) {
        writer.append(Stdout, number * 100, number, Bytes::copy_from_slice(piece));
    }
    writer.finish(Vec::new()).await.unwrap().unwrap();
    rig.reopen();
    let mut reader = rig.spools.reader(&name(1)).unwrap().unwrap();
    std::fs::remove_file(&rig.segments(&name(1))[1]).unwrap();
    let found = &read_all(&mut reader, [0, 0])[0];
    let spans: Vec<(u64, usize)> = found.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(spans, [(0, 800), (1600, 1400)]);
}

/// J-5.9
#[tokio::test]
async fn the_last_lines_are_those_of_tail() {
    let rig = Rig::new(QUOTAS);
    let text: String = (0..500).map(|line| format!("line {line}\n")).collect();
    for (number, end) in [(1, ""), (2, "no end")] {
        let text = format!("{text}{end}");
        let mut writer = rig.spools.create(&name(number), [0, 0], Vec::new());
        for (place, piece) in (0..).zip(text.as_bytes().chunks(37)) {
            writer.append(Stdout, place * 37, place, Bytes::copy_from_slice(piece));
        }
        written(&mut writer, [text.len() as u64, 0]).await.unwrap();
        assert!(rig.segments(&name(number)).len() > 3);
        let mut reader = writer.reader(&rig.spools);
        for lines in [0, 1, 2, 10, 100, 499, 500, 501, 502, u64::MAX] {
            let [from, _] = reader.last_lines(lines).unwrap();
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            let count = usize::try_from(lines).unwrap_or(usize::MAX).min(all.len());
            let expected = all[all.len() - count..].concat();
            assert_eq!(text[usize::try_from(from).unwrap()..], expected, "{lines} lines, {end:?}");
        }
    }
}

#[tokio::test]
async fn the_last_lines_are_counted_over_both_streams() {
    let rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    let parts =
        [(Stdout, "a\n"), (Stderr, "b\n"), (Stdout, "c\nd"), (Stderr, "e\n"), (Stdout, "f\n")];
    let mut ends = [0, 0];
    for (clock, (stream, text)) in (0..).zip(parts) {
        let end = &mut ends[usize::from(stream == Stderr)];
        writer.append(stream, *end, clock * 10, Bytes::from_static(text.as_bytes()));
        *end += text.len() as u64;
    }
    written(&mut writer, ends).await.unwrap();
    let mut reader = writer.reader(&rig.spools);
    let tails: Vec<[u64; 2]> = (0..=6).map(|lines| reader.last_lines(lines).unwrap()).collect();
    assert_eq!(tails, [[7, 4], [5, 4], [4, 2], [2, 2], [2, 0], [0, 0], [0, 0]]);
    // J-5.9: since a time.
    let since: Vec<[u64; 2]> =
        [0, 1, 10, 20, 21, 40, 41].map(|clock| reader.since(clock).unwrap()).to_vec();
    assert_eq!(since, [[0, 0], [2, 0], [2, 0], [2, 2], [5, 2], [5, 4], [7, 4]]);
}

#[tokio::test]
async fn since_a_time_finds_the_segment() {
    let rig = Rig::new(QUOTAS);
    let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
    for number in 0..200 {
        writer.append(Stdout, number * 50, number * 1000, Bytes::from(vec![b'x'; 50]));
    }
    written(&mut writer, [10_000, 0]).await.unwrap();
    let mut reader = writer.reader(&rig.spools);
    for clock in [0, 1, 999, 1000, 100_500, 198_999, 199_000, 199_001, u64::MAX] {
        let expected = clock.div_ceil(1000).saturating_mul(50).min(10_000);
        assert_eq!(reader.since(clock).unwrap(), [expected, 0], "{clock}");
    }
}

#[tokio::test]
async fn fault_63_links_in_the_place_of_a_spool_or_a_segment_are_refused() {
    let rig = Rig::new(QUOTAS);
    let elsewhere = rig.root.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, rig.root.path().join("spool").join(name(1))).unwrap();
    let mut writer = rig.spools.create(&name(1), [0, 0], b"meta".to_vec());
    writer.append(Stdout, 0, 0, Bytes::from_static(b"secret"));
    let failure = written(&mut writer, [6, 0]).await.unwrap_err();
    assert!(failure.message.contains("not a regular file of this user's"), "{failure}");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert!(matches!(rig.spools.reader(&name(1)), Err(StoreError::Planted { .. })));
    assert!(matches!(rig.spools.remove(&name(1)), Err(StoreError::Planted { .. })));

    let victim = rig.root.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let directory = rig.root.path().join("spool").join(name(2));
    std::fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
    symlink(&victim, directory.join(META_NAME)).unwrap();
    let mut writer = rig.spools.create(&name(2), [0, 0], b"meta".to_vec());
    writer.append(Stdout, 0, 0, Bytes::from_static(b"secret"));
    written(&mut writer, [6, 0]).await.unwrap_err();
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    // What was planted goes with the job, not what it points to.
    rig.spools.remove(&name(2)).unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_spool_without_output_leaves_nothing() {
    let rig = Rig::new(QUOTAS);
    let writer = rig.spools.create(&name(1), [0, 0], b"meta".to_vec());
    writer.finish(Vec::new()).await.unwrap().unwrap();
    assert!(rig.spools.names().unwrap().is_empty());
    assert!(rig.spools.reader(&name(1)).unwrap().is_none());
    rig.spools.remove(&name(1)).unwrap();
}

/// What a job may do to its spool.
#[derive(Clone, Debug)]
enum Step {
    Append(bool, usize),
    Release(u8),
    Drop(u16),
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), 1..400_usize).prop_map(|(stderr, bytes)| Step::Append(stderr, bytes)),
        1 => any::<u8>().prop_map(Step::Release),
        1 => (1..2000_u16).prop_map(Step::Drop),
        2 => Just(Step::Read),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is appended, released and dropped: what is read is what was written at that offset,
    /// nothing from `kept_from` on is missing, and what is used is what the files have.
    #[test]
    fn a_spool_has_every_byte_that_it_says_it_has(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(QUOTAS);
            let mut writer = rig.spools.create(&name(1), [0, 0], Vec::new());
            let mut reader = writer.reader(&rig.spools);
            let mut ends = [0_u64; 2];
            let byte = |index: usize, at: u64| low_byte(at * 31 + index as u64 * 7);
            for (clock, step) in (0..).zip(steps) {
                let step_is_unheard = matches!(step, Step::Release(_) | Step::Drop(_));
                match step {
                    Step::Append(stderr, count) => {
                        let index = usize::from(stderr);
                        let stream: Stream = [Stdout, Stderr][index];
                        let from = ends[index];
                        ends[index] += count as u64;
                        let bytes: Vec<u8> = (from..ends[index]).map(|at| byte(index, at)).collect();
                        writer.append(stream, from, clock, Bytes::from(bytes));
                    }
                    Step::Release(part) => {
                        writer.release(ends.map(|end| end * u64::from(part) / 255));
                    }
                    Step::Drop(bytes) => writer.drop_oldest(bytes.into()),
                    Step::Read => {}
                }
                if step_is_unheard {
                    // Written behind it, so that it was done when that is told.
                    writer.append(Stdout, ends[0], clock, Bytes::from(vec![byte(0, ends[0])]));
                    ends[0] += 1;
                }
                if writer.reader(&rig.spools).bounds().1 != ends {
                    written(&mut writer, ends).await.unwrap();
                }
                let kept_from = reader.bounds().0;
                let found = read_all(&mut reader, [0, 0]);
                for (index, pieces) in found.iter().enumerate() {
                    for (at, bytes) in pieces {
                        assert!(bytes.iter().zip(*at..).all(|(got, at)| *got == byte(index, at)));
                    }
                    if kept_from[index] < ends[index] {
                        let (at, bytes) = pieces.iter().next_back().unwrap();
                        assert!(*at <= kept_from[index], "{at} {kept_from:?}");
                        assert_eq!(at + bytes.len() as u64, ends[index]);
                    }
                }
            }
            let used = writer.used();
            if !writer.is_empty() {
                writer.finish(Vec::new()).await.unwrap().unwrap();
                assert_eq!(rig.spools.size(&name(1)).unwrap(), rig.spools.used());
                assert!(rig.spools.used() <= used);
            }
        });
    }
}
