//! Threads of one process that compute one batch together, each a share of its rows, as processes do.

use super::{Alone, Group, current};
use crate::base::{Result, device, threads};
use candle_core::{Result as TensorResult, Tensor};
use rayon::ThreadPool;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Into how many shares a batch is divided. More would make single operations small.
const HALVES: usize = 2;

/// Which rows of this process's batch a computation has, and whom it meets for what needs the rows of all.
///
/// Row `j` of share `s` of `n` is row `j·n + s` of the batch, as it is among processes.
#[derive(Debug, Clone)]
pub struct Share(Who);

#[derive(Debug, Clone)]
enum Who {
    Process,
    Thread(Arc<Seat>),
    Nobody,
}

impl Share {
    /// All rows of this process, which meets the others that compute a batch together.
    pub const fn whole() -> Self {
        Self(Who::Process)
    }

    /// Rows that have nothing to do with what others compute.
    pub fn alone() -> Self {
        Self(Who::Nobody)
    }

    /// Those that compute the batch together: the threads, or the processes.
    pub fn group(&self) -> &dyn Group {
        match &self.0 {
            Who::Process => current(),
            Who::Thread(seat) => &**seat,
            Who::Nobody => &Alone,
        }
    }

    /// True for one of the computations in this process, which notes what must be noted once.
    pub fn notes(&self) -> bool {
        !matches!(&self.0, Who::Thread(seat) if seat.number > 0)
    }

    /// The rows of this share.
    ///
    /// # Shapes
    /// `batch` (B, …) → (B / number of shares, …)
    pub fn rows(&self, batch: &Tensor) -> TensorResult<Tensor> {
        let Who::Thread(_) = &self.0 else { return Ok(batch.clone()) };
        let rows: Vec<u32> = self.items(&(0..batch.dim(0)? as u32).collect::<Vec<_>>());
        batch.index_select(&Tensor::new(rows, batch.device())?, 0)
    }

    /// What belongs to the rows of this share, out of one item for each row.
    pub fn items<T: Clone>(&self, batch: &[T]) -> Vec<T> {
        match &self.0 {
            Who::Thread(seat) => batch.iter().skip(seat.number).step_by(seat.meeting.size).cloned().collect(),
            _ => batch.to_vec(),
        }
    }
}

/// The batch that shares are the rows of; `parts` in the order of shares. The other way round than [`Share::rows`].
pub fn united(parts: &[Tensor]) -> TensorResult<Tensor> {
    match parts {
        [whole] => Ok(whole.clone()),
        parts => Tensor::stack(parts, 1)?.flatten(0, 1),
    }
}

/// Computes batches as shares side by side, all at the same time, for networks whose batch norm needs the statistics of all rows.
///
/// Between operations candle's backward pass fills and adds tensors in one thread, which a batch as a whole waits for.
#[derive(Debug, Default)]
pub struct Shares {
    /// One for each share; none: the batch is not divided.
    pools: Vec<ThreadPool>,
    /// Most shares that compute while others wait.
    limit: usize,
}

impl Shares {
    /// Batches as they are.
    pub fn whole() -> Self {
        Self::default()
    }

