//! Products whose factors are rounded to bf16, by the matrix unit of Intel's server processors (AMX): sums stay f32, and take a
//! fraction of the time. Chosen for the whole process, see [`allow_bf16`].
//!
//! The unit multiplies tiles: 16 rows of 32 values by 16 pairs of rows of 16 values. A left factor lies in memory row by row; of a
//! right factor two rows are interleaved, so that every 32 bits hold the values of one column in both.

use super::{Matrix, Threads};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of a tile, and columns of a right factor's.
pub const SIDE: usize = 16;
/// Rows and columns of a result computed at a time: two tiles each way.
pub const BLOCK: usize = 2 * SIDE;
/// Values that one instruction sums up: a tile's width in bf16.
pub const DEPTH: usize = 32;

/// Whether products round their factors to bf16.
static CHOSEN: AtomicBool = AtomicBool::new(false);

/// Lets products on the processor round their factors to bf16 (8 bits instead of 24): what `--dtype bf16` means there. Tensors, sums
/// and everything else stay f32. Convolutions with a stride, and products with fewer than 16
/// features, stay f32 too. False: this processor has no unit for
/// it, and nothing changes.
pub fn allow_bf16(allow: bool) -> bool {
    let usable = !allow || unit::open();
    if usable {
        CHOSEN.store(allow, Ordering::Relaxed);
    }
    usable
}

/// Whether this processor has a matrix unit for bf16, chosen or not.
pub fn bf16_available() -> bool {
    unit::open()
}

/// See [`allow_bf16`].
pub fn bf16_chosen() -> bool {
    CHOSEN.load(Ordering::Relaxed)
}

/// A block of a result.
pub type Block = [f32; BLOCK * BLOCK];

/// The factors of a [`Block`]: where they start, in values of bf16, and what they are in.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// Left: rows.
    pub a: &'a [u16],
    /// Distance of its rows.
    pub a_pitch: usize,
    /// Right: pairs of rows, interleaved.
    pub b: &'a [u16],
    /// Distance of its pairs of rows.
    pub b_pitch: usize,
    /// From the first 16 columns to the other 16.
    pub b_other: usize,
}

/// From the start of the factors to those of one instruction's depth, left and right.
pub type Step = [usize; 2];

/// What computes blocks: a thread's tiles, set up.
pub struct Tiles(());

impl Tiles {
    /// Runs `work` with the tiles of this thread. `work` must not hand over to other threads.
    pub fn with<R>(work: impl FnOnce(&Self) -> R) -> R {
        assert!(unit::open(), "this processor has no matrix unit");
        unit::set_up();
        let result = work(&Self(()));
        unit::release();
        result
    }

    /// The sum over all steps.
    pub fn block(&self, factors: Factors, steps: &[Step], out: &mut Block) {
        let Factors { a, a_pitch, b, b_pitch, b_other } = factors;
        let (far_a, far_b) = steps.iter().fold((0, 0), |far, step| (far.0.max(step[0]), far.1.max(step[1])));
        let a_end = far_a + (BLOCK - 1) * a_pitch + DEPTH;
        let b_end = far_b + (SIDE - 1) * b_pitch + b_other + DEPTH;
        assert!(a_end <= a.len() && b_end <= b.len(), "tiles outside of their factors");
        if steps.is_empty() {
            out.fill(0.0);
        } else {
            unit::block(factors, steps, out);
        }
    }
}

/// A left factor: rows and depth rounded up with zeros.
pub struct Left {
    pub values: Vec<u16>,
    pub pitch: usize,
}

