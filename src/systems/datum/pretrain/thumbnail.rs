//! Where the autoencoder's training starts: its first latents are a thumbnail of the photo, and it decodes them to a blurred one.
//!
//! From random weights an autoencoder of this size learns brightness first and the faint colours of street photos last. Here a
//! few channels carry brightness and two colour differences through all levels from the start, so that training only has to
//! add what a thumbnail lacks.
//!
//! Carriers pass the group norm and SiLU before the last convolution as a pair of opposite sign, since
//! silu(x) − silu(−x) = x, beside a pair of constants that keeps the group's variance nearly independent of the photo.

use crate::base::{Error, Result};
use crate::models::stable_diffusion::VaeConfig;
use crate::nn::ParamStore;
use candle_core::Tensor;

/// Rows: brightness, red − green, blue − green, of (R, G, B). Colour differences of street photos are about a quarter as
/// large as brightness; with this factor all latents spread alike.
const COLOURS: [[f32; 3]; 3] = [[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0], [4.0, -4.0, 0.0], [0.0, -4.0, 4.0]];
/// The inverse: (R, G, B) of the three carriers.
const COLOURS_INVERSE: [[f32; 3]; 3] =
    [[1.0, 1.0 / 6.0, -1.0 / 12.0], [1.0, -1.0 / 12.0, -1.0 / 12.0], [1.0, -1.0 / 12.0, 1.0 / 6.0]];
