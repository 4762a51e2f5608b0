//! Convolutions by cuDNN, forward and both gradients.

use super::device::{Buffer, tf32_allowed};
use crate::nn::conv::Sizes;
use candle_core::cuda_backend::cudarc::cudnn::sys::{cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType, FilterDescriptor, TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Storage, Tensor, WithDType, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

thread_local! {
    /// Handles may not be shared by threads.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
}

fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    HANDLES.with(|handles| {
        if let Some(handle) = handles.borrow().get(&device.id()) {
            return Ok(handle.clone());
        }
        let new = Cudnn::new(device.cuda_stream());
        let new = new.map_err(|e| Error::Msg(format!("cannot start cuDNN (is libcudnn.so.9 in LD_LIBRARY_PATH?): {e}")))?;
        handles.borrow_mut().insert(device.id(), new.clone());
        Ok(new)
    })
}

/// Types cuDNN convolves for us; sums are f32.
trait Value: CudnnDataType + DeviceRepr + CudaDType + WithDType {}

impl<T: CudnnDataType + DeviceRepr + CudaDType + WithDType> Value for T {}

/// How cuDNN is told about one convolution.
struct Descriptors<T> {
    conv: ConvDescriptor<f32>,
    input: TensorDescriptor<T>,
    filter: FilterDescriptor<T>,
    output: TensorDescriptor<T>,
}

impl<T: Value> Descriptors<T> {
    fn new(device: &CudaDevice, s: &Sizes) -> Result<Self> {
        let cudnn = handle(device)?;
        let int = |size: usize| i32::try_from(size).map_err(|_| Error::Msg(format!("conv2d: a size of {size}")));
        let format = cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let both = |size: usize| -> Result<[i32; 2]> { Ok([int(size)?; 2]) };
        let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let (padding, stride, dilation) = (both(s.spec.padding)?, both(s.spec.stride)?, both(s.spec.dilation)?);
        let mut conv = cudnn.create_conv2d::<f32>(padding, stride, dilation, mode).map_err(Error::wrap)?;
        conv.set_group_count(int(s.spec.groups)?).map_err(Error::wrap)?;
        let math = match T::DTYPE {
            DType::F32 if tf32_allowed() => cudnnMathType_t::CUDNN_DEFAULT_MATH,
            DType::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            _ => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        conv.set_math_type(math).map_err(Error::wrap)?;
        let input = [int(s.batch)?, int(s.in_channels)?, int(s.height)?, int(s.width)?];
        let filter = [int(s.out_channels)?, int(s.in_channels / s.spec.groups)?, int(s.kernel_height)?, int(s.kernel_width)?];
        let output = [int(s.batch)?, int(s.out_channels)?, int(s.out_height)?, int(s.out_width)?];
        Ok(Self {
            conv,
            input: cudnn.create_4d_tensor(format, input).map_err(Error::wrap)?,
            filter: cudnn.create_4d_filter(format, filter).map_err(Error::wrap)?,
            output: cudnn.create_4d_tensor(format, output).map_err(Error::wrap)?,
        })
    }
}

/// A new buffer of any content for a result or for cuDNN's own use.
#[allow(unsafe_code)]
fn empty<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: cuDNN fills results before they are read, and does not read its working memory before writing it.
    unsafe { device.alloc(len.max(1)) }
}

