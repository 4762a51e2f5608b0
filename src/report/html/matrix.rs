//! A confusion matrix as a table of percentages.

use maud::{Markup, html};

/// Counts by label (row) and prediction (column).
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    /// Says whose it is.
    pub caption: String,
    /// Class names.
    pub classes: Vec<String>,
    /// One row per label.
    pub counts: Vec<Vec<u64>>,
}

/// Each row in percent of its pixels; shaded by share. Numbers below 0.5 % are left out, so that what matters stands out.
pub fn matrix(matrix: &Matrix) -> Markup {
    let name = |at: usize| matrix.classes.get(at).map_or("?", String::as_str);
    html! {
        div.scroll {
            table.matrix {
                @if !matrix.caption.is_empty() { caption { (matrix.caption) } }
                thead {
                    tr {
                        td {}
                        @for column in 0..matrix.classes.len() { th scope="col" { span { (name(column)) } } }
                    }
                }
                tbody {
                    @for (label, counts) in matrix.counts.iter().enumerate() {
                        tr {
                            th scope="row" { (name(label)) }
                            @for (prediction, share) in shares(counts).into_iter().enumerate() {
                                td.hit[label == prediction] style=[shade(share)] title=(title(name(label), name(prediction), share)) {
                                    @if let Some(percent) = percent(share) { (percent) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// None for a class without pixels.
fn shares(counts: &[u64]) -> Vec<Option<f64>> {
    let total: u64 = counts.iter().sum();
    counts.iter().map(|&count| (total > 0).then(|| count as f64 / total as f64)).collect()
}

fn shade(share: Option<f64>) -> Option<String> {
    // The square root lifts the small shares that a reader looks for.
    share.filter(|share| *share >= 0.005).map(|share| format!("--share:{:.2}", share.sqrt()))
}

fn percent(share: Option<f64>) -> Option<String> {
    share.filter(|share| *share >= 0.005).map(|share| format!("{:.0}", 100.0 * share))
}

fn title(label: &str, prediction: &str, share: Option<f64>) -> String {
    match share {
        Some(share) => format!("{label} seen as {prediction}: {:.1} %", 100.0 * share),
        None => format!("no pixels of {label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shares_of_their_label() {
        let counts = vec![vec![3, 1, 0], vec![0, 0, 0], vec![1, 0, 999]];
        let classes = ["sky", "<road>", "car"].map(String::from).to_vec();
        let text = matrix(&Matrix { caption: String::new(), classes, counts }).into_string();
        assert!(text.contains("title=\"sky seen as sky: 75.0 %\">75</td>"), "{text}");
        assert!(text.contains("title=\"no pixels of &lt;road&gt;\"></td>") && !text.contains("<road>"), "{text}");
        assert!(text.contains("title=\"car seen as sky: 0.1 %\"></td>"), "small shares are left out: {text}");
        assert!(!text.contains("NaN"));
        matrix(&Matrix::default());
    }
}