impl Left {
    /// Of `a` (m, k).
    fn new((m, k): (usize, usize), a: Matrix) -> Self {
        let pitch = k.next_multiple_of(DEPTH);
        let mut values = vec![0; m.next_multiple_of(BLOCK) * pitch];
        if a.column == 1 {
            for (row, out) in values.chunks_exact_mut(pitch).take(m).enumerate() {
                narrow(&a.values[row * a.row..][..k], out);
            }
            return Self { values, pitch };
        }
        // By tiles, so that what is written stays in the cache.
        let mut tile = [[0; SIDE]; DEPTH];
        for (first, out) in (0..m).step_by(SIDE).zip(values.chunks_exact_mut(SIDE * pitch)) {
            let rows = SIDE.min(m - first);
            for start in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - start);
                for (i, column) in tile[..depth].iter_mut().enumerate() {
                    a.column_into(start + i, first, &mut column[..rows]);
                }
                for (row, out) in out.chunks_exact_mut(pitch).enumerate().take(rows) {
                    out[start..][..depth].iter_mut().zip(&tile).for_each(|(out, column)| *out = column[row]);
                }
            }
        }
        Self { values, pitch }
    }
}

impl Matrix<'_> {
    /// Values of a column from row `first` on, as bf16.
    fn column_into(&self, column: usize, first: usize, out: &mut [u16]) {
        let values = &self.values[first * self.row + column * self.column..];
        match self.row {
            1 => narrow(&values[..out.len()], out),
            row => values.iter().step_by(row).zip(out).for_each(|(x, out)| *out = rounded(*x)),
        }
    }
}

/// A right factor: columns and depth rounded up with zeros.
struct Right {
    values: Vec<u16>,
    /// Of a pair of rows.
    pitch: usize,
}

impl Right {
    /// Of `b` (k, n).
    fn new((k, n): (usize, usize), b: Matrix, parallel: bool) -> Self {
        let pitch = 2 * n.next_multiple_of(BLOCK);
        let mut values = vec![0; k.next_multiple_of(DEPTH) / 2 * pitch];
        let fill = |(index, out): (usize, &mut [u16])| {
            let rows = index * DEPTH..k.min((index + 1) * DEPTH);
            if b.column == 1 { interleave_rows(b, rows, n, pitch, out) } else { interleave_columns(b, rows, n, pitch, out) }
        };
        if parallel {
            values.par_chunks_mut(DEPTH / 2 * pitch).enumerate().for_each(fill);
        } else {
            values.chunks_mut(DEPTH / 2 * pitch).enumerate().for_each(fill);
        }
        Self { values, pitch }
    }
}

/// Rows of a right factor that lie in memory one by one.
fn interleave_rows(b: Matrix, rows: Range<usize>, n: usize, pitch: usize, out: &mut [u16]) {
    let row = |depth: usize| &b.values[depth * b.row..][..n];
    for (first, out) in rows.clone().step_by(2).zip(out.chunks_exact_mut(pitch)) {
        if first + 1 < rows.end {
            interleave(row(first), row(first + 1), out);
        } else {
            row(first).iter().zip(out.iter_mut().step_by(2)).for_each(|(x, out)| *out = rounded(*x));
        }
    }
}

/// Rows of a right factor whose columns lie in memory one by one.
fn interleave_columns(b: Matrix, rows: Range<usize>, n: usize, pitch: usize, out: &mut [u16]) {
    let mut tile = [[0; DEPTH]; SIDE];
    for first in (0..n).step_by(SIDE) {
        let count = SIDE.min(n - first);
        for (i, column) in tile[..count].iter_mut().enumerate() {
            b.column_into(first + i, rows.start, &mut column[..rows.len()]);
            column[rows.len()..].fill(0);
        }
        for (pair, out) in out.chunks_exact_mut(pitch).enumerate() {
            for (out, column) in out[2 * first..][..2 * count].as_chunks_mut::<2>().0.iter_mut().zip(&tile) {
                *out = [column[2 * pair], column[2 * pair + 1]];
            }
        }
    }
}

