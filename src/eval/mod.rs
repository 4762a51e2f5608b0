//! How good a segmenter is: the confusion matrix, the scores that follow from it, inference on whole pictures or sliding
//! windows, and the scoring of data sets and of folders with predictions.

mod confusion;
mod evaluator;
mod inference;
mod output;
mod predictions;
pub mod score_file;
mod scores;
mod series;
mod table;

pub use confusion::ConfusionMatrix;
pub use evaluator::{Evaluation, Evaluator, Resize};
pub use inference::{Inference, slide_windows};
pub use output::{Format, write_prediction};
pub use predictions::{PredictionIds, score_predictions};
pub use score_file::{ExamplePicture, ScoreFile, Subject};
pub use scores::{ClassScore, Scores};
pub use series::{SeedScores, Series};
pub use table::{series_table, table};
