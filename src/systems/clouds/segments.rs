//! A picture cut into segments of like colour, by the graph of its pixels.
//!
//! # Source
//! Felzenszwalb and Huttenlocher, "Efficient graph-based image segmentation", IJCV 2004.

use rayon::prelude::*;

/// How a picture is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentsConfig {
    /// Standard deviation in pixels of the Gaussian that the picture is smoothed with first; 0: it is not.
    pub sigma: f64,
    /// The paper's k, for colours of 0…255: the larger, the larger are segments.
    pub scale: f64,
    /// Segments have at least this many pixels.
    pub min_size: usize,
}

/// A Gaussian ends at this many standard deviations.
const REACH: f64 = 4.0;

/// A segment for every pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// Number of the segment of each pixel, row-major; segments are numbered in the order of their first pixels.
    pub of_pixel: Vec<u32>,
    /// Number of segments.
    pub count: usize,
}

impl Segments {
    /// Cuts a picture of `size` (height, width) whose `colors` are three numbers of 0…255 for each pixel, row-major. Neighbours
    /// are the eight around a pixel; edges of equal weight are taken in a fixed order.
    pub fn new(colors: &[[f64; 3]], size: (usize, usize), config: &SegmentsConfig) -> Self {
        let smooth = gaussian(colors, size, config.sigma);
        let edges = edges(&smooth, size);
        let mut forest = Forest::new(smooth.len());
        for edge in &edges {
            let (a, b) = (forest.root(edge.ends.0), forest.root(edge.ends.1));
            // Two segments join when the edge between them is lighter than what holds each of them together.
            if a != b && edge.weight < forest.bound(a, config.scale).min(forest.bound(b, config.scale)) {
                forest.join(a, b, edge.weight);
            }
        }
        for edge in &edges {
            let (a, b) = (forest.root(edge.ends.0), forest.root(edge.ends.1));
            if a != b && forest.size(a).min(forest.size(b)) < config.min_size {
                forest.join(a, b, edge.weight);
            }
        }
        forest.numbered()
    }
}

struct Edge {
    weight: f64,
    ends: (u32, u32),
}

/// The edges to the right, down, right down and right up of all pixels, lightest first, else in that order, row by row.
fn edges(colors: &[[f64; 3]], (height, width): (usize, usize)) -> Vec<Edge> {
    let mut edges = Vec::with_capacity(4 * colors.len());
    // Columns and rows from one end of an edge to the other, and the first row that has such an edge.
    for (right, down, first) in [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, -1isize, 1)] {
        for y in first..height.saturating_sub(usize::from(down > 0)) {
            for x in 0..width.saturating_sub(right) {
                let from = y * width + x;
                let to = (y.wrapping_add_signed(down)) * width + x + right;
                let square: f64 = (0..3).map(|c| (colors[from][c] - colors[to][c]).powi(2)).sum();
                edges.push(Edge { weight: square.sqrt(), ends: (from as u32, to as u32) });
            }
        }
    }
    // A stable sort keeps the order of equals, whatever the number of threads.
    edges.par_sort_by(|a, b| a.weight.total_cmp(&b.weight));
    edges
}

/// Trees of pixels: one for each segment.
struct Forest {
    parents: Vec<u32>,
    sizes: Vec<u32>,
    /// Weight of the heaviest edge in the tree of a root.
    heaviest: Vec<f64>,
}

impl Forest {
    fn new(pixels: usize) -> Self {
        Self { parents: (0..pixels as u32).collect(), sizes: vec![1; pixels], heaviest: vec![0.0; pixels] }
    }

    fn root(&mut self, mut at: u32) -> u32 {
        while self.parents[at as usize] != at {
            // Halves the path on the way.
            let parent = self.parents[self.parents[at as usize] as usize];
            self.parents[at as usize] = parent;
            at = parent;
        }
        at
    }

    fn size(&self, root: u32) -> usize {
        self.sizes[root as usize] as usize
    }

    fn bound(&self, root: u32, scale: f64) -> f64 {
        self.heaviest[root as usize] + scale / f64::from(self.sizes[root as usize])
    }

    fn join(&mut self, a: u32, b: u32, weight: f64) {
        let (large, small) = if self.sizes[a as usize] >= self.sizes[b as usize] { (a, b) } else { (b, a) };
        self.parents[small as usize] = large;
        self.sizes[large as usize] += self.sizes[small as usize];
        self.heaviest[large as usize] = weight;
    }

    fn numbered(mut self) -> Segments {
        let mut numbers = vec![u32::MAX; self.parents.len()];
        let mut count = 0;
        let of_pixel = (0..self.parents.len() as u32)
            .map(|pixel| {
                let number = &mut numbers[self.root(pixel) as usize];
                if *number == u32::MAX {
                    *number = count;
                    count += 1;
                }
                *number
            })
            .collect();
        Segments { of_pixel, count: count as usize }
    }
}

/// Smooths rows, then columns; beyond the border the picture is mirrored, its border pixels included.
fn gaussian(colors: &[[f64; 3]], (height, width): (usize, usize), sigma: f64) -> Vec<[f64; 3]> {
    if sigma <= 0.0 || colors.is_empty() {
        return colors.to_vec();
    }
    let reach = (REACH * sigma + 0.5) as isize;
    let weights: Vec<f64> = (-reach..=reach).map(|x| (-0.5 * (x as f64 / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mirrored = |at: isize, length: usize| {
        let at = at.rem_euclid(2 * length as isize) as usize;
        at.min(2 * length - 1 - at)
    };
    let pass = |from: &[[f64; 3]], place: &(dyn Fn(usize, isize) -> usize + Sync)| -> Vec<[f64; 3]> {
        let pixel = |at: usize| {
            let mut sum = [0.0; 3];
            for (step, weight) in (-reach..=reach).zip(&weights) {
                let other = from[place(at, step)];
                (0..3).for_each(|c| sum[c] += other[c] * weight);
            }
            sum.map(|value| value / total)
        };
        (0..from.len()).into_par_iter().map(pixel).collect()
    };
    let down = pass(colors, &|at, step| mirrored((at / width) as isize + step, height) * width + at % width);
    pass(&down, &|at, step| at / width * width + mirrored((at % width) as isize + step, width))
}
