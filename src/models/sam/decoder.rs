//! SAM's mask decoder: a small transformer between prompt tokens and the image, then one filter for each mask.

use super::blocks::{Activation, LayerNorm2d, Mlp};
use crate::base::Result;
use crate::models::projected_attention::ProjectedAttention;
use crate::models::tokens::{map_to_tokens, tokens_to_map};
use crate::nn::{Builder, Init, LayerNorm, Linear, gelu, linear};
use candle_core::{Result as TensorResult, Tensor};

/// Masks of every answer: one for a clear prompt, three for an ambiguous one.
const MASKS: usize = 4;

/// Prompts whose images are enlarged at once, which takes most memory. Never changes a result.
const ENLARGED: usize = 16;

/// Sizes of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Layers of the transformer.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of its feed-forward layers.
    pub mlp: usize,
    /// Width of the layers that predict the quality of masks.
    pub quality: usize,
}

/// Attention between two lists of tokens, in fewer dimensions where `shrink` is 2.
fn attention(dim: usize, heads: usize, shrink: usize, builder: &Builder) -> Result<ProjectedAttention> {
    let inner = dim / shrink;
    let into = |name: &str| Linear::new(dim, inner, &builder.pp(name));
    let layers = [into("q_proj")?, into("k_proj")?, into("v_proj")?, Linear::new(inner, dim, &builder.pp("out_proj"))?];
    Ok(ProjectedAttention::new(layers, inner, heads))
}

/// What tokens (B, N, C) see on the images (B or 1, h·w, C); one that all prompts share is projected once.
fn look(attention: &ProjectedAttention, tokens: &Tensor, keys: &Tensor, values: &Tensor) -> TensorResult<Tensor> {
    let (batch, count, dim) = tokens.dims3()?;
    if keys.dim(0)? == batch {
        return attention.forward(tokens, keys, values, false);
    }
    let together = tokens.reshape((1, batch * count, dim))?;
    attention.forward(&together, keys, values, false)?.reshape((batch, count, dim))
}

/// Tokens look at each other, then at the image; then the image looks at the tokens.
#[derive(Debug)]
struct TwoWayLayer {
    among: ProjectedAttention,
    to_image: ProjectedAttention,
    mlp: Mlp,
    from_image: ProjectedAttention,
    norms: [LayerNorm; 4],
    first: bool,
}

impl TwoWayLayer {
    fn new(dim: usize, config: DecoderConfig, first: bool, builder: &Builder) -> Result<Self> {
        let norm = |i: usize| LayerNorm::new(dim, 1e-5, &builder.pp(format!("norm{i}")));
        let across = |name: &str| attention(dim, config.heads, 2, &builder.pp(name));
        Ok(Self {
            among: attention(dim, config.heads, 1, &builder.pp("self_attn"))?,
            to_image: across("cross_attn_token_to_image")?,
            mlp: Mlp::new(&[dim, config.mlp, dim], &["lin1", "lin2"], Activation::Relu, &builder.pp("mlp"))?,
            from_image: across("cross_attn_image_to_token")?,
            norms: [norm(1)?, norm(2)?, norm(3)?, norm(4)?],
            first,
        })
    }

    /// `tokens` (B, N, C), `image` (B or 1, h·w, C), each with its positions → the same two, for each prompt.
    fn forward(
        &self,
        tokens: &Tensor,
        image: &Tensor,
        token_places: &Tensor,
        image_places: &Tensor,
    ) -> TensorResult<(Tensor, Tensor)> {
        let tokens = if self.first {
            // No residual and no positions here.
            self.among.forward(tokens, tokens, tokens, false)?
        } else {
            let placed = (tokens + token_places)?;
            (tokens + self.among.forward(&placed, &placed, tokens, false)?)?
        };
        let tokens = self.norms[0].forward(&tokens)?;
        let keys = image.broadcast_add(image_places)?;
        let seen = look(&self.to_image, &(&tokens + token_places)?, &keys, image)?;
        let tokens = self.norms[1].forward(&(tokens + seen)?)?;
        let tokens = self.norms[2].forward(&(&tokens + self.mlp.forward(&tokens)?)?)?;
        let told = self.from_image.forward(&keys, &(&tokens + token_places)?, &tokens, false)?;
        let image = self.norms[3].forward(&image.broadcast_add(&told)?)?;
        Ok((tokens, image))
    }
}

/// A transposed convolution whose kernel is its stride, 2: each pixel becomes a square of four.
#[derive(Debug)]
struct Double {
    weight: Tensor,
    bias: Tensor,
}

impl Double {
    fn new(inputs: usize, outputs: usize, builder: &Builder) -> Result<Self> {
        Ok(Self {
            weight: builder.get(&[inputs, outputs, 2, 2], "weight", Init::FanInUniform)?,
            bias: builder.get(&[outputs], "bias", Init::Zeros)?,
        })
    }

