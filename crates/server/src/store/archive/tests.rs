//! Archives that are used by one supervisor after the other, killed in between, full and damaged.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt as _;

use afar_core::job::{Decision, Retry};
use afar_proto::Instant;
use afar_proto::connection::Stream;
use afar_proto::gaps::Gaps;
use afar_proto::message::{JobId, JobState};
use afar_proto::outcome::{Phase, Receipt, RefusalReason, Started as WasStarted, StreamSeal};
use bytes::Bytes;
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::limits::{INDEX_JOBS_MAX, TOMBSTONE_LIFETIME};
use super::super::rig::FailingDisk;
use super::super::spool::{Room, SpoolEvent};
use super::super::thread::DENIED;
use super::*;

const BOOT: &str = "0d9c5b1e-0000-4000-8000-000000000001";

struct Rig {
    root: TempDir,
    disk: Arc<FailingDisk>,
    quotas: Quotas,
    may_hang: bool,
}

impl Rig {
    fn new() -> Self {
        let quotas = Quotas { segment_bytes: 1000, job_bytes: 50_000, user_bytes: 100_000 };
        let (root, disk) = (TempDir::new().unwrap(), Arc::new(FailingDisk::sound()));
        Self { root, disk, quotas, may_hang: false }
    }

    fn path(&self) -> std::path::PathBuf {
        self.root.path().join("jobs")
    }

    /// The supervisor that begins so many seconds after the boot, which was at the epoch.
    fn open(&self, seconds: u64) -> OpenedArchive {
        self.open_as(Some(format!("i{seconds}")), seconds)
    }

    fn open_as(&self, incarnation: Option<String>, seconds: u64) -> OpenedArchive {
        let disk: Arc<dyn Disk> = Arc::<FailingDisk>::clone(&self.disk);
        let config = ArchiveConfig {
            disk,
            quotas: self.quotas,
            may_hang: self.may_hang,
            log: Log::default(),
        };
        let since_boot = Duration::from_secs(seconds);
        let beginning =
            Beginning { incarnation, boot: BOOT.to_owned(), since_boot, unix_us: us(seconds) };
        Archive::open(&self.path(), &config, &beginning).unwrap()
    }

    /// As [`Self::open`], with nothing left of any job.
    fn open_cleared(&self, seconds: u64) -> OpenedArchive {
        let mut opened = self.open(seconds);
        for entry in &opened.unended {
            opened.archive.tree_ended(TreeEnded {
                job: entry.intended.job.clone(),
                at_us: us(seconds),
                ended: 0,
                left: 0,
            });
        }
        opened
    }
}

fn us(seconds: u64) -> u64 {
    seconds * 1_000_000
}

fn key(id: &str) -> JobKey {
    JobKey { scope: String::new(), job: JobId::new(id).unwrap() }
}

fn info(id: &str) -> JobInfo {
    JobInfo::new(JobId::new(id).unwrap(), JobState::Running, b"make")
}

fn begin(archive: &mut Archive, id: &str, seconds: u64) -> u64 {
    let (key, info) = (key(id), info(id));
    let digest = [7; 32];
    let at_us = us(seconds);
    let job = NewJob { key: &key, digest, mark: "m", info: &info, keep_s: None, at_us };
    archive.begin(&job).unwrap().number
}

fn start(archive: &mut Archive, id: &str, seconds: u64) {
    begin(archive, id, seconds);
    archive.started(&key(id), 77, 5, us(seconds) + 1);
}

fn seal(bytes: u64) -> Seal {
    let gaps = Gaps::default();
    let stream = StreamSeal { bytes, blake3: vec![1; 32], complete: true, gaps };
    Seal {
        end: End::Exited { code: 3 },
        receipt: Receipt::default(),
        streams: BTreeMap::from([("stdout".to_owned(), stream)]),
        streams_left_open: false,
        session_restarted: false,
        detail: None,
    }
}

/// It has ended with so many bytes of output, all of which are kept until then, if at all.
fn end(archive: &mut Archive, id: &str, seconds: u64, bytes: u64, kept_until_us: Option<u64>) {
    let seal = seal(bytes);
    let mut info = info(id);
    info.state = JobState::Ended;
    info.end = Some(seal.end.clone());
    info.ended_at_us = Some(us(seconds));
    let stream = StreamInfo { bytes, kept_from: 0, gaps: Gaps::default() };
    info.streams = BTreeMap::from([("stdout".to_owned(), stream)]);
    archive.ended(&seal, &info, &key(id), kept_until_us);
}

