//! Masks as run lengths, in the layout of COCO's annotations.

use serde::{Deserialize, Serialize};

/// A mask as the lengths of its runs, column by column: first pixels outside, then inside, and so on. Written as JSON it is what
/// COCO's tools call uncompressed RLE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLengths {
    /// Height and width.
    pub size: [usize; 2],
    /// Lengths; the first may be 0.
    pub counts: Vec<usize>,
}

impl RunLengths {
    /// A mask of `size` (height, width), row-major.
    pub fn of_mask(mask: &[bool], size: (usize, usize)) -> Self {
        let (height, width) = size;
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for at in (0..height * width).filter(|at| mask[at % height * width + at / height]) {
            extend(&mut runs, at);
        }
        Self::of_runs(&runs, size)
    }

    /// One mask for each number below `count` in `numbers` (row-major).
    pub fn of_numbers(numbers: &[u32], count: usize, size: (usize, usize)) -> Vec<Self> {
        let (height, width) = size;
        let mut runs = vec![Vec::new(); count];
        for at in 0..height * width {
            extend(&mut runs[numbers[at % height * width + at / height] as usize], at);
        }
        runs.iter().map(|runs| Self::of_runs(runs, size)).collect()
    }

    /// From starts and lengths in ascending order.
    fn of_runs(runs: &[(usize, usize)], size: (usize, usize)) -> Self {
        let mut counts = Vec::with_capacity(2 * runs.len() + 1);
        let mut end = 0;
        for (start, length) in runs {
            counts.extend([start - end, *length]);
            end = start + length;
        }
        if end < size.0 * size.1 {
            counts.push(size.0 * size.1 - end);
        }
        Self { size: [size.0, size.1], counts }
    }

    /// Starts and lengths of the runs inside, counted column by column.
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let ends = self.counts.iter().scan(0, |end, length| {
            *end += length;
            Some((*end - length, *length))
        });
        ends.skip(1).step_by(2).filter(|(_, length)| *length > 0)
    }

    /// The mask, row-major.
    pub fn mask(&self) -> Vec<bool> {
        let [height, width] = self.size;
        let mut mask = vec![false; height * width];
        for (start, length) in self.runs() {
            (start..start + length).for_each(|at| mask[at % height * width + at / height] = true);
        }
        mask
    }

    /// Number of pixels inside.
    pub fn area(&self) -> usize {
        self.runs().map(|(_, length)| length).sum()
    }

    /// First and last column and row that hold a pixel: left, top, right, bottom; zeros for an empty mask.
    pub fn corners(&self) -> [usize; 4] {
        let height = self.size[0];
        let run = |(start, length): (usize, usize)| {
            let (left, right) = (start / height, (start + length - 1) / height);
            let (top, bottom) = if left == right { (start % height, (start + length - 1) % height) } else { (0, height - 1) };
            [left, top, right, bottom]
        };
        let join = |a: [usize; 4], b: [usize; 4]| [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])];
        self.runs().map(run).reduce(join).unwrap_or_default()
    }
}

fn extend(runs: &mut Vec<(usize, usize)>, at: usize) {
    match runs.last_mut() {
        Some((start, length)) if *start + *length == at => *length += 1,
        _ => runs.push((at, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(rows: &[&str]) -> RunLengths {
        let mask: Vec<bool> = rows.concat().chars().map(|c| c == '#').collect();
        let found = RunLengths::of_mask(&mask, (rows.len(), rows[0].len()));
        assert_eq!(found.mask(), mask);
        assert_eq!(found.area(), mask.iter().filter(|there| **there).count());
        found
    }

    #[test]
    fn runs_go_down_the_columns() {
        let found = encoded(&["#.#", "#..", "..#"]);
        assert_eq!((found.counts.clone(), found.corners()), (vec![0, 2, 4, 1, 1, 1], [0, 0, 2, 2]));
        let found = encoded(&["....", ".##.", "...."]);
        assert_eq!((found.counts.clone(), found.corners()), (vec![4, 1, 2, 1, 4], [1, 1, 2, 1]));
        assert_eq!(encoded(&["...", "..."]).corners(), [0; 4]);
        assert_eq!(encoded(&["##", "##"]).counts, [0, 4]);
    }

    #[test]
    fn numbers_give_one_mask_each() {
        let numbers = [0, 1, 1, 0, 2, 2];
        let found = RunLengths::of_numbers(&numbers, 4, (2, 3));
        for (number, found) in found.iter().enumerate() {
            let mask: Vec<bool> = numbers.iter().map(|other| *other == number as u32).collect();
            assert_eq!(*found, RunLengths::of_mask(&mask, (2, 3)));
        }
    }
}
