//! Remarks about lines of a file, for a log or for `-v`.

use std::fmt;

use crate::limits::DIAGNOSTICS_MAX;

/// A remark about one line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The line's number, from 1.
    pub line: usize,
    /// What is wrong with it; one line, already escaped for a terminal.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// The remarks of one reading, at most [`DIAGNOSTICS_MAX`] of them in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    kept: Vec<Diagnostic>,
    left_out: usize,
}

impl Diagnostics {
    /// The remarks, in the order of their lines.
    #[must_use]
    pub fn kept(&self) -> &[Diagnostic] {
        &self.kept
    }

    /// How many more there were, so that a file of garbage can't fill a log.
    #[must_use]
    pub const fn left_out(&self) -> usize {
        self.left_out
    }

    /// Whether there was nothing to remark.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(crate) fn push(&mut self, line: usize, message: impl fmt::Display) {
        if self.kept.len() < DIAGNOSTICS_MAX {
            self.kept.push(Diagnostic { line, message: message.to_string() });
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_up_to_the_limit_and_counts_the_rest() {
        let mut diagnostics = Diagnostics::default();
        assert!(diagnostics.is_empty());
        for line in 1..=DIAGNOSTICS_MAX {
            diagnostics.push(line, "bad");
        }
        assert_eq!((diagnostics.kept().len(), diagnostics.left_out()), (DIAGNOSTICS_MAX, 0));
        diagnostics.push(999, "bad");
        assert_eq!((diagnostics.kept().len(), diagnostics.left_out()), (DIAGNOSTICS_MAX, 1));
        assert_eq!(diagnostics.kept()[0].to_string(), "line 1: bad");
    }
}
