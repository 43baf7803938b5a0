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

use afar_core::journal::JournalRecord;
use afar_sys::boot::{boot_id, since_boot};
use afar_sys::child::{Ended, ExitStatus};
use afar_sys::guard::{Guard, GuardEvent};
use afar_sys::process_tree::{Process, ProcessId, find_descendants};

use crate::log::Log;
use crate::lost_jobs::{LostJobs, now_us};
use crate::store::{Beginning, Directory, Disk, Journal, RealDisk, StoreError};

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
    let unended = journal.ledger().jobs().filter(|entry| entry.has_unended_tree()).cloned();
    let mut lost = LostJobs::new(unended.collect(), Some(guard.unreaped_until_ticks()));
    // An adopted process's own descendants tell the guardian nothing: so it looks by itself, too.
    lost.end(|time| guard.pause(time));
    for result in lost.results(log) {
        if let Err(error) = journal.append(JournalRecord::TreeEnded(result)) {
            log.error(&format!("the journal does not say so: {error}"));
        }
    }
    tell_of_others(&lost.found(), log);
    Ok(())
}

/// What goes on: what ended jobs have left behind, and what has hidden from its own.
fn tell_of_others(known: &BTreeSet<ProcessId>, log: Log) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use afar_sys::signals::Signal;

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