/// J-5.10, INDEX_BATCH_JOBS_MAX: so many in one step, and the next ones in the next.
#[tokio::test]
async fn ended_jobs_go_into_the_index_in_bounded_steps_which_are_tried_again_later() {
    let rig = Rig::new();
    let mut archive = rig.open(100).archive;
    for number in 0..=INDEX_BATCH_JOBS_MAX {
        let id = format!("j{number}");
        begin(&mut archive, &id, 101);
        end(&mut archive, &id, 102, 0, None);
    }
    // Something that is no index in its place.
    std::fs::create_dir(rig.path().join("index.db")).unwrap();
    let sent = |archive: &mut Archive, tenth: u64| {
        let since_boot = Duration::from_millis(200_000 + 100 * tenth);
        archive.tick(us(200), since_boot);
        archive.batch.as_ref().map(|batch| batch.changes.len())
    };
    assert_eq!(sent(&mut archive, 0), Some(INDEX_BATCH_JOBS_MAX));
    let mut tries = Vec::new();
    for tenth in 1_u64..100 {
        archive.keeper.ask(|_| ()).await.unwrap();
        if sent(&mut archive, tenth).is_some() {
            tries.push(tenth);
        }
    }
    assert_eq!(tries, [4, 10, 21, 42, 83]);
    std::fs::remove_dir(rig.path().join("index.db")).unwrap();
    settle(&mut archive, 1000).await;
    assert_eq!(archive.entry(&key("j7")), None);
    assert_eq!(sent(&mut archive, 9000), None);
    assert!(archive.lookup(&key("j1024")).unwrap().is_some());
}

/// Lets time pass until nothing is left to be done.
async fn settle(archive: &mut Archive, seconds: u64) {
    loop {
        let due = archive.tick(us(seconds), Duration::from_secs(seconds));
        // What the thread was told before this was asked is done when it answers.
        let work = Arc::clone(&archive.work);
        let mut done = archive.keeper.ask(|_| ());
        loop {
            tokio::select! {
                _ = &mut done => break,
                // It may wait for an answer itself.
                () = work.notified() => {}
            }
            archive.tick(us(seconds), Duration::from_secs(seconds));
        }
        if due == RETENTION_INTERVAL {
            return;
        }
    }
}

async fn ids(archive: &mut Archive) -> Vec<String> {
    let page = archive.page(Some(""), "", u64::MAX, 100).await;
    page.iter().map(|job| job.key.job.to_string()).collect()
}

/// Writes so many bytes to the spool of a job and ends it.
async fn spool(archive: &Archive, id: &str, count: usize) {
    let mut writer = archive.spool(archive.entry(&key(id)).unwrap(), [0, 0]);
    for (number, piece) in (0..).zip(vec![b'x'; count].chunks(500)) {
        let Room::For(_) = writer.room() else { panic!("{:?}", writer.room()) };
        writer.append(Stream::Stdout, number * 500, number, Bytes::copy_from_slice(piece));
    }
    archive.finish_spool(archive.entry(&key(id)).unwrap(), writer).await.unwrap().unwrap();
}

fn kept_bytes(archive: &Archive, job: &EndedJob) -> usize {
    let Some(name) = &job.spool else { return 0 };
    let mut reader = archive.spools().reader(name).unwrap().unwrap();
    let read = reader.read([Some(0), Some(0)], usize::MAX).unwrap();
    read.pieces.iter().map(|piece| piece.bytes.len()).sum()
}

/// J-1.3, J-1.4: before it is in the index, when it is, and in the next supervisor.
#[tokio::test]
async fn a_job_that_has_ended_is_told_of_at_every_moment() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, lost, .. } = rig.open(100);
    assert!(lost.is_empty());
    start(&mut archive, "a", 101);
    assert_eq!(archive.lookup(&key("a")).unwrap(), None, "it has not ended");
    assert_eq!(archive.unfinished().count(), 1);
    end(&mut archive, "a", 102, 10, None);
    let mut told = Vec::new();
    told.push(archive.lookup(&key("a")).unwrap().unwrap());
    assert_eq!(ids(&mut archive).await, ["a"]);
    settle(&mut archive, 103).await;
    assert!(archive.pending.is_empty() && archive.entry(&key("a")).is_none());
    told.push(archive.lookup(&key("a")).unwrap().unwrap());
    assert_eq!(ids(&mut archive).await, ["a"]);
    drop(archive);
    let OpenedArchive { mut archive, lost, .. } = rig.open(200);
    assert!(lost.is_empty());
    told.push(archive.lookup(&key("a")).unwrap().unwrap());
    assert_eq!(archive.with_prefix(Some(""), "a").await.len(), 1);
    for job in &told {
        assert_eq!(job, &told[0]);
        assert_eq!((job.told.started, job.told.seal.as_ref()), (WasStarted::Yes, Some(&seal(10))));
        assert_eq!(job.digest, [7; 32]);
    }
    assert_eq!(archive.lookup(&key("b")).unwrap(), None);
}

