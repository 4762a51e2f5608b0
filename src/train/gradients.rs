//! The gradients of named parameters, and nothing else: candle's own store also keeps those of constants.

use crate::base::group::Group;
use crate::nn::{backward, vectorised};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Layout, Result, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Values a thread works on at once. Fixed, so that sums do not depend on the number of threads.
pub(super) const CHUNK: usize = 1 << 14;

/// Gradients by parameter name. A parameter the loss does not depend on has no entry.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// Backward from the scalar `loss`, keeping only the gradients of `parameters`.
    pub fn of<'a>(loss: &Tensor, parameters: impl IntoIterator<Item = (&'a str, &'a Var)>) -> Result<Self> {
        Ok(Self::from_store(backward(loss)?, parameters))
    }

    /// The gradients of `parameters` out of candle's store; the rest is dropped.
    pub fn from_store<'a>(mut store: GradStore, parameters: impl IntoIterator<Item = (&'a str, &'a Var)>) -> Self {
        let named = parameters.into_iter().filter_map(|(name, var)| Some((name.to_string(), store.remove(var)?)));
        Self(named.collect())
    }

    /// Adds the gradients of another micro-batch. Divide the losses by their number first, or [`Self::scale`] after.
    pub fn accumulate(&mut self, other: Self) -> Result<()> {
        for (name, gradient) in other.0 {
            let sum = match self.0.remove(&name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.0.insert(name, sum);
        }
        Ok(())
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        self.0.values_mut().try_for_each(|gradient| {
            *gradient = (&*gradient * factor)?;
            Ok(())
        })
    }

    /// The gradient of one parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// The mean over all processes of a training, which is the gradient of the mean loss; none for a process alone. A
    /// parameter that got a gradient on one of them has one; with no gradient elsewhere it counts as 0 there.
    ///
    /// All values go in one message. `parameters` are the same on all processes, in the same order.
    pub fn averaged<'a>(
        &self,
        group: &dyn Group,
        parameters: impl Iterator<Item = (&'a str, &'a Var)> + Clone,
    ) -> Result<Option<Self>> {
        let Some((_, first)) = parameters.clone().next().filter(|_| group.size() > 1) else { return Ok(None) };
        let found: Vec<f32> = parameters.clone().map(|(name, _)| f32::from(u8::from(self.get(name).is_some()))).collect();
        let count = found.len();
        let mut parts = vec![Tensor::from_vec(found, count, first.device())?];
        for (name, var) in parameters.clone() {
            parts.push(match self.get(name) {
                Some(gradient) => gradient.to_dtype(DType::F32)?.flatten_all()?,
                None => Tensor::zeros(var.elem_count(), DType::F32, var.device())?,
            });
        }
        let mean = group.mean(&Tensor::cat(&parts, 0)?)?;
        drop(parts);
        let found: Vec<f32> = mean.narrow(0, 0, count)?.to_vec1()?;
        let mut start = count;
        let mut averaged = BTreeMap::new();
        for ((name, var), found) in parameters.zip(found) {
            let length = var.elem_count();
            if found > 0.0 {
                averaged.insert(name.to_string(), mean.narrow(0, start, length)?.reshape(var.shape())?);
            }
            start += length;
        }
        Ok(Some(Self(averaged)))
    }

    /// In the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// L2 norm over all gradients together.
    pub fn norm(&self) -> Result<f64> {
        let squares = self.0.values().map(sum_of_squares).collect::<Result<Vec<f64>>>()?;
        Ok(squares.iter().sum::<f64>().sqrt())
    }
}

impl FromIterator<(String, Tensor)> for Gradients {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

/// Σ x², in f64 and in a fixed order.
fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    with_values(tensor, |values| values.par_chunks(CHUNK).map(squares).collect::<Vec<f64>>().iter().sum())
}

vectorised! {
    fn squares(values: &[f32]) -> f64 {
        let mut lanes = [0f64; 16];
        let mut chunks = values.chunks_exact(lanes.len());
        for chunk in &mut chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        lanes.iter().sum()
    }
}

/// The values of an f32 storage that an operation may change.
pub(super) fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = contiguous(layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("trainable parameters must be f32"),
    }
}

pub(super) fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("an update in place: expected contiguous values".into()))
}

