//! The GPU as a machine for kernels, and operations on its tensors with gradients.

use super::machine::{Arg, BLOCK, Kernels, Kind, Machine, Module};
use crate::nn::graph::{self, Reads};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::sys::CUdeviceptr;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Error, Layout, Result};
use candle_core::{Shape, Storage, Tensor, bail};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Values in the memory of the GPU: of a tensor that lives at least as long, or our own.
pub struct Buffer<'a> {
    pointer: CUdeviceptr,
    owned: Option<CudaStorage>,
    tensor: PhantomData<&'a Tensor>,
}

impl Buffer<'_> {
    /// A buffer with values of its own.
    pub fn own(storage: CudaStorage) -> Result<Self> {
        Ok(Self { pointer: pointer(&storage)?, owned: Some(storage), tensor: PhantomData })
    }

    /// The same buffer, when its values are its own.
    pub fn detached(self) -> Result<Buffer<'static>> {
        match self.owned {
            Some(storage) => Buffer::own(storage),
            None => bail!("the values belong to another tensor"),
        }
    }

    /// A tensor that takes over our own values.
    pub fn tensor(self, shape: impl Into<Shape>) -> Result<Tensor> {
        match self.owned {
            Some(storage) => Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)),
            None => bail!("the values belong to another tensor"),
        }
    }
}

/// Whether f32 products may use TF32 (10 bits instead of 23).
static TF32: AtomicBool = AtomicBool::new(false);

/// Lets f32 convolutions and matrix products on the GPU use TF32: faster, with 10 instead of 23 bits in the factors.
pub fn allow_tf32(allow: bool) {
    TF32.store(allow, Ordering::Relaxed);
    candle_core::cuda::set_gemm_reduced_precision_f32(allow);
}

/// See [`allow_tf32`].
#[cfg(feature = "cudnn")]
pub fn tf32_allowed() -> bool {
    TF32.load(Ordering::Relaxed)
}

/// Where the values start. All work goes to the one stream of the device, so nothing has to be waited for.
fn pointer(storage: &CudaStorage) -> Result<CUdeviceptr> {
    let stream = storage.device.cuda_stream();
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        _ => bail!("the kernels have no {:?}; use f32 or bf16", storage.dtype()),
    })
}

/// PTX of the modules compiled so far, by their text's name and the GPU's architecture.
static COMPILED: Mutex<BTreeMap<String, Arc<str>>> = Mutex::new(BTreeMap::new());

/// A device with the lifetime of the buffers that kernels are given.
pub struct Gpu<'a> {
    device: CudaDevice,
    buffers: PhantomData<&'a Tensor>,
}

impl<'a> Gpu<'a> {
    /// The device of a tensor.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        match tensor.device() {
            Device::Cuda(device) => Ok(Self { device: device.clone(), buffers: PhantomData }),
            other => bail!("expected a tensor on the GPU, found one on {:?}", other.location()),
        }
    }

    /// The operations for the type of `tensor`: f32 or bf16.
    pub fn kernels(&self, tensor: &Tensor) -> Result<Kernels<'_, Self>> {
        Ok(Kernels { machine: self, values: Kind::of(tensor.dtype())? })
    }

    /// The values of a contiguous tensor of type `dtype` on this device.
    pub fn input(&self, tensor: &'a Tensor, dtype: DType) -> Result<Buffer<'a>> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("expected contiguous values on the GPU, found {:?} on {:?}", layout.stride(), tensor.device().location())
        };
        if storage.dtype() != dtype || storage.device.id() != self.device.id() {
            bail!("expected {dtype:?} on one GPU, found {:?}", storage.dtype())
        }
        let pointer = pointer(storage)? + (start * dtype.size_in_bytes()) as CUdeviceptr;
        Ok(Buffer { pointer, owned: None, tensor: PhantomData })
    }

    fn ptx(&self, module: Module, name: &str) -> Result<Arc<str>> {
        let (major, minor) = self.device.cuda_stream().context().compute_capability().map_err(Error::wrap)?;
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{name}_{major}{minor}");
        if let Some(ptx) = compiled.get(&key) {
            return Ok(ptx.clone());
        }
        let options = vec![format!("--gpu-architecture=compute_{major}{minor}")];
        let ptx = compile_ptx_with_opts(module.text(), CompileOptions { options, ..CompileOptions::default() });
        let ptx = ptx.map_err(|error| match error {
            CompileError::CompileError { log, .. } => Error::Msg(format!("{name}: {}", log.to_string_lossy())),
            error => Error::Msg(format!("cannot compile kernels (is libnvrtc in LD_LIBRARY_PATH?): {error}")),
        })?;
        Ok(compiled.entry(key).or_insert(ptx.to_src().into()).clone())
    }
}

