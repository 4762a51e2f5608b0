//! How much an adapter changes each layer.

use super::{Component, Lora, complain};
use crate::base::Result;
use crate::io::weights::TensorSource;
use candle_core::{DType, Device, Tensor};

/// What an adapter does to one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The network.
    pub component: Component,
    /// Dotted name of the layer.
    pub module: String,
    /// Rank r.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Frobenius norm of alpha/r · up · down.
    pub norm: f64,
    /// That norm over the weight's own; none without a base.
    pub share: Option<f64>,
}

impl Lora {
    /// The effect on each layer, in the order of names. `base` gives the weights of a network, if they are at hand; one layer is
    /// in memory at a time.
    ///
    /// # Errors
    /// Lists every adapter without a layer in the base to belong to.
    pub fn effects(&self, base: impl Fn(Component) -> Result<Option<Box<dyn TensorSource>>>) -> Result<Vec<Effect>> {
        let (mut effects, mut wrong) = (Vec::new(), Vec::new());
        for component in [Component::Unet, Component::TextEncoder] {
            let source = if self.of(component).next().is_some() { base(component)? } else { None };
            let shapes = source.as_ref().map(|source| source.shapes());
            for ((_, module), pair) in self.of(component) {
                let name = format!("{module}.weight");
                let norm = norm(&pair.update()?)?;
                let mut share = None;
                if let (Some(source), Some(shapes)) = (&source, &shapes) {
                    match shapes.get(&name) {
                        Some(shape) if pair.fits(shape) => share = Some(norm / self::norm(&source.load(&name, &Device::Cpu)?)?),
                        Some(shape) => wrong.push(format!("{}.{name} of shape {shape:?}", component.name())),
                        None => wrong.push(format!("no layer {}.{module}", component.name())),
                    }
                }
                effects.push(Effect { component, module: module.clone(), rank: pair.rank(), alpha: pair.alpha, norm, share });
            }
        }
        complain(&self.origin, "adapters of this model", wrong)?;
        Ok(effects)
    }
}

fn norm(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}