const SAME: [[f32; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
/// The constants beside each pair.
const LEVEL: f32 = 2.0;
/// Mean square of a carrier, roughly.
const POWER: f32 = 0.25;
/// Mean square of the other channels of a carrier's group, roughly.
const REST_POWER: f32 = 0.1;
/// Factor of the last weights of residual branches.
const BRANCH: f64 = 0.1;
/// What is left of random weights where they would disturb the carriers.
const SMALL: f32 = 0.02;
/// Logarithm of the latents' variance at the start.
const LOG_VARIANCE: f32 = -6.0;

/// Rewrites the random weights of an autoencoder to the start above. Architectures without room for it (fewer than three
/// groups or latent channels, groups of fewer than four channels) stay as they are.
///
/// # Errors
/// A store that does not hold the tensors of `config`.
pub fn start(vae: &ParamStore, config: &VaeConfig) -> Result<()> {
    let groups = config.norm_num_groups;
    let narrow = config.block_out_channels.iter().any(|width| width / groups < 4);
    if groups < 3 || narrow || config.latent_channels < 3 || config.in_channels != 3 || config.out_channels != 3 {
        return Ok(());
    }
    quiet_branches(vae)?;
    encoder(vae, config)?;
    decoder(vae, config)
}

/// The four channels of carrier `i` (x, −x, a constant, minus the constant), in a level of `width` channels.
fn channels(config: &VaeConfig, width: usize, i: usize) -> [usize; 4] {
    let first = i * (width / config.norm_num_groups);
    [first, first + 1, first + 2, first + 3]
}

/// Residual branches start small, so that what they add does not drown the carriers.
fn quiet_branches(vae: &ParamStore) -> Result<()> {
    for (name, var) in vae.weights() {
        if name.ends_with("conv2.weight") || name.ends_with("to_out.0.weight") {
            var.set(&(var.as_tensor() * BRANCH)?)?;
        }
    }
    Ok(())
}

fn encoder(vae: &ParamStore, config: &VaeConfig) -> Result<()> {
    let (widths, latents) = (&config.block_out_channels, config.latent_channels);
    write(vae, config, "encoder.conv_in", widths[0], &COLOURS)?;
    levels(vae, config, widths, ["encoder.down_blocks", "downsamplers"], true)?;
    let mut conv = Kernel::open(vae, "encoder.conv_out")?;
    read(&mut conv, config, widths[widths.len() - 1], &SAME);
    (latents..2 * latents).for_each(|row| conv.constant(row, LOG_VARIANCE));
    conv.save(vae)?;
    pass(vae, "quant_conv", 2 * latents)
}

fn decoder(vae: &ParamStore, config: &VaeConfig) -> Result<()> {
    let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    pass(vae, "post_quant_conv", config.latent_channels)?;
    write(vae, config, "decoder.conv_in", widths[0], &SAME)?;
    levels(vae, config, &widths, ["decoder.up_blocks", "upsamplers"], false)?;
    let mut conv = Kernel::open(vae, "decoder.conv_out")?;
    read(&mut conv, config, widths[widths.len() - 1], &COLOURS_INVERSE);
    conv.save(vae)
}

/// Makes the carriers from the first three input channels of a convolution: carrier `i` is row `i` of `mix`.
fn write(vae: &ParamStore, config: &VaeConfig, name: &str, width: usize, mix: &[[f32; 3]; 3]) -> Result<()> {
    let mut conv = Kernel::open(vae, name)?;
    for (i, weights) in mix.iter().enumerate() {
        let [plus, minus, high, low] = channels(config, width, i);
        for (row, sign) in [(plus, 1.0), (minus, -1.0)] {
            conv.quiet(row);
            weights.iter().enumerate().for_each(|(input, weight)| conv.set_centre(row, input, sign * weight));
        }
        conv.constant(high, LEVEL);
        conv.constant(low, -LEVEL);
    }
    conv.save(vae)
}

/// Makes the first three output channels from the carriers, behind group norm and SiLU of `width` channels: row `i` of `mix`
/// weighs the carriers of output `i`.
fn read(conv: &mut Kernel, config: &VaeConfig, width: usize, mix: &[[f32; 3]; 3]) {
    let size = (width / config.norm_num_groups) as f32;
    let spread = ((2.0 * POWER + 2.0 * LEVEL * LEVEL + (size - 4.0) * REST_POWER) / size).sqrt();
    for (row, weights) in mix.iter().enumerate() {
        conv.quiet(row);
        for (i, weight) in weights.iter().enumerate() {
            let [plus, minus, ..] = channels(config, width, i);
            conv.set_centre(row, plus, weight * spread);
            conv.set_centre(row, minus, -weight * spread);
        }
    }
}

/// Lets the carriers pass the levels of `blocks`, whose changes of size are called `samplers`.
fn levels(vae: &ParamStore, config: &VaeConfig, widths: &[usize], [blocks, samplers]: [&str; 2], halve: bool) -> Result<()> {
    for level in 0..widths.len() {
        let (from, to) = (widths[level.saturating_sub(1)], widths[level]);
        carry(vae, config, &format!("{blocks}.{level}.resnets.0.conv_shortcut"), from, to, false)?;
        carry(vae, config, &format!("{blocks}.{level}.{samplers}.0.conv"), to, to, halve)?;
    }
    Ok(())
}

/// Lets the carriers pass a convolution from `input` to `output` channels, if there is one: unchanged, or as the mean of
/// 2×2 pixels.
fn carry(vae: &ParamStore, config: &VaeConfig, name: &str, input: usize, output: usize, halve: bool) -> Result<()> {
    if vae.get(&format!("{name}.weight")).is_none() {
        return Ok(());
    }
    let mut conv = Kernel::open(vae, name)?;
    for i in 0..3 {
        for (from, to) in channels(config, input, i).into_iter().zip(channels(config, output, i)) {
            conv.quiet(to);
            match halve {
                true => [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().for_each(|(y, x)| conv.set(to, from, y, x, 0.25)),
                false => conv.set_centre(to, from, 1.0),
            }
        }
    }
    conv.save(vae)
}

/// A 1×1 convolution of equal channels starts near the identity.
fn pass(vae: &ParamStore, name: &str, width: usize) -> Result<()> {
    let mut conv = Kernel::open(vae, name)?;
    for row in 0..width {
        conv.quiet(row);
        conv.set_centre(row, row, 1.0);
    }
    conv.save(vae)
}

/// A convolution in memory.
struct Kernel {
    name: String,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Output channels, input channels, height, width.
    shape: [usize; 4],
}

impl Kernel {
    fn open(vae: &ParamStore, name: &str) -> Result<Self> {
        let get = |part: &str| {
            let name = format!("{name}.{part}");
            vae.get(&name).ok_or_else(|| Error::Usage(format!("the autoencoder has no tensor {name}")))
        };
        let weight = get("weight")?;
        let (o, i, h, w) = weight.dims4()?;
        let bias = get("bias")?.to_vec1()?;
        Ok(Self { name: name.into(), weight: weight.flatten_all()?.to_vec1()?, bias, shape: [o, i, h, w] })
    }

    fn set(&mut self, output: usize, input: usize, y: usize, x: usize, value: f32) {
        let [_, inputs, height, width] = self.shape;
        self.weight[((output * inputs + input) * height + y) * width + x] = value;
    }

    fn set_centre(&mut self, output: usize, input: usize, value: f32) {
        self.set(output, input, self.shape[2] / 2, self.shape[3] / 2, value);
    }

    /// Leaves little of the random weights of an output channel.
    fn quiet(&mut self, output: usize) {
        let size = self.shape[1] * self.shape[2] * self.shape[3];
        self.weight[output * size..(output + 1) * size].iter_mut().for_each(|value| *value *= SMALL);
        self.bias[output] = 0.0;
    }

    fn constant(&mut self, output: usize, value: f32) {
        self.quiet(output);
        self.bias[output] = value;
    }

    fn save(self, vae: &ParamStore) -> Result<()> {
        for (part, values, shape) in [("weight", self.weight, &self.shape[..]), ("bias", self.bias, &self.shape[..1])] {
            if let Some(var) = vae.get(&format!("{}.{part}", self.name)) {
                var.set(&Tensor::from_vec(values, shape, var.device())?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::stable_diffusion::Vae;
    use crate::nn::Builder;
    use candle_core::Device;

    /// A dark ground under a bright sky, red on the left and blue on the right: (1, 3, 32, 48).
    fn scene() -> Tensor {
        let pixel = |c: usize, y: usize, x: usize| {
            let light = if y < 16 { 0.6 } else { -0.6 };
            light + 0.3 * (x as f32 / 24.0 - 1.0) * (c as f32 - 1.0)
        };
        let values = (0..3).flat_map(|c| (0..32).flat_map(move |y| (0..48).map(move |x| pixel(c, y, x))));
        Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((1, 3, 32, 48)).unwrap()
    }

    fn error(levels: &[usize], latent_channels: usize) -> f32 {
        let count = levels.len();
        let config = VaeConfig {
            latent_channels,
            block_out_channels: levels.to_vec(),
            down_block_types: vec!["DownEncoderBlock2D".into(); count],
            up_block_types: vec!["UpDecoderBlock2D".into(); count],
            layers_per_block: 1,
            norm_num_groups: 8,
            ..VaeConfig::default()
        };
        let builder = Builder::random(0);
        let vae = Vae::new(&config, &builder).unwrap();
        start(&builder.finish().unwrap(), &config).unwrap();
        let images = scene();
        let decoded = vae.decode(&vae.encode(&images).unwrap().mean).unwrap();
        (decoded - images).unwrap().abs().unwrap().mean_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn an_untrained_autoencoder_gives_back_light_and_colour() {
        for (levels, latents) in [(&[32, 64, 96][..], 4), (&[32, 64, 96, 96], 8), (&[64, 64], 3)] {
            let error = error(levels, latents);
            assert!(error < 0.12, "{levels:?}: mean error {error}");
        }
    }
}
