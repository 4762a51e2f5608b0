//! Scaled dot-product attention, a block of queries at a time: the score matrix never exists as a whole, neither forward
//! nor backward (where a block of it is computed again).

use super::cpu::{self, Gradients3, Matrix, Threads, vectorised};
use super::graph::{self, Reads};
use super::swap::{swap_axes, swapped};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::OnceLock;

/// Scores held by one thread (1 MB: the second-level cache); bounds the queries of a block, except for wide heads.
const BLOCK_SCORES: usize = 256 * 1024;

/// The backward pass is cut into at least this many independent parts when there are fewer heads.
const PARTS: usize = 8;

/// `softmax(q·kᵀ·scale)·v` for each of `heads` equal parts of the features; `causal` hides later keys from earlier queries.
///
/// # Shapes
/// `q` (B, N, heads·d), `k` and `v` (B, M, heads·d) → (B, N, heads·d)
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f32, causal: bool) -> Result<Tensor> {
    attend([q, k, v], None, Settings { heads, scale, causal })
}

/// `softmax(q·kᵀ·scale + bias)·v` for each of `heads` equal parts of the features, which share the bias of an image. It is a constant:
/// no gradient reaches it. Keys are hidden by values such as −1e30, not by infinite ones.
///
/// # Shapes
/// `q` (B, N, heads·d), `k` and `v` (B, M, heads·d), `bias` (B, N, M) → (B, N, heads·d)
pub fn attention_with_bias(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
    let ((batch, queries, _), keys) = (q.dims3()?, k.dim(1)?);
    if bias.dims() != [batch, queries, keys] {
        bail!("attention: queries {:?}, keys {:?}, bias {:?}", q.shape(), k.shape(), bias.shape())
    }
    attend([q, k, v], Some(bias), Settings { heads, scale, causal: false })
}

/// What an attention does besides its arguments.
#[derive(Clone, Copy)]
struct Settings {
    heads: usize,
    scale: f32,
    causal: bool,
}

fn attend([q, k, v]: [&Tensor; 3], bias: Option<&Tensor>, settings: Settings) -> Result<Tensor> {
    let sizes = Sizes::new(q.dims(), k.dims(), v.dims(), settings.heads)?;
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        let Settings { heads, scale, causal } = settings;
        let [q, k, v] = [split_heads(q, heads)?, split_heads(k, heads)?, split_heads(v, heads)?];
        let Sizes { images, queries, keys, dim, .. } = sizes;
        let sizes = super::cuda::AttentionSizes { heads: images * heads, queries, keys, dim, scale, causal, sharing: heads };
        return join_heads(&super::cuda::attention(&q, &k, &v, bias, sizes)?);
    }
    if cpu::is_narrow(q) {
        return cpu::rounded([q, k, v], |args| attend(args, bias, settings));
    }
    let bias = bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let op = Attention { settings, sizes, bias, log_sums: OnceLock::new() };
    graph::apply3(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, Reads::Everything, op)
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

/// All sizes of one attention.
#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    /// Heads of one image.
    heads: usize,
    queries: usize,
    keys: usize,
    /// Features of one head.
    dim: usize,
}

impl Sizes {
    fn new(q: &[usize], k: &[usize], v: &[usize], heads: usize) -> Result<Self> {
        match (q, k) {
            (&[images, queries, width], &[batch, keys, features])
                if (images, width) == (batch, features)
                    && k == v
                    && keys * queries * width > 0
                    && width.is_multiple_of(heads) =>
            {
                Ok(Self { images, heads, queries, keys, dim: width / heads })
            }
            _ => bail!("attention of {heads} heads: queries {q:?}, keys {k:?}, values {v:?}"),
        }
    }

    /// Features of a token.
    fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Where the features of a head, counted over all images, of its `token` start, in tokens of `length` an image.
    fn start(&self, head: usize, length: usize, token: usize) -> usize {
        (head / self.heads * length + token) * self.width() + head % self.heads * self.dim
    }

    /// Heads of all images one after the other, (B, heads, length, d), as tokens (B, length, heads·d).
    fn as_tokens(&self, by_head: Vec<f32>, length: usize) -> Vec<f32> {
        if self.heads == 1 { by_head } else { swapped(&by_head, [self.images, self.heads, length, self.dim]) }
    }
}

/// One attention; remembers log Σ exp of every score row for the backward pass.
struct Attention {
    settings: Settings,
    sizes: Sizes,
    /// Added to the scores of all heads: (B, N, M).
    bias: Option<Tensor>,
    log_sums: OnceLock<Vec<f32>>,
}

/// Keys or values of all heads, each as a matrix (keys, d).
struct Lines<'a> {
    values: Cow<'a, [f32]>,
    sizes: Sizes,
}

