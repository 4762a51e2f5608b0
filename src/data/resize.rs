//! Resizing of pictures and label maps, each kind equal to the tool whose results it has to match. Sizes are (height, width).

use crate::io::images::RgbImage;
use crate::labels::LabelMap;

/// Bilinear without antialiasing, half-pixel centres, 11-bit weights: equals OpenCV's `INTER_LINEAR` on 8-bit pictures.
pub fn bilinear(image: &RgbImage, size: (usize, usize)) -> RgbImage {
    if (image.height, image.width) == size {
        return image.clone();
    }
    let columns = linear_taps(image.width, size.1);
    let stride = image.width * 3;
    let widen = |y: usize| -> Vec<i32> {
        let row = &image.pixels[y * stride..][..stride];
        let pixel = |t: &Taps| {
            [0, 1, 2].map(|c| i32::from(row[t.low * 3 + c]) * t.weights.0 + i32::from(row[t.high * 3 + c]) * t.weights.1)
        };
        columns.iter().flat_map(pixel).collect()
    };
    let mut pixels = Vec::with_capacity(size.0 * size.1 * 3);
    let mut rows: [(usize, Vec<i32>); 2] = [(usize::MAX, Vec::new()), (usize::MAX, Vec::new())];
    for taps in linear_taps(image.height, size.0) {
        // Consecutive target rows mostly share source rows.
        if rows[1].0 == taps.low {
            rows.swap(0, 1);
        }
        for (slot, y) in rows.iter_mut().zip([taps.low, taps.high]) {
            if slot.0 != y {
                *slot = (y, widen(y));
            }
        }
        let blend =
            |(&a, &b): (&i32, &i32)| ((((taps.weights.0 * (a >> 4)) >> 16) + ((taps.weights.1 * (b >> 4)) >> 16) + 2) >> 2) as u8;
        pixels.extend(rows[0].1.iter().zip(&rows[1].1).map(blend));
    }
    RgbImage { height: size.0, width: size.1, pixels }
}

/// The two neighbours of a target position and their weights, which sum to 2048.
struct Taps {
    low: usize,
    high: usize,
    weights: (i32, i32),
}

fn linear_taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let tap = |target: usize| {
        let source = ((target as f64 + 0.5) * scale - 0.5) as f32;
        let low = source.floor();
        let share = if low < 0.0 || low as usize >= from - 1 { 0.0 } else { source - low };
        let weight = |share: f32| (share * 2048.0).round_ties_even() as i32;
        let low = (low.max(0.0) as usize).min(from - 1);
        Taps { low, high: (low + 1).min(from - 1), weights: (weight(1.0 - share), weight(share)) }
    };
    (0..to).map(tap).collect()
}

/// Nearest: `source = ⌊target · from / to⌋`, as OpenCV's `INTER_NEAREST`.
pub fn nearest(labels: &LabelMap, size: (usize, usize)) -> LabelMap {
    let columns: Vec<usize> = (0..size.1).map(|x| x * labels.width / size.1).collect();
    let row = |y: usize| &labels.ids[y * labels.height / size.0 * labels.width..][..labels.width];
    let ids = (0..size.0).flat_map(|y| columns.iter().map(move |&x| row(y)[x])).collect();
    LabelMap { height: size.0, width: size.1, ids }
}

/// Nearest to the middle: `source = ⌊(target + ½) · from / to⌋`, as Pillow's `NEAREST`, which adds up `from / to`: where that is a whole
/// number, rounding decides.
pub fn nearest_middle(labels: &LabelMap, size: (usize, usize)) -> LabelMap {
    let sources = |from: usize, to: usize| {
        let step = from as f64 / to as f64;
        std::iter::successors(Some(0.5 * step), move |at| Some(at + step)).take(to).map(move |at| (at as usize).min(from - 1))
    };
    let columns: Vec<usize> = sources(labels.width, size.1).collect();
    let row = |y: usize| &labels.ids[y * labels.width..][..labels.width];
    let ids = sources(labels.height, size.0).flat_map(|y| columns.iter().map(move |&x| row(y)[x])).collect();
    LabelMap { height: size.0, width: size.1, ids }
}

/// Bilinear with antialiasing (a triangle filter that widens when shrinking), rounded to 8 bits after each direction:
/// equals Pillow's `resize(…, BILINEAR)`, columns before rows (Pillow 13 has the other order where only the height shrinks).
pub fn antialiased(image: &RgbImage, size: (usize, usize)) -> RgbImage {
    let narrow = if image.width == size.1 { image.clone() } else { antialiased_columns(image, size.1) };
    if image.height == size.0 { narrow } else { antialiased_rows(&narrow, size.0) }
}

fn antialiased_columns(image: &RgbImage, width: usize) -> RgbImage {
    let filters = triangle_filters(image.width, width);
    let mut pixels = Vec::with_capacity(image.height * width * 3);
    for row in image.pixels.chunks_exact(image.width * 3) {
        for (start, weights) in &filters {
            let mut sums = [1 << (PRECISION - 1); 3];
            for (pixel, weight) in row[start * 3..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            pixels.extend(sums.map(to_u8));
        }
    }
    RgbImage { height: image.height, width, pixels }
}

fn antialiased_rows(image: &RgbImage, height: usize) -> RgbImage {
    let stride = image.width * 3;
    let mut pixels = Vec::with_capacity(height * stride);
    for (start, weights) in triangle_filters(image.height, height) {
        let mut sums = vec![1 << (PRECISION - 1); stride];
        for (row, weight) in image.pixels[start * stride..].chunks_exact(stride).zip(&weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        pixels.extend(sums.into_iter().map(to_u8));
    }
    RgbImage { height, width: image.width, pixels }
}

/// Bits of the fraction in filter weights.
const PRECISION: u32 = 22;

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// First source index and weights of every target index.
fn triangle_filters(from: usize, to: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let filter = |target: usize| {
        let center = (target as f64 + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |source: usize| (1.0 - ((source as f64 - center + 0.5) / support).abs()).max(0.0);
        let weights: Vec<f64> = (start..end).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |w: f64| (w / total * f64::from(1u32 << PRECISION) + 0.5) as i32;
        (start, weights.into_iter().map(fixed).collect())
    };
    (0..to).map(filter).collect()
}
