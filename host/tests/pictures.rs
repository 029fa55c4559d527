//! Image files as scores read them, against Pillow (`tests/golden/pictures.py`).

use std::path::Path;

use advdmd::picture::{Reading, decode, size, size_of_file};
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

/// A file of a few bytes whose header promises more pixels than memory holds.
#[test]
fn an_image_of_too_many_pixels_is_refused_by_its_header() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 30_000, 20_000);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    drop(writer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.png");
    std::fs::write(&path, &bytes).unwrap();
    let found = [
        size(&bytes).unwrap_err(),
        size_of_file(&path).unwrap_err(),
        decode(&bytes, Reading::OnWhite).unwrap_err(),
        decode(&bytes, Reading::Pillow).unwrap_err(),
        decode(
            b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;",
            Reading::Pillow,
        )
        .unwrap_err(),
    ];
    for (message, size) in found.iter().zip(["30000x20000"; 4].into_iter().chain(["65535x65535"])) {
        assert!(message.contains(&format!("is {size} pixels, more than 178956970: expected")), "{message}");
    }
}