/// J-1.4: whatever the moment at which the supervisor was killed.
#[tokio::test]
async fn fault_56_what_a_killed_supervisor_left_is_told_as_it_is_known() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    begin(&mut archive, "intended", 101);
    start(&mut archive, "started", 101);
    start(&mut archive, "ended", 101);
    end(&mut archive, "ended", 102, 0, None);
    begin(&mut archive, "refused", 101);
    let refused = Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::NotFound,
        message: "no".to_owned(),
        started: WasStarted::No,
    };
    archive.not_started(&key("refused"), &refused, us(102));
    // Nothing is closed and nobody is told: as after SIGKILL.
    drop(archive);
    let OpenedArchive { mut archive, lost, .. } = rig.open(200);
    let lost: Vec<_> = lost.iter().map(|entry| entry.intended.job.job.to_string()).collect();
    assert_eq!(lost, ["intended", "started"]);
    for round in 0..3 {
        let mut said = |id| {
            let job = archive.lookup(&key(id)).unwrap().unwrap();
            (job.told.started, job.told.info.end.unwrap())
        };
        assert_eq!(said("intended"), (WasStarted::Unknown, End::Lost), "{round}");
        assert_eq!(said("started"), (WasStarted::Yes, End::Lost));
        assert_eq!(said("ended"), (WasStarted::Yes, End::Exited { code: 3 }));
        let reason = "not_found".to_owned();
        assert_eq!(said("refused"), (WasStarted::No, End::NotStarted { reason }));
        assert_eq!(
            archive.lookup(&key("refused")).unwrap().unwrap().told.refused,
            Some(refused.clone())
        );
        settle(&mut archive, 201).await;
        if round == 1 {
            drop(archive);
            archive = rig.open(300).archive;
        }
    }
}

#[tokio::test]
async fn after_an_upgrade_nothing_is_lost() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    start(&mut archive, "a", 101);
    let mut writer = archive.spool(archive.entry(&key("a")).unwrap(), [5, 0]);
    writer.append(Stream::Stdout, 5, 0, Bytes::from_static(b"before "));
    while poll_fn(|context| writer.poll_event(context)).await
        != (SpoolEvent::Written { to: [12, 0], kept_from: [5, 0] })
    {}
    drop(writer);
    drop(archive);
    let OpenedArchive { mut archive, lost, .. } = rig.open_as(None, 200);
    assert!(lost.is_empty());
    assert_eq!((archive.incarnation(), archive.unfinished().count()), ("i100", 1));
    let mut writer = archive.resume_spool(archive.entry(&key("a")).unwrap(), [5, 0]).unwrap();
    writer.append(Stream::Stdout, 12, 1, Bytes::from_static(b"after"));
    archive.finish_spool(archive.entry(&key("a")).unwrap(), writer).await.unwrap().unwrap();
    end(&mut archive, "a", 201, 17, Some(us(1000)));
    let job = archive.lookup(&key("a")).unwrap().unwrap();
    let mut reader = archive.spools().reader(job.spool.as_deref().unwrap()).unwrap().unwrap();
    let read = reader.read([Some(0), None], 100).unwrap();
    let bytes: Vec<u8> = read.pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect();
    assert_eq!((read.pieces[0].offset, bytes.as_slice()), (5, b"before after".as_slice()));
}

#[tokio::test]
async fn a_lost_job_keeps_what_it_had_said() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    start(&mut archive, "a", 101);
    spool(&archive, "a", 2000).await;
    drop(archive);
    let OpenedArchive { mut archive, .. } = rig.open(200);
    for _ in 0..2 {
        let job = archive.lookup(&key("a")).unwrap().unwrap();
        assert_eq!(kept_bytes(&archive, &job), 2000);
        let lifetime = u64::try_from(LOST_LIFETIME.as_micros()).unwrap();
        assert_eq!(job.told.info.keep_until_us, Some(us(200) + lifetime));
        let stdout = &job.told.info.streams["stdout"];
        assert_eq!((stdout.bytes, stdout.kept_from), (2000, 0));
        settle(&mut archive, 201).await;
    }
}

