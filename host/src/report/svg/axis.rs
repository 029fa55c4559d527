//! The vertical axis of a chart: its range, its ticks, and where a value lies on it.

use super::number::{grouped, number};

/// Linear or logarithmic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal factors; falls back to linear where a value is 0 or below.
    Log,
}

/// A range of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    scale: Scale,
}

impl Axis {
    /// An axis with room for all of `values` that are finite; 0 to 1 for none, and around the value for a single one.
    pub fn around(values: impl Iterator<Item = f64>, scale: Scale) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            return Self { low: 0.0, high: 1.0, scale: Scale::Linear };
        }
        if scale == Scale::Log && low > 0.0 {
            // On either side a twentieth of the range, and at least 0.15 decades.
            let room = (0.05 * (high / low).log10()).max(0.15);
            return Self { low: low * 10f64.powf(-room), high: high * 10f64.powf(room), scale };
        }
        if high - low <= 1e-9 * high.abs().max(low.abs()) {
            let room = if high == 0.0 { 1.0 } else { 0.1 * high.abs() };
            (low, high) = (low - room, high + room);
        }
        let step = nice_step(high - low, 4);
        // A value that is a multiple but for rounding is an end of its own.
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        Self { low: first * step, high: last * step, scale: Scale::Linear }
    }

    /// Where a value lies: 0 at the low end, 1 at the high end; NaN where it has no place.
    pub fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).log10() / (self.high / self.low).log10(),
        }
    }

    /// Round values along the axis with their texts.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, 4),
            Scale::Log => log_ticks(self.low, self.high),
        }
    }
}

/// About `count` round values from `low` to `high` for an axis of whole numbers.
pub fn whole_ticks(low: f64, high: f64, count: usize) -> Vec<(f64, String)> {
    let step = nice_step(high - low, count).max(1.0);
    multiples(low, high, step).into_iter().map(|value| (value, grouped(value))).collect()
}

fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<(f64, String)> {
    let step = nice_step(high - low, count);
    let largest = low.abs().max(high.abs());
    let decimals = (-(step * 1.000_001).log10().floor()).max(0.0) as usize;
    let text = |value: f64| {
        let value = if value.abs() < step / 1e6 { 0.0 } else { value };
        match largest {
            _ if value == 0.0 && !(1e-3..1e4).contains(&largest) => "0".to_owned(),
            1e6.. => format!("{}M", value / 1e6),
            1e4..1e6 => format!("{}k", value / 1e3),
            1e-3..1e4 if decimals <= 5 => format!("{value:.decimals$}"),
            _ => number(value),
        }
    };
    multiples(low, high, step).into_iter().map(|value| (value, text(value))).collect()
}

fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let with = |factors: &[f64]| -> Vec<f64> {
        let all = (first..=last).flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        all.filter(|value| (low..=high).contains(value)).collect()
    };
    let decades = with(&[1.0]);
    let values = match decades.len() {
        0..2 => Some(with(&[1.0, 2.0, 5.0]))
            .filter(|few| few.len() > 1)
            .unwrap_or_else(|| with(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])),
        2..=5 => decades,
        more => decades.into_iter().step_by(more.div_ceil(4)).collect(),
    };
    values.into_iter().map(|value| (value, number(value))).collect()
}

fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    let slack = step * 1e-6;
    let (first, last) = (((low - slack) / step).ceil(), ((high + slack) / step).floor());
    // A step of a quarter of the range gives a handful; the bound holds whatever the numbers are.
    (0..=(last - first).clamp(0.0, 50.0) as usize).map(|index| (first + index as f64) * step).collect()
}

/// The round step (1, 2 or 5 times a power of ten) that divides a range into about `count` parts.
fn nice_step(range: f64, count: usize) -> f64 {
    let rough = range / count as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(rough.log10().floor());
    let factor = match rough / power {
        ..1.5 => 1.0,
        ..3.5 => 2.0,
        ..7.5 => 5.0,
        _ => 10.0,
    };
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn linear_axes_end_on_round_values() {
        let axis = Axis::around([0.13, 0.87].into_iter(), Scale::Linear);
        assert_eq!(texts(axis), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert!((axis.place(0.5) - 0.5).abs() < 1e-12);
        assert_eq!(
            texts(Axis::around([0.0, 12_000.0].into_iter(), Scale::Linear)),
            ["0", "2k", "4k", "6k", "8k", "10k", "12k"]
        );
        assert_eq!(texts(Axis::around([0.0, 5.4e6].into_iter(), Scale::Linear)), ["0", "2M", "4M", "6M"]);
        assert_eq!(
            texts(Axis::around([-2e-5, 1e-5].into_iter(), Scale::Linear)),
            ["-2.0e-5", "-1.0e-5", "0", "1.0e-5"]
        );
    }

    #[test]
    fn constant_empty_and_broken_values_still_have_an_axis() {
        let constant = Axis::around([3e-5; 4].into_iter(), Scale::Linear);
        assert!(constant.low < 3e-5 && constant.high > 3e-5);
        assert!((0.3..0.7).contains(&constant.place(3e-5)));
        let zero = Axis::around([0.0].into_iter(), Scale::Linear);
        assert_eq!((zero.low, zero.high), (-1.0, 1.0));
        for values in [vec![], vec![f64::NAN, f64::INFINITY]] {
            let axis = Axis::around(values.into_iter(), Scale::Log);
            assert_eq!((axis.low, axis.high), (0.0, 1.0));
        }
        let mixed = Axis::around([f64::NAN, 1.0, 2.0].into_iter(), Scale::Linear);
        assert_eq!((mixed.low, mixed.high), (1.0, 2.0));
    }

    #[test]
    fn log_axes_have_decades_and_refuse_zero() {
        let axis = Axis::around([0.01, 100.0].into_iter(), Scale::Log);
        assert_eq!(texts(axis), ["0.0100", "0.100", "1.00", "10.0", "100"].map(trimmed));
        assert!((axis.place(1.0) - 0.5).abs() < 1e-9);
        let narrow = texts(Axis::around([3.0, 4.0].into_iter(), Scale::Log));
        assert!(narrow.len() >= 2, "{narrow:?}");
        assert_eq!(Axis::around([0.0, 10.0].into_iter(), Scale::Log).scale, Scale::Linear);
    }

    fn trimmed(text: &str) -> String {
        number(text.parse().unwrap())
    }

    #[test]
    fn update_axes_count_in_whole_numbers() {
        let ticks: Vec<String> = whole_ticks(0.0, 3.0, 4).into_iter().map(|(_, text)| text).collect();
        assert_eq!(ticks, ["0", "1", "2", "3"]);
        assert_eq!(whole_ticks(5.0, 5.0, 4).len(), 1);
    }
}
