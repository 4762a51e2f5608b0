//! Networks in bf16 against themselves in f32: outputs, and the gradient of every parameter. On the processor each operation is
//! computed in f32 and rounded, so that the types of a whole network are tested without a GPU.

#[path = "support/fill.rs"]
mod fill;

use candle_core::{DType, Device, Tensor};
use datum::models::clip::{ConvNextConfig, ModifiedResNetConfig, VisualConfig};
use datum::models::mask2former::{HeadConfig, Mask2Former, Mask2FormerConfig, TextClasses, TextHead};
use datum::models::segmenter::{EncoderDecoder, Segmenter, SegmenterConfig};
use datum::models::stable_diffusion::config::PerLevel;
use datum::models::stable_diffusion::{TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use datum::nn::{AdapterPlan, Builder, Pass, Recompute};
use fill::image;
use std::collections::BTreeMap;

/// What results and all gradients together may be off by, relative to their norms: 8 bits through a whole network. Without a number for
/// gradients only their types are checked, and that the same parameters have finite ones.
type Tolerance = (f64, Option<f64>);
const SMOOTH: Tolerance = (0.05, Some(0.1));
/// ReLUs everywhere, untrained: in f32, gradients change by 0.8 when nothing but image and weights is rounded to bf16.
const BENT: Tolerance = (0.2, None);
/// Attention looks where masks of the layer before are above 0: all or nothing.
const MASKED: Tolerance = (0.2, None);

/// What a network gave: results to compare, and the gradients of their weighted sum.
struct Outcome {
    results: Vec<Tensor>,
    gradients: BTreeMap<String, Tensor>,
}

fn outcome(dtype: DType, run: &dyn Fn(&Builder) -> Vec<Tensor>) -> Outcome {
    let builder = Builder::random(3).computing_in(dtype);
    let results = run(&builder);
    let store = builder.finish().unwrap();
    let weighted = |(i, t): (usize, &Tensor)| (t * image(&format!("loss {i}"), t.dims())).unwrap().sum_all().unwrap();
    let loss = results.iter().enumerate().map(weighted).reduce(|a, b| (a + b).unwrap()).unwrap();
    let found = loss.backward().unwrap();
    let gradients = store.weights().filter_map(|(name, var)| Some((name.to_string(), found.get(var)?.clone()))).collect();
    Outcome { results, gradients }
}

fn numbers(tensors: impl Iterator<Item = Tensor>) -> Vec<f64> {
    tensors.flat_map(|t| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()).collect()
}

/// Norm of the difference over that of what is expected.
fn error(found: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

fn check(what: &str, tolerance: Tolerance, run: impl Fn(&Builder) -> Vec<Tensor>) {
    let (wide, narrow) = (outcome(DType::F32, &run), outcome(DType::BF16, &run));
    for (i, (found, expected)) in narrow.results.iter().zip(&wide.results).enumerate() {
        assert_eq!(found.dtype(), DType::F32, "{what}");
        let error = error(&numbers([found.clone()].into_iter()), &numbers([expected.clone()].into_iter()));
        println!("{what}, result {i}: {error:.1e}");
        assert!(error > 1e-5 && error < tolerance.0, "{what}, result {i}: {error:e}");
    }
    assert!(narrow.gradients.keys().eq(wide.gradients.keys()), "{what}");
    assert!(narrow.gradients.values().all(|gradient| gradient.dtype() == DType::F32), "{what}");
    let all = |outcome: &Outcome| numbers(outcome.gradients.values().cloned());
    let error = error(&all(&narrow), &all(&wide));
    println!("{what}, {} gradients: {error:.1e}", wide.gradients.len());
    assert!(error.is_finite() && error > 1e-5 && tolerance.1.is_none_or(|most| error < most), "{what}, gradients: {error:e}");
}

fn unet_config() -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![32, 64, 64, 64],
        layers_per_block: 1,
        cross_attention_dim: 48,
        attention_head_dim: PerLevel::All(4),
        norm_num_groups: 16,
        ..UNetConfig::default()
    }
}

fn unet_inputs() -> (Tensor, Tensor, Tensor) {
    let times = Tensor::new(&[20f32, 700.0], &Device::Cpu).unwrap();
    (image("latents", &[2, 4, 16, 24]), times, image("context", &[2, 7, 48]))
}

