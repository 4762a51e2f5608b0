//! Times whole networks: a forward pass, and a training step (forward, backward, AdamW).
//!
//! `cargo bench --bench models [-- FILTER]` prints one line per network: name, then minimum and median of the forward pass,
//! then of the step, in ms, separated by tabs. `benches/compare.sh` sets them beside PyTorch's.

mod timing;

use candle_core::{Device, Tensor};
use datum::base::{Result, Rng};
use datum::models::segmenter::{EncoderDecoder, Segmenter, SegmenterConfig};
use datum::models::stable_diffusion::{TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use datum::nn::{self, Builder, ParamStore, Pass};
use datum::train::Gradients;
use datum::train::optim::{AdamW, AdamWConfig, Group};
use std::time::Duration;

/// See [`timing::time`].
fn time(call: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    timing::time(Duration::from_millis(1500), 2, call)
}

/// Makes a scalar of an output.
type Loss<'a> = dyn Fn(&Tensor) -> candle_core::Result<Tensor> + 'a;

struct Bench {
    filter: String,
}

impl Bench {
    /// A network built from parameters that it trains; `loss` gets the output.
    fn row<M>(
        &self,
        name: &str,
        build: impl Fn(&Builder) -> Result<M>,
        run: impl Fn(&M, &Pass) -> candle_core::Result<Tensor>,
        loss: Option<&Loss>,
    ) -> Result<()> {
        if !name.contains(&self.filter) {
            return Ok(());
        }
        let builder = Builder::random(0);
        let model = build(&builder)?;
        let store = builder.finish()?;
        let frozen = build(&Builder::from_store(&store).frozen())?;
        let forward = time(|| Ok(run(&frozen, &Pass::eval()).map(drop)?))?;
        let step = match loss {
            Some(loss) => time(training_step(&store, || loss(&run(&model, &Pass::train(Rng::stream(0, "pass", &[])))?)))?,
            None => (f64::NAN, f64::NAN),
        };
        println!("{name}\t{:.1}\t{:.1}\t{:.1}\t{:.1}", forward.0, forward.1, step.0, step.1);
        Ok(())
    }

    fn segmenter(&self, name: &str, encoder: &str, width: usize, shape: [usize; 4]) -> Result<()> {
        let (encoder, decoder_channels) = (encoder.to_string(), Some(width));
        let config = SegmenterConfig { encoder, decoder_channels, drop_path: 0.0, dropout: 0.0, ..SegmenterConfig::default() };
        let [batch, _, height, width] = shape;
        let images = normal(&shape)?;
        let labels: Vec<u32> = (0..(batch * height * width) as u32).map(|i| i % 19).collect();
        let labels = Tensor::from_vec(labels, (batch, height, width), &Device::Cpu)?;
        let loss = |logits: &Tensor| nn::cross_entropy(&nn::resize_bilinear(logits, (height, width), false)?, &labels, None);
        self.row(name, |b| EncoderDecoder::new(&config, b), |model, pass| model.forward(&images, pass), Some(&loss))
    }

    fn unet(&self, name: &str, config: &UNetConfig, side: usize, tokens: usize, trains: bool) -> Result<()> {
        let latents = normal(&[1, config.in_channels, side, side])?;
        let context = normal(&[1, tokens, config.cross_attention_dim])?;
        let time = Tensor::new(&[500f32], &Device::Cpu)?;
        let loss = |out: &Tensor| nn::mse(out, &latents);
        let loss: Option<&Loss> = if trains { Some(&loss) } else { None };
        self.row(name, |b| UNet::new(config, b), |unet, _| unet.forward(&latents, &time, &context), loss)
    }
}

/// One step as trainings do it.
fn training_step(store: &ParamStore, loss: impl Fn() -> candle_core::Result<Tensor>) -> impl FnMut() -> Result<()> {
    let mut optimizer = AdamW::new(vec![Group::all(store, 1e-2)], AdamWConfig::default());
    move || {
        let optimizer = optimizer.as_mut().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        let gradients = Gradients::of(&loss()?, optimizer.parameters())?;
        optimizer.step(&gradients, 1e-6).map(drop)
    }
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    Ok(Rng::stream(0, "inputs", &[]).normal_tensor(shape, &Device::Cpu)?)
}

/// A U-Net of the size that trains from scratch on a CPU.
fn small_unet() -> UNetConfig {
    use datum::models::stable_diffusion::config::{DownBlock::*, PerLevel, UpBlock::*};
    UNetConfig {
        block_out_channels: vec![64, 128, 192],
        layers_per_block: 1,
        cross_attention_dim: 128,
        attention_head_dim: PerLevel::All(4),
        norm_num_groups: 16,
        down_block_types: vec![DownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D],
        up_block_types: vec![CrossAttnUpBlock2D, CrossAttnUpBlock2D, UpBlock2D],
        ..UNetConfig::default()
    }
}

fn main() -> Result<()> {
    datum::base::heap::keep_pages();
    datum::base::threads::share_processors();
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let bench = Bench { filter };
    bench.segmenter("lite0 + daformer 64, 2x240x320", "efficientnet-lite0", 64, [2, 3, 240, 320])?;
    bench.segmenter("mit-b0 + daformer 256, 512x512", "mit-b0", 256, [1, 3, 512, 512])?;
    bench.segmenter("mit-b5 + daformer 256, 512x512", "mit-b5", 256, [1, 3, 512, 512])?;
    bench.unet("small U-Net, 40x40 latents", &small_unet(), 40, 16, true)?;
    let sd = UNetConfig::default();
    bench.unet("SD 1.5 U-Net, 32x32 latents", &sd, 32, 77, true)?;
    bench.unet("SD 1.5 U-Net, 64x64 latents", &sd, 64, 77, false)?;
    let latents = normal(&[1, 4, 64, 64])?;
    let vae = VaeConfig::default();
    bench.row("SD 1.5 decoder, 512x512", |b| Vae::new(&vae, b), |vae, _| vae.decode(&latents), None)?;
    let text = TextConfig::default();
    let ids: Vec<u32> = (0..77).map(|i| i * 601 % 49408).collect();
    let ids = Tensor::from_vec(ids, (1, 77), &Device::Cpu)?;
    let loss = |out: &Tensor| out.sqr()?.mean_all();
    bench.row("SD 1.5 text encoder", |b| TextEncoder::new(&text, b), |text, _| text.forward(&ids), Some(&loss))
}
