//! Indexes that are full, damaged, and asked for pages.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use afar_proto::message::StreamInfo;
use afar_proto::outcome::{Receipt, StreamSeal};
use tempfile::TempDir;

use super::*;

struct Rig {
    _root: TempDir,
    directory: Directory,
}

impl Rig {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let directory = Directory::open(&root.path().join("jobs")).unwrap();
        Self { _root: root, directory }
    }

    fn index(&self) -> Index {
        Index::open(&self.directory, Use::Write).unwrap()
    }
}

fn key(scope: &str, id: &str) -> JobKey {
    JobKey { scope: scope.to_owned(), job: JobId::new(id).unwrap() }
}

/// A job as most are: a command with two streams, one of which said something.
pub(super) fn sample(number: u64, scope: &str, id: &str) -> EndedJob {
    let key = key(scope, id);
    let end = End::Exited { code: 3 };
    let receipt = Receipt { wall_us: 1000, ..Receipt::default() };
    let mut info = JobInfo::new(key.job.clone(), JobState::Ended, b"make -j8 check");
    info.end = Some(end.clone());
    info.receipt = Some(receipt);
    info.started_at_us = Some(number + 1);
    info.ended_at_us = Some(number + 1001);
    let stream =
        |bytes| StreamInfo { bytes, kept_from: 0, gaps: afar_proto::gaps::Gaps::default() };
    info.streams =
        BTreeMap::from([("stdout".to_owned(), stream(10)), ("stderr".to_owned(), stream(0))]);
    let sealed = |bytes| StreamSeal {
        bytes,
        blake3: vec![7; 32],
        complete: true,
        gaps: afar_proto::gaps::Gaps::default(),
    };
    let streams =
        BTreeMap::from([("stdout".to_owned(), sealed(10)), ("stderr".to_owned(), sealed(0))]);
    let seal = Seal {
        end,
        receipt,
        streams,
        streams_left_open: false,
        session_restarted: false,
        detail: None,
    };
    EndedJob {
        key,
        number,
        digest: [9; 32],
        ended_at_us: number + 1001,
        keep_until_us: number + 5000,
        spool: None,
        removed: false,
        told: Told { info, started: Started::Yes, seal: Some(seal), refused: None },
    }
}

/// As it is told when nothing of its output is kept.
fn settled(mut job: EndedJob) -> EndedJob {
    job.settle();
    job
}

fn numbers(jobs: &[EndedJob]) -> Vec<u64> {
    jobs.iter().map(|job| job.number).collect()
}

#[test]
fn what_is_put_is_found_by_key_by_prefix_and_in_pages() {
    let rig = Rig::new();
    let mut index = rig.index();
    let jobs = [
        sample(10, "", "abc"),
        sample(11, "", "abd"),
        sample(12, "SHA256:k", "abc"),
        sample(13, "", "b.c_d-e"),
    ];
    index.put(&jobs).unwrap();
    // Another connection, and the next process.
    for index in [&index, &Index::open(&rig.directory, Use::Read).unwrap()] {
        for job in &jobs {
            assert_eq!(index.job(&job.key).unwrap(), Some(settled(job.clone())));
        }
        assert_eq!(index.job(&key("", "ab")).unwrap(), None);
        let found =
            |scope, prefix, limit| numbers(&index.with_prefix(Some(scope), prefix, limit).unwrap());
        assert_eq!(found("", "ab", 9), [10, 11]);
        assert_eq!(found("", "ab", 1), [10]);
        assert_eq!(found("SHA256:k", "a", 9), [12]);
        assert_eq!(found("", "b.c_d-e", 9), [13]);
        assert_eq!(found("", "", 9), [10, 11, 13]);
        // Neither is a pattern.
        assert_eq!(found("", "a%", 9), [0; 0]);
        assert_eq!(found("", "a_", 9), [0; 0]);
        let page = |scope, before, limit| numbers(&index.page(scope, "", before, limit).unwrap());
        assert_eq!(page(None, u64::MAX, 9), [13, 12, 11, 10]);
        assert_eq!(page(None, 13, 2), [12, 11]);
        assert_eq!(page(Some(""), u64::MAX, 9), [13, 11, 10]);
        assert_eq!(page(Some("SHA256:k"), 12, 9), [0; 0]);
    }
}

#[test]
fn a_job_that_is_put_again_is_replaced() {
    let rig = Rig::new();
    let mut index = rig.index();
    index.put(&[sample(10, "", "a")]).unwrap();
    let mut again = sample(20, "", "a");
    again.told.started = Started::Unknown;
    index.put(&[again.clone()]).unwrap();
    assert_eq!(index.job(&again.key).unwrap(), Some(settled(again)));
    assert_eq!(index.page(None, "", u64::MAX, 9).unwrap().len(), 1);
}