#[test]
fn stable_diffusion() {
    let (latents, times, context) = unet_inputs();
    check("U-Net", SMOOTH, |builder| {
        vec![UNet::new(&unet_config(), builder).unwrap().forward(&latents, &times, &context).unwrap()]
    });
    let plan = AdapterPlan { rank: 4, alpha: 4.0, targets: ["to_q", "to_k", "to_v", "to_out.0"].map(String::from).to_vec() };
    check("U-Net with adapters", SMOOTH, |builder| {
        let unet = UNet::new(&unet_config(), &builder.frozen().with_adapters(plan.clone())).unwrap();
        vec![unet.forward(&latents, &times, &context).unwrap()]
    });
    check("autoencoder", SMOOTH, |builder| {
        let config = VaeConfig {
            block_out_channels: vec![32, 64],
            down_block_types: vec!["DownEncoderBlock2D".into(); 2],
            up_block_types: vec!["UpDecoderBlock2D".into(); 2],
            norm_num_groups: 8,
            ..VaeConfig::default()
        };
        let vae = Vae::new(&config, builder).unwrap();
        let moments = vae.encode(&image("photo", &[1, 3, 24, 32])).unwrap();
        vec![vae.decode(&image("latent", &[1, 4, 6, 8])).unwrap(), moments.mean, moments.logvar]
    });
    check("text encoder", SMOOTH, |builder| {
        let config = TextConfig {
            hidden_size: 64,
            intermediate_size: 128,
            num_attention_heads: 4,
            num_hidden_layers: 3,
            ..TextConfig::default()
        };
        let ids = Tensor::from_vec((0..32u32).collect(), (2, 16), &Device::Cpu).unwrap();
        vec![TextEncoder::new(&config, builder).unwrap().forward(&ids).unwrap()]
    });
}

#[test]
fn recomputed_stages() {
    let (latents, times, context) = unet_inputs();
    let builder = Builder::random(3).computing_in(DType::BF16);
    let unet = UNet::new(&unet_config(), &builder).unwrap();
    let store = builder.finish().unwrap();
    let recompute = Recompute::new(store.weights().map(|(_, var)| var));
    let out = unet.forward(&latents, &times, &context).unwrap();
    let again = unet.forward_recomputed(&latents, &times, &context, &recompute).unwrap();
    assert_eq!(numbers([out.clone()].into_iter()), numbers([again.clone()].into_iter()));
    let gradients = [out.sqr().unwrap().backward().unwrap(), recompute.backward(&again.sqr().unwrap()).unwrap()];
    let [plain, found] = gradients.map(|found| numbers(store.weights().map(|(_, var)| found.get(var).unwrap().clone())));
    let error = error(&found, &plain);
    println!("recomputed U-Net, gradients: {error:.1e}");
    assert!(error < 0.1, "{error:e}");
}

#[test]
fn segmenters() {
    for (encoder, decoder, tolerance) in [("mit-b0", "daformer", SMOOTH), ("efficientnet-lite0", "segformer", BENT)] {
        let config = SegmenterConfig {
            encoder: encoder.into(),
            decoder: decoder.into(),
            decoder_channels: Some(32),
            ..Default::default()
        };
        for pass in [Pass::eval(), Pass::statistics_only()] {
            check(&format!("{encoder} and {decoder}, {pass:?}"), tolerance, |builder| {
                let segmenter = EncoderDecoder::new(&config, builder).unwrap();
                vec![segmenter.forward(&image("image", &[2, 3, 64, 96]), &pass).unwrap()]
            });
        }
    }
}

#[test]
fn mask2former() {
    let convnext = VisualConfig::ConvNext(ConvNextConfig { depths: [1, 1, 2, 1], widths: [12, 16, 24, 32], drop_path: 0.0 });
    let resnet = VisualConfig::ResNet(ModifiedResNetConfig { depths: [1, 1, 1, 1], width: 8 });
    for (backbone, text) in [(convnext.clone(), None), (resnet, None), (convnext, Some(24))] {
        let head = HeadConfig {
            width: 64,
            queries: 10,
            heads: 4,
            encoder_layers: 2,
            encoder_hidden: 96,
            // Later masks depend on where earlier ones are above 0, so that a bit changes them.
            decoder_layers: 1,
            decoder_hidden: 80,
            text: text.map(|width| TextHead { width, synonyms: vec![1; 19] }),
            ..Default::default()
        };
        let config = Mask2FormerConfig { backbone, freeze_backbone: false, head, ensemble: None };
        let classes = TextClasses::new(image("vectors", &[19, 24]), vec![1; 19], image("void", &[1, 24]));
        check(&format!("{config:?}"), MASKED, |builder| {
            let network = Mask2Former::new(&config, builder).unwrap();
            let features = network.features(&image("image", &[2, 3, 64, 96]), &Pass::eval()).unwrap();
            let predictions = network.head(&features, Some(&classes)).unwrap();
            predictions.into_iter().flat_map(|found| [found.logits, found.masks]).collect()
        });
    }
}
