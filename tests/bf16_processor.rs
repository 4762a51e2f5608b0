//! `--dtype bf16` on processors with a matrix unit: products round their factors. Networks against themselves in f32, results and
//! gradients of all parameters; an item has the same bits alone and in a batch. One test, since the choice is the whole process's.

#[path = "support/fill.rs"]
mod fill;

use candle_core::{DType, Device, Tensor};
use datum::models::segmenter::{EncoderDecoder, Segmenter, SegmenterConfig};
use datum::models::stable_diffusion::config::PerLevel;
use datum::models::stable_diffusion::{TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use datum::nn::{Builder, Pass, allow_bf16};
use fill::image;

/// A network's result for the first items of its inputs.
type Network<'a> = &'a dyn Fn(&Builder, usize) -> Tensor;

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Norm of the difference over that of what is expected.
fn error(found: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// The result of both items, and all gradients of its weighted sum one behind the other.
fn outcome(network: Network) -> [Vec<f64>; 2] {
    let builder = Builder::random(3);
    let result = network(&builder, 2);
    let store = builder.finish().unwrap();
    let loss = (&result * image("loss", result.dims())).unwrap().sum_all().unwrap();
    let found = loss.backward().unwrap();
    let gradients = store.weights().filter_map(|(_, var)| Some(numbers(found.get(var)?))).flatten().collect();
    [numbers(&result), gradients]
}

fn unet(builder: &Builder, items: usize) -> Tensor {
    let config = UNetConfig {
        block_out_channels: vec![32, 64, 64, 64],
        layers_per_block: 1,
        cross_attention_dim: 48,
        attention_head_dim: PerLevel::All(4),
        norm_num_groups: 16,
        ..UNetConfig::default()
    };
    let first = |tensor: Tensor| tensor.narrow(0, 0, items).unwrap();
    let times = first(Tensor::new(&[20f32, 700.0], &Device::Cpu).unwrap());
    let (latents, context) = (first(image("latents", &[2, 4, 16, 24])), first(image("context", &[2, 7, 48])));
    UNet::new(&config, builder).unwrap().forward(&latents, &times, &context).unwrap()
}

fn autoencoder(builder: &Builder, items: usize) -> Tensor {
    let config = VaeConfig {
        block_out_channels: vec![32, 64],
        down_block_types: vec!["DownEncoderBlock2D".into(); 2],
        up_block_types: vec!["UpDecoderBlock2D".into(); 2],
        norm_num_groups: 8,
        ..VaeConfig::default()
    };
    let vae = Vae::new(&config, builder).unwrap();
    vae.decode(&vae.encode(&image("photo", &[2, 3, 24, 32]).narrow(0, 0, items).unwrap()).unwrap().mean).unwrap()
}

fn text_encoder(builder: &Builder, items: usize) -> Tensor {
    let config = TextConfig {
        hidden_size: 64,
        intermediate_size: 128,
        num_attention_heads: 4,
        num_hidden_layers: 3,
        ..TextConfig::default()
    };
    let ids = Tensor::from_vec((0..32u32).collect(), (2, 16), &Device::Cpu).unwrap().narrow(0, 0, items).unwrap();
    TextEncoder::new(&config, builder).unwrap().forward(&ids).unwrap()
}

fn segmenter(builder: &Builder, items: usize) -> Tensor {
    let config = SegmenterConfig { encoder: "mit-b0".into(), decoder: "daformer".into(), ..SegmenterConfig::default() };
    let network = EncoderDecoder::new(&config, builder).unwrap();
    network.forward(&image("street", &[2, 3, 64, 96]).narrow(0, 0, items).unwrap(), &Pass::eval()).unwrap()
}

#[test]
fn networks_with_rounded_factors() {
    let networks: [(&str, Network); 4] = [
        ("U-Net", &unet),
        ("autoencoder", &autoencoder),
        ("text encoder", &text_encoder),
        ("MiT-B0 and DAFormer's head", &segmenter),
    ];
    let wide = networks.map(|(_, network)| outcome(network));
    if !allow_bf16(true) {
        return eprintln!("skipped: this processor has no matrix unit for bf16");
    }
    for ((what, network), wide) in networks.into_iter().zip(wide) {
        let narrow = outcome(network);
        let errors = [0, 1].map(|i| error(&narrow[i], &wide[i]));
        println!("{what}: results {:.1e}, gradients {:.1e}", errors[0], errors[1]);
        assert!(errors[0] > 1e-5 && errors[0] < 0.05 && errors[1] < 0.1, "{what}: {errors:?}");
        let alone = numbers(&network(&Builder::random(3), 1));
        assert!(alone == narrow[0][..alone.len()], "{what}: an item differs alone");
    }
    allow_bf16(false);
    assert_eq!(outcome(&unet), outcome(&unet));
}