impl<'a> Machine for Gpu<'a> {
    type Buffer = Buffer<'a>;

    #[allow(unsafe_code)]
    fn buffer(&self, len: usize, kind: Kind) -> Result<Buffer<'a>> {
        // The allocator refuses sizes of 0.
        let len = len.max(1);
        // SAFETY: every kernel fills its results before anything reads them; all bit patterns are values of these types.
        let slice = unsafe {
            match kind {
                Kind::F32 => CudaStorageSlice::F32(self.device.alloc(len)?),
                Kind::Bf16 => CudaStorageSlice::BF16(self.device.alloc(len)?),
                Kind::U32 => CudaStorageSlice::U32(self.device.alloc(len)?),
            }
        };
        Buffer::own(CudaStorage { slice, device: self.device.clone() })
    }

    #[allow(unsafe_code)]
    fn launch(&self, module: Module, kernel: &str, grid: [usize; 2], args: &[Arg<Buffer<'a>>]) -> Result<()> {
        let name = format!("datum_{:?}_{:?}", module.source, module.values);
        let function = self.device.get_or_load_custom_func(kernel, &name, &self.ptx(module, &name)?)?;
        let mut builder = function.builder();
        let ints: Vec<i32> = args.iter().map(|arg| if let Arg::Int(value) = arg { *value as i32 } else { 0 }).collect();
        for (arg, int) in args.iter().zip(&ints) {
            match arg {
                Arg::Buffer(buffer) => builder.arg(&buffer.pointer),
                Arg::Int(_) => builder.arg(int),
                Arg::Float(value) => builder.arg(value),
            };
        }
        let config =
            LaunchConfig { grid_dim: (grid[0] as u32, grid[1] as u32, 1), block_dim: (BLOCK as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: number, order and types of the arguments are those of the kernel (the tests launch the same sequences with
        // the kernels' parameters checked); buffers are as long as the sizes say and outlive the launch, because memory is
        // given back in the order of the stream.
        unsafe { builder.launch(config) }.map_err(Error::wrap)?;
        Ok(())
    }
}

/// What a backward pass is given.
pub struct Given<'a> {
    pub args: &'a [&'a Tensor],
    pub result: &'a Tensor,
    /// Of the result; contiguous and without a graph.
    pub gradient: &'a Tensor,
}

/// Gradients of the arguments, where wanted (`arg.track_op()`).
pub type Gradients = Vec<Option<Tensor>>;

/// A result that is there already, as an operation of the graph.
struct Ready<F> {
    name: &'static str,
    result: Mutex<Option<(CudaStorage, Shape)>>,
    backward: F,
}

/// Makes `result` what came of `args`, with a way back.
pub fn with_gradient<F>(
    name: &'static str,
    args: &[&Tensor],
    result: Buffer,
    shape: impl Into<Shape>,
    backward: F,
) -> Result<Tensor>
where
    F: Fn(&Given) -> Result<Gradients> + Send + Sync + 'static,
{
    let Some(storage) = result.owned else { bail!("{name}: the result belongs to another tensor") };
    let op = Ready { name, result: Mutex::new(Some((storage, shape.into()))), backward };
    match args {
        [a] => graph::apply1(a, Reads::Everything, op),
        [a, b] => graph::apply2(a, b, Reads::Everything, op),
        [a, b, c] => graph::apply3(a, b, c, Reads::Everything, op),
        _ => bail!("{name}: {} arguments", args.len()),
    }
}

impl<F: Fn(&Given) -> Result<Gradients>> Ready<F> {
    fn take(&self) -> Result<(CudaStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: an operation value is applied once", self.name),
        }
    }

    fn back(&self, args: &[&Tensor], result: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        (self.backward)(&Given { args, result, gradient: &gradient.detach().contiguous()? })
    }

    fn on_the_processor<R>(&self) -> Result<R> {
        bail!("{}: arguments on the GPU and on the processor", self.name)
    }
}

impl<F: Fn(&Given) -> Result<Gradients>> CustomOp1 for Ready<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_the_processor()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, a: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.back(&[a], result, gradient)?.into_iter().next().flatten())
    }
}

impl<F: Fn(&Given) -> Result<Gradients>> CustomOp2 for Ready<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_the_processor()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut found = self.back(&[a, b], result, gradient)?.into_iter();
        Ok((found.next().flatten(), found.next().flatten()))
    }
}

impl<F: Fn(&Given) -> Result<Gradients>> CustomOp3 for Ready<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_the_processor()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, c: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<crate::nn::cpu::Gradients3> {
        let mut found = self.back(&[a, b, c], result, gradient)?.into_iter();
        Ok((found.next().flatten(), found.next().flatten(), found.next().flatten()))
    }
}
