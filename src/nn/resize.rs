//! Resizing of feature maps.

use candle_core::{Device, Result, Tensor};

/// Bilinear, without antialiasing, clamped at the border. `align_corners` as in PyTorch.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, size.0, size.1)
pub fn resize_bilinear(xs: &Tensor, size: (usize, usize), align_corners: bool) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    if (height, width) == size {
        return Ok(xs.clone());
    }
    let rows = weights(height, size.0, align_corners, xs.device())?; // (h', h)
    let columns = weights(width, size.1, align_corners, xs.device())?.t()?; // (w, w')
    rows.broadcast_matmul(&xs.broadcast_matmul(&columns)?)
}

fn weights(from: usize, to: usize, align_corners: bool, device: &Device) -> Result<Tensor> {
    let mut matrix = vec![0f32; from * to];
    for (target, row) in matrix.chunks_mut(from).enumerate() {
        let source = if align_corners {
            if to == 1 { 0.0 } else { target as f32 * (from - 1) as f32 / (to - 1) as f32 }
        } else {
            ((target as f32 + 0.5) * from as f32 / to as f32 - 0.5).max(0.0)
        };
        let low = (source as usize).min(from - 1);
        let share = source - low as f32;
        row[low] += 1.0 - share;
        row[(low + 1).min(from - 1)] += share;
    }
    Tensor::from_vec(matrix, (to, from), device)
}

/// Nearest: `source = ⌊target · from / to⌋`.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, size.0, size.1)
pub fn resize_nearest(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let pick = |from: usize, to: usize| {
        let indices: Vec<u32> = (0..to).map(|target| (target * from / to) as u32).collect();
        Tensor::from_vec(indices, to, xs.device())
    };
    let (_, _, height, width) = xs.dims4()?;
    xs.index_select(&pick(height, size.0)?, 2)?.index_select(&pick(width, size.1)?, 3)
}
