// SPDX-License-Identifier: MIT OR Apache-2.0
//! Samples, and their statistics: medians, and ratios pair by pair.

use serde::Serialize;

use crate::work::{Arm, Direction, Work};

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) work: Work,
    pub(crate) direction: Direction,
    pub(crate) arm: Arm,
    /// The value in the unit of its work; `None` if nothing could be measured.
    pub(crate) value: Option<f64>,
    /// The share of the packets that took the path that the arm measures, 0 to 1.
    pub(crate) share: Option<f64>,
    /// Why the value does not count.
    pub(crate) void: Option<String>,
}

impl Sample {
    /// Returns the value, if it counts.
    pub(crate) fn valid(&self) -> Option<f64> {
        self.value.filter(|_| self.void.is_none())
    }
}

/// The result of an arm for one work in one direction, over all rounds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub(crate) work: Work,
    pub(crate) direction: Direction,
    pub(crate) arm: Arm,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// The median of the ratios to stock in the same round; more is better.
    pub(crate) ratio: Option<f64>,
}

/// Summarises an arm's valid samples; `None` if there are none. An arm without samples of this
/// direction (the bare veth) is compared with its samples of no direction.
pub(crate) fn summary(
    samples: &[Sample],
    work: Work,
    direction: Direction,
    arm: Arm,
) -> Option<Summary> {
    let of = |arm: Arm| {
        samples.iter().filter(move |sample| {
            (sample.work, sample.direction, sample.arm) == (work, direction, arm)
        })
    };
    let values: Vec<_> = of(arm).filter_map(Sample::valid).collect();
    let pairs = of(arm).filter_map(|sample| {
        let mut same_round = of(Arm::Stock).filter(|stock| stock.round == sample.round);
        Some(work.ratio(sample.valid()?, same_round.find_map(Sample::valid)?))
    });
    Some(Summary {
        work,
        direction,
        arm,
        unit: work.unit(),
        median: median(values.clone())?,
        min: values.iter().copied().reduce(f64::min)?,
        max: values.iter().copied().reduce(f64::max)?,
        ratio: median(pairs.collect()),
    })
}

/// Returns the middle value, or the mean of the two in the middle; `None` for no values.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (middle, odd) = (values.len() / 2, values.len() % 2 == 1);
    let upper = *values.get(middle)?;
    Some(if odd {
        upper
    } else {
        f64::midpoint(values[middle - 1], upper)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(round: u32, arm: Arm, value: f64) -> Sample {
        Sample {
            round,
            work: Work::PingPong,
            direction: Direction::In,
            arm,
            value: Some(value),
            share: None,
            void: None,
        }
    }

    fn ping_pong(samples: &[Sample], arm: Arm) -> Option<Summary> {
        summary(samples, Work::PingPong, Direction::In, arm)
    }

    #[test]
    fn medians_are_exact() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 9.0, 2.0]), Some(3.0));
    }

    /// Ratios are of the same round, and more is better.
    #[test]
    fn ratios_are_per_round_and_more_is_better() {
        // A noisy machine: round 2 is slow for both, which the pairs do not see.
        let samples = [
            sample(1, Arm::Stock, 20.0),
            sample(1, Arm::Ours, 10.0),
            sample(2, Arm::Ours, 40.0),
            sample(2, Arm::Stock, 80.0),
            sample(3, Arm::Stock, 22.0),
            sample(3, Arm::Ours, 11.0),
        ];
        let ours = ping_pong(&samples, Arm::Ours).unwrap();
        assert_eq!((ours.min, ours.median, ours.max), (10.0, 11.0, 40.0));
        assert_eq!(ours.ratio, Some(2.0));
        assert_eq!(ping_pong(&samples, Arm::Stock).unwrap().ratio, Some(1.0));
        assert!(ping_pong(&samples, Arm::Bare).is_none());
    }

    #[test]
    fn void_sample_is_ignored() {
        let void = |sample| Sample {
            void: Some("took another path".into()),
            ..sample
        };
        let samples = [
            void(sample(1, Arm::Stock, 1.0)),
            sample(1, Arm::Ours, 10.0),
            sample(2, Arm::Stock, 30.0),
            sample(2, Arm::Ours, 20.0),
            sample(3, Arm::Stock, 30.0),
            void(sample(3, Arm::Ours, 1.0)),
        ];
        let ours = ping_pong(&samples, Arm::Ours).unwrap();
        assert_eq!((ours.min, ours.median, ours.max), (10.0, 15.0, 20.0));
        assert_eq!(ours.ratio, Some(1.5));
    }
}
