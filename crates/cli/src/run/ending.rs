//! How a run ended for whoever has started it: the outcome, what is said, and the exit status.

use afar_client::{End, Error, Finished, JobId, Outcome, Phase, Started};
use afar_sys::signals::Signal;

use super::Known;
use crate::console::{self, Verbosity};
use crate::exit::Exit;

/// How it ended, and what afar ends with for it.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    pub(super) error: Option<Error>,
    pub(super) exit: Exit,
    /// Said in one line, where there is no error that says it.
    pub(super) remark: Option<Remark>,
    /// Whether the job was left as it was meant to be, so that nothing is to be said of its end.
    pub(super) detached: bool,
}

/// A line about an end that no error tells of.
#[derive(Debug)]
pub(super) struct Remark {
    pub(super) line: String,
    /// The least verbosity at which it is said.
    pub(super) wanted: Verbosity,
}

impl Ending {
    /// There was no job, as far as is known here. `job` is the one that was asked for, and what other
    /// commands call it.
    pub(super) fn early(target: &str, job: Option<(&JobId, &str)>, error: Error) -> Self {
        let (phase, started) = (error.phase(), error.started());
        let mut outcome = Outcome::not_started(target, None, phase, error.reason());
        let mut remark = None;
        if started != Started::No {
            outcome.started = started;
            outcome.end = End::Unknown;
            outcome.job = job.map(|(id, _)| id.to_string());
            remark = job.map(|(_, place)| Remark {
                line: format!("{}: {}", phase.as_str(), ends_it(place)),
                wanted: Verbosity::Quiet,
            });
        }
        outcome.error = Some(error.to_string());
        Self { outcome, error: Some(error), exit: Exit::Failed, remark, detached: false }
    }

    /// A signal ended us while we were still on the way; `in_flight` is whether the request may have
    /// left already. `job` is as with [`Ending::early`].
    pub(super) fn interrupted(
        in_flight: bool,
        target: &str,
        job: Option<(&JobId, &str)>,
        signal: Signal,
    ) -> Self {
        let mut outcome = Outcome::not_started(target, None, Phase::Connect, "cancelled");
        let mut ends = String::new();
        if in_flight {
            outcome.phase = Phase::Authenticate;
            outcome.started = Started::Unknown;
            outcome.end = End::Unknown;
            outcome.job = job.map(|(id, _)| id.to_string());
            ends = job.map(|(_, place)| format!("; {}", ends_it(place))).unwrap_or_default();
        }
        let clause = console::started_clause(outcome.started);
        let line = format!("{}: ended by SIG{signal}; {clause}{ends}", outcome.phase.as_str());
        outcome.error = Some(line.clone());
        let remark = Some(Remark { line, wanted: Verbosity::Normal });
        Self { outcome, error: None, exit: Exit::Signal(signal), remark, detached: false }
    }

    pub(super) fn finished(finished: Finished) -> Self {
        let exit = Exit::Status(finished.outcome.status());
        Self {
            outcome: finished.outcome,
            error: finished.error,
            exit,
            remark: None,
            detached: false,
        }
    }

    /// The job goes on without us, as was asked for at its start.
    pub(super) fn detached(target: &str, job: &JobId, started_at_us: Option<u64>) -> Self {
        let outcome = unfinished(target, job, started_at_us);
        Self { outcome, error: None, exit: Exit::Status(0), remark: None, detached: true }
    }

    /// The user has left the job, on purpose, to return to it. `place` is what other commands call it.
    pub(super) fn put_aside(target: &str, known: &Known, place: &str) -> Self {
        let line = format!("left; `afar attach {place}` returns to it");
        let remark = Some(Remark { line, wanted: Verbosity::Normal });
        Self { remark, ..Self::detached(target, &known.job, known.started_at_us) }
    }

