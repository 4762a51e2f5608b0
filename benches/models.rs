//! Times whole networks: a forward pass, and a training step (forward, backward, AdamW).
//!
//! `cargo bench --bench models [-- FILTER]` prints one line per network: name, then minimum and median of the forward pass,
//! then of the step, in ms, then the peak memory of the process so far in MiB, separated by tabs. `DEVICE=cuda` computes on a GPU,
//! with larger batches too; `LIST=1` prints the names alone. `benches/compare.sh` sets the lines beside PyTorch's.

mod timing;

use candle_core::{DType, Device, Tensor};
use datum::base::device::{self, DeviceChoice};
use datum::base::{Error, Result, Rng, heap, threads};
use datum::models::clip::ClipConfig;
use datum::models::sam::{Sam, SamConfig};
use datum::models::segmenter::{EncoderDecoder, Segmenter, SegmenterConfig};
use datum::models::stable_diffusion::{TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use datum::nn::{self, AdapterPlan, Builder, ParamStore, Pass};
use datum::train::optim::{AdamW, AdamWConfig, Group};
use datum::train::{Gradients, MicroBatches};
use std::ops::Range;
use std::process::Command;
use std::time::Duration;

/// See [`timing::time`]; waits for what the device still has to do.
fn time(mut call: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    let device = device::current();
    timing::time(Duration::from_millis(1500), 2, || {
        call()?;
        Ok(device.synchronize()?)
    })
}

/// Most memory of this process in MiB; of a GPU all that is taken, as freed memory stays in the pool of the process.
fn peak_mib() -> f64 {
    if device::current().is_cpu() {
        return heap::peak_memory().map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 20));
    }
    let said = Command::new("nvidia-smi").args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"]).output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or(f64::NAN)
}

/// Makes a scalar of an output.
type Loss<'a> = dyn Fn(&Tensor) -> candle_core::Result<Tensor> + 'a;

/// What a step trains.
enum Trains<'a> {
    /// There is no step.
    Nothing,
    All(&'a Loss<'a>),
    /// Updates of rank 4 beside the projections of every attention.
    Lora(&'a Loss<'a>),
}

struct Bench {
    filter: String,
    /// Names alone.
    list: bool,
    gpu: bool,
}

fn print_row(name: &str, forward: (f64, f64), step: (f64, f64)) {
    println!("{name}\t{:.1}\t{:.1}\t{:.1}\t{:.1}\t{:.0}", forward.0, forward.1, step.0, step.1, peak_mib());
}

impl Bench {
    /// Whether to time the network of this name, which is printed where only names are asked for.
    fn wants(&self, name: &str) -> bool {
        if self.list {
            println!("{name}");
        }
        !self.list && name.contains(&self.filter)
    }

    /// A network built from parameters; `trains` holds what makes a scalar of the output of `run`.
    fn row<M>(
        &self,
        name: &str,
        build: impl Fn(&Builder) -> Result<M>,
        run: impl Fn(&M, &Pass) -> candle_core::Result<Tensor>,
        trains: Trains,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let builder = Builder::random(0);
        let mut model = build(&builder)?;
        let mut store = builder.finish()?;
        let frozen = build(&Builder::from_store(&store).frozen())?;
        let forward = time(|| Ok(run(&frozen, &Pass::eval()).map(drop)?))?;
        if let Trains::Lora(_) = trains {
            let targets = ["to_q", "to_k", "to_v", "to_out.0"].map(String::from).to_vec();
            let plan = AdapterPlan { rank: 4, alpha: 4.0, targets };
            let builder = Builder::from_store(&store).frozen().with_adapters(plan);
            model = build(&builder)?;
            store = builder.finish()?.select(|name| name.contains(".lora."));
        }
        let step = match trains {
            Trains::Nothing => (f64::NAN, f64::NAN),
            Trains::All(loss) | Trains::Lora(loss) => {
                time(training_step(&store, || loss(&run(&model, &Pass::train(Rng::stream(0, "pass", &[])))?)))?
            }
        };
        print_row(name, forward, step);
        Ok(())
    }

    fn segmenter(&self, name: &str, encoder: &str, width: usize, shape: [usize; 4]) -> Result<()> {
        let (encoder, decoder_channels) = (encoder.to_string(), Some(width));
        let config = SegmenterConfig { encoder, decoder_channels, drop_path: 0.0, dropout: 0.0, ..SegmenterConfig::default() };
        let [batch, _, height, width] = shape;
        let images = normal(&shape)?;
        let labels: Vec<u32> = (0..(batch * height * width) as u32).map(|i| i % 19).collect();
        let labels = Tensor::from_vec(labels, (batch, height, width), &device::current())?;
        let loss = |logits: &Tensor| nn::cross_entropy(&nn::resize_bilinear(logits, (height, width), false)?, &labels, None);
        self.row(name, |b| EncoderDecoder::new(&config, b), |model, pass| model.forward(&images, pass), Trains::All(&loss))
    }

