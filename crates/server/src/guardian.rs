//! The guardian: the supervisor's parent, which tells the truth of a supervisor that was killed.
//!
//! While the supervisor lives it does nothing but reap orphans and pass signals on. A supervisor that has
//! ended in order has left nothing to do. One that was killed, or has crashed, leaves jobs that nobody
//! watches: what the journal says is unfinished is ended by the guardian, TERM, grace, KILL, and written
//! down (`J-1.4`). What it can't attribute to an unfinished job goes on: that is what ended jobs
//! have left behind on purpose (`J-2.7`). The lock of the supervisor is held until that is done, so that the next
//! supervisor finds it done.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_core::journal::{Entry, JournalRecord, Started, TreeEnded};
use afar_sys::boot::{boot_id, since_boot};
use afar_sys::cgroup::Slice;
use afar_sys::child::{Ended, ExitStatus};
use afar_sys::guard::{Guard, GuardEvent};
use afar_sys::process_tree::{Process, ProcessId, Tree, TreeRoot, find_descendants};
use afar_sys::signals::Signal;

use crate::limits::{LOST_GRACE, LOST_KILL_PATIENCE};
use crate::log::Log;
use crate::store::{Beginning, Directory, Disk, Journal, RealDisk, StoreError};
use crate::supervisor::MARK_VARIABLE;

/// Of how many processes that go on the log has the numbers.
const LEFT_SHOWN_MAX: usize = 20;

/// The status of a guardian whose supervisor did not tell its own.
const STATUS_UNKNOWN: u8 = 255;

/// Guards until the supervisor has ended, and cleans up behind one that has not ended in order. Returns
/// the status to end with: the supervisor's own.
pub(crate) fn run(mut guard: Guard, lock: OwnedFd, jobs: Option<&Path>, log: Log) -> u8 {
    let ended = loop {
        match guard.wait() {
            GuardEvent::Told(signal) => guard.pass_on(signal),
            GuardEvent::Ended(ended) => break ended,
        }
    };
    let status = status_of(ended.as_ref());
    if status != 0 {
        log.error(&format!("the supervisor {}", how(ended.as_ref())));
        if let Some(jobs) = jobs.filter(|jobs| jobs.is_dir())
            && let Err(error) = clean_up(&guard, jobs, log)
        {
            log.error(&format!("its jobs are not looked after: {error}"));
        }
    }
    drop(lock);
    status
}

fn status_of(ended: Option<&Ended>) -> u8 {
    match ended.map(|ended| ended.status) {
        Some(ExitStatus::Exited { code }) => code,
        Some(ExitStatus::Signaled { signal, .. }) => {
            u8::try_from(128 + signal.number()).unwrap_or(STATUS_UNKNOWN)
        }
        None => STATUS_UNKNOWN,
    }
}

fn how(ended: Option<&Ended>) -> String {
    match ended.map(|ended| ended.status) {
        Some(ExitStatus::Exited { code }) => format!("has ended with status {code}"),
        Some(ExitStatus::Signaled { signal, .. }) => format!("was ended by SIG{}", signal.name()),
        None => "has ended, nobody knows how".to_owned(),
    }
}

/// An unfinished job and what is found of it.
struct Lost {
    entry: Entry,
    tree: Tree,
    /// Processes of it that were there.
    found: BTreeSet<ProcessId>,
}

impl Lost {
    fn new(entry: &Entry, slice: Option<&Slice>, unreaped_until_ticks: u64) -> Self {
        let root = match &entry.started {
            Some(Started { pid, start_ticks, .. }) if *start_ticks > 0 => i32::try_from(*pid)
                .map_or_else(
                    |_| TreeRoot::of_unknown(),
                    |pid| TreeRoot::of_lost_job(pid, *start_ticks, unreaped_until_ticks),
                ),
            _ => TreeRoot::of_unknown(),
        };
        let mark = format!("{MARK_VARIABLE}={}", entry.intended.mark);
        let group = slice.and_then(|slice| slice.existing_group(&entry.intended.mark));
        let tree = Tree::new(root, mark.as_bytes(), group.map(Arc::new));
        Self { entry: entry.clone(), tree, found: BTreeSet::new() }
    }

    /// Counts who is there now; true if nobody is.
    fn is_gone(&mut self) -> bool {
        match self.tree.find() {
            Ok(found) => {
                self.found.extend(found.iter().map(|process| process.id));
                found.is_empty()
            }
            // Nobody can tell, so nothing is claimed.
            Err(_) => false,
        }
    }