    /// The same for who only looked on: this program ends as the signal ends any.
    pub(super) fn gone(left: Self, signal: Signal) -> Self {
        Self { exit: Exit::Signal(signal), remark: None, detached: true, ..left }
    }

    /// The user has left a job, of which `known` is known. An end is not made up: what is not known
    /// stays so. `place` is what other commands call the job.
    pub(super) fn left(
        target: &str,
        job: &JobId,
        known: Option<&Known>,
        (left, place): (Left, &str),
    ) -> Self {
        let mut outcome = unfinished(target, job, known.and_then(|known| known.started_at_us));
        let mut exit = Exit::Failed;
        match left {
            Left::Cancelled => {
                outcome.end = End::Cancelled;
                exit = Exit::Status(130);
            }
            Left::Unanswered => {
                outcome.phase = Phase::Spawn;
                outcome.started = Started::Unknown;
            }
            _ => {}
        }
        if let Some(report) = known.and_then(|known| known.exit.as_ref()) {
            outcome = outcome.with_exit(report);
            outcome.phase = Phase::Stream;
        }
        let clause = console::started_clause(outcome.started);
        let line = format!("{}: {}; {clause}", outcome.phase.as_str(), left.describe(place));
        if exit == Exit::Failed {
            outcome.error = Some(line.clone());
        }
        let wanted = if left == Left::Cancelled { Verbosity::Normal } else { Verbosity::Quiet };
        Self { outcome, error: None, exit, remark: Some(Remark { line, wanted }), detached: false }
    }
}

/// How the user has left a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The server has said that it ends it.
    Cancelled,
    /// The server was asked to end it, and has not said that it does.
    Unconfirmed,
    /// It was to go on.
    Alone,
    /// There was no connection over which it could have been ended.
    Away,
    /// The same, for a job that a lost connection ends.
    AwayToItsEnd,
    /// The same, for a job of which is not known here whether it is one of those.
    AwayFromAnothers,
    /// Its process had ended, and not all of its output had come.
    Ended,
    /// The server had not said that there is one.
    Unanswered,
}

impl Left {
    fn describe(self, place: &str) -> String {
        let ends = ends_it(place);
        match self {
            Self::Cancelled => "left, and the command is cancelled".to_owned(),
            Self::Unconfirmed => {
                format!("left, and nobody has confirmed that the command is ended; {ends}")
            }
            Self::Alone => format!("left, and the command goes on: {place}"),
            Self::Away => {
                format!("left without a connection, so nobody has ended the command; {ends}")
            }
            Self::AwayToItsEnd => format!(
                "left without a connection; the server ends the command once it has noticed that \
                 (--on-disconnect kill); {ends} before"
            ),
            Self::AwayFromAnothers => format!(
                "left without a connection; the command goes on, unless it was started with \
                 --on-disconnect kill: {place}"
            ),
            Self::Ended => {
                "left before all output of the command had come; it has ended".to_owned()
            }
            Self::Unanswered => format!("left before the server had answered; {ends}"),
        }
    }
}

fn ends_it(place: &str) -> String {
    format!("`afar kill {place}` ends it")
}

/// A job that runs, of whose end nothing is known here.
fn unfinished(target: &str, job: &JobId, started_at_us: Option<u64>) -> Outcome {
    let mut outcome = Outcome::not_started(target, Some(job.as_str()), Phase::Run, "");
    outcome.started = Started::Yes;
    outcome.end = End::Unknown;
    outcome.started_at = started_at_us;
    outcome
}

#[cfg(test)]
mod tests {
    use afar_client::{ExitReport, Receipt};

    use super::*;

    fn left(left: Left, known: Option<&Known>) -> Ending {
        let job = JobId::new("j").unwrap();
        Ending::left("host", &job, known, (left, "ann@host/j"))
    }

    fn known(exit: Option<ExitReport>) -> Known {
        Known { job: JobId::new("j").unwrap(), started_at_us: Some(7), exit }
    }

