//! Every value of `clouds train` with its default: those of the published GTA configuration. Field names are the keys of recipes and
//! of `--set`.
//!
//! Where paper, published code and good sense differ, a value chooses:
//!
//! | value | default | the other choice |
//! |---|---|---|
//! | `crop.independent_offsets` | false: one number for both offsets, as the code | true: crops anywhere, as one expects |
//! | `sam.batch_statistics` | false: MobileSAM on its stored statistics, as its authors | true: as CLOUDS' code runs it |
//! | `sam.drop_empty` | false: a class whose pixels were all taken still claims a query, as the code | true: it does not |
//! | `sam.remove_intersections` | true: as the code | false: overlaps stay |
//! | `teacher.period`, `teacher.alpha` | 100, 0.999: as the code, 0.1 % every hundred steps | 1: every step, as the paper reads |
//! | `model.freeze_backbone` | true: as both | false: the paper's ablation |
//! | `model.class_head` | linear: as all released configurations | text: the head of FC-CLIP, which the code has too |
//! | `model.ensemble`, `teacher.ensemble` | false: as all released configurations | true: CLIP itself has a say in the class of a mask |
//! | `sam.selection` | random: points anywhere on a region | center, largest_component: as the code's other modes |
//!
//! Always as the code: pixels without a class are negatives of every mask, there is no confidence threshold and no mixing of images.
//! Never as the code: a resumed run keeps its teacher.

use crate::base::{Error, Result};
use crate::models::clip::{ClipConfig, ConvNextConfig, VisualConfig};
use crate::models::mask2former::{CriterionConfig, EnsembleConfig, HeadConfig, Mask2FormerConfig};
use crate::systems::clouds::class_names::ClassNames;
use crate::systems::clouds::refine::{RefineConfig, Selection};
use crate::systems::clouds::refiner::{REGIONS, RefinerConfig};
use crate::systems::shared::Size;
use crate::systems::shared::published::SHORT_SIDE;
use crate::train::schedule::{Schedule, Shape};
use serde::{Deserialize, Serialize};

/// The two runs of CLOUDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// On labelled source images alone.
    Warmup,
    /// From there on, with generated images that a teacher labels.
    Joint,
}

/// How the learning rate goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Course {
    /// It stays.
    Constant,
    /// It falls as (1 − t/T)^`poly_power`.
    Poly,
}

/// How a query gets its class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassHead {
    /// By a linear layer, as in all released configurations.
    #[default]
    Linear,
    /// By comparison with the names of the classes, as the text tower of the CLIP reads them (FC-CLIP's head).
    Text,
}

