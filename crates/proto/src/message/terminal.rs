//! The terminal of a job: what OPEN asks for, and its sizes (`W-5.13`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::json::ByteString;
use crate::limits::{
    TERMINAL_COLUMNS_DEFAULT, TERMINAL_NAME_BYTES_MAX, TERMINAL_ROWS_DEFAULT, TERMINAL_SIDE_MAX,
};

/// The feature of a server's JOB_HELLO that says that it has terminals (`W-5.13`).
pub const FEATURE_TERMINAL: &str = "terminal";

/// The terminal that a job is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// What kind the client's is: the job's `TERM`.
    pub name: ByteString,
    /// How large it is.
    pub size: Resize,
    /// Its modes by name, as stty(1) has them: characters by their number, 0 for none; settings 0 or
    /// 1. Those that are not named, or not known to the server, are as the system has them.
    pub modes: BTreeMap<String, u32>,
}

impl Terminal {
    /// Whether a terminal of this name can be had: it is no empty string, and no longer than
    /// [`TERMINAL_NAME_BYTES_MAX`].
    #[must_use]
    pub fn has_good_name(&self) -> bool {
        (1..=TERMINAL_NAME_BYTES_MAX).contains(&self.name.0.len())
    }
}

/// A size of the job's terminal; sizes out of range are clamped by the server (`W-7.1`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Columns; 0 if they are not known.
    pub columns: u32,
    /// Rows; 0 if they are not known.
    pub rows: u32,
    /// Width in pixels; 0 if it is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub width_px: u32,
    /// Height in pixels; 0 if it is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub height_px: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Resize {
    /// Columns and rows as they can be set: what is not known is 80 columns or 24 rows, and no side is
    /// longer than [`TERMINAL_SIDE_MAX`].
    #[must_use]
    pub fn clamped(self) -> (u16, u16) {
        let side = |given: u32, unknown: u16| match given {
            0 => unknown,
            given => u16::try_from(given).unwrap_or(u16::MAX).min(TERMINAL_SIDE_MAX),
        };
        (side(self.columns, TERMINAL_COLUMNS_DEFAULT), side(self.rows, TERMINAL_ROWS_DEFAULT))
    }

    /// Width and height in pixels as they can be set; 0 where they are not known.
    #[must_use]
    pub fn pixels(self) -> (u16, u16) {
        let side = |given: u32| u16::try_from(given).unwrap_or(0);
        (side(self.width_px), side(self.height_px))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W-7.1, W-9.28
    #[test]
    fn fault_52_sizes_are_clamped() {
        let size = |columns, rows| Resize { columns, rows, ..Resize::default() };
        assert_eq!(size(0, 0).clamped(), (80, 24));
        assert_eq!(size(1, 1).clamped(), (1, 1));
        let most = u32::from(TERMINAL_SIDE_MAX);
        assert_eq!(size(most, most).clamped(), (TERMINAL_SIDE_MAX, TERMINAL_SIDE_MAX));
        assert_eq!(size(most + 1, 65_535).clamped(), (TERMINAL_SIDE_MAX, TERMINAL_SIDE_MAX));
        assert_eq!(size(u32::MAX, 0).clamped(), (TERMINAL_SIDE_MAX, 24));
        let pixels = Resize { width_px: 640, height_px: 70_000, ..size(1, 1) };
        assert_eq!(pixels.pixels(), (640, 0));
    }

    /// W-9.28
    #[test]
    fn a_name_has_a_length() {
        let named = |bytes| Terminal {
            name: ByteString(vec![b'x'; bytes]),
            size: Resize::default(),
            modes: BTreeMap::new(),
        };
        assert!(!named(0).has_good_name());
        assert!(named(1).has_good_name());
        assert!(named(TERMINAL_NAME_BYTES_MAX).has_good_name());
        assert!(!named(TERMINAL_NAME_BYTES_MAX + 1).has_good_name());
    }
}