/// J-1.7, J-3.6
#[test]
fn output_goes_before_the_outcome_and_the_outcome_before_the_id_is_free() {
    let rig = Rig::new();
    let mut index = rig.index();
    let mut job = sample(1000, "", "a");
    job.spool = Some("s".to_owned());
    index.put(&[job.clone()]).unwrap();
    let kept = |index: &Index| {
        let info = index.job(&job.key).unwrap().unwrap().told.info;
        (info.keep_until_us, info.streams["stdout"].kept_from)
    };
    assert_eq!(kept(&index), (Some(6000), 0));
    assert_eq!(index.expired(5999, 9).unwrap(), []);
    assert_eq!(index.expired(6000, 9).unwrap(), [(1000, "s".to_owned())]);
    assert_eq!(index.oldest_kept(9).unwrap(), [(1000, "s".to_owned())]);
    assert_eq!(index.keeps(1000, "s").unwrap(), Some(true));
    let lifetime = u64::try_from(TOMBSTONE_LIFETIME.as_micros()).unwrap();
    // Not before its output is gone.
    assert_eq!(index.forget(lifetime * 2, 9).unwrap(), 0);
    index.released(1000).unwrap();
    assert_eq!(kept(&index), (None, 10));
    assert_eq!(index.expired(u64::MAX, 9).unwrap(), []);
    assert_eq!(index.keeps(1000, "s").unwrap(), Some(false));
    assert_eq!(index.keeps(1001, "s").unwrap(), None);
    job.spool = None;
    job.removed = true;
    index.put(&[job.clone()]).unwrap();
    assert!(index.page(None, "", u64::MAX, 9).unwrap().is_empty());
    assert!(index.with_prefix(Some(""), "a", 9).unwrap().is_empty());
    assert!(index.job(&job.key).unwrap().unwrap().removed, "its id is taken");
    assert_eq!(index.forget(2001 + lifetime - 1, 9).unwrap(), 0);
    assert_eq!(index.forget(2001 + lifetime, 9).unwrap(), 1);
    assert_eq!(index.job(&job.key).unwrap(), None);
}

/// J-5.10
#[test]
fn a_page_has_at_most_so_many_jobs() {
    let rig = Rig::new();
    let mut index = rig.index();
    let count = u64::from(INDEX_PAGE_JOBS_MAX) + 1;
    let jobs: Vec<_> = (0..count).map(|number| sample(number, "", &format!("j{number}"))).collect();
    index.put(&jobs).unwrap();
    let page = |limit| index.page(None, "", u64::MAX, limit).unwrap().len() as u64;
    assert_eq!((page(7), page(u32::MAX)), (7, count - 1));
    assert_eq!(page(INDEX_PAGE_JOBS_MAX - 1), count - 2);
}

/// J-5.10
#[test]
fn of_too_many_jobs_those_that_ended_first_are_forgotten() {
    let rig = Rig::new();
    let mut index = rig.index();
    let told = sample(0, "", "x");
    index.put(&[told]).unwrap();
    // As many as there may be, without going through JSON for each.
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        INSERT INTO jobs SELECT i, '', 'j' || i, x'00', i, 0, NULL, 0, '', 0 FROM n";
    index.connection.execute(fill, [signed(INDEX_JOBS_MAX - 1)]).unwrap();
    assert_eq!((index.surplus().unwrap(), index.forget_surplus(100).unwrap()), (0, 0));
    index.put(&[sample(INDEX_JOBS_MAX, "", "one"), sample(INDEX_JOBS_MAX + 1, "", "two")]).unwrap();
    assert_eq!(index.forget(0, 100).unwrap(), 0);
    assert_eq!((index.surplus().unwrap(), index.forget_surplus(100).unwrap()), (2, 2));
    assert_eq!((index.surplus().unwrap(), index.forget_surplus(100).unwrap()), (0, 0));
    assert!(index.job(&key("", "j1")).unwrap().is_none());
    assert!(index.job(&key("", "j3")).unwrap().is_some());
}

#[test]
fn fault_60_a_row_that_was_changed_tells_unknown_and_keeps_its_id() {
    let rig = Rig::new();
    let mut index = rig.index();
    let job = sample(10, "", "a");
    for change in [
        r#"told = replace(told, '"code":3', '"code":0')"#,
        "told = ''",
        "told = substr(told, 2)",
        "digest = x'00'",
        "sum = sum + 1",
    ] {
        index.put(std::slice::from_ref(&job)).unwrap();
        assert_eq!(index.connection.execute(&format!("UPDATE jobs SET {change}"), []).unwrap(), 1);
        let found = index.job(&job.key).unwrap().unwrap();
        assert_eq!(found.told.info.end, Some(End::Unknown), "{change}");
        assert_eq!((found.told.started, found.told.seal), (Started::Unknown, None), "{change}");
        assert_eq!(index.page(None, "", u64::MAX, 9).unwrap().len(), 1);
    }
}

