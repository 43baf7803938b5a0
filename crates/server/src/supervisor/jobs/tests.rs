//! What is told of jobs that only the archive knows.

use std::path::Path;
use std::sync::Arc;

use afar_core::journal::TreeEnded;
use afar_proto::message::{Command, JobState, ListQuery};
use tempfile::TempDir;

use super::*;
use crate::log::Log;
use crate::store::{ArchiveConfig, Beginning, Quotas, RealDisk};

const FINGERPRINT: &str = "SHA256:x";

pub(in super::super) fn open(path: &Path, incarnation: &str) -> Jobs {
    let config = ArchiveConfig {
        disk: Arc::new(RealDisk),
        quotas: Quotas::default(),
        may_hang: false,
        log: Log::default(),
    };
    let beginning = Beginning {
        incarnation: Some(incarnation.to_owned()),
        boot: "0d9c5b1e-0000-4000-8000-000000000001".to_owned(),
        since_boot: since_boot(),
        unix_us: unix_time_us(),
    };
    let mut opened = Archive::open(&path.join("jobs"), &config, &beginning).unwrap();
    for entry in opened.unended {
        let job = entry.intended.job;
        opened.archive.tree_ended(TreeEnded { job, at_us: 1, ended: 0, left: 0 });
    }
    Jobs::archived(Rc::new(RefCell::new(opened.archive))).unwrap()
}

fn id(id: &str) -> JobId {
    JobId::new(id).unwrap()
}

fn key(scope: &str, job: &str) -> JobKey {
    JobKey { scope: scope.to_owned(), job: id(job) }
}

fn spec(job: &str) -> OpenSpec {
    OpenSpec::new(id(job), Command::Script("true".into()))
}

pub(in super::super) fn begin(jobs: &Jobs, key: &JobKey) {
    let (digest, info) =
        (spec("any").digest(), JobInfo::new(key.job.clone(), JobState::Waiting, b"true"));
    let asked = Asked { key, digest: &digest, mark: "m", info: &info, keep_s: None };
    jobs.begin(&asked).unwrap();
}

/// The jobs of a supervisor that was killed, and everything is in the index.
async fn killed(path: &Path, begun: &[JobKey], started: &[JobKey]) -> Jobs {
    let jobs = open(path, "one");
    begun.iter().chain(started).for_each(|key| begin(&jobs, key));
    started.iter().for_each(|key| jobs.started(key, 7, 7, 1));
    drop(jobs);
    let jobs = open(path, "two");
    indexed(&jobs).await;
    jobs
}

pub(in super::super) async fn indexed(jobs: &Jobs) {
    loop {
        let due = jobs.archive().unwrap().tick(unix_time_us(), since_boot());
        // Behind everything that it was told before.
        let asked = jobs.archive().unwrap().page(None, "", u64::MAX, 1);
        asked.await;
        if due > crate::store::limits::INDEX_DELAY {
            return;
        }
    }
}

fn refusal(jobs: &Jobs, key: &JobKey) -> Refused {
    match jobs.life(key).unwrap() {
        Some(Life::Lost(refused)) => (*refused).clone(),
        other => panic!("{other:?}"),
    }
}

/// J-1.4: before the index has it, and when it does.
#[tokio::test]
async fn fault_56_whether_a_lost_job_was_started_is_told_as_it_is_known() {
    let root = TempDir::new().unwrap();
    let (begun, started) = (key("", "begun"), key("", "started"));
    let jobs = killed(root.path(), std::slice::from_ref(&begun), std::slice::from_ref(&started));
    let jobs = jobs.await;
    let told = refusal(&jobs, &begun);
    assert_eq!((told.reason, told.started), (RefusalReason::NoSuchJob, Started::Unknown));
    let told = refusal(&jobs, &started);
    assert_eq!((told.reason, told.started), (RefusalReason::NoSuchJob, Started::Yes));
    assert!(told.message.contains("was killed; its end is not known"), "{}", told.message);
}

/// J-5.10
#[tokio::test]
async fn fault_60_of_a_row_that_was_changed_nothing_is_made_up() {
    let root = TempDir::new().unwrap();
    let started = key("", "started");
    let jobs = killed(root.path(), &[], std::slice::from_ref(&started)).await;
    let index = rusqlite::Connection::open(root.path().join("jobs/index.db")).unwrap();
    index.execute("UPDATE jobs SET sum = sum + 1", []).unwrap();
    let told = refusal(&jobs, &started);
    assert_eq!((told.reason, told.started), (RefusalReason::Unknown, Started::Unknown));
    assert!(!told.message.contains("killed"), "{}", told.message);
}

