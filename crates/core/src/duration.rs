//! Spans of time as people write them: `500ms`, `30s`, `5m`, `2h`, `1d`; a bare number is seconds.

use std::time::Duration;

/// The units, longest first.
const UNITS: [(&str, f64); 5] =
    [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];

/// Longest span that is taken: about a hundred years.
const SECONDS_MAX: f64 = 3.2e9;

/// Reads a span that is longer than zero.
///
/// # Errors
/// What is wrong with it, or what is wanted.
pub fn parse(text: &str) -> Result<Duration, String> {
    let number_end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let number: f64 =
        number.parse().map_err(|_| "a number and a unit are wanted, such as 30s".to_owned())?;
    let factor = match unit {
        "" => 1.0,
        unit => UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, factor)| *factor)
            .ok_or_else(|| format!("\"{unit}\" is none of the units ms, s, m, h and d"))?,
    };
    let seconds = number * factor;
    if !(seconds > 0.0 && seconds <= SECONDS_MAX) {
        return Err("it must be longer than zero and at most a hundred years".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        let cases = [
            ("30", 30_000),
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in [
            "",
            "s",
            "0",
            "0s",
            "-1s",
            "1w",
            "1 s",
            "1.2.3s",
            "inf",
            "nan",
            "1e99s",
            "99999999999d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
