//! Loops compiled for several vector instruction sets, chosen at run time, and the reductions and functions they use.

/// Defines a function whose body is compiled for the portable target, AVX2 and AVX-512, and picks the best at run time.
///
/// Generic parameters go into square brackets: `fn map[F: Fn(f32) -> f32](…)`. Functions called in the body must be
/// `#[inline(always)]` to be compiled along; `fold`, `sum` and the like of iterators are not, so that reductions are written as
/// loops. Multiply-add is fused only where the code says `mul_add`, so all variants give the same bits (without the instruction it is
/// slow).
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$($generics:tt)*])? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
                    portable($($arg),*)
                }
                #[target_feature(enable = "fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
                    portable($($arg),*)
                }
                if std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("avx512vl")
                    && std::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the processor was just found to have these instructions.
                    return unsafe { avx512($($arg),*) };
                }
                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use vectorised;

use std::hint::black_box;

/// Independent partial results of a reduction: the compiler may not reorder float sums, so the code says how.
const LANES: usize = 32;

/// Values summed in f32 before the partial sum goes into an f64 total.
const BLOCK: usize = 4096;

/// Combines the lanes by halves: a chain of single steps would take longer than a row.
///
/// The lanes go through memory: otherwise the compiler may fit the loop that made them to the width of the last halves, and takes a
/// quarter of the registers' width there (2.5 times as long for 512 values, and the same for 40).
#[inline(always)]
fn fold(lanes: [f32; LANES], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = black_box(lanes);
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = step(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Combines lane by lane, then over the lanes, then with the remainder.
#[inline(always)]
fn reduce(xs: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let mut chunks = xs.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, *x);
        }
    }
    let mut rest = start;
    for x in chunks.remainder() {
        rest = step(rest, *x);
    }
    step(fold(lanes, &step), rest)
}

/// Largest value; −∞ for nothing.
#[inline(always)]
pub fn max(xs: &[f32]) -> f32 {
    reduce(xs, f32::NEG_INFINITY, |a, x| if x > a { x } else { a })
}

/// Σ term(x), long sums in double precision.
#[inline(always)]
pub fn sum(xs: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0;
    for block in xs.chunks(BLOCK) {
        total += f64::from(sum_block(block, &term));
    }
    total
}

#[inline(always)]
fn sum_block(xs: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = xs.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    let mut rest = 0.0;
    for x in chunks.remainder() {
        rest += term(*x);
    }
    fold(lanes, |a, x| a + x) + rest
}

/// Σ x·y over equally long slices, long sums in double precision.
#[inline(always)]
pub fn dot(xs: &[f32], ys: &[f32]) -> f64 {
    sum_pairs(xs, ys, |x, y| x * y)
}

/// Σ term(x, y) over equally long slices, long sums in double precision.
#[inline(always)]
pub fn sum_pairs(xs: &[f32], ys: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (x, y) in xs.chunks(BLOCK).zip(ys.chunks(BLOCK)) {
        total += f64::from(sum_pairs_block(x, y, &term));
    }
    total
}

#[inline(always)]
fn sum_pairs_block(xs: &[f32], ys: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (mut x_chunks, mut y_chunks) = (xs.chunks_exact(LANES), ys.chunks_exact(LANES));
    for (x, y) in (&mut x_chunks).zip(&mut y_chunks) {
        for i in 0..LANES {
            lanes[i] += term(x[i], y[i]);
        }
    }
    let mut rest = 0.0;
    for (x, y) in x_chunks.remainder().iter().zip(y_chunks.remainder()) {
        rest += term(*x, *y);
    }
    fold(lanes, |a, x| a + x) + rest
}

/// Σ of both results of term(x, y) over equally long slices, long sums in double precision: one pass, and the lanes of both are
/// combined side by side, which for short rows is most of the time.
#[inline(always)]
pub fn sum_both(xs: &[f32], ys: &[f32], term: impl Fn(f32, f32) -> (f32, f32)) -> (f64, f64) {
    let mut total = (0.0, 0.0);
    for (x, y) in xs.chunks(BLOCK).zip(ys.chunks(BLOCK)) {
        let (a, b) = sum_both_block(x, y, &term);
        total = (total.0 + f64::from(a), total.1 + f64::from(b));
    }
    total
}

#[inline(always)]
fn sum_both_block(xs: &[f32], ys: &[f32], term: impl Fn(f32, f32) -> (f32, f32)) -> (f32, f32) {
    let (mut first, mut second) = ([0f32; LANES], [0f32; LANES]);
    let (mut x_chunks, mut y_chunks) = (xs.chunks_exact(LANES), ys.chunks_exact(LANES));
    for (x, y) in (&mut x_chunks).zip(&mut y_chunks) {
        for i in 0..LANES {
            let (a, b) = term(x[i], y[i]);
            first[i] += a;
            second[i] += b;
        }
    }
    let mut rest = (0.0, 0.0);
    for (x, y) in x_chunks.remainder().iter().zip(y_chunks.remainder()) {
        let (a, b) = term(*x, *y);
        rest = (rest.0 + a, rest.1 + b);
    }
    (fold(first, |a, x| a + x) + rest.0, fold(second, |a, x| a + x) + rest.1)
}

/// Replaces every x by e^(x − shift) and returns the sum.
#[inline(always)]
pub fn exp_shifted(xs: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = xs.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - shift);
            *lane += *x;
        }
    }
    let mut total = 0.0;
    for x in chunks.into_remainder() {
        *x = exp(*x - shift);
        total += *x;
    }
    fold(lanes, |a, x| a + x) + total
}

/// A polynomial, coefficients from the highest power down, with fused multiply-add.
#[inline(always)]
pub fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, *coefficient);
    }
    sum
}

/// eˣ to about 2 units in the last place, clamped to the normal range of f32. NaN stays NaN.
///
/// x = n·ln 2 + r, then a polynomial in r (Cephes) scaled by 2ⁿ. Adding 1.5·2²³ rounds to an integer and leaves it in the
/// low bits, so that no conversion is needed.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = polynomial(r, [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p.mul_add(r * r, r) + 1.0) * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 2.4e-7 * exact, "{x}: {} {exact}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn reductions_agree_with_plain_loops() {
        let xs: Vec<f32> = (0..10_007).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        assert_eq!(sum(&xs, |x| x), xs.iter().map(|x| f64::from(*x)).sum::<f64>());
        assert_eq!(dot(&xs, &xs), xs.iter().map(|x| f64::from(x * x)).sum::<f64>());
        let both = sum_both(&xs, &xs, |x, y| (x, x * y));
        assert_eq!(both, (sum(&xs, |x| x), dot(&xs, &xs)));
        assert_eq!(max(&xs), 50.0);
    }
}
