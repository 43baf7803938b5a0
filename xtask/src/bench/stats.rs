//! What is said about a series of measurements.

use std::collections::BTreeMap;

use super::rows::{Contender, Metric};

/// Median and range: what survives noise, and how much of it there was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// `None` for no samples.
    pub(super) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 {
            upper
        } else {
            f64::midpoint(*sorted.get(middle - 1)?, upper)
        };
        Some(Self { median, min, max })
    }
}

/// Every sample of the run.
#[derive(Debug, Default)]
pub(super) struct Samples {
    samples: BTreeMap<(Metric, Contender), Vec<f64>>,
}

impl Samples {
    pub(super) fn add(&mut self, metric: Metric, contender: Contender, value: f64) {
        self.samples.entry((metric, contender)).or_default().push(value);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Metric, Contender, &[f64])> {
        self.samples.iter().map(|((metric, of), samples)| (*metric, *of, samples.as_slice()))
    }

    pub(super) fn summary(&self, metric: Metric, contender: Contender) -> Option<Summary> {
        Summary::of(self.samples.get(&(metric, contender))?)
    }

    /// The metrics that anybody has samples of, in the order of the table.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<Metric> = self.samples.keys().map(|(metric, _)| *metric).collect();
        metrics.dedup();
        metrics
    }

    /// How many times better `one` is than `other`: above 1 is better, whatever the unit.
    pub(super) fn advantage(
        &self,
        metric: Metric,
        one: Contender,
        other: Contender,
    ) -> Option<f64> {
        let (one, other) = (self.summary(metric, one)?.median, self.summary(metric, other)?.median);
        let ratio = if metric.unit().less_is_better() { other / one } else { one / other };
        ratio.is_finite().then_some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        let summary = |samples: &[f64]| Summary::of(samples).map(|summary| summary.median);
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[3.0]), Some(3.0));
        assert_eq!(summary(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn better_is_above_one_for_times_and_for_rates() {
        let mut samples = Samples::default();
        samples.add(Metric::Cold, Contender::Afar, 4.0);
        samples.add(Metric::Cold, Contender::Ssh, 200.0);
        samples.add(Metric::BulkDown, Contender::Afar, 900.0);
        samples.add(Metric::BulkDown, Contender::Ssh, 450.0);
        let advantage = |metric| samples.advantage(metric, Contender::Afar, Contender::Ssh);
        assert_eq!(advantage(Metric::Cold), Some(50.0));
        assert_eq!(advantage(Metric::BulkDown), Some(2.0));
        assert_eq!(advantage(Metric::Lines), None);
        assert_eq!(samples.metrics(), [Metric::Cold, Metric::BulkDown]);
    }
}
