//! The Transformer decoder: queries look at the levels in turn, each only where its own mask is, and predict a class and a
//! mask after every layer.

use super::HeadConfig;
use super::pixel_decoder::PixelFeatures;
use super::position::sine_positions;
use crate::base::Result;
use crate::models::clip::mask_means;
use crate::models::packed_attention::{Hidden, PackedAttention};
use crate::nn::{Builder, Init, LayerNorm, Linear, add, linear, relu, resize_bilinear};
use candle_core::{D, DType, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;
const LEVELS: usize = 3;
/// Added to the score of a key that a query must not look at.
const BLOCKED: f64 = -1e30;
/// The vectors of class names in files.
pub const CLASS_VECTORS: &str = "class_vectors";
/// The vector of "no object" in files.
pub const VOID: &str = "void_embedding";
/// Largest factor of a text classifier's cosines.
const LARGEST_SCALE: f64 = 100.0;

/// What the queries say after one layer.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// (B, Q, K + 1); the last class is "no object".
    pub logits: Tensor,
    /// Mask logits at stride 4, (B, Q, h, w).
    pub masks: Tensor,
}

/// What a text classifier compares with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextHead {
    /// D, width of the vectors.
    pub width: usize,
    /// Names of each class: as many vectors, the best of which counts.
    pub synonyms: Vec<usize>,
}

/// Vectors of class names.
#[derive(Debug, Clone)]
pub struct ClassVectors {
    vectors: Tensor,
    synonyms: Vec<usize>,
}

impl ClassVectors {
    /// `class_vectors`, which no optimiser changes.
    pub fn build(names: &TextHead, builder: &Builder) -> Result<Self> {
        let shape = [names.synonyms.iter().sum(), names.width];
        let vectors = builder.buffer(&shape, CLASS_VECTORS, Init::Normal { std: 1.0 })?.as_detached_tensor();
        Ok(Self { vectors, synonyms: names.synonyms.clone() })
    }

    /// Cosines times the exponent of `log_scale`, of each class that of its nearest name.
    ///
    /// # Shapes
    /// `xs` (B, Q, D) → (B, Q, K)
    pub fn compare(&self, xs: &Tensor, log_scale: &Tensor) -> TensorResult<Tensor> {
        nearest(xs, &self.vectors, self.synonyms.iter().copied(), log_scale)
    }
}

/// Cosines of `xs` with `vectors` times the exponent of `log_scale`; of the first `counts[0]` the largest, and so on.
fn nearest(xs: &Tensor, vectors: &Tensor, counts: impl Iterator<Item = usize>, log_scale: &Tensor) -> TensorResult<Tensor> {
    let scale = log_scale.exp()?.clamp(0.0, LARGEST_SCALE)?;
    let cosines = linear(&unit(xs)?, vectors, None)?.broadcast_mul(&scale)?; // (B, Q, S)
    let mut start = 0;
    let mut best = Vec::new();
    for count in counts {
        best.push(cosines.narrow(2, start, count)?.max_keepdim(2)?);
        start += count;
    }
    Tensor::cat(&best, 2)
}

/// Vectors of class names that a text classifier compares with, and of "no object", which alone is learnt.
#[derive(Debug, Clone)]
pub struct TextClasses {
    names: ClassVectors,
    void: Tensor,
}

impl TextClasses {
    /// `synonyms` counts the vectors of each class, in order.
    ///
    /// # Shapes
    /// `vectors` (S, D) of length 1, S = Σ `synonyms`; `void` (1, D), any length
    pub fn new(vectors: Tensor, synonyms: Vec<usize>, void: Tensor) -> Self {
        Self { names: ClassVectors { vectors, synonyms }, void }
    }

    /// Names `class_vectors` and `void_embedding`.
    pub fn build(head: &TextHead, builder: &Builder) -> Result<Self> {
        let void = builder.pp(VOID).get(&[1, head.width], "weight", Init::Normal { std: 1.0 })?;
        Ok(Self { names: ClassVectors::build(head, builder)?, void })
    }

    /// As [`ClassVectors::compare`], "no object" last.
    fn compare(&self, xs: &Tensor, log_scale: &Tensor) -> TensorResult<Tensor> {
        let vectors = Tensor::cat(&[&self.names.vectors, &unit(&self.void)?], 0)?;
        nearest(xs, &vectors, self.names.synonyms.iter().copied().chain([1]), log_scale)
    }
}

/// The network.
///
/// # Source
/// Mask2Former, section 3.2; with a text classifier FC-CLIP's head (section 3.2 there).
#[derive(Debug)]
pub struct TransformerDecoder {
    query_content: Tensor,
    query_position: Tensor,
    level_embed: Tensor,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    mask_embed: Mlp,
    classifier: Classifier,
}

