//! Journals on disks that are full, and in directories in which somebody has planted something.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use afar_core::job::{Decision, Retry};
use afar_core::journal::{Intended, Started, Summary};
use afar_proto::message::{JobId, JobInfo, JobState};
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::rig::FailingDisk;
use super::*;

const BOOT: &str = "0d9c5b1e-0000-4000-8000-000000000001";

struct Rig {
    root: TempDir,
    disk: Arc<FailingDisk>,
}

impl Rig {
    fn new() -> Self {
        Self { root: TempDir::new().unwrap(), disk: Arc::new(FailingDisk::sound()) }
    }

    fn path(&self) -> std::path::PathBuf {
        self.root.path().join("jobs")
    }

    fn try_open(&self, beginning: &Beginning) -> Result<Opened, StoreError> {
        let directory = Arc::new(Directory::open(&self.path())?);
        let disk: Arc<dyn Disk> = Arc::<FailingDisk>::clone(&self.disk);
        Journal::open(&directory, &disk, beginning, Log::default())
    }

    /// A supervisor that begins so many seconds after the boot.
    fn open(&self, incarnation: &str, seconds: u64) -> Opened {
        self.try_open(&beginning(incarnation, seconds)).unwrap()
    }
}

fn beginning(incarnation: &str, seconds: u64) -> Beginning {
    Beginning {
        incarnation: Some(incarnation.to_owned()),
        boot: BOOT.to_owned(),
        since_boot: Duration::from_secs(seconds),
        unix_us: 1,
    }
}

fn key(id: &str) -> JobKey {
    JobKey { scope: String::new(), job: JobId::new(id).unwrap() }
}

fn intended(journal: &mut Journal, id: &str) -> JournalRecord {
    let info = JobInfo::new(key(id).job, JobState::Waiting, b"true");
    let number = journal.next_number(0);
    JournalRecord::Intended(Box::new(Intended {
        job: key(id),
        number,
        at_us: 1,
        digest: [1; 32],
        mark: String::new(),
        spool: Journal::new_spool_name(number).unwrap(),
        summary: Summary::of(&info),
        detached: false,
        keep_s: None,
    }))
}

fn begin_job(journal: &mut Journal, id: &str) -> Result<(), JournalError> {
    let record = intended(journal, id);
    journal.append(record)
}

fn started(id: &str) -> JournalRecord {
    JournalRecord::Started(Started { job: key(id), pid: 1, start_ticks: 1, at_us: 1 })
}

fn refused(id: &str) -> JournalRecord {
    use afar_proto::message::Refused;
    use afar_proto::outcome::{Phase, RefusalReason, Started};
    let (phase, reason) = (Phase::Spawn, RefusalReason::NotFound);
    let refused = Refused { phase, reason, message: String::new(), started: Started::No };
    JournalRecord::NotStarted(afar_core::journal::NotStarted { job: key(id), at_us: 2, refused })
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Whether it would remember a job that was asked for so long before so long after the boot.
fn vouches_for(journal: &Journal, age: Duration, since_boot: Duration) -> bool {
    let retry = Retry { age, same_incarnation: false };
    let now = Instant::from_micros(micros(since_boot));
    journal.vouch().decide(Some(&retry), now) == Decision::Start
}

/// J-1.5, J-1.6: each supervisor finds what the one before it wrote, and vouches for as long as the
/// journal was kept.
#[test]
fn the_next_supervisor_knows_what_the_last_one_did() {
    let rig = Rig::new();
    let Opened { mut journal, faults } = rig.open("one", 100);
    assert!(faults.is_empty());
    begin_job(&mut journal, "a").unwrap();
    journal.append(started("a")).unwrap();
    begin_job(&mut journal, "b").unwrap();
    let ledger = journal.ledger().clone();
    drop(journal);

    let Opened { journal, faults } = rig.open("two", 200);
    assert!(faults.is_empty(), "{faults:?}");
    assert!(ledger.jobs().eq(journal.ledger().jobs()));
    assert_eq!(journal.incarnation(), "two");
    // Sent 5 s and more after the first one began.
    assert!(vouches_for(&journal, seconds(100), seconds(205)));
    assert!(!vouches_for(&journal, seconds(100), Duration::from_millis(204_999)));
    assert!(!vouches_for(&journal, seconds(1000), seconds(205)));
    drop(journal);

    let goes_on = Beginning { incarnation: None, ..beginning("", 300) };
    assert_eq!(rig.try_open(&goes_on).unwrap().journal.incarnation(), "two");
}

#[test]
fn the_files_are_this_users_alone() {
    let rig = Rig::new();
    let _opened = rig.open("one", 1);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&rig.path()), 0o700);
    assert_eq!(mode(&rig.path().join(NAME)), 0o600);
}

