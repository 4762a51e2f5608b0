//! How a plane of pixels is laid out so that a convolution is a sliding sum.
//!
//! A padded plane is stored phase by phase (pixels whose row and column have the same remainder modulo the stride lie
//! together). Then every kernel tap is a constant distance in memory, for any stride and dilation, and a convolution is
//! a sliding sum over a flat slice. Gradients are sliding sums of the same kind.

use super::op::Sizes;

/// Lengths of sliding sums are rounded up to it.
pub const LANES: usize = 32;

/// How one padded plane lies in memory.
pub struct Plane<'a> {
    pub sizes: &'a Sizes,
    /// Length of a row of a phase; outputs are computed with the same row length.
    pub pitch: usize,
    /// Rows of a phase.
    rows: usize,
    /// Per kernel tap: phase, and distance inside the phase.
    pub taps: Vec<(usize, usize)>,
    /// Per kernel tap: distance in the whole padded plane.
    pub offsets: Vec<usize>,
    lines: Vec<Line>,
}

/// Pixels of one input row that lie side by side in a phase.
struct Line {
    /// Index of the first in the plane of inputs; the next ones are a stride apart.
    input: usize,
    /// Index of the first in the padded plane.
    padded: usize,
    count: usize,
}

impl<'a> Plane<'a> {
    pub fn new(sizes: &'a Sizes) -> Self {
        let (stride, dilation) = (sizes.spec.stride, sizes.spec.dilation);
        let pitch = sizes.out_width + dilation * (sizes.kernel_width - 1) / stride;
        let rows = sizes.out_height + dilation * (sizes.kernel_height - 1) / stride;
        let tap = |i: usize| {
            let (y, x) = (i / sizes.kernel_width * dilation, i % sizes.kernel_width * dilation);
            ((y % stride) * stride + x % stride, (y / stride) * pitch + x / stride)
        };
        let taps = (0..sizes.area()).map(tap).collect();
        let mut plane = Self { sizes, pitch, rows, taps, offsets: Vec::new(), lines: Vec::new() };
        plane.offsets = plane.taps.iter().map(|(phase, offset)| phase * plane.phase_len() + offset).collect();
        plane.lines = plane.lines();
        plane
    }

    /// The lines of all input rows that are read.
    fn lines(&self) -> Vec<Line> {
        let (stride, padding, sizes) = (self.sizes.spec.stride, self.sizes.spec.padding, self.sizes);
        let line = |y: usize, phase_x: usize| {
            let row = (y + padding) / stride;
            // First input column of this phase: column c of the phase is input column c · stride + phase_x − padding.
            let column = padding.saturating_sub(phase_x).div_ceil(stride);
            let x = column * stride + phase_x - padding;
            let phase = ((y + padding) % stride) * stride + phase_x;
            (row < self.rows && x < sizes.width && column < self.pitch).then(|| Line {
                input: y * sizes.width + x,
                padded: phase * self.phase_len() + row * self.pitch + column,
                count: (sizes.width - x).div_ceil(stride).min(self.pitch - column),
            })
        };
        (0..sizes.height).flat_map(|y| (0..stride).filter_map(move |phase| line(y, phase))).collect()
    }

    /// Values of one phase, rounded up.
    pub fn phase_len(&self) -> usize {
        (self.pitch * self.rows).next_multiple_of(LANES)
    }

    /// Length of a buffer for [`Self::load`], with room to read some values too many.
    pub fn padded_len(&self) -> usize {
        self.sizes.spec.stride.pow(2) * self.phase_len() + 2 * LANES
    }

    /// Largest distance inside a phase.
    pub fn reach(&self) -> usize {
        self.taps.iter().map(|tap| tap.1).max().unwrap_or(0)
    }

    /// Length of a buffer for outputs, row by row with `pitch`, rounded up.
    pub fn out_len(&self) -> usize {
        ((self.sizes.out_height - 1) * self.pitch + self.sizes.out_width).next_multiple_of(LANES)
    }

    /// Stretches of outputs worth computing: everything, or row by row when rows are long and padding is wide.
    pub fn stretches(&self) -> (usize, usize, usize) {
        let width = self.sizes.out_width.next_multiple_of(LANES);
        if width < self.pitch { (self.sizes.out_height, self.pitch, width) } else { (1, 0, self.out_len()) }
    }

    /// Lays out a plane of inputs; `padded` must be cleared where it was never written.
    #[inline(always)]
    pub fn load(&self, xs: &[f32], padded: &mut [f32]) {
        let stride = self.sizes.spec.stride;
        for line in &self.lines {
            let target = &mut padded[line.padded..][..line.count];
            match stride {
                1 => copy(&xs[line.input..][..line.count], target),
                2 => every_second(&xs[line.input..], target),
                _ => target.iter_mut().zip(xs[line.input..].iter().step_by(stride)).for_each(|(target, x)| *target = *x),
            }
        }
    }

    /// Takes a plane of inputs out of its padded layout.
    #[inline(always)]
    pub fn store(&self, padded: &[f32], xs: &mut [f32]) {
        let stride = self.sizes.spec.stride;
        for line in &self.lines {
            let source = &padded[line.padded..][..line.count];
            if stride == 1 {
                copy(source, &mut xs[line.input..][..line.count]);
            } else {
                xs[line.input..].iter_mut().step_by(stride).zip(source).for_each(|(x, value)| *x = *value);
            }
        }
    }

    /// Length of a buffer for [`Self::load_gradient`].
    pub fn gradient_len(&self, front: usize) -> usize {
        front + self.phase_len() + 2 * LANES
    }

    /// Lays out a plane of output gradients behind `front` zeros; `wide` must be cleared where it was never written.
    #[inline(always)]
    pub fn load_gradient(&self, gradient: &[f32], front: usize, wide: &mut [f32]) {
        for (y, row) in gradient.chunks_exact(self.sizes.out_width).enumerate() {
            copy(row, &mut wide[front + y * self.pitch..][..row.len()]);
        }
    }
}

/// Values 0, 2, 4, … as vectors, which the compiler does not make of steps.
#[inline(always)]
fn every_second(from: &[f32], to: &mut [f32]) {
    let (pairs, rest) = from.as_chunks::<2>();
    for (to, pair) in to.iter_mut().zip(pairs) {
        *to = pair[0];
    }
    if let (Some(to), Some(x)) = (to.get_mut(pairs.len()), rest.first()) {
        *to = *x;
    }
}

/// Copies short rows without a call.
#[inline(always)]
pub fn copy(from: &[f32], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = *from);
}
