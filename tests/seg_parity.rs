//! Encoders and decoders against published reference values, on deterministic weights.

#[path = "support/fill.rs"]
mod fill;

use candle_core::Tensor;
use datum::models::segmenter::{EncoderDecoder, Segmenter, SegmenterConfig};
use datum::nn::{Builder, ParamStore, Pass, resize_bilinear};

fn build(encoder: &str, decoder: &str, decoder_channels: Option<usize>) -> (EncoderDecoder, ParamStore) {
    let config = SegmenterConfig { encoder: encoder.into(), decoder: decoder.into(), decoder_channels, ..Default::default() };
    let builder = Builder::random(0);
    let model = EncoderDecoder::new(&config, &builder).unwrap();
    let store = builder.finish().unwrap();
    fill::fill_store(&store, "");
    (model, store)
}

/// Compares shape, mean, mean of absolute values and six samples (tolerance 1e-4 absolute or relative).
fn check(what: &str, tensor: &Tensor, shape: &[usize], expected: [f64; 8]) {
    assert_eq!(tensor.dims(), shape, "{what}");
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let n = values.len();
    let mean = |f: fn(f32) -> f32| values.iter().map(|&x| f64::from(f(x))).sum::<f64>() / n as f64;
    let mut found = vec![mean(|x| x), mean(f32::abs)];
    found.extend([0, 1, n / 3, n / 2, 2 * n / 3, n - 1].map(|i| f64::from(values[i])));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{what}: {found} instead of {expected}");
    }
}

fn input() -> Tensor {
    fill::image("input", &[1, 3, 64, 96])
}

#[test]
fn mit_b0_and_daformer_give_the_reference_values() {
    let (model, _) = build("mit-b0", "daformer", None);
    check("input", &input(), &[1, 3, 64, 96], [0.000756, 1.001650, 1.196133, 0.740697, 0.864710, 0.075100, -1.300044, -0.872376]);
    let levels = model.features(&input(), &Pass::eval()).unwrap();
    check(
        "stage 1",
        &levels[0],
        &[1, 32, 16, 24],
        [-0.008479, 0.821769, -0.148234, -1.237938, -0.693455, 0.550441, 0.277128, 0.240335],
    );
    check(
        "stage 2",
        &levels[1],
        &[1, 64, 8, 12],
        [0.016615, 0.797803, -0.370974, -0.465361, -0.262167, 0.419985, 1.381763, 2.191164],
    );
    check(
        "stage 3",
        &levels[2],
        &[1, 160, 4, 6],
        [0.005332, 0.802956, -0.775594, -0.475294, 0.133014, 2.502594, -0.464987, 0.280815],
    );
    check(
        "stage 4",
        &levels[3],
        &[1, 256, 2, 3],
        [0.005445, 0.807121, 1.168729, 1.505889, 0.238306, -1.053580, 0.274613, -0.854736],
    );
    let logits = model.head(&levels, &Pass::eval()).unwrap();
    check(
        "logits",
        &logits,
        &[1, 19, 16, 24],
        [-0.044837, 0.223778, -0.236929, -0.226482, 0.062412, -0.140824, -0.327099, 0.525566],
    );
    check(
        "logits at the input's size",
        &resize_bilinear(&logits, (64, 96), false).unwrap(),
        &[1, 19, 64, 96],
        [-0.044837, 0.216472, -0.236929, -0.236929, 0.011789, -0.181884, -0.267693, 0.525566],
    );
}

#[test]
fn segformer_gives_the_reference_values() {
    let (model, _) = build("mit-b0", "segformer", Some(64));
    check(
        "logits",
        &model.forward(&input(), &Pass::eval()).unwrap(),
        &[1, 19, 16, 24],
        [-0.113695, 0.519749, -1.040527, -1.029396, -0.264139, 0.939457, -0.520726, -1.191169],
    );
}
