//! Several processes that train one network together, each on its share of every batch (data parallelism).
//!
//! A launcher (`mpirun`, `srun`, `torchrun`) starts the same command once for each process; [`join`] connects them. Row `j` of
//! a process's batch is row `j · size + rank` of the batch of all, and random draws go by that number, so that N processes with
//! batches of B items see what one process with a batch of N · B items sees. Only the main process (rank 0) writes files.
//!
//! `mpi` and `nccl` hold what connects processes, each behind the feature of its name; both have one operation, a mean. [`Shares`] are
//! threads in the place of processes.

mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
mod share;

use super::{Error, Result, interrupt};
use candle_core::{Device, Result as TensorResult, Tensor};
pub use launch::{Launched, launched};
pub use share::{Share, Shares, united};
use std::fmt::Debug;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long another process than the main one keeps its error to itself: most errors happen to all, and one message is enough.
const SAME_ERROR: Duration = Duration::from_secs(10);
/// The same after Ctrl-C, when the main process has files to finish.
const SAME_STOP: Duration = Duration::from_secs(60);

static CURRENT: OnceLock<Box<dyn Group>> = OnceLock::new();

/// Processes that compute together. All of them call the same methods in the same order, from their main threads.
pub trait Group: Debug + Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;
    /// Number of processes.
    fn size(&self) -> usize;
    /// The mean over all processes, value by value, with type, shape and device of the argument.
    ///
    /// # Shapes
    /// any, f32 or f64, the same on all processes
    fn mean(&self, values: &Tensor) -> TensorResult<Tensor>;
    /// Ends all processes at once with an exit code.
    fn abort(&self, code: u8) -> !;
    /// Lets the others know that the main process has told why it ends.
    fn tell(&self) {}
    /// Whether the main process has.
    fn is_told(&self) -> bool {
        false
    }
}

/// One process: what programs are unless they [`join`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn mean(&self, values: &Tensor) -> TensorResult<Tensor> {
        Ok(values.clone())
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}

/// The processes this one works with.
pub fn current() -> &'static dyn Group {
    CURRENT.get().map_or(&Alone, |group| &**group)
}

/// Connects this process with the others that a launcher started, if there are any. Call once, from the main thread, before
/// anything is computed. `device` is where this process computes: GPUs talk through NCCL where the program has it.
///
/// # Errors
/// A program without support for several processes; processes that do not find each other.
pub fn join(device: &Device) -> Result<()> {
    let Some(launched) = launched().filter(|launched| launched.size > 1) else { return Ok(()) };
    if CURRENT.get().is_none() {
        let group = connect(&launched, device)?;
        // Only one thread gets here, so nothing was set in the meantime.
        let _ = CURRENT.set(group);
    }
    Ok(())
}

fn connect(launched: &Launched, device: &Device) -> Result<Box<dyn Group>> {
    #[cfg(feature = "nccl")]
    if let Device::Cuda(device) = device {
        return Ok(Box::new(nccl::Nccl::connect(launched, device)?));
    }
    let _ = device;
    #[cfg(feature = "mpi")]
    return Ok(Box::new(mpi::Mpi::connect(launched)?));
    #[cfg(not(feature = "mpi"))]
    Err(Error::environment(
        format!("{} processes were started, but this build cannot join them on this device", launched.size),
        "start one process, or build with `--features mpi` (processors) or `--features cudnn,nccl` (GPUs); see docs/clusters.md",
    ))
}

/// Parts from the other processes at the end of a program. After an error all of them end: it is told once, by the main process
/// when it happened there too.
pub fn leave(result: Result<()>) -> Result<()> {
    let group = current();
    match result {
        Err(error) if group.size() > 1 => {
            interrupt::uninstall();
            let patience = if matches!(error, Error::Interrupted { .. }) { SAME_STOP } else { SAME_ERROR };
            // With nowhere left to say it, the exit code still tells.
            if group.is_main() {
                let _ = writeln!(std::io::stderr(), "error: {error}");
                group.tell();
            } else if !told_within(group, patience) {
                let _ = writeln!(std::io::stderr(), "error: process {} of {}: {error}", group.rank(), group.size());
            }
            group.abort(error.exit_code())
        }
        result => {
            #[cfg(feature = "mpi")]
            mpi::finalize();
            result
        }
    }
}

fn told_within(group: &dyn Group, patience: Duration) -> bool {
    let start = Instant::now();
    while !group.is_told() && start.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    group.is_told()
}

