//! Deterministic values that a test and the program that made its golden file can both compute: a hash of a tensor's
//! name and of the flat index, so that no weights need to be stored.
#![allow(dead_code)]

use candle_core::{Device, Tensor};
use datum::nn::ParamStore;

/// Uniform in [0, 1) from the tensor's name (FNV-1a, 32 bit) and the flat row-major index (murmur finaliser).
pub fn uniform(name: &str, index: usize) -> f64 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut x = hash.wrapping_add((index as u32).wrapping_mul(0x9E37_79B9));
    x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
    f64::from(x ^ (x >> 16)) / 4_294_967_296.0
}

fn tensor(name: &str, shape: &[usize], value: impl Fn(f64) -> f64) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| value(uniform(name, i)) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The value of the parameter `name`, scaled so that activations stay near 1 in deep networks.
pub fn fill(name: &str, shape: &[usize]) -> Tensor {
    let last = name.rsplit('.').next().unwrap_or(name);
    let fan_in: usize = shape.iter().skip(1).product();
    let scale = (3.0 / fan_in as f64).sqrt();
    tensor(name, shape, |u| {
        let v = 2.0 * u - 1.0;
        match (last, shape.len()) {
            ("running_var", _) => 1.0 + 0.5 * u,
            ("running_mean", _) => 0.1 * v,
            ("weight", 1) => 1.0 + 0.1 * v,
            (_, 0 | 1) => 0.1 * v,
            _ => v * scale,
        }
    })
}

/// Input values, uniform in ±2.
pub fn image(name: &str, shape: &[usize]) -> Tensor {
    tensor(name, shape, |u| 2.0 * (2.0 * u - 1.0))
}

/// Labels 0…classes − 1 and, as often as each of them, 255 (ignored).
pub fn labels(name: &str, shape: &[usize], classes: u32) -> Tensor {
    let draw = |i| Some((uniform(name, i) * f64::from(classes + 1)) as u32).filter(|&label| label < classes).unwrap_or(255);
    let values: Vec<u32> = (0..shape.iter().product()).map(draw).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Fills every tensor of `store`; the hashed name is `prefix` (with its dot, or empty) followed by the stored name.
pub fn fill_store(store: &ParamStore, prefix: &str) {
    for (name, param) in store.iter() {
        param.var.set(&fill(&format!("{prefix}{name}"), param.var.dims())).unwrap();
    }
}

#[test]
fn the_hash_is_the_documented_one() {
    let expected = [0.185_012_23, 0.272_643_91, 0.450_215_53, 0.993_229_72];
    for (i, expected) in expected.into_iter().enumerate() {
        assert!((uniform("x", i) - expected).abs() < 1e-7, "{}", uniform("x", i));
    }
}
