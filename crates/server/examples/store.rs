//! What the store costs: `cargo run --release -p afar-server --example store` prints the figures of
//! `docs/performance.md`, on the disk of the temporary directory.

#![expect(clippy::print_stdout, reason = "it is a program that prints figures")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use afar_core::job::JobKey;
use afar_proto::connection::Stream;
use afar_proto::gaps::Gaps;
use afar_proto::message::{JobId, JobInfo, JobState, StreamInfo};
use afar_proto::outcome::{End, Receipt, Seal, StreamSeal};
use afar_server::log::Log;
use afar_server::store::{
    Archive, ArchiveConfig, Beginning, NewJob, Quotas, RealDisk, Room, SpoolEvent,
};
use bytes::Bytes;

const JOBS: u64 = 100_000;
const LOOKUPS: u64 = 10_000;
const SPOOLED_BYTES: u64 = 1 << 30;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("jobs");
    let disk = Arc::new(RealDisk);
    let (quotas, log) = (Quotas::default(), Log::default());
    let config = ArchiveConfig { disk, quotas, may_hang: false, log };
    let open = |incarnation: &str| {
        let beginning = Beginning {
            incarnation: Some(incarnation.to_owned()),
            boot: "here".to_owned(),
            since_boot: afar_sys::boot::since_boot(),
            unix_us: 1,
        };
        Archive::open(&path, &config, &beginning).map(|opened| opened.archive)
    };
    let started = Instant::now();
    let mut archive = open("one")?;
    said("opening an archive that is not there yet", started, 1);

    let before = resident_bytes()?;
    let mut in_journal = Duration::ZERO;
    let all = Instant::now();
    for number in 0..JOBS {
        let began = Instant::now();
        run_one(&mut archive, number)?;
        in_journal += began.elapsed();
        if number % 1000 == 999 {
            while archive.entry(&key(number)?).is_some() {
                archive.tick(number, Duration::ZERO);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    let each = in_journal.as_secs_f64() * 1e6 / f64::from(u32::try_from(JOBS)?);
    println!("a job's three records in the journal: {each:.1} µs");
    said("a job with its place in the index", all, JOBS);
    println!("memory for it: {} KiB", (resident_bytes()?.saturating_sub(before)) / 1024);

    drop(archive);
    let started = Instant::now();
    let mut archive = open("two")?;
    said("opening it again", started, 1);
    let before = resident_bytes()?;
    let started = Instant::now();
    archive.lookup(&key(JOBS)?)?;
    said("the first look-up", started, 1);
    for (what, from) in [("an id that is new", JOBS), ("an id that is there", 0)] {
        let started = Instant::now();
        for number in 0..LOOKUPS {
            let found = archive.lookup(&key(from + number * 7919 % JOBS)?);
            assert_eq!(found?.is_some(), from == 0);
        }
        said(&format!("looking up {what}"), started, LOOKUPS);
    }
    println!("memory for looking up: {} KiB", (resident_bytes()?.saturating_sub(before)) / 1024);
    archive.page(Some(""), "", u64::MAX, 1).await;
    for limit in [20, 100, 1000] {
        let started = Instant::now();
        assert_eq!(
            archive.page(Some(""), "", u64::MAX, limit).await.len(),
            usize::try_from(limit)?
        );
        said(&format!("a page of {limit} of {JOBS} jobs"), started, 1);
    }
    let started = Instant::now();
    assert_eq!(archive.with_prefix(Some(""), "job-000000000000004711").await.len(), 1);
    said("finding a prefix", started, 1);
    println!("the index takes {} bytes a job", path.join("index.db").metadata()?.len() / JOBS);
    spool(&mut archive).await
}

/// A gibibyte to the disk and back, in pieces as they come out of a busy pipe.
async fn spool(archive: &mut Archive) -> Result<()> {
    let key = key(JOBS)?;
    begin(archive, &key)?;
    let mut writer = archive.spool(archive.entry(&key).ok_or("it was begun")?, [0, 0]);
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut offset = 0;
    let started = Instant::now();
    let written = loop {
        match writer.room() {
            Room::For(room) if room >= piece.len() as u64 && offset < SPOOLED_BYTES => {
                writer.append(Stream::Stdout, offset, 0, piece.clone());
                offset += piece.len() as u64;
            }
            _ => match std::future::poll_fn(|context| writer.poll_event(context)).await {
                SpoolEvent::Written { to, .. }
                    if to[0] == offset && writer.room() != Room::Later =>
                {
                    break to[0];
                }
                SpoolEvent::Written { .. } => {}
                SpoolEvent::Failed(failure) => return Err(failure.into()),
            },
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let mebibytes = f64::from(u32::try_from(written >> 20)?);
    println!(
        "spooling {mebibytes:.0} MiB, synchronised: {:.0} MB/s",
        mebibytes * 1.048_576 / seconds
    );
    let mut reader = archive.reader_of(&writer);
    let started = Instant::now();
    let mut from = [Some(0), None];
    loop {
        let read = reader.read(from, 256 * 1024)?;
        from = [Some(read.next[0]), None];
        if read.is_all {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("reading it back: {:.0} MB/s", mebibytes * 1.048_576 / seconds);
    let started = Instant::now();
    reader.read([Some(written / 2 + 12345), None], 1)?;
    said("finding an offset in the middle", started, 1);
    Ok(())
}

fn run_one(archive: &mut Archive, number: u64) -> Result<()> {
    let key = key(number)?;
    let mut info = begin(archive, &key)?;
    archive.started(&key, 1, 1, number);
    let end = End::Exited { code: 0 };
    let names = ["stdout", "stderr"];
    let stream =
        |bytes| StreamSeal { bytes, blake3: vec![7; 32], complete: true, gaps: Gaps::default() };
    let seal = Seal {
        end: end.clone(),
        receipt: Receipt::default(),
        streams: names.map(|name| (name.to_owned(), stream(10))).into(),
        streams_left_open: false,
        session_restarted: false,
        detail: None,
    };
    info.state = JobState::Ended;
    info.end = Some(end);
    info.ended_at_us = Some(number + 2);
    let stream = StreamInfo { bytes: 10, kept_from: 10, gaps: Gaps::default() };
    info.streams = names.map(|name| (name.to_owned(), stream.clone())).into();
    archive.ended(&seal, &info, &key, None);
    Ok(())
}

fn begin(archive: &mut Archive, key: &JobKey) -> Result<JobInfo> {
    let info = JobInfo::new(key.job.clone(), JobState::Waiting, b"make -j8 check");
    let mark = "0123456789abcdef0123456789abcdef";
    let (digest, keep_s, at_us) = ([7; 32], None, 1);
    archive.begin(&NewJob { key, digest, mark, info: &info, keep_s, at_us })?;
    Ok(info)
}

fn key(number: u64) -> Result<JobKey> {
    Ok(JobKey { scope: String::new(), job: JobId::new(&format!("job-{number:018}"))? })
}

fn said(what: &str, since: Instant, count: u64) {
    let micros = since.elapsed().as_secs_f64() * 1e6;
    let each = micros / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    println!("{what}: {each:.1} µs");
}

/// What of this process is in memory (proc(5), `VmRSS`).
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