#[test]
fn fault_60_a_damaged_file_is_said_to_be_one_and_a_new_one_takes_its_place() {
    let rig = Rig::new();
    {
        let mut index = rig.index();
        let jobs: Vec<_> =
            (0..500).map(|number| sample(number, "", &format!("j{number}"))).collect();
        index.put(&jobs).unwrap();
    }
    let path = path_of(&rig.directory);
    let good = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in [0, 20, 100, 4096, 4100, 9000, good.len() / 2] {
        let mut bad = good.clone();
        let end = (at + 600).min(bad.len());
        bad[at..end].fill(0xff);
        std::fs::write(&path, &bad).unwrap();
        let found = Index::open(&rig.directory, Use::Write).and_then(|index| {
            (0..500).try_for_each(|number| {
                let found = index.job(&key("", &format!("j{number}")))?;
                // What it finds is right, or unknown.
                let told = found.map(|job| (job.told.info.end == Some(End::Unknown), job));
                assert!(told.is_none_or(|(unknown, job)| unknown || job.told.seal.is_some()));
                Ok::<(), IndexError>(())
            })?;
            index.page(None, "", u64::MAX, 600).map(|_| ())
        });
        match found {
            Err(IndexError::Damaged(_)) => refused += 1,
            Err(IndexError::Version(_)) | Ok(()) => {}
            Err(other) => panic!("{at}: {other}"),
        }
    }
    assert!(refused >= 4, "{refused}");
    std::fs::write(&path, [0xff; 5000]).unwrap();
    assert!(matches!(Index::open(&rig.directory, Use::Write), Err(IndexError::Damaged(_))));
    Index::put_aside(&rig.directory).unwrap();
    let mut index = rig.index();
    index.put(&[sample(1, "", "new")]).unwrap();
    assert_eq!(index.page(None, "", u64::MAX, 9).unwrap().len(), 1);
    assert_eq!(std::fs::read(path.with_file_name(DAMAGED_NAME)).unwrap(), [0xff; 5000]);
}

#[test]
fn an_index_of_a_later_version_is_left_alone() {
    let rig = Rig::new();
    rig.index().connection.pragma_update(None, "user_version", 2).unwrap();
    assert!(matches!(Index::open(&rig.directory, Use::Write), Err(IndexError::Version(2))));
}

#[test]
fn its_files_are_this_users_alone() {
    let rig = Rig::new();
    let mut index = rig.index();
    index.put(&[sample(1, "", "a")]).unwrap();
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        let file = rig.directory.path().join(name);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn fault_63_links_in_the_place_of_its_files_are_refused() {
    for name in BESIDE.into_iter().chain([NAME]) {
        let rig = Rig::new();
        let victim = rig.directory.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, rig.directory.path().join(name)).unwrap();
        let refused = Index::open(&rig.directory, Use::Write);
        assert!(matches!(refused, Err(IndexError::File(StoreError::Planted { .. }))), "{name}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}

/// J-5.10: on a disk that is full, SQLite can't make the files that it shares with others.
#[test]
fn fault_58_an_index_that_nobody_writes_is_read_without_room() {
    let root = TempDir::new().unwrap();
    let directory = Directory::open(&root.path().join("jobs?of=100% of us")).unwrap();
    let mut index = Index::open(&directory, Use::Write).unwrap();
    index.put(&[sample(1, "", "a")]).unwrap();
    assert!(Index::open_frozen(&directory).unwrap().is_none(), "it is not in the one file yet");
    drop(index);
    let frozen = Index::open_frozen(&directory).unwrap().unwrap();
    assert!(frozen.is_frozen());
    assert_eq!(frozen.job(&key("", "a")).unwrap().unwrap().key, key("", "a"));
    assert_eq!(frozen.job(&key("", "b")).unwrap(), None);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was made");
    for (code, is_it) in [(13, true), (10, true), (14, true), (5, false), (11, false)] {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        assert_eq!(is_for_want_of_room(&error), is_it, "{code}");
    }
}

/// What an abbreviated id asks, and a list of what begins so, looks at those that do and at no others; a list
/// of all sorts nothing.
#[test]
fn what_is_asked_of_the_index_is_found_by_an_index() {
    let root = TempDir::new().unwrap();
    let directory = Directory::open(&root.path().join("jobs")).unwrap();
    let index = Index::open(&directory, Use::Write).unwrap();
    let plan = |sql: &str| -> String {
        let mut plan = index.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = plan.raw_query().mapped(|row| row.get::<_, String>(3));
        steps.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
    };
    let found = plan(&sql_of_prefix());
    assert!(found.starts_with("SEARCH") && found.contains("by_id (id>? AND id<?)"), "{found}");
    assert!(!found.contains("TEMP B-TREE"), "{found}");
    for of_scope in [false, true] {
        let found = plan(&sql_of_page(of_scope, true));
        assert!(found.contains("by_id (id>? AND id<?)"), "{found}");
        let found = plan(&sql_of_page(of_scope, false));
        assert!(found.contains("SEARCH") && !found.contains("TEMP B-TREE"), "{found}");
    }
}