/// J-1.3, J-1.6: with `retry` or without.
#[tokio::test]
async fn nothing_is_started_that_an_unreadable_index_may_have() {
    let root = TempDir::new().unwrap();
    drop(killed(root.path(), &[], &[key("", "a")]).await);
    let index = rusqlite::Connection::open(root.path().join("jobs/index.db")).unwrap();
    index.pragma_update(None, "user_version", 2).unwrap();
    let jobs = open(root.path(), "three");
    let decide = || jobs.decide(&key("", "a"), &spec("a"), &spec("a").digest());
    assert_eq!(decide(), Decision::Unknown);
    let refused = jobs.life(&key("", "a")).unwrap_err();
    assert_eq!((refused.reason, refused.started), (RefusalReason::Unknown, Started::Unknown));
    assert!(refused.message.contains("of version 2"), "{}", refused.message);
    index.pragma_update(None, "user_version", 1).unwrap();
    assert_eq!(decide(), Decision::Same);
}

/// Whatever a list has, its reader can name: in the scopes it shows, also what was never started.
#[tokio::test]
async fn what_is_listed_can_be_named() {
    let root = TempDir::new().unwrap();
    let others = [key(FINGERPRINT, "ab"), key(FINGERPRINT, "abc"), key("", "abd")];
    let jobs = killed(root.path(), &[], &others).await;
    let never = key("", "never");
    begin(&jobs, &never);
    jobs.refused(&never, &refused(RefusalReason::NotFound, "no such file"));
    indexed(&jobs).await;
    let all = View { scope: String::new(), all: true };
    let own = View { scope: FINGERPRINT.to_owned(), all: false };
    let search = async |view: &View, job: &str, prefix| {
        let found = jobs.search(view, &id(job), prefix).await;
        found.map(|key| key.to_string()).map_err(|refused| refused.reason)
    };
    let (ambiguous, none) = (RefusalReason::Ambiguous, RefusalReason::NoSuchJob);
    assert_eq!(search(&all, "ab", false).await, Ok(format!("ab of {FINGERPRINT}")));
    assert_eq!(search(&all, "ab", true).await, Ok(format!("ab of {FINGERPRINT}")), "exactly");
    assert_eq!(search(&all, "abc", true).await, Ok(format!("abc of {FINGERPRINT}")));
    assert_eq!(search(&all, "a", true).await, Err(ambiguous));
    assert_eq!(search(&all, "a", false).await, Err(none));
    assert_eq!(search(&own, "abd", true).await, Err(none));
    assert_eq!(jobs.find(&all, &id("never")).unwrap(), Some(never.clone()));
    assert_eq!(search(&all, "nev", true).await, Ok("never".to_owned()));
    let Some(Life::Refused(told)) = jobs.life(&never).unwrap() else { panic!() };
    assert_eq!(told.message, "no such file");
}

/// A job that ends between the moment in which a page looks for it and that in which it is asked is on the page
/// all the same, and `ps ID` asks for those of that id alone.
#[tokio::test]
async fn a_job_that_ends_while_it_is_listed_is_on_the_page() {
    let root = TempDir::new().unwrap();
    let jobs = open(root.path(), "one");
    let all = View { scope: String::new(), all: true };
    for id in ["ab", "ac", "b"] {
        let key = key("", id);
        begin(&jobs, &key);
        let (sender, commands) = tokio::sync::mpsc::unbounded_channel();
        let number = jobs.archive().unwrap().entry(&key).unwrap().intended.number;
        jobs.enter(key.clone(), [0; 32], number, sender);
        // It has gone, and the archive knows how; the register was looked at before.
        drop(commands);
        let why = refused(RefusalReason::NotFound, "no such file");
        jobs.archive().unwrap().not_started(&key, &why, unix_time_us());
    }
    for where_they_are in ["at hand", "in the index"] {
        let listed = |job: Option<&str>| {
            let job = job.map(id);
            let list = ListQuery { states: None, job, after: None, limit: None };
            let (jobs, all) = (&jobs, &all);
            async move {
                let page = jobs.page(all, &list, None).await;
                page.jobs.iter().map(|info| info.job.to_string()).collect::<Vec<_>>().join(" ")
            }
        };
        assert_eq!(listed(None).await, "b ac ab", "{where_they_are}");
        assert_eq!(listed(Some("a")).await, "ac ab");
        assert_eq!(listed(Some("b")).await, "b");
        assert_eq!(listed(Some("x")).await, "");
        // And when they are in the index, and at hand no more.
        indexed(&jobs).await;
        for id in ["ab", "ac", "b"] {
            jobs.register.borrow_mut().remove(&key("", id));
        }
    }
}
