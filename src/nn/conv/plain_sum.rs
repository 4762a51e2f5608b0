//! The convolution as its definition has it, in double precision: what tests compare the fast ways with.

use super::op::{Backward, InputAndWeight, Sizes};
use crate::base::Rng;

pub type Forward = fn(&Sizes, &[f32], &[f32], Option<&[f32]>) -> Vec<f32>;
pub type Gradients = fn(&Sizes, &Backward) -> InputAndWeight;

pub fn normal(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = Rng::stream(0, purpose, &[]);
    (0..len).map(|_| rng.normal()).collect()
}

/// Calls `visit(output, input, weight)` with the positions of every product of a convolution.
fn for_each_product(sizes: &Sizes, mut visit: impl FnMut(usize, usize, usize)) {
    let (inputs, outputs) = (sizes.in_channels, sizes.out_channels);
    let (own, per_group) = (inputs / sizes.spec.groups, outputs / sizes.spec.groups);
    let step = sizes.spec.stride;
    for (b, o, y, x) in positions(sizes.batch, outputs, sizes.out_height, sizes.out_width) {
        for (c, ky, kx, _) in positions(own, sizes.kernel_height, sizes.kernel_width, 1) {
            let column = (x * step + kx * sizes.spec.dilation).wrapping_sub(sizes.spec.padding);
            if let Some(row) = sizes.source_row(y, ky).filter(|_| column < sizes.width) {
                let at = ((b * outputs + o) * sizes.out_height + y) * sizes.out_width + x;
                let from = ((b * inputs + o / per_group * own + c) * sizes.height + row) * sizes.width + column;
                visit(at, from, (o * own + c) * sizes.area() + ky * sizes.kernel_width + kx);
            }
        }
    }
}

fn positions(a: usize, b: usize, c: usize, d: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

fn assert_close(what: &str, found: &[f32], exact: &[f64]) {
    let largest = exact.iter().fold(0f64, |most, x| most.max(x.abs()));
    let worst = found.iter().zip(exact).fold(0f64, |most, (a, b)| most.max((f64::from(*a) - b).abs()));
    assert_eq!(found.len(), exact.len());
    assert!(worst < 2e-6 * largest, "{what}: {worst:e} of {largest}");
}

/// Random arguments: inputs, weight, bias, gradient of the result.
fn arguments(sizes: &Sizes) -> [Vec<f32>; 4] {
    let weight = sizes.out_channels * sizes.in_channels / sizes.spec.groups * sizes.area();
    let out = sizes.batch * sizes.out_channels * sizes.out_plane();
    let inputs = sizes.batch * sizes.in_channels * sizes.in_plane();
    [normal("xs", inputs), normal("weight", weight), normal("bias", sizes.out_channels), normal("gradient", out)]
}

/// Result and gradients are those of the definition, within 2e-6 of the largest value; unwanted gradients are left out.
pub fn check(sizes: &Sizes, forward: Forward, backward: Gradients) {
    check_with(sizes, |x| x, forward, backward);
}

/// As [`check`], for methods that round what they multiply: with arguments that are rounded already.
pub fn check_with(sizes: &Sizes, round: impl Fn(f32) -> f32, forward: Forward, backward: Gradients) {
    let [xs, weight, bias, gradient] = &arguments(sizes).map(|values| values.into_iter().map(&round).collect::<Vec<_>>());
    let of_channel = |i: usize| f64::from(bias[i / sizes.out_plane() % sizes.out_channels]);
    let mut exact: Vec<f64> = (0..gradient.len()).map(of_channel).collect();
    let (mut for_xs, mut for_weight) = (vec![0f64; xs.len()], vec![0f64; weight.len()]);
    for_each_product(sizes, |at, from, tap| {
        exact[at] += f64::from(xs[from]) * f64::from(weight[tap]);
        for_xs[from] += f64::from(gradient[at]) * f64::from(weight[tap]);
        for_weight[tap] += f64::from(gradient[at]) * f64::from(xs[from]);
    });
    assert_close("output", &forward(sizes, xs, weight, Some(bias)), &exact);
    let (found_xs, found_weight) = backward(sizes, &Backward { xs, weight, gradient, wanted: (true, true) });
    assert_close("inputs", &found_xs.unwrap(), &for_xs);
    assert_close("weight", &found_weight.unwrap(), &for_weight);
    assert_eq!(backward(sizes, &Backward { xs, weight, gradient, wanted: (false, false) }), (None, None));
}

/// Every image has the same result alone.
pub fn check_batch(sizes: &Sizes, forward: Forward) {
    let [xs, weight, bias, _] = &arguments(sizes);
    let all = forward(sizes, xs, weight, Some(bias));
    let images = xs.chunks_exact(xs.len() / sizes.batch).zip(all.chunks_exact(all.len() / sizes.batch));
    for (image, result) in images {
        assert!(forward(&Sizes { batch: 1, ..*sizes }, image, weight, Some(bias)) == result);
    }
}

/// One, two and three threads give the same bits.
pub fn check_threads(sizes: &Sizes, forward: Forward, backward: Gradients) {
    let [xs, weight, bias, gradient] = &arguments(sizes);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let gradients = || backward(sizes, &Backward { xs, weight, gradient, wanted: (true, true) });
        pool.install(|| (forward(sizes, xs, weight, Some(bias)), gradients()))
    };
    let one = run(1);
    assert!(run(2) == one && run(3) == one);
}