/// The values of a contiguous tensor.
fn with_views<T: Value, R>(
    a: &Tensor,
    b: &Tensor,
    run: impl FnOnce(&CudaDevice, &CudaView<T>, &CudaView<T>) -> Result<R>,
) -> Result<R> {
    let ((left, left_layout), (right, right_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let (Storage::Cuda(left), Storage::Cuda(right)) = (&*left, &*right) else { bail!("conv2d: arguments on two devices") };
    match (left_layout.contiguous_offsets(), right_layout.contiguous_offsets()) {
        (Some((s, e)), Some((t, f))) => {
            run(&left.device, &left.as_cuda_slice::<T>()?.slice(s..e), &right.as_cuda_slice::<T>()?.slice(t..f))
        }
        _ => bail!("conv2d: arguments must be contiguous"),
    }
}

/// Runs `f32(…)` or `bf16(…)` by the type of a tensor.
macro_rules! by_type {
    ($tensor:expr, $function:ident($($arg:expr),*)) => {
        match $tensor.dtype() {
            DType::F32 => $function::<f32>($($arg),*),
            DType::BF16 => $function::<half::bf16>($($arg),*),
            other => bail!("conv2d on the GPU computes in f32 or bf16, not {other:?}"),
        }
    };
}

/// The result, without bias. Arguments: inputs and weight of one type.
pub fn forward(xs: &Tensor, weight: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
    by_type!(xs, forward_as(xs, weight, sizes))
}

/// Gradient of the inputs.
pub fn input_gradient(weight: &Tensor, gradient: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
    by_type!(weight, input_gradient_as(weight, gradient, sizes))
}

/// Gradient of the weight.
pub fn weight_gradient(xs: &Tensor, gradient: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
    by_type!(xs, weight_gradient_as(xs, gradient, sizes))
}

fn own<T: Value>(slice: CudaSlice<T>, device: &CudaDevice) -> Result<Buffer<'static>> {
    Buffer::own(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}

#[allow(unsafe_code)]
fn forward_as<T: Value>(xs: &Tensor, weight: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
    with_views::<T, _>(xs, weight, |device, x, w| {
        let d = Descriptors::<T>::new(device, sizes)?;
        let op = ConvForward { conv: &d.conv, x: &d.input, w: &d.filter, y: &d.output };
        let algorithm = op.pick_algorithm().map_err(Error::wrap)?;
        let mut memory = empty::<u8>(device, op.get_workspace_size(algorithm).map_err(Error::wrap)?)?;
        let mut out = empty::<T>(device, sizes.batch * sizes.out_channels * sizes.out_plane())?;
        // SAFETY: the descriptors are those of these contiguous buffers, whose lengths `Sizes` checked.
        unsafe { op.launch(algorithm, Some(&mut memory), (T::one(), T::zero()), x, w, &mut out) }.map_err(Error::wrap)?;
        own(out, device)
    })
}

#[allow(unsafe_code)]
fn input_gradient_as<T: Value>(weight: &Tensor, gradient: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
    with_views::<T, _>(weight, gradient, |device, w, g| {
        let d = Descriptors::<T>::new(device, sizes)?;
        let op = ConvBackwardData { conv: &d.conv, dx: &d.input, w: &d.filter, dy: &d.output };
        let algorithm = op.pick_algorithm().map_err(Error::wrap)?;
        let mut memory = empty::<u8>(device, op.get_workspace_size(algorithm).map_err(Error::wrap)?)?;
        let mut out = empty::<T>(device, sizes.batch * sizes.in_channels * sizes.in_plane())?;
        // SAFETY: as in `forward_as`.
        unsafe { op.launch(algorithm, Some(&mut memory), (T::one(), T::zero()), &mut out, w, g) }.map_err(Error::wrap)?;
        own(out, device)
    })
}

#[allow(unsafe_code)]
fn weight_gradient_as<T: Value>(xs: &Tensor, gradient: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
    with_views::<T, _>(xs, gradient, |device, x, g| {
        let d = Descriptors::<T>::new(device, sizes)?;
        let op = ConvBackwardFilter { conv: &d.conv, x: &d.input, dw: &d.filter, dy: &d.output };
        let algorithm = op.pick_algorithm().map_err(Error::wrap)?;
        let mut memory = empty::<u8>(device, op.get_workspace_size(algorithm).map_err(Error::wrap)?)?;
        let mut out = empty::<T>(device, sizes.out_channels * sizes.in_channels / sizes.spec.groups * sizes.area())?;
        // SAFETY: as in `forward_as`.
        unsafe { op.launch(algorithm, Some(&mut memory), (T::one(), T::zero()), x, &mut out, g) }.map_err(Error::wrap)?;
        own(out, device)
    })
}