/// J-3.6
#[tokio::test]
async fn output_that_was_confirmed_is_removed_whether_it_is_in_the_index_yet_or_not() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    for (id, settled) in [("a", false), ("b", true)] {
        start(&mut archive, id, 101);
        spool(&archive, id, 2000).await;
        end(&mut archive, id, 102, 2000, Some(us(9000)));
        if settled {
            settle(&mut archive, 103).await;
        }
        let job = archive.lookup(&key(id)).unwrap().unwrap();
        assert_eq!(
            (kept_bytes(&archive, &job), job.told.info.keep_until_us),
            (2000, Some(us(9000)))
        );
        archive.released(&key(id));
        settle(&mut archive, 104).await;
        let job = archive.lookup(&key(id)).unwrap().unwrap();
        assert_eq!((job.spool, job.told.info.keep_until_us), (None, None), "{id}");
        assert_eq!(job.told.info.streams["stdout"].kept_from, 2000);
        assert_eq!(job.told.seal, Some(seal(2000)), "its outcome stays");
    }
    assert!(archive.spools.names().unwrap().is_empty());
    assert_eq!(archive.spools.used(), 0);
}

#[tokio::test]
async fn a_rest_that_is_spooled_after_the_end_is_found() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    for (id, settled) in [("a", false), ("b", true)] {
        start(&mut archive, id, 101);
        let writer = archive.spool(archive.entry(&key(id)).unwrap(), [0, 0]);
        let entry = archive.entry(&key(id)).unwrap().clone();
        end(&mut archive, id, 102, 4, None);
        if settled {
            settle(&mut archive, 103).await;
        }
        let mut writer = writer;
        writer.append(Stream::Stdout, 0, 0, Bytes::from_static(b"rest"));
        // Which the journal need not have any more.
        archive.finish_spool(&entry, writer).await.unwrap().unwrap();
        archive.kept(&key(id), &entry.intended.spool, us(9000));
        settle(&mut archive, 104).await;
        let job = archive.lookup(&key(id)).unwrap().unwrap();
        assert_eq!((kept_bytes(&archive, &job), job.keep_until_us), (4, us(9000)), "{id}");
    }
}

#[tokio::test]
async fn a_removed_job_is_seen_no_more_and_its_id_stays_taken() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    for (id, settled) in [("a", false), ("b", true)] {
        start(&mut archive, id, 101);
        spool(&archive, id, 100).await;
        end(&mut archive, id, 102, 100, Some(us(9000)));
        if settled {
            settle(&mut archive, 103).await;
        }
        archive.remove(&key(id));
        assert!(archive.lookup(&key(id)).unwrap().unwrap().removed, "{id}: from this moment on");
        for _ in 0..2 {
            assert_eq!(ids(&mut archive).await, [""; 0], "{id}");
            assert!(archive.with_prefix(Some(""), id).await.is_empty());
            settle(&mut archive, 104).await;
        }
        assert!(archive.lookup(&key(id)).unwrap().unwrap().removed);
    }
    assert!(archive.spools.names().unwrap().is_empty());
}

/// J-5.11
#[tokio::test]
async fn what_has_been_kept_long_enough_goes_and_later_the_id() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    start(&mut archive, "a", 101);
    spool(&archive, "a", 2000).await;
    end(&mut archive, "a", 102, 2000, Some(us(5000)));
    settle(&mut archive, 4900).await;
    assert!(archive.lookup(&key("a")).unwrap().unwrap().spool.is_some());
    settle(&mut archive, 5500).await;
    assert!(archive.lookup(&key("a")).unwrap().unwrap().spool.is_none());
    assert!(archive.spools.names().unwrap().is_empty());
    let over = 102 + TOMBSTONE_LIFETIME.as_secs();
    settle(&mut archive, over - 1).await;
    assert!(archive.lookup(&key("a")).unwrap().is_some());
    settle(&mut archive, over + RETENTION_INTERVAL.as_secs()).await;
    assert!(archive.lookup(&key("a")).unwrap().is_none());
}

