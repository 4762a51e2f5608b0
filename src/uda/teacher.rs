//! The teacher: a moving average of the student that labels the target images.

use super::terms::classify;
use crate::base::Result;
use crate::base::group::{self, Share};
use crate::io::weights::TensorSource;
use crate::models::segmenter::Segmenter;
use crate::nn::{Builder, ParamStore, Pass, resize_bilinear};
use crate::train::ema;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rows at the image border whose pseudo-labels get weight 0.
///
/// DAFormer hides what the car itself covers: see [`Margins::DAFORMER`]. Generated images need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Margins {
    /// Pixel rows at the top.
    pub top: usize,
    /// Pixel rows at the bottom.
    pub bottom: usize,
}

impl Margins {
    /// Top 15 and bottom 120 rows of a 512-pixel crop: DAFormer's values for Cityscapes, kept by DATUM's experiments.
    pub const DAFORMER: Self = Self { top: 15, bottom: 120 };
}

/// What the teacher says about the target images.
#[derive(Debug, Clone)]
pub struct PseudoLabels {
    /// Most probable class per pixel (B, H, W) u32.
    pub labels: Tensor,
    /// Loss weight per pixel (B, H, W): `confident_share`, 0 in the margins.
    pub weights: Tensor,
    /// Share of all pixels of the batch whose confidence reaches the threshold, 0…1, margins included.
    pub confident_share: f32,
}

impl PseudoLabels {
    /// The rows of a share.
    pub(super) fn rows(&self, share: &Share) -> Result<Self> {
        Ok(Self { labels: share.rows(&self.labels)?, weights: share.rows(&self.weights)?, ..*self })
    }

    /// Labels and weights from logits at image size.
    ///
    /// # Shapes
    /// `logits` (B, K, H, W)
    ///
    /// # Source
    /// DACS and DAFormer, equations 3 and 4: one scalar weight for the whole batch.
    pub fn from_logits(logits: &Tensor, confidence_threshold: f32, margins: Margins) -> Result<Self> {
        let (batch, _, height, width) = logits.dims4()?;
        let (labels, confidence) = classify(logits)?;
        let confident = confidence.iter().filter(|&&c| c >= confidence_threshold).count();
        let confident_share = group::current().mean_of(vec![confident as f64 / confidence.len() as f64])?[0] as f32;
        let kept = margins.top..height.saturating_sub(margins.bottom);
        let rows: Vec<f32> = (0..height).map(|y| if kept.contains(&y) { confident_share } else { 0.0 }).collect();
        let weights = Tensor::from_vec(rows, (1, height, 1), logits.device())?;
        let weights = weights.broadcast_as((batch, height, width))?.contiguous()?;
        let labels = Tensor::from_vec(labels, (batch, height, width), logits.device())?;
        Ok(Self { labels, weights, confident_share })
    }
}

/// Everything needed to go on with a teacher after a restart.
#[derive(Debug, Clone)]
pub struct TeacherState {
    /// Weights and buffers by name. Values are shared with the teacher: write them before the next step.
    pub tensors: BTreeMap<String, Tensor>,
    /// How often the teacher has followed the student.
    pub updates: u64,
}

/// Exponential moving average of a student. It never receives a gradient.
#[derive(Debug)]
pub struct Teacher<S> {
    model: S,
    parameters: ParamStore,
    decay: f64,
    updates: u64,
}

impl<S: Segmenter> Teacher<S> {
    /// A teacher of the student whose tensors are `student`; `build` makes the network from a builder, as for the
    /// student. All values start as copies, batch-norm statistics included.
    ///
    /// # Errors
    /// `build` asks for other tensors than the student has.
    pub fn new(student: &ParamStore, decay: f64, build: impl FnOnce(&Builder) -> Result<S>) -> Result<Self> {
        let builder = Builder::from_source(student.tensors(), 0).frozen();
        let model = build(&builder)?;
        Ok(Self { model, parameters: builder.finish()?, decay, updates: 0 })
    }

    /// Moves the weights towards the student's: `w ← a·w + (1 − a)·student`, a = min(1 − 1/(i + 1), decay) at the i-th
    /// call, so that the first call copies. Buffers (batch-norm statistics) are the teacher's own.
    ///
    /// # Source
    /// Mean teacher; DAFormer, section 3.1. The published code restarts the ramp after a resume; ours does not.
    pub fn follow(&mut self, student: &ParamStore) -> Result<()> {
        ema::update(&self.parameters, student, ema::ramp(self.decay, self.updates))?;
        self.updates += 1;
        Ok(())
    }

    /// Logits of target images at their size: no dropout, no drop-path, batch norm on the statistics of this batch (and recording them).
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), the rows of `share` → (B, K, H, W)
    pub fn predict(&self, images: &Tensor, share: &Share) -> Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        let logits = self.model.forward(images, &Pass::statistics_only().of(share))?;
        Ok(resize_bilinear(&logits, (height, width), false)?)
    }

    /// The teacher's tensors, for looking at or saving next to the student's.
    pub fn parameters(&self) -> &ParamStore {
        &self.parameters
    }

    /// What has to be saved for an exact resume.
    pub fn state(&self) -> TeacherState {
        TeacherState { tensors: self.parameters.tensors(), updates: self.updates }
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// Tensors that are not exactly those of this network.
    pub fn load_state(&mut self, tensors: &dyn TensorSource, updates: u64) -> Result<()> {
        self.parameters.load(tensors)?;
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_weight_is_the_share_of_confident_pixels_and_margins_are_zero() {
        // Softmax of (4, 0) has confidence 0.982, of (0, 3) 0.953: two of the six pixels reach 0.968.
        let logits = [[4.0f32, 0., 0., 0., 4., 0.], [0., 3., 3., 3., 0., 3.]].concat();
        let logits = Tensor::from_vec(logits, (1, 2, 3, 2), &Device::Cpu).unwrap();
        let pseudo = PseudoLabels::from_logits(&logits, 0.968, Margins { top: 1, bottom: 1 }).unwrap();
        assert!((pseudo.confident_share - 2.0 / 6.0).abs() < 1e-6);
        assert_eq!(pseudo.labels.flatten_all().unwrap().to_vec1::<u32>().unwrap(), [0, 1, 1, 1, 0, 1]);
        let share = pseudo.confident_share;
        assert_eq!(pseudo.weights.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 0., share, share, 0., 0.]);
    }

    #[test]
    fn margins_larger_than_the_image_leave_nothing() {
        let logits = Tensor::zeros((1, 2, 3, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let pseudo = PseudoLabels::from_logits(&logits, 0.1, Margins::DAFORMER).unwrap();
        assert_eq!(pseudo.weights.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
