//! What happens when the user leaves a job before its end.
//!
//! Nothing is said of a job that nobody has said: that it is cancelled is known once the server has
//! answered so, and a link can be dead for most of a minute before anybody knows.

use std::time::Duration;

use afar_client::{Job, JobEvent, JobRef};
use tokio::time::Instant;

use super::ending::{Ending, Left};
use super::signals::Action;
use super::{Runner, Step};

/// How long the server may take to say that it ends the job: what a person waits for who has asked
/// three times.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(2);

/// What becomes of a job that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It is ended.
    Cancels,
    /// It is ended, and a link that is lost ends it too.
    Kills,
    /// It goes on.
    Keeps,
    /// It goes on as far as it is in our hands: it was there before us.
    Returns,
    /// It goes on, and any signal is meant for us and not for it.
    AtOnce,
}

impl Runner<'_> {
    /// Leaves the job.
    pub(super) async fn leave(mut self) -> Ending {
        // Whatever has come to an end meanwhile is the truth, even if nobody reads our output.
        if let Some(ending) = self.ending.take() {
            return ending;
        }
        let away = self.status_line.is_away();
        let leaving = self.options.leaving;
        let ends = matches!(leaving, Leaving::Cancels | Leaving::Kills);
        // Wherever the server has got with it: a handle that is dropped without this ends the job.
        if let Some(job) = self.job.as_ref().filter(|_| !ends) {
            job.detach();
        }
        let left = match leaving {
            _ if self.known.is_none() => Left::Unanswered,
            _ if self.has_exited() => Left::Ended,
            Leaving::Returns if away => Left::AwayFromAnothers,
            Leaving::Keeps | Leaving::Returns | Leaving::AtOnce => Left::Alone,
            // Dropping the job cancels it, but there is nobody who could be told.
            Leaving::Cancels if away => Left::Away,
            Leaving::Kills if away => Left::AwayToItsEnd,
            Leaving::Cancels | Leaving::Kills => match self.cancel().await {
                Some(left) => left,
                None => return self.ending.take().unwrap_or_else(|| self.broken_off()),
            },
        };
        self.status_line.clear(self.output);
        let Some(job) = self.job.take() else { return self.broken_off() };
        let id = self.known.as_ref().map_or_else(|| job.id().clone(), |known| known.job.clone());
        let place = (self.options.job_name.0)(&id);
        Ending::left(&self.target, &id, self.known.as_ref(), (left, &place))
    }

    fn has_exited(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.exit.is_some())
    }

    /// Has the server end the job, and waits for its word; `None` if the job has come to its end
    /// meanwhile. Another signal ends the waiting.
    async fn cancel(&mut self) -> Option<Left> {
        let Some(id) = self.known.as_ref().map(|known| known.job.clone()) else {
            return Some(Left::Unanswered);
        };
        let (session, job) = (self.session, JobRef::exact(id));
        let mut told = std::pin::pin!(session.kill(&job, None));
        let deadline = Instant::now() + CONFIRMED_WITHIN;
        let mut answered = false;
        loop {
            let Self { job, output, signals, .. } = self;
            let step = tokio::select! {
                answer = &mut told, if !answered => match answer {
                    Ok(_) => return Some(Left::Cancelled),
                    // It may have ended in this moment: then its end is on the way.
                    Err(_) => {
                        answered = true;
                        continue;
                    }
                },
                Some(event) = next(job), if output.has_room() => Step::Event(Some(event)),
                () = output.changed() => Step::Output,
                _ = signals.next_ending() => Step::Signal(Action::Leave),
                () = tokio::time::sleep_until(deadline) => Step::Signal(Action::Leave),
            };
            match step {
                Step::Event(Some(event)) => self.handle_event(event),
                Step::Event(None) | Step::Output | Step::AtTerminal(_) => {}
                Step::Signal(_) => {
                    return Some(match self.has_exited() {
                        true => Left::Ended,
                        false => Left::Unconfirmed,
                    });
                }
            }
            if self.ending.is_some() {
                return None;
            }
        }
    }
}

async fn next(job: &mut Option<Job>) -> Option<JobEvent> {
    match job {
        Some(job) => job.next().await,
        None => None,
    }
}
