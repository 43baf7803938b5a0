//! `expiry-time=`: dates and times, and what they are in Unix time.

/// The earliest any place on earth has a time of day, in seconds before UTC has it (UTC+14).
const EARLIEST_ZONE_S: i64 = 14 * 3600;

const DAYS_IN_MONTH: [u8; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// A date and a time of day, of no certain zone. One that is valid: the day exists in its month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CivilTime {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl CivilTime {
    /// The year, 1970 to 9999.
    #[must_use]
    pub const fn year(self) -> u16 {
        self.year
    }

    /// The month, 1 to 12.
    #[must_use]
    pub const fn month(self) -> u8 {
        self.month
    }

    /// The day of the month, from 1.
    #[must_use]
    pub const fn day(self) -> u8 {
        self.day
    }

    /// The hour, 0 to 23.
    #[must_use]
    pub const fn hour(self) -> u8 {
        self.hour
    }

    /// The minute, 0 to 59.
    #[must_use]
    pub const fn minute(self) -> u8 {
        self.minute
    }

    /// The second, 0 to 59.
    #[must_use]
    pub const fn second(self) -> u8 {
        self.second
    }

    /// Seconds of Unix time if this time is UTC's. A caller that knows the zone's offset
    /// subtracts it.
    #[must_use]
    pub fn to_unix_s_as_utc(self) -> i64 {
        let years = i64::from(self.year) - 1970;
        // Leap years before this one, since 1970; 1600 is the start of a cycle of 400 years.
        let leaps_until = |year: i64| year / 4 - year / 100 + year / 400;
        let leaps = leaps_until(i64::from(self.year) - 1) - leaps_until(1969);
        let days_before_month: i64 = DAYS_IN_MONTH
            .iter()
            .take(usize::from(self.month) - 1)
            .map(|&days| i64::from(days))
            .sum();
        let leap_day = i64::from(self.month > 2 && is_leap(self.year));
        let days = years * 365 + leaps + days_before_month + leap_day + i64::from(self.day) - 1;
        days * 86_400
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    fn is_valid(self) -> bool {
        let Some(&days) =
            usize::from(self.month).checked_sub(1).and_then(|month| DAYS_IN_MONTH.get(month))
        else {
            return false;
        };
        let days = if self.month == 2 && is_leap(self.year) { 29 } else { days };
        self.year >= 1970
            && (1..=days).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
    }
}

/// The value of an `expiry-time=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpiryTime {
    time: CivilTime,
    utc: bool,
}

impl ExpiryTime {
    /// Reads `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, each with or without `Z` or `UTC`
    /// (sshd takes both, in either case). A date alone is the midnight it begins with.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (digits, utc) = match strip_zone(text) {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        if !matches!(digits.len(), 8 | 12 | 14) {
            return None;
        }
        let two = |at: usize| -> Option<u8> {
            match digits.get(at..at + 2) {
                None => Some(0),
                Some(&[tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
                    Some((tens - b'0') * 10 + (ones - b'0'))
                }
                Some(_) => None,
            }
        };
        let time = CivilTime {
            year: u16::from(two(0)?) * 100 + u16::from(two(2)?),
            month: two(4)?,
            day: two(6)?,
            hour: two(8)?,
            minute: two(10)?,
            second: two(12)?,
        };
        // sshd takes the epoch itself for an error, as its "never".
        (time.is_valid() && time.to_unix_s_as_utc() > 0).then_some(Self { time, utc })
    }

    pub(super) fn to_unix_s(self, local_time: Option<&dyn Fn(CivilTime) -> Option<i64>>) -> i64 {
        let as_utc = self.time.to_unix_s_as_utc();
        if self.utc {
            return as_utc;
        }
        local_time.and_then(|convert| convert(self.time)).unwrap_or(as_utc - EARLIEST_ZONE_S)
    }
}

fn strip_zone(text: &[u8]) -> Option<&[u8]> {
    ["z", "utc"].into_iter().find_map(|zone| {
        let (digits, suffix) = text.split_at_checked(text.len().checked_sub(zone.len())?)?;
        suffix.eq_ignore_ascii_case(zone.as_bytes()).then_some(digits)
    })
}

const fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix_s(text: &str) -> Option<i64> {
        ExpiryTime::parse(text.as_bytes()).map(|time| time.to_unix_s(None))
    }

    #[test]
    fn times_are_those_of_date_1() {
        // `date -u -d '…' +%s`.
        for (text, expected) in [
            ("19700102Z", 86_400),
            ("19991231Z", 946_598_400),
            ("20000229Z", 951_782_400),
            ("20000301Z", 951_868_800),
            ("20240229235959Z", 1_709_251_199),
            ("20261122100000Z", 1_795_341_600),
            ("202611221000utc", 1_795_341_600),
            ("20261122UTC", 1_795_305_600),
            ("21000301z", 4_107_542_400),
            ("99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(unix_s(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut expected = 0;
        for year in 1970..2110_u16 {
            for month in 1..=12_u8 {
                for day in 1..=31_u8 {
                    let time = CivilTime { year, month, day, hour: 0, minute: 0, second: 0 };
                    if time.is_valid() {
                        assert_eq!(time.to_unix_s_as_utc(), expected, "{time:?}");
                        expected += 86_400;
                    }
                }
            }
        }
    }

    #[test]
    fn fault_84_what_is_no_time_is_refused() {
        for text in [
            "",
            "Z",
            "2026",
            "2026112",
            "202611223",
            "2026112210",
            "20261122100",
            "2026112210000",
            "202611221000000",
            "20261322",
            "20261100",
            "20260231",
            "20250229",
            "21000229Z",
            "202611222400",
            "202611222360",
            "20261122235960",
            "2026-11-22",
            "20261122T1000",
            "+2026112",
            " 20261122",
            "20261122 ",
            "2026112Z",
            "19691231",
            "19700101Z",
            "00000101",
            "２０２６",
            "20261122ZZ",
            "20261122GMT",
            "0x6a000000",
        ] {
            assert_eq!(ExpiryTime::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn fault_84_local_time_is_the_callers_or_the_earliest_there_is() {
        let time = ExpiryTime::parse(b"20261122100000").unwrap();
        let utc = 1_795_341_600;
        assert_eq!(time.to_unix_s(None), utc - 14 * 3600);
        assert_eq!(time.to_unix_s(Some(&|_| None)), utc - 14 * 3600);
        let berlin = |time: CivilTime| Some(time.to_unix_s_as_utc() - 3600);
        assert_eq!(time.to_unix_s(Some(&berlin)), utc - 3600);
        let fields = time.time;
        assert_eq!((fields.year(), fields.month(), fields.day()), (2026, 11, 22));
        assert_eq!((fields.hour(), fields.minute(), fields.second()), (10, 0, 0));
        let marked = ExpiryTime::parse(b"20261122100000Z").unwrap();
        assert_eq!(marked.to_unix_s(Some(&berlin)), utc);
    }
}