/// As [`super::gemm`]; with [`allow_bf16`], factors are rounded where `wide`. That has to follow from sizes that are the same for an
/// item alone and in a batch, or their results would differ.
pub fn product(
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    out_stride: usize,
    add: bool,
    scale: f32,
    threads: Threads,
    wide: bool,
) {
    if wide && bf16_chosen() {
        gemm((m, n, k), a, b, out, out_stride, add, scale, threads == Threads::All);
    } else {
        super::gemm((m, n, k), a, b, out, out_stride, add, scale, threads);
    }
}

fn gemm(
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    out_stride: usize,
    add: bool,
    scale: f32,
    parallel: bool,
) {
    assert!(a.holds(m, k) && b.holds(k, n) && Matrix::rows(out, out_stride).holds(m, n) && out_stride >= n, "gemm sizes");
    if m * n == 0 {
        return;
    }
    let left = Left::new((m, k), a);
    let right = Right::new((k, n), b, parallel);
    let steps: Vec<Step> = (0..left.pitch / DEPTH).map(|step| [step * DEPTH, step * SIDE * right.pitch]).collect();
    let rows = |(index, out): (usize, &mut [f32])| {
        let count = BLOCK.min(m - index * BLOCK);
        let a = &left.values[index * BLOCK * left.pitch..];
        Tiles::with(|tiles| {
            let mut block = [0.0; BLOCK * BLOCK];
            for start in (0..n).step_by(BLOCK) {
                let b = &right.values[2 * start..];
                let factors = Factors { a, a_pitch: left.pitch, b, b_pitch: right.pitch, b_other: 2 * SIDE };
                tiles.block(factors, &steps, &mut block);
                let width = BLOCK.min(n - start);
                for (from, row) in block.chunks_exact(BLOCK).zip(out.chunks_mut(out_stride)).take(count) {
                    let pairs = row[start..][..width].iter_mut().zip(from);
                    match add {
                        true => pairs.for_each(|(out, x)| *out += scale * x),
                        false => pairs.for_each(|(out, x)| *out = scale * x),
                    }
                }
            }
        });
    };
    let end = (m - 1) * out_stride + n;
    if parallel {
        out[..end].par_chunks_mut(BLOCK * out_stride).enumerate().for_each(rows);
    } else {
        out[..end].chunks_mut(BLOCK * out_stride).enumerate().for_each(rows);
    }
}

/// The nearest bf16, of two equally near ones the even one.
pub fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// [`rounded`] of every value.
pub fn narrow(from: &[f32], to: &mut [u16]) {
    let done = unit::narrow(from, to);
    from[done..].iter().zip(&mut to[done..]).for_each(|(x, out)| *out = rounded(*x));
}

/// [`rounded`] values of both in turn.
pub fn interleave(first: &[f32], second: &[f32], to: &mut [u16]) {
    let done = unit::interleave(first, second, to);
    for (i, (first, second)) in first.iter().zip(second).enumerate().skip(done) {
        (to[2 * i], to[2 * i + 1]) = (rounded(*first), rounded(*second));
    }
}

/// The instructions.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code)]
mod unit {
    use super::{BLOCK, Block, Factors, SIDE, Step};
    use std::arch::asm;
    use std::arch::x86_64::{
        __cpuid, __cpuid_count, __m256i, __m512i, _mm256_storeu_si256, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
        _mm512_loadu_ps, _mm512_or_si512, _mm512_slli_epi32, _mm512_storeu_si512,
    };
    use std::sync::OnceLock;

    /// Whether there is a unit and the system lets this process use it.
    pub fn open() -> bool {
        static OPEN: OnceLock<bool> = OnceLock::new();
        *OPEN.get_or_init(|| has_instructions() && permitted())
    }

    fn has_instructions() -> bool {
        let vectors = std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16");
        // Leaf 7: AMX-BF16 is bit 22, AMX-TILE bit 24.
        vectors && __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 22 & 0b101 == 0b101
    }

