//! Multi-scale deformable attention: every query looks at a few points of each feature level, wherever it wants them.

use super::cpu::{self, Gradients3, vectorised};
use super::graph::{self, Reads};
use super::points::Corners;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Queries whose gradients are computed by one thread at a time.
const ROWS: usize = 32;

/// `Σ weight · value(reference + offset)` over the levels and points of each head, with bilinear samples, zero outside.
///
/// `levels` are the sizes (H, W) whose tokens follow each other in `value`. `references` holds one point (x, y) per query,
/// 0…1 over every level; offsets are in pixels of the level they look at. Gradients reach all three tensors.
///
/// # Shapes
/// `value` (B, N, heads, d) with N = Σ H·W, `offsets` (B, Q, heads, L, P, 2) as (x, y), `weights` (B, Q, heads, L, P) →
/// (B, Q, heads·d)
///
/// # Source
/// Deformable DETR, equation 3, with sampling locations `reference + offset / (W, H)` and pixel coordinates
/// `location · size − 0.5` as in the published code. The result has the same bits for any number of threads.
pub fn deformable_attention(
    value: &Tensor,
    offsets: &Tensor,
    weights: &Tensor,
    levels: &[(usize, usize)],
    references: &[f32],
) -> Result<Tensor> {
    let (batch, tokens, heads, dim) = value.dims4()?;
    let &[b, queries, h, l, points] = weights.dims() else { bail!("deformable_attention: weights {:?}", weights.shape()) };
    let fits = (b, h, l) == (batch, heads, levels.len())
        && offsets.dims() == [b, queries, h, l, points, 2]
        && levels.iter().map(|level| level.0 * level.1).sum::<usize>() == tokens
        && references.len() == 2 * queries;
    if !fits || value.elem_count() * weights.elem_count() == 0 {
        bail!(
            "deformable_attention: values {:?}, offsets {:?}, weights {:?}, levels {levels:?}, {} references",
            value.shape(),
            offsets.shape(),
            weights.shape(),
            references.len() / 2
        )
    }
    #[cfg(feature = "cuda")]
    if value.device().is_cuda() {
        let sizes = super::cuda::DeformableSizes { images: batch, tokens, queries, heads, dim, points, levels: levels.to_vec() };
        return super::cuda::deformable_attention(value, offsets, weights, sizes, references);
    }
    if cpu::is_narrow(value) {
        let op = |[v, o, w]: [&Tensor; 3]| deformable_attention(v, o, w, levels, references);
        return cpu::rounded([value, offsets, weights], op);
    }
    let op = Deformable { levels: levels.to_vec(), references: references.to_vec(), tokens, heads, dim, queries, points };
    graph::apply3(&value.contiguous()?, &offsets.contiguous()?, &weights.contiguous()?, Reads::Arguments, op)
}

struct Deformable {
    levels: Vec<(usize, usize)>,
    references: Vec<f32>,
    tokens: usize,
    heads: usize,
    dim: usize,
    queries: usize,
    points: usize,
}

/// The arguments of one query of one image.
#[derive(Clone, Copy)]
struct Query<'a> {
    op: &'a Deformable,
    /// Values of the image.
    value: &'a [f32],
    offsets: &'a [f32],
    weights: &'a [f32],
    reference: &'a [f32],
}

impl Deformable {
    /// Values of one row of tokens: all heads.
    fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Samples of one query.
    fn samples(&self) -> usize {
        self.heads * self.levels.len() * self.points
    }

    /// Query `row` of all images in one line.
    fn query<'a>(&'a self, value: &'a [f32], offsets: &'a [f32], weights: &'a [f32], row: usize) -> Query<'a> {
        let (image, query, samples) = (row / self.queries, row % self.queries, self.samples());
        Query {
            op: self,
            value: &value[image * self.tokens * self.width()..(image + 1) * self.tokens * self.width()],
            offsets: &offsets[2 * row * samples..2 * (row + 1) * samples],
            weights: &weights[row * samples..(row + 1) * samples],
            reference: &self.references[2 * query..2 * query + 2],
        }
    }
}

impl Query<'_> {
    /// The pixels around sample `index` of `level`.
    #[inline(always)]
    fn corners(&self, level: usize, index: usize) -> Corners {
        let size = self.op.levels[level];
        let x = self.reference[0] * size.1 as f32 - 0.5 + self.offsets[2 * index];
        let y = self.reference[1] * size.0 as f32 - 0.5 + self.offsets[2 * index + 1];
        Corners::new(x, y, size)
    }

    /// Calls `visit(head, level, first token of the level, sample)` for all samples in order.
    #[inline(always)]
    fn for_each(&self, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let (levels, points) = (self.op.levels.len(), self.op.points);
        for head in 0..self.op.heads {
            let mut start = 0;
            for (level, size) in self.op.levels.iter().enumerate() {
                let first = (head * levels + level) * points;
                for index in first..first + points {
                    visit(head, level, start, index);
                }
                start += size.0 * size.1;
            }
        }
    }
}

vectorised! {
    /// Adds the weighted samples of one query to `out` (heads·d).
    fn gather(query: Query, out: &mut [f32]) {
        let (width, dim) = (query.op.width(), query.op.dim);
        query.for_each(|head, level, start, index| {
            let corners = query.corners(level, index);
            let out = &mut out[head * dim..(head + 1) * dim];
            for (at, weight) in corners.at.iter().zip(corners.weights()) {
                if let Some(at) = at {
                    let scale = weight * query.weights[index];
                    let value = &query.value[(start + at) * width + head * dim..][..dim];
                    for (out, value) in out.iter_mut().zip(value) {
                        *out += scale * value;
                    }
                }
            }
        });
    }
}

