//! What the U-Net's features tell about things, so that training can ask for it.

use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, cross_entropy, silu};
use candle_core::{Result as TensorResult, Tensor};

/// Width between the two convolutions.
const WIDTH: usize = 128;

/// Two 1×1 convolutions that read the class of every cell off features; part of the training alone.
pub struct LabelHead {
    mix: Conv2d,
    out: Conv2d,
}

impl LabelHead {
    /// For features of `channels`.
    pub fn new(channels: usize, classes: usize, builder: &Builder) -> Result<Self> {
        let conv = |inputs, outputs, name: &str| Conv2d::new(inputs, outputs, 1, ConvSpec::default(), &builder.pp(name));
        Ok(Self { mix: conv(channels, WIDTH, "mix")?, out: conv(WIDTH, classes, "out")? })
    }

    /// Cross-entropy, averaged over all cells.
    ///
    /// # Shapes
    /// `features` (B, C, h, w), `labels` (B, h, w) u32 → scalar
    pub fn loss(&self, features: &Tensor, labels: &Tensor) -> TensorResult<Tensor> {
        cross_entropy(&self.out.forward(&silu(&self.mix.forward(features)?)?)?, labels, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use candle_core::{Device, Var};

    #[test]
    fn gradients_agree_with_finite_differences() {
        let builder = Builder::random(3);
        let head = LabelHead::new(5, 4, &builder).unwrap();
        let store = builder.finish().unwrap();
        let mut rng = Rng::stream(0, "label head", &[]);
        let features = Var::from_tensor(&rng.normal_tensor(&[2, 5, 3, 4], &Device::Cpu).unwrap()).unwrap();
        let labels = Tensor::from_vec((0..24).map(|i| [0u32, 3, 1, 255, 2][i % 5]).collect(), (2, 3, 4), &Device::Cpu).unwrap();
        let loss = || head.loss(&features, &labels).unwrap();
        let gradients = loss().backward().unwrap();
        for var in store.weights().map(|(_, var)| var).chain([&features]) {
            let direction = rng.normal_tensor(var.dims(), &Device::Cpu).unwrap();
            let start = var.as_detached_tensor().copy().unwrap();
            let at = |step: f64| {
                var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
                let value = f64::from(loss().to_scalar::<f32>().unwrap());
                var.set(&start).unwrap();
                value
            };
            let slope = (8.0 * (at(0.01) - at(-0.01)) - (at(0.02) - at(-0.02))) / 0.12;
            let gradient = gradients.get(var).unwrap();
            let expected = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((slope - f64::from(expected)).abs() < 1e-3 * slope.abs().max(0.1), "{slope} {expected}");
        }
    }
}
