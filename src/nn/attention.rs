//! Scaled dot-product attention, a block of queries at a time: the score matrix never exists as a whole, neither forward
//! nor backward (where a block of it is computed again).

use super::cpu::{self, Gradients3, Matrix, Threads, vectorised};
use super::swap_axes;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Scores held by one thread (1 MB: the second-level cache); bounds the queries of a block, except for wide heads.
const BLOCK_SCORES: usize = 256 * 1024;

/// The backward pass is cut into at least this many independent parts when there are fewer heads.
const PARTS: usize = 8;

/// `softmax(q·kᵀ·scale)·v` per head; `causal` hides later keys from earlier queries.
///
/// # Shapes
/// `q` (B, heads, N, d), `k` and `v` (B, heads, M, d) → (B, heads, N, d)
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, causal: bool) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return on_the_gpu(q, k, v, None, scale, causal);
    }
    if cpu::is_narrow(q) {
        return cpu::rounded([q, k, v], |[q, k, v]| attention(q, k, v, scale, causal));
    }
    let op = Attention { scale, causal, bias: None, log_sums: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// `softmax(q·kᵀ·scale + bias)·v` per head, the bias shared by the heads of an image. It is a constant: no gradient reaches
/// it. Keys are hidden by values such as −1e30, not by infinite ones.
///
/// # Shapes
/// `q` (B, heads, N, d), `k` and `v` (B, heads, M, d), `bias` (B, N, M) → (B, heads, N, d)
pub fn attention_with_bias(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, scale: f32) -> Result<Tensor> {
    let ((batch, _, queries, _), keys) = (q.dims4()?, k.dim(2)?);
    if bias.dims() != [batch, queries, keys] {
        bail!("attention: queries {:?}, keys {:?}, bias {:?}", q.shape(), k.shape(), bias.shape())
    }
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return on_the_gpu(q, k, v, Some(bias), scale, false);
    }
    if cpu::is_narrow(q) {
        return cpu::rounded([q, k, v], |[q, k, v]| attention_with_bias(q, k, v, bias, scale));
    }
    let op = Attention { scale, causal: false, bias: Some(bias.detach().contiguous()?), log_sums: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

#[cfg(feature = "cuda")]
fn on_the_gpu(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f32, causal: bool) -> Result<Tensor> {
    let [heads, queries, keys, dim] = sizes(q.dims(), k.dims(), v.dims())?;
    let sizes = super::cuda::AttentionSizes { heads, queries, keys, dim, scale, causal, sharing: q.dim(1)? };
    super::cuda::attention(q, k, v, bias, sizes)
}

/// # Shapes
/// (B, N, heads·d) → (B, heads, N, d), contiguous
pub fn split_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, dim) = xs.dims3()?;
    swap_axes(xs, [batch, tokens, heads, dim / heads], (batch, heads, tokens, dim / heads))
}

/// # Shapes
/// (B, heads, N, d) → (B, N, heads·d), contiguous
pub fn join_heads(xs: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = xs.dims4()?;
    swap_axes(xs, [batch, heads, tokens, dim], (batch, tokens, heads * dim))
}

/// Heads of all images, queries, keys, and dimensions of a head.
fn sizes(q: &[usize], k: &[usize], v: &[usize]) -> Result<[usize; 4]> {
    match (q, k, v) {
        (&[b, h, queries, dim], &[bk, hk, keys, dk], &[bv, hv, mv, dv])
            if (b, h, dim) == (bk, hk, dk) && (bk, hk, keys, dk) == (bv, hv, mv, dv) && keys * queries * dim > 0 =>
        {
            Ok([b * h, queries, keys, dim])
        }
        _ => bail!("attention: queries {q:?}, keys {k:?}, values {v:?}"),
    }
}

/// One attention; remembers log Σ exp of every score row for the backward pass.
struct Attention {
    scale: f32,
    causal: bool,
    /// Added to the scores of all heads: (B, N, M).
    bias: Option<Tensor>,
    log_sums: OnceLock<Vec<f32>>,
}

