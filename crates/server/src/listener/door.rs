//! The door: the doorkeeper's rules, held against the clock for all threads of a listener.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use afar_core::doorkeeper::{Departure, DoorRules, Doorkeeper, TurnedAway};
use afar_net::accept::AcceptError;
use afar_net::clock::Clock;
use afar_proto::auth::AuthError;

/// What all unauthenticated connections come through.
#[derive(Debug)]
pub(super) struct Door {
    keeper: Mutex<Doorkeeper>,
    clock: Clock,
}

/// A connection that is not authenticated yet. Dropping it without [`Newcomer::leave`] counts as
/// one that ended before it had asked for anything.
#[derive(Debug)]
pub(super) struct Newcomer<'a> {
    door: &'a Door,
    source: IpAddr,
    departure: Departure,
}

impl Door {
    /// The door of a listener that goes by these rules.
    pub(super) fn new(rules: DoorRules) -> Self {
        Self { keeper: Mutex::new(Doorkeeper::new(rules)), clock: Clock::new() }
    }

    /// From now on it goes by these.
    pub(super) fn set_rules(&self, rules: DoorRules) {
        self.keeper().set_rules(rules);
    }

    /// Waits until a connection that has come may be served.
    ///
    /// # Errors
    /// It is to be closed at once.
    pub(super) async fn enter(&self, source: SocketAddr) -> Result<Newcomer<'_>, TurnedAway> {
        let source = source.ip();
        let now = self.clock.now();
        let start = self.keeper().arrive(now, source)?;
        let newcomer = Newcomer { door: self, source, departure: Departure::Unfinished };
        if start > now {
            tokio::time::sleep_until(self.clock.to_tokio(start)).await;
        }
        Ok(newcomer)
    }

    fn keeper(&self) -> MutexGuard<'_, Doorkeeper> {
        // Its numbers are whole after every call, so a panic elsewhere leaves nothing half done.
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newcomer<'_> {
    /// It is authenticated, or gone.
    pub(super) fn leave<A>(mut self, came_in: &Result<A, AcceptError>) {
        self.departure = match came_in {
            Ok(_) => Departure::LoggedIn,
            Err(
                AcceptError::BadSignature { .. }
                | AcceptError::Refused { .. }
                | AcceptError::NoKeyAccepted { .. },
            ) => Departure::Refused,
            Err(AcceptError::Unjudged { .. }) => Departure::Unjudged,
            Err(AcceptError::Auth(AuthError::TimedOut)) => Departure::Overlong,
            Err(_) => Departure::Unfinished,
        };
    }
}

impl Drop for Newcomer<'_> {
    fn drop(&mut self) {
        let now = self.door.clock.now();
        self.door.keeper().leave(now, self.source, self.departure);
    }
}