vectorised! {
    /// Gradients of one query's offsets and weights from that of its output.
    fn slopes(query: Query, gradient: &[f32], for_offsets: &mut [f32], for_weights: &mut [f32]) {
        let (width, dim) = (query.op.width(), query.op.dim);
        query.for_each(|head, level, start, index| {
            let corners = query.corners(level, index);
            let gradient = &gradient[head * dim..(head + 1) * dim];
            let products = corners.at.map(|at| match at {
                Some(at) => cpu::dot(gradient, &query.value[(start + at) * width + head * dim..][..dim]) as f32,
                None => 0.0,
            });
            let ((y, x), weight) = (corners.fraction, query.weights[index]);
            for_weights[index] = products.iter().zip(corners.weights()).map(|(product, weight)| product * weight).sum();
            let along_x = (1.0 - y) * (products[1] - products[0]) + y * (products[3] - products[2]);
            let along_y = (1.0 - x) * (products[2] - products[0]) + x * (products[3] - products[1]);
            for_offsets[2 * index] = weight * along_x;
            for_offsets[2 * index + 1] = weight * along_y;
        });
    }
}

vectorised! {
    /// Adds what one query took from one head of one level to that level's gradient `out` (H·W, d).
    fn scatter(query: Query, head: usize, level: usize, gradient: &[f32], out: &mut [f32]) {
        let (dim, points) = (query.op.dim, query.op.points);
        let first = (head * query.op.levels.len() + level) * points;
        for index in first..first + points {
            let corners = query.corners(level, index);
            for (at, weight) in corners.at.iter().zip(corners.weights()) {
                if let Some(at) = at {
                    let scale = weight * query.weights[index];
                    for (out, g) in out[at * dim..(at + 1) * dim].iter_mut().zip(gradient) {
                        *out += scale * g;
                    }
                }
            }
        }
    }
}

impl Deformable {
    /// Gradient of the values. Each head of each level of each image belongs to one thread, which takes the queries in order.
    fn value_gradient(&self, given: &Given) -> Vec<f32> {
        let (width, dim) = (self.width(), self.dim);
        let mut by_head = vec![0.0; given.value.len()]; // (B, heads, N, d)
        let mut jobs = Vec::new();
        for (i, mut rest) in by_head.chunks_exact_mut(self.tokens * dim).enumerate() {
            for (level, size) in self.levels.iter().enumerate() {
                let (own, others) = rest.split_at_mut(size.0 * size.1 * dim);
                jobs.push((i / self.heads, i % self.heads, level, own));
                rest = others;
            }
        }
        jobs.into_par_iter().for_each(|(image, head, level, out)| {
            for row in image * self.queries..(image + 1) * self.queries {
                let gradient = &given.gradient[row * width + head * dim..][..dim];
                scatter(self.query(given.value, given.offsets, given.weights, row), head, level, gradient, out);
            }
        });
        cpu::fill_chunks(by_head.len(), width, |token, out| {
            let (image, token) = (token / self.tokens, token % self.tokens);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                out.copy_from_slice(&by_head[((image * self.heads + head) * self.tokens + token) * dim..][..dim]);
            }
        })
    }

    /// Gradients of offsets and weights.
    fn sampling_gradients(&self, given: &Given) -> (Vec<f32>, Vec<f32>) {
        let (width, samples) = (self.width(), self.samples());
        let (mut for_offsets, mut for_weights) = (vec![0.0; given.offsets.len()], vec![0.0; given.weights.len()]);
        let blocks = for_offsets.par_chunks_mut(2 * ROWS * samples).zip(for_weights.par_chunks_mut(ROWS * samples));
        blocks.enumerate().for_each(|(block, (offsets, weights))| {
            for (i, (offsets, weights)) in
                offsets.chunks_exact_mut(2 * samples).zip(weights.chunks_exact_mut(samples)).enumerate()
            {
                let row = block * ROWS + i;
                let query = self.query(given.value, given.offsets, given.weights, row);
                slopes(query, &given.gradient[row * width..(row + 1) * width], offsets, weights);
            }
        });
        (for_offsets, for_weights)
    }
}

/// The arguments and the gradient of the output.
struct Given<'a> {
    value: &'a [f32],
    offsets: &'a [f32],
    weights: &'a [f32],
    gradient: &'a [f32],
}

impl CustomOp3 for Deformable {
    fn name(&self) -> &'static str {
        "deformable-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (value, offsets, weights) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?, cpu::values(s3, l3)?);
        let (batch, width) = (l1.shape().dims()[0], self.width());
        let out = cpu::fill_chunks(batch * self.queries * width, width, |row, out| {
            gather(self.query(value, offsets, weights, row), out);
        });
        Ok((CpuStorage::F32(out), (batch, self.queries, width).into()))
    }

    fn bwd(&self, value: &Tensor, offsets: &Tensor, weights: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (v, o, w, g) = (cpu::read(value)?, cpu::read(offsets)?, cpu::read(weights)?, cpu::read(&gradient)?);
        let given = Given { value: &v, offsets: &o, weights: &w, gradient: &g };
        let for_value = value.track_op().then(|| cpu::tensor(self.value_gradient(&given), value.shape())).transpose()?;
        if !offsets.track_op() && !weights.track_op() {
            return Ok((for_value, None, None));
        }
        let (for_offsets, for_weights) = self.sampling_gradients(&given);
        let tensor = |values, like: &Tensor| like.track_op().then(|| cpu::tensor(values, like.shape())).transpose();
        Ok((for_value, tensor(for_offsets, offsets)?, tensor(for_weights, weights)?))
    }
}