#[test]
fn a_second_supervisor_does_not_get_it() {
    let rig = Rig::new();
    let _opened = rig.open("one", 1);
    let error = rig.try_open(&beginning("two", 2)).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[test]
fn numbers_rise_whatever_the_clock_does() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 1);
    let numbers = [journal.next_number(10), journal.next_number(5), journal.next_number(20)];
    assert_eq!(numbers, [10, 11, 20]);
    begin_job(&mut journal, "a").unwrap();
    drop(journal);
    assert_eq!(rig.open("two", 2).journal.next_number(3), 22);
}

/// J-1.6: a job that could not be written down runs; nobody vouches that it did not.
#[test]
fn fault_58_a_full_disk_stops_no_job_and_no_retry_becomes_a_second_start() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    begin_job(&mut journal, "before").unwrap();
    for room in [0, 1, 20, 200] {
        rig.disk.full_after(room, Errno::NOSPC);
        let id = format!("full{room}");
        begin_job(&mut journal, &id).unwrap();
        journal.append(started(&id)).unwrap();
        assert!(journal.is_behind());
        assert!(journal.ledger().job(&key(&id)).is_some());
    }
    // It is killed before there is room.
    rig.disk.mend();
    drop(journal);
    let Opened { journal, faults } = rig.open("two", 200);
    assert_eq!(faults, ["it misses what could not be written"]);
    assert!(journal.ledger().job(&key("before")).is_some());
    assert!(!vouches_for(&journal, seconds(10), seconds(201)));
    assert!(vouches_for(&journal, seconds(10), seconds(215)));
}

#[test]
fn fault_58_what_could_not_be_written_is_written_when_there_is_room_again() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    rig.disk.full_after(3, Errno::DQUOT);
    begin_job(&mut journal, "a").unwrap();
    journal.catch_up(seconds(101));
    assert!(journal.is_behind());
    rig.disk.mend();
    begin_job(&mut journal, "b").unwrap();
    assert!(journal.is_behind());
    journal.catch_up(seconds(102));
    assert!(!journal.is_behind());
    drop(journal);
    let Opened { journal, faults } = rig.open("two", 200);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(journal.ledger().jobs().len(), 2);
    assert!(vouches_for(&journal, seconds(90), seconds(200)));
}

/// J-1.6: where not even the journal's name can be changed, nothing is started that nobody could know
/// of later.
#[test]
fn a_job_that_nobody_could_know_of_is_not_started() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    begin_job(&mut journal, "a").unwrap();
    // What can't be replaced by a file of another name.
    std::fs::create_dir(rig.path().join(DISAVOWED_NAME)).unwrap();
    rig.disk.full_after(0, Errno::IO);
    let error = begin_job(&mut journal, "b").unwrap_err();
    assert!(matches!(error, JournalError::Stuck(_)), "{error}");
    assert!(journal.ledger().job(&key("b")).is_none());
    // What runs already ends all the same.
    journal.append(started("a")).unwrap_err();
    assert!(journal.is_behind());
    begin_job(&mut journal, "c").unwrap_err();
    rig.disk.mend();
    journal.catch_up(seconds(101));
    assert!(!journal.is_behind());
    begin_job(&mut journal, "c").unwrap();
    drop(journal);
    std::fs::remove_dir(rig.path().join(DISAVOWED_NAME)).unwrap();
    let Opened { journal, faults } = rig.open("two", 200);
    assert!(faults.is_empty(), "{faults:?}");
    let was_started = |id| journal.ledger().job(&key(id)).map(|entry| entry.started.is_some());
    assert_eq!(
        [was_started("a"), was_started("b"), was_started("c")],
        [Some(true), None, Some(false)]
    );
}