    /// Linux keeps the tiles' state for processes that asked for it.
    fn permitted() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        // SAFETY: a system call with numbers for arguments.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
    }

    /// Eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Setup {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SETUP: Setup = Setup {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    pub fn set_up() {
        // SAFETY: the unit is open, and the setup is valid; compilers use no tiles of their own.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SETUP, options(nostack, readonly)) };
    }

    pub fn release() {
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// The caller has checked that all tiles lie inside the factors.
    pub fn block(factors: Factors, steps: &[Step], out: &mut Block) {
        let Factors { a, a_pitch, b, b_pitch, b_other } = factors;
        // SAFETY: reads the steps and, at distances that were checked, the factors; writes four tiles into the block. The tiles were
        // set up in this thread by what made `Tiles`.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {t}, [{steps}]",
                "mov {u}, [{steps} + 8]",
                "lea {t}, [{a} + 2*{t}]",
                "lea {u}, [{b} + 2*{u}]",
                "tileloadd tmm4, [{t} + {a_pitch}*1]",
                "add {t}, {a_other}",
                "tileloadd tmm6, [{u} + {b_pitch}*1]",
                "add {u}, {b_other}",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{t} + {a_pitch}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{u} + {b_pitch}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {steps}, 16",
                "dec {left}",
                "jnz 2b",
                "mov {t}, 128",
                "tilestored [{out} + {t}*1], tmm0",
                "tilestored [{out} + {t}*1 + 64], tmm1",
                "tilestored [{out} + {t}*1 + 2048], tmm2",
                "tilestored [{out} + {t}*1 + 2112], tmm3",
                t = out(reg) _,
                u = out(reg) _,
                steps = inout(reg) steps.as_ptr() => _,
                left = inout(reg) steps.len() => _,
                a = in(reg) a.as_ptr(),
                b = in(reg) b.as_ptr(),
                a_pitch = in(reg) 2 * a_pitch,
                a_other = in(reg) 2 * SIDE * a_pitch,
                b_pitch = in(reg) 2 * b_pitch,
                b_other = in(reg) 2 * b_other,
                out = in(reg) out.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        const { assert!(BLOCK * 4 == 128 && SIDE * BLOCK * 4 == 2048) };
    }

    /// Rounds as many values as fill vectors, and says how many.
    pub fn narrow(from: &[f32], to: &mut [u16]) -> usize {
        // SAFETY: there are such instructions where the unit is open.
        if open() { unsafe { narrow_vectors(from, to) } } else { 0 }
    }

    #[target_feature(enable = "avx512f,avx512bf16,avx512vl,avx512bw")]
    fn narrow_vectors(from: &[f32], to: &mut [u16]) -> usize {
        let to = &mut to[..from.len()];
        for (from, to) in from.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<16>().0) {
            // SAFETY: 16 values are read and written.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bf16(from)) };
        }
        from.len() / 16 * 16
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512vl,avx512bw")]
    fn bf16(from: &[f32; 16]) -> __m256i {
        // SAFETY: 16 values are read; both types are 256 bits without a meaning of their own.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr()))) }
    }

    /// As [`narrow`], for two rows.
    pub fn interleave(first: &[f32], second: &[f32], to: &mut [u16]) -> usize {
        // SAFETY: as above.
        if open() { unsafe { interleave_vectors(first, second, to) } } else { 0 }
    }

    #[target_feature(enable = "avx512f,avx512bf16,avx512vl,avx512bw")]
    fn interleave_vectors(first: &[f32], second: &[f32], to: &mut [u16]) -> usize {
        let count = first.len().min(second.len());
        let rows = first[..count].as_chunks::<16>().0.iter().zip(second[..count].as_chunks::<16>().0);
        for ((first, second), to) in rows.zip(to[..2 * count].as_chunks_mut::<32>().0) {
            let (low, high) = (_mm512_cvtepu16_epi32(bf16(first)), _mm512_cvtepu16_epi32(bf16(second)));
            let both: __m512i = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
            // SAFETY: 32 values are written.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), both) };
        }
        count / 16 * 16
    }
}