    /// What is to be written down, now that nothing more is done.
    fn result(&self, at_us: u64) -> TreeEnded {
        let left = self.tree.find().map_or(self.found.len(), |left| left.len());
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        TreeEnded {
            job: self.entry.intended.job.clone(),
            at_us,
            ended: count(self.found.len().saturating_sub(left)),
            left: count(left),
        }
    }
}

/// Ends what unfinished jobs have left, and says so in the journal.
fn clean_up(guard: &Guard, jobs: &Path, log: Log) -> Result<(), StoreError> {
    let directory = Arc::new(Directory::open(jobs)?);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let beginning = Beginning {
        incarnation: None,
        boot: boot_id().unwrap_or_default(),
        since_boot: since_boot(),
        unix_us: now_us(),
    };
    let mut journal = Journal::open(&directory, &disk, &beginning, log)?.journal;
    let slice = Slice::current();
    let unreaped = guard.unreaped_until_ticks();
    let mut lost: Vec<Lost> = journal
        .ledger()
        .jobs()
        .filter(|entry| entry.is_unfinished() && entry.tree_ended.is_none())
        .map(|entry| Lost::new(entry, slice.as_ref(), unreaped))
        .collect();
    end_all(guard, &mut lost);
    let at_us = now_us();
    let mut left_over = 0;
    for job in &lost {
        let result = job.result(at_us);
        log.info(&format!(
            "job {} is lost: {} of its processes were ended, {} are left",
            result.job, result.ended, result.left
        ));
        left_over += result.left;
        if let Err(error) = journal.append(JournalRecord::TreeEnded(result)) {
            log.error(&format!("the journal does not say so: {error}"));
        }
    }
    if left_over > 0 {
        log.error(&format!("{left_over} processes of lost jobs can't be ended"));
    }
    tell_of_others(&lost, log);
    Ok(())
}

/// TERM, a grace for all of them together, KILL, and patience until they are gone. Nobody waits for what
/// can't be killed.
fn end_all(guard: &Guard, lost: &mut [Lost]) {
    for job in lost.iter_mut() {
        if !job.is_gone() {
            let _ = job.tree.kill(Signal::TERM);
            let _ = job.tree.kill(Signal::CONT);
        }
    }
    if wait_until_gone(guard, lost, LOST_GRACE) {
        return;
    }
    for job in lost.iter_mut() {
        if !job.is_gone() {
            let _ = job.tree.kill(Signal::KILL);
        }
    }
    wait_until_gone(guard, lost, LOST_KILL_PATIENCE);
}

fn wait_until_gone(guard: &Guard, lost: &mut [Lost], time: Duration) -> bool {
    // Each look reads all of /proc, so that the first one who is still there ends it.
    guard.wait_until(time, || lost.iter_mut().all(Lost::is_gone))
}

/// What goes on: what ended jobs have left behind, and what has hidden from its own.
fn tell_of_others(lost: &[Lost], log: Log) {
    let known: BTreeSet<ProcessId> =
        lost.iter().flat_map(|job| job.found.iter().copied()).collect();
    let others: Vec<Process> = find_descendants().unwrap_or_default();
    let others: Vec<i32> =
        others.iter().filter(|one| !known.contains(&one.id)).map(|one| one.id.pid).collect();
    if others.is_empty() {
        return;
    }
    let mut shown: Vec<String> =
        others.iter().take(LEFT_SHOWN_MAX).map(ToString::to_string).collect();
    if others.len() > LEFT_SHOWN_MAX {
        shown.push("…".to_owned());
    }
    log.info(&format!(
        "{} processes go on that belong to no unfinished job: {}",
        others.len(),
        shown.join(" ")
    ));
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guardian_ends_as_its_supervisor_did() {
        let usage = afar_sys::child::Usage {
            user: Duration::ZERO,
            system: Duration::ZERO,
            max_rss_bytes: 0,
            read_bytes: 0,
            written_bytes: 0,
        };
        let ended = |status| Ended { status, usage };
        let of = |status| status_of(Some(&ended(status)));
        assert_eq!(of(ExitStatus::Exited { code: 0 }), 0);
        assert_eq!(of(ExitStatus::Exited { code: 255 }), 255);
        assert_eq!(of(ExitStatus::Signaled { signal: Signal::KILL, core: false }), 137);
        assert_eq!(status_of(None), STATUS_UNKNOWN);
        let crashed = ended(ExitStatus::Signaled { signal: Signal::KILL, core: false });
        assert!(how(Some(&crashed)).contains("SIGKILL"));
    }
}