/// J-5.4: each job that runs on a full disk costs the same, however many there were.
#[test]
fn fault_58_a_full_disk_is_tried_less_and_less_often_and_not_for_each_job() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    rig.disk.full_after(0, Errno::NOSPC);
    begin_job(&mut journal, "first").unwrap();
    let tried = rig.disk.writes();
    for number in 0..100 {
        begin_job(&mut journal, &format!("j{number}")).unwrap();
    }
    assert_eq!(rig.disk.writes(), tried);
    let mut tries = Vec::new();
    for tenth in 1_u64..1200 {
        let before = rig.disk.writes();
        journal.catch_up(seconds(100) + Duration::from_millis(100 * tenth));
        if rig.disk.writes() > before {
            tries.push(tenth);
        }
    }
    assert_eq!(tries, [1, 4, 9, 19, 39, 79, 159, 319, 619, 919]);
    rig.disk.mend();
    journal.catch_up(seconds(1000));
    assert!(!journal.is_behind());
    drop(journal);
    let Opened { journal, faults } = rig.open("two", 2000);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(journal.ledger().jobs().len(), 101);
}

/// J-5.4: what follows a journal that was written anew stands where its checksum says, also if the mark
/// that something is missing can't be removed.
#[test]
fn fault_60_a_journal_that_stays_disavowed_is_not_damaged() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    rig.disk.full_after(0, Errno::NOSPC);
    begin_job(&mut journal, "a").unwrap();
    rig.disk.mend();
    let mark = rig.path().join(DISAVOWED_NAME);
    std::fs::remove_file(&mark).unwrap();
    // What can't be removed as a file.
    std::fs::create_dir(&mark).unwrap();
    journal.catch_up(seconds(101));
    assert!(journal.is_behind());
    begin_job(&mut journal, "b").unwrap();
    journal.append(started("b")).unwrap();
    std::fs::remove_dir(&mark).unwrap();
    let read = Replay::read(&std::fs::read(rig.path().join(NAME)).unwrap());
    assert!(read.is_good(), "{:?}", read.faults);
    assert!(read.ledger.jobs().eq(journal.ledger().jobs()));
    journal.catch_up(seconds(110));
    assert!(!journal.is_behind());
}

/// J-5.4: JOURNAL_BYTES_MAX, on both sides.
#[test]
fn a_journal_takes_no_more_jobs_than_fit_and_again_some_when_it_has_shrunk() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    let record = intended(&mut journal, "a");
    let bytes = journal.encode(&record).unwrap();
    // As if that many were in it that can't be let go of.
    journal.full = true;
    journal.rewritten_length = JOURNAL_BYTES_MAX;
    journal.size = JOURNAL_BYTES_MAX - bytes + 1;
    assert!(matches!(journal.append(record.clone()), Err(JournalError::Full)));
    assert!(journal.ledger().job(&key("a")).is_none());
    journal.size = JOURNAL_BYTES_MAX - bytes;
    journal.append(record).unwrap();
    assert!(matches!(begin_job(&mut journal, "b"), Err(JournalError::Full)));
    // What is said of those that run has room still.
    journal.append(started("a")).unwrap();
    journal.catch_up(seconds(101));
    begin_job(&mut journal, "b").unwrap();
    // It was written anew to make room: then what comes next stands at another place.
    journal.size = JOURNAL_BYTES_MAX;
    begin_job(&mut journal, "c").unwrap();
    drop(journal);
    let Opened { journal, faults } = rig.open("two", 200);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(journal.ledger().jobs().len(), 3);
}

#[test]
fn whoever_goes_on_without_it_says_so_to_the_next_one() {
    let rig = Rig::new();
    drop(rig.open("one", 100));
    let directory = Directory::open(&rig.path()).unwrap();
    Journal::disavow(&directory).unwrap();
    Journal::disavow(&directory).unwrap();
    let Opened { journal, .. } = rig.open("two", 200);
    assert!(!vouches_for(&journal, seconds(1), seconds(202)));
}

/// J-5.4
#[test]
fn a_journal_stays_small_however_many_jobs_there_were() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    begin_job(&mut journal, "stays").unwrap();
    for number in 0..10_000 {
        let id = format!("j{number}");
        begin_job(&mut journal, &id).unwrap();
        journal.append(refused(&id)).unwrap();
        let last = journal.ledger().job(&key(&id)).unwrap().intended.number;
        journal.forget(vec![last]).unwrap();
        assert!(journal.length <= JOURNAL_REWRITE_BYTES, "{}", journal.length);
    }
    assert_eq!(journal.ledger().jobs().len(), 1);
    drop(journal);
    let Opened { journal, faults } = rig.open("two", 200);
    assert!(faults.is_empty());
    assert_eq!(journal.ledger().jobs().len(), 1);
    assert!(journal.length < 1000);
}

