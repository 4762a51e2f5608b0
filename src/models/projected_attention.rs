//! Multi-head attention with a linear layer each for queries, keys, values and the result.

use crate::nn::{Linear, attention};
use candle_core::{Result, Tensor};

/// Networks name and size the four layers in their own ways; what they do with them is the same.
#[derive(Debug)]
pub(crate) struct ProjectedAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    scale: f32,
}

impl ProjectedAttention {
    /// `layers` for queries, keys, values and the result; the first three have `inner` outputs, split into `heads`.
    pub(crate) fn new([query, key, value, out]: [Linear; 4], inner: usize, heads: usize) -> Self {
        Self { query, key, value, out, heads, scale: 1.0 / ((inner / heads) as f32).sqrt() }
    }

    /// `causal` hides later keys from earlier queries. Queries that all images share are projected once.
    ///
    /// # Shapes
    /// `q` (B or 1, N, C), `k` and `v` (B, M, D) → (B, N, C)
    pub(crate) fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        let (q, k, v) = (self.query.forward(q)?, self.key.forward(k)?, self.value.forward(v)?);
        let (images, (shared, queries, width)) = (k.dim(0)?, q.dims3()?);
        let q = if shared == images { q } else { q.broadcast_as((images, queries, width))? };
        self.out.forward(&attention(&q, &k, &v, self.heads, self.scale, causal)?)
    }
}
