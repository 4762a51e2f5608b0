//! Which query answers for which target: the assignment of least cost.

use super::Target;
use crate::base::{Error, Result};
use crate::nn::{sample_masks, sample_points, sigmoid_of, softmax, softplus};
use candle_core::{Device, Tensor};

/// Weights of the three parts of a cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct CostWeights {
    pub class: f64,
    pub mask: f64,
    pub dice: f64,
}

/// What each target would cost each query of one image, row by row: Q·T values.
///
/// # Shapes
/// `logits` (Q, K + 1), `masks` (Q, h, w), `points` P pairs (x, y) in 0…1
///
/// # Source
/// Mask2Former, section 3.3: probability of the class, cross-entropy and Dice of the masks at points they all share.
pub(super) fn costs(
    logits: &Tensor,
    masks: &Tensor,
    target: &Target,
    points: Vec<f32>,
    weights: CostWeights,
) -> Result<Vec<f64>> {
    let (count, targets) = (points.len() / 2, target.labels.len());
    let wanted = sample_masks(&target.planes(), target.size, &points, count)?;
    let target_sums: Vec<f64> = wanted.chunks_exact(count).map(total).collect();
    let wanted = Tensor::from_vec(wanted, (targets, count), &Device::Cpu)?.t()?;
    let found = sample_points(&masks.detach(), points, count)?.to_device(&Device::Cpu)?; // (Q, P)
    let overlaps = found.matmul(&wanted)?.flatten_all()?.to_vec1::<f32>()?; // Σ x·t
    let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
    let softplus_sums: Vec<f64> =
        found.chunks_exact(count).map(|row| row.iter().map(|x| f64::from(softplus(*x))).sum()).collect();
    let inside: Vec<f32> = found.into_iter().map(sigmoid_of).collect();
    let inside_sums: Vec<f64> = inside.chunks_exact(count).map(total).collect();
    let queries = inside_sums.len();
    let shared = Tensor::from_vec(inside, (queries, count), &Device::Cpu)?.matmul(&wanted)?.flatten_all()?.to_vec1::<f32>()?;
    let probabilities = softmax(&logits.detach())?.to_vec2::<f32>()?;
    let mut costs = Vec::with_capacity(queries * targets);
    for query in 0..queries {
        for (index, label) in target.labels.iter().enumerate() {
            let at = query * targets + index;
            let class = -f64::from(probabilities[query][*label as usize]);
            let mask = (softplus_sums[query] - f64::from(overlaps[at])) / count as f64;
            let both = inside_sums[query] + target_sums[index];
            let dice = 1.0 - (2.0 * f64::from(shared[at]) + 1.0) / (both + 1.0);
            costs.push(weights.class * class + weights.mask * mask + weights.dice * dice);
        }
    }
    Ok(costs)
}

fn total(xs: &[f32]) -> f64 {
    xs.iter().map(|x| f64::from(*x)).sum()
}

/// The assignment of least total cost, as many pairs (row, column) as the smaller of both counts, sorted by row.
///
/// # Errors
/// Costs that are not numbers: the predictions have diverged.
///
/// # Source
/// Shortest augmenting paths, D. Crouse, "On implementing 2D rectangular assignment algorithms" (2016); equal costs are
/// resolved as in SciPy's `linear_sum_assignment`.
pub fn assign(costs: &[f64], rows: usize, columns: usize) -> Result<Vec<(usize, usize)>> {
    if costs.len() != rows * columns || costs.iter().any(|cost| !cost.is_finite()) {
        return Err(Error::environment(
            format!("the matching of queries and targets found costs that are no numbers among {rows}×{columns}"),
            "the predictions have diverged: use a lower learning rate, or look for invalid values in images and weights",
        ));
    }
    if columns < rows {
        let turned: Vec<f64> = (0..columns).flat_map(|c| (0..rows).map(move |r| costs[r * columns + c])).collect();
        let mut pairs: Vec<(usize, usize)> = assign(&turned, columns, rows)?.into_iter().map(|(c, r)| (r, c)).collect();
        pairs.sort_unstable();
        return Ok(pairs);
    }
    let mut search = Search::new(costs, rows, columns);
    for row in 0..rows {
        search.augment(row);
    }
    Ok(search.column_of.into_iter().map(|column| column.unwrap_or_default()).enumerate().collect())
}

/// Rows assigned so far, with the prices that prove their assignment to be the cheapest.
struct Search<'a> {
    costs: &'a [f64],
    columns: usize,
    row_price: Vec<f64>,
    column_price: Vec<f64>,
    column_of: Vec<Option<usize>>,
    row_of: Vec<Option<usize>>,
}

impl<'a> Search<'a> {
    fn new(costs: &'a [f64], rows: usize, columns: usize) -> Self {
        let (row_price, column_price) = (vec![0.0; rows], vec![0.0; columns]);
        Self { costs, columns, row_price, column_price, column_of: vec![None; rows], row_of: vec![None; columns] }
    }

    /// Gives `start` a column, along the shortest path of reassignments to a free one.
    fn augment(&mut self, start: usize) {
        let mut distance = vec![f64::INFINITY; self.columns];
        let mut before = vec![start; self.columns]; // the row a column was reached from
        let mut open: Vec<usize> = (0..self.columns).rev().collect();
        let mut closed = Vec::new(); // columns, in the order they were reached
        let (mut row, mut shortest) = (start, 0.0);
        let end = loop {
            let mut nearest = (f64::INFINITY, 0);
            for (place, &column) in open.iter().enumerate() {
                let cost = self.costs[row * self.columns + column];
                let length = shortest + cost - self.row_price[row] - self.column_price[column];
                if length < distance[column] {
                    (distance[column], before[column]) = (length, row);
                }
                let free = self.row_of[column].is_none();
                if distance[column] < nearest.0 || (distance[column] == nearest.0 && free) {
                    nearest = (distance[column], place);
                }
            }
            shortest = nearest.0;
            let column = open.swap_remove(nearest.1);
            closed.push(column);
            match self.row_of[column] {
                None => break column,
                Some(next) => row = next,
            }
        };
        self.row_price[start] += shortest;
        for &column in &closed {
            if let Some(row) = self.row_of[column] {
                self.row_price[row] += shortest - distance[column];
            }
            self.column_price[column] -= shortest - distance[column];
        }
        let mut column = end;
        loop {
            let row = before[column];
            self.row_of[column] = Some(row);
            match self.column_of[row].replace(column) {
                Some(previous) if row != start => column = previous,
                _ => return,
            }
        }
    }
}