impl TransformerDecoder {
    /// Names `query_feat`, `query_embed`, `level_embed`, `transformer_{cross_attention,self_attention,ffn}_layers.{i}`,
    /// `decoder_norm`, `mask_embed`, `class_embed`.
    pub fn new(config: &HeadConfig, builder: &Builder) -> Result<Self> {
        let width = config.width;
        let table = |entries, name: &str| builder.pp(name).get(&[entries, width], "weight", Init::Normal { std: 1.0 });
        Ok(Self {
            query_content: table(config.queries, "query_feat")?,
            query_position: table(config.queries, "query_embed")?,
            level_embed: table(LEVELS, "level_embed")?,
            layers: (0..config.decoder_layers).map(|i| DecoderLayer::new(config, i, builder)).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, EPS, &builder.pp("decoder_norm"))?,
            mask_embed: Mlp::new(width, width, &builder.pp("mask_embed"))?,
            classifier: Classifier::new(config, builder)?,
        })
    }

    /// One prediction from the queries as they start, and one after each layer.
    ///
    /// # Shapes
    /// → logits (B, Q, K + 1) and masks (B, Q, h, w)
    pub fn forward(&self, features: &PixelFeatures, classes: Option<&TextClasses>) -> TensorResult<Vec<Prediction>> {
        let (batch, width, height, breadth) = features.mask_features.dims4()?;
        let pixels = Pixels { flat: features.mask_features.flatten_from(2)?.contiguous()?, size: (height, breadth) };
        let dtype = features.mask_features.dtype();
        let mut levels = Vec::with_capacity(LEVELS);
        for (i, (tokens, size)) in features.memory.iter().enumerate() {
            let value = tokens.broadcast_add(&self.level_embed.narrow(0, i, 1)?.to_dtype(dtype)?)?; // (B, N, C)
            let key = value.broadcast_add(&sine_positions(*size, width, value.device())?.to_dtype(dtype)?)?;
            levels.push((key, value, *size));
        }
        let repeated = |t: &Tensor| t.to_dtype(dtype)?.unsqueeze(0)?.broadcast_as((batch, t.dim(0)?, width))?.contiguous();
        let (mut queries, position) = (repeated(&self.query_content)?, repeated(&self.query_position)?); // (B, Q, C)
        let mut predictions = vec![self.predict(&queries, &pixels, classes)?];
        for (i, layer) in self.layers.iter().enumerate() {
            let (key, value, size) = &levels[i % LEVELS];
            let blocked = blocked(&predictions[i].masks, *size)?;
            queries = layer.forward(&queries, &position, (key, value), &blocked)?;
            predictions.push(self.predict(&queries, &pixels, classes)?);
        }
        Ok(predictions)
    }

    fn predict(&self, queries: &Tensor, pixels: &Pixels, classes: Option<&TextClasses>) -> TensorResult<Prediction> {
        let normed = self.norm.forward(queries)?;
        let (batch, count, _) = normed.dims3()?;
        let masks = self.mask_embed.forward(&normed)?.matmul(&pixels.flat)?.to_dtype(DType::F32)?; // (B, Q, h·w)
        let logits = self.classifier.forward(&normed, &masks, pixels, classes)?.to_dtype(DType::F32)?;
        Ok(Prediction { logits, masks: masks.reshape((batch, count, pixels.size.0, pixels.size.1))? })
    }
}

/// The mask features, (B, C, h·w).
struct Pixels {
    flat: Tensor,
    size: (usize, usize),
}

/// What is added to attention scores so that a query only looks where its mask is; a query without any such place looks
/// everywhere. A constant.
///
/// # Shapes
/// `masks` (B, Q, h, w) → (B, Q, N) for `size` (H, W), N = H·W
fn blocked(masks: &Tensor, size: (usize, usize)) -> TensorResult<Tensor> {
    let outside = resize_bilinear(&masks.detach(), size, false)?.lt(0.0)?.to_dtype(DType::F32)?.flatten_from(2)?;
    let count = (size.0 * size.1) as f64;
    let has_place = outside.sum_keepdim(D::Minus1)?.lt(count)?.to_dtype(DType::F32)?; // (B, Q, 1)
    outside.broadcast_mul(&has_place)? * BLOCKED
}

/// Cross-attention to one level, self-attention of the queries, a feed-forward layer; each beside a residual and followed
/// by a norm.
#[derive(Debug)]
struct DecoderLayer {
    cross: PackedAttention,
    cross_norm: LayerNorm,
    own: PackedAttention,
    own_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

impl DecoderLayer {
    fn new(config: &HeadConfig, index: usize, builder: &Builder) -> Result<Self> {
        let HeadConfig { width, heads, decoder_hidden: hidden, .. } = *config;
        let place = |kind: &str| builder.pp(format!("transformer_{kind}_layers")).pp(index);
        let (cross, own, ffn) = (place("cross_attention"), place("self_attention"), place("ffn"));
        let norm = |place: &Builder| LayerNorm::new(width, EPS, &place.pp("norm"));
        let dense = |inputs: usize, outputs, name: &str| {
            let bias = Init::Uniform { bound: 1.0 / (inputs as f32).sqrt() };
            Linear::with_init(inputs, outputs, &ffn.pp(name), Init::XavierUniform, Some(bias))
        };
        Ok(Self {
            cross: PackedAttention::new(width, heads, &cross.pp("multihead_attn"))?,
            cross_norm: norm(&cross)?,
            own: PackedAttention::new(width, heads, &own.pp("self_attn"))?,
            own_norm: norm(&own)?,
            widen: dense(width, hidden, "linear1")?,
            narrow: dense(hidden, width, "linear2")?,
            norm: norm(&ffn)?,
        })
    }

