//! The prompt encoder: the text tower of CLIP (SD 1.x) or OpenCLIP (SD 2.x).

use super::config::{TextActivation, TextConfig};
use crate::base::Result;
use crate::models::projected_attention::ProjectedAttention;
use crate::nn::{Builder, Embedding, Init, LayerNorm, Linear, add, gelu, quick_gelu};
use candle_core::{DType, Result as TensorResult, Tensor};

/// Causal self-attention and a feed-forward layer, each behind a norm and beside a residual.
#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: ProjectedAttention,
    norm2: LayerNorm,
    widen: Linear,
    narrow: Linear,
    activation: TextActivation,
}

impl Layer {
    fn new(config: &TextConfig, builder: &Builder) -> Result<Self> {
        let (dim, hidden) = (config.hidden_size, config.intermediate_size);
        let (attention, mlp) = (builder.pp("self_attn"), builder.pp("mlp"));
        let projection = |name: &str| Linear::new(dim, dim, &attention.pp(name));
        let projections = [projection("q_proj")?, projection("k_proj")?, projection("v_proj")?, projection("out_proj")?];
        Ok(Self {
            norm1: LayerNorm::new(dim, config.layer_norm_eps, &builder.pp("layer_norm1"))?,
            attention: ProjectedAttention::new(projections, dim, config.num_attention_heads),
            norm2: LayerNorm::new(dim, config.layer_norm_eps, &builder.pp("layer_norm2"))?,
            widen: Linear::new(dim, hidden, &mlp.pp("fc1"))?,
            narrow: Linear::new(hidden, dim, &mlp.pp("fc2"))?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let normed = self.norm1.forward(xs)?;
        let xs = add(xs, &self.attention.forward(&normed, &normed, &normed, true)?)?;
        let hidden = self.widen.forward(&self.norm2.forward(&xs)?)?;
        let hidden = match self.activation {
            TextActivation::QuickGelu => quick_gelu(&hidden)?,
            TextActivation::Gelu => gelu(&hidden)?,
        };
        add(&xs, &self.narrow.forward(&hidden)?)
    }
}

/// Turns token ids into the context that the U-Net attends to.
///
/// # Source
/// CLIP, section 2.4, with the parameter names of transformers' `CLIPTextModel`.
#[derive(Debug)]
pub struct TextEncoder {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    dtype: DType,
}

impl TextEncoder {
    /// Builds the network of `config`.
    ///
    /// # Errors
    /// A configuration that contradicts itself (see [`TextConfig::validate`]).
    pub fn new(config: &TextConfig, builder: &Builder) -> Result<Self> {
        config.validate()?;
        let (builder, dim) = (builder.pp("text_model"), config.hidden_size);
        let (embeddings, layers) = (builder.pp("embeddings"), builder.pp("encoder").pp("layers"));
        let table = |entries, name: &str| Embedding::new(entries, dim, &embeddings.pp(name), Init::Normal { std: 0.02 });
        Ok(Self {
            tokens: table(config.vocab_size, "token_embedding")?,
            positions: table(config.max_position_embeddings, "position_embedding")?,
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(config, &layers.pp(i))).collect::<Result<_>>()?,
            final_norm: LayerNorm::new(dim, config.layer_norm_eps, &builder.pp("final_layer_norm"))?,
            dtype: builder.dtype(),
        })
    }

    /// The states of all positions after the final norm. There is no padding mask: padding is read like any token.
    ///
    /// # Shapes
    /// `ids` (B, T) u32, T ≤ `max_position_embeddings` → (B, T, D)
    pub fn forward(&self, ids: &Tensor) -> TensorResult<Tensor> {
        let positions = Tensor::arange(0u32, ids.dim(1)? as u32, ids.device())?;
        let mut xs = self.tokens.forward(ids)?.broadcast_add(&self.positions.forward(&positions)?)?.to_dtype(self.dtype)?;
        for layer in &self.layers {
            xs = layer.forward(&xs)?;
        }
        self.final_norm.forward(&xs)?.to_dtype(DType::F32)
    }
}
