//! Multi-head attention as PyTorch's `MultiheadAttention` stores it: one matrix for queries, keys and values.

use crate::base::Result;
use crate::nn::{Builder, Init, Linear, attention, attention_with_bias, linear};
use candle_core::{Result as TensorResult, Tensor};

/// What a query must not look at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hidden<'a> {
    /// Nothing.
    Nothing,
    /// Keys behind the query.
    Later,
    /// Keys where this is a large negative number: (B, N, M).
    Bias(&'a Tensor),
}

/// Names `in_proj_weight`, `in_proj_bias`, `out_proj`; Xavier-uniform, biases 0.
#[derive(Debug)]
pub(crate) struct PackedAttention {
    weight: Tensor,
    bias: Tensor,
    out: Linear,
    heads: usize,
    dim: usize,
}

impl PackedAttention {
    pub(crate) fn new(dim: usize, heads: usize, builder: &Builder) -> Result<Self> {
        let out = builder.pp("out_proj");
        Ok(Self {
            weight: builder.get(&[3 * dim, dim], "in_proj_weight", Init::XavierUniform)?,
            bias: builder.get(&[3 * dim], "in_proj_bias", Init::Zeros)?,
            out: Linear::with_init(dim, dim, &out, Init::XavierUniform, Some(Init::Zeros))?,
            heads,
            dim,
        })
    }

    /// # Shapes
    /// `query` (B, N, D), `key` and `value` (B, M, D) → (B, N, D)
    pub(crate) fn forward(&self, query: &Tensor, key: &Tensor, value: &Tensor, hidden: Hidden) -> TensorResult<Tensor> {
        let project = |index: usize, xs: &Tensor| {
            let part = |t: &Tensor| t.narrow(0, index * self.dim, self.dim);
            linear(xs, &part(&self.weight)?, Some(&part(&self.bias)?))
        };
        let (q, k, v) = (project(0, query)?, project(1, key)?, project(2, value)?);
        let scale = 1.0 / ((self.dim / self.heads) as f32).sqrt();
        let mixed = match hidden {
            Hidden::Bias(bias) => attention_with_bias(&q, &k, &v, bias, self.heads, scale)?,
            _ => attention(&q, &k, &v, self.heads, scale, matches!(hidden, Hidden::Later))?,
        };
        self.out.forward(&mixed)
    }
}
