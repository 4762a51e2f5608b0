//! SAM's prompt encoder: points and boxes become tokens, masks become a map that is added to the image's embedding.

use super::blocks::LayerNorm2d;
use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init, gelu};
use candle_core::{D, Result as TensorResult, Tensor, bail};
use std::f64::consts::PI;

/// What to segment, for B masks at once. Coordinates are (x, y) in pixels of the image as the encoder saw it.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Coordinates (B, N, 2) and labels (B, N), both f32: 1 belongs to the mask, 0 does not, −1 is padding.
    pub points: Option<(Tensor, Tensor)>,
    /// Left, top, right and bottom (B, 4).
    pub boxes: Option<Tensor>,
    /// Logits of an earlier answer (B, 1, 4g, 4g).
    pub masks: Option<Tensor>,
}

impl Prompts {
    /// Number B of masks that are asked for; 0 without any prompt.
    ///
    /// # Errors
    /// Parts of different lengths.
    pub fn count(&self) -> TensorResult<usize> {
        let points = self.points.iter().flat_map(|(coordinates, labels)| [coordinates, labels]);
        let sizes: Vec<usize> =
            points.chain(&self.boxes).chain(&self.masks).map(|part| part.dim(0)).collect::<TensorResult<_>>()?;
        match sizes.iter().find(|size| **size != sizes[0]) {
            Some(other) => bail!("prompts for {} and for {other} masks", sizes[0]),
            None => Ok(sizes.first().copied().unwrap_or(0)),
        }
    }