/// `clouds train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// `warmup` or `joint`.
    pub stage: Part,
    /// Labelled data set.
    pub source: String,
    /// Split of the source; empty: `train` where there is one.
    pub source_split: String,
    /// Unlabelled generated images (`joint` only): a folder, or a run of `clouds generate`.
    pub generated: String,
    /// The photos that generated images were painted from (`init_images` of `generate`; `joint` only): the teacher labels the photo of an
    /// image instead of the image. Empty: it labels the image, as published.
    pub init_images: String,
    /// Segmenter to start from, a run folder or a file; `joint` needs the warm-up's.
    pub init: String,
    /// CLIP weights of the backbone: a file of open_clip, or `nano`, the small one inside the program; not used with `init`.
    pub backbone_weights: String,
    /// What cleans pseudo-labels: `none`, `regions`, `nano`, or a file of SAM or MobileSAM (`joint` only).
    pub refiner: String,
    /// Optimiser steps; 0: `warmup_iterations` or `joint_iterations`.
    pub iterations: u64,
    /// Steps of the stage `warmup`.
    pub warmup_iterations: u64,
    /// Steps of the stage `joint`.
    pub joint_iterations: u64,
    /// Images of a step, of both kinds together.
    pub batch_size: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// `constant` or `poly`.
    pub schedule: Course,
    /// Exponent of `poly`.
    pub poly_power: f64,
    /// Factor of the backbone's learning rate where it is trained.
    pub backbone_multiplier: f64,
    /// Decoupled weight decay; norms and tables of embeddings have none.
    pub weight_decay: f64,
    /// Largest L2 norm of the gradient of all weights together; 0: any.
    pub clip_norm: f64,
    /// The network.
    pub model: ModelConfig,
    /// The losses.
    pub loss: LossConfig,
    /// Which images are drawn and how they are changed.
    pub data: DataConfig,
    /// The part of an image that is seen.
    pub crop: CropConfig,
    /// Who labels the generated images.
    pub teacher: TeacherConfig,
    /// How its labels are cleaned; the name is that of the published configuration, the values hold for any `refiner`.
    pub sam: SamConfig,
    /// Short side of photos in evaluation; 0: as they are.
    pub short_side: usize,
    /// Labelled data set that is scored during training, for the curve alone: the last weights are kept, whatever it says;
    /// empty: none.
    pub validation: String,
    /// Split of the validation; empty: `val` where there is one.
    pub validation_split: String,
    /// Steps between scores of `validation`.
    pub validation_steps: u64,
    /// Images that are scored, evenly taken; 0: all.
    pub validation_images: usize,
    /// Full training state every so many steps.
    pub checkpointing_steps: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads that prepare batches.
    pub workers: usize,
}

/// Sizes of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A CLIP by name: `convnext-large-d-320`, `rn50`, `rn101`, …; or `convnext` with `depths` and `widths`.
    pub backbone: String,
    /// Blocks of the stages of `convnext`.
    pub depths: [usize; 4],
    /// Channels of the stages of `convnext`.
    pub widths: [usize; 4],
    /// Rate of stochastic depth of a ConvNeXt that is trained.
    pub drop_path: f32,
    /// Whether the backbone stays as it is.
    pub freeze_backbone: bool,
    /// `linear`, or `text`: queries are compared with the names of the classes, by the text tower in `backbone_weights`.
    pub class_head: ClassHead,
    /// CLIP itself, which must be frozen, has a say in the class of a mask when the segmenter is used (FC-CLIP's geometric ensemble). It
    /// compares the mask with the names of the classes.
    pub ensemble: bool,
    /// Share of CLIP in that, 0 to 1.
    pub alpha: f64,
    /// The head alone is asked where a mask has no pixel at the size of CLIP's map; the published ResNets have it.
    pub valid_mask_only: bool,
    /// Width of both decoders.
    pub width: usize,
    /// Queries.
    pub num_queries: usize,
    /// Heads of all attentions.
    pub heads: usize,
    /// Layers of the pixel decoder.
    pub encoder_layers: usize,
    /// Width inside its feed-forward layers.
    pub encoder_feedforward: usize,
    /// Layers of the Transformer decoder.
    pub decoder_layers: usize,
    /// Width inside its feed-forward layers.
    pub dim_feedforward: usize,
}

/// Weights of the losses, and where masks are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the class.
    pub class_weight: f64,
    /// Weight of the masks' cross-entropy.
    pub mask_weight: f64,
    /// Weight of the masks' Dice loss.
    pub dice_weight: f64,
    /// Weight of "no object" against the other classes.
    pub no_object: f32,
    /// Points per mask.
    pub points: usize,
    /// That many times more candidates for uncertain points.
    pub oversample: f64,
    /// Share of the uncertain points.
    pub importance: f64,
}

/// Which images are drawn, and how they are changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Copies of each source image in a round; a fraction is drawn.
    pub source_factor: f64,
    /// Copies of each generated image in a round.
    pub generated_factor: f64,
    /// Source images are scaled to fit this size times a random factor.
    pub initial_size: Size,
    /// Smallest and largest factor.
    pub scale_range: [f64; 2],
    /// Random brightness, contrast, saturation and hue.
    pub color_jitter: bool,
    /// Mirror half of the images.
    pub flip: bool,
}