/// The arguments as slices, heads of all images in one line.
struct Heads<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    queries: usize,
    keys: usize,
    dim: usize,
    /// Heads of one image.
    heads: usize,
    scale: f32,
    causal: bool,
    bias: Option<&'a [f32]>,
}

/// Consecutive queries of one head.
#[derive(Clone, Copy)]
struct Span {
    head: usize,
    start: usize,
    len: usize,
}

impl Span {
    /// Cut into spans of `len` queries.
    fn cut(self, len: usize) -> impl Iterator<Item = Span> {
        let end = self.start + self.len;
        (self.start..end).step_by(len).map(move |start| Span { start, len: len.min(end - start), ..self })
    }
}

impl<'a> Heads<'a> {
    fn new(
        op: &Attention,
        bias: Option<&'a [f32]>,
        q: (&'a [f32], &[usize]),
        k: (&'a [f32], &[usize]),
        v: (&'a [f32], &[usize]),
    ) -> Result<Self> {
        let [_, queries, keys, dim] = sizes(q.1, k.1, v.1)?;
        let (scale, causal, heads) = (op.scale, op.causal, q.1[1]);
        Ok(Self { q: q.0, k: k.0, v: v.0, queries, keys, dim, heads, scale, causal, bias })
    }

    /// Queries per block. Every block reads all keys and values again, so wide heads take longer blocks.
    fn block_len(&self) -> usize {
        (BLOCK_SCORES / self.keys).clamp((self.dim / 2).clamp(16, 256), 256)
    }

    /// Keys the queries of a block can see.
    fn seen(&self, block: Span) -> usize {
        if self.causal { self.keys.min(block.start + block.len) } else { self.keys }
    }

    fn rows(values: &[f32], block: Span, length: usize, dim: usize) -> &[f32] {
        &values[(block.head * length + block.start) * dim..][..block.len * dim]
    }

    /// `scale · q·kᵀ + bias` of a block: (len, seen).
    fn scores(&self, block: Span, out: &mut [f32]) {
        let (seen, dim) = (self.seen(block), self.dim);
        let q = Matrix::rows(Self::rows(self.q, block, self.queries, dim), dim);
        let k = Matrix::rows(&self.k[block.head * self.keys * dim..], dim).t();
        cpu::gemm((block.len, seen, dim), q, k, out, seen, false, self.scale, Threads::One);
        if let Some(bias) = self.bias {
            let first = (block.head / self.heads * self.queries + block.start) * self.keys;
            for (scores, bias) in out.chunks_exact_mut(seen).zip(bias[first..].chunks_exact(self.keys)) {
                scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
            }
        }
    }

    /// Fills `out` (len, d) and the log-sums (len) of a block.
    fn forward(&self, block: Span, scores: &mut [f32], out: &mut [f32], log_sums: &mut [f32]) {
        let (seen, dim) = (self.seen(block), self.dim);
        let scores = &mut scores[..block.len * seen];
        self.scores(block, scores);
        let mut sums = vec![0.0; block.len];
        exponentials(scores, seen, self.first_visible(block), log_sums, &mut sums);
        let v = Matrix::rows(&self.v[block.head * self.keys * dim..], dim);
        cpu::gemm((block.len, dim, seen), Matrix::rows(scores, seen), v, out, dim, false, 1.0, Threads::One);
        for (row, sum) in out.chunks_exact_mut(dim).zip(sums) {
            let scale = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Keys visible to the first query of a block; every later one sees one more.
    fn first_visible(&self, block: Span) -> usize {
        if self.causal { block.start + 1 } else { self.keys }
    }

    /// Gradients of one part of one head: fills `for_q`, returns the shares of k and v.
    fn backward(&self, part: Span, given: &Given, wanted: [bool; 3], for_q: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
        let dim = self.dim;
        let share = |wanted: bool| if wanted { vec![0.0; self.keys * dim] } else { Vec::new() };
        let (mut for_k, mut for_v) = (share(wanted[1]), share(wanted[2]));
        let mut scores = vec![0.0; self.block_len() * self.keys];
        let mut slopes = vec![0.0; self.block_len() * self.keys];
        let (k, v) = (&self.k[part.head * self.keys * dim..], &self.v[part.head * self.keys * dim..]);
        for block in part.cut(self.block_len()) {
            let (len, seen) = (block.len, self.seen(block));
            let rows = |values: &'a [f32]| Self::rows(values, block, self.queries, dim);
            let (g, out) =
                (Self::rows(given.gradient, block, self.queries, dim), Self::rows(given.out, block, self.queries, dim));
            let p = &mut scores[..len * seen];
            self.scores(block, p);
            let log_sums = &given.log_sums[block.head * self.queries + block.start..][..len];
            probabilities(p, seen, self.first_visible(block), log_sums);
            let gradient = Matrix::rows(g, dim);
            if wanted[2] {
                cpu::gemm((seen, dim, len), Matrix::rows(p, seen).t(), gradient, &mut for_v, dim, true, 1.0, Threads::One);
            }
            if !wanted[0] && !wanted[1] {
                continue;
            }
            let slopes = &mut slopes[..len * seen];
            cpu::gemm((len, seen, dim), gradient, Matrix::rows(v, dim).t(), slopes, seen, false, 1.0, Threads::One);
            score_slopes(slopes, p, seen, out, g, self.scale);
            if wanted[0] {
                let out = &mut for_q[(block.start - part.start) * dim..];
                cpu::gemm((len, dim, seen), Matrix::rows(slopes, seen), Matrix::rows(k, dim), out, dim, false, 1.0, Threads::One);
            }
            if wanted[1] {
                let q = Matrix::rows(rows(self.q), dim);
                cpu::gemm((seen, dim, len), Matrix::rows(slopes, seen).t(), q, &mut for_k, dim, true, 1.0, Threads::One);
            }
        }
        (for_k, for_v)
    }
}

/// What the backward pass is given besides the arguments.
struct Given<'a> {
    out: &'a [f32],
    gradient: &'a [f32],
    log_sums: &'a [f32],
}

vectorised! {
    /// Scores become e^(score − row maximum), hidden ones 0; also gives the sum and log Σ exp of every row.
    fn exponentials(scores: &mut [f32], seen: usize, first_visible: usize, log_sums: &mut [f32], sums: &mut [f32]) {
        for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
            let (visible, hidden) = row.split_at_mut(seen.min(first_visible + i));
            let largest = cpu::max(visible);
            sums[i] = cpu::exp_shifted(visible, largest);
            log_sums[i] = largest + sums[i].ln();
            hidden.fill(0.0);
        }
    }
}

vectorised! {
    /// Scores become probabilities.
    fn probabilities(scores: &mut [f32], seen: usize, first_visible: usize, log_sums: &[f32]) {
        for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
            let (visible, hidden) = row.split_at_mut(seen.min(first_visible + i));
            for x in visible {
                *x = cpu::exp(*x - log_sums[i]);
            }
            hidden.fill(0.0);
        }
    }
}

vectorised! {
    /// The gradient of probabilities becomes that of unscaled scores: `p · (slope − Σ p·slope) · scale`, where the sum
    /// equals out·gradient.
    fn score_slopes(slopes: &mut [f32], p: &[f32], seen: usize, out: &[f32], gradient: &[f32], scale: f32) {
        let dim = gradient.len() * seen / p.len();
        for (i, (slopes, p)) in slopes.chunks_exact_mut(seen).zip(p.chunks_exact(seen)).enumerate() {
            let mean = cpu::dot(&out[i * dim..(i + 1) * dim], &gradient[i * dim..(i + 1) * dim]) as f32;
            for (slope, p) in slopes.iter_mut().zip(p) {
                *slope = p * (*slope - mean) * scale;
            }
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
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
        let (q, k, v) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?, cpu::values(s3, l3)?);
        let bias = self.bias.as_ref().map(cpu::read).transpose()?;
        let heads = Heads::new(self, bias.as_deref(), (q, l1.dims()), (k, l2.dims()), (v, l3.dims()))?;
        let (queries, dim, len) = (heads.queries, heads.dim, heads.block_len());
        let (mut out, mut log_sums) = (vec![0.0; q.len()], vec![0.0; q.len() / dim.max(1)]);
        let by_head = out.chunks_mut(queries * dim).zip(log_sums.chunks_mut(queries)).enumerate();
        let jobs: Vec<_> = by_head
            .flat_map(|(head, (out, sums))| {
                let blocks = Span { head, start: 0, len: queries }.cut(len);
                blocks.zip(out.chunks_mut(len * dim).zip(sums.chunks_mut(len)))
            })
            .collect();
        let scores = || vec![0.0; len * heads.keys];
        jobs.into_par_iter().for_each_init(scores, |scores, (block, (out, sums))| heads.forward(block, scores, out, sums));
        // Only this call writes: an operation value is applied once.
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (qs, ks, vs) = (cpu::read(q)?, cpu::read(k)?, cpu::read(v)?);
        let (out, g) = (cpu::read(result)?, cpu::read(&gradient)?);
        let Some(log_sums) = self.log_sums.get() else { bail!("attention: backward without forward") };
        let bias = self.bias.as_ref().map(cpu::read).transpose()?;
        let heads = Heads::new(self, bias.as_deref(), (&qs, q.dims()), (&ks, k.dims()), (&vs, v.dims()))?;
        let given = Given { out: &out, gradient: &g, log_sums };
        let wanted = [q.track_op(), k.track_op(), v.track_op()];
        let (for_q, for_k, for_v) = gradients(&heads, &given, wanted);
        let tensor = |values: Vec<f32>, like: &Tensor| like.track_op().then(|| cpu::tensor(values, like.shape())).transpose();
        Ok((tensor(for_q, q)?, tensor(for_k, k)?, tensor(for_v, v)?))
    }
}

/// Gradients of queries, keys and values; those not wanted hold nothing of use.
fn gradients(heads: &Heads, given: &Given, wanted: [bool; 3]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (queries, dim, count) = (heads.queries, heads.dim, given.log_sums.len() / heads.queries.max(1));
    let blocks = queries.div_ceil(heads.block_len());
    let part_len = blocks.div_ceil((PARTS / count.max(1)).clamp(1, blocks.max(1))) * heads.block_len();
    let mut for_q = vec![0.0; heads.q.len()];
    let jobs: Vec<(Span, &mut [f32])> = for_q
        .chunks_mut(queries * dim)
        .enumerate()
        .flat_map(|(head, out)| Span { head, start: 0, len: queries }.cut(part_len).zip(out.chunks_mut(part_len * dim)))
        .collect();
    let parts: Vec<Span> = jobs.iter().map(|job| job.0).collect();
    let shares: Vec<(Vec<f32>, Vec<f32>)> =
        jobs.into_par_iter().map(|(part, out)| heads.backward(part, given, wanted, out)).collect();
    let (mut for_k, mut for_v) = (Vec::new(), Vec::new());
    for (part, (share_k, share_v)) in parts.iter().zip(&shares) {
        collect_share(&mut for_k, share_k, part.start == 0);
        collect_share(&mut for_v, share_v, part.start == 0);
    }
    (for_q, for_k, for_v)
}

/// The first part of a head starts its piece of the gradient, later ones are added to it.
fn collect_share(total: &mut Vec<f32>, share: &[f32], first: bool) {
    if first {
        total.extend_from_slice(share);
        return;
    }
    let start = total.len() - share.len();
    for (total, x) in total[start..].iter_mut().zip(share) {
        *total += x;
    }
}
