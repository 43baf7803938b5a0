//! The results as a Markdown table and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::rows::{Contender, Goal, Metric};
use super::stats::{Samples, Summary};
use crate::failure::{Failure, Result};

const BEGIN: &str = "<!-- bench: begin; written by `cargo xtask bench --write` -->";
const END: &str = "<!-- bench: end -->";

/// A finished run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) command_line: String,
    pub(super) facts: Vec<(&'static str, String)>,
    /// What was not measured, and why.
    pub(super) left_out: Vec<String>,
    pub(super) samples: Samples,
}

impl Report {
    /// The command line, the table, and what must be known to read it.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("`{}`\n\n", self.command_line);
        for (name, value) in &self.facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        for line in &self.left_out {
            let _ = writeln!(text, "- **left out**: {line}");
        }
        text.push('\n');
        text.push_str(&self.table());
        text
    }

    fn table(&self) -> String {
        let metrics = self.samples.metrics();
        let took_part = |contender: &Contender| {
            metrics.iter().any(|metric| self.samples.summary(*metric, *contender).is_some())
        };
        let columns: Vec<Contender> = Contender::ALL.into_iter().filter(took_part).collect();
        let mut table = "| what | unit |".to_owned();
        for contender in &columns {
            let _ = write!(table, " {} |", contender.name());
        }
        table.push_str(" goal of afar |\n|---|---|");
        table.push_str(&"---|".repeat(columns.len() + 1));
        table.push('\n');
        for metric in metrics {
            let _ = write!(table, "| {} | {} |", metric.title(), metric.unit().name());
            for contender in &columns {
                let _ = write!(table, " {} |", self.cell(metric, *contender));
            }
            let goals: Vec<_> =
                metric.goals().iter().map(|goal| self.goal(metric, *goal)).collect();
            let _ = writeln!(table, " {} |", goals.join("; "));
        }
        table
    }

    /// The median, the range, and how many times better afar is.
    fn cell(&self, metric: Metric, contender: Contender) -> String {
        let Some(summary) = self.samples.summary(metric, contender) else {
            return "–".to_owned();
        };
        let Summary { median, min, max } = summary;
        let mut cell = format!("{} ({}–{})", number(median), number(min), number(max));
        if contender != Contender::Afar
            && let Some(times) = self.samples.advantage(metric, Contender::Afar, contender)
        {
            let _ = write!(cell, " **{}×**", number(times));
        }
        cell
    }

    /// What was demanded and whether it was reached.
    fn goal(&self, metric: Metric, goal: Goal) -> String {
        let median = self.samples.summary(metric, Contender::Afar).map(|summary| summary.median);
        let (text, met) = match goal {
            Goal::AtMost(limit) => {
                (format!("≤ {}", number(limit)), median.map(|median| median <= limit))
            }
            Goal::AtLeast(limit) => {
                (format!("≥ {}", number(limit)), median.map(|median| median >= limit))
            }
            Goal::Times(times, other) => (
                format!("≥ {}× {}", number(times), other.name()),
                self.samples.advantage(metric, Contender::Afar, other).map(|got| got >= times),
            ),
        };
        match met {
            Some(true) => format!("{text}: met"),
            Some(false) => format!("{text}: **missed**"),
            None => text,
        }
    }

    /// Everything, every sample included, for whoever wants to compare runs.
    pub(super) fn json(&self) -> Value {
        let results: Vec<Value> = self
            .samples
            .all()
            .map(|(metric, contender, samples)| {
                let summary = Summary::of(samples);
                json!({
                    "metric": metric.key(),
                    "unit": metric.unit().name(),
                    "of": contender.name(),
                    "samples": samples,
                    "median": summary.map(|summary| summary.median),
                    "min": summary.map(|summary| summary.min),
                    "max": summary.map(|summary| summary.max),
                    "afar_times_better": self.samples.advantage(metric, Contender::Afar, contender),
                })
            })
            .collect();
        let facts: serde_json::Map<String, Value> = self
            .facts
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
            .collect();
        json!({
            "command": self.command_line,
            "machine": facts,
            "left_out": self.left_out,
            "results": results,
        })
    }

    /// Puts the report between the marks in `path`.
    pub(super) fn write_into(&self, path: &Path) -> Result<()> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(Failure::io(format!("read {shown}")))?;
        let replaced = replace_between_marks(&text, &self.markdown())
            .ok_or_else(|| Failure::Check(format!("{shown} lacks the lines {BEGIN} and {END}")))?;
        std::fs::write(path, replaced).map_err(Failure::io(format!("write {shown}")))
    }
}

fn replace_between_marks(text: &str, content: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", content.trim()))
}

/// Three digits are more than the noise leaves.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(samples: Samples) -> Report {
        Report {
            command_line: "cargo xtask bench".to_owned(),
            facts: vec![("kernel", "6.0".to_owned())],
            left_out: vec!["somebody".to_owned()],
            samples,
        }
    }

    #[test]
    fn a_row_has_medians_ranges_ratios_and_goals() {
        let mut samples = Samples::default();
        for value in [4.0, 3.0, 5.0] {
            samples.add(Metric::Cold, Contender::Afar, value);
        }
        samples.add(Metric::Cold, Contender::Dbclient, 16.0);
        let text = report(samples).markdown();
        assert!(text.contains("- **left out**: somebody\n"));
        let row = text.lines().last().unwrap();
        assert_eq!(
            row,
            "| cold one-shot `true`, whole client process | ms | 4.00 (3.00–5.00) | \
             16.0 (16.0–16.0) **4.00×** | ≤ 4.00: met; ≥ 1.00× ssh ControlMaster; \
             ≥ 5.00× dbclient: **missed** |"
        );
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let replaced = replace_between_marks(&text, "new\n").unwrap();
        assert_eq!(replaced, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(replace_between_marks("a\nb\n", "new"), None);
    }

    #[test]
    fn the_record_has_every_sample() {
        let mut samples = Samples::default();
        samples.add(Metric::Lines, Contender::Ssh, 250.0);
        samples.add(Metric::Lines, Contender::Ssh, 260.0);
        let record = report(samples).json();
        assert_eq!(record["results"][0]["samples"], json!([250.0, 260.0]));
        assert_eq!(record["results"][0]["median"], json!(255.0));
        assert_eq!(record["machine"]["kernel"], json!("6.0"));
    }
}
