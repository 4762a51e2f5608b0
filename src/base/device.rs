//! Which device tensors are computed on.

use super::{Error, Result};
use candle_core::{DType, Device, DeviceLocation};
use std::sync::OnceLock;

static CURRENT: OnceLock<(Device, DType)> = OnceLock::new();

/// Where this process makes its parameters and inputs: the processor, unless [`make_current`] said otherwise. Results of
/// operations are where their arguments are.
pub fn current() -> Device {
    CURRENT.get().map_or(Device::Cpu, |(device, _)| device.clone())
}

/// The number type networks compute in: f32, unless [`make_current`] said otherwise. Parameters, inputs and results are f32 always.
pub fn current_dtype() -> DType {
    CURRENT.get().map_or(DType::F32, |(_, dtype)| *dtype)
}

/// Decides where and in which type the process computes. Call once, before the first tensor is made; later calls change nothing.
pub fn make_current(device: &Device, dtype: DType) {
    CURRENT.get_or_init(|| (device.clone(), dtype));
}

/// The name by which `--device` knows a device.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".into(),
    }
}

/// A device as named by `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The GPU if there is one this program can use, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("auto", "0") => Ok(Self::Auto),
            ("cpu", "0") => Ok(Self::Cpu),
            ("metal", "0") => Ok(Self::Metal),
            ("cuda", number) => number.parse().map(Self::Cuda).map_err(|_| format!("`{number}` is not a device number")),
            _ => Err("use auto, cpu, cuda, cuda:N or metal".into()),
        }
    }
}

/// A device, and why it is not the one that would have been better.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Where to compute.
    pub device: Device,
    /// One line for people: why `auto` falls back to the processor in a program that could use a GPU.
    pub note: Option<String>,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Environment`] when a device was asked for by name and cannot be used.
    pub fn open(self) -> Result<Opened> {
        let alone = |device| Ok(Opened { device, note: None });
        match self {
            Self::Cpu => alone(Device::Cpu),
            Self::Auto if !cfg!(feature = "cuda") => alone(Device::Cpu),
            Self::Auto => match cuda(automatic()) {
                Ok(device) => alone(device),
                Err(reason) => Ok(Opened { device: Device::Cpu, note: Some(format!("computing on the processor: {reason}")) }),
            },
            Self::Cuda(number) => match cuda(number) {
                Ok(device) => alone(device),
                Err(reason) => Err(Error::environment(
                    format!("cannot use `--device cuda:{number}`: {reason}"),
                    "leave `--device` out to compute on the processor; docs/gpu.md says what a GPU needs",
                )),
            },
            Self::Metal => Err(Error::environment(
                "this build has no support for `--device metal`",
                "leave `--device` out to compute on the processor",
            )),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> std::result::Result<Device, String> {
    Err("this build has no support for CUDA".into())
}

/// Processes on one machine take the GPUs in turn. Where the launcher gives each process a GPU of its own, it sees only that.
#[cfg(feature = "cuda")]
fn automatic() -> usize {
    let count = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().unwrap_or(1).max(1) as usize;
    super::group::launched().map_or(0, |launched| launched.local_rank % count)
}

#[cfg(not(feature = "cuda"))]
fn automatic() -> usize {
    0
}

/// One stream for all threads, so that work is done in the order it is given; freed memory stays with the program.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn cuda(number: usize) -> std::result::Result<Device, String> {
    let device = Device::new_cuda_with_stream(number).map_err(|error| reason(&error))?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: everything of ours runs on the one stream of this device, so its order is all that is needed.
        unsafe { cuda.disable_event_tracking() };
        // Without a pool everything works, only slower.
        let _ = keep_memory(cuda);
    }
    Ok(device)
}

/// The first line of what the driver says, for people.
#[cfg(feature = "cuda")]
fn reason(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or("unknown").trim();
    match line {
        line if line.contains("NO_DEVICE") => "no GPU, or no driver for it, was found".into(),
        line if line.contains("STUB_LIBRARY") => "the driver's library is a stub for building".into(),
        line => line.to_string(),
    }
}

/// Lets the pool keep what was freed: at every synchronisation it would give all of it back to the driver, by default.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn keep_memory(
    device: &candle_core::CudaDevice,
) -> std::result::Result<(), candle_core::cuda_backend::cudarc::driver::DriverError> {
    use candle_core::cuda_backend::cudarc::driver::result::{device as of_device, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;
    let mut threshold = u64::MAX;
    // SAFETY: the device comes from an open context; the attribute takes a pointer to an unsigned 64-bit number.
    unsafe {
        let pool = of_device::get_default_mem_pool(device.cuda_stream().context().cu_device())?;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        let parse = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parse("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(parse("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(parse("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["tpu", "cuda:x", "cpu:1", "auto:1", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_named_is_an_error_and_auto_never_is() {
        assert!(DeviceChoice::Cpu.open().unwrap().device.is_cpu());
        assert!(DeviceChoice::Auto.open().is_ok());
        let error = DeviceChoice::Cuda(99).open().unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("cuda:99"), "{error}");
        assert_eq!(DeviceChoice::Metal.open().unwrap_err().exit_code(), 4);
    }
}
