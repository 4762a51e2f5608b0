//! Processes that talk through MPI, tensors on the processor.

use super::{Group, Launched};
use crate::base::{Error, Result};
use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::environment::Universe;
use ::mpi::point_to_point::{Destination, Source};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Equivalence};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result as TensorResult, Tensor};
use std::ops::Div;
use std::sync::Mutex;

/// Values given to MPI at once: it counts in 32 bits, and needs a second buffer of that size.
const CHUNK: usize = 1 << 22;

/// Marks the message that the main process has told an error.
const TOLD: i32 = 1;

/// Ends MPI when it is dropped.
static UNIVERSE: Mutex<Option<Universe>> = Mutex::new(None);

/// All processes of `mpirun` or `srun`.
#[derive(Debug)]
pub(super) struct Mpi {
    rank: usize,
    size: usize,
}

impl Mpi {
    /// # Errors
    /// MPI does not see the processes that the launcher started.
    pub fn connect(launched: &Launched) -> Result<Self> {
        // All calls come from the thread that trains.
        if let Some((universe, _)) = ::mpi::initialize_with_threading(Threading::Funneled) {
            *UNIVERSE.lock().unwrap_or_else(|e| e.into_inner()) = Some(universe);
        }
        let world = SimpleCommunicator::world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if size != launched.size {
            finalize();
            return Err(Error::environment(
                format!("{} processes were started, but MPI sees {size}", launched.size),
                "start with the `mpirun` of the MPI library the program was built with, or with `srun --mpi=pmix`",
            ));
        }
        Ok(Self { rank, size })
    }
}

/// Ends MPI, if it was started.
pub(super) fn finalize() {
    drop(UNIVERSE.lock().unwrap_or_else(|e| e.into_inner()).take());
}

impl Group for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn mean(&self, values: &Tensor) -> TensorResult<Tensor> {
        let mean = values.to_device(&Device::Cpu)?.force_contiguous()?;
        mean.inplace_op1(self)?;
        mean.to_device(values.device())
    }

    fn abort(&self, code: u8) -> ! {
        SimpleCommunicator::world().abort(code.into())
    }

    fn tell(&self) {
        let world = SimpleCommunicator::world();
        (1..self.size).for_each(|rank| world.process_at_rank(rank as i32).send_with_tag(&0u8, TOLD));
    }

    fn is_told(&self) -> bool {
        SimpleCommunicator::world().any_process().immediate_probe_with_tag(TOLD).is_some()
    }
}

impl InplaceOp1 for Mpi {
    fn name(&self) -> &'static str {
        "mean over processes"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> TensorResult<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("expected contiguous values") };
        match storage {
            CpuStorage::F32(values) => mean(&mut values[start..end], self.size as f32),
            CpuStorage::F64(values) => mean(&mut values[start..end], self.size as f64),
            _ => candle_core::bail!("means over processes are of f32 or f64"),
        }
        Ok(())
    }
}

fn mean<T: Equivalence + Copy + Div<Output = T>>(values: &mut [T], size: T) {
    let world = SimpleCommunicator::world();
    for values in values.chunks_mut(CHUNK) {
        let own = values.to_vec();
        world.all_reduce_into(&own[..], values, SystemOperation::sum());
        values.iter_mut().for_each(|value| *value = *value / size);
    }
}