/// The part of an image that is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CropConfig {
    /// Rows, a multiple of 32; also those of generated images.
    pub height: usize,
    /// Columns, a multiple of 32; also those of generated images.
    pub width: usize,
    /// Each offset is drawn for itself, instead of one number for both.
    pub independent_offsets: bool,
}

/// A slow average of the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// Share of the teacher that stays when it moves.
    pub alpha: f64,
    /// Steps between two moves.
    pub period: u64,
    /// CLIP itself has a say in its labels, as `model.ensemble` says for the student.
    pub ensemble: bool,
}

/// How pseudo-labels are cleaned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamConfig {
    /// Regions must have more pixels than this. 5000 belongs to images of 768x768.
    pub min_area: usize,
    /// Side of the square that regions are eroded with before points are drawn; 0: they are not.
    pub erosion: usize,
    /// Points on each region.
    pub num_points: usize,
    /// Which pixels of a region may become points: `random`, `center`, or `largest_component`.
    pub selection: Selection,
    /// Pixels in several masks are taken out of all of them.
    pub remove_intersections: bool,
    /// Masks are asked for again, with the first answers as prompts.
    pub second_pass: bool,
    /// Batch norms of MobileSAM use the statistics of each picture.
    pub batch_statistics: bool,
    /// Classes whose mask lost all its pixels are left out.
    pub drop_empty: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            stage: Part::Warmup,
            source: String::new(),
            source_split: String::new(),
            generated: String::new(),
            init_images: String::new(),
            init: String::new(),
            backbone_weights: String::new(),
            refiner: REGIONS.into(),
            iterations: 0,
            warmup_iterations: 40_000,
            joint_iterations: 40_000,
            batch_size: 8,
            learning_rate: 1e-5,
            schedule: Course::Constant,
            poly_power: 0.9,
            backbone_multiplier: 0.1,
            weight_decay: 0.05,
            clip_norm: 0.01,
            model: ModelConfig::default(),
            loss: LossConfig::default(),
            data: DataConfig::default(),
            crop: CropConfig::default(),
            teacher: TeacherConfig::default(),
            sam: SamConfig::default(),
            short_side: SHORT_SIDE,
            validation: String::new(),
            validation_split: String::new(),
            validation_steps: 4000,
            validation_images: 0,
            checkpointing_steps: 2000,
            seed: 0,
            workers: 4,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        let head = HeadConfig::default();
        Self {
            backbone: "convnext-large-d-320".into(),
            depths: [3, 3, 27, 3],
            widths: [192, 384, 768, 1536],
            drop_path: 0.1,
            freeze_backbone: true,
            class_head: ClassHead::Linear,
            ensemble: false,
            alpha: 0.4,
            valid_mask_only: false,
            width: head.width,
            num_queries: head.queries,
            heads: head.heads,
            encoder_layers: head.encoder_layers,
            encoder_feedforward: head.encoder_hidden,
            decoder_layers: head.decoder_layers,
            dim_feedforward: head.decoder_hidden,
        }
    }
}

impl Default for LossConfig {
    fn default() -> Self {
        let CriterionConfig { class_weight, mask_weight, dice_weight, no_object, points, oversample, importance, .. } =
            CriterionConfig::default();
        Self { class_weight, mask_weight, dice_weight, no_object, points, oversample, importance }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source_factor: 1.0,
            generated_factor: 1.0,
            initial_size: Size { height: 1052, width: 1914 },
            scale_range: [0.5, 2.0],
            color_jitter: true,
            flip: true,
        }
    }
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { height: 768, width: 768, independent_offsets: false }
    }
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self { alpha: 0.999, period: 100, ensemble: false }
    }
}

