//! Quantiles, and the paired ratio with its bootstrap interval. Deterministic: the same samples and seed give
//! the same figures.

use serde::{Deserialize, Serialize};

/// Resamples per interval. The ends of a 95 % interval rest on 50 of them each.
const RESAMPLES: usize = 2000;
/// What an interval leaves out at each end.
const TAIL: f64 = 0.025;

/// The quantile `q` (0 to 1) of `samples` by linear interpolation (Hyndman and Fan's type 7); `None` without
/// samples.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted_quantile(&sorted, q)
}

fn sorted_quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    let (low, high) = (sorted[below], sorted[above]);
    Some(low + (high - low) * (at - below as f64))
}

/// The median.
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// A ratio and the interval that holds it with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The estimate: below 1, the first of the two took less.
    pub ratio: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The median of `this[i] / that[i]`: both were measured in the same round, so what disturbed the round
/// cancels out. The interval comes from drawing rounds with replacement. `None` without rounds, or with a
/// denominator that is not positive.
pub fn paired_ratio(this: &[f64], that: &[f64], seed: u64) -> Option<Ratio> {
    if this.len() != that.len() || that.iter().any(|&v| v <= 0.0) {
        return None;
    }
    let ratios: Vec<f64> = this.iter().zip(that).map(|(a, b)| a / b).collect();
    let ratio = median(&ratios)?;
    let mut draw = Draw::new(seed);
    interval(ratio, || median(&draw.resample(&ratios)))
}

/// The ratio of the medians of two runs that were not interleaved; each is drawn from with replacement.
pub fn unpaired_ratio(this: &[f64], that: &[f64], seed: u64) -> Option<Ratio> {
    let of = |a: &[f64], b: &[f64]| {
        let denominator = median(b).filter(|&v| v > 0.0)?;
        Some(median(a)? / denominator)
    };
    let ratio = of(this, that)?;
    let mut draw = Draw::new(seed);
    interval(ratio, || of(&draw.resample(this), &draw.resample(that)))
}

fn interval(ratio: f64, mut estimate: impl FnMut() -> Option<f64>) -> Option<Ratio> {
    let mut estimates: Vec<f64> = (0..RESAMPLES).filter_map(|_| estimate()).collect();
    estimates.sort_by(f64::total_cmp);
    Some(Ratio {
        ratio,
        low: sorted_quantile(&estimates, TAIL)?,
        high: sorted_quantile(&estimates, 1.0 - TAIL)?,
    })
}

/// Random draws by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// 2014).
struct Draw(u64);

impl Draw {
    fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// As many samples as there are, each drawn from all of them.
    fn resample(&mut self, samples: &[f64]) -> Vec<f64> {
        let count = samples.len() as u128;
        // The high half of the product is uniform to one part in 2^64 / count.
        let index = |random: u64| ((u128::from(random) * count) >> 64) as usize;
        (0..samples.len()).map(|_| samples[index(self.next())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&samples, 0.0), Some(1.0));
        assert_eq!(median(&samples), Some(2.5));
        assert_eq!(quantile(&samples, 1.0), Some(4.0));
        assert!((quantile(&samples, 0.99).unwrap() - 3.97).abs() < 1e-9);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_disturbance_that_hits_a_whole_round_cancels_out() {
        // Rounds differ by a factor of ten, the second configuration always takes twice as long.
        let that: Vec<f64> = (1..=20).map(|n| f64::from(n * n)).collect();
        let this: Vec<f64> = that.iter().map(|v| v * 2.0).collect();
        let ratio = paired_ratio(&this, &that, 1).unwrap();
        assert_eq!((ratio.ratio, ratio.low, ratio.high), (2.0, 2.0, 2.0));
    }

    #[test]
    fn the_interval_covers_the_true_ratio_at_its_confidence_level() {
        // 200 experiments of 30 rounds with ±10 % noise around a true ratio of 1.1.
        let mut noise = Draw::new(7);
        let mut sample = |centre: f64| centre * (0.9 + 0.2 * (noise.next() as f64 / u64::MAX as f64));
        let mut held = 0;
        for seed in 0..200 {
            let that: Vec<f64> = (0..30).map(|_| sample(1.0)).collect();
            let this: Vec<f64> = (0..30).map(|_| sample(1.1)).collect();
            let found = paired_ratio(&this, &that, seed).unwrap();
            assert!(found.low <= found.ratio && found.ratio <= found.high);
            held += usize::from(found.low <= 1.1 && 1.1 <= found.high);
        }
        assert!((180..=200).contains(&held), "{held} of 200");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let this = [1.0, 1.2, 0.9, 1.4, 1.1];
        let that = [1.0, 1.0, 1.1, 1.0, 0.9];
        assert_eq!(paired_ratio(&this, &that, 3), paired_ratio(&this, &that, 3));
        assert_eq!(unpaired_ratio(&this, &that, 3), unpaired_ratio(&this, &that, 3));
        let hundred: Vec<f64> = (0..100).map(f64::from).collect();
        assert_ne!(Draw::new(3).resample(&hundred), Draw::new(4).resample(&hundred));
    }

    #[test]
    fn no_samples_give_no_result() {
        assert_eq!(paired_ratio(&[], &[], 1), None);
        assert_eq!(paired_ratio(&[1.0], &[], 1), None);
        assert_eq!(paired_ratio(&[1.0], &[0.0], 1), None);
        assert_eq!(unpaired_ratio(&[1.0], &[], 1), None);
    }
}
