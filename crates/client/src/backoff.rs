//! When a client that lost its link tries again (`J-4.1`).

use std::time::Duration;

use crate::limits::{RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN};

/// Exponential backoff with full jitter: the wait before each attempt is anything between
/// [`RECONNECT_DELAY_MIN`] and a ceiling that doubles, at random. So a thousand clients that lost
/// the same server come back spread over the whole of each ceiling, and not in waves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

/// Anything between nothing and `span`. `random` is any number, each as likely as another.
pub(crate) fn spread(random: u64, span: Duration) -> Duration {
    // The fraction has 32 bits, far finer than any timer.
    let fraction = u32::try_from(random >> 32).unwrap_or(u32::MAX);
    span.mul_f64(f64::from(fraction) / f64::from(u32::MAX))
}

/// The ceiling of the first wait: long enough to spread many clients, short for one of them.
const FIRST_CEILING: Duration = Duration::from_secs(1);

impl Backoff {
    /// The wait before the next attempt. `random` is any number, each as likely as another.
    pub(crate) fn next_delay(&mut self, random: u64) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        RECONNECT_DELAY_MIN + spread(random, ceiling.saturating_sub(RECONNECT_DELAY_MIN))
    }

    fn ceiling(self) -> Duration {
        let doubled = 1_u32.checked_shl(self.failures).and_then(|by| FIRST_CEILING.checked_mul(by));
        doubled.map_or(RECONNECT_DELAY_MAX, |ceiling| ceiling.min(RECONNECT_DELAY_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `J-4.1`
    #[test]
    fn the_ceiling_doubles_up_to_the_limit_and_the_floor_stays() {
        let mut highest = Backoff::default();
        let ceilings: Vec<u64> = (0..8).map(|_| highest.next_delay(u64::MAX).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 30, 30, 30]);
        let mut lowest = Backoff::default();
        for _ in 0..8 {
            assert_eq!(lowest.next_delay(0), RECONNECT_DELAY_MIN);
        }
    }

    #[test]
    fn no_number_of_failures_makes_the_wait_longer_or_shorter_than_its_limits() {
        for failures in [31, 32, 33, u32::MAX] {
            let mut backoff = Backoff { failures };
            assert_eq!(backoff.next_delay(u64::MAX), RECONNECT_DELAY_MAX);
            assert!(backoff.next_delay(1 << 63) < RECONNECT_DELAY_MAX);
        }
    }

    #[test]
    fn fault_73_clients_that_lost_the_same_server_come_back_spread_out() {
        // As many numbers as clients, evenly over what a random source gives.
        let step = u64::MAX / 1000;
        let mut delays: Vec<_> =
            (0..1000).map(|client| Backoff::default().next_delay(client * step)).collect();
        delays.sort();
        // No tenth of a second has more than an eighth of them.
        for window in delays.windows(125) {
            let (Some(first), Some(last)) = (window.first(), window.last()) else { continue };
            assert!(*last - *first > Duration::from_millis(100), "{first:?} {last:?}");
        }
    }
}
