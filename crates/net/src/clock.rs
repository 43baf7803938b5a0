//! The one place where the protocol's time is taken from a clock.

use std::time::Duration;

/// Monotonic time as the protocol's machines see it: since this clock was made.
///
/// It counts while the machine runs and not while it sleeps (CLOCK_MONOTONIC), and no change of
/// the wall clock moves it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: tokio::time::Instant,
}

impl Clock {
    /// A clock that reads zero now.
    #[must_use]
    pub fn new() -> Self {
        Self { epoch: tokio::time::Instant::now() }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> afar_proto::Instant {
        let micros = self.epoch.elapsed().as_micros();
        afar_proto::Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// The runtime's name for a point in this clock's time.
    #[must_use]
    pub fn to_tokio(&self, instant: afar_proto::Instant) -> tokio::time::Instant {
        self.epoch + Duration::from_micros(instant.as_micros())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
