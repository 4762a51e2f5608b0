//! Times the operations of `datum::nn`: forward, and forward with backward for all arguments.
//!
//! `cargo bench --bench ops [-- FILTER]` prints one line per operation: name, then minimum and median of the forward
//! pass, then of both passes, in ms, separated by tabs. `benches/compare.sh` sets them beside PyTorch's.

mod timing;

use candle_core::{Device, Result, Tensor, Var};
use datum::base::Rng;
use datum::nn::{self, Builder, ConvSpec, Init, Pass};
use datum::train::optim::{AdamW, AdamWConfig, Group};
use datum::train::{Gradients, ema};
use std::time::Duration;

/// See [`timing::time`].
fn time(call: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    timing::time(Duration::from_millis(400), 3, call)
}

struct Bench {
    filter: String,
}

impl Bench {
    /// `op` on random arguments of `shapes`.
    fn row(&self, name: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
        if !name.contains(&self.filter) {
            return Ok(());
        }
        let mut rng = Rng::stream(0, name, &[]);
        let draw = |shape: &&[usize]| rng.normal_tensor(shape, &Device::Cpu)?.affine(0.5, 0.0);
        let arguments = shapes.iter().map(draw).collect::<Result<Vec<_>>>()?;
        let forward = time(|| op(&arguments).map(drop))?;
        let vars = arguments.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let gradient = op(&arguments)?.ones_like()?;
        let both = time(|| nn::backward_from(&[(&nn::recording(|| op(&tracked))?, gradient.clone())]).map(drop))?;
        println!("{name}\t{:.3}\t{:.3}\t{:.3}\t{:.3}", forward.0, forward.1, both.0, both.1);
        Ok(())
    }

    /// Something that changes weights in place.
    fn update(&self, name: &str, call: impl FnMut() -> Result<()>) -> Result<()> {
        if name.contains(&self.filter) {
            let (least, median) = time(call)?;
            println!("{name}\t{least:.3}\t{median:.3}\tNaN\tNaN");
        }
        Ok(())
    }

    fn conv(&self, name: &str, xs: &[usize], weight: &[usize], spec: ConvSpec) -> Result<()> {
        self.row(name, &[xs, weight, &weight[..1]], |a| nn::conv2d(&a[0], &a[1], Some(&a[2]), spec))
    }

    fn attention(&self, name: &str, heads: usize, queries: usize, keys: usize, dim: usize) -> Result<()> {
        let (q, kv) = ([1, queries, heads * dim], [1, keys, heads * dim]);
        self.row(name, &[&q, &kv, &kv], |a| nn::attention(&a[0], &a[1], &a[2], heads, 0.158, false))
    }
}

fn main() -> Result<()> {
    datum::base::heap::keep_pages();
    datum::base::threads::share_processors();
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    // In a pool, as trainings compute.
    let pool = datum::base::threads::pool(rayon::current_num_threads()).map_err(failed)?;
    pool.install(|| rows(&Bench { filter }))
}

fn failed(error: datum::base::Error) -> candle_core::Error {
    candle_core::Error::Msg(error.to_string())
}

fn rows(bench: &Bench) -> Result<()> {
    convolutions(bench)?;
    products(bench)?;
    norms(bench)?;
    bench.row("softmax 8x4096x1024", &[&[8, 4096, 1024]], |a| nn::softmax(&a[0]))?;
    bench.row("gelu 4096x1280", &[&[4096, 1280]], |a| nn::gelu(&a[0]))?;
    bench.row("geglu 4096x2560", &[&[4096, 2560]], |a| nn::geglu(&a[0]))?;
    bench.row("silu 320ch 64x64", &[&[1, 320, 64, 64]], |a| nn::silu(&a[0]))?;
    bench.row("relu 64ch 256x256", &[&[1, 64, 256, 256]], |a| nn::relu(&a[0]))?;
    bench.row("heads split 4096x320", &[&[1, 4096, 320]], |a| nn::split_heads(&a[0], 8))?;
    bench.row("nearest x2 320ch 32x32", &[&[1, 320, 32, 32]], |a| nn::resize_nearest(&a[0], (64, 64)))?;
    bench.row("bilinear 19ch 128->512", &[&[1, 19, 128, 128]], |a| nn::resize_bilinear(&a[0], (512, 512), false))?;
    bench.row("bilinear 256ch 16->128", &[&[1, 256, 16, 16]], |a| nn::resize_bilinear(&a[0], (128, 128), false))?;
    let pool = ConvSpec { stride: 2, padding: 1, ..ConvSpec::default() };
    bench.row("max pool 3 s2 64ch 256x256", &[&[1, 64, 256, 256]], |a| nn::max_pool2d(&a[0], 3, pool))?;
    let labels: Vec<u32> = (0..512 * 512).map(|i| i % 19).collect();
    let labels = Tensor::from_vec(labels, (1, 512, 512), &Device::Cpu)?;
    bench.row("cross entropy 19x512x512", &[&[1, 19, 512, 512]], |a| nn::cross_entropy(&a[0], &labels, None))?;
    bench.row("mse 4x64x64", &[&[1, 4, 64, 64], &[1, 4, 64, 64]], |a| nn::mse(&a[0], &a[1]))?;
    updates(bench).map_err(failed)
}

