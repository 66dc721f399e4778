//! The least and the median of repeated measurements.

/// The least and the median.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// What noise added nothing to, or least.
    pub least: f64,
    /// Half way between the two in the middle where their number is even.
    pub median: f64,
}

impl Spread {
    /// Of `values`; not numbers (NaN) where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let count = values.len();
        Spread {
            least: at(0),
            median: f64::midpoint(at(count.saturating_sub(1) / 2), at(count / 2)),
        }
    }
}
