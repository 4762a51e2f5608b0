//! Processes with a GPU each that talk through NCCL.

use super::{Group, Launched, rendezvous};
use crate::base::{Error, Result};
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, result::NcclError, safe::NcclType};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, Device, InplaceOp1, Layout, Result as TensorResult, Tensor};
use std::fmt::{self, Debug, Formatter};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// All processes that a launcher started.
pub(super) struct Nccl {
    rank: usize,
    size: usize,
    device: CudaDevice,
    channel: Mutex<Channel>,
}

/// A communicator, used by one thread at a time.
struct Channel(Comm);

#[allow(unsafe_code)]
// SAFETY: NCCL binds a communicator to a GPU, not to a thread; the mutex around it lets in one thread at a time.
unsafe impl Send for Channel {}

impl Nccl {
    /// The first process makes the group's identifier and gives it to the others.
    ///
    /// # Errors
    /// Processes that do not find each other; NCCL's own.
    pub fn connect(launched: &Launched, device: &CudaDevice) -> Result<Self> {
        let address = rendezvous::address(|name| std::env::var(name).ok());
        let lost = |e: std::io::Error| {
            Error::environment(
                format!("the processes do not find each other at {}:{}: {e}", address.0, address.1),
                "set MASTER_ADDR to the machine of the first process and MASTER_PORT to a free port; see docs/clusters.md",
            )
        };
        let id = if launched.rank == 0 {
            let id = Id::new().map_err(refused)?;
            let listener = TcpListener::bind(("0.0.0.0", address.1)).map_err(lost)?;
            rendezvous::give(&listener, launched.size - 1, &id.internal().map(|c| c as u8)).map_err(lost)?;
            id
        } else {
            Id::uninit(rendezvous::take::<128>(&address).map_err(lost)?.map(|byte| byte as std::ffi::c_char))
        };
        let comm = Comm::from_rank(device.cuda_stream(), launched.rank, launched.size, id).map_err(refused)?;
        Ok(Self { rank: launched.rank, size: launched.size, device: device.clone(), channel: Mutex::new(Channel(comm)) })
    }

    fn reduce<T: NcclType + DeviceRepr>(&self, values: &mut CudaSlice<T>, (start, end): (usize, usize)) -> TensorResult<()> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let reduced = channel.0.all_reduce_in_place(&mut values.slice_mut(start..end), &ReduceOp::Avg);
        reduced.map(|_| ()).map_err(|e| candle_core::Error::Msg(format!("NCCL: {e:?}")))
    }
}

fn refused(error: NcclError) -> Error {
    let next = "give each process a GPU of its own and the same version of NCCL; NCCL_DEBUG=INFO says more";
    Error::environment(format!("NCCL does not connect the processes: {error:?}"), next)
}

impl Debug for Nccl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl({} of {})", self.rank, self.size)
    }
}

impl Group for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn mean(&self, values: &Tensor) -> TensorResult<Tensor> {
        let mean = values.to_device(&Device::Cuda(self.device.clone()))?.force_contiguous()?;
        mean.inplace_op1(self)?;
        mean.to_device(values.device())
    }

    /// The launcher ends the others: torchrun does, `srun` with `--kill-on-bad-exit`.
    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}

impl InplaceOp1 for Nccl {
    fn name(&self) -> &'static str {
        "mean over processes"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> TensorResult<()> {
        candle_core::bail!("NCCL reaches values on GPUs only")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> TensorResult<()> {
        let Some(range) = layout.contiguous_offsets() else { candle_core::bail!("expected contiguous values") };
        match &mut storage.slice {
            CudaStorageSlice::F32(values) => self.reduce(values, range),
            CudaStorageSlice::F64(values) => self.reduce(values, range),
            _ => candle_core::bail!("means over processes are of f32 or f64"),
        }
    }
}
