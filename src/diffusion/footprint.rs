//! How much memory a training needs, from the settings alone.
//!
//! Everything a forward pass makes stays until the backward pass has used it, so the activations are a sum over the layers.
//! Gradients of activations and working memory come on top; how much was measured: with the factor and the constant of
//! [`peak`], the peaks of three trainings (11 M parameters, batches of 4, latents of 48×48×4, 60×60×4 and 30×30×8) and of
//! three at the size of SD 1.5 (`docs/performance.md`) were met within 10 %.

use crate::models::stable_diffusion::{TextConfig, UNetConfig, VaeConfig};

/// f32.
const BYTES: u64 = 4;
/// The program itself and small buffers.
const PROGRAM: u64 = 30 << 20;

/// Expected peak of a training in bytes.
///
/// `weights` counts all parameters, `trained` those that learn, each of which has a gradient and two moments of Adam
/// (`accumulates`: and a second gradient); `kept` are the bytes of the activations of all items.
pub fn peak(weights: u64, trained: u64, accumulates: bool, kept: u64) -> u64 {
    let copies = if accumulates { 4 } else { 3 };
    (weights + copies * trained) * BYTES + kept * 8 / 5 + PROGRAM
}

/// Bytes that one item's pass through the U-Net keeps; with `recomputed` blocks, of each block only its output, and at most
/// one block whole.
///
/// # Shapes
/// `latent` (h, w), `tokens` T of the prompt
pub fn unet(config: &UNetConfig, latent: (usize, usize), tokens: usize, recomputed: bool) -> u64 {
    let channels = &config.block_out_channels;
    let levels = channels.len();
    let mut area: Vec<usize> = vec![latent.0 * latent.1];
    let mut size = latent;
    for _ in 1..levels {
        size = (size.0.div_ceil(2), size.1.div_ceil(2));
        area.push(size.0 * size.1);
    }
    let mut values = area[0] * (2 * channels[0] + config.out_channels);
    let mut largest = 0;
    let mut stage = |inputs: usize, level: usize, attends: bool| {
        let attention = if attends { transformer(channels[level], area[level], tokens) } else { 0 };
        let inside = residual(inputs, channels[level], area[level]) + attention;
        largest = largest.max(inside);
        if recomputed { area[level] * channels[level] } else { inside }
    };
    let mut skips = vec![channels[0]];
    let mut width = channels[0];
    for (level, kind) in config.down_block_types.iter().enumerate() {
        for _ in 0..config.layers_per_block {
            values += stage(width, level, kind.attends());
            width = channels[level];
            skips.push(width);
        }
        if level + 1 < levels {
            values += area[level + 1] * width;
            skips.push(width);
        }
    }
    values += stage(width, levels - 1, true) + stage(width, levels - 1, false);
    for (i, kind) in config.up_block_types.iter().enumerate() {
        let level = levels - 1 - i;
        for _ in 0..=config.layers_per_block {
            let joined = width + skips.pop().unwrap_or(0);
            width = channels[level];
            values += area[level] * joined + stage(joined, level, kind.attends());
        }
        if level > 0 {
            values += 2 * area[level - 1] * width;
        }
    }
    (values + if recomputed { largest } else { 0 }) as u64 * BYTES
}

/// Norm and convolution twice, the sum; a shortcut where the width changes.
fn residual(inputs: usize, outputs: usize, area: usize) -> usize {
    area * (inputs + 4 * outputs + if inputs == outputs { 0 } else { outputs })
}

/// Norm, two projections, tokens and back; self- and cross-attention; a feed-forward layer of width 8C.
fn transformer(channels: usize, area: usize, tokens: usize) -> usize {
    let (around, own, cross, feed_forward) = (6, 7, 5, 15);
    area * channels * (around + own + cross + feed_forward) + 2 * tokens * channels
}

/// Bytes that one item's pass through the text encoder keeps.
pub fn text(config: &TextConfig, tokens: usize) -> u64 {
    let layer = 8 * config.hidden_size + 2 * config.intermediate_size;
    (tokens * (config.num_hidden_layers * layer + 3 * config.hidden_size)) as u64 * BYTES
}

/// Bytes at the widest place of the autoencoder while it encodes one item without gradients: three maps of full size.
pub fn vae_encoding(config: &VaeConfig, side: usize) -> u64 {
    3 * (side * side * config.block_out_channels.first().copied().unwrap_or(0)) as u64 * BYTES
}
