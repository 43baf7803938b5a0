//! What has happened, and the rules it is held against. This knows nothing of how it came about.

use std::collections::BTreeMap;

use afar_proto::connection::{Stream, Verdict};
use afar_proto::outcome::{End, Seal, Started};
use afar_proto::seal::Sealer;

use super::process::content;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// An id has started more than one process.
    StartedTwice,
    /// A process was started of which somebody was told that it was not.
    StartedAfterAll,
    /// A byte came twice, too early, or was never written there.
    WrongBytes,
    /// Bytes are missing without a name or a reason.
    LostBytes,
    /// The process read something else than was sent.
    WrongStdin,
    /// An end was told that did not happen.
    MadeUpEnd,
    /// Two were told different ends of one job.
    TwoEnds,
    /// A seal is not of what was produced, or its verdict not of what came.
    WrongSeal,
    /// Somebody waits for ever.
    Hang,
}

/// How a job has turned out for somebody.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Sealed {
        seal: Box<Seal>,
        verdict: Verdict,
    },
    /// Not started, or not known any more.
    Refused {
        started: Started,
    },
    /// Somebody else has taken it, or it was left on purpose.
    Left,
}

/// What is true of a job.
#[derive(Debug, Default)]
struct Truth {
    started: bool,
    end: Option<End>,
    /// What was written to its pipes when it ended.
    produced: [u64; 2],
    /// Whether somebody wanted its end, or its time limit has passed.
    end_wanted: bool,
    timed_out: bool,
    /// Whether nobody may have watched it at some time since it was asked for.
    unwatched: bool,
    /// Whether output may be missing for some: there is a reason that was told.
    excused: bool,
    /// Whether nobody can know any more if it was started.
    forgotten: bool,
    /// Whether what is written of it may be damaged.
    rotten: bool,
    told_not_started: bool,
    told_end: Option<End>,
}

/// What somebody has of a stream of a job.
#[derive(Clone, Debug, Default)]
struct Seen {
    next: u64,
    gap: bool,
    stopped: bool,
    /// Whether it came when others had had something already.
    late: bool,
}

/// Everything that has happened so far.
#[derive(Debug, Default)]
pub(crate) struct History {
    jobs: BTreeMap<usize, Truth>,
    /// How many processes each id has started.
    starts: BTreeMap<String, u32>,
    /// By client and job.
    seen: BTreeMap<(usize, usize), [Seen; 2]>,
    violations: Vec<(Violation, String)>,
    counts: Truthful,
    /// What happened, for people.
    pub(crate) log: Vec<String>,
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

impl History {
    pub(crate) fn note(&mut self, line: String) {
        self.log.push(line);
    }

    /// Whether a rule was broken.
    pub(crate) fn is_broken(&self) -> bool {
        !self.violations.is_empty()
    }

    fn broken(&mut self, rule: Violation, what: String) {
        self.log.push(format!("VIOLATION {rule:?}: {what}"));
        self.violations.push((rule, what));
    }

    fn job(&mut self, job: usize) -> &mut Truth {
        self.jobs.entry(job).or_default()
    }

    // What is true.

    pub(crate) fn started(&mut self, job: usize, id: &str) {
        let starts = self.starts.entry(id.to_owned()).or_default();
        *starts += 1;
        let again = *starts > 1;
        self.counts.starts += 1;
        let truth = self.job(job);
        truth.started = true;
        if again {
            self.broken(Violation::StartedTwice, format!("job {job}"));
        } else if truth.told_not_started {
            self.broken(Violation::StartedAfterAll, format!("job {job}"));
        }
    }

    pub(crate) fn ended(&mut self, job: usize, end: &End, produced: [u64; 2]) {
        let truth = self.job(job);
        truth.end = Some(end.clone());
        truth.produced = produced;
    }

    pub(crate) fn wrong_stdin(&mut self, job: usize, what: &str) {
        self.broken(Violation::WrongStdin, format!("job {job}: {what}"));
    }

    pub(crate) fn end_wanted(&mut self, job: usize) {
        self.job(job).end_wanted = true;
    }

    pub(crate) fn timed_out(&mut self, job: usize) {
        self.job(job).timed_out = true;
    }

    /// Nobody may have watched the job: its supervisor has died.
    pub(crate) fn unwatched(&mut self, job: usize) {
        let truth = self.job(job);
        truth.unwatched = true;
        truth.excused |= truth.started;
    }

    /// What is written of the job may be damaged: it may be forgotten, or its end may.
    pub(crate) fn rotten(&mut self, job: usize) {
        let truth = self.job(job);
        (truth.rotten, truth.unwatched, truth.forgotten) = (true, true, true);
        truth.excused |= truth.started;
    }

    /// Nobody can know any more whether the job was started.
    pub(crate) fn forgotten(&mut self, job: usize) {
        self.job(job).forgotten = true;
    }

    /// Output of the job may be missing for some, as its owner has wished.
    pub(crate) fn excuse(&mut self, job: usize) {
        self.job(job).excused = true;
    }

    // What somebody was told.

    fn seen(&mut self, client: usize, job: usize, stream: Stream) -> &mut Seen {
        &mut self.seen.entry((client, job)).or_default()[index(stream)]
    }

    pub(crate) fn got(
        &mut self,
        client: usize,
        job: usize,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
    ) {
        let seen = self.seen(client, job, stream);
        let expected = seen.next;
        seen.next = offset + bytes.len() as u64;
        self.counts.bytes += bytes.len() as u64;
        if offset != expected {
            let what = format!("client {client}, job {job}: {offset} where {expected} is next");
            self.broken(Violation::WrongBytes, what);
        } else if bytes != content(job, stream, offset, bytes.len()) {
            let what = format!("client {client}, job {job}: other bytes at {offset}");
            self.broken(Violation::WrongBytes, what);
        }
    }

