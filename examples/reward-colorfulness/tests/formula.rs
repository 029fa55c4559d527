//! The measure against numpy.

use reward_colorfulness::colorfulness;

/// An image of 5x7 pixels whose values any language gives alike.
fn image() -> Vec<f32> {
    (0..105).map(|index| ((index * index * 7 + index * 3) % 101) as f32 / 128.0).collect()
}

/// ```python
/// import numpy as np
/// i = np.arange(105); x = ((i * i * 7 + i * 3) % 101 / 128).reshape(3, 5, 7) * 255
/// rg, yb = x[0] - x[1], (x[0] + x[1]) / 2 - x[2]
/// print(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
/// ```
#[test]
fn the_numbers_are_those_of_numpy() {
    let found = colorfulness(&image());
    assert!((found - 133.059768).abs() < 1e-4, "{found}");
    assert_eq!(colorfulness(&[0.25; 12]), 0.0);
    // Pure red: both opponent colours are constant, 255 and 127.5.
    let red = colorfulness(&[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert!((red - 0.3 * 255f32.hypot(127.5)).abs() < 1e-4, "{red}");
}
