//! Sliding sums: products of a small matrix with windows of one long slice, at the speed of the multiply-add units.
//!
//! Nothing is packed: a block of sums stays in registers while all windows pass. Fused multiply-add is used where the
//! processor has it, so that bits may differ between processors, as they do for matrix products.

use pulp::{Arch, Simd, WithSimd};
use std::array;

/// Rows that are summed at once by [`slide_rows`].
pub const SLIDE_ROWS: usize = 8;
/// Rows and windows that are multiplied at once by [`correlate_rows`].
pub const CORRELATE: (usize, usize) = (4, 6);
/// Lengths are multiples of it.
const LANES: usize = 32;

/// `out[r·stride + j] = Σₖ kernels[k][r] · source[offsets[k] + j]` for all r and j < `len`, a multiple of 32.
pub fn slide_rows(kernels: &[[f32; SLIDE_ROWS]], offsets: &[usize], source: &[f32], out: &mut [f32], stride: usize, len: usize) {
    assert!(len.is_multiple_of(LANES) && kernels.len() == offsets.len(), "sizes of sliding sums");
    Arch::new().dispatch(Slide { kernels, offsets, source, out, stride, len });
}

struct Slide<'a> {
    kernels: &'a [[f32; SLIDE_ROWS]],
    offsets: &'a [usize],
    source: &'a [f32],
    out: &'a mut [f32],
    stride: usize,
    len: usize,
}

#[expect(clippy::needless_range_loop, clippy::manual_memcpy, reason = "with iterators and copies the sums would live in memory")]
impl Slide<'_> {
    /// Rows `first` to `first + R` of the values from `start` on, `V` vectors at a time while that fits; returns where it ended.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, first: usize, start: usize) -> usize {
        let width = V * S::F32_LANES;
        let mut at = start;
        while at + width <= self.len {
            let mut sums = [[simd.splat_f32s(0.0); V]; R];
            for (kernel, offset) in self.kernels.iter().zip(self.offsets) {
                let window = S::as_simd_f32s(&self.source[offset + at..][..width]).0;
                let window: [S::f32s; V] = array::from_fn(|v| window[v]);
                let kernel: &[f32; R] = kernel[first..].first_chunk().expect("a kernel has SLIDE_ROWS rows");
                for r in 0..R {
                    let weight = simd.splat_f32s(kernel[r]);
                    for v in 0..V {
                        sums[r][v] = simd.mul_add_e_f32s(weight, window[v], sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                let out = S::as_mut_simd_f32s(&mut self.out[(first + r) * self.stride + at..][..width]).0;
                for v in 0..V {
                    out[v] = sums[r][v];
                }
            }
            at += width;
        }
        at
    }
}

impl WithSimd for Slide<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // As many sums as the processor has registers for: 24 of 32, or 12 of 16.
        if S::F32_LANES >= 16 {
            let rest = self.rows::<S, 8, 3>(simd, 0, 0);
            self.rows::<S, 8, 1>(simd, 0, rest);
        } else {
            for first in [0, 4] {
                let rest = self.rows::<S, 4, 3>(simd, first, 0);
                self.rows::<S, 4, 1>(simd, first, rest);
            }
        }
    }
}

/// `sums[r][q] += Σⱼ rows[r][j] · source[offsets[q] + j]`; rows are equally long, a multiple of 32.
pub fn correlate_rows(
    rows: [&[f32]; CORRELATE.0],
    source: &[f32],
    offsets: &[usize; CORRELATE.1],
    sums: &mut [[f32; CORRELATE.1]; CORRELATE.0],
) {
    let len = rows[0].len();
    assert!(len.is_multiple_of(LANES) && rows.iter().all(|row| row.len() == len), "sizes of sliding sums");
    Arch::new().dispatch(Correlate { rows, source, offsets, sums });
}

struct Correlate<'a> {
    rows: [&'a [f32]; CORRELATE.0],
    source: &'a [f32],
    offsets: &'a [usize; CORRELATE.1],
    sums: &'a mut [[f32; CORRELATE.1]; CORRELATE.0],
}

#[expect(clippy::needless_range_loop, reason = "with iterators the sums would live in memory")]
impl Correlate<'_> {
    /// Windows `first` to `first + Q`.
    #[inline(always)]
    fn windows<S: Simd, const Q: usize>(&mut self, simd: S, first: usize) {
        let len = self.rows[0].len();
        let count = len / S::F32_LANES;
        let rows = self.rows.map(|row| &S::as_simd_f32s(row).0[..count]);
        let windows: [&[S::f32s]; Q] =
            array::from_fn(|q| &S::as_simd_f32s(&self.source[self.offsets[first + q]..][..len]).0[..count]);
        let mut products = [[simd.splat_f32s(0.0); Q]; CORRELATE.0];
        for j in 0..count {
            let row: [S::f32s; CORRELATE.0] = array::from_fn(|r| rows[r][j]);
            for q in 0..Q {
                let x = windows[q][j];
                for r in 0..CORRELATE.0 {
                    products[r][q] = simd.mul_add_e_f32s(row[r], x, products[r][q]);
                }
            }
        }
        for r in 0..CORRELATE.0 {
            for q in 0..Q {
                self.sums[r][first + q] += simd.reduce_sum_f32s(products[r][q]);
            }
        }
    }
}