    /// The stream goes on at `to` for this client.
    pub(crate) fn goes_on(&mut self, client: usize, job: usize, stream: Stream, to: u64) {
        let excused = self.job(job).excused;
        let seen = self.seen(client, job, stream);
        let from = std::mem::replace(&mut seen.next, to);
        if to == from {
            return;
        }
        seen.gap = true;
        self.counts.gaps += 1;
        let seen = self.seen(client, job, stream);
        let late = seen.late;
        let what = format!("client {client}, job {job}: {stream:?} goes on at {to} behind {from}");
        if to < from {
            self.broken(Violation::WrongBytes, what);
        } else if !excused && !late {
            self.broken(Violation::LostBytes, what);
        }
    }

    /// This client comes to a job that others had before it.
    pub(crate) fn joins(&mut self, client: usize, job: usize) {
        for seen in self.seen.entry((client, job)).or_default() {
            seen.late = true;
        }
    }

    /// This client wants no more of a stream.
    pub(crate) fn stopped(&mut self, client: usize, job: usize, stream: Stream) {
        self.seen(client, job, stream).stopped = true;
        // It is closed at its source: nobody else gets more of it.
        self.job(job).excused = true;
    }

    pub(crate) fn told(&mut self, client: usize, job: usize, told: &Told) {
        match told {
            Told::Sealed { seal, verdict } => {
                match verdict {
                    Verdict::Whole => self.counts.whole += 1,
                    _ => self.counts.suffixes += 1,
                }
                self.check_end(client, job, &seal.end);
                self.check_seal(client, job, seal, *verdict);
            }
            Told::Refused { started: Started::No } => {
                let truth = self.job(job);
                truth.told_not_started = true;
                if truth.started {
                    self.broken(Violation::StartedAfterAll, format!("client {client}, job {job}"));
                }
            }
            Told::Refused { .. } => {
                self.counts.lost += 1;
                let truth = self.job(job);
                // (Where nobody could know yet, it may have been said before that end, and come late.)
                if truth.told_end.is_some() && !truth.rotten && !truth.forgotten {
                    let what = format!("client {client}, job {job}: its end was told already");
                    self.broken(Violation::TwoEnds, what);
                } else if !truth.unwatched && !truth.forgotten {
                    let what = format!("client {client}, job {job}: unknown without a reason");
                    self.broken(Violation::MadeUpEnd, what);
                }
            }
            Told::Left => {}
        }
    }

    fn check_end(&mut self, client: usize, job: usize, told: &End) {
        let truth = self.job(job);
        let happened = match told {
            End::Timeout => truth.timed_out && truth.end.is_some(),
            End::Cancelled => truth.end_wanted && truth.end.is_some(),
            End::Lost => truth.unwatched,
            other => truth.end.as_ref() == Some(other),
        };
        let before = truth.told_end.get_or_insert_with(|| told.clone()).clone();
        let what = format!("client {client}, job {job}: told {told:?}, is {:?}", truth.end);
        if !happened {
            self.broken(Violation::MadeUpEnd, what);
        } else if before != *told {
            self.broken(Violation::TwoEnds, format!("{what}, before {before:?}"));
        }
    }

    fn check_seal(&mut self, client: usize, job: usize, seal: &Seal, verdict: Verdict) {
        let produced = self.job(job).produced;
        let seen = self.seen.entry((client, job)).or_default().clone();
        let (mut expected, mut either) = (Verdict::Whole, false);
        let mut wrong = Vec::new();
        for stream in Stream::OUTPUTS {
            let Some(claimed) = seal.streams.get(stream.name()) else {
                wrong.push(format!("nothing of {stream:?}"));
                continue;
            };
            let (produced, seen) = (produced[index(stream)], &seen[index(stream)]);
            let mut sealer = Sealer::new();
            let length = usize::try_from(claimed.bytes.min(produced)).expect("in memory");
            sealer.update(&content(job, stream, 0, length));
            if claimed.bytes > produced || (claimed.complete && claimed.bytes != produced) {
                wrong.push(format!("{} bytes of {produced}", claimed.bytes));
            } else if !sealer.matches(claimed) {
                wrong.push("the hash of something else".to_owned());
            }
            if seen.stopped {
                // Whether it had ended before it was stopped, nobody else can know.
                either |= seen.gap;
                continue;
            }
            if seen.next != claimed.bytes {
                wrong.push(format!("{} bytes came of {}", seen.next, claimed.bytes));
            }
            if seen.gap {
                expected = Verdict::Suffix;
            }
        }
        let suffix = either && verdict == Verdict::Suffix;
        if verdict != expected && !suffix {
            wrong.push(format!("{verdict:?} instead of {expected:?}"));
        }
        if !wrong.is_empty() {
            let what = format!("client {client}, job {job}: {}", wrong.join(", "));
            self.broken(Violation::WrongSeal, what);
        }
    }

    /// Somebody still waits, though nothing more will happen.
    pub(crate) fn hangs(&mut self, what: String) {
        self.broken(Violation::Hang, what);
    }
}

/// What a run that broke no rule was like, so that a test can see that it was one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Truthful {
    pub(crate) starts: u64,
    pub(crate) bytes: u64,
    pub(crate) whole: u64,
    pub(crate) suffixes: u64,
    pub(crate) lost: u64,
    pub(crate) gaps: u64,
}

impl History {
    /// What there is to say in the end, and how it came to that.
    pub(crate) fn verdict(self) -> (Result<Truthful, Violation>, Vec<String>) {
        let broken = self.violations.into_iter().next();
        (broken.map_or(Ok(self.counts), |(rule, _)| Err(rule)), self.log)
    }
}