impl dyn Group + '_ {
    /// True for the process that writes files and talks to people.
    pub fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// Numbers, in the batch of all processes, of the `rows` items of this process's batch.
    pub fn items(&self, rows: u64) -> impl Iterator<Item = u64> + use<> {
        let (rank, size) = (self.rank() as u64, self.size() as u64);
        (0..rows).map(move |row| row * size + rank)
    }

    /// `rows` rows of `width` values for this process out of those that `draw` gives for the rows of all, so that every
    /// process leaves `draw` in the same state.
    pub fn own_rows<T>(&self, rows: usize, width: usize, mut draw: impl FnMut() -> T) -> Vec<T> {
        let mut own = Vec::with_capacity(rows * width);
        for row in 0..rows * self.size() {
            for _ in 0..width {
                let value = draw();
                if row % self.size() == self.rank() {
                    own.push(value);
                }
            }
        }
        own
    }

    /// The mean of each number over all processes.
    pub fn mean_of(&self, values: Vec<f64>) -> TensorResult<Vec<f64>> {
        if self.size() == 1 || values.is_empty() {
            return Ok(values);
        }
        let count = values.len();
        self.mean(&Tensor::from_vec(values, count, &Device::Cpu)?)?.to_vec1()
    }

    /// True on all processes when it is on one.
    pub fn any(&self, flag: bool) -> TensorResult<bool> {
        Ok(self.mean_of(vec![f64::from(u8::from(flag))])?[0] > 0.0)
    }

    /// The values 0…255 that occur on any process, sorted; `own` are sorted.
    pub fn union(&self, own: &[u32]) -> TensorResult<Vec<u32>> {
        if self.size() == 1 {
            return Ok(own.to_vec());
        }
        let found = self.mean_of((0..256).map(|value| f64::from(u8::from(own.contains(&value)))).collect())?;
        Ok((0..256).zip(found).filter(|(_, found)| *found > 0.0).map(|(value, _)| value).collect())
    }

    /// Waits until all processes are here.
    pub fn wait(&self) -> TensorResult<()> {
        self.any(false).map(|_| ())
    }

    /// What the main process has; others' argument is ignored.
    pub fn from_main(&self, own: &[u8]) -> TensorResult<Vec<u8>> {
        let main = |value: f64| if self.is_main() { value } else { 0.0 };
        let size = self.size() as f64;
        let length = self.mean_of(vec![main(own.len() as f64)])?[0] * size;
        let mut values = vec![0.0; length.round() as usize];
        if self.is_main() {
            values.iter_mut().zip(own).for_each(|(value, byte)| *value = f64::from(*byte));
        }
        Ok(self.mean_of(values)?.into_iter().map(|value| (value * size).round() as u8).collect())
    }

    /// # Errors
    /// On processes whose `own` is not what the main process has; `what` names it.
    pub fn check_same(&self, what: &str, own: &[u8]) -> Result<()> {
        if self.size() == 1 || self.from_main(own)? == own {
            return Ok(());
        }
        Err(Error::environment(
            format!("{what} differs between the processes {} and 0", self.rank()),
            "give all processes the same program, command, files and number of threads",
        ))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::{Arc, Barrier, Mutex};

    /// Threads in the place of processes.
    #[derive(Debug)]
    pub(crate) struct Threads {
        rank: usize,
        size: usize,
        meeting: Arc<(Barrier, Mutex<Option<Tensor>>)>,
    }

    impl Group for Threads {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            self.size
        }

        fn mean(&self, values: &Tensor) -> TensorResult<Tensor> {
            let (barrier, sum) = &*self.meeting;
            {
                let mut sum = sum.lock().unwrap();
                *sum = Some(sum.take().map_or_else(|| Ok(values.clone()), |sum| sum + values)?);
            }
            barrier.wait();
            let mean = (sum.lock().unwrap().clone().unwrap() / self.size as f64)?;
            if barrier.wait().is_leader() {
                *sum.lock().unwrap() = None;
            }
            barrier.wait();
            Ok(mean)
        }

        fn abort(&self, code: u8) -> ! {
            panic!("{code}")
        }
    }

    /// What `work` gives on each of `size` processes.
    pub(crate) fn together<T: Send>(size: usize, work: impl Fn(&dyn Group) -> T + Sync) -> Vec<T> {
        let meeting = Arc::new((Barrier::new(size), Mutex::new(None)));
        std::thread::scope(|scope| {
            let start = |rank| {
                let (meeting, work) = (meeting.clone(), &work);
                scope.spawn(move || work(&Threads { rank, size, meeting }))
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn shares_of_a_batch_are_its_rows_in_turn() {
        let items: Vec<Vec<u64>> = together(3, |group| group.items(2).collect());
        assert_eq!(items, [[0, 3], [1, 4], [2, 5]]);
        let rows = together(2, |group| {
            let mut next = 0;
            group.own_rows(2, 3, || {
                next += 1;
                next
            })
        });
        assert_eq!(rows, [[1, 2, 3, 7, 8, 9], [4, 5, 6, 10, 11, 12]]);
        let alone: &dyn Group = &Alone;
        assert_eq!(alone.items(3).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn means_flags_and_bytes_reach_all() {
        for size in [1, 2, 3] {
            let results = together(size, |group| {
                let mean = group.mean_of(vec![group.rank() as f64, 4.0]).unwrap();
                let text = group.from_main(format!("runs/{}-é", group.rank()).as_bytes()).unwrap();
                let united = group.union(&[3, 200 + group.rank() as u32]).unwrap();
                assert_eq!(united, [&[3], &[200, 201, 202][..size]].concat());
                (mean, group.any(group.rank() + 1 == size).unwrap(), group.any(false).unwrap(), String::from_utf8(text).unwrap())
            });
            for result in results {
                assert_eq!(result, (vec![(size as f64 - 1.0) / 2.0, 4.0], true, false, "runs/0-é".into()));
            }
        }
    }

    #[test]
    fn what_differs_is_named_where_it_does() {
        let errors = together(3, |group| group.check_same("the recipe", &[u8::from(group.rank() == 2)]).err());
        assert!(errors[0].is_none() && errors[1].is_none());
        let error = errors[2].as_ref().unwrap();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().starts_with("the recipe differs between the processes 2 and 0\n"), "{error}");
    }
}
