//! Percentiles of a series.

use serde::Serialize;

/// What a series of figures comes to. Percentiles are figures that were measured (nearest rank), never made up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) least: f64,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) most: f64,
    pub(super) mean: f64,
}

impl Summary {
    /// `None` without figures.
    pub(super) fn new(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(index).copied()
        };
        Some(Summary {
            least: *values.first()?,
            p50: rank(50)?,
            p95: rank(95)?,
            p99: rank(99)?,
            most: *values.last()?,
            mean: values.iter().sum::<f64>() / values.len() as f64,
        })
    }

    /// The percentile with this number.
    pub(super) fn at(&self, percentile: u32) -> f64 {
        match percentile {
            50 => self.p50,
            99 => self.p99,
            _ => self.p95,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_figures_of_the_series() {
        let summary = Summary::new((1..=200).rev().map(f64::from)).unwrap();
        assert_eq!(
            (summary.least, summary.p50, summary.p95, summary.p99, summary.most),
            (1.0, 100.0, 190.0, 198.0, 200.0)
        );
        assert_eq!(summary.mean, 100.5);
        let one = Summary::new([7.0].into_iter()).unwrap();
        assert_eq!((one.p50, one.p99, one.at(95)), (7.0, 7.0, 7.0));
        assert_eq!(Summary::new(std::iter::empty()), None);
    }
}
