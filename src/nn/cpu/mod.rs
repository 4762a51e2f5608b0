//! What the CPU operations share: access to values, parallel buffers, matrix products, vector loops.
//!
//! Results never depend on the number of threads: work is cut into chunks of fixed size, every chunk is computed by one
//! thread, and partial sums are added in the order of chunks. Operations are candle `CustomOp`s with a `cpu_fwd` only;
//! on another device candle reports that the operation has no implementation there.

use candle_core::{DType, Result, Tensor};

mod buffer;
mod matmul;
mod simd;
mod sliding;
pub mod tiles;

pub use buffer::{
    column_sums, contiguous_gradient, fill_chunks, fill_chunks_map, fill_chunks_with, read, sum_of_parts, tensor, values,
    write_chunks, zeros,
};
pub use matmul::{Matrix, Threads, gemm};
pub(crate) use simd::vectorised;
pub use simd::{dot, exp, exp_shifted, max, polynomial, sum, sum_both, sum_pairs};
pub use sliding::{CORRELATE, SLIDE_PLANE, SLIDE_ROWS, correlate_rows, slide_plane, slide_rows};
pub use tiles::{allow_bf16, bf16_available, bf16_chosen, product};

/// Values per chunk of elementwise work: small enough for the first-level cache, large enough to pay for scheduling.
pub const CHUNK: usize = 8192;

/// An operation on bf16, computed in f32 and rounded at the end. Nobody should train so: models compute in bf16 on GPUs, and this
/// lets tests run them without one.
pub fn rounded<const N: usize>(args: [&Tensor; N], op: impl FnOnce([&Tensor; N]) -> Result<Tensor>) -> Result<Tensor> {
    let wide = args.iter().map(|arg| arg.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    op(std::array::from_fn(|i| &wide[i]))?.to_dtype(DType::BF16)
}

/// True for what only GPUs compute with as it is; see [`rounded`].
pub fn is_narrow(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::BF16
}

/// Gradients of an operation with three arguments; `None` for those nobody asked for.
pub type Gradients3 = (Option<Tensor>, Option<Tensor>, Option<Tensor>);
