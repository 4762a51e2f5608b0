//! What the CPU operations share: access to values, parallel buffers, matrix products, vector loops.
//!
//! Results never depend on the number of threads: work is cut into chunks of fixed size, every chunk is computed by one
//! thread, and partial sums are added in the order of chunks. Operations are candle `CustomOp`s with a `cpu_fwd` only;
//! on another device candle reports that the operation has no implementation there.

use candle_core::Tensor;

mod buffer;
mod matmul;
mod simd;
mod sliding;

pub use buffer::{column_sums, contiguous_gradient, fill_chunks, fill_chunks_map, read, tensor, values};
pub use matmul::{Matrix, Threads, gemm};
pub(crate) use simd::vectorised;
pub use simd::{dot, exp, exp_shifted, max, sum, sum_pairs};
pub use sliding::{CORRELATE, SLIDE_ROWS, correlate_rows, slide_rows};

/// Values per chunk of elementwise work: small enough for the first-level cache, large enough to pay for scheduling.
pub const CHUNK: usize = 8192;

/// Gradients of an operation with three arguments; `None` for those nobody asked for.
pub type Gradients3 = (Option<Tensor>, Option<Tensor>, Option<Tensor>);
