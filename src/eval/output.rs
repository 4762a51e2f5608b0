//! Predictions as files.

use crate::base::Result;
use crate::io::images::{self, RgbImage};
use crate::labels::{Classes, IdMap, LabelMap, overlay};
use std::path::Path;

/// What a prediction is written as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Format {
    /// Class colours over the picture.
    Color {
        /// 0 shows the picture, 1 the colours.
        opacity: f32,
    },
    /// Palette PNG of train ids.
    TrainIds,
    /// Gray PNG of the data set's own ids, for test servers.
    LabelIds,
}

/// Writes one prediction as PNG.
///
/// # Errors
/// [`crate::base::Error::Io`] when the file can't be written.
pub fn write_prediction(
    path: &Path,
    image: &RgbImage,
    prediction: &LabelMap,
    classes: &Classes,
    id_map: &IdMap,
    format: Format,
) -> Result<()> {
    let size = (prediction.height, prediction.width);
    match format {
        Format::Color { opacity } => images::write_png(path, &overlay(image, prediction, &classes.palette, opacity), &[]),
        Format::TrainIds => images::write_palette_png(path, size, &prediction.ids, &classes.palette, &[]),
        Format::LabelIds => images::write_gray_png(path, size, &id_map.to_label_ids(prediction, 0), &[]),
    }
}