/// J-5.11
#[tokio::test]
async fn fault_42_over_the_quota_the_output_goes_that_ended_first() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    for (number, id) in (0..).zip(["a", "b", "c"]) {
        start(&mut archive, id, 101 + number);
        spool(&archive, id, 27_000).await;
        end(&mut archive, id, 110 + number, 27_000, Some(us(9000)));
    }
    assert!(archive.spools.used() > 80_000, "{}", archive.spools.used());
    settle(&mut archive, 200).await;
    let kept = ["a", "b", "c"].map(|id| archive.lookup(&key(id)).unwrap().unwrap().spool.is_some());
    assert_eq!(kept, [false, true, true]);
    let used = archive.spools.used();
    assert!(used < 80_000);
    drop(archive);
    // The next supervisor counts what is there.
    let OpenedArchive { mut archive, .. } = rig.open(300);
    settle(&mut archive, 301).await;
    assert_eq!(archive.spools.used(), used);
}

#[tokio::test]
async fn a_page_is_of_memory_and_index_together_and_each_job_is_on_it_once() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    for number in 0..30_u64 {
        let id = format!("j{number}");
        start(&mut archive, &id, 101 + number);
        end(&mut archive, &id, 140, 0, None);
        if number == 19 {
            settle(&mut archive, 150).await;
        }
        if number == 25 {
            // On their way to the index, and maybe there.
            archive.tick(us(151), Duration::from_secs(151));
        }
    }
    let mut seen = Vec::new();
    let mut before = u64::MAX;
    loop {
        let page = archive.page(None, "", before, 7).await;
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        before = last.number;
        seen.extend(page.iter().map(|job| job.key.job.to_string()));
    }
    let expected: Vec<String> = (0..30).rev().map(|number| format!("j{number}")).collect();
    assert_eq!(seen, expected);
    assert_eq!(archive.page(Some("SHA256:x"), "", u64::MAX, 7).await, []);
    // Enough to know that it is not one.
    assert_eq!(archive.with_prefix(Some(""), "j2").await.len(), 2);
    assert_eq!(archive.with_prefix(Some(""), "j29").await.len(), 1);
    assert_eq!(archive.with_prefix(Some("SHA256:x"), "j29").await, []);
    // Of all scopes, and the one that is no longer first, wherever it is.
    for exact in ["j1", "j2"] {
        let found = archive.with_prefix(None, exact).await;
        assert_eq!((found.len(), found[0].key.job.as_str()), (2, exact));
    }
}

/// J-1.6, J-5.10: what has an output is found again by it; for the other ids nobody vouches.
#[tokio::test]
async fn fault_60_a_damaged_index_is_made_anew_from_what_is_left() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    for id in ["with", "without"] {
        start(&mut archive, id, 101);
    }
    end(&mut archive, "without", 102, 0, None);
    end(&mut archive, "with", 102, 2000, Some(us(9000)));
    spool(&archive, "with", 2000).await;
    settle(&mut archive, 103).await;
    drop(archive);
    std::fs::write(rig.path().join("index.db"), [0xaa; 10_000]).unwrap();
    let OpenedArchive { mut archive, .. } = rig.open(200);
    assert!(archive.lookup(&key("with")).is_err(), "nobody can tell");
    settle(&mut archive, 201).await;
    settle(&mut archive, 202).await;
    let job = archive.lookup(&key("with")).unwrap().unwrap();
    assert_eq!((kept_bytes(&archive, &job), job.told.seal.is_some()), (2000, true));
    assert_eq!(archive.lookup(&key("without")).unwrap(), None);
    assert!(!vouches(&archive, 90, 203));
    assert!(vouches(&archive, 10, 220));
    // And that stays so.
    drop(archive);
    let OpenedArchive { mut archive, .. } = rig.open(300);
    assert!(!vouches(&archive, 190, 300));
    assert!(archive.lookup(&key("with")).unwrap().is_some());
}

/// J-1.6: whoever is killed while an index is made anew leaves no journal that vouches for what was in it.
#[tokio::test]
async fn fault_60_an_index_is_put_aside_when_the_journal_vouches_for_it_no_more() {
    let rig = Rig::new();
    settled_with_one_job(&rig).await;
    std::fs::write(rig.path().join("index.db"), [0xaa; 10_000]).unwrap();
    let OpenedArchive { mut archive, .. } = rig.open(200);
    archive.lookup(&key("a")).unwrap_err();
    // The other thread has seen it, and waits.
    archive.work.notified().await;
    assert!(!rig.path().join("index.damaged").exists());
    drop(archive);
    let OpenedArchive { mut archive, .. } = rig.open(300);
    archive.lookup(&key("a")).unwrap_err();
    archive.work.notified().await;
    archive.tick(us(301), Duration::from_secs(301));
    assert!(!vouches(&archive, 90, 301));
    archive.keeper.ask(|_| ()).await.unwrap();
    assert!(rig.path().join("index.damaged").exists());
    assert_eq!(archive.lookup(&key("a")).unwrap(), None);
    assert!(!vouches(&archive, 90, 301));
}

