//! Whether an image file is all there: its decoder fills in what is missing at the end.

use image::ImageFormat;

/// # Errors
/// A JPEG or `WebP` file that was cut off; in words. PNG's own checksums find that.
pub(super) fn check(bytes: &[u8], format: ImageFormat) -> Result<(), String> {
    let whole = match format {
        ImageFormat::Jpeg => jpeg_ends(bytes),
        ImageFormat::WebP => riff_size(bytes).is_some_and(|size| size <= bytes.len() as u64),
        _ => true,
    };
    if whole { Ok(()) } else { Err("is cut off: the file ends before the image does".to_owned()) }
}

/// The size that a RIFF file says it has.
fn riff_size(bytes: &[u8]) -> Option<u64> {
    let size = bytes.get(4..8)?.try_into().ok().map(u32::from_le_bytes)?;
    Some(u64::from(size) + 8)
}

/// Whether the segments of a JPEG file lead to its end marker. A thumbnail inside a segment has one of its own, so that it is
/// not enough to look for one (ITU-T T.81, annex B).
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // A marker is FF and a byte; more FFs may stand before it.
        let Some(start) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte != 0xff)) else {
            return false;
        };
        if start == 0 {
            return false;
        }
        let marker = bytes[at + start];
        at += start + 1;
        match marker {
            0xd9 => return true,
            0x01 | 0xd0..=0xd7 => continue,
            _ => {}
        }
        let Some(length) = bytes.get(at..at + 2).map(|length| usize::from(u16::from_be_bytes([length[0], length[1]])))
        else {
            return false;
        };
        at += length;
        if marker == 0xda {
            // Coded data goes on until a marker: in it FF is followed by 0, or by a restart.
            let scan = bytes.get(at..).unwrap_or_default();
            let end = scan.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff));
            let Some(end) = end else { return false };
            at += end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_not_whole() {
        let jpeg: &[u8] = include_bytes!("fixtures/turned.jpg");
        assert!(jpeg_ends(jpeg));
        for length in (0..jpeg.len() - 2).step_by(7) {
            assert!(check(&jpeg[..length], ImageFormat::Jpeg).is_err(), "{length} of {} bytes", jpeg.len());
        }
        let mut padded = jpeg.to_vec();
        padded.extend([0, 1, 2]);
        assert!(check(&padded, ImageFormat::Jpeg).is_ok());
        let webp = b"RIFF\x08\x00\x00\x00WEBPVP8 ";
        assert!(check(webp, ImageFormat::WebP).is_ok() && check(&webp[..15], ImageFormat::WebP).is_err());
    }
}