    /// Two halves for batches of an even number of `rows` on the CPU, with the threads of the pool this is called from; the same for
    /// any number of threads. Processes that train together have shares enough, and divide nothing further.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn of(rows: usize) -> Result<Self> {
        if rows < 2 || !rows.is_multiple_of(HALVES) || !device::current().is_cpu() || current().size() > 1 {
            return Ok(Self::whole());
        }
        let limit = rayon::current_num_threads();
        let pool = |number| threads::pool((limit / HALVES + usize::from(number < limit % HALVES)).max(1));
        Ok(Self { pools: (0..HALVES).map(pool).collect::<Result<_>>()?, limit })
    }

    /// How many shares a batch has.
    pub fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// What `work` gives for each share, in their order. Each has a thread of its own; while one waits for the others, another
    /// computes where there are fewer threads than shares.
    ///
    /// # Errors
    /// That of the share that failed first; the others do not wait for it.
    pub fn each<T: Send>(&self, work: impl Fn(&Share) -> Result<T> + Sync) -> Result<Vec<T>> {
        if self.pools.is_empty() {
            return Ok(vec![work(&Share::whole())?]);
        }
        let meeting = Arc::new(Meeting::new(self.pools.len(), self.limit));
        let run = |number: usize| {
            let seat = Arc::new(Seat { number, meeting: meeting.clone() });
            let mut turn = Turn::new(&seat);
            let result = work(&Share(Who::Thread(seat.clone())));
            turn.done = result.is_ok();
            result
        };
        let run = &run;
        let mut found: Vec<Result<T>> = std::thread::scope(|scope| {
            let start = |(number, pool)| scope.spawn(move || ThreadPool::install(pool, || run(number)));
            let threads: Vec<_> = self.pools.iter().enumerate().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        match meeting.lock().failed {
            Some(number) => found.swap_remove(number).map(|_| Vec::new()),
            None => found.into_iter().collect(),
        }
    }
}

/// The place of a share among the others.
#[derive(Debug)]
struct Seat {
    number: usize,
    meeting: Arc<Meeting>,
}

impl Group for Seat {
    fn rank(&self) -> usize {
        self.number
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    fn mean(&self, values: &Tensor) -> TensorResult<Tensor> {
        self.meeting.mean(self.number, values)
    }

    fn abort(&self, code: u8) -> ! {
        current().abort(code)
    }
}

/// Where shares wait for each other.
#[derive(Debug)]
struct Meeting {
    size: usize,
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Shares that compute.
    working: usize,
    /// Shares that are through.
    left: usize,
    /// The first that ended with an error.
    failed: Option<usize>,
    /// What came to the present meeting, by share.
    brought: Vec<Option<Tensor>>,
    /// Meetings so far, and the mean of the last one.
    meetings: u64,
    mean: Option<Tensor>,
}

impl Meeting {
    fn new(size: usize, limit: usize) -> Self {
        let state = State { brought: vec![None; size], ..State::default() };
        Self { size, limit: limit.max(1), state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `unready`.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, unready: impl Fn(&State) -> bool) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, |state| unready(state)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn to compute.
    fn turn<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let mut state = self.wait(state, |state| state.working >= self.limit);
        state.working += 1;
        state
    }

    /// The mean over shares, added in their order. Nobody brings something to the next meeting before all have the mean of this one,
    /// as all have to come.
    fn mean(&self, number: usize, values: &Tensor) -> TensorResult<Tensor> {
        let mut state = self.lock();
        state.brought[number] = Some(values.clone());
        if state.brought.iter().all(Option::is_some) {
            let brought: Vec<Tensor> = state.brought.iter_mut().filter_map(Option::take).collect();
            let sum = brought[1..].iter().try_fold(brought[0].clone(), |sum, values| sum + values)?;
            state.mean = Some((sum / self.size as f64)?);
            state.meetings += 1;
            self.changed.notify_all();
        } else {
            let meetings = state.meetings;
            state.working -= 1;
            self.changed.notify_all();
            state = self.wait(state, |state| state.meetings == meetings && state.failed.is_none() && state.left == 0);
            let met = state.meetings > meetings;
            state = self.turn(state);
            if !met {
                candle_core::bail!("another share of the batch does not come");
            }
        }
        state.mean.clone().ok_or_else(|| candle_core::Error::Msg("shares met without values".into()))
    }
}

/// The time in which a share computes.
struct Turn<'a> {
    seat: &'a Seat,
    /// Without an error.
    done: bool,
}

impl<'a> Turn<'a> {
    fn new(seat: &'a Seat) -> Self {
        drop(seat.meeting.turn(seat.meeting.lock()));
        Self { seat, done: false }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.seat.meeting.lock();
        state.working -= 1;
        state.left += 1;
        if !self.done {
            state.failed.get_or_insert(self.seat.number);
        }
        self.seat.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;
    use candle_core::Device;
    use rayon::ThreadPoolBuilder;

    /// Two shares as a program with so many threads makes them.
    fn shares(threads: usize) -> Shares {
        ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| Shares::of(4)).unwrap()
    }

    #[test]
    fn rows_of_shares_make_up_the_batch_and_means_are_those_of_all() {
        let batch = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        for threads in [1, 2, 3, 5] {
            let shares = shares(threads);
            let parts = shares.each(|share| {
                let rows = share.rows(&batch)?;
                let own = f64::from(rows.sum_all()?.to_scalar::<f32>()?) / 2.0;
                // Often, so that one that overtakes the other would be seen.
                for round in 0..200 {
                    let mean = share.group().mean_of(vec![own, own * f64::from(round)])?;
                    assert_eq!(mean, [16.5, 16.5 * f64::from(round)]);
                }
                Ok((rows, share.notes()))
            });
            let (parts, notes): (Vec<_>, Vec<_>) = parts.unwrap().into_iter().unzip();
            assert_eq!(notes, [true, false]);
            assert_eq!(parts[1].to_vec2::<f32>().unwrap(), [[3.0, 4.0, 5.0], [9.0, 10.0, 11.0]]);
            assert_eq!(united(&parts).unwrap().to_vec2::<f32>().unwrap(), batch.to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn no_more_shares_compute_at_once_than_there_are_threads() {
        let working = std::sync::atomic::AtomicUsize::new(0);
        let most = shares(1).each(|share| {
            let mut most = 0;
            for _ in 0..20 {
                most = most.max(working.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1);
                std::thread::yield_now();
                working.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                share.group().wait()?;
            }
            Ok(most)
        });
        assert_eq!(most.unwrap(), [1, 1]);
    }

    #[test]
    fn nobody_waits_for_a_share_that_failed() {
        for (threads, failing) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let result = shares(threads).each(|share| {
                if share.group().rank() == failing {
                    return Err(Error::Usage("no".into()));
                }
                Ok(share.group().wait()?)
            });
            assert_eq!(result.unwrap_err().to_string(), "no");
        }
        let unequal = shares(2).each(|share| match share.notes() {
            true => Ok(share.group().wait()?),
            false => Ok(()),
        });
        assert!(unequal.unwrap_err().to_string().contains("does not come"));
    }

    #[test]
    fn a_panic_of_a_share_goes_on() {
        let panicking = || {
            shares(2).each(|share| match share.notes() {
                true => panic!("here"),
                false => Ok(share.group().wait()?),
            })
        };
        let panic = std::panic::catch_unwind(panicking).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"here"));
    }

    #[test]
    fn odd_batches_are_not_divided() {
        assert_eq!([1, 2, 3, 4].map(|rows| Shares::of(rows).unwrap().count()), [1, 2, 1, 2]);
        let whole = Share::whole();
        assert!(whole.notes() && whole.group().size() == 1 && Share::alone().group().size() == 1);
    }
}