/// J-1.6, J-5.4
#[tokio::test]
async fn fault_60_for_what_was_in_an_index_that_is_gone_nobody_vouches() {
    let rig = Rig::new();
    assert!(vouches(&rig.open(90).archive, 0, 100));
    assert!(vouches(&rig.open(95).archive, 1, 100), "there was none");
    settled_with_one_job(&rig).await;
    assert!(vouches(&rig.open(200).archive, 95, 200));
    std::fs::remove_file(rig.path().join("index.db")).unwrap();
    assert!(!vouches(&rig.open(300).archive, 195, 300));
    // And that stays so when there is one again.
    settle(&mut rig.open(400).archive, 401).await;
    let OpenedArchive { archive, .. } = rig.open(500);
    assert!(!vouches(&archive, 295, 500));
    assert!(vouches(&archive, 90, 500));
}

/// J-1.3: an index that can't be read may have every id.
#[tokio::test]
async fn an_index_that_cannot_be_read_says_of_no_id_that_it_is_free() {
    let rig = Rig::new();
    settled_with_one_job(&rig).await;
    let index = rusqlite::Connection::open(rig.path().join("index.db")).unwrap();
    index.pragma_update(None, "user_version", 2).unwrap();
    let OpenedArchive { mut archive, .. } = rig.open(200);
    for id in ["a", "new"] {
        let error = archive.lookup(&key(id)).unwrap_err();
        assert!(matches!(error, IndexError::Version(2)), "{error}");
    }
    index.pragma_update(None, "user_version", 1).unwrap();
    assert!(archive.lookup(&key("a")).unwrap().is_some());
    assert_eq!(archive.lookup(&key("new")).unwrap(), None);
}

/// J-1.6, J-5.10
#[tokio::test]
async fn that_an_id_is_new_is_known_without_the_index_and_no_other_is_taken_for_one() {
    let rig = Rig::new();
    let mut archive = rig.open(100).archive;
    for id in ["before", "removed"] {
        start(&mut archive, id, 101);
        end(&mut archive, id, 102, 0, None);
    }
    archive.remove(&key("removed"));
    settle(&mut archive, 103).await;
    drop(archive);

    let mut archive = rig.open(200).archive;
    // The first question has them all looked up.
    assert_eq!(archive.lookup(&key("new")).unwrap(), None);
    archive.keeper.ask(|_| ()).await.unwrap();
    assert_eq!(archive.lookup(&key("new")).unwrap(), None);
    start(&mut archive, "since", 201);
    end(&mut archive, "since", 202, 0, None);
    settle(&mut archive, 203).await;
    let known = ["before", "removed", "since"];
    for id in known {
        assert!(archive.lookup(&key(id)).unwrap().is_some(), "{id}");
    }
    // From here on the index says nothing to anybody.
    archive.reader = None;
    std::fs::remove_file(rig.path().join("index.db")).unwrap();
    std::fs::create_dir(rig.path().join("index.db")).unwrap();
    assert_eq!(archive.lookup(&key("new")).unwrap(), None);
    for id in known {
        assert!(archive.lookup(&key(id)).is_err(), "{id}");
    }
}

#[tokio::test]
async fn for_ids_that_are_too_many_nobody_vouches() {
    let rig = Rig::new();
    settled_with_one_job(&rig).await;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        INSERT INTO jobs SELECT i, '', 'j' || i, x'00', 1, 0, NULL, 0, '', 0 FROM n";
    let index = rusqlite::Connection::open(rig.path().join("index.db")).unwrap();
    index.execute(fill, [i64::try_from(INDEX_JOBS_MAX - 1).unwrap()]).unwrap();
    let OpenedArchive { mut archive, .. } = rig.open(200);
    settle(&mut archive, 201).await;
    assert!(vouches(&archive, 90, 201), "as many as there may be");
    begin(&mut archive, "b", 202);
    let refused = RefusalReason::NotFound;
    let message = String::new();
    let refused =
        Refused { phase: Phase::Spawn, reason: refused, message, started: WasStarted::No };
    archive.not_started(&key("b"), &refused, us(202));
    settle(&mut archive, 900).await;
    assert!(archive.lookup(&key("a")).unwrap().is_some());
    assert!(!vouches(&archive, 695, 900));
    drop((archive, index));
    assert!(!vouches(&rig.open(1000).archive, 795, 1000));
}

