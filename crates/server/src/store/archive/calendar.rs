//! What time it is for whoever lets go of what has been kept long enough: a clock that jumps must not make it
//! a day early, or stop it for a day.

use std::time::Duration;

use super::super::limits::{CLOCK_JUMP_MAX, RETENTION_INTERVAL};

/// The wall clock, as far as the time since boot bears it out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calendar {
    /// A moment by both clocks.
    unix_us: u64,
    since_boot: Duration,
    /// When it is time again to look for what can go.
    due: Duration,
    is_wrong: bool,
}

/// What a look at the clocks has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// What time it is.
    pub(super) unix_us: u64,
    /// Whether the wall clock has jumped since the look before.
    pub(super) jumped: bool,
}

impl Calendar {
    pub(super) fn new(unix_us: u64, since_boot: Duration) -> Self {
        Self { unix_us, since_boot, due: Duration::ZERO, is_wrong: false }
    }

    /// The time, if one is due.
    pub(super) fn due(&mut self, unix_us: u64, since_boot: Duration) -> Option<Due> {
        if since_boot < self.due {
            return None;
        }
        self.due = since_boot.saturating_add(RETENTION_INTERVAL);
        let passed = since_boot.saturating_sub(self.since_boot).as_micros();
        let expected = self.unix_us.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        let is_wrong = u128::from(expected.abs_diff(unix_us)) > CLOCK_JUMP_MAX.as_micros();
        let jumped = is_wrong && !self.is_wrong;
        self.is_wrong = is_wrong;
        if is_wrong {
            // Nobody can tell which of the two is right; by this one nothing goes too early.
            return Some(Due { unix_us: expected, jumped });
        }
        // It was set right a little.
        (self.unix_us, self.since_boot) = (unix_us, since_boot);
        Some(Due { unix_us, jumped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn at(seconds: u64) -> (u64, Duration) {
        (1_000_000 * (1_000_000 + seconds), Duration::from_secs(seconds))
    }

    /// J-5.11: CLOCK_JUMP_MAX, on both sides.
    #[test]
    fn fault_71_a_clock_that_jumps_makes_nothing_go_early_nor_stay_for_long() {
        for (jump, jumped) in [
            (3600, false),
            (3601, true),
            (DAY.cast_signed(), true),
            (-3600, false),
            (-3601, true),
            (-DAY.cast_signed(), true),
        ] {
            let (unix_us, since_boot) = at(0);
            let mut calendar = Calendar::new(unix_us, since_boot);
            let first = calendar.due(unix_us, since_boot).unwrap();
            assert_eq!(first, Due { unix_us, jumped: false });
            for round in 1..4 {
                let (unix_us, since_boot) = at(600 * round);
                let wall_us = unix_us.saturating_add_signed(jump * 1_000_000);
                // Neither early, nor late.
                let early = since_boot.saturating_sub(Duration::from_micros(1));
                assert_eq!(calendar.due(wall_us, early), None);
                let expected = if jumped { unix_us } else { wall_us };
                let told = Due { unix_us: expected, jumped: jumped && round == 1 };
                assert_eq!(calendar.due(wall_us, since_boot), Some(told), "{jump}");
            }
            // It is set right again.
            let (unix_us, since_boot) = at(600 * 4);
            assert_eq!(calendar.due(unix_us, since_boot), Some(Due { unix_us, jumped: false }));
        }
    }
}