    /// The prompts from `start` on.
    pub fn narrow(&self, start: usize, len: usize) -> TensorResult<Self> {
        let part = |tensor: &Tensor| tensor.narrow(0, start, len);
        Ok(Self {
            points: self
                .points
                .as_ref()
                .map(|(xy, labels)| Ok::<_, candle_core::Error>((part(xy)?, part(labels)?)))
                .transpose()?,
            boxes: self.boxes.as_ref().map(part).transpose()?,
            masks: self.masks.as_ref().map(part).transpose()?,
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct PromptEncoder {
    frequencies: Tensor,
    /// Background point, foreground point, first and second corner of a box: (1, C) each.
    kinds: Vec<Tensor>,
    no_point: Tensor,
    no_mask: Tensor,
    shrink: [Conv2d; 2],
    norms: [LayerNorm2d; 2],
    project: Conv2d,
    /// Side of the encoder's image in pixels.
    image_size: usize,
}

impl PromptEncoder {
    pub(super) fn new(dim: usize, mask_channels: usize, image_size: usize, builder: &Builder) -> Result<Self> {
        let normal = Init::Normal { std: 1.0 };
        // A learned vector is a table of one row in checkpoints.
        let embedding = |place: Builder| place.get(&[1, dim], "weight", normal);
        let kinds = (0..4).map(|i| embedding(builder.pp("point_embeddings").pp(i))).collect::<Result<Vec<_>>>()?;
        let masks = builder.pp("mask_downscaling");
        let halve = ConvSpec { stride: 2, ..ConvSpec::default() };
        let quarter = mask_channels / 4;
        let frequencies = builder.pp("pe_layer").buffer(&[2, dim / 2], "positional_encoding_gaussian_matrix", normal)?;
        Ok(Self {
            frequencies: frequencies.as_detached_tensor(),
            kinds,
            no_point: embedding(builder.pp("not_a_point_embed"))?,
            no_mask: embedding(builder.pp("no_mask_embed"))?,
            shrink: [
                Conv2d::new(1, quarter, 2, halve, &masks.pp(0))?,
                Conv2d::new(quarter, mask_channels, 2, halve, &masks.pp(3))?,
            ],
            norms: [LayerNorm2d::new(quarter, &masks.pp(1))?, LayerNorm2d::new(mask_channels, &masks.pp(4))?],
            project: Conv2d::new(mask_channels, dim, 1, ConvSpec::default(), &masks.pp(6))?,
            image_size,
        })
    }

    /// Sines and cosines of places in 0…1: (…, 2) → (…, C).
    fn positions(&self, places: &Tensor) -> TensorResult<Tensor> {
        let centred = ((places * 2.0)? - 1.0)?;
        let waves = (centred.broadcast_matmul(&self.frequencies)? * (2.0 * PI))?;
        Tensor::cat(&[waves.sin()?, waves.cos()?], D::Minus1)
    }

    /// The positions of a grid of `side`² tokens: (1, side², C).
    pub(super) fn grid(&self, side: usize) -> TensorResult<Tensor> {
        let centre = |i: usize| (i as f32 + 0.5) / side as f32;
        let places: Vec<f32> = (0..side * side).flat_map(|i| [centre(i % side), centre(i / side)]).collect();
        self.positions(&Tensor::from_vec(places, (1, side * side, 2), self.frequencies.device())?)
    }

    /// Pixels count from their centres: (B, N, 2) → (B, N, C).
    fn pixels(&self, coordinates: &Tensor) -> TensorResult<Tensor> {
        self.positions(&((coordinates + 0.5)? / self.image_size as f64)?)
    }

    fn points(&self, coordinates: &Tensor, labels: &Tensor) -> TensorResult<Tensor> {
        let encoded = self.pixels(coordinates)?;
        let with = |label: f32| labels.eq(label)?.to_dtype(encoded.dtype())?.unsqueeze(2); // (B, N, 1)
        let kind = |label: usize| with(label as f32)?.broadcast_mul(&self.kinds[label].unsqueeze(0)?);
        let padding = with(-1.0)?;
        let real = encoded.broadcast_mul(&(1.0 - &padding)?)?;
        ((real + padding.broadcast_mul(&self.no_point.unsqueeze(0)?)?)? + kind(0)?)? + kind(1)?
    }

    fn boxes(&self, boxes: &Tensor) -> TensorResult<Tensor> {
        let corners = boxes.reshape((boxes.dim(0)?, 2, 2))?;
        self.pixels(&corners)?.broadcast_add(&Tensor::cat(&self.kinds[2..], 0)?.unsqueeze(0)?)
    }

    fn masks(&self, masks: &Tensor) -> TensorResult<Tensor> {
        let mut xs = masks.clone();
        for (shrink, norm) in self.shrink.iter().zip(&self.norms) {
            xs = gelu(&norm.forward(&shrink.forward(&xs)?)?)?;
        }
        self.project.forward(&xs)
    }

    /// Tokens (B, N, C), and what is added to the embedding: (B, C, g, g), or (1, C, 1, 1) without masks.
    pub(super) fn forward(&self, prompts: &Prompts) -> TensorResult<(Tensor, Tensor)> {
        let batch = prompts.count()?;
        let mut tokens = Vec::new();
        if let Some((coordinates, labels)) = &prompts.points {
            // Without a box, a point that is none takes its place.
            let pad = if prompts.boxes.is_none() { 1 } else { 0 };
            let coordinates = coordinates.pad_with_zeros(1, 0, pad)?;
            let none = Tensor::full(-1f32, (batch, pad), labels.device())?;
            let labels = if pad > 0 { Tensor::cat(&[labels, &none], 1)? } else { labels.clone() };
            tokens.push(self.points(&coordinates, &labels)?);
        }
        if let Some(boxes) = &prompts.boxes {
            tokens.push(self.boxes(boxes)?);
        }
        let dim = self.no_mask.dim(1)?;
        let tokens = match tokens.as_slice() {
            [] => Tensor::zeros((batch, 0, dim), self.no_mask.dtype(), self.no_mask.device())?,
            parts => Tensor::cat(parts, 1)?,
        };
        let dense = match &prompts.masks {
            Some(masks) => self.masks(masks)?,
            None => self.no_mask.reshape((1, dim, 1, 1))?,
        };
        Ok((tokens, dense))
    }
}
