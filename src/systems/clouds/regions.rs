//! Masks without weights: a picture falls apart into segments of like colour, and a region takes those that mostly belong to it.

use super::automatic_masks::{Annotation, AutomaticMasksConfig};
use super::refine::{MaskProposer, RegionPrompt};
use super::run_lengths::RunLengths;
use super::segments::{Segments, SegmentsConfig};
use crate::base::{Error, Result};
use crate::io::images::RgbImage;
use serde::{Deserialize, Serialize};

/// See the module. Every mask is a union of segments, so its outline follows colours of the picture. Segments that no region
/// fills belong to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Regions {
    /// Standard deviation in pixels of the Gaussian that the picture is smoothed with first; 0: it is not.
    pub sigma: f64,
    /// The larger, the larger are segments (k of Felzenszwalb and Huttenlocher, for colours of 0…255).
    pub scale: f64,
    /// Segments have at least this many pixels.
    pub min_size: usize,
    /// A segment belongs to a region that holds more than this share of its pixels, 0.5 to 1.
    pub share: f64,
}

impl Default for Regions {
    fn default() -> Self {
        Self { sigma: 0.5, scale: 50.0, min_size: 20, share: 0.5 }
    }
}

impl Regions {
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        let possible =
            (0.0..=100.0).contains(&self.sigma) && (0.0..=1e9).contains(&self.scale) && (0.5..1.0).contains(&self.share);
        if !possible {
            let expected = "regions: expected `sigma` from 0 to 100, `scale` from 0 to 1e9, `share` from 0.5 to below 1";
            return Err(Error::Usage(format!("{expected}\n  next: leave them out for the defaults")));
        }
        Ok(())
    }

    /// The segments of a picture.
    pub fn segments(&self, image: &RgbImage) -> Segments {
        let colors: Vec<[f64; 3]> = image.pixels.chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(f64::from)).collect();
        let config = SegmentsConfig { sigma: self.sigma, scale: self.scale, min_size: self.min_size };
        Segments::new(&colors, (image.height, image.width), &config)
    }
}

impl MaskProposer for Regions {
    fn name(&self) -> String {
        "regions of like colour (no SAM)".into()
    }

    fn masks(&self, image: &RgbImage, prompts: &[RegionPrompt], _: bool) -> Result<Vec<Vec<bool>>> {
        let segments = self.segments(image);
        let mut sizes = vec![0u32; segments.count];
        segments.of_pixel.iter().for_each(|segment| sizes[*segment as usize] += 1);
        let mask = |prompt: &RegionPrompt| {
            let mut inside = vec![0u32; segments.count];
            prompt.pixels.iter().for_each(|at| inside[segments.of_pixel[*at] as usize] += 1);
            let belongs: Vec<bool> =
                inside.iter().zip(&sizes).map(|(inside, size)| f64::from(*inside) > self.share * f64::from(*size)).collect();
            segments.of_pixel.iter().map(|segment| belongs[*segment as usize]).collect()
        };
        Ok(prompts.iter().map(mask).collect())
    }

    /// The segments. There is no network that could judge them, so of the settings only the least area counts.
    fn everything(&self, image: &RgbImage, config: &AutomaticMasksConfig) -> Result<Vec<Annotation>> {
        let least = self.min_size.max(config.min_mask_region_area);
        let segments = Self { min_size: least, ..*self }.segments(image);
        let masks = RunLengths::of_numbers(&segments.of_pixel, segments.count, (image.height, image.width));
        Ok(masks.into_iter().map(Annotation::plain).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::labels::LabelMap;
    use crate::systems::clouds::refine::{RefineConfig, refine};

    /// 40x40 pixels: dark on the left, bright from column 20 on.
    fn halves() -> RgbImage {
        let pixel = |at: usize| [if at % 40 < 20 { 40 } else { 200 }; 3];
        RgbImage { height: 40, width: 40, pixels: (0..1600).flat_map(pixel).collect() }
    }

    /// Smoothing leaves columns of their own between the halves; they are too small here.
    const LARGE: Regions = Regions { sigma: 0.5, scale: 50.0, min_size: 50, share: 0.5 };

    #[test]
    fn a_shifted_border_moves_to_the_edge_in_the_picture() {
        // The teacher draws the border five columns too far to the right.
        let ids = (0..1600).map(|at| u8::from(at % 40 >= 25)).collect();
        let label = LabelMap { height: 40, width: 40, ids };
        let config = RefineConfig { min_area: 10, ..RefineConfig::default() };
        let masks = refine(&LARGE, &halves(), &label, &config, &mut Rng::stream(0, "test", &[])).unwrap();
        let left: Vec<bool> = (0..1600).map(|at| at % 40 < 20).collect();
        let right: Vec<bool> = left.iter().map(|there| !there).collect();
        assert!(masks[&0] == left && masks[&1] == right);
    }

    #[test]
    fn everything_is_one_mask_for_each_segment() {
        let found = LARGE.everything(&halves(), &AutomaticMasksConfig::default()).unwrap();
        assert_eq!(
            found.iter().map(|one| (one.area, one.bbox)).collect::<Vec<_>>(),
            [(800, [0, 0, 19, 39]), (800, [20, 0, 19, 39])]
        );
        assert!(found.iter().all(|one| one.predicted_iou.is_none()));
    }

    #[test]
    fn impossible_settings_are_refused() {
        assert!(Regions::default().validate().is_ok());
        for wrong in [Regions { share: 0.4, ..Regions::default() }, Regions { sigma: f64::NAN, ..Regions::default() }] {
            assert!(wrong.validate().is_err());
        }
    }
}
