//! The attention blocks of the U-Net.

use super::blocks::{NormSpec, conv1x1};
use crate::base::Result;
use crate::models::projected_attention::ProjectedAttention;
use crate::models::tokens::{map_to_tokens, tokens_to_map};
use crate::nn::{Builder, Conv2d, GroupNorm, LayerNorm, Linear, add, geglu};
use candle_core::{Result as TensorResult, Tensor};

/// Widths of one transformer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerSpec {
    pub channels: usize,
    pub heads: usize,
    pub context_dim: usize,
    pub norm_groups: usize,
    /// Project tokens with linear layers (SD 2.x) instead of 1×1 convolutions (SD 1.x).
    pub linear_projection: bool,
}

/// Attention of queries over a context, with diffusers' names.
fn attention(dim: usize, context_dim: usize, heads: usize, builder: &Builder) -> Result<ProjectedAttention> {
    let layers = [
        Linear::no_bias(dim, dim, &builder.pp("to_q"))?,
        Linear::no_bias(context_dim, dim, &builder.pp("to_k"))?,
        Linear::no_bias(context_dim, dim, &builder.pp("to_v"))?,
        Linear::new(dim, dim, &builder.pp("to_out").pp(0))?,
    ];
    Ok(ProjectedAttention::new(layers, dim, heads))
}

/// Self-attention, cross-attention and a gated feed-forward layer, each behind a norm and beside a residual.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    self_attention: ProjectedAttention,
    norm2: LayerNorm,
    cross_attention: ProjectedAttention,
    norm3: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

impl TransformerBlock {
    fn new(spec: TransformerSpec, builder: &Builder) -> Result<Self> {
        let dim = spec.channels;
        let norm = |name: &str| LayerNorm::new(dim, 1e-5, &builder.pp(name));
        let feed_forward = builder.pp("ff").pp("net");
        Ok(Self {
            norm1: norm("norm1")?,
            self_attention: attention(dim, dim, spec.heads, &builder.pp("attn1"))?,
            norm2: norm("norm2")?,
            cross_attention: attention(dim, spec.context_dim, spec.heads, &builder.pp("attn2"))?,
            norm3: norm("norm3")?,
            widen: Linear::new(dim, 8 * dim, &feed_forward.pp(0).pp("proj"))?,
            narrow: Linear::new(4 * dim, dim, &feed_forward.pp(2))?,
        })
    }

    fn forward(&self, xs: &Tensor, context: &Tensor) -> TensorResult<Tensor> {
        let normed = self.norm1.forward(xs)?;
        let xs = add(xs, &self.self_attention.forward(&normed, &normed, &normed, false)?)?;
        let xs = add(&xs, &self.cross_attention.forward(&self.norm2.forward(&xs)?, context, context, false)?)?;
        let hidden = geglu(&self.widen.forward(&self.norm3.forward(&xs)?)?)?; // (B, N, 4C)
        add(&xs, &self.narrow.forward(&hidden)?)
    }
}

#[derive(Debug)]
enum Projection {
    Conv { into: Conv2d, out: Conv2d },
    Linear { into: Linear, out: Linear },
}

/// A transformer over the pixels of a feature map, conditioned on the prompt.
#[derive(Debug)]
pub(super) struct SpatialTransformer {
    norm: GroupNorm,
    projection: Projection,
    block: TransformerBlock,
}

impl SpatialTransformer {
    pub fn new(spec: TransformerSpec, builder: &Builder) -> Result<Self> {
        let (dim, into, out) = (spec.channels, builder.pp("proj_in"), builder.pp("proj_out"));
        let projection = if spec.linear_projection {
            Projection::Linear { into: Linear::new(dim, dim, &into)?, out: Linear::new(dim, dim, &out)? }
        } else {
            Projection::Conv { into: conv1x1(dim, dim, &into)?, out: conv1x1(dim, dim, &out)? }
        };
        Ok(Self {
            norm: NormSpec { groups: spec.norm_groups, eps: 1e-6 }.build(dim, &builder.pp("norm"))?,
            projection,
            block: TransformerBlock::new(spec, &builder.pp("transformer_blocks").pp(0))?,
        })
    }

    /// # Shapes
    /// `xs` (B, C, h, w), `context` (B, T, D) → (B, C, h, w)
    pub fn forward(&self, xs: &Tensor, context: &Tensor) -> TensorResult<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let normed = self.norm.forward(xs)?;
        let ys = match &self.projection {
            Projection::Conv { into, out } => {
                let tokens = self.block.forward(&map_to_tokens(&into.forward(&normed)?)?, context)?;
                out.forward(&tokens_to_map(&tokens, (height, width))?)?
            }
            Projection::Linear { into, out } => {
                let tokens = self.block.forward(&into.forward(&map_to_tokens(&normed)?)?, context)?;
                tokens_to_map(&out.forward(&tokens)?, (height, width))?
            }
        };
        xs + ys
    }
}
