//! Matrix products on slices.

/// A matrix inside a slice: element (i, j) is at `i · row + j · column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) row: usize,
    pub(super) column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `stride` values, one after the other.
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row: stride, column: 1 }
    }

    /// The transposed matrix; nothing is copied.
    pub fn t(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    pub(super) fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// Who computes a product. The result has the same bits either way: threads share out elements, never a sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread: for products inside a parallel loop.
    One,
    /// All threads of the current pool.
    All,
}

/// `out = scale · a·b` (or `out +=` when `add`), `a` (m, k), `b` (k, n), `out` (m, n) with rows `out_stride` apart.
#[allow(unsafe_code)]
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    out_stride: usize,
    add: bool,
    scale: f32,
    threads: Threads,
) {
    assert!(a.holds(m, k) && b.holds(k, n) && Matrix::rows(out, out_stride).holds(m, n) && out_stride >= n, "gemm sizes");
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: the assertion above keeps every access inside the three slices; `out` is borrowed mutably and its rows do
    // not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