impl Default for SamConfig {
    fn default() -> Self {
        let RefineConfig { min_area, erosion, points, selection, remove_intersections, second_pass } = RefineConfig::default();
        Self {
            min_area,
            erosion,
            num_points: points,
            selection,
            remove_intersections,
            second_pass,
            batch_statistics: false,
            drop_empty: false,
        }
    }
}

impl TrainConfig {
    /// Checks all that can be checked without looking at files.
    ///
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        if self.source.is_empty() {
            return usage("train needs a labelled data set\n  next: add `--source NAME=ROOT`".into());
        }
        let CropConfig { height, width, .. } = self.crop;
        if [height, width].iter().any(|side| *side == 0 || side % 32 != 0) {
            return usage(format!("crop {width}x{height}: expected multiples of 32\n  next: set crop.width and crop.height"));
        }
        let [low, high] = self.data.scale_range;
        let factors = [self.data.source_factor, self.data.generated_factor];
        let Size { height, width } = self.data.initial_size;
        if !(low > 0.0 && low <= high && high < 100.0) || height * width == 0 {
            return usage("data.scale_range: expected two factors above 0; data.initial_size: a size above 0".into());
        }
        if factors.iter().any(|factor| !(0.0..1e6).contains(factor)) || self.data.source_factor <= 0.0 {
            return usage("data.source_factor, data.generated_factor: expected numbers of copies, e.g. 1.0 and 2.0".into());
        }
        for (name, value) in [
            ("batch_size", self.batch_size as u64),
            ("iterations", self.steps()),
            ("teacher.period", self.teacher.period),
            ("validation_steps", self.validation_steps),
        ] {
            if value == 0 {
                return usage(format!("`{name}` is 0\n  next: give a value of at least 1"));
            }
        }
        if !(0.0..=1.0).contains(&self.model.alpha) {
            return usage("model.alpha: expected the share of CLIP, 0 to 1".into());
        }
        if !(0.0..=1.0).contains(&self.teacher.alpha) || self.clip_norm < 0.0 || self.learning_rate < 0.0 {
            return usage("teacher.alpha: expected 0 to 1; clip_norm and learning_rate: at least 0".into());
        }
        self.schedule().validate()?;
        self.refinement().validate()?;
        self.validate_stage()
    }

    fn validate_stage(&self) -> Result<()> {
        let usage = |what: &str, next: &str| Err(Error::Usage(format!("{what}\n  next: {next}")));
        match self.stage {
            Part::Joint if self.init.is_empty() => {
                usage("joint training starts from a warm-up", "add `--init RUN`, the run of `clouds train --stage warmup`")
            }
            Part::Joint if self.generated.is_empty() => {
                usage("joint training learns from generated images", "add `--generated FOLDER`, a run of `clouds generate`")
            }
            Part::Warmup if !self.generated.is_empty() => {
                usage("the warm-up sees source images only", "add `--stage joint --init RUN`, or leave `--generated` out")
            }
            Part::Warmup if !self.init_images.is_empty() => {
                usage("the warm-up has no teacher who could label photos", "add `--stage joint`, or leave `--init-images` out")
            }
            Part::Warmup if self.init.is_empty() && self.backbone_weights.is_empty() && self.model.freeze_backbone => usage(
                "a backbone that is not trained needs weights",
                "add `--backbone-weights FILE`, e.g. open_clip_pytorch_model.bin of \
                 laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup or timm/resnet50_clip.openai; or take the small one inside \
                 the program, `--recipe clouds-nano --backbone-weights nano`; or train the backbone \
                 with `--set model.freeze_backbone=false`, as `--recipe clouds-nano` does",
            ),
            _ if self.model.ensemble && !self.model.freeze_backbone => usage(
                "`model.ensemble` asks CLIP about its own features, but here they are trained",
                "leave `model.freeze_backbone` at true, or `model.ensemble` at false",
            ),
            _ if self.teacher.ensemble && !self.model.ensemble => usage(
                "`teacher.ensemble` needs what makes CLIP's vectors of images",
                "add `--set model.ensemble=true`, from the warm-up on",
            ),
            _ if self.compares_names() && self.init.is_empty() && self.backbone_weights.is_empty() => usage(
                "`model.class_head = \"text\"` and `model.ensemble` compare with class names, which a text tower must read",
                "add `--backbone-weights FILE`, a whole CLIP of open_clip or of `clouds pretrain`, or `nano`",
            ),
            _ => Ok(()),
        }
    }

    /// Whether names of classes are compared.
    pub fn compares_names(&self) -> bool {
        self.model.class_head == ClassHead::Text || self.model.ensemble
    }

    /// Optimiser steps of the stage.
    pub fn steps(&self) -> u64 {
        match (self.iterations, self.stage) {
            (0, Part::Warmup) => self.warmup_iterations,
            (0, Part::Joint) => self.joint_iterations,
            (steps, _) => steps,
        }
    }

    /// The learning rate's course.
    pub fn schedule(&self) -> Schedule {
        let shape = match self.schedule {
            Course::Constant => Shape::Constant,
            Course::Poly => Shape::Poly,
        };
        Schedule { shape, steps: self.steps(), power: self.poly_power, ..Schedule::default() }
    }

    /// The image tower.
    ///
    /// # Errors
    /// An unknown name.
    pub fn backbone(&self) -> Result<VisualConfig> {
        let model = &self.model;
        let (depths, widths) = (model.depths, model.widths);
        let mut backbone = match model.backbone.as_str() {
            "convnext" => VisualConfig::ConvNext(ConvNextConfig { depths, widths, drop_path: model.drop_path }),
            name => ClipConfig::named(name)?.visual,
        };
        if let VisualConfig::ConvNext(convnext) = &mut backbone {
            convnext.drop_path = model.drop_path;
        }
        Ok(backbone)
    }

    /// The network for so many classes, with the `names` that it compares with, if it does.
    ///
    /// # Errors
    /// An unknown backbone.
    pub fn network(&self, num_classes: usize, names: Option<&ClassNames>) -> Result<Mask2FormerConfig> {
        let model = &self.model;
        let text = names.filter(|_| model.class_head == ClassHead::Text).map(|names| names.names.clone());
        let ensemble = names.and_then(|ClassNames { names, image_head, .. }| {
            let (alpha, valid_mask_only) = (model.alpha, model.valid_mask_only);
            image_head.map(|image_head| EnsembleConfig { alpha, valid_mask_only, image_head, names: names.clone() })
        });
        let head = HeadConfig {
            num_classes,
            width: model.width,
            queries: model.num_queries,
            heads: model.heads,
            encoder_layers: model.encoder_layers,
            encoder_hidden: model.encoder_feedforward,
            decoder_layers: model.decoder_layers,
            decoder_hidden: model.dim_feedforward,
            text,
            ..HeadConfig::default()
        };
        Ok(Mask2FormerConfig { backbone: self.backbone()?, freeze_backbone: model.freeze_backbone, head, ensemble })
    }

    /// The losses for so many classes.
    pub fn criterion(&self, num_classes: usize) -> CriterionConfig {
        let LossConfig { class_weight, mask_weight, dice_weight, no_object, points, oversample, importance } = self.loss;
        CriterionConfig { num_classes, class_weight, mask_weight, dice_weight, no_object, points, oversample, importance }
    }

    /// How pseudo-labels are refined.
    pub fn refinement(&self) -> RefineConfig {
        let SamConfig { min_area, erosion, num_points, selection, remove_intersections, second_pass, .. } = self.sam;
        RefineConfig { min_area, erosion, points: num_points, selection, remove_intersections, second_pass }
    }

    /// Who proposes the masks of the refinement.
    pub fn proposer(&self) -> RefinerConfig {
        RefinerConfig { refiner: self.refiner.clone(), batch_statistics: self.sam.batch_statistics, ..RefinerConfig::default() }
    }
}