/// A job of this name, that has ended and is in the index only.
async fn settled_with_one_job(rig: &Rig) {
    let OpenedArchive { mut archive, .. } = rig.open(100);
    start(&mut archive, "a", 101);
    end(&mut archive, "a", 102, 0, None);
    settle(&mut archive, 103).await;
}

fn vouches(archive: &Archive, age: u64, seconds: u64) -> bool {
    let retry = Retry { age: Duration::from_secs(age), same_incarnation: false };
    archive.vouch().decide(Some(&retry), Instant::from_micros(us(seconds))) == Decision::Start
}

/// J-5.11
#[tokio::test]
async fn output_of_no_job_is_removed_and_that_of_a_running_one_is_not() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    let nobodys = rig.path().join("spool/0000000000000001-0000000000000002");
    std::fs::create_dir(&nobodys).unwrap();
    std::fs::write(nobodys.join("job"), "nothing").unwrap();
    for (path, mode) in [(nobodys.clone(), 0o700), (nobodys.join("job"), 0o600)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let strange = rig.path().join("spool/notes");
    std::fs::create_dir(&strange).unwrap();
    start(&mut archive, "runs", 101);
    let mut writer = archive.spool(archive.entry(&key("runs")).unwrap(), [0, 0]);
    writer.append(Stream::Stdout, 0, 0, Bytes::from_static(b"output"));
    archive.finish_spool(archive.entry(&key("runs")).unwrap(), writer).await.unwrap().unwrap();
    settle(&mut archive, 102).await;
    assert!(!nobodys.exists());
    assert!(strange.exists(), "what is named otherwise is none of ours");
    assert_eq!(archive.spools.names().unwrap().len(), 1);
}

#[tokio::test]
async fn fault_58_what_ends_while_the_disk_is_full_is_in_the_index_all_the_same() {
    let rig = Rig::new();
    let OpenedArchive { mut archive, .. } = rig.open(100);
    rig.disk.full_after(0, Errno::NOSPC);
    start(&mut archive, "a", 101);
    end(&mut archive, "a", 102, 0, None);
    assert_eq!(ids(&mut archive).await, ["a"]);
    archive.tick(us(103), Duration::from_secs(103));
    rig.disk.mend();
    settle(&mut archive, 104).await;
    drop(archive);
    let OpenedArchive { mut archive, .. } = rig.open(200);
    assert!(archive.lookup(&key("a")).unwrap().is_some());
    assert!(vouches(&archive, 90, 200), "the journal was made whole");
}

#[tokio::test]
async fn whoever_tends_it_moves_what_has_ended_into_the_index() {
    let rig = Rig::new();
    let archive = RefCell::new(rig.open(100).archive);
    let moved = async {
        {
            // By the calendar: what ended in 1970 is forgotten at once.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let mut archive = archive.borrow_mut();
            start(&mut archive, "a", now);
            end(&mut archive, "a", now, 0, None);
        }
        while archive.borrow().entry(&key("a")).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = tend(&archive) => {}
        () = moved => {}
    }
    assert!(archive.borrow_mut().lookup(&key("a")).unwrap().is_some());
}

/// Where the directory may hang, only the start of a new job waits; what runs ends, and is told of.
#[tokio::test]
async fn a_file_server_that_does_not_answer_keeps_only_new_jobs_waiting() {
    let rig = Rig { may_hang: true, ..Rig::new() };
    let mut archive = rig.open(100).archive;
    let (old, new) = (key("old"), key("new"));
    let info = info("any");
    let digest = [7; 32];
    let job = |key| NewJob { key, digest, mark: "m", info: &info, keep_s: None, at_us: us(101) };
    let written = archive.begin(&job(&old)).unwrap().written.unwrap();
    written.await.unwrap().unwrap();
    let away = rig.disk.stop();
    archive.started(&old, 77, 5, us(101));
    let mut written = archive.begin(&job(&new)).unwrap().written.unwrap();
    end(&mut archive, "old", 103, 5, None);
    assert_eq!(archive.look_up(&old).await.unwrap().unwrap().told.seal, Some(seal(5)));
    assert!(archive.entry(&new).unwrap().is_unfinished());
    archive.tick(us(104), Duration::from_secs(104));
    assert!(written.try_recv().is_err());
    drop(away);
    written.await.unwrap().unwrap();
    archive.settled().await;
    settle(&mut archive, 200).await;
    assert!(archive.look_up(&old).await.unwrap().is_some());
    drop(archive);
    // The journal has all of it.
    let opened = rig.open(300);
    let lost: Vec<_> = opened.lost.iter().map(|entry| &entry.intended.job).collect();
    assert_eq!(lost, [&new]);
}

