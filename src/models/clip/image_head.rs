//! What comes behind the map of an image tower: vectors of the space that images and texts share, of an image or of its parts.

use super::VisualConfig;
use crate::base::Result;
use crate::models::tokens::map_to_tokens;
use crate::nn::{Builder, Init, LayerNorm, Linear, attention_with_bias, gelu, resize_bilinear};
use candle_core::{D, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const EPS: f64 = 1e-6;
/// Channels of a head of the attention pooling.
const HEAD_DIM: usize = 64;
/// Added to the score of a pixel outside the mask.
const BLOCKED: f64 = -1e30;

/// How a tower ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageHeadConfig {
    /// Mean, norm and linear layers, of a ConvNeXt.
    Mean {
        /// Width between two layers with GELU; absent: one layer.
        #[serde(skip_serializing_if = "Option::is_none")]
        hidden: Option<usize>,
    },
    /// Attention of the mean to all pixels, of a ResNet.
    Attention {
        /// Side of the square of positions.
        side: usize,
    },
}

impl ImageHeadConfig {
    /// The head whose tensors have these shapes, by names below `visual.`; `None` without a head.
    pub fn of(shapes: &BTreeMap<String, Vec<usize>>) -> Option<Self> {
        let rows = |name: &str| shapes.get(name).and_then(|shape| shape.first().copied());
        if let Some(rows @ 2..) = rows("attnpool.positional_embedding") {
            return Some(Self::Attention { side: (rows - 1).isqrt() });
        }
        let hidden = rows("head.mlp.fc1.weight");
        (hidden.is_some() || shapes.contains_key("head.proj.weight")).then_some(Self::Mean { hidden })
    }
}

/// The layers.
///
/// # Source
/// OpenCLIP's heads; for parts of an image FC-CLIP, section 3.3 (mask pooling).
#[derive(Debug)]
pub enum ImageHead {
    /// See [`ImageHeadConfig::Mean`].
    Mean(MeanHead),
    /// See [`ImageHeadConfig::Attention`].
    Attention(Box<AttentionHead>),
}

impl ImageHead {
    /// Built at the place called `visual`, for vectors of `embedding` values.
    pub fn new(config: ImageHeadConfig, tower: &VisualConfig, embedding: usize, builder: &Builder) -> Result<Self> {
        let width = tower.channels()[3];
        Ok(match config {
            ImageHeadConfig::Mean { hidden } => Self::Mean(MeanHead::new(width, hidden, embedding, builder)?),
            ImageHeadConfig::Attention { side } => {
                Self::Attention(Box::new(AttentionHead::new(width, side, embedding, builder)?))
            }
        })
    }

    /// The vector of what each mask shows, not normalised.
    ///
    /// # Shapes
    /// `map` (B, C, h, w), the tower's last, and `inside` (B, Q, h·w) of 0 and 1 → (B, Q, D). A mask without a pixel has a vector that
    /// means nothing.
    pub fn of_masks(&self, map: &Tensor, inside: &Tensor) -> TensorResult<Tensor> {
        match self {
            Self::Mean(head) => head.forward(&mask_means(&map_to_tokens(map)?, inside)?),
            Self::Attention(head) => head.of_masks(map, inside),
        }
    }
}

/// The mean of the pixels in each mask; 0 for a mask without any.
///
/// # Shapes
/// `pixels` (B, N, C), `inside` (B, Q, N) of 0 and 1 → (B, Q, C)
pub fn mask_means(pixels: &Tensor, inside: &Tensor) -> TensorResult<Tensor> {
    inside.broadcast_div(&(inside.sum_keepdim(D::Minus1)? + 1e-8)?)?.matmul(&pixels.contiguous()?)
}

/// Norm and linear layers.
#[derive(Debug)]
pub struct MeanHead {
    norm: LayerNorm,
    widen: Option<Linear>,
    narrow: Linear,
}

impl MeanHead {
    /// Names `trunk.head.norm` and `head.mlp.{fc1,fc2}` or `head.proj`, as `hidden` says.
    pub fn new(width: usize, hidden: Option<usize>, embedding: usize, builder: &Builder) -> Result<Self> {
        let (norm, head) = (builder.pp("trunk").pp("head").pp("norm"), builder.pp("head"));
        let (widen, narrow) = match hidden {
            None => (None, Linear::no_bias(width, embedding, &head.pp("proj"))?),
            Some(hidden) => {
                let mlp = head.pp("mlp");
                (Some(Linear::new(width, hidden, &mlp.pp("fc1"))?), Linear::no_bias(hidden, embedding, &mlp.pp("fc2"))?)
            }
        };
        Ok(Self { norm: LayerNorm::new(width, EPS, &norm)?, widen, narrow })
    }

    /// # Shapes
    /// means of pixels (…, C) → (…, D)
    pub fn forward(&self, means: &Tensor) -> TensorResult<Tensor> {
        let xs = self.norm.forward(means)?;
        match &self.widen {
            Some(widen) => self.narrow.forward(&gelu(&widen.forward(&xs)?)?),
            None => self.narrow.forward(&xs),
        }
    }
}

/// The mean of the map asks, its pixels answer; positions are resized to the map.
#[derive(Debug)]
pub struct AttentionHead {
    positions: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    side: usize,
}

impl AttentionHead {
    /// Names `attnpool.{positional_embedding,q_proj,k_proj,v_proj,c_proj}`.
    fn new(width: usize, side: usize, embedding: usize, builder: &Builder) -> Result<Self> {
        let place = builder.pp("attnpool");
        let layer = |outputs, name: &str| Linear::new(width, outputs, &place.pp(name));
        let init = Init::Normal { std: 1.0 / (width as f32).sqrt() };
        Ok(Self {
            positions: place.get(&[side * side + 1, width], "positional_embedding", init)?,
            query: layer(width, "q_proj")?,
            key: layer(width, "k_proj")?,
            value: layer(width, "v_proj")?,
            out: layer(embedding, "c_proj")?,
            side,
        })
    }

    fn of_masks(&self, map: &Tensor, inside: &Tensor) -> TensorResult<Tensor> {
        let (batch, width, height, breadth) = map.dims4()?;
        let square = self.positions.narrow(0, 1, self.side * self.side)?.t()?.contiguous()?;
        let places = resize_bilinear(&square.reshape((1, width, self.side, self.side))?, (height, breadth), false)?;
        let pixels = map_to_tokens(map)?; // (B, N, C)
        let keys = pixels.broadcast_add(&map_to_tokens(&places)?)?;
        let query = pixels.mean_keepdim(1)?.broadcast_add(&self.positions.narrow(0, 0, 1)?)?; // (B, 1, C)
        let query = self.query.forward(&query)?.broadcast_as((batch, inside.dim(1)?, width))?.contiguous()?;
        let outside = inside.affine(-BLOCKED, BLOCKED)?; // 0 inside, BLOCKED outside
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let (key, value) = (self.key.forward(&keys)?, self.value.forward(&keys)?);
        self.out.forward(&attention_with_bias(&query, &key, &value, &outside, width / HEAD_DIM, scale)?)
    }
}