/// Hands the values of a tensor (row-major, f32) to `read`, without a copy when it is contiguous on the CPU.
pub(super) fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    if tensor.dtype() != DType::F32 || !tensor.is_contiguous() {
        return Ok(read(&tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?));
    }
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (candle_core::Storage::Cpu(storage), Some((start, end))) => Ok(read(&storage.as_slice::<f32>()?[start..end])),
        _ => {
            drop(storage); // reading from another device locks the storage again
            Ok(read(&tensor.flatten_all()?.to_vec1::<f32>()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn constants_are_dropped_and_micro_batches_add_up() {
        let w = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let unused = Var::new(&[5f32], &Device::Cpu).unwrap();
        let constant = Tensor::new(&[3f32, 4.0], &Device::Cpu).unwrap();
        let gradients = || {
            let loss = (w.as_tensor() * &constant).unwrap().sum_all().unwrap();
            Gradients::of(&loss, [("w", &w), ("unused", &unused)]).unwrap()
        };
        let mut sum = gradients();
        sum.accumulate(gradients()).unwrap();
        assert_eq!(sum.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["w"]);
        assert_eq!(sum.get("w").unwrap().to_vec1::<f32>().unwrap(), [6.0, 8.0]);
        assert_eq!(sum.norm().unwrap(), 10.0);
        sum.scale(0.5).unwrap();
        assert_eq!(sum.norm().unwrap(), 5.0);
    }

    #[test]
    fn the_mean_over_processes_is_the_gradient_of_the_whole_batch() {
        let rows = [[1f32, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 9.0]];
        let gradient = |items: &[u64], sees_bias: bool| {
            let (w, bias) = (Var::new(&[0.5f32, 2.0], &Device::Cpu).unwrap(), Var::new(&[[1f32]], &Device::Cpu).unwrap());
            let unused = Var::new(&[5f32], &Device::Cpu).unwrap();
            let parameters = [("bias", &bias), ("unused", &unused), ("w", &w)];
            let batch: Vec<f32> = items.iter().flat_map(|&item| rows[item as usize]).collect();
            let product =
                Tensor::from_vec(batch, (items.len(), 2), &Device::Cpu).unwrap().matmul(&w.unsqueeze(1).unwrap()).unwrap();
            let product = if sees_bias { product.broadcast_add(&bias).unwrap() } else { product };
            let loss = product.sqr().unwrap().mean_all().unwrap();
            (Gradients::of(&loss, parameters).unwrap(), parameters.map(|(name, var)| (name.to_string(), var.clone())))
        };
        let named = |parameters: &[(String, Var)]| parameters.to_vec();
        let values =
            |gradients: &Gradients, name: &str| gradients.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (whole, _) = gradient(&[0, 1, 2, 3], true);
        let averaged = crate::base::group::tests::together(2, |group| {
            let (own, parameters) = gradient(&group.items(2).collect::<Vec<_>>(), true);
            let parameters = named(&parameters);
            own.averaged(group, parameters.iter().map(|(name, var)| (name.as_str(), var))).unwrap().unwrap()
        });
        for averaged in &averaged {
            assert_eq!(averaged.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["bias", "w"]);
            assert_eq!(averaged.get("bias").unwrap().dims(), [1, 1]);
            assert_eq!((values(averaged, "bias"), values(averaged, "w")), (values(&whole, "bias"), values(&whole, "w")));
        }
        // A parameter that only one process used.
        let halves = crate::base::group::tests::together(2, |group| {
            let (own, parameters) = gradient(&[0], group.is_main());
            let parameters = named(&parameters);
            own.averaged(group, parameters.iter().map(|(name, var)| (name.as_str(), var))).unwrap().unwrap()
        });
        let (alone, parameters) = gradient(&[0], true);
        assert!(alone.averaged(&crate::base::group::Alone, parameters.iter().map(|(n, v)| (n.as_str(), v))).unwrap().is_none());
        let half = values(&alone, "bias")[0] / 2.0;
        assert!(halves.iter().all(|averaged| values(averaged, "bias") == [half]));
    }

    #[test]
    fn long_norms_are_those_of_a_plain_sum() {
        let values: Vec<f32> = (0..3 * CHUNK + 21).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let exact = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        let found = sum_of_squares(&Tensor::new(values.as_slice(), &Device::Cpu).unwrap()).unwrap();
        assert!((found - exact).abs() <= 1e-12 * exact, "{found} {exact}");
    }

    #[test]
    fn views_are_read_in_row_major_order() {
        let t = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let read = |t: &Tensor| with_values(t, |v| v.to_vec()).unwrap();
        assert_eq!(read(&t.t().unwrap()), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(read(&t.get(1).unwrap()), [3.0, 4.0]);
    }
}
