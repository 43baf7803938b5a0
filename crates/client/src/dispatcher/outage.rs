//! The time between two links: what is worth another attempt, when, and for how long (`J-4.1`,
//! `J-4.3`).

use std::time::Duration;

use afar_core::escape::escape_for_terminal;
use afar_net::agent::AgentError;
use afar_net::driver::Driver;
use afar_net::files::FileError;
use afar_net::identity::IdentityError;
use afar_net::signer::SignError;
use afar_net::transport::AnyTransport;
use afar_proto::auth::AuthError;
use afar_proto::connection::Event;
use afar_proto::error::ConnectionError;
use afar_proto::message::GoodbyeCode;
use afar_proto::outcome::Phase;
use tokio::time::Instant;

use super::Connecting;
use crate::backoff::{self, Backoff};
use crate::error::Error;
use crate::limits::{RECONNECT_DELAY_MAX, RECONNECT_SPREAD};

/// How a link was lost.
#[derive(Debug)]
pub(super) struct Loss {
    cause: ConnectionError,
    /// In one line that may be shown.
    told: String,
}

impl From<ConnectionError> for Loss {
    fn from(cause: ConnectionError) -> Self {
        let told = escape_for_terminal(cause.to_string().as_bytes());
        Self { cause, told }
    }
}

impl Loss {
    /// Before the server had said whether it lets us in.
    pub(super) fn in_login(error: &Error) -> Self {
        let timed_out = match error {
            Error::ConnectTimeout { .. } => true,
            Error::Login { source, .. } => *source == AuthError::TimedOut,
            _ => false,
        };
        let cause = if timed_out { ConnectionError::TimedOut } else { ConnectionError::Cut };
        Self { cause, told: error.to_string() }
    }

    pub(super) fn told(&self) -> &str {
        &self.told
    }

    /// Whether the server's process gives way to another one (`J-4.3`).
    pub(super) fn gives_way(&self) -> bool {
        matches!(&self.cause, ConnectionError::PeerClosed(goodbye)
            if goodbye.code == GoodbyeCode::Restart)
    }
}

/// A link was lost, and there is no other one yet that serves. Time is the runtime's: no wall clock
/// has a part in it, and a machine that sleeps does not use it up.
#[derive(Debug)]
pub(super) struct Outage {
    deadline: Instant,
    limit: Duration,
    backoff: Backoff,
    attempts: u32,
    /// How the first link was lost.
    first: Loss,
    /// What came of the last attempt.
    last: Option<String>,
    /// Since when there is a link on which the server has greeted; `None` while there is none.
    ready_since: Option<Instant>,
}

