//! Numbers as a reader wants them.

/// Three significant digits: "0.0123", "1.50", "12,345", "3.0e-5". Not a number is "–".
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    match size {
        ..1e-3 => format!("{value:.1e}"),
        ..1e3 => {
            let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
            let text = format!("{value:.decimals$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
        ..1e7 => grouped(value),
        _ => format!("{value:.1e}"),
    }
}

/// A whole number with a comma every three digits.
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < -0.5 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let cases = [
            (0.0, "0"),
            (f64::NAN, "–"),
            (0.012_345, "0.0123"),
            (1.5, "1.5"),
            (-100.0, "-100"),
            (999.6, "1000"),
            (12_345.4, "12,345"),
            (3e-5, "3.0e-5"),
            (2.5e8, "2.5e8"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
        assert_eq!(grouped(-1_234_567.0), "-1,234,567");
    }
}