/// No other processor or system has the unit.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod unit {
    use super::{Block, Factors, Step};

    pub fn open() -> bool {
        false
    }

    pub fn set_up() {}

    pub fn release() {}

    pub fn block(_: Factors, _: &[Step], _: &mut Block) {
        unreachable!("the matrix unit is never open here")
    }

    pub fn narrow(_: &[f32], _: &mut [u16]) -> usize {
        0
    }

    pub fn interleave(_: &[f32], _: &[f32], _: &mut [u16]) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    fn normal(purpose: &str, len: usize) -> Vec<f32> {
        let mut rng = Rng::stream(0, purpose, &[]);
        (0..len).map(|_| rng.normal()).collect()
    }

    #[test]
    fn values_are_rounded_to_the_nearest() {
        let cases = [(1.0, 0x3f80), (-2.5, 0xc020), (0.0, 0), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82)];
        cases.iter().for_each(|(x, bits)| assert_eq!(rounded(*x), *bits, "{x}"));
        assert_eq!((rounded(f32::INFINITY), rounded(f32::MAX)), (0x7f80, 0x7f80));
        assert!(f32::from_bits(u32::from(rounded(f32::NAN)) << 16).is_nan());
        let (xs, ys) = (normal("a", 37), normal("b", 37));
        let (mut narrowed, mut both) = (vec![0; 37], vec![0; 74]);
        narrow(&xs, &mut narrowed);
        interleave(&xs, &ys, &mut both);
        for i in 0..37 {
            assert_eq!([narrowed[i], both[2 * i], both[2 * i + 1]], [rounded(xs[i]), rounded(xs[i]), rounded(ys[i])]);
        }
    }

    /// Every way the factors may lie, sizes that fill no tiles, scale and addition: equal to the product of rounded factors in f64
    /// within 2e-6 of its largest value.
    #[test]
    fn products_are_those_of_rounded_factors() {
        if !bf16_available() {
            return eprintln!("skipped: this processor has no matrix unit");
        }
        for (m, n, k) in [(16, 16, 16), (33, 70, 45), (100, 31, 130)] {
            let (a, b, start) = (normal("a", m * k), normal("b", k * n), normal("out", m * (n + 3)));
            let wide = |x: f32| f64::from(f32::from_bits(u32::from(rounded(x)) << 16));
            for (turned_a, turned_b, add, scale) in
                [(false, false, false, 1.0), (true, false, true, 1.0), (false, true, false, 0.5), (true, true, true, 2.0)]
            {
                let left = if turned_a { Matrix::rows(&a, m).t() } else { Matrix::rows(&a, k) };
                let right = if turned_b { Matrix::rows(&b, k).t() } else { Matrix::rows(&b, n) };
                let mut outs = [start.clone(), start.clone()];
                for (out, parallel) in outs.iter_mut().zip([false, true]) {
                    gemm((m, n, k), left, right, out, n + 3, add, scale, parallel);
                }
                assert_eq!(outs[0], outs[1]);
                for i in 0..m * n {
                    let (row, column) = (i / n, i % n);
                    let at =
                        |j: usize| wide(a[row * left.row + j * left.column]) * wide(b[j * right.row + column * right.column]);
                    let exact = (0..k).map(at).sum::<f64>() * f64::from(scale)
                        + if add { f64::from(start[row * (n + 3) + column]) } else { 0.0 };
                    let found = f64::from(outs[0][row * (n + 3) + column]);
                    assert!(
                        (found - exact).abs() < 2e-6 * 4.0 * (k as f64).sqrt() * f64::from(scale).max(1.0),
                        "{m} {n} {k}: {found} {exact}"
                    );
                }
                // Nothing is written behind the rows.
                assert!((0..m).all(|row| outs[0][row * (n + 3) + n..][..3] == start[row * (n + 3) + n..][..3]));
            }
        }
    }
}