impl WithSimd for Correlate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if S::F32_LANES >= 16 {
            self.windows::<S, 6>(simd, 0);
        } else {
            self.windows::<S, 3>(simd, 0);
            self.windows::<S, 3>(simd, 3);
        }
    }
}

/// Narrowest plane for [`slide_plane`]: the widest vectors.
pub const SLIDE_PLANE: usize = 16;
/// Vectors of sums that are computed at once.
const SPANS: usize = 8;

/// `out[y·width + x] = start + Σₖ weightₖ · source[offsetₖ + y·pitch + x]` over the taps (offset, weight), for all rows of `width` values;
/// `width` is at least [`SLIDE_PLANE`].
pub fn slide_plane(taps: &[(usize, f32)], source: &[f32], pitch: usize, start: f32, out: &mut [f32], width: usize) {
    assert!(width >= SLIDE_PLANE && out.len().is_multiple_of(width) && !out.is_empty(), "sizes of a sliding plane");
    let reach = (out.len() / width - 1) * pitch + width;
    assert!(taps.iter().all(|(offset, _)| offset + reach <= source.len()), "a tap reaches beyond the plane");
    Arch::new().dispatch(SlidePlane { taps, source, pitch, start, out, width });
}

struct SlidePlane<'a> {
    taps: &'a [(usize, f32)],
    source: &'a [f32],
    pitch: usize,
    start: f32,
    out: &'a mut [f32],
    width: usize,
}

impl WithSimd for SlidePlane<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(unsafe_code)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { taps, source, pitch, start, out, width } = self;
        let (lanes, columns) = (S::F32_LANES, width.div_ceil(S::F32_LANES));
        let spans = out.len() / width * columns;
        for first in (0..spans).step_by(SPANS) {
            // The last vector of a row overlaps the one before, and the last span may be computed several times.
            let place: [(usize, usize); SPANS] = array::from_fn(|i| {
                let span = (first + i).min(spans - 1);
                (span / columns, (span % columns * lanes).min(width - lanes))
            });
            let from = place.map(|(y, x)| y * pitch + x);
            let mut sums = [simd.splat_f32s(start); SPANS];
            for &(offset, weight) in taps {
                let weight = simd.splat_f32s(weight);
                for i in 0..SPANS {
                    // SAFETY: `lanes` values from here on are in the slice, by the second assertion of `slide_plane`: x + lanes ≤ width.
                    let x = unsafe { source.as_ptr().add(offset + from[i]).cast::<S::f32s>().read_unaligned() };
                    sums[i] = simd.mul_add_e_f32s(weight, x, sums[i]);
                }
            }
            for ((y, x), sum) in place.into_iter().zip(sums) {
                S::as_mut_simd_f32s(&mut out[y * width + x..][..lanes]).0[0] = sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37) % 11) as f32 - 5.0).collect()
    }

    /// Small whole numbers: every order of summing gives the same.
    #[test]
    fn sums_are_those_of_plain_loops() {
        let source = values(500);
        for len in [32, 96, 160] {
            let offsets = [0, 3, 7, 200, 340];
            let kernels: Vec<[f32; 8]> = values(40).as_chunks::<8>().0.to_vec();
            let mut out = vec![0.0; 8 * 170];
            slide_rows(&kernels, &offsets, &source, &mut out, 170, len);
            for (r, j) in (0..8).flat_map(|r| (0..len).map(move |j| (r, j))) {
                let sum: f32 = kernels.iter().zip(offsets).map(|(kernel, offset)| kernel[r] * source[offset + j]).sum();
                assert_eq!(out[170 * r + j], sum, "row {r}, value {j} of {len}");
            }
            let taps: Vec<(usize, f32)> = offsets.into_iter().zip([1.0, -2.0, 3.0, 0.0, 5.0]).collect();
            for width in [16, 21, 40] {
                let mut out = vec![0.0; 3 * width];
                slide_plane(&taps, &source, 45, 7.0, &mut out, width);
                for (i, found) in out.iter().enumerate() {
                    let sum: f32 = taps.iter().map(|(offset, weight)| weight * source[offset + i / width * 45 + i % width]).sum();
                    assert_eq!(*found, 7.0 + sum, "value {i} of rows of {width}");
                }
            }
            let windows = [0, 1, 33, 100, 5, 300];
            let mut sums = [[1.0; 6]; 4];
            correlate_rows(array::from_fn(|r| &source[10 * r..][..len]), &source, &windows, &mut sums);
            for (r, q) in (0..4).flat_map(|r| (0..6).map(move |q| (r, q))) {
                let sum: f32 = (0..len).map(|j| source[10 * r + j] * source[windows[q] + j]).sum();
                assert_eq!(sums[r][q], 1.0 + sum, "row {r}, window {q} of {len}");
            }
        }
    }
}