    /// # Shapes
    /// `xs` and `position` (B, Q, C), `memory` keys and values (B, N, C), `blocked` (B, Q, N) → (B, Q, C)
    fn forward(&self, xs: &Tensor, position: &Tensor, memory: (&Tensor, &Tensor), blocked: &Tensor) -> TensorResult<Tensor> {
        let seen = self.cross.forward(&add(xs, position)?, memory.0, memory.1, Hidden::Bias(blocked))?;
        let xs = self.cross_norm.forward(&add(xs, &seen)?)?;
        let query = add(&xs, position)?;
        let mixed = self.own.forward(&query, &query, &xs, Hidden::Nothing)?;
        let xs = self.own_norm.forward(&add(&xs, &mixed)?)?;
        let hidden = relu(&self.widen.forward(&xs)?)?;
        self.norm.forward(&add(&xs, &self.narrow.forward(&hidden)?)?)
    }
}

/// Three linear layers with ReLU between them, `layers.{0,1,2}`.
#[derive(Debug)]
struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    fn new(width: usize, outputs: usize, builder: &Builder) -> Result<Self> {
        let layers = [width, width, outputs].into_iter().enumerate();
        let layers = layers.map(|(i, outputs)| Linear::new(width, outputs, &builder.pp("layers").pp(i)));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let mut xs = self.layers[0].forward(xs)?;
        for layer in &self.layers[1..] {
            xs = layer.forward(&relu(&xs)?)?;
        }
        Ok(xs)
    }
}

/// How a query gets its class.
#[derive(Debug)]
enum Classifier {
    Linear(Linear),
    Text(Box<TextClassifier>),
}

impl Classifier {
    fn new(config: &HeadConfig, builder: &Builder) -> Result<Self> {
        Ok(match &config.text {
            None => Self::Linear(Linear::new(config.width, config.num_classes + 1, &builder.pp("class_embed"))?),
            Some(text) => Self::Text(Box::new(TextClassifier::new(config.width, text.width, builder)?)),
        })
    }

    /// # Shapes
    /// `queries` (B, Q, C), `masks` (B, Q, h·w) → (B, Q, K + 1)
    fn forward(&self, queries: &Tensor, masks: &Tensor, pixels: &Pixels, classes: Option<&TextClasses>) -> TensorResult<Tensor> {
        match (self, classes) {
            (Self::Linear(layer), _) => layer.forward(queries),
            (Self::Text(text), Some(classes)) => text.forward(queries, masks, pixels, classes),
            (Self::Text(_), None) => {
                candle_core::bail!("this head compares with the vectors of class names, but none were given")
            }
        }
    }
}

/// Compares an embedding of the query and of the pixels in its mask with text vectors.
///
/// # Source
/// FC-CLIP, section 3.2: mask pooling, cosine similarity with a learnt scale, best synonym of each class.
#[derive(Debug)]
struct TextClassifier {
    pooled_norm: LayerNorm,
    pooled: Linear,
    embed: Mlp,
    log_scale: Tensor,
}

impl TextClassifier {
    fn new(width: usize, text_width: usize, builder: &Builder) -> Result<Self> {
        let pooled = builder.pp("_mask_pooling_proj");
        Ok(Self {
            pooled_norm: LayerNorm::new(width, EPS, &pooled.pp("0"))?,
            pooled: Linear::new(width, width, &pooled.pp("1"))?,
            embed: Mlp::new(width, text_width, &builder.pp("class_embed"))?,
            log_scale: builder.get(&[], "logit_scale", Init::Constant { value: (1f32 / 0.07).ln() })?,
        })
    }

    fn forward(&self, queries: &Tensor, masks: &Tensor, pixels: &Pixels, classes: &TextClasses) -> TensorResult<Tensor> {
        let inside = masks.detach().gt(0.0)?.to_dtype(DType::F32)?; // (B, Q, h·w)
        // Cosines in f32.
        let (queries, flat) = (&queries.to_dtype(DType::F32)?, pixels.flat.to_dtype(DType::F32)?);
        let pooled = mask_means(&flat.transpose(1, 2)?, &inside)?; // (B, Q, C)
        let pooled = self.pooled.forward(&self.pooled_norm.forward(&pooled)?)?;
        classes.compare(&self.embed.forward(&(pooled + queries)?)?, &self.log_scale)
    }
}

/// Rows brought to length 1. # Shapes: (…, D) → same
fn unit(xs: &Tensor) -> TensorResult<Tensor> {
    xs.broadcast_div(&(xs.sqr()?.sum_keepdim(D::Minus1)?.sqrt()? + 1e-12)?)
}