    /// Segmenters at the sizes they train at.
    fn segmenters(&self) -> Result<()> {
        self.segmenter("lite0 + daformer 64, 2x240x320", "efficientnet-lite0", 64, [2, 3, 240, 320])?;
        self.segmenter("mit-b0 + daformer 256, 512x512", "mit-b0", 256, [1, 3, 512, 512])?;
        self.segmenter("mit-b5 + daformer 256, 512x512", "mit-b5", 256, [1, 3, 512, 512])
    }

    /// `latents` (batch, side); `lora` trains updates instead of all weights.
    fn unet(&self, name: &str, config: &UNetConfig, (batch, side): (usize, usize), tokens: usize, how: Step) -> Result<()> {
        let latents = normal(&[batch, config.in_channels, side, side])?;
        let context = normal(&[batch, tokens, config.cross_attention_dim])?;
        let time = Tensor::full(500f32, batch, &device::current())?;
        let loss = |out: &Tensor| nn::mse(out, &latents);
        let trains = match how {
            Step::None => Trains::Nothing,
            Step::Full => Trains::All(&loss),
            Step::Lora => Trains::Lora(&loss),
        };
        self.row(name, |b| UNet::new(config, b), |unet, _| unet.forward(&latents, &time, &context), trains)
    }

    fn unets(&self) -> Result<()> {
        self.unet("small U-Net, 40x40 latents", &small_unet(), (1, 40), 16, Step::Full)?;
        self.nano("nano's U-Net, 16x32x64 latents", 16, (32, 64))?;
        self.nano("nano's U-Net, 32x16x32 latents", 32, (16, 32))?;
        let sd = UNetConfig::default();
        self.unet("SD 1.5 U-Net, 32x32 latents", &sd, (1, 32), 77, Step::Full)?;
        self.unet("SD 1.5 U-Net + LoRA, 32x32 latents", &sd, (1, 32), 77, Step::Lora)?;
        match self.gpu {
            true => Ok(()),
            false => self.unet("SD 1.5 U-Net, 64x64 latents", &sd, (1, 64), 77, Step::None),
        }
    }

    /// What only a GPU computes in reasonable time; one picture and eight, for which guidance takes two each.
    fn large(&self) -> Result<()> {
        let sd = UNetConfig::default();
        self.unet("SD 1.5 U-Net, 2x64x64 latents", &sd, (2, 64), 77, Step::None)?;
        self.unet("SD 1.5 U-Net, 16x64x64 latents", &sd, (16, 64), 77, Step::None)?;
        self.unet("SD 1.5 U-Net + LoRA, 64x64 latents", &sd, (1, 64), 77, Step::Lora)?;
        self.unet("SD 1.5 U-Net, 64x64 latents", &sd, (1, 64), 77, Step::Full)?;
        self.segmenter("mit-b5 + daformer 256, 2x512x512", "mit-b5", 256, [2, 3, 512, 512])
    }

    /// The step as `datum pretrain` does it, in micro-batches.
    fn nano(&self, name: &str, batch: usize, (height, width): (usize, usize)) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let config = nano_unet();
        let (latents, context) = (normal(&[batch, 4, height, width])?, normal(&[batch, 48, config.cross_attention_dim])?);
        let when = Tensor::full(500f32, batch, &device::current())?;
        let builder = Builder::random(0);
        let unet = UNet::new(&config, &builder)?;
        let store = builder.finish()?;
        let frozen = UNet::new(&config, &Builder::from_store(&store).frozen())?;
        let forward = time(|| Ok(frozen.forward(&latents, &when, &context).map(drop)?))?;
        let batches = MicroBatches::new(batch, 4, store.weights())?;
        let mut optimizer = AdamW::new(vec![Group::all(&store, 1e-2)], AdamWConfig::default())?;
        let step = time(|| {
            let losses = |items: Range<usize>| {
                let part = |xs: &Tensor| xs.narrow(0, items.start, items.len());
                let out = unet.forward(&part(&latents)?, &part(&when)?, &part(&context)?)?;
                Ok((nn::mse(&out, &part(&latents)?)?, Vec::new()))
            };
            let (gradients, _) = batches.gradients(batch, optimizer.parameters(), losses)?;
            optimizer.step(&gradients, 1e-6).map(drop)
        })?;
        print_row(name, forward, step);
        Ok(())
    }

    /// The other networks of Stable Diffusion, and those of CLOUDS.
    fn others(&self) -> Result<()> {
        let latents = normal(&[1, 4, 64, 64])?;
        let vae = VaeConfig::default();
        self.row("SD 1.5 decoder, 512x512", |b| Vae::new(&vae, b), |vae, _| vae.decode(&latents), Trains::Nothing)?;
        let text = TextConfig::default();
        let ids: Vec<u32> = (0..77).map(|i| i * 601 % 49408).collect();
        let ids = Tensor::from_vec(ids, (1, 77), &device::current())?;
        let loss = |out: &Tensor| out.sqr()?.mean_all();
        self.row("SD 1.5 text encoder", |b| TextEncoder::new(&text, b), |text, _| text.forward(&ids), Trains::All(&loss))?;

        let images = normal(&[1, 3, 768, 768])?;
        let clip = ClipConfig::named("convnext-large-d-320")?;
        let last = |maps: Vec<Tensor>| maps.into_iter().next_back().ok_or_else(|| candle_core::Error::Msg("no map".into()));
        let build = |builder: &Builder| clip.visual.build(builder);
        self.row("CLIP ConvNeXt-L, 768x768", build, |tower, pass| last(tower.features(&images, pass)?), Trains::Nothing)?;
        let images = normal(&[1, 3, 1024, 1024])?;
        let run = |sam: &Sam, pass: &Pass| sam.encode(&images, pass);
        self.row("SAM ViT-B encoder, 1024x1024", |b| Sam::new(&SamConfig::vit_b(), b), run, Trains::Nothing)
    }
}

