//! Speed and time left.

use std::time::{Duration, Instant};

/// Weight of the newest measurement in the running mean of the time per unit.
const NEWEST: f64 = 0.1;

/// The running mean of the time that a unit takes.
#[derive(Debug)]
pub(super) struct Pace {
    done: u64,
    /// When `done` was reached; `None` after a pause, whose time must not count.
    at: Option<Instant>,
    seconds_per_unit: Option<f64>,
}

impl Pace {
    pub(super) fn new(done: u64, now: Instant) -> Self {
        Self { done, at: Some(now), seconds_per_unit: None }
    }

    pub(super) fn advance(&mut self, done: u64, now: Instant) {
        if let (Some(at), Some(units @ 1..)) = (self.at, done.checked_sub(self.done)) {
            let newest = now.duration_since(at).as_secs_f64() / units as f64;
            self.seconds_per_unit = Some(self.seconds_per_unit.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
        }
        (self.done, self.at) = (done, Some(now));
    }

    pub(super) fn pause(&mut self) {
        self.at = None;
    }

    /// "1.8/s, 12m left", "4.2 s each, 1h 05m left".
    pub(super) fn describe(&self, left: u64) -> String {
        let Some(seconds) = self.seconds_per_unit else { return String::new() };
        let speed =
            if seconds < 1.0 { format!("{:.1}/s", 1.0 / seconds.max(1e-9)) } else { format!("{seconds:.1} s each") };
        let rest = Duration::try_from_secs_f64(seconds * left as f64).unwrap_or(Duration::MAX);
        format!("{speed}, {} left", duration(rest))
    }
}

/// A duration as a person says it: "8s", "12m 30s", "1h 05m", "3d 4h".
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let say = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!([say(0), say(59), say(61)], ["0s", "59s", "1m 01s"]);
        assert_eq!([say(3900), say(86_400 * 3 + 4 * 3600)], ["1h 05m", "3d 4h"]);
    }

    #[test]
    fn pace_ignores_pauses_and_what_was_done_before() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(1000, start);
        assert_eq!(pace.describe(10), "");
        pace.advance(1002, after(4));
        assert_eq!(pace.describe(30), "2.0 s each, 1m 00s left");
        pace.pause();
        pace.advance(1003, after(4000));
        pace.advance(1004, after(4002));
        assert_eq!(pace.describe(30), "2.0 s each, 1m 00s left");
    }

    #[test]
    fn fast_units_are_counted_per_second() {
        let start = Instant::now();
        let mut pace = Pace::new(0, start);
        pace.advance(50, start + Duration::from_secs(10));
        assert_eq!(pace.describe(0), "5.0/s, 0s left");
    }
}
