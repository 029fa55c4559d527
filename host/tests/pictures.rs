//! Image files as scores read them, against Pillow (`tests/golden/pictures.py`).

use std::path::Path;

use advdmd::picture::{Reading, decode, size_of_file};
use advdmd_nn::Weights;
use tch::Device;

#[test]
fn pixels_are_pillows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/pictures");
    let expected = Weights::load(&folder.join("expected.safetensors"), None, Device::Cpu).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, pixels) in expected.iter() {
        let path = folder.join(name);
        let image =
            decode(&std::fs::read(&path).unwrap(), Reading::Pillow).unwrap_or_else(|why| panic!("{name}: {why}"));
        let size = [image.width(), image.height()];
        assert_eq!(pixels.size(), [i64::from(size[1]), i64::from(size[0]), 3], "{name}");
        assert_eq!(size_of_file(&path).unwrap(), size, "{name}");
        let pixels = Vec::<u8>::try_from(pixels.reshape(-1)).unwrap();
        let apart = image.as_raw().iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        println!("{name}: {apart}");
        if apart > 0 {
            wrong.push(format!("{name}: {apart} apart"));
        }
        count += 1;
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(count >= 35, "{count}");
}