/// What [`Bench::unet`] trains.
#[derive(Clone, Copy)]
enum Step {
    None,
    Full,
    Lora,
}

/// One step as trainings do it.
fn training_step(store: &ParamStore, loss: impl Fn() -> candle_core::Result<Tensor>) -> impl FnMut() -> Result<()> {
    let mut optimizer = AdamW::new(vec![Group::all(store, 1e-2)], AdamWConfig::default());
    move || {
        let optimizer = optimizer.as_mut().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        let gradients = Gradients::of(&nn::recording(&loss)?, optimizer.parameters())?;
        optimizer.step(&gradients, 1e-6).map(drop)
    }
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    Ok(Rng::stream(0, "inputs", &[]).normal_tensor(shape, &device::current())?)
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

/// The U-Net of the small Stable Diffusion inside the program.
fn nano_unet() -> UNetConfig {
    use datum::models::stable_diffusion::config::{DownBlock::*, PerLevel, UpBlock::*};
    UNetConfig {
        block_out_channels: vec![64, 128, 128],
        cross_attention_dim: 96,
        attention_head_dim: PerLevel::All(4),
        norm_num_groups: 16,
        down_block_types: vec![DownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
        up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, UpBlock2D],
        ..UNetConfig::default()
    }
}

/// The self-test of `datum doctor`, so that one program is enough on the machine with the GPU.
fn self_test(device: &Device) -> Result<()> {
    let rows = datum::nn::self_test::run(device)?;
    for row in &rows {
        let verdict = if row.ok() { "ok" } else { "WRONG" };
        println!(
            "{:<28}{:<6}{:>9.1e} of {:<7.0e}{:>10.3} ms  {verdict}",
            row.op, row.dtype, row.error, row.tolerance, row.milliseconds
        );
    }
    match rows.iter().filter(|row| !row.ok()).count() {
        0 => Ok(()),
        wrong => Err(Error::environment(format!("{wrong} of {} operations are wrong", rows.len()), "see the lines above")),
    }
}

fn main() -> Result<()> {
    heap::keep_pages();
    threads::share_processors();
    let named = std::env::var("DEVICE").map_or(Ok(DeviceChoice::Cpu), |name| name.parse());
    let device = named.map_err(|e| Error::Usage(format!("DEVICE: {e}")))?;
    let device = device.open()?.device;
    let narrow = std::env::var("DTYPE").is_ok_and(|name| name == "bf16");
    if narrow && device.is_cpu() && !nn::allow_bf16(true) {
        return Err(Error::Usage("DTYPE=bf16: this processor has no matrix unit for it".into()));
    }
    device::make_current(&device, if narrow && !device.is_cpu() { DType::BF16 } else { DType::F32 });
    if std::env::var_os("SELF_TEST").is_some() {
        return self_test(&device);
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let bench = Bench { filter, list: std::env::var_os("LIST").is_some(), gpu: !device.is_cpu() };
    // In a pool, as trainings compute.
    threads::pool(rayon::current_num_threads())?.install(|| {
        // What was written for a GPU first: time may run out.
        if bench.gpu {
            bench.large()?;
        }
        bench.segmenters()?;
        bench.unets()?;
        bench.others()
    })
}