    #[test]
    fn who_leaves_before_the_answer_is_told_that_nothing_is_known() {
        let ending = left(Left::Unanswered, None);
        assert_eq!(ending.outcome.started, Started::Unknown);
        assert_eq!((&ending.outcome.end, ending.exit), (&End::Unknown, Exit::Failed));
        let remark = ending.remark.unwrap();
        assert!(remark.line.ends_with("whether the command was started is not known"));
        assert!(remark.line.contains("`afar kill ann@host/j` ends it"), "{}", remark.line);
        assert_eq!(remark.wanted, Verbosity::Quiet);
    }

    #[test]
    fn a_job_that_was_perhaps_started_has_a_name_before_any_answer() {
        let id = JobId::new("j").unwrap();
        let job = Some((&id, "ann@host/j"));
        let lost = |started| Error::Broken { phase: Phase::Run, started, message: "x".to_owned() };
        let ends = "`afar kill ann@host/j` ends it";

        let ending = Ending::early("host", job, lost(Started::Unknown));
        assert_eq!(ending.outcome.job.as_deref(), Some("j"));
        assert!(ending.remark.unwrap().line.ends_with(ends));
        let ending = Ending::interrupted(true, "host", job, Signal::INT);
        assert_eq!(ending.outcome.job.as_deref(), Some("j"));
        assert!(ending.remark.unwrap().line.ends_with(ends));

        // What was not started is nobody's to end.
        let ending = Ending::early("host", job, lost(Started::No));
        assert!(ending.outcome.job.is_none() && ending.remark.is_none());
        let ending = Ending::interrupted(false, "host", job, Signal::INT);
        assert!(ending.outcome.job.is_none());
        assert!(!ending.remark.unwrap().line.contains("afar kill"));
    }

    #[test]
    fn who_leaves_a_command_that_runs_has_cancelled_it() {
        let ending = left(Left::Cancelled, Some(&known(None)));
        assert_eq!((ending.outcome.started, ending.outcome.started_at), (Started::Yes, Some(7)));
        assert_eq!((&ending.outcome.end, ending.exit), (&End::Cancelled, Exit::Status(130)));
        assert_eq!(ending.remark.unwrap().wanted, Verbosity::Normal);
    }

    #[test]
    fn fault_66_an_end_that_nobody_has_confirmed_is_not_made_up() {
        for how in
            [Left::Unconfirmed, Left::Alone, Left::Away, Left::AwayToItsEnd, Left::AwayFromAnothers]
        {
            let ending = left(how, Some(&known(None)));
            let Ending { outcome, exit, .. } = &ending;
            assert_eq!((&outcome.end, outcome.started), (&End::Unknown, Started::Yes), "{how:?}");
            assert_eq!((*exit, outcome.started_at), (Exit::Failed, Some(7)));
            let remark = ending.remark.as_ref().unwrap();
            assert!(remark.line.contains("ann@host/j"), "{}", remark.line);
            assert_eq!(outcome.error.as_ref(), Some(&remark.line));
            assert_eq!(remark.wanted, Verbosity::Quiet);
        }
        let goes_on = |how| left(how, Some(&known(None))).remark.unwrap().line.contains("goes on");
        assert!(goes_on(Left::Alone) && !goes_on(Left::Away) && !goes_on(Left::AwayToItsEnd));
    }

    #[test]
    fn an_end_that_was_told_is_known_and_no_success_without_its_output() {
        let (end, receipt) =
            (End::Exited { code: 0 }, Receipt { wall_us: 5, ..Receipt::default() });
        let ending =
            left(Left::Ended, Some(&known(Some(ExitReport { end: end.clone(), receipt }))));
        assert_eq!((&ending.outcome.end, ending.outcome.phase), (&end, Phase::Stream));
        assert_eq!((ending.exit, ending.outcome.status()), (Exit::Failed, 255));
        assert!(ending.outcome.wall_s.is_some());
    }
}