/// Matrix products and attention.
fn products(bench: &Bench) -> Result<()> {
    bench.row("linear 4096x320->2560", &[&[4096, 320], &[2560, 320], &[2560]], |a| nn::linear(&a[0], &a[1], Some(&a[2])))?;
    bench.row("linear 77x768->3072", &[&[77, 768], &[3072, 768], &[3072]], |a| nn::linear(&a[0], &a[1], Some(&a[2])))?;
    bench.row("linear 77x768->768", &[&[77, 768], &[768, 768], &[768]], |a| nn::linear(&a[0], &a[1], Some(&a[2])))?;
    bench.attention("attention 4096 tok 8x40", 8, 4096, 4096, 40)?;
    bench.attention("attention 1024 tok 8x80", 8, 1024, 1024, 80)?;
    bench.attention("attention 4096x77 8x40", 8, 4096, 77, 40)?;
    bench.attention("attention 4096 tok 1x512", 1, 4096, 4096, 512)?;
    bench.row("attention 512 tok 4x16 b32", &[&[32, 512, 64], &[32, 512, 64], &[32, 512, 64]], |a| {
        nn::attention(&a[0], &a[1], &a[2], 4, 0.25, false)
    })?;
    bench.row("attention 77 tok 12x64 causal", &[&[1, 77, 768], &[1, 77, 768], &[1, 77, 768]], |a| {
        nn::attention(&a[0], &a[1], &a[2], 12, 0.125, true)
    })?;
    bench.row("linear 16384x64->512", &[&[16384, 64], &[512, 64], &[512]], |a| nn::linear(&a[0], &a[1], Some(&a[2])))?;
    bench.row("linear 16384x64->64", &[&[16384, 64], &[64, 64], &[64]], |a| nn::linear(&a[0], &a[1], Some(&a[2])))?;
    Ok(())
}

/// The optimiser's step with clipping, and the running average behind it, of 16 weights of a million values; no backward pass.
fn updates(bench: &Bench) -> datum::base::Result<()> {
    let draw = || {
        let builder = Builder::random(0);
        (0..16).try_for_each(|i| builder.get(&[1024, 1024], &i.to_string(), Init::Normal { std: 0.02 }).map(drop))?;
        builder.finish()
    };
    let (store, average) = (draw()?, draw()?);
    let mut optimizer =
        AdamW::new(vec![Group::all(&store, 1e-2)], AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() })?;
    let terms = store.weights().map(|(_, var)| var.sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
    let gradients = Gradients::of(&Tensor::stack(&terms, 0)?.sum_all()?, optimizer.parameters())?;
    bench.update("adamw with clipping 16M", || optimizer.step(&gradients, 1e-6).map(drop).map_err(failed))?;
    bench.update("running average 16M", || ema::update(&average, &store, 0.999).map_err(failed))?;
    Ok(())
}

