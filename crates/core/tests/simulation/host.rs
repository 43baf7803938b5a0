//! The machine that the supervisor runs on: its clock, its processes, its disk, and the moments at
//! which the supervisor may be killed.

use std::collections::BTreeMap;
use std::time::Duration;

use afar_core::journal::{JOURNAL_MAGIC, JournalRecord};
use afar_proto::Instant;
use afar_proto::message::{JobId, OpenSpec};

use super::Sabotage;
use super::history::History;
use super::process::{Process, Step};
use super::rng::Rng;

/// The supervisor was killed at a named write, or between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Killed;

/// A job that some client will ask for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) spec: OpenSpec,
    pub(crate) program: Vec<Step>,
    pub(crate) stdin_bytes: u64,
    pub(crate) ignores_term: bool,
    /// Whether the process can't be started at all.
    pub(crate) fails: bool,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) history: History,
    pub(crate) plans: Vec<Plan>,
    pub(crate) sabotage: Option<Sabotage>,
    /// The smallest windows, as a power of two: for much output, tiny ones take for ever.
    pub(crate) window_bits: u64,
    /// Which boot this is, and when it began.
    pub(crate) boot: u64,
    pub(crate) booted_at: Instant,
    /// Since when the supervisor remembers every request.
    pub(crate) vouched_since: Instant,
    /// The journal's bytes.
    pub(crate) journal: Vec<u8>,
    pub(crate) processes: BTreeMap<u32, Process>,
    /// Whose request an id is.
    pub(crate) asked: BTreeMap<JobId, usize>,
    next_pid: u32,
    /// Whether the journal is to be damaged when nobody writes it.
    pub(crate) rots: bool,
    /// After so many more of the moments at which it can happen, the supervisor is killed.
    pub(crate) killed_in: Option<u32>,
}

impl Host {
    pub(crate) fn new(rng: Rng, plans: Vec<Plan>, sabotage: Option<Sabotage>) -> Self {
        let now = Instant::ZERO.after(Duration::from_secs(1_000));
        Self {
            now,
            rng,
            history: History::default(),
            plans,
            sabotage,
            window_bits: 8,
            boot: 1,
            booted_at: Instant::ZERO,
            vouched_since: Instant::ZERO,
            journal: JOURNAL_MAGIC.to_vec(),
            processes: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_pid: 100,
            rots: false,
            killed_in: None,
        }
    }

    pub(crate) fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    pub(crate) fn note(&mut self, line: impl std::fmt::Display) {
        let at = self.now.as_micros();
        self.history.note(format!("{:>6}.{:06} {line}", at / 1_000_000, at % 1_000_000));
    }

    /// Time since boot.
    pub(crate) fn boottime(&self) -> Instant {
        let since = self.now.since(self.booted_at);
        Instant::ZERO.after(since)
    }

    pub(crate) fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    /// The plan that a request is from; two can have the same id.
    pub(crate) fn plan_of(&self, spec: &OpenSpec) -> Option<usize> {
        let same = |plan: &Plan| plan.spec.job == spec.job && plan.spec.digest() == spec.digest();
        self.plans.iter().position(same)
    }

    /// A bit of what was written last is another one.
    pub(crate) fn rot(&mut self) {
        let recent = self.journal.len().min(1_500);
        if recent == 0 {
            return;
        }
        let at = self.journal.len() - 1 - self.rng.index(recent);
        self.journal[at] ^= 1 << self.rng.below(8);
        self.note(format_args!("a bit of the journal rots at {at}"));
        (0..self.plans.len()).for_each(|job| self.history.rotten(job));
    }

    fn counts_down(&mut self) -> bool {
        let Some(left) = &mut self.killed_in else { return false };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return false;
        }
        self.killed_in = None;
        true
    }

    /// A moment between two steps of J-1.4.
    pub(crate) fn step(&mut self, name: &str) -> Result<(), Killed> {
        if self.counts_down() {
            self.note(format_args!("the supervisor is killed: {name}"));
            return Err(Killed);
        }
        Ok(())
    }

    /// A named write to the journal, before, in the middle of, or behind which it can be killed.
    pub(crate) fn write(&mut self, name: &str, record: &JournalRecord) -> Result<(), Killed> {
        let before = self.journal.len();
        record.push_to(&mut self.journal, 0).expect("records of the simulation are short");
        if !self.counts_down() {
            return Ok(());
        }
        let written = self.journal.len() - before;
        let kept = match self.rng.below(3) {
            0 => 0,
            1 => self.rng.index(written),
            _ => written,
        };
        self.journal.truncate(before + kept);
        self.note(format_args!("the supervisor is killed writing {name}: {kept} of {written}"));
        Err(Killed)
    }

    /// Starts the process of a job.
    pub(crate) fn spawn(&mut self, job: usize) -> u32 {
        let pid = self.next_pid;
        self.next_pid += 1;
        let plan = &self.plans[job];
        let process = Process::new(job, &plan.program, plan.ignores_term);
        self.processes.insert(pid, process);
        self.history.started(job, plan.spec.job.as_str());
        self.note(format_args!("job {job} is started as {pid}"));
        pid
    }

    /// Lets the processes go on; whether anything has happened.
    pub(crate) fn run_processes(&mut self) -> bool {
        let mut moved = false;
        let now = self.now;
        for process in self.processes.values_mut() {
            let over = process.end.is_some();
            let ran = process.run(now);
            moved |= ran;
            if std::mem::take(&mut process.read_wrong) {
                self.history.wrong_stdin(process.job, "it read other bytes than were sent");
            }
            if let Some(end) = process.end.as_ref().filter(|_| !over) {
                let produced = [&process.outputs[0], &process.outputs[1]].map(|o| o.written);
                self.history.ended(process.job, end, produced);
                self.history.note(format!("job {} has ended: {end:?}, {produced:?}", process.job));
            }
        }
        moved
    }

    /// A process that was told to end has, or will.
    pub(crate) fn told_to_end(&mut self, pid: u32, kill: bool) {
        let Some(process) = self.processes.get_mut(&pid).filter(|p| p.end.is_none()) else {
            return;
        };
        if kill {
            process.kill();
        } else {
            process.terminate();
        }
        if let Some(end) = process.end.clone() {
            let produced = [&process.outputs[0], &process.outputs[1]].map(|o| o.written);
            let job = process.job;
            self.history.ended(job, &end, produced);
            self.note(format_args!("job {job} was ended: {end:?}, {produced:?}"));
        }
    }

    /// What reads and writes the pipes of the processes is gone.
    pub(crate) fn close_pipes(&mut self) {
        for process in self.processes.values_mut() {
            process.stdin_ended = true;
            for output in &mut process.outputs {
                output.closed = true;
                // What waits in its write is let go, and meets the closed pipe.
                output.taken = output.written;
            }
        }
    }

    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.processes.values().filter_map(Process::wakes_at).min()
    }
}
