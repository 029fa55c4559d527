//! The main numbers of an update in one line.

use std::collections::BTreeMap;

/// The losses, the discriminators' accuracy and the rewards of an update, by the names of [`crate::metrics`]:
/// "dmd 0.412  gan 0.69  grpo -1.3e-5  D acc 0.81  aesthetic 0.53". What was not measured is left out; what is not
/// finite is shown as it is.
pub fn headline(values: &BTreeMap<String, f64>) -> String {
    let mut parts = Vec::new();
    for objective in ["dmd", "gan", "grpo"] {
        if let Some(loss) = values.get(&format!("{objective}/loss")) {
            parts.push(format!("{objective} {}", short(*loss)));
        }
    }
    if let Some(accuracy) = mean(values, |name| name.starts_with("critic/") && name.contains("/accuracy/")) {
        parts.push(format!("D acc {}", short(accuracy)));
    }
    let mut rewards: Vec<&str> = values.keys().filter_map(|name| reward_of(name)).collect();
    rewards.dedup();
    for reward in rewards {
        if let Some(value) = mean(values, |name| reward_of(name) == Some(reward)) {
            parts.push(format!("{reward} {}", short(value)));
        }
    }
    parts.join("  ")
}

/// The reward whose mean at some step `name` is: `reward/<name>/step<k>/mean`.
fn reward_of(name: &str) -> Option<&str> {
    let (reward, rest) = name.strip_prefix("reward/")?.split_once("/step")?;
    rest.ends_with("/mean").then_some(reward)
}

fn mean(values: &BTreeMap<String, f64>, wanted: impl Fn(&str) -> bool) -> Option<f64> {
    let (sum, count) = values
        .iter()
        .filter(|(name, _)| wanted(name))
        .fold((0.0, 0.0), |(sum, count), (_, value)| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// Three significant digits; powers of ten where a plain number would be long.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || !value.is_finite() {
        format!("{value}")
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else {
        let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
        format!("{value:.decimals$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_numbers_in_order() {
        let values = [
            ("critic/heads/accuracy/step0", 0.8),
            ("critic/heads/accuracy/step1", 0.9),
            ("critic/heads/loss", 1.1),
            ("dmd/loss", 0.41234),
            ("gan/loss", f64::NAN),
            ("grpo/loss", -1.34e-5),
            ("reward/adversarial/step0/mean", 0.25),
            ("reward/adversarial/step1/mean", 0.75),
            ("reward/adversarial/step1/std", 100.0),
            ("reward/hps/step0/mean", 27.53),
        ];
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let expected = "dmd 0.412  gan NaN  grpo -1.3e-5  D acc 0.850  adversarial 0.500  hps 27.5";
        assert_eq!(headline(&values), expected);
    }

    #[test]
    fn nothing_measured_is_an_empty_line() {
        assert_eq!(headline(&BTreeMap::new()), "");
    }
}
