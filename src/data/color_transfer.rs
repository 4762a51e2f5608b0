//! Colours of one picture in the manner of another.

use crate::io::images::RgbImage;

/// Gives every channel of `image` the mean and the standard deviation it has in `like`; values that leave the range are cut off.
///
/// # Source
/// Reinhard, Ashikhmin, Gooch and Shirley, "Color transfer between images", equations 10 and 11, but in RGB instead of lαβ.
pub fn match_colors(image: &mut RgbImage, like: &RgbImage) {
    for channel in 0..3 {
        let (own, other) = (statistics(image, channel), statistics(like, channel));
        let gain = if own.1 > 0.0 { other.1 / own.1 } else { 0.0 };
        for value in image.pixels.iter_mut().skip(channel).step_by(3) {
            *value = ((f64::from(*value) - own.0) * gain + other.0).round().clamp(0.0, 255.0) as u8;
        }
    }
}

/// Mean and standard deviation of a channel.
fn statistics(image: &RgbImage, channel: usize) -> (f64, f64) {
    let values = || image.pixels.iter().skip(channel).step_by(3).map(|value| f64::from(*value));
    let count = (image.height * image.width).max(1) as f64;
    let mean = values().sum::<f64>() / count;
    (mean, (values().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, value: impl Fn(usize) -> u8) -> RgbImage {
        RgbImage { height: 8, width, pixels: (0..8 * width * 3).map(value).collect() }
    }

    #[test]
    fn means_and_deviations_are_those_of_the_other_picture() {
        let mut image = picture(16, |i| (i * 7 % 120) as u8);
        let like = picture(5, |i| (90 + 20 * (i % 3) + i * 5 % 31) as u8);
        match_colors(&mut image, &like);
        for channel in 0..3 {
            let (found, expected) = (statistics(&image, channel), statistics(&like, channel));
            assert!((found.0 - expected.0).abs() < 0.1 && (found.1 - expected.1).abs() < 0.3, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn one_colour_becomes_one_colour() {
        let mut image = picture(4, |_| 17);
        match_colors(&mut image, &picture(4, |i| (i % 200) as u8));
        assert!(image.pixels.iter().skip(1).step_by(3).all(|value| *value == image.pixels[1]));
    }
}
