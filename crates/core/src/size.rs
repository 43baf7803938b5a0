//! Amounts as people write them: bytes (`512M`) and processors (`1.5`).

/// The units of bytes, each 1,024 of the one before.
const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];

/// Reads a number of bytes: `1048576`, `512M`, `1.5G`; the units are powers of 1,024.
///
/// # Errors
/// What is wrong with it, or what is wanted.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit = text.chars().last().map(|unit| unit.to_ascii_uppercase());
    let exponent = unit.and_then(|unit| UNITS.iter().position(|known| *known == unit));
    let (number, shift) = match exponent {
        Some(at) => (text.get(..text.len() - 1).unwrap_or_default(), 10 * (at + 1)),
        None => (text, 0),
    };
    let wanted = || "a number of bytes is wanted, such as 512M".to_owned();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(wanted());
    }
    let whole: u128 = whole.parse().map_err(|_| wanted())?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wanted())?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().unwrap_or(0) };
    let thousandths = whole.saturating_mul(scale).saturating_add(fraction);
    let bytes = thousandths.saturating_mul(1 << shift) / scale;
    match u64::try_from(bytes) {
        Ok(0) => Err("it must be at least one byte".to_owned()),
        // What a control message can carry (`W-9.5`).
        Ok(bytes) if bytes <= afar_proto::limits::JSON_INTEGER_MAX => Ok(bytes),
        _ => Err("it is more than any machine has".to_owned()),
    }
}

/// Reads a number of processors, in thousandths of one: `2`, `0.5`, `1.25`.
///
/// # Errors
/// What is wrong with it, or what is wanted.
pub fn parse_processors(text: &str) -> Result<u64, String> {
    let wanted = || "a number of processors is wanted, such as 1.5".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || whole.len() > 6 {
        return Err(wanted());
    }
    if fraction.len() > 3 {
        return Err("thousandths of a processor are the finest that there is".to_owned());
    }
    let whole: u64 = whole.parse().map_err(|_| wanted())?;
    let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| wanted())?;
    match whole * 1000 + thousandths {
        0 => Err("it must be more than none".to_owned()),
        milli => Ok(milli),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_unit() {
        let cases = [
            ("1", 1),
            ("1000", 1000),
            ("1k", 1 << 10),
            ("512M", 512 << 20),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("0.5K", 512),
            ("9007199254740992", 1 << 53),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_of_bytes_is_refused() {
        let long = "9".repeat(60);
        for text in [
            "",
            "M",
            "0",
            "0K",
            "-1",
            "+1",
            "1KB",
            "1 K",
            "1.2.3M",
            ".5M",
            "0x10",
            "nan",
            "é",
            "9007199254740993",
            "8388608T",
            &long,
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_are_read_in_thousandths() {
        for (text, milli) in
            [("1", 1000), ("1.5", 1500), ("0.25", 250), ("0.001", 1), ("64", 64_000)]
        {
            assert_eq!(parse_processors(text), Ok(milli), "{text}");
        }
        for text in ["", "0", "0.0", ".5", "-1", "1e3", "0.0001", "1234567", "inf"] {
            assert!(parse_processors(text).is_err(), "{text}");
        }
    }
}
