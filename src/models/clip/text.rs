//! The text tower: a prompt becomes one vector of the space that images and texts share.

use crate::base::{Error, Result};
use crate::models::packed_attention::{Hidden, PackedAttention};
use crate::models::stable_diffusion::config::TextActivation;
use crate::nn::{Builder, Embedding, Init, LayerNorm, Linear, add, gelu, quick_gelu};
use candle_core::{D, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;

/// Sizes of a text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTowerConfig {
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Longest prompt in tokens.
    pub context: usize,
    /// Width of the Transformer.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// D, width of the output.
    pub embedding: usize,
    /// QuickGELU for weights of the original CLIP, GELU for those of OpenCLIP.
    pub activation: TextActivation,
}

impl Default for TextTowerConfig {
    /// Of OpenCLIP's `convnext_large_d_320`.
    fn default() -> Self {
        let activation = TextActivation::Gelu;
        Self { vocabulary: 49_408, context: 77, width: 768, heads: 12, layers: 16, embedding: 768, activation }
    }
}

/// The network.
///
/// # Source
/// CLIP, section 2.4, with the parameter names of open_clip.
#[derive(Debug)]
pub struct TextTower {
    tokens: Embedding,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    projection: Tensor,
}

impl TextTower {
    /// Names `token_embedding`, `positional_embedding`, `transformer.resblocks.{i}`, `ln_final`, `text_projection`.
    ///
    /// # Errors
    /// Heads that do not divide the width.
    pub fn new(config: &TextTowerConfig, builder: &Builder) -> Result<Self> {
        let TextTowerConfig { width, heads, layers, embedding, .. } = *config;
        if heads == 0 || width % heads != 0 {
            return Err(Error::Usage(format!("a text tower of width {width} cannot have {heads} heads")));
        }
        let blocks = builder.pp("transformer").pp("resblocks");
        let projection = Init::Normal { std: 1.0 / (width as f32).sqrt() };
        Ok(Self {
            tokens: Embedding::new(config.vocabulary, width, &builder.pp("token_embedding"), Init::Normal { std: 0.02 })?,
            positions: builder.get(&[config.context, width], "positional_embedding", Init::Normal { std: 0.01 })?,
            layers: (0..layers).map(|i| Layer::new(config, &blocks.pp(i))).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, EPS, &builder.pp("ln_final"))?,
            projection: builder.get(&[width, embedding], "text_projection", projection)?,
        })
    }

    /// The vector of each prompt, not normalised: the state at its end token (the largest id), projected.
    ///
    /// # Shapes
    /// `ids` (B, T) u32, T ≤ context → (B, D)
    pub fn forward(&self, ids: &Tensor) -> TensorResult<Tensor> {
        let (batch, length) = ids.dims2()?;
        let mut xs = self.tokens.forward(ids)?.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        for layer in &self.layers {
            xs = layer.forward(&xs)?;
        }
        let offsets = Tensor::arange(0u32, batch as u32, ids.device())?.affine(length as f64, 0.0)?;
        let ends = (ids.argmax(D::Minus1)? + offsets)?;
        let ends = xs.flatten_to(1)?.index_select(&ends, 0)?; // (B, width)
        self.norm.forward(&ends)?.matmul(&self.projection)
    }
}

/// Causal self-attention and a feed-forward layer, each behind a norm and beside a residual.
#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: PackedAttention,
    norm2: LayerNorm,
    widen: Linear,
    narrow: Linear,
    activation: TextActivation,
}

impl Layer {
    fn new(config: &TextTowerConfig, builder: &Builder) -> Result<Self> {
        let (width, mlp) = (config.width, builder.pp("mlp"));
        Ok(Self {
            norm1: LayerNorm::new(width, EPS, &builder.pp("ln_1"))?,
            attention: PackedAttention::new(width, config.heads, &builder.pp("attn"))?,
            norm2: LayerNorm::new(width, EPS, &builder.pp("ln_2"))?,
            widen: Linear::new(width, 4 * width, &mlp.pp("c_fc"))?,
            narrow: Linear::new(4 * width, width, &mlp.pp("c_proj"))?,
            activation: config.activation,
        })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let normed = self.norm1.forward(xs)?;
        let xs = add(xs, &self.attention.forward(&normed, &normed, &normed, Hidden::Later)?)?;
        let hidden = self.widen.forward(&self.norm2.forward(&xs)?)?;
        let hidden = match self.activation {
            TextActivation::QuickGelu => quick_gelu(&hidden)?,
            TextActivation::Gelu => gelu(&hidden)?,
        };
        add(&xs, &self.narrow.forward(&hidden)?)
    }
}