impl Outage {
    pub(super) fn new(now: Instant, limit: Duration, first: Loss) -> Self {
        let (deadline, backoff) = (now + limit, Backoff::default());
        Self { deadline, limit, backoff, attempts: 0, first, last: None, ready_since: None }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn cause(&self) -> &ConnectionError {
        &self.first.cause
    }

    /// The server has greeted on a new link, and not answered anything on it yet.
    pub(super) fn ready(&mut self) {
        self.ready_since = Some(Instant::now());
    }

    /// Whether the server has greeted on the present link.
    pub(super) fn is_ready(&self) -> bool {
        self.ready_since.is_some()
    }

    /// Whether the present link has held for so long that losing it is another outage, although
    /// nothing was answered on it: a job may wait for hours for its turn.
    pub(super) fn has_held(&self) -> bool {
        self.ready_since.is_some_and(|since| since.elapsed() >= RECONNECT_DELAY_MAX)
    }

    /// A link was lost that had not served.
    pub(super) fn lost_again(&mut self, lost: &Loss) {
        self.ready_since = None;
        self.last = Some(lost.told.clone());
    }

    /// An attempt came to nothing.
    pub(super) fn note(&mut self, error: &Error) {
        // That the time is over tells nothing of what kept the host from answering.
        if !matches!(error, Error::TooLate) || self.last.is_none() {
            self.last = Some(error.to_string());
        }
    }

    /// When to try again; `None` once the user's time is over. `gives_way` is whether the server has
    /// said that another process takes its place.
    pub(super) fn next_attempt(&mut self, gives_way: bool) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.deadline {
            return None;
        }
        self.attempts = self.attempts.saturating_add(1);
        let mut random = [0; 8];
        // Without random bytes the wait is as long as it may be: late is better than in a wave.
        let random = match aws_lc_rs::rand::fill(&mut random) {
            Ok(()) => u64::from_be_bytes(random),
            Err(_) => u64::MAX,
        };
        // One that gives way to another process is there again in an instant, but not for ever.
        let delay = match gives_way && self.attempts == 1 {
            true => backoff::spread(random, RECONNECT_SPREAD),
            false => self.backoff.next_delay(random),
        };
        Some((now + delay).min(self.deadline))
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

/// Whether a server serves that says this: it has answered what it was asked, or goes on with what
/// it was asked before.
pub(super) fn is_progress(event: &Event) -> bool {
    matches!(
        event,
        Event::Opened { .. }
            | Event::Attached { .. }
            | Event::Refused { .. }
            | Event::Failed { .. }
            | Event::Answer { .. }
            | Event::Data { .. }
            | Event::Gap { .. }
            | Event::End { .. }
            | Event::Acked { .. }
            | Event::Exit { .. }
            | Event::Seal { .. }
    )
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
        // A file server, or an agent, can be away as a host can.
        Error::File(FileError::Io { .. })
        | Error::Identity(IdentityError::File(FileError::Io { .. }))
        | Error::Sign(SignError::Library | SignError::Agent(AgentError::Unreachable { .. }))
        | Error::Sign(SignError::Agent(AgentError::TimedOut { .. } | AgentError::Broken(_))) => {
            false
        }
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
    use afar_proto::outcome::Started;

    use super::*;

    fn outage(limit: Duration) -> Outage {
        Outage::new(Instant::now(), limit, Loss::from(ConnectionError::Cut))
    }

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
        let outage = outage(Duration::from_secs(1));
        assert!(outage.is_worth_another(&goodbye(GoodbyeCode::Unavailable)));
        assert!(!outage.is_worth_another(&goodbye(GoodbyeCode::Revoked)));
    }

    /// `J-4.3`
    #[test]
    fn what_is_away_for_a_moment_ends_no_attempt() {
        let io = || std::io::Error::from(std::io::ErrorKind::StaleNetworkFileHandle);
        let path = || std::path::PathBuf::from("/key");
        let agent = |error| Error::Sign(SignError::Agent(error));
        let host = || "web".to_owned();
        for (error, for_good) in [
            (Error::File(FileError::Io { action: "read", path: path(), source: io() }), false),
            (
                Error::Identity(IdentityError::File(FileError::Io {
                    action: "read",
                    path: path(),
                    source: io(),
                })),
                false,
            ),
            (Error::File(FileError::KeyTooOpen { path: path(), mode: 0o644 }), true),
            (agent(AgentError::Unreachable { path: path(), source: io() }), false),
            (agent(AgentError::TimedOut { after: Duration::from_secs(1) }), false),
            (agent(AgentError::Broken(io())), false),
            (agent(AgentError::Refused), true),
            (Error::NeedsPerson { host: host() }, true),
            (Error::TooLate, false),
            (Error::Resolve { host: host(), source: io() }, false),
            (Error::KeysRefused { host: host(), user: host(), keys: host() }, true),
        ] {
            assert_eq!(is_for_good(&error), for_good, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_the_users_time() {
        let limit = Duration::from_secs(60);
        let start = Instant::now();
        let mut outage = outage(limit);
        let mut last = start;
        while let Some(at) = outage.next_attempt(false) {
            assert!(at >= last && at <= start + limit);
            tokio::time::sleep_until(at).await; // tidy: simulated, the time is the subject
            last = at;
        }
        assert_eq!(last, start + limit);
        assert!(outage.attempts > 3, "{outage:?}");
    }

    /// `J-4.3`
    #[tokio::test(start_paused = true)]
    async fn fault_73_a_server_that_gives_way_is_asked_soon_by_each_at_another_moment() {
        let start = Instant::now();
        let mut moments = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut outage = outage(Duration::from_secs(60));
            let at = outage.next_attempt(true).unwrap();
            assert!(at <= start + RECONNECT_SPREAD, "{:?}", at - start);
            moments.insert(at);
            assert!(outage.next_attempt(true).unwrap() > start);
        }
        assert!(moments.len() > 90, "{}", moments.len());
    }

    #[test]
    fn what_is_said_of_a_login_that_was_lost_is_what_happened() {
        let (host, after) = ("web".to_owned(), Duration::from_secs(10));
        let (phase, started) = (Phase::Authenticate, Started::Unknown);
        let lost = Loss::in_login(&Error::ConnectTimeout { host, after, phase, started });
        assert_eq!(lost.told(), "web did not answer within 10s");
        assert_eq!(lost.cause, ConnectionError::TimedOut);
        let source = std::io::ErrorKind::ConnectionReset.into();
        let lost = Loss::in_login(&Error::LoginLink { host: "web".to_owned(), source, started });
        assert!(lost.told().contains("connection reset"), "{}", lost.told());
        assert_eq!(lost.cause, ConnectionError::Cut);
    }
}
