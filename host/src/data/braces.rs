//! Braces in the names of shards: `dir/{00000..00012}.tar`, `{train,val}.tar`.

/// Every name that a pattern stands for, in order: `{01..12}` counts, with as many digits as its first number is written
/// with, and `{a,b}` lists. A name without braces stands for itself.
///
/// # Errors
/// A brace without its partner, or a range that does not rise; in words.
pub(super) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return if pattern.contains('}') {
            Err("a `}` without its `{`".to_owned())
        } else {
            Ok(vec![pattern.to_owned()])
        };
    };
    let (inside, after) = rest.split_once('}').ok_or("a `{` without its `}`")?;
    let choices = match inside.split_once("..") {
        Some((first, last)) => range(first, last)?,
        None => inside.split(',').map(str::to_owned).collect(),
    };
    let tails = expand(after)?;
    let joined = choices.iter().flat_map(|choice| tails.iter().map(move |tail| format!("{before}{choice}{tail}")));
    Ok(joined.collect())
}

/// More shards than anybody has: a slip of the finger.
const MOST: u64 = 1_000_000;

fn range(first: &str, last: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten().ok_or(format!("{text:?} in braces is no number"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to || to - from >= MOST {
        return Err(format!("{{{first}..{last}}} does not count up, or counts too far"));
    }
    let width = if first.starts_with('0') || first.len() == last.len() { first.len() } else { 0 };
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_count_and_list() {
        let list = |pattern: &str| expand(pattern).map(|names| names.join(" "));
        let cases = [
            ("a.tar", "a.tar"),
            ("d/{008..011}.tar", "d/008.tar d/009.tar d/010.tar d/011.tar"),
            ("{8..11}", "8 9 10 11"),
            ("{a,b}-{0..1}", "a-0 a-1 b-0 b-1"),
        ];
        for (pattern, expected) in cases {
            assert_eq!(list(pattern).as_deref(), Ok(expected));
        }
        for (pattern, part) in
            [("{a", "without its"), ("a}", "without its"), ("{2..1}", "count up"), ("{a..c}", "no number")]
        {
            assert!(list(pattern).unwrap_err().contains(part), "{pattern}");
        }
    }
}
