//! The valid name that a wrong one was probably meant to be.

/// The candidate nearest to `word`, if one is near enough to be a slip.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let score = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let whole = strsim::normalized_damerau_levenshtein(&word, &candidate);
        // `cps` for `sde-cps`, `scale` for `guidance_scale`: right, but only a part.
        let parts = candidate.split(['_', '-']).filter(|part| part.len() >= 3);
        let part = parts.map(|part| strsim::normalized_damerau_levenshtein(&word, part)).fold(0.0, f64::max);
        if part >= 0.7 { whole.max(0.9 * part) } else { whole }
    };
    let scored = candidates.into_iter().map(|candidate| (score(candidate), candidate));
    // Of equals, the first.
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    (best.0 >= 0.5).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let keys = ["groups", "group_size", "micro_batch"];
        assert_eq!(nearest("grups", keys), Some("groups"));
        assert_eq!(nearest("groupsize", keys), Some("group_size"));
        assert_eq!(nearest("Micro_Batch", keys), Some("micro_batch"));
        assert_eq!(nearest("batch", keys), Some("micro_batch"));
        assert_eq!(nearest("temperature", keys), None);
        assert_eq!(nearest("lr", ["learning_rate"]), None);
        assert_eq!(nearest("eulr", ["ode-dpm2m", "ode-euler", "sde-cps"]), Some("ode-euler"));
        assert_eq!(nearest("cps", ["ode-dpm2m", "ode-euler", "sde-cps"]), Some("sde-cps"));
        assert_eq!(nearest("any", []), None);
    }
}