#[test]
fn fault_60_a_damaged_journal_is_put_aside_and_the_rest_of_it_is_kept() {
    let rig = Rig::new();
    let Opened { mut journal, .. } = rig.open("one", 100);
    begin_job(&mut journal, "a").unwrap();
    let at = usize::try_from(journal.length).unwrap() - 5;
    begin_job(&mut journal, "b").unwrap();
    drop(journal);
    let mut bytes = std::fs::read(rig.path().join(NAME)).unwrap();
    bytes[at] ^= 4;
    std::fs::write(rig.path().join(NAME), &bytes).unwrap();
    let Opened { journal, faults } = rig.open("two", 200);
    assert_eq!(faults.len(), 1, "{faults:?}");
    let left: Vec<_> = journal.ledger().jobs().map(|entry| entry.intended.job.clone()).collect();
    assert_eq!(left, [key("b")]);
    assert!(!vouches_for(&journal, seconds(1), seconds(202)));
    assert_eq!(std::fs::read(rig.path().join(DAMAGED_NAME)).unwrap(), bytes);
}

/// J-5.1
#[test]
fn a_journal_of_a_later_version_is_left_as_it_is() {
    let rig = Rig::new();
    drop(rig.open("one", 1));
    let path = rig.path().join(NAME);
    let mut later = std::fs::read(&path).unwrap();
    later[7] = b'2';
    for name in [NAME, DISAVOWED_NAME] {
        std::fs::rename(&path, rig.path().join(name)).unwrap();
        std::fs::write(rig.path().join(name), &later).unwrap();
        let error = rig.try_open(&beginning("two", 2)).unwrap_err();
        assert!(matches!(&error, StoreError::Later { .. }), "{error}");
        assert_eq!(std::fs::read(rig.path().join(name)).unwrap(), later);
        assert!(!rig.path().join(DAMAGED_NAME).exists());
    }
}

#[test]
fn fault_63_what_is_planted_where_a_file_should_be_is_refused() {
    for name in [NAME, NEW_NAME, LOCK_NAME, DISAVOWED_NAME] {
        let rig = Rig::new();
        drop(Directory::open(&rig.path()).unwrap());
        let victim = rig.root.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, rig.path().join(name)).unwrap();
        let error = rig.try_open(&beginning("one", 1)).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{name}");
    }
    let rig = Rig::new();
    drop(Directory::open(&rig.path()).unwrap());
    std::fs::create_dir(rig.path().join(NAME)).unwrap();
    assert!(matches!(
        rig.try_open(&beginning("one", 1)),
        Err(StoreError::Planted { .. } | StoreError::Io { .. })
    ));
}

/// J-5.8
#[test]
fn fault_63_a_directory_that_is_a_link_or_open_to_others_is_refused() {
    let rig = Rig::new();
    let elsewhere = rig.root.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, rig.path()).unwrap();
    assert!(matches!(rig.try_open(&beginning("one", 1)), Err(StoreError::Directory(_))));
    let rig = Rig::new();
    std::fs::create_dir(rig.path()).unwrap();
    std::fs::set_permissions(rig.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
    assert!(matches!(rig.try_open(&beginning("one", 1)), Err(StoreError::Directory(_))));
}

/// J-5.8
#[test]
fn fault_83_files_and_directories_that_are_open_to_others_are_refused() {
    let rig = Rig::new();
    drop(rig.open("one", 1));
    let open_to = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let journal = rig.path().join(NAME);
    for mode in [0o640, 0o604, 0o620, 0o602] {
        open_to(&journal, mode);
        let error = rig.try_open(&beginning("two", 2)).unwrap_err();
        assert!(matches!(error, StoreError::Exposed { .. }), "{mode:o}: {error}");
        assert!(error.to_string().contains("chmod go="), "{error}");
    }
    open_to(&journal, 0o600);
    drop(rig.open("two", 2));
    let directory = Directory::open(&rig.path()).unwrap();
    drop(directory.subdirectory("spool", true).unwrap());
    open_to(&rig.path().join("spool"), 0o750);
    assert!(matches!(directory.subdirectory("spool", true), Err(StoreError::Exposed { .. })));
    open_to(&rig.path().join("spool"), 0o700);
    assert!(directory.subdirectory("spool", true).unwrap().is_some());
}
