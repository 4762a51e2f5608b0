//! The teacher of joint training: a slow average of the head that labels generated images.

use super::config::TeacherConfig;
use crate::base::Result;
use crate::io::weights::TensorSource;
use crate::labels::LabelMap;
use crate::models::mask2former::{Ensemble, Mask2FormerConfig, Mask2FormerHead, TextClasses, semantic_scores};
use crate::models::segmenter::Encoder;
use crate::nn::{Builder, ParamStore, Pass};
use crate::train::ema;
use candle_core::Tensor;
use std::collections::BTreeMap;

const HEAD: &str = "sem_seg_head.";

/// The student's backbone with a head of its own. It never receives a gradient.
pub struct Teacher {
    backbone: Box<dyn Encoder>,
    head: Mask2FormerHead,
    /// The student's, as they are.
    classes: Option<TextClasses>,
    /// CLIP's own opinion, where it is asked.
    ensemble: Option<Ensemble>,
    parameters: ParamStore,
    config: TeacherConfig,
}

impl Teacher {
    /// A teacher of the student whose tensors are `student`. Its head starts as a copy; the backbone stays the student's,
    /// and so do the vectors of class names and of "no object", as in the published code.
    ///
    /// # Errors
    /// Tensors of another network.
    pub fn new(network: &Mask2FormerConfig, student: &ParamStore, config: TeacherConfig) -> Result<Self> {
        let view = Builder::from_store(student).frozen();
        let backbone = network.backbone.build(&view.pp("backbone").pp("clip_model").pp("visual"))?;
        let classes = network.head.text.as_ref().map(|text| TextClasses::build(text, &view)).transpose()?;
        let ensemble = if config.ensemble { network.ensemble(&view)? } else { None };
        let own = Builder::from_source(student.select(|name| name.starts_with(HEAD)).tensors(), 0).frozen();
        let head = Mask2FormerHead::new(&network.head, network.backbone.channels(), &own)?;
        Ok(Self { backbone, head, classes, ensemble, parameters: own.finish()?, config })
    }

    /// Before step number `step` (from 0): every `period` steps, `w ← alpha·w + (1 − alpha)·student`.
    ///
    /// # Source
    /// CLOUDS' published code (`ITERATION_UPDATE`, `ALPHA_EMA`). There the teacher and the count start anew with each run of the
    /// program; here both go on.
    pub fn follow(&self, step: u64, student: &ParamStore) -> Result<()> {
        if step > 0 && step.is_multiple_of(self.config.period) {
            ema::update(&self.parameters, student, self.config.alpha)?;
        }
        Ok(())
    }

    /// The class of every pixel: no threshold, no "no object".
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised → B maps (H, W)
    pub fn label(&self, images: &Tensor) -> Result<Vec<LabelMap>> {
        let (batch, _, height, width) = images.dims4()?;
        let features = self.backbone.features(images, &Pass::eval())?;
        let Some(mut answer) = self.head.forward(&features, self.classes.as_ref())?.pop() else { return Ok(Vec::new()) };
        if let Some(ensemble) = &self.ensemble {
            answer = ensemble.mix(&answer, &features[features.len() - 1])?;
        }
        let scores = semantic_scores(&answer, (height, width))?;
        (0..batch).map(|image| LabelMap::from_logits(&scores.get(image)?)).collect()
    }

    /// The head's tensors, to be saved. Values are shared: write them before the next step.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.parameters.tensors()
    }

    /// Goes on from saved tensors.
    ///
    /// # Errors
    /// Tensors that are not exactly those of this head.
    pub fn load(&self, tensors: &dyn TensorSource) -> Result<()> {
        self.parameters.load(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::clip::{ConvNextConfig, VisualConfig};
    use crate::models::mask2former::{HeadConfig, Mask2Former};

    #[test]
    fn it_moves_every_hundred_steps_and_not_at_the_first() {
        let backbone = ConvNextConfig { depths: [1; 4], widths: [8, 12, 16, 20], drop_path: 0.0 };
        let head = HeadConfig { width: 32, queries: 3, heads: 2, encoder_layers: 1, decoder_layers: 1, ..HeadConfig::default() };
        let network =
            Mask2FormerConfig { backbone: VisualConfig::ConvNext(backbone), freeze_backbone: true, head, ensemble: None };
        let builder = Builder::random(3);
        Mask2Former::new(&network, &builder).unwrap();
        let student = builder.finish().unwrap();
        let teacher = Teacher::new(&network, &student, TeacherConfig::default()).unwrap();
        assert!(teacher.tensors().keys().all(|name| name.starts_with(HEAD)));
        let name = "sem_seg_head.predictor.query_feat.weight";
        let weight = student.get(name).unwrap();
        let start: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
        let value = |start: f32, k: u64| {
            // The student has moved by 2 before k = 99 and by 3 before k = 200.
            let first = 0.999 * f64::from(start) + 0.001 * (f64::from(start) + 2.0);
            match k {
                0 | 99 => f64::from(start),
                100 => first,
                _ => 0.999 * first + 0.001 * (f64::from(start) + 3.0),
            }
        };
        for k in [0u64, 99, 100, 200] {
            match k {
                99 => weight.set(&(weight.as_tensor() + 2.0).unwrap()).unwrap(),
                200 => weight.set(&(weight.as_tensor() + 1.0).unwrap()).unwrap(),
                _ => {}
            }
            teacher.follow(k, &student).unwrap();
            let found: Vec<f32> = teacher.tensors()[name].flatten_all().unwrap().to_vec1().unwrap();
            for (found, start) in found.iter().zip(&start) {
                let expected = value(*start, k);
                assert!(
                    (f64::from(*found) - expected).abs() <= 1e-7 * expected.abs().max(1.0) * 3.0,
                    "k = {k}: {found} {expected}"
                );
            }
        }
    }
}