/// J-5.10: what is changed of a job in an index that may hang is changed there, and in order.
#[tokio::test]
async fn where_the_index_may_hang_its_thread_changes_it() {
    let rig = Rig { may_hang: true, ..Rig::new() };
    let mut archive = rig.open(100).archive;
    begin(&mut archive, "a", 101);
    end(&mut archive, "a", 102, 0, Some(us(5000)));
    settle(&mut archive, 200).await;
    archive.remove(&key("a"));
    let found = archive.look_up(&key("a")).await.unwrap().unwrap();
    assert!(found.removed && found.spool.is_none());
    assert_eq!(ids(&mut archive).await, [""; 0]);
}

/// J-1.4: a lost job stays in the journal until somebody has looked after what it has left, be the one who
/// was about to killed as well.
#[tokio::test]
async fn fault_56_what_a_lost_job_has_left_is_not_forgotten_before_it_is_ended() {
    let rig = Rig::new();
    let mut archive = rig.open(100).archive;
    start(&mut archive, "a", 101);
    begin(&mut archive, "b", 101);
    archive.not_started(&key("b"), &refusal(), us(101));
    drop(archive);
    for seconds in [200, 300] {
        let OpenedArchive { mut archive, unended, .. } = rig.open(seconds);
        let unended: Vec<_> = unended.iter().map(|entry| &entry.intended.job).collect();
        assert_eq!(unended, [&key("a")]);
        settle(&mut archive, seconds + 1).await;
        assert!(archive.entry(&key("a")).is_some());
        assert!(archive.lookup(&key("a")).unwrap().is_some());
    }
    let mut archive = rig.open_cleared(400).archive;
    settle(&mut archive, 401).await;
    assert!(archive.entry(&key("a")).is_none());
    assert!(archive.lookup(&key("a")).unwrap().is_some());
    drop(archive);
    assert!(rig.open(500).unended.is_empty());
}

fn refusal() -> Refused {
    let (phase, reason) = (Phase::Spawn, RefusalReason::NotFound);
    Refused { phase, reason, message: String::new(), started: WasStarted::No }
}

/// As if the user had no more processes for a moment.
#[tokio::test]
async fn fault_62_a_thread_that_could_not_be_had_is_tried_for_again() {
    let rig = Rig::new();
    let mut archive = rig.open(100).archive;
    begin(&mut archive, "a", 101);
    begin(&mut archive, "b", 101);
    DENIED.set(1);
    // Output is not kept: it is said, so that nobody waits for it.
    let refused = archive.spool(archive.entry(&key("a")).unwrap(), [0; 2]);
    assert_eq!(refused.room(), Room::Failed);
    spool(&archive, "b", 10).await;
    end(&mut archive, "a", 102, 0, None);
    DENIED.set(2);
    archive.tick(us(103), Duration::from_secs(103));
    assert_eq!(DENIED.get(), 0);
    archive.tick(us(104), Duration::from_secs(104));
    settle(&mut archive, 200).await;
    assert_eq!(archive.entry(&key("a")), None);
    assert!(archive.lookup(&key("a")).unwrap().is_some());
    drop(archive);
    // Nor is the journal lost that a thread was to have.
    DENIED.set(1);
    let mut archive = Rig { may_hang: true, ..rig }.open(300).archive;
    begin(&mut archive, "c", 301);
    assert!(archive.entry(&key("c")).is_some());
}

/// No number is given twice, whatever the clock says when the supervisor begins anew.
#[tokio::test]
async fn fault_71_numbers_rise_though_the_clock_was_set_back_between_two_supervisors() {
    let rig = Rig::new();
    let mut archive = rig.open(1000).archive;
    let indexed = begin(&mut archive, "a", 1001);
    end(&mut archive, "a", 1002, 0, None);
    settle(&mut archive, 1003).await;
    assert_eq!(archive.entry(&key("a")), None);
    drop(archive);
    let mut archive = rig.open(10).archive;
    assert!(begin(&mut archive, "b", 11) > indexed);
}
