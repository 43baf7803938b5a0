//! When something is tried again that could not be done: later each time.

use std::time::Duration;

use super::limits::{INDEX_DELAY, RETRY_DELAY_MAX};

/// Says when it is time for the next try. Times are since boot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    at: Duration,
    delay: Duration,
}

impl Retry {
    pub(super) fn is_due(&self, since_boot: Duration) -> bool {
        since_boot >= self.at
    }

    pub(super) fn failed(&mut self, since_boot: Duration) {
        self.delay = (self.delay * 2).clamp(INDEX_DELAY, RETRY_DELAY_MAX);
        self.at = since_boot.saturating_add(self.delay);
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }
}
