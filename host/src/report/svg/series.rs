//! A curve's points, thinned to what a chart can show.

/// A curve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// x rising; a y that is not finite is a gap.
    pub points: Vec<(f64, f64)>,
    /// Standard errors of the points; with them, the points are drawn as dots with whiskers.
    pub errors: Option<Vec<f64>>,
}

/// Neighbouring points as one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Mean of their x.
    pub x: f64,
    /// Mean of their finite y; NaN where there is none.
    pub mean: f64,
    /// Least of their finite y.
    pub low: f64,
    /// Greatest of their finite y.
    pub high: f64,
    /// Whether a y is not finite.
    pub broken: bool,
}

/// More points than this are thinned to this many: a chart has about two pixels for each.
const BUCKETS: usize = 180;

impl Series {
    /// A curve through points.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, errors: None }
    }

    /// The last value.
    pub fn last(&self) -> Option<f64> {
        self.points.last().map(|(_, y)| *y)
    }

    /// The points in at most [`BUCKETS`] groups of equal width in x.
    pub fn buckets(&self) -> Vec<Bucket> {
        let (Some((first, _)), Some((last, _))) = (self.points.first(), self.points.last()) else { return Vec::new() };
        let width = if self.points.len() > BUCKETS { (last - first) / BUCKETS as f64 } else { 0.0 };
        if width <= 0.0 {
            return self.points.chunks(1).map(bucket).collect();
        }
        let key = |x: f64| (((x - first) / width) as usize).min(BUCKETS - 1);
        self.points.chunk_by(|(a, _), (b, _)| key(*a) == key(*b)).map(bucket).collect()
    }
}

fn bucket(points: &[(f64, f64)]) -> Bucket {
    let finite = || points.iter().map(|(_, y)| *y).filter(|y| y.is_finite());
    Bucket {
        x: points.iter().map(|(x, _)| x).sum::<f64>() / points.len() as f64,
        mean: finite().sum::<f64>() / finite().count() as f64,
        low: finite().fold(f64::NAN, f64::min),
        high: finite().fold(f64::NAN, f64::max),
        broken: points.iter().any(|(_, y)| !y.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_stay_as_they_are() {
        let series = Series::new("a", vec![(1.0, 2.0), (2.0, f64::NAN)]);
        let buckets = series.buckets();
        assert_eq!(buckets[0], Bucket { x: 1.0, mean: 2.0, low: 2.0, high: 2.0, broken: false });
        assert!(buckets[1].mean.is_nan() && buckets[1].broken);
        assert_eq!(Series::default().buckets(), []);
    }

    #[test]
    fn many_points_are_thinned_with_their_extremes() {
        let points = (0..10_000).map(|i| (f64::from(i), if i == 5000 { 99.0 } else { 1.0 }));
        let buckets = Series::new("a", points.collect()).buckets();
        assert_eq!(buckets.len(), BUCKETS);
        assert_eq!(buckets.iter().map(|bucket| bucket.high).fold(0.0, f64::max), 99.0);
        assert!(buckets.iter().all(|bucket| bucket.low == 1.0 && bucket.mean < 3.0));
    }

    #[test]
    fn points_at_one_place_do_not_divide_by_zero() {
        let series = Series::new("a", vec![(3.0, 1.0); 500]);
        assert_eq!(series.buckets().len(), 500);
    }
}
