//! Where a token lies, as sines and cosines.

use candle_core::{Device, Result, Tensor};

/// Longest wavelength of the features, relative to the map.
const TEMPERATURE: f64 = 10_000.0;

/// Sine features of all pixels: the first half of the channels from the row, the second from the column.
///
/// # Shapes
/// → (1, H·W, `width`) for `size` (H, W); `width` a multiple of 4
///
/// # Source
/// DETR's normalised sine encoding: row y of 1…H gives the angle 2π·y/(H + 1e-6).
pub(super) fn sine_positions(size: (usize, usize), width: usize, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let axis = |length: usize| -> Vec<Vec<f32>> {
        let angle = |i: usize| (i + 1) as f64 / (length as f64 + 1e-6) * std::f64::consts::TAU;
        let feature = |angle: f64, c: usize| {
            let slowed = angle / TEMPERATURE.powf((c / 2 * 2) as f64 / half as f64);
            (if c.is_multiple_of(2) { slowed.sin() } else { slowed.cos() }) as f32
        };
        (0..length).map(|i| (0..half).map(|c| feature(angle(i), c)).collect()).collect()
    };
    let (rows, columns) = (axis(size.0), axis(size.1));
    let mut values = Vec::with_capacity(size.0 * size.1 * width);
    for row in &rows {
        for column in &columns {
            values.extend_from_slice(row);
            values.extend_from_slice(column);
        }
    }
    Tensor::from_vec(values, (1, size.0 * size.1, width), device)
}