    /// (B, C, h, w) → (B, O, 2h, 2w)
    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let (batch, _, height, width) = xs.dims4()?;
        let (inputs, outputs, ..) = self.weight.dims4()?;
        let weight = self.weight.reshape((inputs, outputs * 4))?.t()?.contiguous()?; // (4·O, C)
        let xs = linear(&map_to_tokens(xs)?, &weight, None)?; // (B, h·w, 4·O)
        let xs = xs.reshape(&[batch, height, width, outputs, 2, 2][..])?.permute(&[0, 3, 1, 4, 2, 5][..])?;
        let xs = xs.contiguous()?.reshape((batch, outputs, 2 * height, 2 * width))?;
        xs.broadcast_add(&self.bias.reshape((1, outputs, 1, 1))?)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct MaskDecoder {
    /// The quality token (1, C), and one for each mask (MASKS, C).
    own: [Tensor; 2],
    layers: Vec<TwoWayLayer>,
    last: ProjectedAttention,
    last_norm: LayerNorm,
    double: [Double; 2],
    norm: LayerNorm2d,
    filters: Vec<Mlp>,
    quality: Mlp,
}

impl MaskDecoder {
    pub(super) fn new(dim: usize, config: DecoderConfig, builder: &Builder) -> Result<Self> {
        let normal = Init::Normal { std: 1.0 };
        let own = [
            builder.pp("iou_token").get(&[1, dim], "weight", normal)?,
            builder.pp("mask_tokens").get(&[MASKS, dim], "weight", normal)?,
        ];
        let transformer = builder.pp("transformer");
        let layer = |i: usize| TwoWayLayer::new(dim, config, i == 0, &transformer.pp("layers").pp(i));
        let upscaling = builder.pp("output_upscaling");
        let names = ["layers.0", "layers.1", "layers.2"];
        let mlp = |widths: &[usize], place: &Builder| Mlp::new(widths, &names, Activation::Relu, place);
        let filter = |i: usize| mlp(&[dim, dim, dim, dim / 8], &builder.pp("output_hypernetworks_mlps").pp(i));
        Ok(Self {
            own,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            last: attention(dim, config.heads, 2, &transformer.pp("final_attn_token_to_image"))?,
            last_norm: LayerNorm::new(dim, 1e-5, &transformer.pp("norm_final_attn"))?,
            double: [Double::new(dim, dim / 4, &upscaling.pp(0))?, Double::new(dim / 4, dim / 8, &upscaling.pp(3))?],
            norm: LayerNorm2d::new(dim / 4, &upscaling.pp(1))?,
            filters: (0..MASKS).map(filter).collect::<Result<_>>()?,
            quality: mlp(&[dim, config.quality, config.quality, MASKS], &builder.pp("iou_prediction_head"))?,
        })
    }

    /// Masks and their predicted IoU for one image and B prompts.
    ///
    /// # Shapes
    /// `embedding` (1, C, g, g), `places` (1, g·g, C), `prompts` (B, N, C), `dense` (B or 1, C, g or 1, g or 1) →
    /// (B, 4, 4g, 4g) logits and (B, 4)
    pub(super) fn forward(
        &self,
        embedding: &Tensor,
        places: &Tensor,
        prompts: &Tensor,
        dense: &Tensor,
    ) -> TensorResult<(Tensor, Tensor)> {
        let (batch, _, dim) = prompts.dims3()?;
        let grid = (embedding.dim(2)?, embedding.dim(3)?);
        let own = Tensor::cat(&self.own, 0)?.unsqueeze(0)?.broadcast_as((batch, MASKS + 1, dim))?;
        let token_places = Tensor::cat(&[&own.contiguous()?, prompts], 1)?;
        // Without mask prompts all prompts see the same image until the first layer has told it of them.
        let mut image = map_to_tokens(&embedding.broadcast_add(dense)?)?; // (B or 1, h·w, C)
        let mut tokens = token_places.clone();
        for layer in &self.layers {
            (tokens, image) = layer.forward(&tokens, &image, &token_places, places)?;
        }
        let keys = image.broadcast_add(places)?;
        let seen = look(&self.last, &(&tokens + &token_places)?, &keys, &image)?;
        drop(keys);
        let tokens = self.last_norm.forward(&(tokens + seen)?)?;
        let quality = self.quality.forward(&tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?;
        let filter = |(i, mlp): (usize, &Mlp)| mlp.forward(&tokens.narrow(1, 1 + i, 1)?.contiguous()?); // (B, 1, C/8)
        let filters = self.filters.iter().enumerate().map(filter).collect::<TensorResult<Vec<_>>>()?;
        let filters = Tensor::cat(&filters, 1)?;
        let piece = |start: usize| {
            let count = ENLARGED.min(batch - start);
            self.masks(&image.narrow(0, start, count)?, grid, &filters.narrow(0, start, count)?)
        };
        let masks = (0..batch).step_by(ENLARGED).map(piece).collect::<TensorResult<Vec<_>>>()?;
        Ok((Tensor::cat(&masks, 0)?, quality))
    }

    /// Enlarges the images and applies the filters of each: (B, h·w, C) and (B, 4, C/8) → (B, 4, 4h, 4w).
    fn masks(&self, image: &Tensor, grid: (usize, usize), filters: &Tensor) -> TensorResult<Tensor> {
        let map = self.double[0].forward(&tokens_to_map(image, grid)?)?;
        let map = gelu(&self.double[1].forward(&gelu(&self.norm.forward(&map)?)?)?)?; // (B, C/8, 4h, 4w)
        let masks = filters.contiguous()?.matmul(&map.flatten_from(2)?.contiguous()?)?;
        masks.reshape((filters.dim(0)?, MASKS, 4 * grid.0, 4 * grid.1))
    }
}
