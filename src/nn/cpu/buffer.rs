//! Values of tensors as slices, and new buffers filled in parallel.

use super::CHUNK;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};

/// The values of a contiguous f32 argument of an operation.
///
/// # Errors
/// When the type is not f32 or the values are not contiguous.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&f32s(storage)?[range(layout)?])
}

fn f32s(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => bail!("this operation is f32 only on the CPU"),
    }
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("this operation needs contiguous values, found strides {:?}", layout.stride()),
    }
}

/// Read access to the values of a contiguous f32 CPU tensor.
///
/// # Errors
/// As [`values`], or when the tensor is not on the CPU.
pub fn read(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = range(layout)?;
    match &*storage {
        Storage::Cpu(cpu) => f32s(cpu)?,
        _ => bail!("this operation has a gradient on the CPU only"),
    };
    Ok(Values { storage, range })
}

/// A lock on a storage whose type and range were checked.
struct Values<Guard> {
    storage: Guard,
    range: Range<usize>,
}

impl<Guard: Deref<Target = Storage>> Deref for Values<Guard> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("checked by `read`"),
        }
    }
}

/// The gradient that reaches an operation, made contiguous (it may be a broadcast view) and without a graph of its own.
pub fn contiguous_gradient(gradient: &Tensor) -> Result<Tensor> {
    gradient.detach().contiguous()
}

/// A CPU tensor from its values.
pub fn tensor(values: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape.clone(), &Device::Cpu)
}

/// A number; its default is zero.
pub trait Value: Copy + Default + Send {}

impl Value for f32 {}

/// The bits of a bf16.
impl Value for u16 {}

/// `len` zeros, written in parallel.
pub fn zeros(len: usize) -> Vec<f32> {
    fill_chunks(len, CHUNK, |_, _| ())
}

/// The sum of parts of `len` values each, one behind the other, added in their order: for few long parts what [`column_sums`] is for
/// many short rows.
pub fn sum_of_parts(mut parts: Vec<f32>, len: usize) -> Vec<f32> {
    let (first, others) = parts.split_at_mut(len);
    first.par_chunks_mut(CHUNK).enumerate().for_each(|(i, sums)| {
        for part in others.chunks_exact(len) {
            sums.iter_mut().zip(&part[i * CHUNK..]).for_each(|(sum, x)| *sum += x);
        }
    });
    parts.truncate(len);
    parts
}

/// A new buffer of `len` values whose chunks of `chunk` values are filled by `fill(index, chunk)`, in parallel.
pub fn fill_chunks<T: Value>(len: usize, chunk: usize, fill: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    fill_chunks_map(len, chunk, fill).0
}

/// Like [`fill_chunks`], and collects what `fill` returns, in the order of chunks. Chunks start as zeros.
pub fn fill_chunks_map<T: Value, R: Send>(
    len: usize,
    chunk: usize,
    fill: impl Fn(usize, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    fill_chunks_with(len, chunk, || (), |(), index, part| fill(index, part))
}

/// Like [`fill_chunks_map`], with something a thread keeps from chunk to chunk.
#[allow(unsafe_code)]
pub fn fill_chunks_with<T: Value, R: Send, S: Send>(
    len: usize,
    chunk: usize,
    scratch: impl Fn() -> S + Sync + Send,
    fill: impl Fn(&mut S, usize, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let chunk = chunk.max(1);
    let mut buffer: Vec<T> = Vec::with_capacity(len);
    let results = buffer.spare_capacity_mut()[..len]
        .par_chunks_mut(chunk)
        .with_min_len((CHUNK / chunk).max(1))
        .enumerate()
        .map_init(scratch, |scratch, (index, part)| fill(scratch, index, zeroed(part)))
        .collect();
    // SAFETY: every chunk was initialised by `zeroed`.
    unsafe { buffer.set_len(len) };
    (buffer, results)
}

/// A new buffer of `len` values whose chunks of `chunk` values are written by `write(index, chunk)`, in parallel. For work that takes
/// little more time than clearing would: `write` gets memory with nothing in it and returns it written.
///
/// # Panics
/// When `write` returns anything else.
#[allow(unsafe_code)]
pub fn write_chunks(
    len: usize,
    chunk: usize,
    write: impl for<'a> Fn(usize, &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] + Sync,
) -> Vec<f32> {
    let chunk = chunk.max(1);
    let mut buffer: Vec<f32> = Vec::with_capacity(len);
    let parts = buffer.spare_capacity_mut()[..len].par_chunks_mut(chunk).with_min_len((CHUNK / chunk).max(1)).enumerate();
    parts.for_each(|(index, part)| {
        let (start, count) = (part.as_ptr().cast::<f32>(), part.len());
        let written = write(index, part);
        assert!(written.as_ptr() == start && written.len() == count, "a chunk was not written");
    });
    // SAFETY: every chunk came back as written.
    unsafe { buffer.set_len(len) };
    buffer
}

/// Clears a part just before it is filled, while it comes into the cache anyway: cheaper than clearing the whole buffer.
#[allow(unsafe_code)]
fn zeroed<T: Value>(part: &mut [MaybeUninit<T>]) -> &mut [T] {
    for value in part.iter_mut() {
        value.write(T::default());
    }
    // SAFETY: all values were just written.
    unsafe { part.assume_init_mut() }
}

/// Sum over rows: `xs` (rows, width) → (width).
pub fn column_sums(xs: &[f32], width: usize) -> Vec<f32> {
    let rows_per_chunk = (8 * CHUNK / width.max(1)).max(1);
    let partial: Vec<Vec<f32>> = xs
        .par_chunks((rows_per_chunk * width).max(1))
        .map(|rows| {
            let mut sums = vec![0f32; width];
            for row in rows.chunks_exact(width) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += x;
                }
            }
            sums
        })
        .collect();
    let mut total = vec![0f32; width];
    for sums in &partial {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum;
        }
    }
    total
}