impl<'a> Lines<'a> {
    /// `xs` (B, keys, heads·d). Where several blocks of queries read them, the values of a head are brought together first.
    fn new(xs: &'a [f32], sizes: Sizes, blocks: usize) -> Self {
        let Sizes { images, heads, keys, dim, .. } = sizes;
        let values = match blocks > 1 && heads > 1 {
            true => Cow::Owned(swapped(xs, [images, keys, heads, dim])),
            false => Cow::Borrowed(xs),
        };
        Self { values, sizes }
    }

    fn of(&self, head: usize) -> Matrix<'_> {
        let Sizes { keys, dim, .. } = self.sizes;
        match &self.values {
            Cow::Owned(values) => Matrix::rows(&values[head * keys * dim..], dim),
            Cow::Borrowed(values) => Matrix::rows(&values[self.sizes.start(head, keys, 0)..], self.sizes.width()),
        }
    }
}

/// The arguments, with their heads counted over all images.
struct Heads<'a> {
    q: &'a [f32],
    k: Lines<'a>,
    v: Lines<'a>,
    sizes: Sizes,
    settings: Settings,
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
    fn new(op: &Attention, bias: Option<&'a [f32]>, [q, k, v]: [&'a [f32]; 3]) -> Self {
        let (sizes, settings) = (op.sizes, op.settings);
        let blocks = sizes.queries.div_ceil(Self::block_len(&sizes));
        Self { q, k: Lines::new(k, sizes, blocks), v: Lines::new(v, sizes, blocks), sizes, settings, bias }
    }

    /// Queries per block. Every block reads all keys and values again, so wide heads take longer blocks.
    fn block_len(sizes: &Sizes) -> usize {
        (BLOCK_SCORES / sizes.keys).clamp((sizes.dim / 2).clamp(16, 256), 256)
    }

    /// Keys the queries of a block can see.
    fn seen(&self, block: Span) -> usize {
        if self.settings.causal { self.sizes.keys.min(block.start + block.len) } else { self.sizes.keys }
    }

    /// What belongs to the queries of a block: rows of d values, [`Sizes::width`] apart, from the first value on.
    fn rows<'b>(&self, values: &'b [f32], block: Span) -> &'b [f32] {
        &values[self.sizes.start(block.head, self.sizes.queries, block.start)..]
    }

    fn queries(&self, block: Span) -> Matrix<'a> {
        Matrix::rows(self.rows(self.q, block), self.sizes.width())
    }

    /// Enough keys and features for the matrix unit, see [`cpu::product`].
    fn is_wide(&self) -> bool {
        self.sizes.dim.min(self.sizes.keys) >= cpu::tiles::SIDE
    }

    /// `scale · q·kᵀ + bias` of a block: (len, seen).
    fn scores(&self, block: Span, out: &mut [f32]) {
        let (seen, Sizes { heads, queries, keys, dim, .. }) = (self.seen(block), self.sizes);
        let (q, k) = (self.queries(block), self.k.of(block.head).t());
        cpu::product((block.len, seen, dim), q, k, out, seen, false, self.settings.scale, Threads::One, self.is_wide());
        if let Some(bias) = self.bias {
            let first = (block.head / heads * queries + block.start) * keys;
            for (scores, bias) in out.chunks_exact_mut(seen).zip(bias[first..].chunks_exact(keys)) {
                scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
            }
        }
    }

    /// Fills `out` (len, d) and the log-sums (len) of a block.
    fn forward(&self, block: Span, scores: &mut [f32], out: &mut [f32], log_sums: &mut [f32]) {
        let (seen, dim) = (self.seen(block), self.sizes.dim);
        let scores = &mut scores[..block.len * seen];
        self.scores(block, scores);
        let mut sums = vec![0.0; block.len];
        exponentials(scores, seen, self.first_visible(block), log_sums, &mut sums);
        let v = self.v.of(block.head);
        cpu::product((block.len, dim, seen), Matrix::rows(scores, seen), v, out, dim, false, 1.0, Threads::One, self.is_wide());
        for (row, sum) in out.chunks_exact_mut(dim).zip(sums) {
            let scale = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Keys visible to the first query of a block; every later one sees one more.
    fn first_visible(&self, block: Span) -> usize {
        if self.settings.causal { block.start + 1 } else { self.sizes.keys }
    }

    /// Gradients of one part of one head: fills `for_q`, returns the shares of k and v.
    fn backward(&self, part: Span, given: &Given, wanted: [bool; 3], for_q: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
        let Sizes { queries, keys, dim, .. } = self.sizes;
        let share = |wanted: bool| if wanted { vec![0.0; keys * dim] } else { Vec::new() };
        let (mut for_k, mut for_v) = (share(wanted[1]), share(wanted[2]));
        let block_len = Self::block_len(&self.sizes);
        let mut scores = vec![0.0; block_len * keys];
        let mut slopes = vec![0.0; block_len * keys];
        let (k, v) = (self.k.of(part.head), self.v.of(part.head));
        for block in part.cut(block_len) {
            let (len, seen) = (block.len, self.seen(block));
            let p = &mut scores[..len * seen];
            self.scores(block, p);
            let log_sums = &given.log_sums[block.head * queries + block.start..][..len];
            probabilities(p, seen, self.first_visible(block), log_sums);
            let gradient = Matrix::rows(self.rows(given.gradient, block), self.sizes.width());
            if wanted[2] {
                cpu::product(
                    (seen, dim, len),
                    Matrix::rows(p, seen).t(),
                    gradient,
                    &mut for_v,
                    dim,
                    true,
                    1.0,
                    Threads::One,
                    self.is_wide(),
                );
            }
            if !wanted[0] && !wanted[1] {
                continue;
            }
            let slopes = &mut slopes[..len * seen];
            cpu::product((len, seen, dim), gradient, v.t(), slopes, seen, false, 1.0, Threads::One, self.is_wide());
            let outs = [self.rows(given.out, block), self.rows(given.gradient, block)];
            score_slopes(slopes, p, seen, outs, (self.sizes.width(), dim), self.settings.scale);
            if wanted[0] {
                let out = &mut for_q[(block.start - part.start) * dim..];
                cpu::product((len, dim, seen), Matrix::rows(slopes, seen), k, out, dim, false, 1.0, Threads::One, self.is_wide());
            }
            if wanted[1] {
                let q = self.queries(block);
                cpu::product(
                    (seen, dim, len),
                    Matrix::rows(slopes, seen).t(),
                    q,
                    &mut for_k,
                    dim,
                    true,
                    1.0,
                    Threads::One,
                    self.is_wide(),
                );
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
    /// equals out·gradient. Of these two (`outs`), rows of
    /// dim values are a stride apart (`spacing`: stride, dim).
    fn score_slopes(
        slopes: &mut [f32],
        p: &[f32],
        seen: usize,
        outs: [&[f32]; 2],
        spacing: (usize, usize),
        scale: f32
    ) {
        let ([out, gradient], (stride, dim)) = (outs, spacing);
        for (i, (slopes, p)) in slopes.chunks_exact_mut(seen).zip(p.chunks_exact(seen)).enumerate() {
            let mean = cpu::dot(&out[i * stride..][..dim], &gradient[i * stride..][..dim]) as f32;
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
        let bias = self.bias.as_ref().map(cpu::read).transpose()?;
        let heads = Heads::new(self, bias.as_deref(), [cpu::values(s1, l1)?, cpu::values(s2, l2)?, cpu::values(s3, l3)?]);
        let (Sizes { queries, keys, dim, .. }, len) = (self.sizes, Heads::block_len(&self.sizes));
        let (mut out, mut log_sums) = (vec![0.0; heads.q.len()], vec![0.0; heads.q.len() / dim]);
        let by_head = out.chunks_mut(queries * dim).zip(log_sums.chunks_mut(queries)).enumerate();
        let jobs: Vec<_> = by_head
            .flat_map(|(head, (out, sums))| {
                let blocks = Span { head, start: 0, len: queries }.cut(len);
                blocks.zip(out.chunks_mut(len * dim).zip(sums.chunks_mut(len)))
            })
            .collect();
        let scores = || vec![0.0; len * keys];
        jobs.into_par_iter().for_each_init(scores, |scores, (block, (out, sums))| heads.forward(block, scores, out, sums));
        // Only this call writes: an operation value is applied once.
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(self.sizes.as_tokens(out, queries)), l1.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (qs, ks, vs) = (cpu::read(q)?, cpu::read(k)?, cpu::read(v)?);
        let (out, g) = (cpu::read(result)?, cpu::read(&gradient)?);
        let Some(log_sums) = self.log_sums.get() else { bail!("attention: backward without forward") };
        let bias = self.bias.as_ref().map(cpu::read).transpose()?;
        let heads = Heads::new(self, bias.as_deref(), [&qs, &ks, &vs]);
        let given = Given { out: &out, gradient: &g, log_sums };
        let wanted = [q.track_op(), k.track_op(), v.track_op()];
        let (for_q, for_k, for_v) = gradients(&heads, &given, wanted);
        let tensor = |by_head: Vec<f32>, like: &Tensor| {
            let tokens = || cpu::tensor(self.sizes.as_tokens(by_head, like.dim(1)?), like.shape());
            like.track_op().then(tokens).transpose()
        };
        Ok((tensor(for_q, q)?, tensor(for_k, k)?, tensor(for_v, v)?))
    }
}

/// Gradients of queries, keys and values, head by head; those not wanted hold nothing of use.
fn gradients(heads: &Heads, given: &Given, wanted: [bool; 3]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (Sizes { images, queries, dim, .. }, block_len) = (heads.sizes, Heads::block_len(&heads.sizes));
    let (count, blocks) = (images * heads.sizes.heads, queries.div_ceil(block_len));
    let part_len = blocks.div_ceil((PARTS / count).clamp(1, blocks)) * block_len;
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
