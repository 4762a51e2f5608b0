//! Scores of the same training under several seeds.

use super::scores::mean;
use super::{ClassScore, Scores};
use serde::Serialize;

/// Mean and spread of scores. Serialises to the mean's object with `sd` and `seeds` beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Mean of every score over the runs that have it.
    #[serde(flatten)]
    pub mean: Scores,
    /// Sample standard deviation (n − 1); none where fewer than two runs have the score.
    pub sd: Scores,
    /// The runs.
    #[serde(rename = "seeds")]
    pub runs: Vec<SeedScores>,
}

/// One run of a series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeedScores {
    /// Its seed.
    pub seed: u64,
    /// Its scores.
    #[serde(flatten)]
    pub scores: Scores,
}

impl Series {
    /// Summary of `runs` on the same data set; none without runs.
    pub fn new(runs: Vec<SeedScores>) -> Option<Self> {
        let mean = summary(&runs, |values| mean(values.iter().copied().map(Some)))?;
        let sd = summary(&runs, sample_deviation)?;
        Some(Self { mean, sd, runs })
    }
}

/// Scores whose every value is `reduce` of the values of the runs.
fn summary(runs: &[SeedScores], reduce: impl Fn(&[f64]) -> Option<f64>) -> Option<Scores> {
    let of = |pick: &dyn Fn(&Scores) -> Option<f64>| reduce(&runs.iter().filter_map(|run| pick(&run.scores)).collect::<Vec<_>>());
    let first = &runs.first()?.scores;
    let class = |(id, class): (usize, &ClassScore)| ClassScore {
        name: class.name.clone(),
        iou: of(&|scores| scores.classes.get(id)?.iou),
        acc: of(&|scores| scores.classes.get(id)?.acc),
    };
    Some(Scores {
        miou: of(&|scores| scores.miou),
        macc: of(&|scores| scores.macc),
        aacc: of(&|scores| scores.aacc),
        miou16: of(&|scores| scores.miou16),
        miou13: of(&|scores| scores.miou13),
        classes: first.classes.iter().enumerate().map(class).collect(),
        images: first.images,
    })
}

fn sample_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values.iter().copied().map(Some)).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::ConfusionMatrix;
    use crate::labels::LabelMap;

    /// Scores of one picture of four pixels in which `hits` of class 0 are found and class 2 never occurs.
    fn run(seed: u64, hits: usize) -> SeedScores {
        let map = |ids: Vec<u8>| LabelMap { height: 1, width: 4, ids };
        let mut matrix = ConfusionMatrix::new(3);
        let predicted = (0..4).map(|i| u8::from(i >= hits)).collect();
        matrix.add(&map(predicted), &map(vec![0, 0, 0, 0])).unwrap();
        let names = ["a", "b", "c"].map(String::from);
        SeedScores { seed, scores: Scores::new(&matrix, &names, 1) }
    }

    #[test]
    fn mean_and_spread_over_seeds() {
        let series = Series::new(vec![run(0, 1), run(1, 2), run(2, 3)]).unwrap();
        assert_eq!((series.mean.classes[0].iou, series.sd.classes[0].iou), (Some(0.5), Some(0.25)));
        assert_eq!((series.mean.classes[2].iou, series.sd.classes[2].iou), (None, None));
        assert_eq!(series.mean.aacc, Some(0.5));
        let json = serde_json::to_value(&series).unwrap();
        assert_eq!((&json["mIoU"], &json["sd"]["mIoU"]), (&0.25.into(), &0.125.into()));
        assert_eq!((&json["seeds"][2]["seed"], &json["seeds"][2]["aAcc"]), (&2.into(), &0.75.into()));
    }

    #[test]
    fn one_run_has_no_spread() {
        let series = Series::new(vec![run(0, 1)]).unwrap();
        assert_eq!((series.mean.miou, series.sd.miou), (series.runs[0].scores.miou, None));
        assert!(Series::new(Vec::new()).is_none());
    }
}
