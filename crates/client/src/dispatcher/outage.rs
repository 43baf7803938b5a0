//! The time between two links: what is worth another attempt, when, and for how long (`J-4.1`,
//! `J-4.3`).

use std::time::Duration;

use afar_net::driver::Driver;
use afar_net::transport::AnyTransport;
use afar_proto::auth::AuthError;
use afar_proto::error::ConnectionError;
use afar_proto::message::GoodbyeCode;
use afar_proto::outcome::Phase;
use tokio::time::Instant;

use super::Connecting;
use crate::backoff::Backoff;
use crate::error::Error;

/// A link was lost, and there is no other one yet. Time is the runtime's: no wall clock has a part
/// in it, and a machine that sleeps does not use it up.
#[derive(Debug)]
pub(super) struct Outage {
    deadline: Instant,
    limit: Duration,
    backoff: Backoff,
    attempts: u32,
    /// How the first link was lost.
    cause: Option<ConnectionError>,
    /// What came of the last attempt.
    last: Option<String>,
}

impl Outage {
    pub(super) fn new(now: Instant, limit: Duration) -> Self {
        let deadline = now + limit;
        Self { deadline, limit, backoff: Backoff::default(), attempts: 0, cause: None, last: None }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn cause(&self) -> &ConnectionError {
        self.cause.as_ref().unwrap_or(&ConnectionError::Cut)
    }

    /// A link was lost, the first one or one on which the server had not said anything yet.
    pub(super) fn failed(&mut self, error: ConnectionError) {
        if self.cause.is_none() {
            self.cause = Some(error);
        } else {
            self.last = Some(error.to_string());
        }
    }

    /// An attempt came to nothing.
    pub(super) fn note(&mut self, error: &Error) {
        // That the time is over tells nothing of what kept the host from answering.
        if !matches!(error, Error::TooLate) || self.last.is_none() {
            self.last = Some(error.to_string());
        }
    }

    /// When to try again; `None` once the user's time is over.
    pub(super) fn next_attempt(&mut self, at_once: bool) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.deadline {
            return None;
        }
        self.attempts = self.attempts.saturating_add(1);
        // One that gives way to another process is there again in an instant, but not for ever.
        if at_once && self.attempts == 1 {
            return Some(now);
        }
        let mut random = [0; 8];
        // Without random bytes the wait is as long as it may be: late is better than in a wave.
        let random = match aws_lc_rs::rand::fill(&mut random) {
            Ok(()) => u64::from_be_bytes(random),
            Err(_) => u64::MAX,
        };
        Some((now + self.backoff.next_delay(random)).min(self.deadline))
    }

    /// Whether to go on after a link on which the server had not been heard of as one that runs jobs.
    pub(super) fn is_worth_another(&self, error: &ConnectionError) -> bool {
        match error {
            ConnectionError::PeerClosed(goodbye) => goodbye.code != GoodbyeCode::Revoked,
            ConnectionError::Cut | ConnectionError::TimedOut => true,
            _ => false,
        }
    }

    /// Why it was given up.
    pub(super) fn describe(&self, for_good: bool) -> String {
        let last = self.last.as_deref().unwrap_or("nothing was tried");
        if for_good {
            return format!("it can't be made again: {last}");
        }
        format!("it could not be made again within {:?}: {last}", self.limit)
    }
}

/// Whether a link that was lost so is made again: what broke is to blame, and not what was said.
/// `ready` is whether the server had ever been heard of as one that runs jobs.
pub(super) fn is_worth_a_retry(error: &ConnectionError, ready: bool) -> bool {
    match error {
        ConnectionError::Cut | ConnectionError::TimedOut => true,
        ConnectionError::PeerClosed(goodbye) => match goodbye.code {
            GoodbyeCode::Restart => true,
            GoodbyeCode::Timeout => ready,
            _ => false,
        },
        _ => false,
    }
}

/// Whether another attempt would come to the same (`J-4.3`).
pub(super) fn is_for_good(error: &Error) -> bool {
    match error {
        Error::Connect { .. }
        | Error::ConnectTimeout { .. }
        | Error::Resolve { .. }
        | Error::Tls { .. }
        | Error::LoginLink { .. }
        | Error::Local(_)
        | Error::Unavailable { .. }
        | Error::TooLate => false,
        // A listener that has no room says goodbye; one that breaks the protocol will again.
        Error::Login { source, .. } => {
            matches!(source, AuthError::PeerMisbehaved(_) | AuthError::PeerIncompatible)
        }
        // ssh has no other way to say that the host is away than that it failed to connect.
        Error::Ssh(failure) => failure.phase == Phase::Authenticate,
        _ => true,
    }
}

/// One attempt, begun at its time and given up when all of it is over.
pub(super) async fn attempt(
    at: Instant,
    deadline: Instant,
    connecting: Connecting,
) -> Result<Box<Driver<AnyTransport>>, Error> {
    tokio::time::sleep_until(at).await;
    // The last attempt begins at the deadline, and a login takes its time.
    let until = deadline.max(at + LAST_ATTEMPT);
    tokio::time::timeout_at(until, connecting).await.unwrap_or(Err(Error::TooLate))
}

/// The least time that an attempt has, however little is left of the user's.
const LAST_ATTEMPT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use afar_proto::message::Goodbye;

    use super::*;

    fn goodbye(code: GoodbyeCode) -> ConnectionError {
        ConnectionError::PeerClosed(Goodbye { code, message: String::new() })
    }

    /// `J-4.3`
    #[test]
    fn a_link_that_broke_is_made_again_and_one_that_was_ended_is_not() {
        for (error, again) in [
            (ConnectionError::Cut, true),
            (ConnectionError::TimedOut, true),
            (goodbye(GoodbyeCode::Restart), true),
            (goodbye(GoodbyeCode::Timeout), true),
            (goodbye(GoodbyeCode::Revoked), false),
            (goodbye(GoodbyeCode::Unavailable), false),
            (goodbye(GoodbyeCode::Protocol), false),
            (ConnectionError::LocallyClosed, false),
            (ConnectionError::PeerIncompatible { theirs: 0, ours: 1 }, false),
        ] {
            assert_eq!(is_worth_a_retry(&error, true), again, "{error}");
        }
        // Nor does a server that was never there come into being.
        assert!(!is_worth_a_retry(&goodbye(GoodbyeCode::Timeout), false));
        let outage = Outage::new(Instant::now(), Duration::from_secs(1));
        assert!(outage.is_worth_another(&goodbye(GoodbyeCode::Unavailable)));
        assert!(!outage.is_worth_another(&goodbye(GoodbyeCode::Revoked)));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_the_users_time() {
        let limit = Duration::from_secs(60);
        let start = Instant::now();
        let mut outage = Outage::new(start, limit);
        let mut last = start;
        while let Some(at) = outage.next_attempt(false) {
            assert!(at >= last && at <= start + limit);
            tokio::time::sleep_until(at).await; // tidy: simulated, the time is the subject
            last = at;
        }
        assert_eq!(last, start + limit);
        assert!(outage.attempts > 3, "{outage:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_gives_way_is_asked_at_once_and_then_with_patience() {
        let mut outage = Outage::new(Instant::now(), Duration::from_secs(60));
        assert_eq!(outage.next_attempt(true), Some(Instant::now()));
        assert!(outage.next_attempt(true).unwrap() > Instant::now());
    }
}