fn convolutions(bench: &Bench) -> Result<()> {
    let spec = |stride, padding, dilation, groups| ConvSpec { stride, padding, dilation, groups };
    let (xs, weight) = ([1, 320, 64, 64], [320, 320, 3, 3]);
    bench.conv("conv3x3 320ch 64x64", &xs, &weight, spec(1, 1, 1, 1))?;
    bench.conv("conv3x3 640ch 32x32", &[1, 640, 32, 32], &[640, 640, 3, 3], spec(1, 1, 1, 1))?;
    bench.conv("conv3x3 1280ch 16x16", &[1, 1280, 16, 16], &[1280, 1280, 3, 3], spec(1, 1, 1, 1))?;
    bench.conv("conv3x3 1280ch 8x8", &[1, 1280, 8, 8], &[1280, 1280, 3, 3], spec(1, 1, 1, 1))?;
    bench.conv("conv3x3 64ch 40x40", &[1, 64, 40, 40], &[64, 64, 3, 3], spec(1, 1, 1, 1))?;
    bench.conv("conv3x3 128ch 20x20", &[1, 128, 20, 20], &[128, 128, 3, 3], spec(1, 1, 1, 1))?;
    for (name, channels, height, width) in
        [("conv3x3 64ch 16x32 b32", 64, 16, 32), ("conv3x3 128ch 8x16 b32", 128, 8, 16), ("conv3x3 128ch 4x8 b32", 128, 4, 8)]
    {
        bench.conv(name, &[32, channels, height, width], &[channels, channels, 3, 3], spec(1, 1, 1, 1))?;
    }
    bench.conv("conv3x3 320ch 64x64 s2", &xs, &weight, spec(2, 1, 1, 1))?;
    bench.conv("conv3x3 128ch 256x256", &[1, 128, 256, 256], &[128, 128, 3, 3], spec(1, 1, 1, 1))?;
    bench.conv("conv1x1 320ch 64x64", &xs, &[320, 320, 1, 1], spec(1, 0, 1, 1))?;
    bench.conv("conv3x3 256ch 33x33 d6", &[1, 256, 33, 33], &[256, 256, 3, 3], spec(1, 6, 6, 1))?;
    bench.conv("conv3x3 256ch 64x64 g8", &[1, 256, 64, 64], &[256, 32, 3, 3], spec(1, 1, 1, 8))?;
    bench.conv("conv7x7 s4 3->64 512x512", &[1, 3, 512, 512], &[64, 3, 7, 7], spec(4, 3, 1, 1))?;
    // A frozen weight: only the gradient of the inputs is wanted.
    let mut rng = Rng::stream(0, "frozen", &[]);
    let frozen = rng.normal_tensor(&weight, &Device::Cpu)?;
    bench.row("conv3x3 320ch 64x64 frozen", &[&xs], |a| nn::conv2d(&a[0], &frozen, None, spec(1, 1, 1, 1)))?;
    for (name, channels, size, kernel, dilation, stride) in [
        ("dw3x3 256ch 128x128", 256, 128, 3, 1, 1),
        ("dw3x3 256ch 128x128 d18", 256, 128, 3, 18, 1),
        ("dw3x3 1280ch 32x32", 1280, 32, 3, 1, 1),
        ("dw3x3 2048ch 16x16", 2048, 16, 3, 1, 1),
        ("dw3x3 192ch 128x128 s2", 192, 128, 3, 1, 2),
        ("dw7x7 192ch 128x128", 192, 128, 7, 1, 1),
        ("dw7x7 1536ch 16x16", 1536, 16, 7, 1, 1),
    ] {
        let spec = spec(stride, kernel / 2 * dilation, dilation, channels);
        bench.conv(name, &[1, channels, size, size], &[channels, 1, kernel, kernel], spec)?;
    }
    Ok(())
}

fn norms(bench: &Bench) -> Result<()> {
    let builder = Builder::random(0);
    let group = nn::GroupNorm::new(32, 320, 1e-5, &builder.pp("group")).map_err(failed)?;
    bench.row("group norm 32g 320ch 64x64", &[&[1, 320, 64, 64]], |a| group.forward(&a[0]))?;
    bench.row("group norm silu 320ch 64x64", &[&[1, 320, 64, 64]], |a| group.forward_silu(&a[0]))?;
    for (rows, width) in [(4096, 320), (16384, 64)] {
        let layer = nn::LayerNorm::new(width, 1e-5, &builder.pp(width)).map_err(failed)?;
        bench.row(&format!("layer norm {rows}x{width}"), &[&[1, rows, width]], |a| layer.forward(&a[0]))?;
    }
    let batch = nn::BatchNorm2d::new(64, &builder.pp("batch")).map_err(failed)?;
    bench.row("batch norm 64ch 2x128x128", &[&[2, 64, 128, 128]], |a| batch.forward(&a[0], &Pass::statistics_only()))
}
