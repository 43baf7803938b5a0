//! Ends what the jobs of a killed supervisor have left, and says what became of it: for its guardian, and for
//! the next supervisor where the guardian was killed too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use afar_core::journal::{Entry, TreeEnded};
use afar_sys::cgroup::Slice;
use afar_sys::process_tree::{Forest, ProcessId, Tree, TreeRoot};
use afar_sys::signals::Signal;

use crate::limits::{LOST_GRACE, LOST_KILL_PATIENCE};
use crate::log::Log;
use crate::supervisor::MARK_VARIABLE;

/// How often is looked whether all of them are gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Jobs whose supervisor is gone, and what is found of them.
#[derive(Debug)]
pub(crate) struct LostJobs {
    jobs: Vec<Entry>,
    forest: Forest,
    /// How many of each are left; `None` until that could be seen.
    left: Option<Vec<usize>>,
}

impl LostJobs {
    /// `unreaped_until_ticks` is known to the guardian, who adopts their processes
    /// ([`TreeRoot::of_lost_job`]). Whoever does not know it goes by their marks and cgroups alone.
    pub(crate) fn new(jobs: Vec<Entry>, unreaped_until_ticks: Option<u64>) -> Self {
        let slice = Slice::current();
        let trees = jobs.iter().map(|entry| tree(entry, slice.as_ref(), unreaped_until_ticks));
        let forest = Forest::new(trees.collect());
        Self { jobs, forest, left: None }
    }

    /// Everybody who was found.
    pub(crate) fn found(&self) -> BTreeSet<ProcessId> {
        self.forest.seen().iter().flatten().copied().collect()
    }

    /// TERM, a grace for all of them together, KILL, and patience until they are gone: no longer than both,
    /// however many there are and whatever they do. Nobody waits for what can't be killed.
    ///
    /// `pause` waits as long as it is told, or until there may be something new to be seen.
    pub(crate) fn end(&mut self, mut pause: impl FnMut(Duration)) {
        let grace = Instant::now() + LOST_GRACE;
        let patience = grace + LOST_KILL_PATIENCE;
        if self.is_gone() {
            return;
        }
        // What can't be read or signalled now is met again by the KILL. A stopped process acts on TERM
        // only when it is continued.
        let _ = self.forest.kill(Signal::TERM, grace);
        let _ = self.forest.kill(Signal::CONT, grace);
        if self.wait_until(grace, &mut pause) {
            return;
        }
        let _ = self.forest.kill(Signal::KILL, patience);
        self.wait_until(patience, &mut pause);
    }

    fn wait_until(&mut self, deadline: Instant, pause: &mut impl FnMut(Duration)) -> bool {
        loop {
            if self.is_gone() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            pause(left.min(LOOK_INTERVAL));
        }
    }

    /// Counts who is there now; true if nobody is.
    fn is_gone(&mut self) -> bool {
        // Where nobody can tell, nothing is claimed.
        let Ok(found) = self.forest.find() else { return false };
        let left: Vec<usize> = found.iter().map(Vec::len).collect();
        let is_gone = left.iter().all(|left| *left == 0);
        self.left = Some(left);
        is_gone
    }

    /// What is to be written down, and said, now that nothing more is done.
    pub(crate) fn results(&self, log: Log) -> Vec<TreeEnded> {
        let at_us = now_us();
        let mut left_over = 0;
        let mut results = Vec::with_capacity(self.jobs.len());
        for (index, (entry, found)) in self.jobs.iter().zip(self.forest.seen()).enumerate() {
            let left = self.left.as_ref().and_then(|left| left.get(index).copied());
            let left = left.unwrap_or(found.len());
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let (ended, left) = (count(found.len().saturating_sub(left)), count(left));
            let job = entry.intended.job.clone();
            log.info(&format!(
                "job {job} is lost: {ended} of its processes were ended, {left} are left"
            ));
            left_over += left;
            results.push(TreeEnded { job, at_us, ended, left });
        }
        if left_over > 0 {
            log.error(&format!("{left_over} processes of lost jobs can't be ended"));
        }
        results
    }
}

fn tree(entry: &Entry, slice: Option<&Slice>, unreaped_until_ticks: Option<u64>) -> Tree {
    let process = entry.started.as_ref().zip(unreaped_until_ticks).and_then(|(started, until)| {
        let pid = i32::try_from(started.pid).ok().filter(|_| started.start_ticks > 0)?;
        Some(TreeRoot::of_lost_job(pid, started.start_ticks, until))
    });
    let root = process.unwrap_or_else(TreeRoot::of_unknown);
    let mark = format!("{MARK_VARIABLE}={}", entry.intended.mark);
    let group = slice.and_then(|slice| slice.existing_group(&entry.intended.mark));
    Tree::new(root, mark.as_bytes(), group.map(Arc::new))
}

pub(crate) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use afar_core::job::JobKey;
    use afar_core::journal::{Intended, Summary};
    use afar_proto::message::{JobId, JobInfo, JobState};

    use super::*;

    /// A job that was begun, with this mark.
    fn begun(mark: &str) -> Entry {
        let job = JobId::new("a").unwrap();
        let summary = Summary::of(&JobInfo::new(job.clone(), JobState::Waiting, b"true"));
        let intended = Intended {
            job: JobKey { scope: String::new(), job },
            number: 1,
            at_us: 1,
            digest: [0; 32],
            mark: mark.to_owned(),
            spool: String::new(),
            summary,
            detached: false,
            keep_s: None,
        };
        Entry { intended, started: None, refused: None, ended: None, tree_ended: None }
    }

    fn sleeper(mark: &str) -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").env(MARK_VARIABLE, mark).stdin(Stdio::null());
        command.spawn().unwrap()
    }

    #[test]
    fn fault_56_many_lost_jobs_are_ended_together_and_each_is_counted() {
        let marks: Vec<String> =
            (0..200).map(|number| format!("lost-{}-{number}", std::process::id())).collect();
        let mut running = [&marks[3], &marks[150], &marks[150]].map(|mark| sleeper(mark));
        let mut other = sleeper("of-nobody");
        let mut lost = LostJobs::new(marks.iter().map(|mark| begun(mark)).collect(), None);
        let mut children = running.iter_mut();
        lost.end(|_| {
            // They are ours to be reaped.
            if let Some(child) = children.next() {
                child.wait().unwrap();
            }
        });
        let results = lost.results(Log::default());
        assert_eq!(results.len(), 200);
        let counts: Vec<(usize, u64, u64)> = results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.ended + result.left > 0)
            .map(|(index, result)| (index, result.ended, result.left))
            .collect();
        assert_eq!(counts, [(3, 1, 0), (150, 2, 0)]);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
